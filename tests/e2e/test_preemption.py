"""The node of a learner is announced to end, as spot nodes are, and ends: the learner saves at its next step, goes on
until the end, and resumes on another node from what it saved last.
"""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_kill import LEARNER, Job, exists, finish_and_compare
from tests.e2e.test_node_kills import PATIENT, copy_base
from tests.local_cluster import LocalCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

STUDY = [
    # States are saved at the trunk's steps and at the branch's budget alone: all others come of the announcement.
    "sft.steps=[0,10,2000]", "rl.from_steps=[10]", "rl.budgets=[0,60]", "rl.save_every=60", "controls={kinds: []}",
    "resources.learner.labels={role: learner}", "resources.generator.labels={role: other}",
    "resources.tasks.labels={role: other}",
]  # fmt: skip

WATCHING = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    made = LocalCluster(variables={**PATIENT, **WATCHING})
    try:
        for role in ("other", "learner", "learner"):
            made.add(3, role)
        yield made
    finally:
        made.close()


def take_back(job: Job, lasts: float) -> None:
    """After a random while announce the end of the learner's node, and end it when its time has come; `lasts`: seconds
    that its work takes in all."""
    delay, grace = random.uniform(0, lasts / 4), int(min(60.0, max(8.0, lasts / 3)))
    time.sleep(delay)
    while not (found := job.cluster.holders(LEARNER)):
        assert job.pid
    [node] = found
    job.cluster.drain(node, grace)
    print(f"announced {delay:.2f} s after it was seen, for {grace} s later", flush=True)
    time.sleep(grace)
    job.cluster.kill(node)
    job.cluster.nodes.remove(node)
    job.cluster.add(3, "learner")


def written(root: Path, pattern: str) -> float:
    [path] = root.glob(pattern)
    return path.stat().st_mtime


def test_an_announced_end_costs_the_steps_since_the_last_save(cluster: LocalCluster, tmp_path: Path) -> None:
    def line(storage: Path) -> list[str]:
        return [sys.executable, "jobs/rl.py", "tiny", *STUDY, f"storage={storage}"]

    began = time.monotonic()
    whole = Job(line(tmp_path / "peace"), tmp_path / "peace" / "tiny", cluster, tmp_path / "peace.log")
    assert whole.end() == 0 and whole.starts == 1, whole.log.read_text()[-6000:]
    early, trunk, branch = (
        written(whole.root, pattern)
        for pattern in ("checkpoints/sft/**/step=000010", "markers/sft/*.json", "markers/rl/**/*.json")
    )
    print(
        f"undisturbed: {time.monotonic() - began:.0f} s; trunk {trunk - early:.0f} s, branch {branch - trunk:.0f} s"
    )
    job = Job(line(tmp_path / "war"), tmp_path / "war" / "tiny", cluster, tmp_path / "war.log")
    copy_base(whole.root, job.root)
    job.start()

    job.wait_until(exists("checkpoints/sft/**/step=000010"))
    take_back(job, trunk - early)
    job.wait_until(lambda root: "goes on after update" in job.log.read_text())
    updates = [int(found) for found in re.findall(r"goes on after update (\d+)", job.log.read_text())]
    print(f"the trunk goes on after update {updates}", flush=True)
    assert updates[-1] > 10, "nothing was saved for the announcement"
    assert not exists("markers/sft/*.json")(job.root), "the trunk was done before its node ended"

    job.wait_until(lambda root: any(path.stat().st_size for path in root.glob("tune/**/result.json")))
    take_back(job, branch - trunk)
    assert not exists("markers/rl/**/*.json")(job.root), "the branch was done before its node ended"
    assert exists("state/rl/**/CURRENT")(job.root), "nothing was saved before the branch's only budget"

    finish_and_compare(job, whole.root)
    assert job.starts == 1
    events = (job.root / "logs" / "events.jsonl").read_text().splitlines()
    restarted = [event for event in events if '"restarted"' in event]
    print("\n".join(restarted))
    for stage in ("sft", "rl"):
        assert any(f'"stage": "{stage}"' in event for event in restarted)
