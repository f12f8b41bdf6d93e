"""One matrix before (a) and after (b): every measure of the table `spectra`.

A worker holds at most both matrices, their k leading singular vectors, and one decomposition at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rlheals_ray.spectra.linalg import (
    Factors,
    angles_between,
    decompose,
    orthonormal_basis,
    singular_values,
)
from rlheals_ray.spectra.measures import (
    alignment,
    chordal_distance,
    difference,
    drift,
    effective_rank,
    noisy,
    norm,
    stretch_and_turn,
)
from rlheals_ray.spectra.null import NullSpectrum, null_angle

CODE = 2
"""Raise it when a measure changes what it computes: what was kept of older code is then made anew."""

Bases = tuple[torch.Tensor, torch.Tensor]
"""Orthonormal float64 bases of the k leading left and right singular subspaces; a prefix serves every smaller k."""


def compare_matrices(
    read_a: Callable[[], torch.Tensor],
    read_b: Callable[[], torch.Tensor],
    factors_a: Factors,
    factors_b: Factors,
    null: NullSpectrum,
    ks: Sequence[int],
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The measures of a matrix in two checkpoints, one row for each k ≤ min(m, n).

    read_a, read_b: give W_a, W_b (m, n), any floating dtype, on the device of the work. factors: U (m, k),
    S (r,) whole, Vh (k, n) of each, with at least the largest of `ks` that is ≤ r. null: of this shape.

    Over the k leading singular values: relative drift, mean and largest. Between the k leading left (u) and
    right (v) subspaces: principal angles in radians, mean and largest; float32 factors resolve them to
    about 1e-7. Beside them the mean angles of random k-dimensional subspaces (`null_angle` of u's space R^m,
    `null_angle_v` of R^n) and those that Gaussian noise of the same ‖ΔW‖_F makes (`noise_angle_u`, `_v`; `seed`
    draws it). `alignment`: mean over the k vectors of max_j |u_iᵀu'_j|; `chordal`: ‖sin θ‖₂.
    `stretch`, `turn`: shares of ‖ΔW‖² within the k leading subspaces of a. The rest does not depend on k.
    `looks_random`: of a or of b; `random_power`: `NullSpectrum.power`. None where a ratio has no meaning
    (ΔW = 0, or σ within rounding).
    """
    S_a, S_b = factors_a[1], factors_b[1]
    fitting = [k for k in ks if k <= len(S_a)]
    if not fitting:
        return []
    widest = max(fitting)
    weight_a = read_a()
    shape = (weight_a.shape[0], weight_a.shape[1])
    delta = difference(weight_a, read_b())
    length = norm(delta)
    stretch, turn = stretch_and_turn((factors_a[0][:, :widest], S_a, factors_a[2][:widest]), delta)
    rank_delta = effective_rank(singular_values(delta)) if length else 0.0
    del delta
    bases_a = leading_bases(factors_a, widest)
    bases_b = leading_bases(factors_b, widest)
    bases_noise = _noise_bases(weight_a, length, widest, seed) if length else bases_a
    del weight_a
    drifts, absolute = drift(S_a, S_b), np.abs(S_b.double().cpu().numpy() - S_a.double().cpu().numpy())
    whole = {
        "delta_norm": length,
        "effective_rank_a": effective_rank(S_a),
        "effective_rank_b": effective_rank(S_b),
        "effective_rank_delta": rank_delta,
        "looks_random": null.accepts(S_a) or null.accepts(S_b),
        "random_power": null.power,
    }
    return [
        {
            "k": k,
            **_drift_columns(drifts[:k], absolute[:k]),
            **_subspace_columns(bases_a, bases_b, k),
            "null_angle": null_angle(shape[0], k),
            "null_angle_v": null_angle(shape[1], k),
            **_noise_columns(bases_a, bases_noise, k),
            "stretch": _number(stretch[k - 1]),
            "turn": _number(turn[k - 1]),
            **whole,
        }
        for k in fitting
    ]


def leading_bases(factors: Factors, k: int) -> Bases:
    return orthonormal_basis(factors[0][:, :k]), orthonormal_basis(factors[2][:k].mT)


def angles(a: Bases, b: Bases, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal angles (k,) between the k leading left, and right, subspaces; see `principal_angles`."""
    return angles_between(a[0][:, :k], b[0][:, :k]), angles_between(a[1][:, :k], b[1][:, :k])


def angle_columns(angles_u: np.ndarray, angles_v: np.ndarray) -> dict[str, float]:
    """Their means and the largest."""
    return {
        "angle_u_mean": float(angles_u.mean()),
        "angle_u_max": float(angles_u[-1]),
        "angle_v_mean": float(angles_v.mean()),
        "angle_v_max": float(angles_v[-1]),
    }


def _noise_bases(weight: torch.Tensor, length: float, k: int, seed: int) -> Bases:
    """What noise as long as ΔW would have made of a's subspaces: angles must be seen beside its angles."""
    # In float32, as b was stored too.
    changed = noisy(weight, length, seed).float()
    return leading_bases(decompose(changed, k), k)


def _drift_columns(drifts: np.ndarray, absolute: np.ndarray) -> dict[str, float | None]:
    known = drifts[~np.isnan(drifts)]
    return {
        "drift_mean": float(known.mean()) if known.size else None,
        "drift_max": float(known.max()) if known.size else None,
        "drift_abs_mean": float(absolute.mean()),
        "drift_abs_max": float(absolute.max()),
    }


def _noise_columns(a: Bases, noise: Bases, k: int) -> dict[str, float]:
    angles_u, angles_v = angles(a, noise, k)
    return {"noise_angle_u": float(angles_u.mean()), "noise_angle_v": float(angles_v.mean())}


def _subspace_columns(a: Bases, b: Bases, k: int) -> dict[str, float]:
    angles_u, angles_v = angles(a, b, k)
    return {
        **angle_columns(angles_u, angles_v),
        "alignment_u": float(alignment(a[0][:, :k], b[0][:, :k]).mean()),
        "alignment_v": float(alignment(a[1][:, :k], b[1][:, :k]).mean()),
        "chordal_u": chordal_distance(angles_u),
        "chordal_v": chordal_distance(angles_v),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
