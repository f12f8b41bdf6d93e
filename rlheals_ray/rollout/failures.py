"""What the pool has lost so far, and when that is too much."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import NamedTuple

from rlheals_ray.training import Hopeless

MOST_TOLD = 100
"""Losses that a message names: a study of weeks may have had more."""


class Failure(NamedTuple):
    """One generator lost."""

    time: float
    """Seconds since the epoch."""
    generator: int
    cause: str


class PoolFailed(Hopeless):
    """The pool gave up; the message names every cause, one a line, and ends with the reason."""


class Failures:
    """The losses of a study's pool: at most `limit` of one team in a row, without a finished run of it in between.

    Not of the study as a whole: on nodes that come and go a long one would use up any number.
    """

    def __init__(self, limit: int, team_size: int = 1) -> None:
        self._limit, self._team_size = limit, team_size
        self.all: list[Failure] = []
        self._in_a_row: Counter[int] = Counter()
        """Of each team, by the number of its first generator."""
        self.fatal = asyncio.Event()
        """Set when the pool has given up."""
        self._reason: PoolFailed | None = None

    def add(self, generator: int, cause: str) -> None:
        """Count a loss; raises PoolFailed, now and at every `check`, once there are more in a row than the limit."""
        self._in_a_row[self._team(generator)] += 1
        self._note(generator, cause, self._in_a_row[self._team(generator)])

    def add_episodes(self, cause: str, in_a_row: int) -> None:
        """Count finished episodes that were lost; `in_a_row`: how often to the same asker. Raises as `add`."""
        self._note(-1, cause, in_a_row)

    def _note(self, generator: int, cause: str, lost: int) -> None:
        self.all.append(Failure(time.time(), generator, cause))
        if lost > self._limit:
            self.give_up(
                PoolFailed(
                    f"{self.causes()}the study lost {lost} generators without a finished run in between, more than "
                    f"rollout.max_failures={self._limit} allows"
                )
            )
        self.check()

    def finished(self, generator: int) -> None:
        """The team of `generator` has finished a run: its losses before do not count any more."""
        self._in_a_row.pop(self._team(generator), None)

    def _team(self, generator: int) -> int:
        return generator - generator % self._team_size

    def give_up(self, reason: PoolFailed) -> None:
        """Let every run fail from now on."""
        self._reason = self._reason or reason
        self.fatal.set()

    def check(self) -> None:
        """Raises PoolFailed when the pool has given up."""
        if self._reason is not None:
            raise self._reason

    def causes(self) -> str:
        """One line per loss, the last of them."""
        return "".join(
            f"{time.strftime('%H:%M:%S', time.localtime(failure.time))} generator {failure.generator}: "
            f"{failure.cause}\n"
            for failure in self.all[-MOST_TOLD:]
        )
