"""Whole studies as a user runs them: the job as a subprocess, its files read afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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

    def table(self, name: str) -> pa.Table:
        return pq.read_table(self.root / "tables" / f"{name}.parquet")


def command(storage: Path, *more: str) -> list[str]:
    return [sys.executable, "jobs/grid.py", STUDY, *OVERRIDES, f"storage={storage}", *more]


def run(storage: Path, *more: str) -> Run:
    ended = subprocess.run(
        command(storage, *more), cwd=REPOSITORY, capture_output=True, text=True, timeout=280
    )
    return Run(storage / STUDY, ended.returncode, ended.stdout + ended.stderr)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The study run from nothing to the end, once."""
    yield run(tmp_path_factory.mktemp("whole"))
