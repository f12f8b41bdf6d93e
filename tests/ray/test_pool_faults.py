"""How the pool takes each way in which a generator can fail, with real Ray actors that fail on cue.

The leases are the product's; the generators are stand-ins, because a real one cannot be made to hang in
its start or to come back with old weights at will. Real engines are killed in test_pool.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from rlheals_ray.config import RolloutSettings, TaskSettings
from rlheals_ray.rollout import leases
from rlheals_ray.rollout.episode import Episode, EpisodeRequest, Sampling, Turn, Weights, WrongWeights
from rlheals_ray.rollout.failures import PoolFailed
from rlheals_ray.rollout.generator import GeneratorSettings, Ready, Receipt
from rlheals_ray.rollout.load import CheckpointLoad, Load
from rlheals_ray.rollout.progress import Progress
from rlheals_ray.rollout.shares import merge
from rlheals_ray.tasks import Problem, Verdict

WEIGHTS = Weights("checkpoint", 1)
SAMPLING = Sampling(1.0, 8, 1)
REQUESTS = [EpisodeRequest(Problem(f"p{i}", "id", "g"), (i,)) for i in range(8)]

Fault = tuple[str, int]
"""Where it fails and how often before it goes well."""


class Faulty:
    """A generator that takes 0.05 s for an episode, and fails on cue."""

    def __init__(self, fault: Fault, memory: str) -> None:
        self._fault, self._left, self._memory = fault[0], fault[1], Path(memory)
        self._held: Weights | None = None
        self._progress = Progress(f"here:{os.getpid()}", submitted=1)
        if self._fails("start hangs"):
            time.sleep(1000)
        if self._fails("start raises"):
            raise ValueError("this engine cannot serve that model")

    def _fails(self, fault: str) -> bool:
        """Whether to fail now; failures of processes before this one count."""
        if fault != self._fault or len(done := list(self._memory.iterdir())) >= self._left:
            return False
        (self._memory / str(len(done))).touch()
        return True

    def ready(self) -> Ready:
        return Ready("faulty", self._progress.process)

    @ray.method(concurrency_group="health")
    def progress(self) -> Progress:
        return self._progress

    def load(self, load: Load, weights: Weights, index: int) -> str:
        if self._fails("load hangs"):
            time.sleep(1000)
        if self._fails("load raises"):
            raise ValueError("the update lacks a tensor")
        self._held = None if self._fails("keeps old weights") else weights
        return self._progress.process

    def run(
        self, requests: Sequence[EpisodeRequest], places: Sequence[int], sampling: Sampling, weights: Weights
    ) -> Iterator[list[Episode] | Receipt]:
        if self._held != weights:
            raise WrongWeights(f"asked for {weights}, but this generator holds {self._held}")
        for number, place in enumerate(places):
            time.sleep(0.05)
            if number == 2:
                self._fail_in_run()
            self._progress.steps += 1
            request = requests[place]
            turn = Turn([1], [2], [-0.1], True, "", Verdict(5.0, True, True, ""), weights)
            yield [Episode(request.problem, weights, [turn], request.id)]
            yield Receipt([place], Progress(seconds_engine=0.05 * (number + 1)))

    def _fail_in_run(self) -> None:
        if self._fails("run dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fails("run stops"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if self._fails("run hangs"):
            time.sleep(1000)
        if self._fails("run raises"):
            raise ValueError("the judge has a bug")


@pytest.fixture
def pool(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., leases.Leases]]:
    """Makes the pool's own object, in this process, over generators with one fault."""
    actors = []

    def make(
        fault: Fault, generators: int = 1, team: int | None = None, memory: int = 0, **settings: Any
    ) -> leases.Leases:
        def start(*arguments: Any, **options: Any) -> ray.actor.ActorHandle:
            actor = ray.remote(concurrency_groups={"health": 1})(Faulty).options(
                num_cpus=0, max_restarts=-1, memory=memory or None
            )
            actors.append(actor.remote(fault, str(tmp_path)))
            return actors[-1]

        monkeypatch.setattr(leases, "start_generator", start)
        deadlines = {"start_seconds": 60.0, "sync_seconds": 30.0, "stall_seconds": 30.0}
        rollout = RolloutSettings(
            generators=generators, generators_per_branch=team or generators, **{**deadlines, **settings}
        )
        return leases.Leases(GeneratorSettings("", TaskSettings(), rollout), 1, 1)

    yield make
    for actor in actors:
        ray.kill(actor)


async def ask(made: leases.Leases, weights: Weights = WEIGHTS) -> list[Episode]:
    run = await made.run(CheckpointLoad(""), [ray.put(REQUESTS)], len(REQUESTS), SAMPLING, weights)
    blocks = [await block for block in run.blocks]
    return merge(REQUESTS, weights, (episode for block in blocks for episode in block))


def in_pool(made: leases.Leases, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async def main() -> Any:
        await made.start()
        return await work()

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("fault", "settings", "cause"),
    [
        ("run dies", {}, "died"),
        ("run stops", {"stall_seconds": 2}, "no progress for rollout.stall_seconds=2 s"),
        pytest.param(
            "run hangs",
            {"stall_seconds": 2},
            "no progress for rollout.stall_seconds=2 s",
            marks=pytest.mark.slow,
        ),
        ("load hangs", {"sync_seconds": 2}, "did not load weights within rollout.sync_seconds=2 s"),
        ("keeps old weights", {}, "this generator holds None"),
        pytest.param(
            "start hangs",
            {"start_seconds": 8},
            "did not start within rollout.start_seconds=8 s",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_only_generator_fails_once_and_every_episode_comes_exactly_once(
    pool: Callable[..., leases.Leases], fault: str, settings: dict[str, float], cause: str
) -> None:
    made = pool((fault, 1), **settings)
    episodes = in_pool(made, lambda: ask(made))
    assert [episode.id for episode in episodes] == [request.id for request in REQUESTS]
    [failure] = asyncio.run(made.failures())
    assert cause in failure.cause and failure.generator == 0
    assert "\n" not in failure.cause


def test_the_others_take_over_from_one_that_is_lost(pool: Callable[..., leases.Leases]) -> None:
    made = pool(("run dies", 2), generators=3)
    episodes = in_pool(made, lambda: ask(made))
    assert len(episodes) == len(REQUESTS)
    assert len(asyncio.run(made.failures())) == 2


@pytest.mark.parametrize("team", [2, 1])
def test_consumers_queue_for_one_team_and_run_side_by_side_on_two(
    pool: Callable[..., leases.Leases], team: int
) -> None:
    """Were they not to queue, one would meet the other's weights, which is counted as a failure."""
    made = pool(("nothing", 0), generators=2, team=team)
    ended: list[Weights] = []

    async def consume(weights: Weights) -> int:
        await ask(made, weights)
        ended.append(weights)
        return len(ended)

    async def work() -> list[int]:
        await made.ready()
        consumers = [asyncio.ensure_future(consume(Weights("consumer", i))) for i in range(4)]
        seen_at_work = 0
        while not consumers[0].done():
            await asyncio.sleep(0.05)
            steps = [progress.steps for progress in await made.progress()]
            seen_at_work = max(seen_at_work, sum(0 < step < len(REQUESTS) for step in steps))
        assert seen_at_work == 2, "a generator stood idle while consumers waited"
        return await asyncio.gather(*consumers)

    places = in_pool(made, work)
    assert sorted(places) == [1, 2, 3, 4]
    if team == 2:
        assert places == [1, 2, 3, 4], "first come, first served"
    assert asyncio.run(made.failures()) == []


@pytest.mark.parametrize("fault", ["load raises", "run raises"])
def test_an_error_that_would_come_again_is_told_at_once(
    pool: Callable[..., leases.Leases], fault: str
) -> None:
    """And the team is free for the next lease."""
    made = pool((fault, 1), generators=2)

    async def work() -> list[Episode]:
        with pytest.raises(ValueError, match=r"the judge has a bug|the update lacks a tensor"):
            await ask(made)
        assert await made.failures() == []
        return await ask(made, Weights("next"))

    assert len(in_pool(made, work)) == len(REQUESTS)


def test_an_engine_that_cannot_be_built_fails_the_pool_at_once(pool: Callable[..., leases.Leases]) -> None:
    made = pool(("start raises", 1))
    with pytest.raises(
        PoolFailed, match=r"(?s)generator 0 cannot start.*this engine cannot serve that model"
    ):
        in_pool(made, made.ready)


def test_losses_beyond_max_failures_end_the_study_and_are_all_named(
    pool: Callable[..., leases.Leases],
) -> None:
    made = pool(("run dies", 100), max_failures=2)

    async def work() -> str:
        with pytest.raises(PoolFailed) as caught:
            await ask(made)
        with pytest.raises(PoolFailed):
            await ask(made, Weights("a later lease"))
        return str(caught.value)

    *causes, reason = in_pool(made, work).splitlines()
    assert "3 generators" in reason and "rollout.max_failures=2" in reason
    assert len(causes) == 3 and all("generator 0: process here:" in cause for cause in causes)


def test_a_generator_that_waits_for_room_is_no_failed_start(pool: Callable[..., leases.Leases]) -> None:
    """It waits four times as long as it may take to start, three starts and more, and is not given up."""
    room = 4 << 20
    free = int(ray.available_resources()["memory"])
    holder = ray.remote(Holder).options(num_cpus=0, memory=free - room // 2).remote()
    ray.get(holder.there.remote())
    made = pool(("nothing", 0), memory=room, start_seconds=1.0)

    async def work() -> list[Episode]:
        asked = asyncio.ensure_future(ask(made))
        await asyncio.sleep(4.0)
        assert not asked.done() and await made.failures() == []
        made._generators[0].settings = RolloutSettings(start_seconds=60.0)  # processes start slowly here
        ray.kill(holder)
        return await asked

    assert len(in_pool(made, work)) == len(REQUESTS)
    assert asyncio.run(made.failures()) == []


class Holder:
    """Keeps what it reserves."""

    def there(self) -> None: ...


def test_a_generator_that_died_unwatched_is_counted_when_it_is_met_again(
    pool: Callable[..., leases.Leases],
) -> None:
    made = pool(("nothing", 0))

    async def work() -> None:
        await ask(made)
        [before] = await made.progress()
        os.kill(int(before.process.partition(":")[2]), signal.SIGKILL)
        while (await made.progress())[0].process in ("", before.process):
            await asyncio.sleep(0.1)
        assert len(await ask(made)) == len(REQUESTS)
        [failure] = await made.failures()
        assert before.process in failure.cause

    in_pool(made, work)
