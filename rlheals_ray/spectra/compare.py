"""Every matrix of every pair of checkpoints compared, on Ray Data: the table `spectra`.

Rows carry names and directories, never matrices. Stage 1 decomposes each distinct (checkpoint, matrix)
once and stores its factors; stage 2 compares the pairs from stored factors, for every k at once. All
checkpoints and the factors stand on storage that every worker sees.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from rlheals_ray import tables
from rlheals_ray.config import InputError
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.spectra.factors import stored_factors
from rlheals_ray.spectra.linalg import Factors, angles_between, decompose, orthonormal_basis
from rlheals_ray.spectra.measures import (
    alignment,
    chordal_distance,
    delta_norm,
    drift,
    effective_rank,
    looks_random,
    noisy,
    null_angle,
    stretch_and_turn,
)
from rlheals_ray.spectra.roles import locate, select

SECONDS_PER_PRODUCT = 3e-10
"""Time of an exact SVD on one core, over m · n · min(m, n): sizes Ray Data's blocks, nothing else."""
SECONDS_PER_BLOCK = 5.0


@dataclass(frozen=True)
class Pair:
    """Two checkpoints to compare: `a` before, `b` after; their names in the study and their directories."""

    seed: int
    a: str
    b: str
    a_directory: str
    b_directory: str


def compare(
    pairs: Sequence[Pair],
    roles: Sequence[str],
    ks: Sequence[int],
    factors_directory: str | Path,
    concurrency: int = 1,
    num_cpus: float = 1.0,
) -> pa.Table:
    """Compare all matrices of these roles in every pair, as the table `spectra`.

    One row for each pair, matrix and k, in this order; a k beyond min(m, n) of a matrix is skipped.
    factors_directory: where factors are stored and found again. concurrency: tasks at one time, each
    reserving num_cpus (fractions allowed) and using one thread.
    Raises InputError for a checkpoint that cannot be read, holds NaN or Inf, or whose matrices do not match.
    """
    if any(k < 1 for k in ks):
        raise InputError(
            f"spectra.k (got {list(ks)}): every k counts singular directions; use positive numbers."
        )
    # Workers have other working directories.
    pairs = [
        replace(pair, a_directory=_absolute(pair.a_directory), b_directory=_absolute(pair.b_directory))
        for pair in pairs
    ]
    shapes = _matching_shapes(pairs, roles)
    factors = _absolute(factors_directory)
    comparisons = [
        {"seed": pair.seed, "a": pair.a, "b": pair.b, "a_directory": pair.a_directory,
         "b_directory": pair.b_directory, "matrix": matrix}
        for pair in pairs for matrix in shapes[pair.a_directory]
    ]  # fmt: skip
    if not comparisons:
        return tables.SPECTRA.empty_table()
    distinct = [
        {"directory": directory, "matrix": name} for directory in shapes for name in shapes[directory]
    ]

    def mapped(rows: list[dict[str, Any]], directory: str, function: Any, **arguments: Any) -> pa.Table:
        """`function` over blocks of rows, each block some seconds of work; `directory` is a column's name."""
        seconds = sum(_seconds(shapes[row[directory]][row["matrix"]]) for row in rows)
        blocks = min(len(rows), max(4 * concurrency, math.ceil(seconds / SECONDS_PER_BLOCK)))
        dataset = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
            function,
            fn_kwargs={"factors_directory": factors, **arguments},
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(size=concurrency),
            num_cpus=num_cpus,
        )
        return pa.concat_tables(ray.get(dataset.to_arrow_refs()))

    with _quiet():
        wrong = mapped(distinct, "directory", _decompose_rows)["wrong"].drop_null()
        if len(wrong):
            raise InputError(wrong[0].as_py())
        found = mapped(comparisons, "a_directory", _compare_rows, ks=tuple(ks))
    return found.cast(tables.SPECTRA)


def compare_matrix(
    factors_a: Factors,
    factors_b: Factors,
    weight_a: torch.Tensor,
    weight_b: torch.Tensor,
    ks: Sequence[int],
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The measures of one matrix before (a) and after (b), one row for each k ≤ min(m, n).

    Over the k leading singular values: relative drift, mean and largest. Between the k leading left (u) and
    right (v) subspaces: principal angles in radians, mean and largest; float32 factors resolve them to
    about 1e-7. Beside them the mean angles of random k-dimensional subspaces (`null_angle` of u's space R^m,
    `null_angle_v` of R^n) and those that Gaussian noise of the same ‖ΔW‖_F makes (`noise_angle_u`, `_v`; `seed`
    draws it). `alignment`: mean over the k vectors of max_j |u_iᵀu'_j|; `chordal`: ‖sin θ‖₂.
    `stretch`, `turn`: shares of ‖ΔW‖² within the k leading subspaces of a. The rest does not depend on k.
    `looks_random`: of a or of b. None where a ratio has no meaning (ΔW = 0, or σ within rounding).
    """
    shape = (weight_a.shape[0], weight_a.shape[1])
    S_a, S_b = factors_a[1], factors_b[1]
    drifts = drift(S_a, S_b)
    delta = weight_b.double() - weight_a.double()
    stretch, turn = stretch_and_turn(factors_a, delta)
    whole = {
        "delta_norm": delta_norm(weight_a, weight_b),
        "effective_rank_a": effective_rank(S_a),
        "effective_rank_b": effective_rank(S_b),
        "effective_rank_delta": effective_rank(torch.linalg.svdvals(delta)),
        "looks_random": looks_random(S_a, shape) or looks_random(S_b, shape),
    }
    fitting = [k for k in ks if k <= min(shape)]
    if not fitting:
        return []
    # The first k columns of Q span what the first k singular vectors span: one QR serves every k.
    widest = max(fitting)
    # The third is what noise of the same length would have made of a: angles must be seen beside its angles.
    noise = decompose(noisy(weight_a, whole["delta_norm"], seed)) if whole["delta_norm"] else factors_a
    left = [orthonormal_basis(factors[0][:, :widest]) for factors in (factors_a, factors_b, noise)]
    right = [orthonormal_basis(factors[2][:widest].mT) for factors in (factors_a, factors_b, noise)]
    absolute = np.abs(S_b.double().numpy() - S_a.double().numpy())
    rows = []
    for k in fitting:
        known = drifts[:k][~np.isnan(drifts[:k])]
        angles_u = angles_between(left[0][:, :k], left[1][:, :k])
        angles_v = angles_between(right[0][:, :k], right[1][:, :k])
        rows.append(
            {
                "k": k,
                "drift_mean": float(known.mean()) if known.size else None,
                "drift_max": float(known.max()) if known.size else None,
                "angle_u_mean": float(angles_u.mean()),
                "angle_u_max": float(angles_u[-1]),
                "angle_v_mean": float(angles_v.mean()),
                "angle_v_max": float(angles_v[-1]),
                "null_angle": null_angle(shape[0], k),
                "null_angle_v": null_angle(shape[1], k),
                "noise_angle_u": float(angles_between(left[0][:, :k], left[2][:, :k]).mean()),
                "noise_angle_v": float(angles_between(right[0][:, :k], right[2][:, :k]).mean()),
                "drift_abs_mean": float(absolute[:k].mean()),
                "drift_abs_max": float(absolute[:k].max()),
                "alignment_u": float(alignment(left[0][:, :k], left[1][:, :k]).mean()),
                "alignment_v": float(alignment(right[0][:, :k], right[1][:, :k]).mean()),
                "chordal_u": chordal_distance(angles_u),
                "chordal_v": chordal_distance(angles_v),
                "stretch": _number(stretch[k - 1]),
                "turn": _number(turn[k - 1]),
                **whole,
            }
        )
    return rows


def compare_one(
    row: Mapping[str, Any], ks: Sequence[int], factors_directory: str | Path
) -> list[dict[str, Any]]:
    """The rows of one pair and matrix: `row` is a Pair's fields and `matrix`. Reads two tensors."""
    matrix = row["matrix"]
    weights = [_weight(row[side], matrix) for side in ("a_directory", "b_directory")]
    factors = [stored_factors(weight, factors_directory) for weight in weights]
    layer, role = locate(matrix) or (None, None)
    place = {
        "seed": row["seed"],
        "a": row["a"],
        "b": row["b"],
        "matrix": matrix,
        "layer": layer,
        "role": role,
    }
    return [
        {**place, **measures}
        for measures in compare_matrix(
            factors[0], factors[1], weights[0], weights[1], ks, seed=zlib.crc32(matrix.encode())
        )
    ]


def _compare_rows(batch: pa.Table, ks: Sequence[int], factors_directory: str) -> pa.Table:
    torch.set_num_threads(1)
    rows = [found for row in batch.to_pylist() for found in compare_one(row, ks, factors_directory)]
    return tables.table("spectra", rows)


def _decompose_rows(batch: pa.Table, factors_directory: str) -> pa.Table:
    """What is wrong with each row's matrix, or null; as data, since Ray rewrites the text of exceptions."""
    torch.set_num_threads(1)
    return pa.table(
        {
            "wrong": pa.array(
                [_decompose_one(row, factors_directory) for row in batch.to_pylist()], pa.string()
            )
        }
    )


def _decompose_one(row: Mapping[str, str], factors_directory: str) -> str | None:
    try:
        stored_factors(_weight(row["directory"], row["matrix"]), factors_directory)
    except InputError as error:
        return str(error)
    except ValueError as error:
        return f"checkpoint {row['directory']!r}: {row['matrix']!r}: {error}; leave out its role."
    return None


def _absolute(directory: str | Path) -> str:
    return str(Path(directory).absolute())


def _seconds(shape: tuple[int, ...]) -> float:
    return math.prod(shape) * min(shape) * SECONDS_PER_PRODUCT


def _weight(directory: str, matrix: str) -> torch.Tensor:
    return Checkpoint(Path(directory)).tensor(matrix)


def _matching_shapes(pairs: Sequence[Pair], roles: Sequence[str]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Directory -> matrix -> shape, from headers; raises InputError where a pair's matrices do not match."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for directory in dict.fromkeys(d for pair in pairs for d in (pair.a_directory, pair.b_directory)):
        checkpoint = Checkpoint(Path(directory))
        shapes[directory] = {name: checkpoint.shape(name) for name in select(checkpoint.names(), roles)}
        if not shapes[directory]:
            raise InputError(
                f"spectra.roles (got {list(roles)}): checkpoint {directory!r} has no such matrix; its "
                f"tensors are named like {checkpoint.names()[0]!r}, unlike Llama's or Qwen's."
            )
    for pair in pairs:
        a, b = shapes[pair.a_directory], shapes[pair.b_directory]
        for name in sorted(set(a) | set(b)):
            if a.get(name) != b.get(name):
                raise InputError(
                    f"checkpoints {pair.a_directory!r} and {pair.b_directory!r}: {name!r} has the shapes "
                    f"{a.get(name)} and {b.get(name)}; compare checkpoints of one architecture."
                )
    return shapes


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data without progress bars and execution reports, in the order of its input."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.execution_options.preserve_order, logger.level
    context.enable_progress_bars, context.execution_options.preserve_order = False, True
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, context.execution_options.preserve_order = before[:2]
        logger.setLevel(before[2])
