"""What chance alone gives: angles of random subspaces, spectra of random matrices, and a test against the latter."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal

from rlheals_ray.folder import Folder
from rlheals_ray.spectra.linalg import Array
from rlheals_ray.spectra.measures import descending

LEVEL = 0.01
"""How often, at most, a truly random (Gaussian) matrix is not recognised as one by `looks_random`."""
PLANTED = 1.5
"""Strength of the direction planted in a Gaussian matrix to find the test's power, over (mn)^¼ standard deviations:
below 1 the direction leaves no trace at the edge of the spectrum (Baik, Ben Arous and Péché 2005)."""
CODE = 2
"""Part of the name of stored null spectra: raise it when their simulation changes."""


@lru_cache(maxsize=4096)
def null_angle(n: int, k: int) -> float:
    """The mean principal angle (radians) between two independent random k-dimensional subspaces of Rⁿ.

    Uniformly random; by simulation, seeded by (n, k), of some 2000 angles or more (at least 16 draws): the
    standard error is below 0.01 rad. For k > n/2 the 2k − n angles that must be 0 count. Raises ValueError for a
    k that is not within 1..n.

    The cosines of the angles are the singular values of a random bidiagonal (k, k) matrix (Edelman and
    Sutton 2008, β = 1, a = 0, b = n − 2k), so that no subspace is ever formed.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k={k} is not within 1..{n}")
    free = min(k, n - k)  # the complements of two subspaces have the same angles other than 0
    if free == 0:
        return 0.0
    rng = np.random.default_rng([n, k])
    draws = max(16, math.ceil(2000 / free))
    return free / k * float(np.mean([np.mean(_random_angles(n, free, rng)) for _ in range(draws)]))


def _random_angles(n: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """The principal angles of two random k-dimensional subspaces of Rⁿ, 2k ≤ n; exact in law, O(k²)."""
    order = np.arange(k, 0, -1)
    c_squared = rng.beta(order / 2, (n - 2 * k + order) / 2)
    other_squared = rng.beta(order[1:] / 2, (n - 2 * k + 1 + order[1:]) / 2)
    # B has the diagonal c_k, c_{k−1} s'_{k−1}, .. and above it −s_k c'_{k−1}, ..: this is BᵀB.
    diagonal = c_squared * np.r_[1.0, 1 - other_squared]
    above = (1 - c_squared[:-1]) * other_squared
    squares = diagonal + np.r_[0.0, above]
    products = np.sqrt(diagonal[:-1] * above)
    cosines_squared = eigvalsh_tridiagonal(squares, products, lapack_driver="sterf", check_finite=False)
    return np.arccos(np.sqrt(np.clip(cosines_squared, 0.0, 1.0)))


@dataclass(frozen=True)
class NullSpectrum:
    """What `looks_random` knows of Gaussian matrices of one shape, from simulated ones."""

    mean: tuple[float, ...]
    """Of each singular value over the root mean square of all, descending."""
    deviation: tuple[float, ...]
    threshold: float
    """The 1 − LEVEL quantile of the largest standardised deviation; see `upper_quantile`."""
    power: float
    """How often the test tells a Gaussian matrix with one planted direction (PLANTED) from a plain one."""

    def accepts(self, S: Array) -> bool:
        """Whether all r singular values are those of a Gaussian matrix of this shape; see `looks_random`."""
        values = descending(S)
        if values.size != len(self.mean):
            raise ValueError(f"S has {values.size} values; a matrix of this shape has {len(self.mean)}")
        if not values[0] > 0:
            return False
        return _statistic(values, np.asarray(self.mean), np.asarray(self.deviation)) <= self.threshold


def looks_random(S: Array, shape: tuple[int, int]) -> bool:
    """Whether all r = min(m, n) singular values are those of a Gaussian i.i.d. matrix of this shape.

    S, divided by its root mean square, is standardised index by index with the mean and deviation of
    simulated Gaussian matrices of the same shape; the statistic is the largest deviation, over the bulk and
    both edges (σ_1, σ_r) alike. False when it exceeds the 99 % quantile of the same statistic on further
    simulated matrices, so that 1 % of Gaussian matrices are missed or fewer, whatever the shape. The scale of the
    matrix does not matter. Raises ValueError when S is not complete.

    A Kolmogorov-Smirnov test against the Marchenko-Pastur law is not valid here: singular values repel
    one another and are far more regular than independent draws.
    """
    return null_spectrum(max(shape), min(shape)).accepts(S)


@lru_cache(maxsize=256)
def null_spectrum(long: int, short: int) -> NullSpectrum:
    """Simulated for matrices of this shape (or its transpose), seeded by it: the same everywhere.

    Mean and deviation, threshold and power come from separate draws. Fewer for large matrices: their spectra
    fluctuate less, and the threshold is calibrated against the very mean and deviation that were estimated, so
    the level holds on average over the draws. O(short²) a draw: seconds for short = 2000, a minute for 4000.
    """
    rng = np.random.default_rng([long, short])
    draws = int(np.clip(900 * 128 / short, 150, 900)) // 3
    reference = np.stack([_normalised(gaussian_spectrum(long, short, rng)) for _ in range(draws)])
    mean = reference.mean(axis=0)
    # A floor for the matrix with one singular value, which is always 1.
    deviation = np.maximum(reference.std(axis=0, ddof=1), 1e-6)

    def statistics(count: int, planted: float) -> np.ndarray:
        spectra = (gaussian_spectrum(long, short, rng, planted) for _ in range(count))
        return np.array([_statistic(spectrum, mean, deviation) for spectrum in spectra])

    threshold = upper_quantile(statistics(2 * draws, 0.0))
    power = float(np.mean(statistics(draws, PLANTED * (long * short) ** 0.25) > threshold))
    return NullSpectrum(tuple(mean), tuple(deviation), threshold, power)


def upper_quantile(values: np.ndarray) -> float:
    """The smallest of n draws that another one exceeds with probability LEVEL at most: the ⌈(n + 1)(1 − LEVEL)⌉-th.

    Of 100 draws the largest; an interpolated quantile of so few would be exceeded twice as often.
    """
    place = math.ceil((values.size + 1) * (1 - LEVEL))
    return float(np.sort(values)[min(place, values.size) - 1])


def stored_null_spectrum(shape: tuple[int, int], where: Folder) -> NullSpectrum:
    """`null_spectrum` of a shape, kept in a folder for whoever asks next."""
    long, short = max(shape), min(shape)
    name = f"null/{long}x{short}-{CODE}.json"
    try:
        found = json.loads(where.read(name))
        return NullSpectrum(
            tuple(found["mean"]), tuple(found["deviation"]), found["threshold"], found["power"]
        )
    except (FileNotFoundError, ValueError, KeyError):
        made = null_spectrum(long, short)
        where.write(name, json.dumps(asdict(made)).encode())
        return made


def gaussian_spectrum(long: int, short: int, rng: np.random.Generator, planted: float = 0.0) -> np.ndarray:
    """Singular values of G + planted · u vᵀ, G (long, short) standard Gaussian, u, v unit; descending.

    Exact in law, O(short²): Householder reflections turn the matrix into a bidiagonal one whose entries are
    independent χ variables (Silverstein 1985; Dumitriu and Edelman 2002). Turned onto the first axes, u vᵀ
    is part of the first column alone, whose length becomes a noncentral χ.
    """
    squares = rng.chisquare(np.arange(long, long - short, -1))
    if planted:
        squares[0] = rng.noncentral_chisquare(long, planted**2)
    above = rng.chisquare(np.arange(short - 1, 0, -1))
    products = np.sqrt(squares[:-1] * above)
    squares[1:] += above
    eigenvalues = eigvalsh_tridiagonal(squares, products, lapack_driver="sterf", check_finite=False)
    return np.sqrt(np.maximum(eigenvalues, 0.0))[::-1]


def _normalised(values: np.ndarray) -> np.ndarray:
    return values / np.sqrt(np.mean(values**2))


def _statistic(values: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> float:
    return float(np.max(np.abs(_normalised(values) - mean) / deviation))
