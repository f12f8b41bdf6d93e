"""RL against controls of equal compute: the boundary's statistics, and no verdict out of noise."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy import stats

from rlheals_ray import tables
from rlheals_ray.evaluation.controls import control_rows
from rlheals_ray.evaluation.outcomes import first_attempts
from rlheals_ray.evaluation.statistics import cluster_bootstrap, percentile_interval
from tests.simulated_maps import simulated_map

CONTROL = "continued_sft"
EQUAL = {(step, budget): 0.5 for step in (4, 15, 30, 60) for budget in (15, 30)}


def test_a_cell_by_scipy_and_by_the_bootstrap_of_the_difference() -> None:
    made = simulated_map(np.random.default_rng(1), {(4, 30): 0.5, (60, 30): 2.0}, controls=(CONTROL,))
    rows = control_rows(*made, "plain", "ppo", CONTROL)
    tables.table("controls", rows)
    sides = ("rl", f"control/algorithm={CONTROL}")
    names = [f"{side}/seed={seed}/sft_step=60/rl_step=30" for side in sides for seed in range(3)]
    problems, solved = first_attempts(made.episodes, "ood", names)
    change = solved[:, :3].astype(float) - solved[:, 3:]
    for seed in range(3):
        (row,) = [r for r in rows if (r["seed"], r["sft_step"]) == (seed, 60)]
        gained, lost = (int((change[:, seed] == sign).sum()) for sign in (1, -1))
        assert row["p"] == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
        assert row["difference_seed_low"] is None
    (row,) = [r for r in rows if r["scope"] == "pooled" and r["sft_step"] == 60]
    by_seed = change.mean(axis=0)
    assert (
        row["difference"]
        == pytest.approx(row["acc_rl"] - row["acc_control"])
        == pytest.approx(by_seed.mean())
    )
    expected = stats.t.interval(0.95, 2, by_seed.mean(), stats.sem(by_seed))
    assert (row["difference_seed_low"], row["difference_seed_high"]) == pytest.approx(expected)
    labels = [made.clusters[problem] for problem in problems]
    expected = percentile_interval(
        cluster_bootstrap(change.mean(axis=1)[:, None], labels, draws=4000, seed=5)[:, 0]
    )
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(expected, abs=0.01)


def test_q_is_benjamini_hochberg_over_the_pooled_cells_of_one_control() -> None:
    made = simulated_map(np.random.default_rng(2), EQUAL, controls=(CONTROL, "rejection_sft"))
    pooled = [r for r in control_rows(*made, "plain", "ppo", CONTROL, draws=50) if r["scope"] == "pooled"]
    assert [r["q"] for r in pooled] == pytest.approx(stats.false_discovery_control([r["p"] for r in pooled]))
    assert len(pooled) == len(EQUAL)


def test_a_cell_that_lacks_its_control_has_no_row_and_a_seed_that_lacks_one_is_not_pooled() -> None:
    made = simulated_map(np.random.default_rng(3), EQUAL, controls=(CONTROL,))
    gone = ((0, 4), (0, 15), (1, 15), (2, 15))
    lost = [f"control/algorithm={CONTROL}/seed={seed}/sft_step={step}/rl_step=30" for seed, step in gone]
    keep = pc.invert(pc.is_in(made.scores["checkpoint"], pa.array(lost)))
    rows = control_rows(
        made.episodes, made.scores.filter(keep), made.clusters, "plain", "ppo", CONTROL, draws=50
    )
    cells = {(r["seed"], r["sft_step"]) for r in rows if r["rl_step"] == 30}
    assert cells == {(s, step) for s in (0, 1, 2, None) for step in (4, 15, 30, 60)} - {
        (0, 4), (0, 15), (1, 15), (2, 15), (None, 15),
    }  # fmt: skip


def test_without_controls_there_are_no_rows() -> None:
    made = simulated_map(np.random.default_rng(4), EQUAL)
    assert control_rows(*made, "plain", "ppo", CONTROL) == []


def test_fewer_than_5_percent_of_maps_without_a_difference_claim_one_for_rl() -> None:
    """RL and its control raise accuracy alike, by other clusters of problems. 200 maps of 8 cells and three seeds."""
    random = np.random.default_rng(14)
    maps, better = 200, 0
    for _ in range(maps):
        rows = control_rows(
            *simulated_map(random, EQUAL, controls=(CONTROL,)), "plain", "ppo", CONTROL, draws=20
        )
        better += any(row["verdict"] == "better" for row in rows if row["scope"] == "pooled")
    assert better / maps < 0.05
