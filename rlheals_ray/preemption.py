"""A node's notice of its end: learners save what they have at the next step, and go on until the end comes.

A cloud tells some time beforehand that it takes a spot node back (Amazon two minutes, Google half a minute). Whoever
runs the nodes hands that on to Ray as a drain of the node; Ray Train watches for drains and tells its workers. When
the deadline has passed it starts the worker group again, on other nodes, where the work resumes from what was saved.
"""

from __future__ import annotations

import time

LOOK_SECONDS = 1.0
"""About how often workers look for a notice: looking is a message of some milliseconds."""

SHARE_OF_SAVING = 0.1
"""Of the time after a notice, at most about this goes to saving again and again until the end comes."""


class Notice:
    """Asks a worker group, step by step, whether to save because one of its nodes is about to end.

    Every worker has one and calls it with the same steps: the answers are the same on all of them. To be used
    inside a Ray Train worker alone.
    """

    def __init__(self, step: int = 0) -> None:
        """`step`: how many are done already."""
        self._step, self._since = step, time.perf_counter()
        self._step_seconds = 0.0
        self._next = step + 1
        self._asked: float | None = None
        """When this last answered that it is time to save, until that is done."""

    def given(self, step: int) -> bool:
        """Whether to save now, `step` being done; collective."""
        import ray.train

        if step < self._next:
            return False
        now = time.perf_counter()
        self._step_seconds = (now - self._since) / max(1, step - self._step)
        is_given = ray.train.get_preemption_info() is not None
        self._look_again(step, LOOK_SECONDS)
        self._asked = time.perf_counter() if is_given else None
        return is_given

    def saved(self, step: int) -> None:
        """A save at `step` has ended; collective. Nothing where no notice had asked for it."""
        if self._asked is None:
            return
        took, self._asked = time.perf_counter() - self._asked, None
        self._look_again(step, max(LOOK_SECONDS, took / SHARE_OF_SAVING))

    def _look_again(self, step: int, seconds: float) -> None:
        """Look again after so many seconds, by the clock of the first worker, in steps."""
        import ray.train
        from ray.train.collective import broadcast_from_rank_zero

        ahead = max(1, int(seconds / max(self._step_seconds, 1e-6)))
        if ray.train.get_context().get_world_size() > 1:
            ahead = broadcast_from_rank_zero(ahead)
        self._next, self._step, self._since = step + ahead, step, time.perf_counter()
