"""What is measured on one matrix or between two: drift, alignment, stretch and turn, norms, ranks.

Products with whole matrices go by blocks of rows, so that float64 copies of them are never needed.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from rlheals_ray.spectra.linalg import Array, Factors, row_blocks


def drift(S_a: Array, S_b: Array) -> np.ndarray:
    """Relative change of every singular value, |σ_b − σ_a| / σ_a, float64 (r,).

    NaN where σ_a ≤ eps(float32) σ_1: there σ_a is rounding of the stored weights, and a ratio to it is noise.
    """
    a, b = descending(S_a), descending(S_b)
    if a.shape != b.shape:
        raise ValueError(f"{a.size} and {b.size} singular values cannot be compared")
    known = a > np.finfo(np.float32).eps * a[0]
    return np.where(known, np.abs(b - a) / np.where(known, a, 1.0), np.nan)


def effective_rank(S: Array) -> float:
    """exp of the entropy of σ_i / Σσ (Roy and Vetterli 2007): in [1, r]; 0.0 for the zero matrix."""
    values = descending(S)
    if not values[0] > 0:
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def difference(weight_a: torch.Tensor, weight_b: torch.Tensor) -> torch.Tensor:
    """ΔW = W_b − W_a (m, n), in float32 (float64 where one of them is), correctly rounded element by element.

    In float32 even a tiny ΔW is accurate to 6e-8 of itself: the two values are exact, and one rounding follows.
    """
    wide = torch.float64 if torch.float64 in (weight_a.dtype, weight_b.dtype) else torch.float32
    return torch.sub(weight_b.to(wide), weight_a.to(wide))


def inner(a: torch.Tensor, b: torch.Tensor) -> float:
    """⟨A, B⟩ = Σ_ij A_ij B_ij of two (m, n), summed in float64."""
    return sum(float((a[rows].double() * b[rows].double()).sum()) for rows in row_blocks(a))


def norm(matrix: torch.Tensor) -> float:
    """‖W‖_F, summed in float64."""
    return math.sqrt(inner(matrix, matrix))


def delta_norm(weight_a: torch.Tensor, weight_b: torch.Tensor) -> float:
    """‖W_b − W_a‖_F."""
    return norm(difference(weight_a, weight_b))


def chordal_distance(angles: np.ndarray) -> float:
    """‖sin θ‖₂ of principal angles: the subspaces' distance as projectors, ‖P_a − P_b‖_F / √2."""
    return float(np.linalg.norm(np.sin(angles)))


def alignment(Q_a: torch.Tensor, Q_b: torch.Tensor) -> np.ndarray:
    """For each of the k singular vectors of a, how well its best match among those of b agrees: max_j |u_iᵀu'_j|.

    Q_a, Q_b: (n, k). Float64 (k,) in [0, 1]; the paper's per-vector measure, blind to swaps within the k.
    """
    overlap = (Q_a.double().mT @ Q_b.double()).abs()
    return overlap.max(dim=1).values.clamp_max(1.0).cpu().numpy()


def noisy(weight: torch.Tensor, length: float, seed: int) -> torch.Tensor:
    """weight (m, n) plus a Gaussian ΔW with ‖ΔW‖_F = length: the change that sheer noise would make; float64.

    The noise is drawn on the CPU: the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
    return noise.mul_(length / norm(noise)).add_(weight)


def stretch_and_turn(factors_a: Factors, delta: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Shares of a change ΔW that lie within the j leading singular subspaces of W_a, for j = 1 .. k.

    factors_a: U (m, k), S, Vh (k, n), all triplets or the k leading ones; delta: ΔW (m, n).
    With C = U_aᵀ ΔW V_a, to first order C_ii changes σ_i and C_ij (i ≠ j) rotates the vectors:
    stretch(j) = Σ_{i≤j} C_ii² / ‖ΔW‖_F²,  turn(j) = Σ_{i≠l≤j} C_il² / ‖ΔW‖_F².
    Their sum is at most 1; the rest of ΔW lies outside both leading subspaces. Two float64 arrays (k,),
    NaN throughout where ΔW = 0.
    """
    U, _, Vh = factors_a
    V = Vh.double().mT
    C = torch.zeros(V.shape[1], V.shape[1], dtype=torch.float64, device=delta.device)
    for rows in row_blocks(delta):
        C += U[rows].double().mT @ (delta[rows].double() @ V)
    total = inner(delta, delta)
    if total == 0.0:
        nothing = np.full(C.shape[0], math.nan)
        return nothing, nothing
    squares = C.square()
    diagonal = squares.diagonal().cumsum(0)
    within = squares.cumsum(0).cumsum(1).diagonal()
    return (diagonal / total).cpu().numpy(), ((within - diagonal).clamp_min(0) / total).cpu().numpy()


def descending(S: Array) -> np.ndarray:
    """Singular values as a float64 array (r,), the largest first."""
    return np.sort(np.asarray(torch.as_tensor(S).detach().cpu().double().numpy()))[::-1]
