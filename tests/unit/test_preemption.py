"""When a learner looks for a node's notice of its end, and saves for it; without Ray."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import ray.train.collective

from rlheals_ray import preemption
from rlheals_ray.preemption import Notice


class Group:
    """Workers as Ray Train has them, one after the other, and a clock that only steps move."""

    def __init__(self, workers: int) -> None:
        self.workers, self.now, self.looks = workers, 0.0, 0
        self.info: Any = None
        self._sent: Any = None

    def get_preemption_info(self) -> Any:
        self.looks += 1
        return self.info

    def broadcast(self, data: Any) -> Any:
        self._sent = data if self._sent is None else self._sent
        return self._sent

    def every(self, ask: Callable[[Notice], Any], notices: list[Notice]) -> list[Any]:
        """What each worker answers; the first is asked first, and what it broadcasts is what all get."""
        self._sent = None
        return [ask(notice) for notice in notices]


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    group = Group(workers=2)
    monkeypatch.setattr(ray.train, "get_preemption_info", group.get_preemption_info)
    monkeypatch.setattr(
        ray.train, "get_context", lambda: SimpleNamespace(get_world_size=lambda: group.workers)
    )
    monkeypatch.setattr(ray.train.collective, "broadcast_from_rank_zero", group.broadcast)
    monkeypatch.setattr(preemption.time, "perf_counter", lambda: group.now)
    return group


def run(group: Group, notice: Notice, steps: range, seconds: float, saving: float) -> list[int]:
    """Steps after which a worker saved, each step and each save taking so long."""
    saved = []
    for step in steps:
        group.now += seconds
        if notice.given(step):
            saved.append(step)
            group.now += saving
            notice.saved(step)
    return saved


def test_without_a_notice_it_looks_about_once_a_second_and_never_saves(group: Group) -> None:
    group.workers = 1
    assert run(group, Notice(), range(1, 1001), seconds=0.02, saving=0.1) == []
    assert 18 <= group.looks <= 22, "in twenty seconds"
    group.looks = 0
    assert run(group, Notice(7), range(8, 18), seconds=30.0, saving=1.0) == []
    assert group.looks == 10, "long steps are all looked after"


@pytest.mark.parametrize(("seconds", "saving"), [(0.02, 0.05), (0.02, 2.0), (5.0, 60.0), (0.3, 0.0)])
def test_after_a_notice_it_saves_at_once_and_then_for_a_tenth_of_the_time(
    group: Group, seconds: float, saving: float
) -> None:
    group.workers, notice = 1, Notice()
    per_second = max(1, round(1 / seconds))
    before = range(1, 4 * per_second + 1)
    assert run(group, notice, before, seconds, saving) == []
    group.info, start = "node 1 ends", group.now
    after = range(before[-1] + 1, before[-1] + 4000)
    saved = run(group, notice, after, seconds, saving)
    assert saved[0] - before[-1] <= per_second + 1, "within about a second, or a step"
    assert len(saved) >= 2, "and again, while the end does not come"
    first = saving  # cannot be avoided
    assert len(saved) * saving - first <= 0.12 * (group.now - start)


def test_all_workers_answer_alike_whatever_their_clocks_say(group: Group) -> None:
    notices = [Notice(), Notice()]
    answers = []
    for step in range(1, 300):
        group.now += 0.05
        if step == 100:
            group.info = "node 1 ends"

        def ask(notice: Notice, step: int = step) -> bool:
            group.now += 0.01  # one worker is always a little later
            return notice.given(step)

        told = group.every(ask, notices)
        assert told[0] == told[1]
        if told[0]:
            answers.append(step)
            group.now += 0.2
            group.every(lambda notice, step=step: notice.saved(step), notices)  # type: ignore[misc]
    assert answers and 100 <= answers[0] <= 120
