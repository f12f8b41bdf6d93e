"""A study on a cluster that begins with a head alone: it grows, every process runs where its labels say, it shrinks.

The autoscaler, its decisions and the nodes' raylets are Ray's own; only the cloud is not: its fake provider starts
nodes as processes of this machine.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import REPOSITORY, Run
from tests.local_cluster import LocalCluster
from tests.same_tables import markers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NODE_TYPES = {
    "learner": {"resources": {"CPU": 2}, "labels": {"role": "learner"}, "max_workers": 2},
    "generator": {"resources": {"CPU": 1}, "labels": {"role": "generator"}, "max_workers": 2},
}
RESOURCES = [
    "resources.learner.labels={role: learner}", "resources.generator.labels={role: generator}",
    "resources.tasks.labels={role: learner}",
]  # fmt: skip
HOMES = {"ray::Generator": "generator", "ray::RayTrainWorker": "learner", "ray::losses": "learner"}
"""Whose processes are looked for, and where they must be."""
EXPIRY = 180
"""Seconds for which Ray Data's request for room for one task outlives the study: it holds one node, idle or not."""


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    grown = LocalCluster(node_types=NODE_TYPES)
    yield grown
    grown.close()


def command(storage: Path, *more: str) -> list[str]:
    return [sys.executable, "jobs/grid.py", "tiny", f"storage={storage}", *RESOURCES, *more]


def test_a_cluster_that_is_too_small_now_is_refused_unless_the_study_may_wait(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    ended = subprocess.run(
        command(tmp_path),
        cwd=REPOSITORY,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2
    assert "resources.nodes_seconds" in ended.stderr and "Traceback" not in ended.stderr
    assert not (tmp_path / "tiny").exists()
    assert len(cluster.raylets()) == 1


def test_the_cluster_grows_for_a_study_which_runs_where_it_should_and_then_shrinks(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    job = subprocess.Popen(
        command(tmp_path, "resources.nodes_seconds=120"), cwd=REPOSITORY, env=cluster.environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    most, seen = 1, set()
    while job.poll() is None:
        if (nodes := len(cluster.raylets())) > most:
            print(f"{nodes} nodes after {len(markers(tmp_path / 'tiny'))} finished units", flush=True)
            most = nodes
        seen |= homes(cluster)
        time.sleep(0.5)
    output = job.communicate()[0]
    assert job.returncode == 0, output
    run = Run(tmp_path / "tiny", job.returncode, output)
    assert run.table("boundary").num_rows > 0 and (run.root / "report.html").exists()
    assert most in (3, 4), (
        "the head, one node for learner and tasks, one for the generator; one more where tasks queue"
    )
    assert {(title, role) for title, role in seen if role != HOMES[title]} == set()
    assert {title for title, _ in seen} == set(HOMES)
    deadline = time.monotonic() + EXPIRY + 90
    while len(cluster.raylets()) > 1 and time.monotonic() < deadline:
        time.sleep(1)
    assert len(cluster.raylets()) == 1, "idle nodes are given back"


def homes(cluster: LocalCluster) -> set[tuple[str, str]]:
    """(process, role of its node) of those that run now."""
    found = set()
    for process in cluster.processes(cluster.head):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            title, node = " ".join(process.cmdline()), " ".join(process.parent().cmdline())
            for mine in HOMES:
                if title.startswith(mine):
                    found.add(
                        (
                            mine,
                            next(
                                (role for role in NODE_TYPES if f'"role":"{role}"' in node.replace(" ", "")),
                                "?",
                            ),
                        )
                    )
    return found
