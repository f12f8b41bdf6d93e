"""Intervals and paired tests, against statsmodels, scipy and the laws they must obey."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from rlheals_ray.evaluation.statistics import (
    benjamini_hochberg,
    cluster_bootstrap,
    cluster_sign_flip_p,
    mcnemar_exact,
    percentile_interval,
    ratio_interval,
    t_interval,
    wilson,
)

law = settings(deadline=None, max_examples=60)  # other work on the machine must not fail a law
counts = st.integers(0, 60)
probabilities = st.floats(0, 1)
changes = st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=12)


@law
@given(successes=counts, failures=counts, level=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_agrees_with_statsmodels(successes: int, failures: int, level: float) -> None:
    n = successes + failures
    if n == 0:
        assert wilson(0, 0) == (0.0, 1.0)
        return
    expected = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    assert wilson(successes, n, level) == pytest.approx(expected, abs=1e-12)


@law
@given(successes=counts, failures=counts)
def test_wilson_holds_the_estimate_and_mirrors(successes: int, failures: int) -> None:
    n = successes + failures
    low, high = wilson(successes, n)
    assert 0 <= low <= (successes / n if n else 0.5) <= high <= 1
    assert wilson(failures, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize("successes, n", [(-1, 3), (4, 3)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


@law
@given(gained=counts, lost=counts)
def test_mcnemar_agrees_with_statsmodels(gained: int, lost: int) -> None:
    if gained + lost:
        expected = mcnemar([[7, gained], [lost, 9]], exact=True).pvalue
        assert mcnemar_exact(gained, lost) == pytest.approx(expected, abs=1e-12)
    assert mcnemar_exact(gained, lost) == mcnemar_exact(lost, gained)


def test_mcnemar_by_hand() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(10, 0) == pytest.approx(2 / 2**10)
    assert mcnemar_exact(1, 4) == pytest.approx(2 * (1 + 5) / 2**5)
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(-1, 2)


@law
@given(p_values=st.lists(probabilities, min_size=1, max_size=20))
def test_benjamini_hochberg_agrees_with_statsmodels(p_values: list[float]) -> None:
    expected = multipletests(p_values, method="fdr_bh")[1]
    assert benjamini_hochberg(p_values) == pytest.approx(expected, abs=1e-12)


@law
@given(p_values=st.lists(st.one_of(st.just(float("nan")), probabilities), max_size=12))
def test_a_nan_is_no_test_in_a_family(p_values: list[float]) -> None:
    given_p = np.array(p_values)
    q_values = benjamini_hochberg(given_p)
    tested = ~np.isnan(given_p)
    assert np.array_equal(np.isnan(q_values), ~tested)
    assert np.array_equal(q_values[tested], benjamini_hochberg(given_p[tested]))
    assert (q_values[tested] >= given_p[tested]).all()


@law
@given(values=st.lists(st.floats(-1, 1), min_size=2, max_size=6))
def test_t_interval_agrees_with_statsmodels(values: list[float]) -> None:
    expected = DescrStatsW(values).tconfint_mean()
    assert t_interval(values) == pytest.approx(expected, abs=1e-9)


def test_t_interval_needs_two_seeds() -> None:
    assert np.isnan(t_interval([0.3])).all()
    assert np.isnan(t_interval([])).all()


def test_singleton_clusters_are_the_ordinary_bootstrap() -> None:
    values = np.random.default_rng(5).normal(size=(80, 1))
    ours = percentile_interval(cluster_bootstrap(values, np.arange(80), draws=20_000)[:, 0])
    theirs = scipy.stats.bootstrap((values[:, 0],), np.mean, n_resamples=20_000, method="percentile", rng=6)
    # Two independent runs of 20,000 draws: a quantile's Monte Carlo error is about 2 % of the width.
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.05 * width)


@law
@given(copies=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_copies_of_a_problem_add_no_information(copies: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(20, 3))
    once = cluster_bootstrap(values, np.arange(20), draws=50, seed=seed)
    copied = cluster_bootstrap(
        values.repeat(copies, axis=0), np.arange(20).repeat(copies), draws=50, seed=seed
    )
    assert copied == pytest.approx(once, abs=1e-12)


def test_draws_are_joint_over_columns_and_ignore_the_order_of_rows() -> None:
    random = np.random.default_rng(0)
    solved = (random.random((90, 2)) < 0.4).astype(float)
    clusters = random.integers(0, 25, 90).astype(str)
    values = np.column_stack([solved, solved[:, 0] - solved[:, 1]])
    drawn = cluster_bootstrap(values, clusters, draws=300)
    assert drawn.shape == (300, 3) and drawn.dtype == np.float64
    assert drawn[:, 2] == pytest.approx(drawn[:, 0] - drawn[:, 1], abs=1e-12)
    order = random.permutation(90)
    assert np.array_equal(cluster_bootstrap(values[order], clusters[order], draws=300), drawn)
    ratios = cluster_bootstrap(values, clusters, draws=300, statistic=lambda means: means[:, 0] / means[:, 1])
    assert np.array_equal(ratios, drawn[:, 0] / drawn[:, 1])


def test_every_draw_is_a_mean_over_whole_clusters() -> None:
    # Clusters of 1 and 3 problems, two drawn: both twice the first, one of each, or twice the second.
    drawn = cluster_bootstrap([[1.0], [0.0], [0.0], [0.0]], ["a", "b", "b", "b"], draws=400)
    shares = {value: float(np.mean(drawn == value)) for value in (1.0, 0.25, 0.0)}
    assert sum(shares.values()) == 1
    assert shares[0.25] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("values, clusters", [([1.0], ["a"]), ([[1.0]], ["a", "b"]), (np.empty((0, 2)), [])])
def test_bootstrap_refuses_what_does_not_line_up(values: object, clusters: list[str]) -> None:
    with pytest.raises(ValueError, match="expected"):
        cluster_bootstrap(values, clusters)  # type: ignore[arg-type]


def test_ratio_interval_agrees_with_fieller() -> None:
    """For normal parts the bounds solve (a - r b)^2 = z^2 (s_a^2 - 2 r s_ab + r^2 s_b^2); Fieller 1954."""
    mean, covariance = np.array([0.3, 0.6]), np.array([[0.010, 0.004], [0.004, 0.016]])
    parts = np.random.default_rng(3).multivariate_normal(mean, covariance, size=200_000)
    z2 = scipy.stats.norm.ppf(0.975) ** 2
    quadratic = [
        mean[1] ** 2 - z2 * covariance[1, 1],
        -2 * (mean[0] * mean[1] - z2 * covariance[0, 1]),
        mean[0] ** 2 - z2 * covariance[0, 0],
    ]
    assert ratio_interval(parts[:, 0], parts[:, 1]) == pytest.approx(sorted(np.roots(quadratic)), abs=0.01)


def test_a_vanishing_denominator_widens_the_ratio_and_never_turns_its_sign() -> None:
    numerator, denominator = np.full(2000, 0.2), np.full(2000, 0.4)
    denominator[:40] = -0.01
    assert ratio_interval(numerator, denominator) == (0.5, 0.5)
    denominator[:200] = 0.0
    assert ratio_interval(numerator, denominator) == (0.5, float("inf"))
    assert ratio_interval(0 * numerator, denominator) == (0.0, 0.0)


@law
@given(differences=changes)
def test_sign_flips_of_single_problems_are_mcnemar(differences: list[int]) -> None:
    p = cluster_sign_flip_p(differences, np.arange(len(differences)))
    assert p == pytest.approx(mcnemar_exact(differences.count(1), differences.count(-1)), abs=1e-12)


@law
@given(data=st.lists(st.tuples(st.integers(-3, 3), st.sampled_from("abcdefg")), min_size=2, max_size=20))
def test_sign_flips_agree_with_scipy(data: list[tuple[int, str]]) -> None:
    differences, clusters = [d / 3 for d, _ in data], [c for _, c in data]
    names = sorted(set(clusters))
    sums = [sum(d for d, c in data if c == name) for name in names]
    p = cluster_sign_flip_p(differences, clusters)
    assert p == cluster_sign_flip_p([-d for d in differences], clusters)
    if len(names) > 1:
        exact = scipy.stats.permutation_test(
            (np.array(sums),), np.sum, permutation_type="samples", alternative="greater", n_resamples=np.inf
        )
        tail = np.mean(np.abs(exact.null_distribution) >= abs(sum(sums)) - 1e-9)
        assert p == pytest.approx(tail, abs=1e-12)


def test_sampled_sign_flips_approach_the_exact_tail() -> None:
    # 30 clusters that changed by one: the exact tail is McNemar's.
    differences = np.array([1.0] * 20 + [-1.0] * 10)
    exact = mcnemar_exact(20, 10)
    p = cluster_sign_flip_p(differences, np.arange(30), draws=40_000)
    assert p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 40_000))


def test_no_change_is_no_evidence() -> None:
    assert cluster_sign_flip_p([0.0, 0.0], ["a", "b"]) == 1.0
    assert cluster_sign_flip_p([1.0, -1.0], ["a", "a"]) == 1.0
    assert cluster_sign_flip_p(np.ones(50), np.arange(50)) == 1 / 10_000
