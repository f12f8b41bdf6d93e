"""Intervals and paired tests for accuracies measured on the same, possibly clustered, problems.

Two kinds of uncertainty are kept apart. *Over problems*: the problems were drawn, in clusters
(permutations of one multiset of cards are not independent), so intervals resample whole clusters
and the pooled test flips the signs of whole clusters. *Over seeds*: a t interval, because a
bootstrap over three seeds does not cover.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import scipy.stats

Floats = npt.NDArray[np.float64]

_EXACT_CLUSTERS = 14  # 2**14 sign patterns are fewer than two Monte Carlo runs
_CHUNK = 1 << 22  # entries of a resampling matrix held at once: 32 MiB of float64


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927), without continuity correction.

    n = 0 gives (0.0, 1.0): nothing is known. Raises ValueError unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n, got {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    interval = scipy.stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided exact McNemar p of a paired change: gained ~ Binomial(gained + lost, 1/2).

    It takes problems for independent; under clustering it is too small, which is why pooled verdicts
    rest on `cluster_sign_flip_p`. No discordant pair gives 1.0. Raises ValueError for negative counts.
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"counts must not be negative, got gained={gained}, lost={lost}")
    if gained + lost == 0:
        return 1.0
    return float(scipy.stats.binomtest(gained, gained + lost, 0.5).pvalue)


def benjamini_hochberg(p_values: npt.ArrayLike) -> Floats:
    """Benjamini-Hochberg (1995) adjusted p values of one family, shape as given, float64.

    A nan is no test: it stays nan and the family does not count it. Raises ValueError outside [0, 1].
    """
    q_values = np.array(p_values, dtype=np.float64)
    tested = ~np.isnan(q_values)
    if tested.any():
        q_values[tested] = scipy.stats.false_discovery_control(q_values[tested], method="bh")
    return q_values


def t_interval(values: npt.ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Student t interval of the mean of independent values, here one per seed.

    mean -/+ t_{n-1} s / sqrt(n), not clipped to the values' range; (nan, nan) for fewer than two.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size < 2:
        return float("nan"), float("nan")
    half = scipy.stats.t.ppf((1 + level) / 2, sample.size - 1) * scipy.stats.sem(sample)
    return float(sample.mean() - half), float(sample.mean() + half)


def cluster_bootstrap(
    values: npt.ArrayLike,
    clusters: Sequence[str] | npt.NDArray[np.generic],
    draws: int = 2000,
    seed: int = 0,
    statistic: Callable[[Floats], Floats] | None = None,
) -> Floats:
    """Means over problems of every column, under resampling of whole clusters with replacement.

    `values`: (problems, c); `clusters`: (problems,) labels. A draw takes as many clusters as there
    are, each with all its problems, and divides by the number of problems drawn (the ratio estimator
    of a mean under cluster sampling; Davison & Hinkley 1997, 3.8). Draws are joint over columns, so
    differences and ratios of the returned columns are bootstrapped jointly. Independent of the order
    of the rows for integer values; deterministic in `seed`.

    Returns (draws, c) float64, or `statistic` of it. Raises ValueError for mismatched or no problems.
    """
    matrix = np.asarray(values, dtype=np.float64)
    labels = np.asarray(clusters)
    if matrix.ndim != 2 or labels.shape != matrix.shape[:1] or not labels.size:
        raise ValueError(f"expected (problems, c) and (problems,), got {matrix.shape} and {labels.shape}")
    sums = _cluster_sums(np.column_stack([np.ones(len(matrix)), matrix]), labels)
    count = len(sums)
    generator = np.random.default_rng(seed)
    totals = np.empty((draws, sums.shape[1]))
    for start, stop in _chunks(draws, count):
        weights = generator.multinomial(count, np.full(count, 1 / count), size=stop - start)
        totals[start:stop] = weights.astype(np.float64) @ sums
    means: Floats = totals[:, 1:] / totals[:, :1]
    return means if statistic is None else statistic(means)


def percentile_interval(draws: Floats, level: float = 0.95) -> tuple[float, float]:
    """Bootstrap percentile interval of one statistic's draws, shape (draws,).

    Where every problem changes alike (nothing solved before or after) its width is zero: such a
    sample holds no spread to resample, and the Wilson intervals of the two accuracies say more.
    """
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def ratio_interval(numerator: Floats, denominator: Floats, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of a ratio from joint draws of its parts, both of shape (draws,).

    For a denominator already found positive at `level`. The few draws where it is not positive say
    that the ratio may be arbitrarily far out on the numerator's side, so they count as infinite
    rather than as the opposite sign they would compute to.
    """
    positive = denominator > 0
    ratios = np.where(numerator == 0, 0.0, np.copysign(np.inf, numerator))
    np.divide(numerator, denominator, out=ratios, where=positive)
    # An order statistic, because interpolating towards an infinity gives an infinity.
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(low), float(high)


def cluster_sign_flip_p(
    differences: npt.ArrayLike,
    clusters: Sequence[str] | npt.NDArray[np.generic],
    draws: int = 9999,
    seed: int = 0,
) -> float:
    """Two-sided p of a mean paired difference by flipping the signs of whole clusters.

    `differences` and `clusters`: (problems,). Null: before and after are exchangeable within a
    cluster, clusters being independent; correlation inside a cluster is then harmless. With up to 14
    clusters that changed, all patterns are enumerated and p is exact; beyond that p = (1 + hits) /
    (1 + draws) (Phipson & Smyth 2010), never below 1 / (1 + draws). For clusters of one problem and
    differences of -1, 0, 1 this is the exact McNemar test. No change at all gives 1.0.
    """
    values = np.asarray(differences, dtype=np.float64)
    labels = np.asarray(clusters)
    if values.ndim != 1 or labels.shape != values.shape:
        raise ValueError(f"expected (problems,) twice, got {values.shape} and {labels.shape}")
    sums = _cluster_sums(values[:, None], labels)[:, 0]
    scale = np.abs(values).sum()
    sums = sums[np.abs(sums) > 1e-12 * scale]
    if not sums.size:
        return 1.0
    # The same pattern summed in another order must count as a tie.
    reached = np.abs(sums.sum()) - 1e-9 * scale
    if sums.size <= _EXACT_CLUSTERS:
        patterns = np.arange(2**sums.size)[:, None] >> np.arange(sums.size) & 1
        return float(np.mean(_flipped(patterns, sums) >= reached))
    generator = np.random.default_rng(seed)
    hits = 0
    for start, stop in _chunks(draws, sums.size):
        random = generator.integers(0, 256, size=(stop - start, -(-sums.size // 8)), dtype=np.uint8)
        signs = np.unpackbits(random, axis=1, count=sums.size)
        hits += int(np.count_nonzero(_flipped(signs, sums) >= reached))
    return (1 + hits) / (1 + draws)


def _flipped(patterns: npt.NDArray[np.generic], sums: Floats) -> Floats:
    """|sum of s_j * sums_j| per row, where s_j is +1 for a bit set and -1 for a bit clear."""
    totals: Floats = np.abs(2 * (patterns.astype(np.float64) @ sums) - sums.sum())
    return totals


def _cluster_sums(values: Floats, labels: npt.NDArray[np.generic]) -> Floats:
    """Column sums of (problems, c) within each cluster, (clusters, c), clusters in sorted order."""
    names, index = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, index, values)
    return sums


def _chunks(draws: int, width: int) -> list[tuple[int, int]]:
    """Row ranges of a (draws, width) matrix that keep at most `_CHUNK` entries in memory."""
    rows = max(1, _CHUNK // width)
    return [(start, min(start + rows, draws)) for start in range(0, draws, rows)]
