"""The split of the probe problems, and the peak chosen on one half and reported on the other."""

from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlheals_ray.evaluation.peak import ood_peak, split_halves

law = settings(deadline=None)  # other work on the machine must not fail a law
worlds = st.lists(st.integers(0, 15), min_size=1, max_size=60)


@law
@given(labels=worlds, order=st.randoms(use_true_random=False))
def test_halves_are_whole_clusters_balanced_and_the_same_in_any_order(
    labels: list[int], order: Random
) -> None:
    problems = [f"p{i}" for i in range(len(labels))]
    clusters = {problem: f"c{label}" for problem, label in zip(problems, labels, strict=True)}
    select, report = split_halves(problems, clusters)
    assert np.array_equal(select, ~report)
    sides = {half: {clusters[p] for p, inside in zip(problems, half_mask, strict=True) if inside}
             for half, half_mask in (("select", select), ("report", report))}  # fmt: skip
    assert not sides["select"] & sides["report"]
    assert abs(int(select.sum()) - int(report.sum())) <= max(Counter(labels).values())
    shuffled = problems.copy()
    order.shuffle(shuffled)
    again, _ = split_halves(shuffled, clusters)
    assert dict(zip(shuffled, again, strict=True)) == dict(zip(problems, select, strict=True))


def test_a_problem_without_a_cluster_is_named() -> None:
    with pytest.raises(ValueError, match="'q'"):
        split_halves(["p", "q"], {"p": "a"})


def test_the_peak_is_chosen_on_one_half_and_read_on_the_other() -> None:
    select, report = np.array([1, 1, 0, 0], bool), np.array([0, 0, 1, 1], bool)
    curves = {0: [0, 0, 0, 0], 6: [1, 1, 1, 0], 30: [1, 0, 1, 1]}
    assert ood_peak(curves, select, report) == (6, 0.5)
    assert ood_peak(curves, report, select) == (30, 0.5)


def test_ties_go_to_the_earliest_step_whatever_the_order_of_summation() -> None:
    half = np.array([True, False])
    curves = {8: np.array([0.1 + 0.2, 0.0]), 4: np.array([0.3, 1.0]), 6: np.array([0.3, 0.0])}
    assert ood_peak(curves, half, ~half) == (4, 1.0)


def test_no_winners_curse() -> None:
    """Of 12 equally good steps the best looks better than it is on the half that chose it only."""
    random = np.random.default_rng(0)
    problems = [f"p{i}" for i in range(60)]
    select, report = split_halves(problems, {problem: problem for problem in problems})
    chosen, reported = [], []
    for _ in range(400):
        curves = {step: random.random(60) < 0.5 for step in range(12)}
        peak = ood_peak(curves, select, report)
        chosen.append(curves[peak.step][select].mean())
        reported.append(peak.accuracy)
    error = np.sqrt(0.25 / 30 / 400)
    assert np.mean(reported) == pytest.approx(0.5, abs=4 * error)
    assert np.mean(chosen) > 0.5 + 20 * error


def test_a_peak_needs_steps_and_two_halves() -> None:
    nothing, everything = np.zeros(2, bool), np.ones(2, bool)
    with pytest.raises(ValueError, match="halves"):
        ood_peak({0: [1, 0]}, everything, nothing)
    with pytest.raises(ValueError, match="step"):
        ood_peak({}, everything, everything)
