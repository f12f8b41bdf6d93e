"""Warm Ray Train worker groups: work by name, progress, failures, and the death of a worker."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rlheals_ray.need import Need
from rlheals_ray.training import Hopeless, Report, Training, WorkFailed
from rlheals_ray.work_queue import Work

ME = "tests.ray.test_training"


def count(to: int, seconds: float, pids: str, report: Report) -> None:
    """A training function: every rank adds up, rank 0 reports; leaves its process ids in a file."""
    with Path(pids).open("a") as file:
        file.write(f"{os.getpid()}\n")
    for step in range(to):
        total = torch.ones(1)
        dist.all_reduce(total)
        report({"step": step, "workers": int(total.item()), "backend": dist.get_backend()})
        time.sleep(seconds)


def fail(report: Report) -> None:
    raise Hopeless("the loss is NaN")


@pytest.fixture(scope="module")
def training(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    storage = str(tmp_path_factory.mktemp("train"))
    started = Training.start(
        groups=1, workers=2, need=Need(cpus=0.5), threads=1, storage=storage, name="test"
    )
    yield started
    started.close()


def work(name: str, function: str, **arguments: Any) -> Work:
    return Work(name, f"{ME}:{function}", arguments)


def test_both_workers_do_the_work_together_and_report_once(training: Training, tmp_path: Path) -> None:
    rows = list(training.run(work("a", "count", to=3, seconds=0.0, pids=str(tmp_path / "pids"))))
    assert rows == [{"step": i, "workers": 2, "backend": "gloo"} for i in range(3)]


def test_a_failure_is_named_and_the_group_goes_on_with_the_next_item(
    training: Training, tmp_path: Path
) -> None:
    with pytest.raises(WorkFailed, match="the loss is NaN"):
        list(training.run(work("b", "fail")))
    rows = list(training.run(work("c", "count", to=1, seconds=0.0, pids=str(tmp_path / "pids"))))
    assert rows[0]["workers"] == 2


@pytest.mark.slow
def test_a_worker_killed_at_a_random_moment_costs_a_restart_not_the_work(
    training: Training, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    rows: list[Mapping[str, Any]] = []
    item = work("d", "count", to=20, seconds=0.2, pids=str(pids))
    thread = threading.Thread(target=lambda: rows.extend(training.run(item)))
    thread.start()
    while not (pids.exists() and len(pids.read_text().split()) == 2):
        time.sleep(0.05)
    delay = random.uniform(0, 3)
    time.sleep(delay)
    victim = int(random.choice(pids.read_text().split()))
    print(f"killing worker {victim} {delay:.2f} s into its work")
    os.kill(victim, signal.SIGKILL)
    thread.join(timeout=200)
    assert not thread.is_alive()
    assert [row["step"] for row in rows][-20:] == list(range(20)), (
        "the item was not done again from its start"
    )
    assert len(set(pids.read_text().split())) == 4, "the group was not restarted"


@pytest.mark.slow
def test_workers_that_cannot_start_give_up_and_say_why(ray_cluster: None, tmp_path: Path) -> None:
    threads: Any = "two"
    training = Training.start(
        groups=1, workers=1, need=Need(cpus=0.5), threads=threads, storage=str(tmp_path), name="hopeless"
    )
    with pytest.raises(Exception, match="set_num_threads expects an int"):
        list(training.run(work("e", "fail")))


@pytest.mark.slow
def test_a_group_outlives_more_deaths_than_one_ray_train_run_may_have(
    training: Training, tmp_path: Path
) -> None:
    """Four items, each of which loses a worker once."""
    for index in range(4):
        pids = tmp_path / f"pids{index}"
        item = work(f"f{index}", "count", to=10, seconds=0.2, pids=str(pids))
        rows = []
        for row in training.run(item):
            rows.append(row)
            if len(rows) == 1:
                os.kill(int(random.choice(pids.read_text().split())), signal.SIGKILL)
        assert [row["step"] for row in rows][-10:] == list(range(10))
