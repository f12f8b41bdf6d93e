"""`--plan` against a cluster that an autoscaler could grow: it asks what is there, and asks for nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import REPOSITORY
from tests.local_cluster import LocalCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

NODE_TYPES = {"any": {"resources": {"CPU": 4}, "labels": {}, "max_workers": 2}}

ASKED = "import json, ray; from ray.util import placement_group_table as groups; ray.init(logging_level='ERROR'); "
ASKED += "print(json.dumps(groups()))"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A head without CPUs; every node would have to be started."""
    made = LocalCluster(node_types=NODE_TYPES)
    yield made
    made.close()


def plan(cluster: LocalCluster, storage: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/grid.py", "tiny", "--plan", f"storage={storage}", *more]
    return subprocess.run(
        command, cwd=REPOSITORY, env=cluster.environment, capture_output=True, text=True, timeout=100
    )


def placement_groups(cluster: LocalCluster) -> dict[str, Any]:
    """Every one that was ever made; those that were removed stay in Ray's table."""
    told = subprocess.run(
        [sys.executable, "-c", ASKED], env=cluster.environment, capture_output=True, text=True, check=True
    )
    return dict(json.loads(told.stdout.splitlines()[-1]))


@pytest.mark.parametrize(("seconds", "code"), [(0, 2), (600, 0)], ids=["now", "waiting"])
def test_the_plan_is_printed_and_nothing_is_allocated(
    cluster: LocalCluster, tmp_path: Path, seconds: int, code: int
) -> None:
    ended = plan(cluster, tmp_path, f"resources.nodes_seconds={seconds}")
    assert ended.returncode == code, ended.stderr
    for told in ("stages of", "SFT schedule", "asks for", "to be stored", "0 CPUs"):
        assert told in ended.stdout, ended.stdout
    assert "Traceback" not in ended.stderr
    if seconds:
        assert "would wait up to 600 s for nodes" in ended.stdout
    else:
        assert ended.stderr.count("\n") == 1 and "resources.nodes_seconds" in ended.stderr
    assert placement_groups(cluster) == {}
    assert len(cluster.raylets()) == 1, "a node was started"
    assert list(tmp_path.iterdir()) == []
