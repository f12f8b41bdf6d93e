"""The tables of the whole map, of studies that are whole and of those that lack something."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rlheals_ray import tables
from rlheals_ray.config import Study, load_study
from rlheals_ray.grid.study_tables import outcome_rows
from tests.simulated_maps import Map, simulated_map

EFFECTS = {(4, 15): 0.0, (4, 30): 0.0, (60, 15): 3.0, (60, 30): 3.0}
CONTROLS = ("continued_sft", "rejection_sft")


def study(*overrides: str) -> Study:
    steps = ["sft.steps=[0,4,60]", "rl.from_steps=[4,60]", "rl.budgets=[0,15,30]", "edits=[]"]
    return load_study("nano", [*steps, *overrides])


def made(seeds: int = 3, controls: tuple[str, ...] = CONTROLS) -> Map:
    found = simulated_map(
        np.random.default_rng(1), EFFECTS, seeds=seeds, controls=controls, rules=("ood", "id"), clusters=30
    )
    return with_scores(found, found.scores.to_pylist())


def with_scores(found: Map, rows: list[dict[str, Any]]) -> Map:
    """The map with these rows as a whole table `scores`."""
    blank = dict.fromkeys(tables.SCORES.names)
    return Map(found.episodes, tables.table("scores", [blank | row for row in rows]), found.clusters)


def outcome(of: Study, found: Map) -> dict[str, pa.Table]:
    rows = outcome_rows(of, ["ood"], *found)
    return {name: tables.table(name, own) for name, own in rows.items()}


def test_a_whole_study_has_every_table_and_controls_have_families_of_their_own() -> None:
    found = outcome(study(), made())
    boundary = found["boundary"].to_pylist()
    for algorithm in ("ppo", *CONTROLS):
        pooled = [
            row
            for row in boundary
            if (row["scope"], row["rule"], row["algorithm"]) == ("pooled", "ood", algorithm)
        ]
        tested = [row for row in pooled if row["p"] is not None]
        assert len(tested) == len(EFFECTS)
        # Benjamini-Hochberg: the largest p of a family stays what it is.
        assert max(row["q"] for row in tested) == pytest.approx(max(row["p"] for row in tested))
    assert set(found["controls"]["control"].to_pylist()) == set(CONTROLS)
    assert set(found["edges"]["algorithm"].to_pylist()) == {"ppo"}
    assert {(r["rl_step"], r["edge"], r["step"]) for r in found["edges"].to_pylist()} == {
        (budget, edge, 60) for budget in (15, 30) for edge in ("lower", "upper")
    }
    assert found["recommendation"]["chosen"].to_pylist()[0]


def test_without_controls_their_table_is_empty() -> None:
    found = outcome(study("controls.kinds=[]"), made(controls=()))
    assert found["controls"].num_rows == 0
    assert set(found["boundary"]["algorithm"].to_pylist()) == {"ppo"}


def test_one_seed_has_no_interval_over_seeds() -> None:
    found = outcome(study("seeds=[0]"), made(seeds=1))
    assert found["boundary"]["healing_seed_low"].null_count == found["boundary"].num_rows
    assert found["recommendation"]["chosen"].to_pylist()[0]


def test_a_failed_branch_lacks_its_cells_and_nothing_else() -> None:
    whole = made()
    lost = pc.match_substring(whole.scores["checkpoint"], "rl/seed=1/sft_step=60/")
    found = outcome(study(), Map(whole.episodes, whole.scores.filter(pc.invert(lost)), whole.clusters))
    of_seed = [r for r in found["boundary"].to_pylist() if r["seed"] == 1 and r["algorithm"] == "ppo"]
    assert {(r["sft_step"], r["rl_step"]) for r in of_seed if r["rl_step"]} == {(4, 15), (4, 30)}
    cells = {(r["sft_step"], r["rl_step"]) for r in found["recommendation"].to_pylist()}
    assert cells == {(4, 0), (60, 0), (4, 15), (4, 30)}
    assert not [r for r in found["controls"].to_pylist() if (r["seed"], r["sft_step"]) == (1, 60)]
    # Whoever reads a pooled row sees that it is of two seeds, also where these agree.
    for name in ("boundary", "controls"):
        rows = [r for r in found[name].to_pylist() if r["algorithm"] == "ppo" and r["rl_step"]]
        assert {r["seeds"] for r in rows if r["scope"] == "seed"} == {1}
        pooled = {(r["sft_step"], r["seeds"]) for r in rows if r["scope"] == "pooled"}
        assert pooled == {(4, 3), (60, 2)}, name
    assert {r["verdict"] for r in found["boundary"].to_pylist() if r["seeds"] == 2} >= {"heals"}
    assert set(found["edges"]["seeds"].to_pylist()) == {2}


def test_a_study_of_sft_alone_has_a_place_to_stop_and_no_boundary() -> None:
    whole = made(controls=())
    sft = [row for row in whole.scores.to_pylist() if row["stage"] == "sft"]
    found = outcome(study("rl.budgets=[0]"), with_scores(whole, sft))
    assert found["controls"].num_rows == found["edges"].num_rows == 0
    assert {row["rl_step"] for row in found["boundary"].to_pylist()} <= {0}
    assert {row["rl_step"] for row in found["recommendation"].to_pylist()} == {0}


def test_nothing_probed_yet_is_no_error() -> None:
    empty = Map(tables.EPISODES.empty_table(), tables.SCORES.empty_table(), {})
    assert all(table.num_rows == 0 for table in outcome(study(), empty).values())


def test_several_recipes_are_judged_apart_and_recommended_together() -> None:
    first, rows, episodes = made(), [], []
    for recipe in ("plain", "lora"):
        for row in first.scores.to_pylist():
            rows.append(row | {"recipe": recipe, "checkpoint": f"{recipe}/{row['checkpoint']}"})
        names = pc.binary_join_element_wise(recipe, first.episodes["checkpoint"], "/")
        episodes.append(first.episodes.set_column(0, "checkpoint", names))
    both = with_scores(Map(pa.concat_tables(episodes), first.scores, first.clusters), rows)
    found = outcome(study("sft.recipe=[plain,lora]"), both)
    alone = outcome(study(), first)
    for name in ("boundary", "edges", "controls"):
        for recipe in ("plain", "lora"):
            own = [row | {"recipe": "plain"} for row in found[name].to_pylist() if row["recipe"] == recipe]
            assert own == alone[name].to_pylist()
    assert found["recommendation"].num_rows == 2 * alone["recommendation"].num_rows
    assert sum(found["recommendation"]["chosen"].to_pylist()) == 1


@pytest.mark.parametrize("rule", ["faces", "target"])
def test_each_of_several_ood_rules_has_the_map_that_it_would_have_alone(rule: str) -> None:
    random = np.random.default_rng(1)
    several = simulated_map(
        random, EFFECTS, seeds=2, controls=CONTROLS, rules=("faces", "target", "id"), clusters=20
    )
    several = with_scores(several, several.scores.to_pylist())

    def alone(table: pa.Table) -> pa.Table:
        rows = [row for row in table.to_pylist() if row["rule"] in (rule, "id")]
        return pa.Table.from_pylist([row | {"rule": "id" if row["rule"] == "id" else "ood"} for row in rows])

    both = outcome_rows(study(), ["faces", "target"], *several)
    single = with_scores(
        Map(alone(several.episodes), several.scores, several.clusters), alone(several.scores).to_pylist()
    )
    expected = outcome_rows(study(), ["ood"], *single)
    for name, rows in expected.items():
        wanted = [{**row, "rule": rule} for row in rows if row["rule"] == "ood"]
        assert wanted, name
        assert [row for row in both[name] if row["rule"] == rule] == wanted, name
        assert [row for row in both[name] if row["rule"] == "id"] == [
            row for row in rows if row["rule"] == "id"
        ]
