"""A mirrored study looked at from any machine: a temporary directory with all that says how it stands, and no weights.

Files that nobody reads are there by name, size and time alone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from rlheals_ray.config import InputError
from rlheals_ray.folder import Folder, Listed
from rlheals_ray.mirror_local import MARKERS, STATE, is_mirrored
from rlheals_ray.mirror_remote import FILE, answer, briefly, fetch, is_fresh, read_state

_WORKERS = 8
_TRIES = 6
_DELAY = 0.1
"""Seconds after the first try that fails, then twice as many, and so on."""
_HEADER = 8
"""Bytes of a safetensors file that tell the length of what it says of itself."""


Part = Literal["whole", "head", "size"]
"""What is fetched of a file; head: what a safetensors file says of itself."""


def for_status(path: str) -> Part:
    """What a status reads of the file."""
    name = path.rpartition("/")[2]
    if path.startswith(MARKERS) or path in ("study.yaml", "failures.json", "timings.json"):
        return "whole"
    if path.startswith(STATE):
        told = name in ("CURRENT", "COMPLETE", "branch.json") or path.startswith(f"{STATE}failed/")
        return "head" if name == "progress.safetensors" else "whole" if told else "size"
    if path.startswith("hidden/") and name.endswith(".safetensors"):
        return "head"
    if path.startswith("tables/"):
        return "size" if name == "episodes.parquet" else "whole"  # the bulk of them, which tells no rate
    return "whole" if name == "provenance.json" else "size"


def for_comparison(path: str) -> Part:
    """What a comparison of studies reads of the file."""
    return "whole" if path in ("study.yaml", "timings.json") or path.startswith("tables/") else "size"


class View:
    """Of the study at `remote`; `root` is the directory. To be closed."""

    def __init__(self, remote: Folder, wanted: Callable[[str], Part]) -> None:
        """Raises InputError where the URI cannot be used."""
        self.remote, self._wanted = remote, wanted
        self._seen: dict[str, Listed] = {}
        self._directory = Path(tempfile.mkdtemp(prefix="rlheals-"))
        self.root = self._directory / remote.uri.partition("?")[0].rpartition("/")[2]
        self.state: dict[str, Any] = {}
        try:
            self.root.mkdir()
            answer(remote, remote.exists)
            self.refresh()
        except BaseException:
            self.close()
            raise

    def refresh(self) -> None:
        """See what has changed. A file that goes meanwhile counts as not there.

        Raises InputError where the filesystem fails.
        """
        try:
            self._refresh()
        except Exception as error:  # each filesystem of fsspec has errors of its own
            raise InputError(
                f"storage (got {self.remote.uri!r}): the study's copy cannot be read now ({briefly(error)}); check the "
                "network and the credentials, or try again."
            ) from error

    def _refresh(self) -> None:
        found = {path: one for path, one in self.remote.listing(attempt=_tried).items() if is_mirrored(path)}
        found.pop(FILE, None)
        for path in self._seen.keys() - found.keys():
            (self.root / path).unlink(missing_ok=True)
            del self._seen[path]
        # Where the filesystem tells no times, a file of the same size may be another.
        changed = [path for path, one in found.items() if self._seen.get(path) != one or one.mtime is None]
        with ThreadPoolExecutor(_WORKERS) as pool:
            list(pool.map(lambda path: self._take(path, found[path]), sorted(changed)))
        self.state = _tried(lambda: read_state(self.remote))

    @property
    def is_worked_on(self) -> bool:
        """Whether a process has lately said that it works on the study, and not that it has ended."""
        return is_fresh(self.state)

    def _take(self, path: str, listed: Listed) -> None:
        target = self.root / path
        try:
            part = self._wanted(path)
            if part == "whole":
                _tried(lambda: fetch(self.remote, path, listed, self.root))
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(_tried(lambda: _head(self.remote, path)) if part == "head" else b"")
                os.truncate(target, listed.size)  # a hole: it takes no space
                moment = time.time() if listed.mtime is None else listed.mtime
                os.utime(target, (moment, moment))
        except Exception:
            target.unlink(missing_ok=True)
            self._seen.pop(path, None)
            if self._is_another(path, listed):
                return
            raise
        self._seen[path] = listed

    def _is_another(self, path: str, listed: Listed) -> bool:
        """Whether the file was replaced or removed since it was listed."""
        try:
            return self.remote.size(path) != listed.size
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self._directory, ignore_errors=True)


def _head(remote: Folder, path: str) -> bytes:
    length = int.from_bytes(remote.read_range(path, 0, _HEADER), "little")
    return remote.read_range(path, 0, _HEADER + length)


def _tried(work: Callable[[], Any]) -> Any:
    for after in range(_TRIES - 1):
        with suppress(Exception):
            return work()
        time.sleep(_DELAY * 2**after)
    return work()
