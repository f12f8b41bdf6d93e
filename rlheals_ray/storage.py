"""Where a study's files stand, and how they are written: atomically, each behind a marker.

A *unit* is a piece of work with one result: the base model, a trunk, a branch, a probe, an edit. Its
fingerprint hashes its declared inputs, its parents' fingerprints and the version of its code. A unit
is done when its marker, holding exactly that fingerprint, is there; a marker with another fingerprint
means that an input changed, and the unit is done again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlheals_ray.config import InputError
from rlheals_ray.storage_uri import refuse_credentials
from rlheals_ray.tables import SCHEMAS, concatenate

_STAMP = "provenance.json"
"""In every checkpoint: the unit that made it, and the fingerprint of what it was made from."""
_TEMPORARY = ".tmp-"


def fingerprint(**inputs: Any) -> str:
    """A short stable hash of JSON-like inputs."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}{_TEMPORARY}{os.getpid()}-{time.monotonic_ns()}")


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=False, default=str) + "\n")


def write_parquet(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    pq.write_table(table, temporary)
    temporary.replace(path)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory that appears at `path` whole when the block ends, replacing what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            old = _temporary(path)
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Remove a directory as a whole: nobody sees it with some of its files, and no kill leaves it so."""
    old = _temporary(path)
    try:
        path.rename(old)
    except OSError:
        return  # it is not there
    shutil.rmtree(old, ignore_errors=True)


def is_uri(storage: str) -> bool:
    """Whether studies are kept on another filesystem than this machine's own."""
    return "://" in storage and not storage.startswith("file://")


def work_directory(storage: str, work: str | None = None) -> Path:
    """Where studies whose storage is a URI are worked on: `work`, or a directory of the user's own for that URI.

    Raises InputError for a URI with credentials in it: it would be stored in study.yaml.
    """
    refuse_credentials(storage)
    if work is not None:
        return Path(work)
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", storage.rstrip("/"))[:80].strip("-.")
    # Two URIs never share a directory, whatever was made of their characters.
    return Path("~/.cache/rlheals_ray") / f"{readable}-{fingerprint(storage=storage.rstrip('/'))[:8]}"


@dataclass(frozen=True)
class Unit:
    """One piece of work: a name that is also a relative path, and the fingerprint of its inputs."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class StudyFiles:
    """The files of one study, in a local or shared (NFS-like) directory; for storage by URI see `mirror.py`."""

    root: Path

    @classmethod
    def at(cls, storage: str, name: str, work: str | None = None) -> StudyFiles:
        """The files of study `name` under `storage`; where that is a URI, of its copy under `work`.

        Raises InputError for a URI with credentials in it.
        """
        where = work_directory(storage, work) if is_uri(storage) else Path(storage.removeprefix("file://"))
        return cls(where.expanduser().resolve() / name)

    def check_writable(self, field: str = "storage") -> None:
        """Raises InputError, having written nothing, when the study could not be written here; `field` says so."""
        existing = next(parent for parent in (self.root, *self.root.parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            option = "--storage" if field == "storage" else f"{field}=DIR"
            raise InputError(
                f"{field} (got {str(self.root.parent)!r}): {str(existing)!r} is not a writable directory; "
                f"choose another with {option} or change its permissions."
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study for this process; raises InputError when another one works on it, or none could be told.

        The operating system drops the lock with the process, however it ends.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self.held() from None
            except OSError as error:  # such as ENOSYS, ENOLCK: a mount without locks
                raise InputError(
                    f"storage (got {str(self.root.parent)!r}): its filesystem takes no locks ({error}), so that two "
                    "processes could work on the study at a time; mount it with flock, or use another --storage."
                ) from None
            self._sweep()
            yield

    def held(self) -> InputError:
        """What a second process is told."""
        return InputError(
            f"name (got {self.root.name!r}): another process works on the study in {str(self.root)!r}; wait for it, or "
            "use another name or --storage."
        )

    def _sweep(self) -> None:
        """Remove what killed processes left half-written; nobody else writes while the lock is held."""
        for left in list(self.root.rglob(f".*{_TEMPORARY}*")):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)

    # --- checkpoints

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def checkpoint(self, name: str) -> Path:
        """The directory of a checkpoint by its name, such as `sft/seed=0/step=000120`."""
        return self.checkpoints / name

    def stamp(self, directory: Path, unit: Unit) -> None:
        """Write into a checkpoint, before it is published, which unit made it from which inputs."""
        for name, content in self.stamps(unit).items():
            write_text(directory / name, content.decode())

    def stamps(self, unit: Unit) -> dict[str, bytes]:
        """The files, by name, that say in a checkpoint which unit made it from which inputs."""
        stamp = {"unit": unit.name, "fingerprint": unit.fingerprint}
        return {_STAMP: (json.dumps(stamp, indent=2) + "\n").encode()}

    def holds(self, name: str, fingerprint: str) -> bool:
        """Whether checkpoint `name` is there and was made by a unit of that fingerprint."""
        try:
            stamp = json.loads((self.checkpoint(name) / _STAMP).read_text())
        except (FileNotFoundError, ValueError):
            return False
        return bool(stamp.get("fingerprint") == fingerprint)

    # --- markers

    def _marker(self, unit: Unit) -> Path:
        return self.root / "markers" / f"{unit.name}.json"

    def is_done(self, unit: Unit) -> bool:
        return self.recorded(unit) == unit.fingerprint

    def recorded(self, unit: Unit) -> str | None:
        """The fingerprint under which the unit was last done, if it was."""
        try:
            return str(json.loads(self._marker(unit).read_text())["fingerprint"])
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def details(self, unit: Unit) -> dict[str, Any]:
        """What was recorded with the marker of a unit that is done."""
        return dict(json.loads(self._marker(unit).read_text()))

    def begin(self, unit: Unit, *checkpoints: str) -> bool:
        """Before a unit is done: forget what it left when it was last done from other inputs.

        The marker goes first, then `checkpoints` (names or their parents); returns whether there was one.
        """
        recorded = self.recorded(unit)
        if recorded is None or recorded == unit.fingerprint:
            return False
        self._marker(unit).unlink()
        for name in checkpoints:
            remove_directory(self.checkpoint(name))
        return True

    def mark_done(self, unit: Unit, **details: Any) -> None:
        """The last write of a unit."""
        write_json(self._marker(unit), {"fingerprint": unit.fingerprint, **details})

    # --- tables

    def table(self, name: str) -> Path:
        return self.root / "tables" / f"{name}.parquet"

    def read_table(self, name: str) -> pa.Table:
        """A compacted table; empty when it is not there."""
        path = self.table(name)
        return pq.read_table(path) if path.exists() else SCHEMAS[name].empty_table()

    def write_table(self, name: str, table: pa.Table) -> None:
        write_parquet(self.table(name), table)

    def _part(self, name: str, unit: str) -> Path:
        return self.root / "parts" / name / f"{unit}.parquet"

    def write_part(self, name: str, unit: Unit, table: pa.Table) -> None:
        write_parquet(self._part(name, unit.name), table)

    def read_part(self, name: str, unit: Unit) -> pa.Table:
        return pq.read_table(self._part(name, unit.name))

    def compact(self, name: str, units: Sequence[Unit]) -> pa.Table:
        """Write table `name` from the parts of those of `units` that are done, in their order."""
        done = [unit for unit in units if self.is_done(unit) and self._part(name, unit.name).exists()]
        table = concatenate(name, [self.read_part(name, unit) for unit in done])
        self.write_table(name, table)
        return table

    # --- what else a run keeps

    def state(self, unit: Unit) -> Path:
        """The directory of a unit's resumable state; removed when the unit is done."""
        return self.root / "state" / f"{unit.name}-{unit.fingerprint}"

    def received(self, unit: Unit) -> Path:
        """Which problems a worker was given: the evidence that the OOD rule never reached it."""
        return self.root / "received" / f"{unit.name}.parquet"

    def add_timings(self, seconds: Mapping[str, float]) -> None:
        """Add this run's seconds per stage to those of the runs that it resumes."""
        path = self.root / "timings.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        write_json(
            path, {stage: before.get(stage, 0.0) + seconds.get(stage, 0.0) for stage in {**before, **seconds}}
        )
