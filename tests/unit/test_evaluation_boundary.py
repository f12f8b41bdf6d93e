"""The recovery boundary on small tables whose numbers are worked out by hand.

A world is built from patterns: every cluster holds four problems, and a checkpoint that solves `k`
of 4 solves the first k problems of every cluster. All clusters then agree, so any split by cluster
gives the same accuracies and every bootstrap interval has width zero.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rlheals_ray import tables
from rlheals_ray.evaluation.boundary import boundary_rows
from rlheals_ray.evaluation.peak import split_halves

CLUSTERS = 12
Point = tuple[int, int, int]  # seed, SFT step, RL step (-1: the SFT checkpoint itself)


def world(
    fourths: Mapping[Point, int], rule: str = "ood", base: int | None = None
) -> tuple[pa.Table, pa.Table, dict[str, str]]:
    """Episodes, scores and clusters in which checkpoint `point` solves `fourths[point]` of every 4."""
    clusters = {f"{rule}-{c}-{i}": f"c{c}" for c in range(CLUSTERS) for i in range(4)}
    checkpoints = [
        (f"rl/{point}" if point[2] >= 0 else f"sft/{point}", "rl" if point[2] >= 0 else "sft", point, k)
        for point, k in fourths.items()
    ]
    if base is not None:
        checkpoints.append(("base", "base", (-1, 0, -1), base))
    episodes, scores = [], []
    for name, stage, (seed, sft_step, rl_step), k in checkpoints:
        solved = {problem: int(problem.rsplit("-", 1)[1]) < k for problem in clusters}
        episodes += [
            {"checkpoint": name, "rule": rule, "problem_id": problem, "attempts": 1,
             "solved_at": 1 if ok else None, "well_formed": [True], "rewards": [0.0], "answers": [""]}
            for problem, ok in solved.items()
        ]  # fmt: skip
        row: dict[str, Any] = dict.fromkeys(tables.SCORES.names) | {
            "checkpoint": name, "stage": stage, "recipe": None if stage == "base" else "plain",
            "seed": None if stage == "base" else seed, "sft_step": sft_step,
            "rl_step": None if rl_step < 0 else rl_step, "rule": rule, "n": len(clusters),
            "acc_1": k / 4, "engine": "vllm",
        }  # fmt: skip
        scores.append(row)
    return tables.table("episodes", episodes), tables.table("scores", scores), clusters


def with_outcomes(episodes: pa.Table, changes: Mapping[str, Mapping[str, bool]]) -> pa.Table:
    """`episodes` with some outcomes replaced: checkpoint -> problem -> solved at the first attempt."""
    records = episodes.to_pylist()
    for record in records:
        solved = changes.get(record["checkpoint"], {}).get(record["problem_id"])
        if solved is not None:
            record["solved_at"] = 1 if solved else None
    return tables.table("episodes", records)


def rows_of(fourths: Mapping[Point, int], **kwargs: Any) -> list[dict[str, Any]]:
    rows = boundary_rows(*world(fourths, **kwargs), "plain", "ppo")
    tables.table("boundary", rows)  # every column, nothing else, of the right type
    return rows


def pick(rows: list[dict[str, Any]], seed: int | None, sft_step: int, rl_step: int = 30) -> dict[str, Any]:
    (row,) = [r for r in rows if (r["seed"], r["sft_step"], r["rl_step"]) == (seed, sft_step, rl_step)]
    return row


TWO_SEEDS: dict[Point, int] = {
    (0, 4, -1): 4, (0, 60, -1): 1, (0, 60, 30): 3,
    (1, 4, -1): 4, (1, 60, -1): 1, (1, 60, 30): 2,
}  # fmt: skip


def test_one_seed_by_hand() -> None:
    row = pick(rows_of(TWO_SEEDS), 0, 60)
    assert (row["scope"], row["rule"], row["recipe"], row["algorithm"]) == ("seed", "ood", "plain", "ppo")
    assert (row["ood_sft"], row["ood_rl"], row["healing"]) == (0.25, 0.75, 0.5)
    assert (row["healing_low"], row["healing_high"]) == (0.5, 0.5)
    assert (row["healing_seed_low"], row["healing_seed_high"]) == (None, None)
    assert row["p"] == pytest.approx(2 / 2**24)  # 24 problems gained, none lost
    assert row["q"] == row["p"]  # the only cell of its family
    assert row["forgetting"] == 0.75
    assert (row["recovery"], row["recovery_low"], row["recovery_high"]) == pytest.approx((2 / 3,) * 3)
    assert row["verdict"] == "heals"


def test_pooled_by_hand() -> None:
    row = pick(rows_of(TWO_SEEDS), None, 60)
    assert row["scope"] == "pooled"
    assert (row["ood_sft"], row["ood_rl"], row["healing"]) == (0.25, 0.625, 0.375)
    # t with one degree of freedom: 12.7062 times the standard error 0.125 of (0.5, 0.25).
    assert row["healing_seed_low"] == pytest.approx(0.375 - 12.7062 * 0.125, abs=1e-5)
    assert row["healing_seed_high"] == pytest.approx(0.375 + 12.7062 * 0.125, abs=1e-5)
    assert row["p"] == pytest.approx(2 / 2**12)  # 12 clusters, all of them up
    assert (row["forgetting"], row["recovery"]) == (0.75, 0.5)
    assert row["verdict"] == "heals"


def test_q_is_adjusted_within_a_seed_and_within_the_pool() -> None:
    rows = rows_of(TWO_SEEDS | {(0, 4, 30): 4, (1, 4, 30): 4})
    healed, unchanged = pick(rows, 0, 60), pick(rows, 0, 4)
    assert unchanged["p"] == unchanged["q"] == 1.0
    assert healed["q"] == pytest.approx(2 * healed["p"])
    assert pick(rows, None, 60)["q"] == pytest.approx(2 * 2 / 2**12)
    assert unchanged["verdict"] == "unclear"


def test_an_untrained_branch_is_no_test() -> None:
    rows = rows_of(TWO_SEEDS | {(0, 60, 0): 1, (1, 60, 0): 1})
    for seed in (0, 1, None):
        still = pick(rows, seed, 60, 0)
        assert (still["p"], still["q"], still["healing"], still["verdict"]) == (None, None, 0.0, "unclear")
    assert pick(rows, 0, 60)["q"] == pick(rows, 0, 60)["p"]


def test_a_fall_is_harm_and_seeds_that_disagree_are_unclear() -> None:
    harmed = rows_of({(0, 4, -1): 3, (0, 4, 30): 0, (1, 4, -1): 3, (1, 4, 30): 1})
    assert {row["verdict"] for row in harmed} == {"harms"}
    assert pick(harmed, None, 4)["healing"] == -0.625
    two_up: dict[Point, int] = {(seed, 4, -1): 1 for seed in range(3)} | {(0, 4, 30): 4, (1, 4, 30): 3}
    for third, verdict in ((0, "harms"), (1, "unclear")):
        split = rows_of(two_up | {(2, 4, 30): third})
        assert [pick(split, seed, 4)["verdict"] for seed in (1, 2, None)] == ["heals", verdict, "unclear"]
        assert pick(split, None, 4)["q"] < 0.05


def test_a_pool_of_one_seed_follows_that_seed() -> None:
    rows = rows_of({(3, 4, -1): 1, (3, 4, 30): 4})
    pooled = pick(rows, None, 4)
    assert (pooled["verdict"], pooled["healing"]) == ("heals", 0.75)
    assert (pooled["healing_seed_low"], pooled["healing_seed_high"]) == (None, None)


def test_forgetting_begins_after_the_peak() -> None:
    curve = {0: 0, 2: 1, 6: 3, 8: 3, 30: 1}
    fourths: dict[Point, int] = {(0, step, -1): k for step, k in curve.items()}
    fourths |= {(0, step, 30): 4 for step in curve}
    rows = rows_of(fourths)
    assert {step: pick(rows, 0, step)["forgetting"] for step in curve} == {
        0: None, 2: None, 6: None, 8: 0.0, 30: 0.5,
    }  # fmt: skip
    for step in (0, 2, 6, 8):  # not yet learnt, or nothing forgotten
        assert pick(rows, 0, step)["recovery"] is None
        assert pick(rows, 0, step)["recovery_low"] is None
    assert pick(rows, 0, 30)["recovery"] == pytest.approx(1.5)  # RL beyond the peak


def test_the_pooled_peak_is_that_of_the_mean_curve() -> None:
    rows = rows_of({
        (0, 4, -1): 4, (0, 6, -1): 3, (0, 60, -1): 0, (0, 60, 30): 1,
        (1, 4, -1): 0, (1, 6, -1): 3, (1, 60, -1): 1, (1, 60, 30): 1,
    })  # fmt: skip
    assert pick(rows, 0, 60)["forgetting"] == 1.0  # from step 4
    assert pick(rows, 1, 60)["forgetting"] == 0.5  # from step 6
    assert pick(rows, None, 60)["forgetting"] == 0.625  # from step 6, where the mean is .75
    assert pick(rows, None, 60)["recovery"] == pytest.approx(0.125 / 0.625)


def test_recovery_is_null_unless_forgetting_is_significant() -> None:
    """One problem of 48 lost: nothing on the report half, or one of its 24, which is not significant."""
    episodes, scores, clusters = world({(0, 4, -1): 2, (0, 60, -1): 2, (0, 60, 30): 4})
    forgetting = []
    for cluster in range(CLUSTERS):
        lost = with_outcomes(episodes, {"sft/(0, 60, -1)": {f"ood-{cluster}-0": False}})
        row = boundary_rows(lost, scores, clusters, "plain", "ppo")[0]
        assert row["verdict"] == "heals"
        assert (row["recovery"], row["recovery_low"], row["recovery_high"]) == (None, None, None)
        forgetting.append(row["forgetting"])
    assert sorted(forgetting) == pytest.approx([0.0] * 6 + [1 / 24] * 6)


def test_forgetting_and_recovery_are_read_on_the_half_that_did_not_choose_the_peak() -> None:
    episodes, scores, clusters = world({(0, 4, -1): 4, (0, 60, -1): 4, (0, 60, 30): 4})
    problems = sorted(clusters)
    _, report = split_halves(problems, clusters)
    kept_back = [problem for problem, inside in zip(problems, report, strict=True) if inside]
    lost = dict.fromkeys(kept_back, False)
    healed = {problem: not problem.endswith("-0") for problem in kept_back}
    changed = with_outcomes(episodes, {"sft/(0, 60, -1)": lost, "rl/(0, 60, 30)": healed})
    row = boundary_rows(changed, scores, clusters, "plain", "ppo")[0]
    assert (row["ood_sft"], row["healing"]) == (0.5, 0.375)  # on all problems
    assert (row["forgetting"], row["recovery"]) == (1.0, 0.75)  # on the report half


def test_recovery_bootstraps_healing_and_forgetting_together() -> None:
    """Clusters lose all or half of their problems and RL wins back half of it: the ratio never varies."""
    episodes, scores, clusters = world({(0, 4, -1): 4, (0, 60, -1): 0, (0, 60, 30): 2})
    kept = {f"ood-{c}-{i}": True for c in range(0, CLUSTERS, 2) for i in (0, 1)}
    won = {f"ood-{c}-{i}": True for c in range(0, CLUSTERS, 2) for i in (0, 1, 2)}
    changed = with_outcomes(episodes, {"sft/(0, 60, -1)": kept, "rl/(0, 60, 30)": won})
    row = boundary_rows(changed, scores, clusters, "plain", "ppo")[0]
    assert row["healing_low"] < row["healing"] < row["healing_high"]
    assert (row["recovery"], row["recovery_low"], row["recovery_high"]) == pytest.approx((0.5, 0.5, 0.5))


def test_pooled_intervals_resample_the_same_problems_for_every_seed() -> None:
    """Seed 0 heals one problem of every even cluster, seed 1 of every odd one: their mean never varies."""
    points: dict[Point, int] = {(seed, 4, rl_step): 1 for seed in (0, 1) for rl_step in (-1, 30)}
    episodes, scores, clusters = world(points)
    healed = {
        f"rl/({seed}, 4, 30)": {f"ood-{c}-3": True for c in range(seed, CLUSTERS, 2)} for seed in (0, 1)
    }
    rows = boundary_rows(with_outcomes(episodes, healed), scores, clusters, "plain", "ppo")
    pooled, alone = pick(rows, None, 4), pick(rows, 0, 4)
    assert alone["healing_low"] < alone["healing"] < alone["healing_high"]
    assert (pooled["healing"], pooled["healing_low"], pooled["healing_high"]) == pytest.approx((0.125,) * 3)


def test_the_id_rule_has_accuracies_and_verdicts_but_no_forgetting() -> None:
    rows = rows_of(TWO_SEEDS, rule="id")
    row = pick(rows, None, 60)
    assert (row["rule"], row["ood_sft"], row["ood_rl"], row["verdict"]) == ("id", 0.25, 0.625, "heals")
    assert (row["forgetting"], row["recovery"]) == (None, None)


def test_both_rules_are_reported_side_by_side() -> None:
    ood, trained = world(TWO_SEEDS), world(TWO_SEEDS, rule="id")
    episodes, scores = (pa.concat_tables([a, b]) for a, b in zip(ood[:2], trained[:2], strict=True))
    rows = boundary_rows(episodes, scores, ood[2] | trained[2], "plain", "ppo")
    assert rows == rows_of(TWO_SEEDS) + rows_of(TWO_SEEDS, rule="id")


def test_only_the_first_attempt_counts() -> None:
    episodes, scores, clusters = world(TWO_SEEDS)
    records = [record | {"solved_at": record["solved_at"] and 2} for record in episodes.to_pylist()]
    rows = boundary_rows(tables.table("episodes", records), scores, clusters, "plain", "ppo")
    assert {(row["ood_sft"], row["ood_rl"], row["p"]) for row in rows} == {(0.0, 0.0, 1.0)}


def test_step_0_is_the_base_that_all_seeds_share() -> None:
    rows = rows_of({(0, 0, 30): 4, (1, 0, 30): 3}, base=1)
    assert [pick(rows, seed, 0)["healing"] for seed in (0, 1, None)] == [0.75, 0.5, 0.625]


def test_the_base_in_place_of_a_step_0_is_no_peak_of_the_trunk() -> None:
    own: dict[Point, int] = {(0, 4, -1): 2, (0, 60, -1): 1, (0, 60, 30): 2}
    assert pick(rows_of(own, base=4), 0, 60)["forgetting"] == pick(rows_of(own), 0, 60)["forgetting"] == 0.25
    with_zero = own | {(0, 0, -1): 4}
    assert pick(rows_of(with_zero), 0, 60)["forgetting"] == 0.75


def test_pooled_cells_are_over_the_seeds_that_have_them() -> None:
    rows = rows_of(TWO_SEEDS | {(0, 4, 30): 4, (1, 99, 30): 4})
    assert pick(rows, None, 4)["healing_seed_low"] is None
    assert not [row for row in rows if row["sft_step"] == 99]  # its SFT checkpoint was not scored


def test_other_recipes_and_algorithms_stay_out() -> None:
    episodes, scores, clusters = world(TWO_SEEDS)
    assert boundary_rows(episodes, scores, clusters, "another", "ppo") == []
    rename = {f"rl/({seed}, 60, 30)": f"rl/algorithm=grpo/seed={seed}" for seed in (0, 1)}
    episodes, scores = (
        tables.table(name, [r | {"checkpoint": rename.get(r["checkpoint"], r["checkpoint"])}
                            for r in part.to_pylist()])
        for name, part in (("episodes", episodes), ("scores", scores))
    )  # fmt: skip
    assert boundary_rows(episodes, scores, clusters, "plain", "ppo") == []
    assert len(boundary_rows(episodes, scores, clusters, "plain", "grpo")) == 3


def test_what_cannot_be_paired_is_refused() -> None:
    episodes, scores, clusters = world(TWO_SEEDS)
    with pytest.raises(ValueError, match="1 are missing"):
        boundary_rows(episodes.slice(1), scores, clusters, "plain", "ppo")
    with pytest.raises(ValueError, match="1 are repeated"):
        twice = pa.concat_tables([episodes, episodes.slice(0, 1)])
        boundary_rows(twice, scores, clusters, "plain", "ppo")
    with pytest.raises(ValueError, match="no cluster"):
        boundary_rows(episodes, scores, {}, "plain", "ppo")
    double = scores.set_column(0, "checkpoint", pa.array([f"{i}" for i in range(len(scores))]))
    with pytest.raises(ValueError, match="two checkpoints"):
        boundary_rows(episodes, pa.concat_tables([scores, double]), clusters, "plain", "ppo")


def test_rows_do_not_depend_on_the_order_of_the_tables() -> None:
    episodes, scores, clusters = world(TWO_SEEDS)
    random = np.random.default_rng(0)
    episodes, scores = (part.take(random.permutation(len(part))) for part in (episodes, scores))
    assert boundary_rows(episodes, scores, clusters, "plain", "ppo") == rows_of(TWO_SEEDS)
