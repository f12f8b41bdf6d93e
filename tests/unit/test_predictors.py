"""Predictors of accuracy: ρ is Spearman's, intervals resample trunks and branches, nothing predicts itself."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlheals_ray import tables
from rlheals_ray.evaluation.predictors import (
    FEWEST,
    predictor_rows,
    rho_interval,
    scored_checkpoints,
    spearman,
)
from rlheals_ray.evaluation.quantities import quantities
from tests.report_tables import empty, nano_like, rows_of

points = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3)), min_size=3, max_size=25
).filter(
    lambda many: (
        len({x for x, _, times in many if times}) > 1 and len({y for _, y, times in many if times}) > 1
    )
)


@given(points)
def test_rho_of_a_resample_is_scipys_on_the_points_written_out(many: list[tuple[int, int, int]]) -> None:
    x, y, times = (np.array(column, dtype=np.float64) for column in zip(*many, strict=True))
    taken = np.repeat(np.arange(len(many)), times.astype(int))
    expected = stats.spearmanr(x[taken], y[taken]).statistic
    assert spearman(x, y, times[None, :])[0] == pytest.approx(expected, abs=1e-12)


def test_a_constant_side_has_no_rho() -> None:
    assert np.isnan(spearman(np.ones(5), np.arange(5.0), np.ones((1, 5)))[0])


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_the_interval_depends_on_the_data_and_the_seed_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, clusters = rng.normal(size=30), rng.normal(size=30), list(np.repeat(np.arange(10), 3))
    first = rho_interval(x, y, clusters, draws=200, seed=1)
    assert first == rho_interval(x, y, clusters, draws=200, seed=1)
    order = rng.permutation(30)
    assert rho_interval(x[order], y[order], [clusters[i] for i in order], draws=200, seed=1) == first


def test_copies_within_a_cluster_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=12), rng.normal(size=12)
    once = rho_interval(x, y, range(12))
    copied = rho_interval(np.repeat(x, 9), np.repeat(y, 9), np.repeat(np.arange(12), 9).tolist())
    assert once == pytest.approx(copied)


def test_too_few_checkpoints_or_clusters_have_no_interval() -> None:
    values = np.arange(FEWEST, dtype=np.float64)
    assert rho_interval(values[1:], values[1:], range(FEWEST - 1)) == (None, None)
    assert rho_interval(values, values, [0, 1, 2, 3] * 2) == (None, None)
    assert rho_interval(values, values, range(FEWEST)) == pytest.approx((1, 1))


def test_rows_fit_the_table_and_the_largest_comes_first() -> None:
    rows = predictor_rows(nano_like())
    assert tables.table("predictors", rows).num_rows == len(rows) > 10
    for rule in ("ood", "id"):
        sizes = [abs(row["rho"] or 0) for row in rows if row["rule"] == rule]
        assert sizes == sorted(sizes, reverse=True)
    assert ("ood", "accuracy_ood") not in {(row["rule"], row["quantity"]) for row in rows}


@pytest.mark.parametrize("loss", ["train_loss", "id_loss", "ood_loss"])
def test_each_loss_of_sft_is_held_against_ood_accuracy(loss: str) -> None:
    """ρ over the SFT checkpoints that have the loss."""
    of = nano_like()
    accuracy = {
        (row["seed"], row["sft_step"]): row["acc_1"]
        for row in of["scores"].to_pylist()
        if (row["stage"], row["rule"]) == ("sft", "ood")
    }
    pairs = [
        (row[loss], accuracy[row["seed"], row["step"]])
        for row in of["sft"].to_pylist()
        if row[loss] is not None and (row["seed"], row["step"]) in accuracy
    ]
    (found,) = (row for row in predictor_rows(of) if (row["quantity"], row["rule"]) == (loss, "ood"))
    assert found["checkpoints"] == len(pairs) > 20
    assert found["rho"] == pytest.approx(stats.spearmanr(*zip(*pairs, strict=True)).statistic)


@pytest.mark.parametrize("of", [{}, empty()])
def test_nothing_measured_predicts_nothing(of: dict[str, Any]) -> None:
    assert predictor_rows(of) == []


def test_weights_are_read_at_the_middle_k_and_norms_add_up_over_matrices() -> None:
    def row(a: str, b: str, matrix: str, k: int, angle: float, norm: float) -> dict[str, Any]:
        angles = {"angle_u_mean": angle, "angle_v_mean": angle + 0.2}
        return {"seed": 0, "a": a, "b": b, "matrix": matrix, "k": k, "delta_norm": norm, **angles}

    peak, late, end = (
        "sft/seed=0/step=000006",
        "sft/seed=0/step=000060",
        "rl/seed=0/sft_step=000060/rl_step=000030",
    )
    spectra = rows_of(
        "spectra",
        [
            row("base", late, "m", 8, 9.0, 3.0),
            row("base", late, "m", 16, 0.1, 3.0),
            row("base", late, "n", 16, 0.3, 4.0),
            row("base", late, "m", 32, 9.0, 3.0),
            row(peak, late, "m", 16, 0.5, 1.0),
            row(late, end, "m", 16, 7.0, 7.0),
        ],
    )
    found = quantities({"spectra": spectra})
    assert found["angle_from_base"] == {late: pytest.approx(0.3), "base": 0.0}
    assert found["delta_norm_from_base"] == {late: pytest.approx(5.0), "base": 0.0}
    # The branch's own start is no peak, and the peak is not measured from itself.
    assert found["angle_from_peak"] == {late: pytest.approx(0.6)}


def test_likeness_to_a_branch_s_own_start_is_not_likeness_to_the_peak() -> None:
    def row(a: str, b: str, cka: float) -> dict[str, Any]:
        return {"seed": 0, "a": a, "b": b, "rule": "ood", "layer": 1, "cka": cka}

    peak, late, end = (
        "sft/seed=0/step=000006",
        "sft/seed=0/step=000060",
        "rl/seed=0/sft_step=000060/rl_step=000030",
    )
    rows = [row("base", late, 0.2), row(peak, late, 0.4), row(peak, end, 0.6), row(late, end, 0.9)]
    found = quantities({"similarity": rows_of("similarity", rows)})
    assert found == {"cka_from_base_ood": {late: 0.2}, "cka_from_peak_ood": {late: 0.4, end: 0.6}}


def test_updates_count_from_the_peak_only_where_rl_started_past_it() -> None:
    def row(a: str, b: str, c: str, cosine: float) -> dict[str, Any]:
        return {"seed": 0, "a": a, "b": b, "c": c, "matrix": "m", "k": 8, "cosine": cosine}

    peak, early, late = (f"sft/seed=0/step={step:06d}" for step in (6, 4, 60))
    ends = [f"rl/seed=0/sft_step={step:06d}/rl_step=000030" for step in (4, 60)]
    rows = [row(peak, early, ends[0], -0.9), row(peak, late, ends[1], -0.2), row("base", early, ends[0], 0.1)]
    found = quantities({"updates": rows_of("updates", rows)})
    assert found == {"update_cosine_from_peak": {ends[1]: -0.2}, "update_cosine_from_base": {ends[0]: 0.1}}


def test_the_base_counts_once() -> None:
    def score(checkpoint: str, stage: str, step: int | None) -> dict[str, Any]:
        place = {"seed": None if stage == "base" else 0, "sft_step": step, "rl_step": 0}
        return {"checkpoint": checkpoint, "stage": stage, "rule": "ood", "n": 9, "acc_1": 0.5, **place}

    start, later = score("sft/seed=0/step=000000", "sft", 0), score("sft/seed=0/step=000004", "sft", 4)
    scores = [score("base", "base", None), start, later, {**later, "stage": "rl"}]
    found = scored_checkpoints({"scores": rows_of("scores", scores)})
    assert [one.checkpoint for one in found] == ["base", "sft/seed=0/step=000004"]
    alone = scored_checkpoints({"scores": rows_of("scores", scores[1:])})
    assert [one.checkpoint for one in alone] == ["sft/seed=0/step=000000", "sft/seed=0/step=000004"]
