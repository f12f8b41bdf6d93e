"""Whole nodes of a cluster are lost while a study runs on it: with a generator at work, with a learner, with a task of
the spectra. The job goes on by itself, and the tables end as those of a run in peace.

Every node has one role, which labels say; of each there are two. The moments are drawn afresh and printed.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import OVERRIDES
from tests.e2e.test_kill import LEARNER, Job, exists, finish_and_compare
from tests.local_cluster import LocalCluster
from tests.same_tables import markers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

GENERATING, SPECTRA = "ray::Generator.run", "ray::MapBatches"
"""How Ray titles a generator that runs episodes, and the tasks that work on matrices."""

ROLES = {"learner": 3, "generator": 3, "tasks": 2}
"""CPUs of a node of each role: one node alone holds all that the study has of it, and trials, which ask for little."""

NANO = [
    # Small, since it only has to end the same: of every stage something, two branches and two engines at a time.
    "nano", "seeds=[0,1]", "base.steps=60", "sft.steps=[0,4,30]", "rl.from_steps=[4,30]", "rl.budgets=[0,4]",
    "rl.episodes=64", "rollout.generators=2", "evaluation.problems=60", "hidden.problems=16",
    "edits=[{donor: peak, recipient: latest, factors: UV, k: null}]",
]  # fmt: skip

RESOURCES = [f"resources.{role}.labels={{role: {role}}}" for role in ROLES]


PATIENT = {"RAY_health_check_failure_threshold": "10"}
"""Lost after ten seconds: on a busy machine a live node may say nothing for three."""


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    made = LocalCluster(variables=PATIENT)
    try:
        for role, cpus in ROLES.items():
            for _ in range(2):
                made.add(cpus, role)
        yield made
    finally:
        made.close()


def copy_base(source: Path, target: Path) -> None:
    """Training the base again would only take time."""
    for part in ("checkpoints/base", "markers/base.json"):
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (source / part).is_dir() else shutil.copy)(source / part, target / part)


def kill_node_of(job: Job, title: str, role: str, underway: Callable[[Path], bool], lasts: float) -> None:
    """Wait until a stage is under way, for a random while of it, until a node is seen at it, and kill that node."""
    job.wait_until(underway)
    delay = random.uniform(0, lasts)
    time.sleep(delay)
    while not (found := job.cluster.holders(title)):
        assert job.pid and job.starts == 1, job.log.read_text()[-4000:]
    victim = random.choice(found)
    held = sorted(t for t in _titles(job.cluster, victim) if "Agent" not in t and "IDLE" not in t)
    done = len(markers(job.root))
    job.cluster.kill(victim)
    assert job.cluster.role[victim] == role
    job.cluster.nodes.remove(victim)
    job.killed.append(f"| node of {role} | {', '.join(held)} | {delay:.2f} s after it was seen | {done} |")
    print(job.killed[-1], flush=True)


def _titles(cluster: LocalCluster, node: subprocess.Popen[bytes]) -> list[str]:
    return [process.cmdline()[0].strip() for each, process in cluster.named("ray::") if each is node]


@pytest.mark.parametrize("study", [["tiny", *OVERRIDES], NANO], ids=["tiny", "nano"])
def test_three_nodes_lost_while_they_are_at_work(
    study: list[str], cluster: LocalCluster, tmp_path: Path
) -> None:
    def line(storage: Path) -> list[str]:
        return [sys.executable, "jobs/grid.py", *study, *RESOURCES, f"storage={storage}"]

    began = time.monotonic()
    whole = Job(line(tmp_path / "peace"), tmp_path / "peace" / study[0], cluster, tmp_path / "peace.log")
    assert whole.end() == 0 and whole.starts == 1, whole.log.read_text()[-6000:]
    print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)
    job = Job(line(tmp_path / "war"), tmp_path / "war" / study[0], cluster, tmp_path / "war.log")
    copy_base(whole.root, job.root)
    began = time.monotonic()
    job.start()
    kill_node_of(job, GENERATING, "generator", exists("state/rl/**/CURRENT"), lasts=5)
    kill_node_of(job, LEARNER, "learner", exists("markers/rl/**/*.json"), lasts=5)
    # Its first seconds: afterwards little may be left of the stage.
    kill_node_of(job, SPECTRA, "tasks", _in_stage("spectra"), lasts=1)
    finish_and_compare(job, whole.root)
    print(f"with three nodes lost: {time.monotonic() - began:.0f} s")
    assert job.starts == 1, "the job ended with its nodes"
    assert [job.cluster.role[node] for node in cluster.nodes] == list(ROLES), "one node of each is left"


def _in_stage(stage: str) -> Callable[[Path], bool]:
    started = f'"stage": "{stage}", "cell": "", "event": "started"'
    return lambda root: started in (root / "logs" / "events.jsonl").read_text()
