"""Kill -9 of a learner worker in the middle of an update, at a random moment that is printed.

The branch goes on from its last completed update, and its part of tables/rl is that of a branch that
nobody disturbed: bit for bit but for timings, the learner being single-threaded, its state exact and the
engine given the same batch (see DETERMINISTIC for what is compared).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlheals_ray.rl.spec import BranchSpec
from rlheals_ray.tables import RL
from rlheals_ray.training import Report
from tests.toy_lab import WRAPPED, Lab, check_rows, rows_of, start_pool, start_training, toy_study

UPDATES = 16
SHORT: dict[str, Any] = {"budgets": [0, 3, UPDATES], "episodes": 128}
TIMED = {name for name in RL.names if name.startswith("seconds")} | {"tokens_per_second", "idle_share"}
DETERMINISTIC = [name for name in RL.names if name not in TIMED | {"train_run"}]


def train_and_tell(spec: BranchSpec, pids: str, report: Report) -> None:
    """The real thing, whose process ids the test must know to kill one."""
    from rlheals_ray.rl.learner import train_branch

    def tell(what: str) -> None:
        with Path(pids).open("a") as file:
            file.write(f"{os.getpid()} {what}\n")

    def report_and_tell(row: Any) -> None:
        report(row)
        tell(str(row["rl_step"]))

    tell("0")
    train_branch(spec, report=report_and_tell)


def told(pids: Path) -> list[tuple[int, int]]:
    """(process id, update that it had completed), in the order of time."""
    if not pids.exists():
        return []
    lines = [line.split() for line in pids.read_text().splitlines() if line.count(" ") == 1]
    return [(int(pid), int(update)) for pid, update in lines]


def train_with_a_kill(lab: Lab, spec: BranchSpec, pids: Path, workers: int) -> list[tuple[int, int]]:
    """Train a branch one of whose workers is killed once it has completed an update; what its workers told."""
    with ThreadPoolExecutor(1) as thread:
        training = thread.submit(lab.train, spec, f"{__name__}:train_and_tell", pids=str(pids))
        after = random.randint(1, UPDATES // 3)
        while sum(update == after for _, update in told(pids)) < workers:
            assert not training.done(), training.result()
            time.sleep(0.005)
        delay = random.uniform(0, 0.5)
        time.sleep(delay)
        victim = random.choice(sorted({pid for pid, _ in told(pids)}))
        os.kill(victim, signal.SIGKILL)
        killed_at = told(pids)
        print(
            f"killed worker {victim} {delay:.3f} s after update {after}, when {killed_at[-1][1]} were complete"
        )
        training.result(timeout=250)
    assert len({pid for pid, _ in told(pids)}) == 2 * workers, "the group was not started afresh"
    return killed_at


def check_same(interrupted: list[dict[str, Any]], whole: list[dict[str, Any]]) -> None:
    for got, expected in zip(interrupted, whole, strict=True):
        for name in DETERMINISTIC:
            assert got[name] == expected[name], (name, expected["rl_step"], got[name], expected[name])


@pytest.mark.slow  # tests/e2e/test_kill.py kills a PPO learner in every run
@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_a_branch_whose_worker_is_killed_ends_with_the_rows_of_one_that_was_not(
    lab: Lab, tmp_path: Path, algorithm: str
) -> None:
    wrapped = WRAPPED[algorithm]
    whole, disturbed = (
        toy_study(f"{name}-{algorithm}", lab.model, algorithm=algorithm, **SHORT)
        for name in ("whole", "disturbed")
    )
    expected = lab.train(lab.spec(whole, 0))
    check_rows(expected, whole, wrapped)
    spec = lab.spec(disturbed, 0)
    killed_at = train_with_a_kill(lab, spec, tmp_path / "pids", workers=1)
    again = [update for pid, update in told(tmp_path / "pids") if pid != killed_at[-1][0] and update]
    completed = killed_at[-1][1]
    assert again[0] in (completed + 1, completed + 2), "it began again from its start"
    assert again == list(range(again[0], UPDATES + 1))
    check_rows(rows_of(spec), disturbed, wrapped)
    check_same(rows_of(spec), expected)
    assert not spec.files.state(spec.unit).exists(), "the state of a finished branch was left behind"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharding", "wrapped"), [("ddp", "DistributedDataParallel"), ("fsdp2", "FSDPLlamaForCausalLM")]
)
def test_a_group_of_two_that_loses_a_worker_is_started_afresh_and_goes_on(
    pair: Lab, tmp_path: Path, sharding: str, wrapped: str
) -> None:
    study = toy_study(f"whole-{sharding}", pair.model, sharding=sharding, workers=2, **SHORT)
    expected = pair.train(pair.spec(study, 0))
    check_rows(expected, study, wrapped)
    spec = pair.spec(study.model_copy(update={"name": f"disturbed-{sharding}"}), 0)
    train_with_a_kill(pair, spec, tmp_path / "pids", workers=2)
    check_rows(rows_of(spec), study, wrapped)
    check_same(rows_of(spec), expected)


@pytest.mark.slow
def test_two_branches_at_once_on_two_generators_are_those_of_one_generator(lab: Lab) -> None:
    specs = [lab.spec(toy_study("queued", lab.model, **SHORT), seed) for seed in (0, 1)]
    queued = lab.train_together(*specs)
    study = toy_study("beside", lab.model, generators=2, **SHORT)
    wide = replace(lab, pool=start_pool(study, lab.model))
    beside = wide.train_together(*(wide.spec(study, seed) for seed in (0, 1)))
    for one, two in zip(queued, beside, strict=True):
        check_rows(two, study)
        check_same(two, one)


@pytest.fixture(scope="module")
def pair(lab: Lab) -> Iterator[Lab]:
    """The laboratory with one group of two workers."""
    training = start_training(lab.storage / "pair", "pair", groups=1, workers=2)
    yield replace(lab, training=training)
    training.close()
