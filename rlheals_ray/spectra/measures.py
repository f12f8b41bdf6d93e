"""What is measured on one matrix or between two: drift, rotation, stretch and turn, and their null values."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from scipy.linalg import eigvalsh_tridiagonal

from rlheals_ray.spectra.linalg import Array, Factors

LEVEL = 0.01
"""How often a truly random (Gaussian) matrix is not recognised as one by `looks_random`."""


def drift(S_a: Array, S_b: Array) -> np.ndarray:
    """Relative change of every singular value, |σ_b − σ_a| / σ_a, float64 (r,).

    NaN where σ_a ≤ eps(float32) σ_1: there σ_a is rounding of the stored weights, and a ratio to it is noise.
    """
    a, b = _values(S_a), _values(S_b)
    if a.shape != b.shape:
        raise ValueError(f"{a.size} and {b.size} singular values cannot be compared")
    known = a > np.finfo(np.float32).eps * a[0]
    return np.where(known, np.abs(b - a) / np.where(known, a, 1.0), np.nan)


def effective_rank(S: Array) -> float:
    """exp of the entropy of σ_i / Σσ (Roy and Vetterli, 2007): in [1, r]; 0.0 for the zero matrix."""
    values = _values(S)
    if not values[0] > 0:
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def delta_norm(weight_a: torch.Tensor, weight_b: torch.Tensor) -> float:
    """‖W_b − W_a‖_F."""
    return float(torch.linalg.vector_norm(weight_b.double() - weight_a.double()))


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
    """weight (m, n) plus a Gaussian ΔW with ‖ΔW‖_F = length: the change that sheer noise would make; float64."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return weight.double() + length / torch.linalg.vector_norm(noise) * noise


def stretch_and_turn(factors_a: Factors, delta: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Shares of a change ΔW that lie within the k leading singular subspaces of W_a, for k = 1 .. r.

    With C = U_aᵀ ΔW V_a, to first order C_ii changes σ_i and C_ij (i ≠ j) rotates the vectors:
    stretch(k) = Σ_{i≤k} C_ii² / ‖ΔW‖_F²,  turn(k) = Σ_{i≠j≤k} C_ij² / ‖ΔW‖_F².
    Their sum is at most 1; the rest of ΔW lies outside both leading subspaces. Two float64 arrays (r,),
    NaN throughout where ΔW = 0.
    """
    U, _, Vh = (factor.double() for factor in factors_a)
    squares = (U.mT @ delta.double() @ Vh.mT).square()
    total = float(delta.double().square().sum())
    if total == 0.0:
        nothing = np.full(squares.shape[0], math.nan)
        return nothing, nothing
    diagonal = squares.diagonal().cumsum(0)
    within = squares.cumsum(0).cumsum(1).diagonal()
    return (diagonal / total).cpu().numpy(), ((within - diagonal).clamp_min(0) / total).cpu().numpy()


@lru_cache(maxsize=4096)
def null_angle(n: int, k: int) -> float:
    """The mean principal angle (radians) between two independent random k-dimensional subspaces of Rⁿ.

    Uniformly random; by simulation, seeded by (n, k). By rotation invariance one subspace may be the
    first k axes; the other is the span of a Gaussian (n, k) matrix. Draws are averaged until some 2000
    angles are seen (at least 4 draws): the standard error is below 0.01 rad. For k > n/2 the 2k − n angles
    that must be 0 count.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k={k} is not within 1..{n}")
    rng = np.random.default_rng([n, k])
    draws = max(4, math.ceil(2000 / k))
    angles = 0.0
    for _ in range(draws):
        basis = np.linalg.qr(rng.standard_normal((n, k)))[0]
        cosines = np.linalg.svd(basis[:k], compute_uv=False)
        angles += float(np.arccos(np.minimum(cosines, 1.0)).mean())
    return angles / draws


def looks_random(S: Array, shape: tuple[int, int]) -> bool:
    """Whether all r = min(m, n) singular values are those of a Gaussian i.i.d. matrix of this shape.

    S, divided by its root mean square, is standardised index by index with the mean and deviation of
    simulated Gaussian matrices of the same shape; the statistic is the largest deviation, over the bulk and
    both edges (σ_1, σ_r) alike. False when it exceeds the 99 % quantile of the same statistic on further
    simulated matrices, so that 1 % of Gaussian matrices are missed, whatever the shape. The scale of the
    matrix does not matter. Raises ValueError when S is not complete.

    A Kolmogorov-Smirnov test against the Marchenko-Pastur law is not valid here: singular values repel
    one another and are far more regular than independent draws.
    """
    values = _values(S)
    if values.size != min(shape):
        raise ValueError(f"S has {values.size} values; a {shape} matrix has {min(shape)}")
    if not values[0] > 0:
        return False
    mean, deviation, threshold = _null_spectrum(max(shape), min(shape))
    return bool(_deviation(_normalised(values), mean, deviation) <= threshold)


@lru_cache(maxsize=256)
def _null_spectrum(long: int, short: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and deviation of each normalised singular value, and the threshold, from separate draws.

    Fewer draws for large matrices: their spectra fluctuate less, and the threshold is calibrated against
    the very mean and deviation that were estimated, so the level holds.
    """
    rng = np.random.default_rng([long, short])
    draws = int(np.clip(900 * 128 / short, 150, 900))
    reference = np.stack([_normalised(_gaussian_spectrum(long, short, rng)) for _ in range(draws // 3)])
    mean = reference.mean(axis=0)
    # A floor for the matrix with one singular value, which is always 1.
    deviation = np.maximum(reference.std(axis=0, ddof=1), 1e-6)
    statistics = [
        _deviation(_normalised(_gaussian_spectrum(long, short, rng)), mean, deviation)
        for _ in range(draws - draws // 3)
    ]
    return mean, deviation, float(np.quantile(statistics, 1 - LEVEL))


def _gaussian_spectrum(long: int, short: int, rng: np.random.Generator) -> np.ndarray:
    """Singular values of one standard Gaussian (long, short) matrix, descending; exact in law, O(short²).

    Householder reflections turn the Gaussian matrix into a bidiagonal one whose entries are independent
    χ variables (Silverstein, 1985; Dumitriu and Edelman, 2002).
    """
    diagonal = np.sqrt(rng.chisquare(np.arange(long, long - short, -1)))
    above = np.sqrt(rng.chisquare(np.arange(short - 1, 0, -1)))
    squares = diagonal**2
    squares[1:] += above**2
    eigenvalues = eigvalsh_tridiagonal(
        squares, diagonal[:-1] * above, lapack_driver="sterf", check_finite=False
    )
    return np.sqrt(np.maximum(eigenvalues, 0.0))[::-1]


def _normalised(values: np.ndarray) -> np.ndarray:
    return values / np.sqrt(np.mean(values**2))


def _deviation(values: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> float:
    return float(np.max(np.abs(values - mean) / deviation))


def _values(S: Array) -> np.ndarray:
    return np.sort(np.asarray(torch.as_tensor(S).detach().cpu().double().numpy()))[::-1]
