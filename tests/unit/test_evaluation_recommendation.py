"""Where to stop: what is eligible, what is chosen, and that its reported accuracy is not the lucky half's."""

from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from rlheals_ray import tables
from rlheals_ray.config import RecommendationSettings
from rlheals_ray.evaluation.outcomes import first_attempts
from rlheals_ray.evaluation.peak import split_halves
from rlheals_ray.evaluation.recommendation import recommendation_rows
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
    assert rows[0]["chosen"] and rows[0]["p_best"] == 1.0
    none = rows_of(made, id_floor=1.0)
    assert len(none) == len(rows)
    assert not any(r["chosen"] or r["eligible"] for r in none)
    assert {r["p_best"] for r in none} == {None}
    assert {r["id_floor"] for r in none} == {1.0}


def test_a_cell_that_a_seed_lacks_is_left_out() -> None:
    made = simulated_map(np.random.default_rng(4), EQUAL | {(30, 30): 3.0}, rules=BOTH)
    keep = pc.not_equal(made.scores["checkpoint"], "rl/seed=1/sft_step=30/rl_step=30")
    rows = rows_of(Map(made.episodes, made.scores.filter(keep), made.clusters))
    assert (30, 30) not in {(r["sft_step"], r["rl_step"]) for r in rows}


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
