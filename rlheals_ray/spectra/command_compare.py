"""`jobs/spectra.py --a DIR --b DIR --out DIR`: any two (or three) checkpoints compared, outside a study."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlheals_ray.command import EXIT_CODES, guarded
from rlheals_ray.config import InputError
from rlheals_ray.connection import connect, named_cluster, prepare
from rlheals_ray.folder import Folder
from rlheals_ray.need import side_by_side
from rlheals_ray.spectra.roles import ROLES
from rlheals_ray.spectra.summary import print_spectra, print_updates

DEFAULT_ROLES = "q,k,v,o,gate,up,down"
DEFAULT_KS = "8,16,32,64"
RESUME = "what was found of every matrix is kept in OUT, and the same command goes on where it was"


def main(arguments: Sequence[str] | None = None, report: Callable[[Path], object] | None = None) -> int:
    """Parse the command line and compare; returns the exit code (see `guarded`).

    report: given the output directory, where it is a local one, once its tables are there.
    """
    parsed = _parser().parse_args(arguments)
    return guarded("spectra", lambda: _run(parsed, report))


def usage() -> str:
    """What `--help` says of this use of the job."""
    return _parser().format_help()


def _run(parsed: argparse.Namespace, report: Callable[[Path], object] | None) -> int:
    out = Folder.of(parsed.out)
    directories = {side: Folder.of(getattr(parsed, side)) for side in "abc" if getattr(parsed, side)}
    _check(parsed, out, directories)
    roles, ks = tuple(parsed.roles.split(",")), tuple(_number(k) for k in parsed.k.split(","))
    if unknown := sorted(set(roles) - set(ROLES)):
        raise InputError(f"--roles (got {unknown}) are unknown; choose from {list(ROLES)}.")
    prepare(parsed.address)
    # Ray takes seconds to load: only now that the words are right.
    from rlheals_ray.spectra.compare import Pair, compare, matching_shapes
    from rlheals_ray.spectra.updates import Chain, compare_updates

    uris = [folder.uri for folder in directories.values()]
    matrices = len(matching_shapes([uris], roles)[uris[0]])
    names = dict(zip(directories, _names(uris), strict=True))
    workers, num_gpus = _workers(parsed)
    _tell(f"{matrices} matrices of {len(uris)} checkpoints, {workers} at a time; {RESUME}.")
    pairs = [
        Pair(None, names[x], names[y], directories[x].uri, directories[y].uri)
        for x, y in ("ab", "bc", "ac")
        if y in directories
    ]
    factors, results = out.child("factors"), out.child("parts")
    spread: dict[str, Any] = {"num_gpus": num_gpus, "results": results, "progress": _Progress()}
    with _nothing_left_of_wrong_input(out, factors, results):
        spectra = compare(pairs, roles, ks, factors, workers, **spread)
    _write(out, "spectra", spectra)
    print_spectra(spectra)
    if "c" in directories:
        chain = Chain(None, names["a"], names["b"], names["c"], *uris)
        updates = compare_updates([chain], roles, ks, factors, workers, **spread)
        _write(out, "updates", updates)
        print_updates(updates)
    if report and out.local:
        report(out.local)
        _tell(f"report: {out.local / 'report.html'}")
    return 0


def _check(parsed: argparse.Namespace, out: Folder, directories: Mapping[str, Folder]) -> None:
    for side, folder in directories.items():
        if folder == out:
            raise InputError(f"--out (got {parsed.out!r}) is the --{side}; name another directory.")
    if len(set(directories.values())) < len(directories):
        raise InputError(f"--b (got {parsed.b!r}): the checkpoints must differ; name each of them once.")
    if parsed.workers is not None and parsed.workers < 1:
        raise InputError(f"--workers (got {parsed.workers}) must be at least 1.")
    if out.local:
        existing = next(path for path in (out.local, *out.local.parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise InputError(
                f"--out (got {parsed.out!r}): {str(existing)!r} is no writable directory; name another."
            )


def _number(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"--k (got {text!r}) is no number of singular directions; write 8,16,32.")
    return int(text)


@contextmanager
def _nothing_left_of_wrong_input(*folders: Folder) -> Iterator[None]:
    """NaN is found when its matrix is read: what was stored of others before that goes again."""
    new = [folder for folder in folders if not folder.exists()]
    try:
        yield
    except InputError:
        for folder in new:
            folder.delete()
        raise


def _workers(parsed: argparse.Namespace) -> tuple[int, float]:
    """Join or start Ray: how many tasks side by side, and GPUs for each."""
    import ray

    connect(parsed.address)
    if not named_cluster(parsed.address):
        # Ray counts several slots per core here; a decomposition keeps a core busy.
        return parsed.workers or os.cpu_count() or 1, 0.0
    free = ray.available_resources()
    if gpus := int(free.get("GPU", 0)):
        return parsed.workers or gpus, 1.0 if (parsed.workers or gpus) <= gpus else gpus / parsed.workers
    return parsed.workers or max(1, min(int(free.get("CPU", 1)), side_by_side(ray.nodes()))), 0.0


class _Progress:
    """Says, every few seconds, how many matrices were worked on."""

    def __init__(self) -> None:
        self._done = 0
        self._start = self._shown = time.monotonic()

    def __call__(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._shown > 5:
            self._shown = time.monotonic()
            _tell(f"{self._done} matrices decomposed or compared, {self._shown - self._start:.0f} s")


def _tell(text: str) -> None:
    print(f"spectra: {text}", file=sys.stderr, flush=True)


def _names(uris: Sequence[str]) -> list[str]:
    """What tells the checkpoints apart: the last part of each path, or as many as it takes."""
    parts = [PurePosixPath(uri).parts for uri in uris]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(set(uris)):
            return names
    return list(uris)


def _write(out: Folder, name: str, table: pa.Table) -> None:
    data = io.BytesIO()
    pq.write_table(table, data)
    out.write(f"tables/{name}.parquet", data.getvalue())
    _tell(f"{table.num_rows} rows in {out.uri}/tables/{name}.parquet")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jobs/spectra.py",
        description=(
            "Compare checkpoints of one architecture, whatever wrote them: drift of singular values, principal angles "
            "of singular subspaces beside those of noise and of chance. With --c, also two updates beside each other."
        ),
        epilog=f"Interrupted: {RESUME}. {EXIT_CODES}",
    )
    parser.add_argument(
        "--a", required=True, metavar="DIR", help="the checkpoint before: a directory or a URI"
    )
    parser.add_argument("--b", required=True, metavar="DIR", help="the checkpoint after")
    parser.add_argument(
        "--c", metavar="DIR", help="a third, after b: also compares the updates b - a and c - b"
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="where tables, factors and parts are kept"
    )
    parser.add_argument(
        "--roles", default=DEFAULT_ROLES, help=f"of {','.join(ROLES)} (default {DEFAULT_ROLES})"
    )
    parser.add_argument(
        "--k", default=DEFAULT_KS, help=f"numbers of leading singular directions (default {DEFAULT_KS})"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="tasks side by side (default: all free cores)"
    )
    parser.add_argument(
        "--address", metavar="ADDRESS", help="a Ray cluster to join (default: RAY_ADDRESS, else this machine)"
    )
    return parser
