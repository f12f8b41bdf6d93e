"""Two updates of one model beside each other, ΔW₁ = b − a and ΔW₂ = c − b, on Ray Data: the table `updates`.

Does RL go on where SFT went, turn back, or go elsewhere? An update is decomposed like any matrix and its factors
are stored under its content; what was found of two updates is kept under both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pyarrow as pa
import torch

from rlheals_ray import tables
from rlheals_ray.config import InputError
from rlheals_ray.folder import Folder
from rlheals_ray.spectra.compare import check_ks, matching_shapes
from rlheals_ray.spectra.factors import leading_factors, store_factors
from rlheals_ray.spectra.kept import Rows, kept, place
from rlheals_ray.spectra.linalg import Factors
from rlheals_ray.spectra.matrices import Matrices
from rlheals_ray.spectra.measures import difference, effective_rank, inner, norm
from rlheals_ray.spectra.null import null_angle
from rlheals_ray.spectra.pairwise import angle_columns, angles, leading_bases
from rlheals_ray.spectra.stock import Where, Workers, seconds

CODE = 1
"""Raise it when a measure changes what it computes."""


@dataclass(frozen=True)
class Chain:
    """Three checkpoints in the order of training: their names in the study and their directories."""

    seed: int | None
    a: str
    b: str
    c: str
    a_directory: str
    b_directory: str
    c_directory: str


def compare_updates(
    chains: Sequence[Chain],
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
    progress: Callable[[int], None] | None = None,
) -> pa.Table:
    """Compare both updates of every chain in all matrices of these roles, as the table `updates`.

    One row for each chain, matrix and k, in this order; a k beyond min(m, n) is skipped. Parameters and
    errors as those of `compare`.
    """
    check_ks(ks)
    chains = [
        replace(
            chain,
            a_directory=Folder.of(chain.a_directory).uri,
            b_directory=Folder.of(chain.b_directory).uri,
            c_directory=Folder.of(chain.c_directory).uri,
        )
        for chain in chains
    ]
    shapes = matching_shapes([_directories(chain) for chain in chains], roles)
    rows = [{**vars(chain), "matrix": matrix} for chain in chains for matrix in shapes[chain.a_directory]]
    if not rows:
        return tables.UPDATES.empty_table()
    # Chains share updates: each is decomposed once.
    distinct = {
        (before, after, row["matrix"]): {"before": before, "after": after, "matrix": row["matrix"]}
        for row in rows
        for before, after in _steps(row)
    }
    workers, factors = (
        Workers(concurrency, num_cpus, num_gpus, progress, labels, memory),
        Folder.of(factors_directory),
    )
    stored = workers.map(
        list(distinct.values()),
        _store_rows,
        sum(seconds(shapes[before][matrix]) for before, _, matrix in distinct),
        factors=factors.uri,
    ).to_pylist()
    if wrong := next((row["wrong"] for row in stored if row["wrong"]), None):
        raise InputError(wrong)
    keys = dict(zip(distinct, (row["key"] for row in stored), strict=True))
    found = workers.map(
        [
            {**row, "keys": [keys[before, after, row["matrix"]] for before, after in _steps(row)]}
            for row in rows
        ],
        _compare_rows,
        0.2 * sum(seconds(shapes[row["a_directory"]][row["matrix"]]) for row in rows),
        ks=tuple(ks),
        factors=factors.uri,
        results=None if results is None else Folder.of(results).uri,
    )
    return tables.table("updates", [row for rows in found["rows"].to_pylist() for row in json.loads(rows)])


def compare_two_updates(
    read: Sequence[Callable[[], torch.Tensor]], factors: Sequence[Factors], ks: Sequence[int]
) -> Rows:
    """The measures of ΔW₁ and ΔW₂ (m, n) of one matrix, one row for each k ≤ min(m, n).

    read: give ΔW₁ and ΔW₂. factors: U (m, k), S (r,) whole, Vh (k, n) of each, with at least the largest of
    `ks` that is ≤ r.

    `cosine`: ⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖ ‖ΔW₂‖): 1 goes on, −1 goes back, near 0 (within 1/√(mn)) unrelated. Principal
    angles in radians between their k leading left (u) and right (v) singular subspaces, mean and largest, beside
    the mean angles of random subspaces. Norms are ‖·‖_F. None where an update is zero, and has no directions.
    """
    first, second = read[0](), read[1]()
    shape = (first.shape[0], first.shape[1])
    lengths, product = (norm(first), norm(second)), inner(first, second)
    del first, second
    moved = lengths[0] > 0 and lengths[1] > 0
    fitting = [k for k in ks if k <= min(shape)]
    bases = [leading_bases(one, max(fitting)) for one in factors] if fitting and moved else []
    none = dict.fromkeys(("angle_u_mean", "angle_u_max", "angle_v_mean", "angle_v_max"))
    return [
        {
            "k": k,
            "cosine": product / (lengths[0] * lengths[1]) if moved else None,
            **(angle_columns(*angles(bases[0], bases[1], k)) if moved else none),
            "null_angle_u": null_angle(shape[0], k),
            "null_angle_v": null_angle(shape[1], k),
            "delta_norm_1": lengths[0],
            "delta_norm_2": lengths[1],
            "effective_rank_1": effective_rank(factors[0][1]),
            "effective_rank_2": effective_rank(factors[1][1]),
        }
        for k in fitting
    ]


def _directories(chain: Chain) -> tuple[str, str, str]:
    return chain.a_directory, chain.b_directory, chain.c_directory


def _steps(row: Mapping[str, Any]) -> tuple[tuple[str, str], tuple[str, str]]:
    """(before, after) of the two updates, as directories."""
    return (row["a_directory"], row["b_directory"]), (row["b_directory"], row["c_directory"])


def _update(opened: Callable[[str], Matrices], before: str, after: str, matrix: str) -> torch.Tensor:
    return difference(opened(before).tensor(matrix), opened(after).tensor(matrix))


def _store_rows(batch: pa.Table, factors: str, device: str, threads: int) -> pa.Table:
    torch.set_num_threads(threads)
    opened = cache(Matrices.of)
    keys: list[str | None] = []
    wrong: list[str | None] = []
    for row in batch.to_pylist():
        try:
            update = _update(opened, row["before"], row["after"], row["matrix"])
            keys.append(store_factors(update, factors, device)[0])
            wrong.append(None)
        except InputError as error:  # as data: Ray rewrites the text of exceptions
            keys.append(None)
            wrong.append(str(error))
    return pa.table({"key": pa.array(keys, pa.string()), "wrong": pa.array(wrong, pa.string())})


def _compare_rows(
    batch: pa.Table, ks: Sequence[int], factors: str, results: str | None, device: str, threads: int
) -> pa.Table:
    torch.set_num_threads(threads)
    opened, folder = cache(Matrices.of), None if results is None else Folder.of(results)
    texts = []
    for row in batch.to_pylist():
        matrix, keys = row["matrix"], row["keys"]
        measured = partial(_measured, opened, row, ks, factors, device)
        found = kept(folder, measured, what="updates", code=CODE, keys=keys, ks=list(ks))
        chain = {"recipe": None} | {name: row[name] for name in ("seed", "a", "b", "c")}
        texts.append(json.dumps([{**chain, **place(matrix), **measures} for measures in found]))
    return pa.table({"rows": pa.array(texts, pa.string())})


def _measured(
    opened: Callable[[str], Matrices], row: Mapping[str, Any], ks: Sequence[int], factors: str, device: str
) -> Rows:
    read = [partial(_update, opened, before, after, row["matrix"]) for before, after in _steps(row)]
    leading = [
        leading_factors(key, max(ks), factors, update)
        for key, update in zip(row["keys"], read, strict=True)
    ]  # fmt: skip
    return compare_two_updates(
        [lambda update=update: update().to(device) for update in read],  # type: ignore[misc]
        [(U.to(device), S, Vh.to(device)) for U, S, Vh in leading],
        ks,
    )
