"""Twenty kill -9 at random moments, each of a random process of a study under way; all studies end complete and exact.

A study is hit four times and then left alone: one that is hit for as long as it lives never gets to its late stages.

Every process of the job may be hit: driver, Ray's own (GCS, raylet, agents), learner, generator, pool, queue, trial,
tasks. The moments and victims are drawn afresh in every run and printed as the table of docs/reliability.md.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import REPOSITORY, STUDY, Run, command
from tests.same_tables import assert_same_study, markers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

KILLS, OF_A_STUDY = 20, 4
PATIENCE = 300.0
"""Seconds in which a study must get on: finish another unit, or end."""
LONGEST = 40.0
"""Seconds between the job's start, or the last kill, and the next, at most: a `tiny` study takes a few of these."""


@dataclass
class Kill:
    number: int
    seconds: float
    """Since the job was last started."""
    victim: str
    units: int
    """Finished then."""

    def __str__(self) -> str:
        return f"| {self.number} | {self.seconds:.1f} s | {self.victim} | {self.units} |"


@dataclass
class Study:
    """One study, its command given again whenever the job has ended."""

    storage: Path
    starts: int = 0
    began: float = 0.0
    job: psutil.Popen | None = None
    finished: dict[tuple[Path, str], int] = field(default_factory=dict)
    """Markers seen, with what they were made from, and when they were written."""

    @property
    def root(self) -> Path:
        return self.storage / STUDY

    def start(self) -> None:
        self.starts += 1
        self.began = time.monotonic()
        with (self.storage / "log").open("ab") as log:
            self.job = psutil.Popen(command(self.storage), cwd=REPOSITORY, stdout=log, stderr=log)

    def running(self) -> bool:
        return self.job is not None and self.job.poll() is None

    def note(self) -> None:
        """Remember what is finished; nothing of it may ever be done again.

        Where a kill fails branches, the comparisons of what is left are finished by other inputs than in the end.
        """
        for marker in markers(self.root):
            with suppress(FileNotFoundError):
                written, made_from = marker.stat().st_mtime_ns, json.loads(marker.read_text())["fingerprint"]
                assert self.finished.setdefault((marker, made_from), written) == written, (
                    f"{marker} was done again"
                )

    def kill_one(self, number: int) -> Kill | None:
        assert self.job is not None
        with suppress(psutil.NoSuchProcess):
            victim = random.choice([self.job, *self.job.children(recursive=True)])
            title = _title(victim.cmdline())
            victim.kill()
            return Kill(number, time.monotonic() - self.began, title, len(markers(self.root)))
        return None

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.running() and time.monotonic() < end:
            time.sleep(0.1)

    def wait_end(self) -> int:
        """Until the job ends; one that hangs fails the test."""
        assert self.job is not None
        count, moved = len(markers(self.root)), time.monotonic()
        while self.running():
            if (now := len(markers(self.root))) != count:
                count, moved = now, time.monotonic()
            assert time.monotonic() - moved < PATIENCE, (
                f"it hangs:\n{(self.storage / 'log').read_text()[-3000:]}"
            )
            time.sleep(0.2)
        self.note()
        return int(self.job.returncode)


def _title(line: list[str]) -> str:
    """What a process is, in a few words."""
    if not line or line[0].startswith("ray::"):
        return line[0].split("(")[0].strip() if line else "a process that had just ended"
    script = next((Path(part).name for part in line if part.endswith(".py")), Path(line[0]).name)
    return {"grid.py": "driver"}.get(script, script)


def test_twenty_kills_of_random_processes_at_random_moments(whole: Run, tmp_path: Path) -> None:
    kills: list[Kill] = []
    ended = 0
    while len(kills) < KILLS:
        study = Study(tmp_path / f"study-{ended}")
        for part in ("checkpoints/base", "markers/base.json"):  # training the base again would only take time
            target = study.root / part
            target.parent.mkdir(parents=True, exist_ok=True)
            source = whole.root / part
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        code, last = None, min(len(kills) + OF_A_STUDY, KILLS)
        while code != 0:
            if not study.running():
                assert study.starts <= OF_A_STUDY + 2, (study.storage / "log").read_text()[-3000:]
                study.start()
            if len(kills) < last:
                study.wait(random.uniform(0, LONGEST))
                if study.running() and (kill := study.kill_one(len(kills) + 1)):
                    kills.append(kill)
                    print(kill, flush=True)
                    study.wait(1.0)
                    study.note()
                if study.running():
                    continue
            code = study.wait_end()
        assert_same_study(study.root, whole.root)
        ended += 1
        print(
            f"study {ended} ended complete and exact, started {study.starts} times, {len(kills)} kills so far",
            flush=True,
        )
