"""The two operations everything else here is made of: decompose a matrix, compare subspaces.

Symbols: W = U diag(S) Vh with U (m, r), S (r,) descending, Vh (r, n), r = min(m, n).
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import torch

Factors: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Array: TypeAlias = torch.Tensor | np.ndarray

GRAM_MAX_CONDITION = 1e4
"""Squaring a matrix of this condition number loses at most ~1e-8 (eps · κ²), far below the 1e-6 promised."""
GRAM_MIN_SIZE = 128
"""Below this the direct SVD takes less than 2 ms and the Gram detour gains nothing."""


def decompose(weight: Array) -> Factors:
    """The exact thin SVD of a matrix.

    weight: (m, n), any real floating dtype (bfloat16, float16, float32, float64, float8), any scale.
    Returns U (m, r), S (r,) descending and Vh (r, n), contiguous float32 on the device of `weight`.
    Computed in float64; every σ_i above 1e-10 σ_1 is accurate to 1e-6 relative.
    Raises ValueError when `weight` is not a matrix, is empty, not floating, or has NaN or Inf.

    Large, well-conditioned matrices go through the eigendecomposition of the smaller Gram matrix in
    float64 (2-4 times cheaper); the rest through LAPACK's divide-and-conquer SVD.
    """
    matrix = _matrix(weight, "weight")
    largest = float(matrix.abs().max())
    # A power of two scales without rounding and keeps squares within range.
    scale = math.ldexp(1.0, max(math.frexp(largest)[1], -1000)) if largest > 0 else 1.0
    matrix = matrix / scale
    U, S, Vh = _gram(matrix) or torch.linalg.svd(matrix, full_matrices=False)
    S = S * scale
    if float(S[0]) > torch.finfo(torch.float32).max:
        raise ValueError(f"weight has the singular value {float(S[0]):.3g}, beyond float32")
    return tuple(factor.to(torch.float32).contiguous() for factor in (U, S, Vh))  # type: ignore[return-value]


def _gram(matrix: torch.Tensor) -> Factors | None:
    """U, S, Vh from the eigenvectors of the Gram matrix, or None where that is not exact or not cheaper."""
    rows, columns = matrix.shape
    if min(rows, columns) < GRAM_MIN_SIZE:
        return None
    tall = matrix if rows >= columns else matrix.mT
    eigenvalues, V = torch.linalg.eigh(tall.mT @ tall)
    if float(eigenvalues[0]) <= float(eigenvalues[-1]) / GRAM_MAX_CONDITION**2:
        return None
    S, V = eigenvalues.sqrt().flip(0), V.flip(1)
    U = (tall @ V) / S
    return (U, S, V.mT) if rows >= columns else (V, S, U.mT)


def principal_angles(U_a: Array, U_b: Array) -> np.ndarray:
    """The principal angles between the column spaces of two matrices.

    U_a: (n, k_a), U_b: (n, k_b), torch or numpy; columns linearly independent, not necessarily orthonormal.
    Returns min(k_a, k_b) angles in radians, float64, ascending in [0, π/2], exact to ~1e-15 for the inputs
    as given (arccos alone cannot resolve angles below 1e-8, nor float32 those below 3e-4).
    Raises ValueError for inputs that are no matrices of one height, wider than tall, or column-deficient.

    Björck and Golub (1973): cosines are the singular values of Q_aᵀ Q_b, sines those of (I − Q_a Q_aᵀ) Q_b;
    the sine is taken below 45 degrees. The bases are re-orthonormalised by QR in float64.
    """
    Q_a, Q_b = orthonormal_basis(U_a, "U_a"), orthonormal_basis(U_b, "U_b")
    if Q_a.shape[0] != Q_b.shape[0]:
        raise ValueError(f"U_a has {Q_a.shape[0]} rows and U_b {Q_b.shape[0]}; they lie in different spaces")
    return angles_between(Q_a, Q_b)


def orthonormal_basis(U: Array, name: str = "U") -> torch.Tensor:
    """Q of the float64 QR of U (n, k): its first j columns span U's first j columns, for every j."""
    matrix = _matrix(U, name)
    if matrix.shape[0] < matrix.shape[1]:
        raise ValueError(f"{name} has more columns than rows {tuple(matrix.shape)}; pass Vh transposed")
    lengths = torch.linalg.vector_norm(matrix, dim=0)
    Q, R = torch.linalg.qr(matrix / lengths.clamp_min(torch.finfo(torch.float64).tiny))
    if float(R.diagonal().abs().min()) < matrix.shape[0] * torch.finfo(torch.float64).eps:
        raise ValueError(f"{name} has linearly dependent columns; its subspace is of a smaller dimension")
    return Q


def angles_between(Q_a: torch.Tensor, Q_b: torch.Tensor) -> np.ndarray:
    """`principal_angles` of bases that are orthonormal in float64 already."""
    if Q_a.shape[1] < Q_b.shape[1]:
        Q_a, Q_b = Q_b, Q_a
    overlap = Q_a.mT @ Q_b
    cosines = torch.linalg.svdvals(overlap).clamp_max(1.0)
    angles = torch.arccos(cosines)
    small = cosines**2 >= 0.5
    if bool(small.any()):
        sines = torch.linalg.svdvals(Q_b - Q_a @ overlap).flip(0).clamp_max(1.0)
        angles = torch.where(small, torch.arcsin(sines), angles)
    return angles.cpu().numpy()


def _matrix(array: Array, name: str) -> torch.Tensor:
    """As a finite, non-empty float64 matrix; raises ValueError naming what is wrong."""
    matrix = torch.as_tensor(array).detach()
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} has the shape {tuple(matrix.shape)}; a non-empty matrix (2-D) is needed")
    if not matrix.is_floating_point():
        raise ValueError(f"{name} has the dtype {matrix.dtype}; a real floating dtype is needed")
    matrix = matrix.to(torch.float64)
    bad = matrix.numel() - int(torch.isfinite(matrix).sum())
    if bad:
        raise ValueError(f"{name} has {bad} values that are NaN or Inf, of {matrix.numel()}")
    return matrix
