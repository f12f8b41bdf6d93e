"""Kill -9 of the driver, a learner, a generator, a Tune trial and a whole Ray node of a cluster of several, while the
study runs; the same command is given again whenever the job has ended, and the tables end as those of a run in peace.

The moments are drawn afresh in every run and printed; nothing in the product knows of them.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import REPOSITORY, STUDY, Run, command
from tests.local_cluster import LocalCluster
from tests.same_tables import assert_same_study, markers

pytestmark = pytest.mark.timeout(900)

LEARNER, GENERATOR, TRIAL = "ray::RayTrainWorker", "ray::Generator", "ray::ImplicitFunc"
"""How Ray titles the processes."""


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """Two nodes, either of which can hold the whole study: one alone must do when the command is given again."""
    made = LocalCluster(nodes=2, cpus=getattr(request, "param", 3))
    yield made
    made.close()


@dataclass
class Job:
    """The same command, given again and again."""

    line: Sequence[str]
    root: Path
    cluster: LocalCluster
    log: Path
    starts: int = 0
    killed: list[str] = field(default_factory=list)
    driver: subprocess.Popen[bytes] | None = None
    finished: dict[Path, int] = field(default_factory=dict)
    """Markers seen, and when they were written."""

    def note(self) -> None:
        """Remember what is finished; nothing of what was seen before may have been done again since."""
        for marker, written in self.finished.items():
            assert marker.exists() and marker.stat().st_mtime_ns == written, f"{marker} was done again"
        self.finished |= {marker: marker.stat().st_mtime_ns for marker in markers(self.root)}

    def start(self) -> None:
        self.starts += 1
        with self.log.open("ab") as log:
            self.driver = subprocess.Popen(
                self.line, cwd=REPOSITORY, env=self.cluster.environment, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def pid(self) -> int:
        """Of a driver that runs; started again if it has ended."""
        if self.driver is None or (code := self.driver.poll()) is not None:
            if self.driver is not None:
                print(f"the job ended with {code}; given again")
                self.note()
            assert self.starts < 12, self.log.read_text()[-4000:]
            self.start()
        assert self.driver is not None
        return self.driver.pid

    def wait_until(self, underway: Callable[[Path], bool]) -> None:
        while not underway(self.root):
            if self.pid:
                time.sleep(0.05)

    def check_together(self) -> None:
        """Wait until a learner and a generator are there; they are on one node."""
        while not ((learners := self.cluster.named(LEARNER)) and (engines := self.cluster.named(GENERATOR))):
            assert self.pid
            time.sleep(0.05)
        hosts = [{node.pid for node, _ in found} for found in (learners, engines)]
        print(f"learners on nodes {hosts[0]}, generators on nodes {hosts[1]}", flush=True)
        assert hosts[1] <= hosts[0], "an engine is not beside a learner, though each node has room for both"

    def kill(self, place: str, underway: Callable[[Path], bool], lasts: float) -> None:
        """Wait until a stage is seen to be under way, then for a random while of it, and kill at `place`."""
        self.wait_until(underway)
        delay = random.uniform(0, lasts)
        time.sleep(delay)
        self.note()
        victim = {"driver": self._driver, "node": self._node}.get(place, lambda: self._process(place))()
        self.killed.append(
            f"{place}: {victim}, {delay:.2f} s after it was seen; {len(self.finished)} units done"
        )
        print(self.killed[-1], flush=True)
        self.note()

    def _driver(self) -> str:
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        assert self.driver is not None
        self.driver.wait()
        return f"pid {pid}"

    def _process(self, place: str) -> str:
        title = {"learner": LEARNER, "generator": GENERATOR, "trial": TRIAL}[place]
        while not (found := self.cluster.named(title)):
            assert self.pid
            time.sleep(0.05)
        _, process = random.choice(found)
        name = process.cmdline()[0].strip()
        process.send_signal(signal.SIGKILL)
        return f"pid {process.pid} {name}"

    def _node(self) -> str:
        """A node that holds a learner or a generator."""
        while not (found := [*self.cluster.named(LEARNER), *self.cluster.named(GENERATOR)]):
            assert self.pid
            time.sleep(0.05)
        node, _ = random.choice(found)
        held = sorted(p.cmdline()[0].strip() for n, p in found if n is node)
        self.cluster.kill(node)
        self.cluster.nodes.remove(node)
        return f"pid {node.pid} with {', '.join(held)}"

    def end(self) -> int:
        """Give the command until it ends well; returns its exit code."""
        for _ in range(4):
            assert self.pid and self.driver is not None
            code = self.driver.wait()
            self.note()
            if code == 0:
                return code
        return code


def exists(pattern: str) -> Callable[[Path], bool]:
    return lambda root: next(root.glob(pattern), None) is not None


def test_a_study_killed_in_five_places_ends_with_the_tables_of_one_that_was_not(
    whole: Run, cluster: LocalCluster, tmp_path: Path
) -> None:
    # The base is the same for both; training it again would only take time.
    for part in ("checkpoints/base", "markers/base.json"):
        target = tmp_path / STUDY / part
        target.parent.mkdir(parents=True, exist_ok=True)
        source = whole.root / part
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    job = Job(command(tmp_path), tmp_path / STUDY, cluster, tmp_path / "job.log")
    kill_everywhere(job)
    finish_and_compare(job, whole.root)


SMALL_NANO = [
    "seeds=[0,1]", "sft.steps=[0,4,15,60]", "rl.from_steps=[4,60]", "rl.budgets=[0,6]", "evaluation.problems=150",
    "rollout.generators=2",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("cluster", [5], indirect=True)
def test_a_nano_study_of_two_seeds_killed_in_five_places(cluster: LocalCluster, tmp_path: Path) -> None:
    def line(storage: Path) -> list[str]:
        return [sys.executable, "jobs/grid.py", "nano", *SMALL_NANO, f"storage={storage}"]

    peace, war = tmp_path / "peace", tmp_path / "war"
    whole = Job(line(peace), peace / "nano", cluster, tmp_path / "peace.log")
    assert whole.end() == 0, whole.log.read_text()[-6000:]
    assert whole.starts == 1
    rows = pq.read_table(whole.root / "tables" / "rl.parquet").to_pylist()
    assert len({row["train_run"] for row in rows}) == 2, "two branches were not learnt side by side"
    for part in ("checkpoints/base", "markers/base.json"):
        (war / "nano" / part).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (whole.root / part).is_dir() else shutil.copy)(
            whole.root / part, war / "nano" / part
        )
    job = Job(line(war), war / "nano", cluster, tmp_path / "war.log")
    kill_everywhere(job)
    finish_and_compare(job, whole.root)


def kill_everywhere(job: Job) -> None:
    job.start()
    job.check_together()
    job.kill("learner", exists("state/sft/seed=0*/*"), lasts=2)
    job.kill("generator", exists("markers/sft/seed=0.json"), lasts=5)
    job.kill("trial", exists("state/rl/**/CURRENT"), lasts=3)
    job.kill("node", exists("markers/rl/**/*.json"), lasts=5)
    job.kill("driver", exists("markers/control/**/*.json"), lasts=5)


def finish_and_compare(job: Job, whole: Path) -> None:
    assert job.end() == 0, job.log.read_text()[-6000:]
    print(f"starts of the job: {job.starts}; {len(job.finished)} units, none done twice")
    assert_same_study(job.root, whole)
