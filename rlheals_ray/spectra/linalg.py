"""The two operations everything else here is made of: decompose a matrix, compare subspaces.

Symbols: W = U diag(S) Vh with U (m, r), S (r,) descending, Vh (r, n), r = min(m, n).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch

Factors: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Array: TypeAlias = torch.Tensor | np.ndarray

GRAM_MAX_CONDITION = 1e4
"""σ_1 / σ_i up to which the Gram matrix gives σ_i and its vectors: squaring costs eps · (σ_1/σ_i)² ≈ 2e-8."""
MAX_CONDITION = 1e10
"""σ_1 / σ_r from which nothing but LAPACK keeps the vectors orthonormal: W is numerically singular."""
GRAM_MIN_SIZE = 128
"""Below this the direct SVD takes less than 2 ms and the Gram detour gains nothing."""
SMALLEST_BLOCK = 1 << 18
"""Elements turned into float64 at a time (2 MiB), or a sixteenth of the matrix where that is more."""


def decompose(weight: Array, k: int | None = None) -> Factors:
    """The exact thin SVD of a matrix, or its k leading triplets.

    weight: (m, n), any real floating dtype (bfloat16, float16, float32, float64, float8), any scale.
    Returns U (m, r), S (r,) descending and Vh (r, n), contiguous float32 on the device of `weight`, with
    r = min(m, n), or k where one is given.
    Computed in float64; every σ_i above 1e-8 σ_1 is accurate to 1e-6 relative, those below to 1e-14 σ_1.
    Raises ValueError when `weight` is not a matrix, is empty, not floating, or has NaN or Inf, and for a k
    that is not within 1..min(m, n).

    The eigenvectors of the smaller Gram matrix give all σ_i above σ_1/1e4. What is left, seldom much, is W
    on the other eigenvectors, made orthogonal to the U found so far: LAPACK's divide and conquer decomposes it.
    That is 1.5 (square) to 9 times (1536 × 8960) as fast as LAPACK on W itself (docs/methods.md), and needs no
    float64 copy of W. Small and numerically singular matrices go to LAPACK whole. CUDA runs the
    same code (UNTESTED).
    """
    matrix = _matrix(weight, "weight")
    rank = min(matrix.shape)
    if k is not None and not 1 <= k <= rank:
        raise ValueError(f"k={k} is not within 1..{rank} for a {tuple(matrix.shape)} matrix")
    wide = matrix.shape[0] < matrix.shape[1]
    tall, scale = (matrix.mT if wide else matrix), _scale(matrix)
    U, S, V = _gram_svd(tall, scale, k or rank) or _lapack_svd(tall, scale, k or rank)
    S = S * scale
    if float(S[0]) > torch.finfo(torch.float32).max:
        raise ValueError(f"weight has the singular value {float(S[0]):.3g}, beyond float32")
    left, right = (V, U) if wide else (U, V)
    return _float32(left), _float32(S), _float32(right.mT)


def singular_values(weight: Array) -> torch.Tensor:
    """S (r,) alone, float64, descending: from the Gram matrix, accurate to 1e-8 σ_1.

    Half the price of `decompose`, for what sums over all of S. Raises ValueError as `decompose` does.
    """
    matrix = _matrix(weight, "weight")
    tall, scale = (matrix.mT if matrix.shape[0] < matrix.shape[1] else matrix), _scale(matrix)
    return torch.linalg.eigvalsh(_gram(tall, scale)).clamp_min(0).sqrt().flip(0) * scale


def _gram_svd(tall: torch.Tensor, scale: float, k: int) -> Factors | None:
    """U, S, V (not Vh) of tall / scale, the k leading triplets; None where LAPACK is as good or needed."""
    rank = tall.shape[1]
    if rank < GRAM_MIN_SIZE:
        return None
    eigenvalues, V = torch.linalg.eigh(_gram(tall, scale))
    S, V = eigenvalues.clamp_min(0).sqrt().flip(0), V.flip(1)
    known = int((S[0] / GRAM_MAX_CONDITION < S).sum())
    if known >= k:
        return _product(tall, scale, V[:, :k] / S[:k], torch.float32), S[:k], V[:, :k]
    if rank - known > rank // 2:
        return None
    U = _product(tall, scale, V, torch.float64)
    lead, rest = U[:, :known].div_(S[:known]), U[:, known:]
    # Of W on the other eigenvectors, what lies along U is the rounding of V.
    U_rest, S_rest, Vh_rest = torch.linalg.svd(rest - lead @ (lead.mT @ rest), full_matrices=False)
    if float(S_rest[-1]) * MAX_CONDITION < float(S[0]):
        return None
    rest.copy_(U_rest)
    V[:, known:] = V[:, known:] @ Vh_rest.mT
    return U[:, :k], torch.cat([S[:known], S_rest])[:k], V[:, :k]


def _lapack_svd(tall: torch.Tensor, scale: float, k: int) -> Factors:
    """The same by divide and conquer, on the triangle of a QR decomposition where that is smaller."""
    matrix = tall.to(torch.float64) / scale
    if tall.shape[0] < 1.2 * tall.shape[1]:
        U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
        return U[:, :k], S[:k], Vh[:k].mT
    Q, R = torch.linalg.qr(matrix)
    del matrix
    U, S, Vh = torch.linalg.svd(R)
    return Q @ U[:, :k], S[:k], Vh[:k].mT


def _gram(tall: torch.Tensor, scale: float) -> torch.Tensor:
    """The lower triangle of (tall / scale)ᵀ (tall / scale), float64 (r, r); above it, some of the rest."""
    rank = tall.shape[1]
    gram = torch.zeros(rank, rank, dtype=torch.float64, device=tall.device)
    step = max(GRAM_MIN_SIZE, math.ceil(rank / 4))
    for _, block in _blocks(tall, scale):
        for start in range(0, rank, step):
            gram[start:, start : start + step].addmm_(block[:, start:].mT, block[:, start : start + step])
    return gram


def _product(tall: torch.Tensor, scale: float, V: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(tall / scale) V, computed in float64."""
    product = torch.empty(tall.shape[0], V.shape[1], dtype=dtype, device=tall.device)
    for rows, block in _blocks(tall, scale):
        product[rows] = block @ V
    return product


def _blocks(tall: torch.Tensor, scale: float) -> Iterator[tuple[slice, torch.Tensor]]:
    """Some rows of tall / scale at a time, float64: no copy of the whole is ever made."""
    for rows in row_blocks(tall):
        yield rows, tall[rows].to(torch.float64, copy=True).div_(scale)


def row_blocks(matrix: torch.Tensor) -> Iterator[slice]:
    """Slices of rows that cut a matrix into blocks small beside it."""
    height = max(SMALLEST_BLOCK, matrix.numel() // 16) // matrix.shape[1] + 1
    return (slice(start, start + height) for start in range(0, matrix.shape[0], height))


def _scale(matrix: torch.Tensor) -> float:
    """A power of two near the largest element: dividing by it does not round, and squares stay in range."""
    low, high = torch.aminmax(matrix)
    largest = max(-float(low), float(high))
    return math.ldexp(1.0, max(math.frexp(largest)[1], -1000)) if largest > 0 else 1.0


def _float32(factor: torch.Tensor) -> torch.Tensor:
    return factor.to(torch.float32).contiguous()


def principal_angles(U_a: Array, U_b: Array) -> np.ndarray:
    """The principal angles between the column spaces of two matrices.

    U_a: (n, k_a), U_b: (n, k_b), torch or numpy; columns linearly independent, not necessarily orthonormal.
    Returns min(k_a, k_b) angles in radians, float64, ascending in [0, π/2], exact to ~1e-15 for the inputs
    as given (arccos alone cannot resolve angles below 1e-8, nor float32 those below 3e-4). Bases that were
    stored in float32, as `decompose` returns them, are themselves some 4e-8 off: their floor is 1e-7.
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
    matrix = _matrix(U, name).to(torch.float64)
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
    """As a finite, non-empty matrix of its dtype (float8: float32); raises ValueError naming what is wrong."""
    matrix = torch.as_tensor(array).detach()
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} has the shape {tuple(matrix.shape)}; a non-empty matrix (2-D) is needed")
    if not matrix.is_floating_point():
        raise ValueError(f"{name} has the dtype {matrix.dtype}; a real floating dtype is needed")
    if matrix.itemsize == 1:
        matrix = matrix.float()  # float8 has no arithmetic
    if not all(math.isfinite(extreme) for extreme in torch.aminmax(matrix)):
        bad = matrix.numel() - int(torch.isfinite(matrix).sum())
        raise ValueError(f"{name} has {bad} values that are NaN or Inf, of {matrix.numel()}")
    return matrix
