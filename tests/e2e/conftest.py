"""Whole studies as a user runs them: the job as a subprocess, its files read afterwards."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

REPOSITORY = Path(__file__).parents[2]

STUDY = "tiny"
# A little longer than the preset, so that a kill has something to hit.
OVERRIDES = ["sft.steps=[0,10,40,80]", "rl.from_steps=[10,80]", "rl.budgets=[0,5,10]"]


@dataclass(frozen=True)
class Run:
    """A study's directory and how its job ended."""

    root: Path
    code: int
    output: str
    listened: frozenset[tuple[str, str]] = frozenset()
    """(address, process) of what was seen to accept connections."""

    def table(self, name: str) -> pa.Table:
        return pq.read_table(self.root / "tables" / f"{name}.parquet")


def command(storage: Path, *more: str) -> list[str]:
    return [sys.executable, "jobs/grid.py", STUDY, *OVERRIDES, f"storage={storage}", *more]


def run(storage: Path, *more: str) -> Run:
    with (storage / "output").open("w+") as output:
        job = psutil.Popen(command(storage, *more), cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)
        deadline, listened = time.monotonic() + 280, set()
        while job.poll() is None:
            if time.monotonic() > deadline:
                job.kill()
            listened |= listening(job)
            time.sleep(2)
        output.seek(0)
        return Run(storage / STUDY, job.returncode, output.read(), frozenset(listened))


def listening(job: psutil.Process) -> set[tuple[str, str]]:
    """(address, title) of the process and its descendants that accept connections now."""
    found = set()
    with suppress(psutil.NoSuchProcess):
        for process in (job, *job.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                connections = process.net_connections("inet")
                open_at = {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
                found |= {(address, " ".join(process.cmdline()[:1])) for address in open_at}
    return found


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The study run from nothing to the end, once."""
    yield run(tmp_path_factory.mktemp("whole"))
