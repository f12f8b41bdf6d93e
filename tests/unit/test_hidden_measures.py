"""Likeness of hidden states and paths of checkpoints: laws, the published formulas, and other libraries."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine

from rlheals_ray.evaluation.hidden_measures import (
    FEWEST,
    POOLED,
    likenesses,
    linear_cka,
    mean_cosine,
    median_bandwidth,
    mmd2,
    paths,
)

Floats = npt.NDArray[np.float64]
seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(size=shape)


def orthogonal(seed: int, d: int) -> Floats:
    return np.linalg.qr(normal(seed, d, d))[0]


def related(seed: int, n: int = 20, d: int = 7) -> tuple[Floats, Floats]:
    """Two sets of states that have something, but not everything, in common."""
    x = normal(seed, n, d)
    return x, x @ normal(seed + 1, d, d + 2) + 2 * normal(seed + 2, n, d + 2)


# --- CKA


@given(seeds, st.integers(5, 30), st.integers(1, 40), st.floats(1e-3, 1e3))
@settings(max_examples=50, deadline=None)
def test_cka_is_one_for_the_same_states_turned_scaled_and_shifted(
    seed: int, n: int, d: int, scale: float
) -> None:
    x = normal(seed, n, d)
    assert linear_cka(x, scale * x @ orthogonal(seed + 1, d) + normal(seed + 2, d)) == pytest.approx(1)


@given(seeds, st.floats(1e-3, 1e3))
@settings(max_examples=50, deadline=None)
def test_cka_does_not_see_rotations_scales_or_sides(seed: int, scale: float) -> None:
    x, y = related(seed)
    value = linear_cka(x, y)
    assert value is not None and value < 1
    assert linear_cka(x @ orthogonal(seed, 7), scale * y + 3) == pytest.approx(value, rel=1e-6)
    assert linear_cka(y, x) == pytest.approx(value)


def hsic_1(k: Floats, other: Floats) -> float:
    """Song et al. 2012, eq. 5, letter by letter."""
    n = len(k)
    k, other = k - np.diag(np.diag(k)), other - np.diag(np.diag(other))
    one = np.ones(n)
    return (
        np.trace(k @ other)
        + (one @ k @ one) * (one @ other @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * one @ k @ other @ one
    ) / (n * (n - 3))


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_cka_is_the_ratio_of_unbiased_hsics(seed: int) -> None:
    x, y = related(seed)
    k, other = x @ x.T, y @ y.T
    expected = hsic_1(k, other) / np.sqrt(hsic_1(k, k) * hsic_1(other, other))
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-8)


def kornblith(x: Floats, y: Floats) -> float:
    """The biased CKA of Kornblith et al. 2019, section 3."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def test_cka_is_kornblith_s_for_many_prompts_and_free_of_its_bias_for_few() -> None:
    x, y = related(0, n=1000)
    assert linear_cka(x, y) == pytest.approx(kornblith(x, y), abs=1e-2)
    unrelated = [(normal(seed, 16, 64), normal(seed + 1000, 16, 64)) for seed in range(200)]
    found = np.array([linear_cka(x, y) for x, y in unrelated], dtype=float)
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(len(found))
    assert min(kornblith(x, y) for x, y in unrelated) > 0.5


def test_states_that_are_the_same_for_every_prompt_have_no_cka() -> None:
    constant = np.tile(normal(0, 5), (8, 1)) * 1e6
    assert linear_cka(constant, normal(1, 8, 5)) is None
    assert linear_cka(normal(1, 8, 5), constant) is None
    with pytest.raises(ValueError, match="at least 4"):
        linear_cka(normal(0, 3, 2), normal(1, 3, 2))


# --- MMD


def k(x: Floats, y: Floats, bandwidth: float) -> float:
    return float(np.exp(-np.sum((x - y) ** 2) / bandwidth))


@given(seeds, st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_mmd_is_the_u_statistic_over_pairs_of_prompts(seed: int, bandwidth: float) -> None:
    x, y = normal(seed, 9, 3), normal(seed + 1, 9, 3) + 1
    total = 0.0
    for i in range(9):
        for j in range(9):
            if i != j:
                total += k(x[i], x[j], bandwidth) + k(y[i], y[j], bandwidth)
                total -= k(x[i], y[j], bandwidth) + k(x[j], y[i], bandwidth)
    assert mmd2(x, y, bandwidth) == pytest.approx(total / (9 * 8), abs=1e-12)


def test_mmd_is_zero_in_expectation_for_two_halves_of_one_sample_and_positive_for_two_samples() -> None:
    halves = np.array([mmd2(normal(s, 20, 4), normal(s + 1000, 20, 4), 8.0) for s in range(200)])
    assert abs(halves.mean()) < 4 * halves.std() / np.sqrt(len(halves))
    assert (halves < 0).any(), "an unbiased estimate of zero falls on both sides"
    # N(0, I) and N(1, I) in d = 4 dimensions, ‖δ‖² = 4: 2 (1 + 4/b)^(−d/2) (1 − exp(−‖δ‖² / (b + 4))), b = 8.
    exact = 2 * 1.5**-2 * (1 - np.exp(-1 / 3))
    assert mmd2(normal(0, 300, 4), normal(1, 300, 4) + 1, 8.0) == pytest.approx(exact, rel=0.2)


def test_mmd_is_not_biased_by_prompts_that_both_checkpoints_share() -> None:
    """States of one prompt go together; that alone is no difference of distribution."""
    found = np.array(
        [mmd2(x, x + 0.1 * normal(s + 1000, 20, 4), 8.0) for s in range(200) for x in [normal(s, 20, 4)]]
    )
    # Noise of variance 0.01 on 1 is a true, tiny difference; k(x_i, y_i) taken in would give −0.06.
    assert abs(found.mean()) < 2e-3


def test_equal_states_are_at_no_distance() -> None:
    x = normal(0, 12, 5)
    assert mmd2(x, x, 3.0) == pytest.approx(0, abs=1e-15)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_the_bandwidth_is_the_median_squared_distance(seed: int) -> None:
    x = normal(seed, 12, 3)
    distances = [np.sum((x[i] - x[j]) ** 2) for i in range(12) for j in range(i)]
    assert median_bandwidth(x) == pytest.approx(np.median(distances))


def test_many_states_are_thinned_for_the_bandwidth_the_same_way_every_time() -> None:
    x = normal(0, POOLED + 500, 2)
    value = median_bandwidth(x)
    assert value == median_bandwidth(x) != median_bandwidth(x, seed=1)
    assert value == pytest.approx(4 * np.log(2), rel=0.05)  # ‖x − y‖² / 2 is χ² of two degrees of freedom
    assert median_bandwidth(np.ones((5, 3))) is None


# --- cosine, and all of them


def test_cosine_is_the_mean_over_prompts_without_centring() -> None:
    x, y = normal(0, 6, 4), normal(1, 6, 4)
    assert mean_cosine(x, y) == pytest.approx(1 - np.mean([cosine(a, b) for a, b in zip(x, y, strict=True)]))
    assert mean_cosine(x, 3 * x) == pytest.approx(1)
    assert mean_cosine(x + 100, y + 100) > 0.99


def test_all_pairs_share_one_bandwidth() -> None:
    states = np.stack([normal(seed, 10, 3) * (1 + seed) for seed in range(3)]).astype(np.float32)
    bandwidth = median_bandwidth(states.reshape(-1, 3))
    assert bandwidth is not None
    for (a, b), found in zip([(0, 1), (2, 1)], likenesses(states, [(0, 1), (2, 1)]), strict=True):
        assert found == (
            linear_cka(states[a], states[b]),
            mmd2(states[a], states[b], bandwidth),
            mean_cosine(states[a], states[b]),
        )


def test_constant_layers_have_a_cosine_only() -> None:
    found = likenesses(np.ones((2, 8, 4)), [(0, 1)])[0]
    assert (found.cka, found.mmd2) == (None, None)
    assert found.cosine == pytest.approx(1)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_prompts_leave_out_what_they_do_not_define(n: int) -> None:
    found = likenesses(normal(0, 2, n, 5), [(0, 1)])[0]
    assert found.cka is None
    assert (found.mmd2 is None) == (n < 2)
    assert -1 <= found.cosine <= 1


# --- paths


def test_pca_is_that_of_the_singular_value_decomposition() -> None:
    x = normal(0, 15, 6) * np.array([9, 5, 1, 1, 1, 1]) + 50
    found = paths(x)
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.pca), np.abs(u[:, :2] * s[:2]), atol=1e-9)
    np.testing.assert_allclose(found.shares, s[:2] ** 2 / np.sum(s**2))
    np.testing.assert_array_equal(paths(x).tsne, found.tsne)
    assert np.isfinite(found.tsne).all()


def test_two_clusters_of_checkpoints_stay_apart_in_tsne() -> None:
    found = paths(np.concatenate([normal(0, 12, 5), normal(1, 12, 5) + 20])).tsne
    within = max(np.ptp(found[:12], axis=0).max(), np.ptp(found[12:], axis=0).max())
    assert np.linalg.norm(found[:12].mean(0) - found[12:].mean(0)) > within / 2


@pytest.mark.parametrize("count", [1, 2, 3, FEWEST - 1])
def test_few_checkpoints_have_fewer_coordinates(count: int) -> None:
    found = paths(normal(0, count, 6))
    assert np.isnan(found.tsne).all()
    known = min(2, count - 1)
    assert np.isfinite(found.pca[:, :known]).all() and np.isnan(found.pca[:, known:]).all()
    assert np.isfinite(found.shares[:known]).all() and np.isnan(found.shares[known:]).all()


def test_checkpoints_that_do_not_differ_have_no_path() -> None:
    found = paths(np.tile(normal(0, 6), (12, 1)))
    assert np.isnan(found.pca).all() and np.isnan(found.shares).all() and np.isnan(found.tsne).all()
