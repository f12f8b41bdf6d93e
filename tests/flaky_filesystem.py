"""`flaky://PATH`: the local directory PATH, by a filesystem of fsspec that fails now and then as object stores do.

FLAKY_FAILS (a share, such as 0.05) of its operations fail with an OSError.
"""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

_OPERATIONS = ("ls", "info", "mkdir", "makedirs", "mv", "rm", "cp_file", "_open")


class _Request(threading.local):
    under_way = False


_request = _Request()


class FlakyFileSystem(LocalFileSystem):
    protocol = "flaky"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        stripped: str = LocalFileSystem._strip_protocol(os.fspath(path).removeprefix("flaky://"))
        return stripped

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return _failing(name, found) if name in _OPERATIONS else found


def _failing(name: str, work: Any) -> Any:
    def perhaps(*arguments: Any, **options: Any) -> Any:
        if _request.under_way:  # a listing is one request, however many files it tells of
            return work(*arguments, **options)
        if random.random() < float(os.environ.get("FLAKY_FAILS", "0")):
            raise OSError(f"503 Slow Down ({name})")
        _request.under_way = True
        try:
            return work(*arguments, **options)
        finally:
            _request.under_way = False

    return perhaps


def environment(site: Path, fails: float) -> dict[str, str]:
    """For a process that is to know the protocol; fsspec finds it as that of an installed package, in `site`."""
    package = site / "flaky_filesystem-1.dist-info"
    package.mkdir(parents=True, exist_ok=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: flaky-filesystem\nVersion: 1\n")
    (package / "entry_points.txt").write_text(
        "[fsspec.specs]\nflaky = tests.flaky_filesystem:FlakyFileSystem\n"
    )
    repository = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(site), repository)), "FLAKY_FAILS": str(fails)}
