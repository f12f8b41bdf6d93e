"""The pool with real engines: teams and leases, and generators that are killed and stopped at random moments.

The moments are drawn afresh in every run and printed; nothing in the product knows of them.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
import torch
from transformers import LlamaForCausalLM

from rlheals_ray.config import RolloutSettings, TaskSettings
from rlheals_ray.models import nano
from rlheals_ray.need import Need
from rlheals_ray.rl.batch import batch_of
from rlheals_ray.rollout.episode import EpisodeRequest, Rollout, Sampling, Weights
from rlheals_ray.rollout.generator import GeneratorSettings
from rlheals_ray.rollout.load import CheckpointLoad
from rlheals_ray.rollout.pool import Pool
from rlheals_ray.tasks import get_task

TARGETS = [18, 24]
TASK = TaskSettings.model_validate(
    {"name": "general_points", "cards": 3, "targets": TARGETS, "wording": "compact"}
)
SAMPLING = Sampling(temperature=1.0, max_new_tokens=40, max_attempts=3, logprobs=True)
COUNT = 600


@dataclass
class Pooled:
    """A pool, the model that it serves, and what it makes undisturbed."""

    pool: Pool
    model: LlamaForCausalLM
    directory: Path

    def run(self, update: int = 0, count: int = COUNT) -> Rollout:
        """The same requests for every update; its number only makes the generators load again."""
        problems = get_task(TASK.name, **TASK.options).problems("id", "train", 300)
        requests = [EpisodeRequest(problems[i % 300], ("test", i)) for i in range(count)]
        weights = Weights("test", update)
        rollout = self.pool.run(CheckpointLoad(str(self.directory)), requests, SAMPLING, weights)
        assert [episode.id for episode in rollout.episodes] == [request.id for request in requests]
        assert {episode.weights for episode in rollout.episodes} == {weights}
        return rollout

    def in_background(self, update: int, count: int = COUNT) -> Future[Rollout]:
        executor = ThreadPoolExecutor(1)
        future = executor.submit(self.run, update, count)
        executor.shutdown(wait=False)
        return future

    def wait_until_at_work(self, generators: int) -> list[int]:
        """Wait until that many generators have begun to decode; the indices of these."""
        before = [progress.steps for progress in self.pool.progress()]
        while True:
            time.sleep(0.05)
            now = [progress.steps for progress in self.pool.progress()]
            # A generator that does not answer has no counters; one that was restarted begins at 0.
            moved = [i for i, (was, steps) in enumerate(zip(before, now, strict=True)) if steps > was]
            before = [min(was, steps) for was, steps in zip(before, now, strict=True)]
            if len(moved) >= generators:
                return moved

    def signal(self, generator: int, number: signal.Signals) -> str:
        process = self.pool.progress()[generator].process
        os.kill(int(process.rpartition(":")[2]), number)
        return process


def start(directory: Path, **settings: float) -> Pooled:
    torch.manual_seed(0)
    model = nano.untrained(TARGETS, seed=0).eval()
    nano.save(model, TARGETS, directory)
    rollout = RolloutSettings(**settings)
    pool = Pool.start(GeneratorSettings(str(directory), TASK, rollout), threads=1, need=Need(cpus=0.5))
    pool.wait_ready()
    return Pooled(pool, model, directory)


@pytest.fixture(scope="module")
def team(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooled]:
    """One team of two generators."""
    pooled = start(
        tmp_path_factory.mktemp("team"),
        generators=2,
        generators_per_branch=2,
        stall_seconds=20,  # the first batch of a busy machine takes seconds
        max_failures=8,
    )
    yield pooled
    pooled.pool.close()


@pytest.fixture(scope="module")
def undisturbed(team: Pooled) -> Rollout:
    rollout = team.run()
    assert team.pool.failures() == []
    return rollout


@torch.no_grad()
def assert_as_undisturbed(pooled: Pooled, rollout: Rollout, undisturbed: Rollout) -> None:
    """Every token is the model's own, and nearly every episode the same: batches of other sizes round otherwise."""
    batch = batch_of(rollout.episodes, SAMPLING.max_attempts)
    logits = pooled.model(input_ids=batch.ids).logits
    logprobs = torch.log_softmax(logits, -1)[:, :-1].gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    own = batch.turn_of[:, 1:] >= 0
    assert float((logprobs - batch.logprobs[:, 1:])[own].abs().max()) < 1e-3
    ids = [[[turn.completion_ids for turn in e.turns] for e in r.episodes] for r in (rollout, undisturbed)]
    same = sum(got == expected for got, expected in zip(*ids, strict=True))
    print(f"{same} of {len(ids[0])} episodes are equal token by token")
    assert same > 0.95 * len(ids[0])


def test_a_rollout_accounts_for_its_time(team: Pooled, undisturbed: Rollout) -> None:
    assert 0 < undisturbed.seconds_engine + undisturbed.seconds_judge <= undisturbed.seconds
    assert undisturbed.seconds_sync > 0 and undisturbed.engine == "vllm"
    assert [progress.episodes for progress in team.pool.progress()] == [COUNT / 2] * 2


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (signal.SIGKILL, "died"),
        pytest.param(signal.SIGSTOP, "made no progress", marks=pytest.mark.slow),
    ],
)
def test_a_generator_lost_mid_batch_loses_no_episode_and_doubles_none(
    team: Pooled, undisturbed: Rollout, number: signal.Signals, cause: str
) -> None:
    known = len(team.pool.failures())
    work = team.in_background(update=int(number))
    victim = random.choice(team.wait_until_at_work(generators=1))
    delay = random.uniform(0, 0.2 * undisturbed.seconds)
    time.sleep(delay)
    print(f"{number.name} to generator {victim} ({team.signal(victim, number)}) after {delay:.2f} s of work")
    rollout = work.result(timeout=200)
    assert_as_undisturbed(team, rollout, undisturbed)
    [failure] = team.pool.failures()[known:]
    assert failure.generator == victim and cause in failure.cause


@pytest.fixture(scope="module")
def two_teams(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooled]:
    """Two teams of one generator each."""
    pooled = start(tmp_path_factory.mktemp("two"), generators=2, stall_seconds=200, max_failures=8)
    yield pooled
    pooled.pool.close()


@pytest.fixture(scope="module")
def one_team(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooled]:
    """The only generator there is."""
    pooled = start(tmp_path_factory.mktemp("one"), generators=1, stall_seconds=200, max_failures=8)
    yield pooled
    pooled.pool.close()


@pytest.mark.slow
def test_with_two_teams_consumers_run_side_by_side(two_teams: Pooled) -> None:
    """One consumer's run begins and ends while the other's generator stands still in the middle of its own."""
    first = two_teams.in_background(update=1)
    [generator] = two_teams.wait_until_at_work(generators=1)
    two_teams.signal(generator, signal.SIGSTOP)
    try:
        assert len(two_teams.in_background(update=2, count=20).result(timeout=200).episodes) == 20
        assert not first.done()
    finally:
        two_teams.signal(generator, signal.SIGCONT)
    assert len(first.result(timeout=200).episodes) == COUNT
    assert two_teams.pool.failures() == []


@pytest.mark.slow
def test_with_one_team_consumers_queue(one_team: Pooled) -> None:
    first = one_team.in_background(update=1)
    one_team.wait_until_at_work(generators=1)
    others = [one_team.in_background(update=update, count=20) for update in (2, 3, 4)]
    one_team.signal(0, signal.SIGSTOP)
    time.sleep(2)
    assert not any(work.done() for work in (first, *others))
    one_team.signal(0, signal.SIGCONT)
    for work in (first, *others):
        work.result(timeout=200)
    assert one_team.pool.failures() == [], "a run met another's weights"


@pytest.mark.slow
def test_the_only_generator_is_killed_and_the_run_ends_all_the_same(one_team: Pooled) -> None:
    undisturbed = one_team.run(update=10)
    work = one_team.in_background(update=11)
    one_team.wait_until_at_work(generators=1)
    delay = random.uniform(0, 2.0)
    time.sleep(delay)
    print(f"killing {one_team.signal(0, signal.SIGKILL)} after {delay:.2f} s of work")
    assert_as_undisturbed(one_team, work.result(timeout=200), undisturbed)
    assert "died" in one_team.pool.failures()[-1].cause


@ray.remote(num_cpus=0, max_retries=0)
def consume(run: Callable[[], Rollout], pid_file: str) -> None:
    Path(pid_file).write_text(str(os.getpid()))
    run()


@pytest.mark.slow
def test_a_consumer_that_dies_keeps_nothing(one_team: Pooled, tmp_path: Path) -> None:
    known = len(one_team.pool.failures())
    pid_file = tmp_path / "pid"
    pool, directory = one_team.pool, one_team.directory
    consumer = consume.remote(lambda: Pooled(pool, None, directory).run(update=20), str(pid_file))  # type: ignore[arg-type]
    one_team.wait_until_at_work(generators=1)
    print(f"killing consumer {pid_file.read_text()}")
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    assert len(one_team.in_background(update=21, count=20).result(timeout=200).episodes) == 20
    assert len(one_team.pool.failures()) == known, "the engine is not to blame"
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(consumer)
