"""Where to stop: what is eligible, what is chosen, and that its reported accuracy is not the lucky half's."""

from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from rlheals_ray import tables
from rlheals_ray.config import RecommendationSettings
from rlheals_ray.evaluation.outcomes import first_attempts
from rlheals_ray.evaluation.peak import split_halves
from rlheals_ray.evaluation.recommendation import places_to_stop, recommendation_rows
from tests.simulated_maps import Map, simulated_map

BOTH = ("ood", "id")
STEPS, BUDGETS = (4, 15, 30, 60), (15, 30)
EQUAL = {(step, budget): 0.0 for step in STEPS for budget in BUDGETS}


def rows_of(made: Map, draws: int = 200, **settings: Any) -> list[dict[str, Any]]:
    rows = recommendation_rows(*made, RecommendationSettings(**settings), ["plain"], "ppo", draws=draws)
    tables.table("recommendation", rows)
    return rows


def test_every_cell_has_a_row_and_a_clearly_best_one_is_chosen_with_confidence() -> None:
    made = simulated_map(np.random.default_rng(1), EQUAL | {(30, 30): 3.0}, rules=BOTH)
    rows = rows_of(made, id_margin=1.0)
    assert {(r["sft_step"], r["rl_step"]) for r in rows} == {*EQUAL, *((step, 0) for step in STEPS)}
    assert [r["chosen"] for r in rows] == [True] + [False] * (len(rows) - 1)
    assert (rows[0]["sft_step"], rows[0]["rl_step"], rows[0]["algorithm"]) == (30, 30, "ppo")
    assert rows[0]["p_best"] > 0.95
    assert sum(r["p_best"] for r in rows) == pytest.approx(1)
    assert {r["seeds"] for r in rows} == {3}
    assert {r["algorithm"] for r in rows if r["rl_step"] == 0} == {None}


def test_the_chosen_cell_and_its_checkpoint_are_the_best_of_the_half_that_selects() -> None:
    made = simulated_map(np.random.default_rng(2), EQUAL, rules=BOTH)
    top = rows_of(made, id_margin=1.0)[0]
    paths = pc.unique(made.scores["checkpoint"]).to_pylist()
    problems, solved = first_attempts(made.episodes, "ood", paths)
    select, report = split_halves(problems, made.clusters)
    cells: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        cells.setdefault(path.split("/", 2)[0] + path.split("/", 2)[2], []).append(index)
    best = max(solved[select][:, columns].mean() for columns in cells.values())
    mine = [
        i for i, path in enumerate(paths) if f"/sft_step={top['sft_step']}/rl_step={top['rl_step']}" in path
    ]
    assert solved[select][:, mine].mean() == pytest.approx(best)
    assert top["ood"] == pytest.approx(solved[report][:, mine].mean())
    assert top["checkpoint"] == paths[max(mine, key=lambda i: solved[select][:, i].mean())]


def test_the_floor_decides_before_the_best_and_nothing_is_chosen_where_nothing_reaches_it() -> None:
    made = simulated_map(np.random.default_rng(3), EQUAL, rules=BOTH)
    rows = rows_of(made, id_margin=0.0)
    assert sum(r["eligible"] for r in rows) == 1  # the best ID accuracy alone
    assert rows[0]["chosen"]
    none = rows_of(made, id_floor=1.0)
    assert len(none) == len(rows)
    assert not any(r["chosen"] or r["eligible"] for r in none)
    assert {r["p_best"] for r in none} == {0.0}
    assert {r["id_floor"] for r in none} == {1.0}


@pytest.mark.parametrize(("lead", "sure"), [(0.0, False), (3.0, True)])
def test_being_the_only_one_above_the_floor_is_as_sure_as_the_id_problems_make_it(
    lead: float, sure: bool
) -> None:
    """Of 12 cells one reaches the floor: of equals by luck, which other ID problems undo; else by merit."""
    made = simulated_map(np.random.default_rng(3), EQUAL | {(30, 30): lead}, rules=BOTH)
    rows = rows_of(made, id_margin=0.0)
    assert [r["eligible"] for r in rows] == [True] + [False] * 11
    assert (rows[0]["p_best"] > 0.95) is sure
    assert sure or rows[0]["p_best"] < 0.4
    assert sum(r["p_best"] for r in rows) == pytest.approx(1), "those below the floor may reach it in a draw"


def test_draws_in_which_nobody_reaches_the_floor_count_for_nobody() -> None:
    made = simulated_map(np.random.default_rng(1), EQUAL | {(30, 30): 3.0}, rules=BOTH)
    best = rows_of(made)[0]
    assert best["rl_step"] == 30 and best["id_low"] < best["id"] < best["id_high"]
    rows = rows_of(made, id_floor=best["id"])
    assert 0.2 < rows[0]["p_best"] < 0.8
    assert sum(r["p_best"] for r in rows) == pytest.approx(rows[0]["p_best"])


@pytest.mark.parametrize("margin", [1.0, 0.05])
def test_of_equal_cells_the_chosen_one_is_taken_again_in_no_more_draws_than_any(margin: float) -> None:
    """12 cells of equal expected accuracies: a twelfth, within three standard errors, though one had to be chosen."""
    random = np.random.default_rng(7)
    taken = []
    for _ in range(100):
        made = simulated_map(random, EQUAL, seeds=1, clusters=30, rules=BOTH, shared=0.5)
        taken.append(rows_of(made, draws=60, id_margin=margin)[0]["p_best"])
    assert abs(np.mean(taken) - 1 / 12) < 3 * np.std(taken) / np.sqrt(len(taken))
    assert np.mean(taken) < 2 / 12


def test_a_cell_that_a_seed_lacks_is_left_out() -> None:
    made = simulated_map(np.random.default_rng(4), EQUAL | {(30, 30): 3.0}, rules=BOTH)
    keep = pc.not_equal(made.scores["checkpoint"], "rl/seed=1/sft_step=30/rl_step=30")
    rows = rows_of(Map(made.episodes, made.scores.filter(keep), made.clusters))
    assert (30, 30) not in {(r["sft_step"], r["rl_step"]) for r in rows}
    assert {r["seeds"] for r in rows} == {3}


def test_a_seed_without_a_trunk_is_counted_out_of_every_cell() -> None:
    made = simulated_map(np.random.default_rng(4), EQUAL, rules=BOTH)
    scores = made.scores.filter(pc.not_equal(made.scores["seed"], 1))
    rows = rows_of(Map(made.episodes, scores, made.clusters))
    assert len(rows) == 12 and {r["seeds"] for r in rows} == {2}
    assert {cell.seeds for cell in places_to_stop(scores, ["plain"], "ppo")} == {(0, 2)}


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_seed_or_a_study_without_rl_has_a_recommendation_too(seeds: int) -> None:
    made = simulated_map(np.random.default_rng(5), {(4, 0): 0.0, (60, 0): 0.0}, seeds=seeds, rules=BOTH)
    rows = rows_of(made)
    assert [r["rl_step"] for r in rows] == [0, 0]
    assert rows[0]["chosen"]
    assert (rows[0]["ood_seed_low"] is None) == (seeds == 1)


def test_controls_are_no_places_to_stop() -> None:
    made = simulated_map(np.random.default_rng(6), EQUAL, rules=BOTH, controls=("continued_sft",))
    assert not any(r["checkpoint"].startswith("control/") for r in rows_of(made))


def test_the_reported_accuracy_of_the_best_of_many_equal_cells_is_unbiased() -> None:
    """12 cells of equal expected accuracy. On the half that chose, the chosen one looks better than it is by more than
    four standard errors; on the half that reports, it is what it is, within four."""
    random = np.random.default_rng(15)
    reported, selecting = [], []
    for _ in range(150):
        made = simulated_map(random, EQUAL, seeds=1, clusters=30, rules=BOTH, shared=0.5)
        top = rows_of(made, draws=2, id_margin=1.0)[0]
        name = (
            "rl" if top["rl_step"] else "sft"
        ) + f"/seed=0/sft_step={top['sft_step']}/rl_step={top['rl_step']}"
        every = pc.unique(made.scores["checkpoint"]).to_pylist()
        problems, solved = first_attempts(made.episodes, "ood", every)
        select, report = split_halves(problems, made.clusters)
        # What this draw of problems is worth: the mean over the equal cells.
        selecting.append(solved[select, every.index(name)].mean() - solved[select].mean())
        reported.append(top["ood"] - solved[report].mean())
    error = np.std(reported) / np.sqrt(len(reported))
    assert abs(np.mean(reported)) < 4 * error
    assert np.mean(selecting) > 4 * np.std(selecting) / np.sqrt(len(selecting))
