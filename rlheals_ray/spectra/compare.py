"""Every matrix of every pair of checkpoints compared, on Ray Data: the table `spectra`.

First each distinct matrix is decomposed and its factors stored (stock.py), then the pairs are compared from
stored factors, for every k at once. What was found of a pair's matrix is kept too, under the contents of both
matrices: killed at any moment, the same call goes on where it was.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pyarrow as pa
import torch

from rlheals_ray import tables
from rlheals_ray.config import InputError
from rlheals_ray.folder import Folder
from rlheals_ray.spectra.factors import leading_factors, store_factors
from rlheals_ray.spectra.kept import Rows, kept, place
from rlheals_ray.spectra.linalg import Factors
from rlheals_ray.spectra.matrices import Matrices
from rlheals_ray.spectra.null import stored_null_spectrum
from rlheals_ray.spectra.pairwise import CODE, compare_matrices
from rlheals_ray.spectra.stock import Stock, Where, Workers, matrix_shapes, seconds, stocked


@dataclass(frozen=True)
class Pair:
    """Two checkpoints to compare: `a` before, `b` after; their names in the study and their directories."""

    seed: int | None
    a: str
    b: str
    a_directory: str
    b_directory: str


def compare(
    pairs: Sequence[Pair],
    roles: Sequence[str],
    ks: Sequence[int],
    factors_directory: Where,
    concurrency: int = 1,
    num_cpus: float = 1.0,
    *,
    num_gpus: float = 0.0,
    memory: float = 0.0,
    labels: Mapping[str, str] | None = None,
    results: Where | None = None,
    stock: Stock | None = None,
    progress: Callable[[int], None] | None = None,
) -> pa.Table:
    """Compare all matrices of these roles in every pair, as the table `spectra`.

    One row for each pair, matrix and k, in this order; a k beyond min(m, n) of a matrix is skipped.
    factors_directory: where factors are stored and found again; results: likewise what was found of every matrix
    (None: nowhere). concurrency, num_cpus, num_gpus, memory, labels, progress: see `Workers`. stock: the matrices of
    all these checkpoints, where they are decomposed already.
    Raises InputError for a checkpoint that cannot be read, holds NaN or Inf, or whose matrices do not match.
    """
    check_ks(ks)
    pairs = [
        replace(
            pair, a_directory=Folder.of(pair.a_directory).uri, b_directory=Folder.of(pair.b_directory).uri
        )
        for pair in pairs
    ]
    workers, factors = (
        Workers(concurrency, num_cpus, num_gpus, progress, labels, memory),
        Folder.of(factors_directory),
    )
    groups = [(pair.a_directory, pair.b_directory) for pair in pairs]
    shapes = matching_shapes(groups, roles)
    stock = stock or stocked([uri for group in groups for uri in group], roles, factors, workers)
    rows = [
        {
            **vars(pair),
            "matrix": matrix,
            "a_key": stock.matrices[pair.a_directory][matrix].key,
            "b_key": stock.matrices[pair.b_directory][matrix].key,
        }
        for pair in pairs
        for matrix in shapes[pair.a_directory]
    ]
    if not rows:
        return tables.SPECTRA.empty_table()
    found = workers.map(
        rows,
        _compare_rows,
        sum(seconds(shapes[row["a_directory"]][row["matrix"]]) for row in rows),
        ks=tuple(ks),
        factors=factors.uri,
        results=None if results is None else Folder.of(results).uri,
    )
    return tables.table("spectra", [row for rows in found["rows"].to_pylist() for row in json.loads(rows)])


def compare_one(
    row: Mapping[str, Any],
    ks: Sequence[int],
    factors_directory: Where,
    results: Where | None = None,
    device: str = "cpu",
    opened: Callable[[str], Matrices] = Matrices.of,
) -> Rows:
    """The rows of one pair and matrix: `row` is a Pair's fields and `matrix`; `a_key`, `b_key` where known."""
    matrix, factors = row["matrix"], Folder.of(factors_directory)

    def read(side: str) -> torch.Tensor:
        return opened(row[f"{side}_directory"]).tensor(matrix)

    keys = {side: row.get(f"{side}_key") or store_factors(read(side), factors, device)[0] for side in "ab"}
    seed = zlib.crc32(matrix.encode())

    def leading(side: str) -> Factors:
        U, S, Vh = leading_factors(keys[side], max(ks), factors, partial(read, side))
        return U.to(device), S.to(device), Vh.to(device)

    def measured() -> Rows:
        a, b = leading("a"), leading("b")
        null = stored_null_spectrum((a[0].shape[0], a[2].shape[1]), factors)
        return compare_matrices(
            lambda: read("a").to(device), lambda: read("b").to(device), a, b, null, ks, seed
        )

    found = kept(
        None if results is None else Folder.of(results),
        measured,
        what="spectra", code=CODE, a=keys["a"], b=keys["b"], ks=list(ks), seed=seed,
    )  # fmt: skip
    pair = {"recipe": None} | {name: row[name] for name in ("seed", "a", "b")}
    return [{**pair, **place(matrix), **measures} for measures in found]


def check_ks(ks: Sequence[int]) -> None:
    """Raises InputError for a k that counts nothing."""
    if not ks or any(k < 1 for k in ks):
        raise InputError(
            f"spectra.k (got {list(ks)}): every k counts singular directions; use positive numbers."
        )


def matching_shapes(
    groups: Sequence[Sequence[str]], roles: Sequence[str]
) -> dict[str, dict[str, tuple[int, int]]]:
    """Directory -> matrix -> shape of groups of checkpoints; raises InputError where those of a group differ."""
    shapes = {
        uri: matrix_shapes(uri, roles) for uri in dict.fromkeys(uri for group in groups for uri in group)
    }
    for first, *others in groups:
        for other in others:
            a, b = shapes[first], shapes[other]
            for name in sorted(set(a) | set(b)):
                if a.get(name) != b.get(name):
                    raise InputError(
                        f"checkpoints {first!r} and {other!r}: {name!r} has the shapes {a.get(name)} and "
                        f"{b.get(name)}; compare checkpoints of one architecture."
                    )
    return shapes


def _compare_rows(
    batch: pa.Table, ks: Sequence[int], factors: str, results: str | None, device: str, threads: int
) -> pa.Table:
    torch.set_num_threads(threads)
    opened = cache(Matrices.of)
    found = [compare_one(row, ks, factors, results, device, opened) for row in batch.to_pylist()]
    return pa.table({"rows": pa.array([json.dumps(rows) for rows in found], pa.string())})
