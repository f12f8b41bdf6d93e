"""Singular values of a checkpoint's matrices, thinned on a log grid: what overlays of spectra are drawn from."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlheals_ray.spectra.linalg import Array
from rlheals_ray.spectra.roles import locate

POINTS = 24
"""About so many singular values of a matrix are kept, the first and the last among them."""


def kept_indices(rank: int, points: int = POINTS) -> np.ndarray:
    """Indices i of σ_i, counted from 1, evenly spaced on a log scale: int64, ascending, with 1 and `rank`.

    A rank of up to `points` keeps every index. Raises ValueError for a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} is not positive")
    if rank <= points:
        return np.arange(1, rank + 1)
    return np.unique(np.rint(np.geomspace(1, rank, points)).astype(np.int64))


def singular_value_rows(seed: int | None, checkpoint: str, matrix: str, S: Array) -> list[dict[str, Any]]:
    """Rows of the table `singular_values` of one matrix: `S` (r,) as stored factors hold it, descending."""
    values = np.asarray(S, dtype=np.float64)
    layer, role = locate(matrix) or (None, None)
    return [
        {
            "recipe": None,
            "seed": seed,
            "checkpoint": checkpoint,
            "matrix": matrix,
            "layer": layer,
            "role": role,
            "index": int(index),
            "sigma": float(values[index - 1]),
        }
        for index in kept_indices(values.size)
    ]
