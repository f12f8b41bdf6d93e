"""Likeness of two checkpoints' hidden states on the same prompts, and the path of many checkpoints.

States are (n, d): row i is the state of prompt i. Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

POOLED = 2000
"""Most states from which a bandwidth is taken."""
FEWEST = 10
"""Checkpoints below which t-SNE is not drawn: its neighbourhoods would be the whole."""
FEWEST_PROMPTS = 4
"""Prompts below which the unbiased HSIC is not defined."""
CONSTANT = 1e-9
"""Spread, relative to the states' size, below which states are the same for every prompt."""


def linear_cka(a: npt.ArrayLike, b: npt.ArrayLike) -> float | None:
    """Linear CKA of states (n, d_a) and (n, d_b), with the unbiased HSIC: at most 1, 0 in expectation for
    independent states, and so possibly a little below 0. None where a side is constant. Raises ValueError for n < 4.

    CKA: Kornblith et al. 2019 (arXiv 1905.00414), HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) of K = XXᵀ, L = YYᵀ. Their
    HSIC is biased, towards 1 as d/n grows, and here d exceeds n in all but the smallest models; so HSIC₁ of Song et
    al. 2012 (JMLR 13, eq. 5) instead, as Nguyen et al. 2021 (arXiv 2010.15327) do. It is the inner product of the
    U-centred K and L (Székely & Rizzo 2014).
    """
    left, right = _u_centred_gram(a), _u_centred_gram(b)
    if left is None or right is None:
        return None
    # The factor 1 / n(n − 3) of each HSIC cancels.
    return float((left * right).sum() / np.sqrt((left**2).sum() * (right**2).sum()))


def _u_centred_gram(states: npt.ArrayLike) -> Floats | None:
    x = np.asarray(states, dtype=np.float64)
    n = len(x)
    if n < FEWEST_PROMPTS:
        raise ValueError(f"the unbiased HSIC needs at least {FEWEST_PROMPTS} prompts, got {n}")
    size = np.abs(x).max()
    x = x - x.mean(axis=0)  # changes nothing but rounding: some directions of a transformer have a huge mean
    if np.abs(x).max() <= CONSTANT * size:
        return None
    gram = x @ x.T
    np.fill_diagonal(gram, 0.0)
    sums = gram.sum(axis=0) / (n - 2)
    gram += gram.sum() / ((n - 1) * (n - 2)) - sums[:, None] - sums[None, :]
    np.fill_diagonal(gram, 0.0)
    centred: Floats = gram
    return centred


def median_bandwidth(states: npt.ArrayLike, seed: int = 0) -> float | None:
    """The median squared distance between the states, (m, d), of all checkpoints together (Gretton et al. 2012, 8).

    Of at most POOLED of them, drawn by `seed`. None where they hardly differ, so that no kernel can tell them apart.
    """
    from scipy.spatial.distance import pdist

    x = np.asarray(states, dtype=np.float64)
    if len(x) > POOLED:
        x = x[np.random.default_rng(seed).choice(len(x), POOLED, replace=False)]
    median = float(np.median(pdist(x, "sqeuclidean")))
    return median if median > (CONSTANT * np.abs(x).max()) ** 2 else None


def mmd2(a: npt.ArrayLike, b: npt.ArrayLike, bandwidth: float) -> float:
    """Squared maximum mean discrepancy of paired states (n, d) under k(x, y) = exp(−‖x − y‖² / bandwidth).

    The unbiased U-statistic for pairs (Gretton et al. 2012, JMLR 13, eq. 4): the mean over i ≠ j of k(x_i, x_j) +
    k(y_i, y_j) − k(x_i, y_j) − k(x_j, y_i). It leaves k(x_i, y_i) out, so that x_i and y_i may be of one prompt. Can be
    a little below 0; 0 for equal states, but for rounding.
    """
    from sklearn.metrics.pairwise import rbf_kernel

    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    n, gamma = len(x), 1 / bandwidth
    h = rbf_kernel(x, gamma=gamma) + rbf_kernel(y, gamma=gamma)
    cross = rbf_kernel(x, y, gamma=gamma)
    h -= cross + cross.T
    np.fill_diagonal(h, 0.0)
    return float(h.sum() / (n * (n - 1)))


def mean_cosine(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Mean over prompts of the cosine of x_i and y_i. Not centred: a mean that all states share brings it near 1."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    scale = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return float(np.mean((x * y).sum(axis=1) / scale))


class Likeness(NamedTuple):
    """Of two checkpoints' states; see linear_cka, mmd2 and mean_cosine."""

    cka: float | None
    mmd2: float | None
    cosine: float


def likenesses(states: npt.ArrayLike, pairs: Sequence[tuple[int, int]]) -> list[Likeness]:
    """Of each pair of places in `states`, (m, n, d) of m checkpoints, under one bandwidth for all pairs."""
    x = np.asarray(states)
    bandwidth = median_bandwidth(x.reshape(-1, x.shape[-1]))
    return [
        Likeness(
            linear_cka(x[a], x[b]) if x.shape[1] >= FEWEST_PROMPTS else None,
            None if bandwidth is None or x.shape[1] < 2 else mmd2(x[a], x[b], bandwidth),
            mean_cosine(x[a], x[b]),
        )
        for a, b in pairs
    ]


class Paths(NamedTuple):
    """Where m checkpoints lie in a plane."""

    pca: Floats
    """(m, 2): coordinates along the first two principal components; nan where there are fewer."""
    shares: Floats
    """(2,): the components' shares of the variance; nan likewise."""
    tsne: Floats
    """(m, 2): t-SNE's map, of which only the neighbourhoods mean something; nan below FEWEST checkpoints."""


def paths(means: npt.ArrayLike, seed: int = 0) -> Paths:
    """PCA and t-SNE (van der Maaten & Hinton 2008) of the mean states (m, d) of m checkpoints.

    Perplexity: 30, or a third of the other checkpoints where that is less. Deterministic in `seed`.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    x = np.asarray(means, dtype=np.float64)
    found = Paths(np.full((len(x), 2), np.nan), np.full(2, np.nan), np.full((len(x), 2), np.nan))
    components = min(2, len(x) - 1, x.shape[1])
    if components < 1 or np.ptp(x, axis=0).max() <= CONSTANT * np.abs(x).max():
        return found
    pca = PCA(components, svd_solver="full")
    found.pca[:, :components] = pca.fit_transform(x)
    found.shares[:components] = pca.explained_variance_ratio_
    if len(x) >= FEWEST:
        perplexity = min(30.0, (len(x) - 1) / 3)
        found.tsne[:] = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(x)
    return found
