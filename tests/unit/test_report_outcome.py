"""What a reader takes away: the recommendation, the controls of healing, the boundary's edges, unfinished branches.

The tables are invented (tests/report_outcomes.py); what is tested is the reading of them.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rlheals_ray.report import Finding, findings_of
from rlheals_ray.report.edges import sentence
from rlheals_ray.report.layout import Section
from rlheals_ray.report.loss_stops import loss_stops
from rlheals_ray.report.recommendation import recommendation_words
from rlheals_ray.report.results import Accuracies, Row
from rlheals_ray.report.sections import sections
from rlheals_ray.report.source import read_study
from rlheals_ray.report.unfinished import gaps
from rlheals_ray.report.variants import Variant, of_variant, variants
from tests.report_outcomes import (
    edge_rows,
    recommendation_rows,
    renamed,
    two_recipes,
    unfinished,
    with_outcome,
)
from tests.report_tables import empty, nano_like, rows_of, write_study


@pytest.fixture(scope="module")
def full() -> dict[str, pa.Table]:
    return with_outcome(nano_like())


def by_kind(of: dict[str, pa.Table]) -> dict[str, Finding]:
    return {finding.kind: finding for finding in findings_of(of)}


def part(of: dict[str, pa.Table], name: str, directory: Path, **study: Any) -> Section:
    found = {section.name: section for section in sections(read_study(write_study(directory, of, **study)))}
    return found[name]


def recommended(p_best: float, floor: float = 0.85) -> list[Row]:
    return list(recommendation_rows(nano_like(), "plain", p_best, floor))


# --- the recommendation


def test_the_recommendation_says_where_to_stop_with_both_accuracies_and_the_floor() -> None:
    text = recommendation_words(recommended(0.95))
    assert text.startswith(
        "Stop SFT at step 4, then RL for 30 updates: OOD accuracy .93 [.88, .98] (over 3 seeds"
    )
    assert "ID accuracy .95" in text and "at an ID floor of .85" in text


@pytest.mark.parametrize(
    ("p_best", "said"),
    [
        (0.95, "These problems are clear: in 95 %"),
        (0.62, "Likely, not certain: in 62 %"),
        (0.2, "No cell stands out: only in 20 %"),
    ],
)
def test_how_sure_it_is_is_said_in_words(p_best: float, said: str) -> None:
    text = recommendation_words(recommended(p_best))
    assert said in text
    assert ("SFT 15 + RL 30" in text) is (p_best < 0.9), "rivals are named where the choice is not clear"


def test_the_only_eligible_cell_is_called_as_clear_as_the_draws_are() -> None:
    first, second, *others = [{**row, "eligible": False, "p_best": 0.0} for row in recommended(1.0)]
    rows = [{**first, "eligible": True, "p_best": 0.4}, {**second, "p_best": 0.35}, *others]
    text = recommendation_words(rows)
    assert (
        "On the half that chose, no other cell reaches the ID floor. No cell stands out: only in 40 %" in text
    )
    assert "in 25 % it takes no cell at all" in text and "SFT 15 + RL 30 (35 %)" in text


def test_an_accuracy_says_how_many_seeds_it_is_over(tmp_path: Path) -> None:
    assert "(over 3 seeds [" in recommendation_words(recommended(0.95))
    cells = next(
        table
        for table in part(unfinished(), "healing", tmp_path).tables
        if table.title.startswith("Every cell")
    )
    seeds = {row[:2]: row[cells.heads.index("seeds")] for row in cells.rows}
    assert (seeds["30", "30"], seeds["30", "15"], seeds["4", "30"]) == ("2", "3", "3")
    text = by_kind(unfinished())["healing"].text
    assert "every seed that a cell has agreeing" in text and "(2 of 3 seeds); 60" in text
    assert "of 3 seeds" not in by_kind(with_outcome(nano_like()))["healing"].text


def test_no_eligible_cell_is_no_recommendation_and_says_how_near_the_map_came() -> None:
    text = recommendation_words(recommended(0.9, floor=0.99))
    assert "There is no recommendation: no cell reaches the ID floor of .99" in text
    assert "highest ID accuracy is .97" in text


def test_cells_without_accuracies_recommend_nothing() -> None:
    rows = rows_of("recommendation", [{"sft_step": 4, "rl_step": 0, "chosen": False}]).to_pylist()
    assert "no cell of the map has been probed" in recommendation_words(rows)


def test_a_map_that_solves_no_ood_problem_recommends_nothing() -> None:
    rows = [{**row, "ood": 0.0, "id_floor": -0.05} for row in recommended(0.5)]
    assert recommendation_words(rows).startswith("There is nothing to recommend")


def test_sft_alone_which_names_no_algorithm_is_no_kind_of_its_own() -> None:
    rows = [{**row, "algorithm": row["algorithm"] if row["rl_step"] else None} for row in recommended(0.5)]
    assert "(plain" not in recommendation_words(rows)


@pytest.mark.parametrize("exported", [True, False])
def test_the_command_that_serves_it_names_files_that_are_there(
    full: dict[str, pa.Table], tmp_path: Path, exported: bool
) -> None:
    study = tmp_path / "a study"
    if exported:
        (study / "recommended").mkdir(parents=True)
        (study / "recommended" / "config.json").write_text("{}")
    section = part(full, "recommendation", study, rollout={"dtype": "bfloat16"})
    assert section.command_first == (f"vllm serve '{study}/recommended' --dtype bfloat16" if exported else "")
    assert any("not among the files" in line for line in section.lead) is not exported


# --- the controls


def test_rl_that_beats_a_control_wherever_it_heals_heals_more_than_as_much_sft(
    full: dict[str, pa.Table],
) -> None:
    found = by_kind(full)
    assert found["continued_sft"].supported is True
    assert "better from SFT 4 (+.35 [.29, .41])" in found["continued_sft"].text
    assert found["rejection_sft"].supported is None and "is open" in found["rejection_sft"].text
    assert "controls" not in found, "both ran"


@pytest.mark.parametrize(
    ("verdicts", "supported"),
    [
        (("better", "better"), True),
        (("better", "unclear"), None),
        (("unclear", "unclear"), None),
        (("worse", "unclear"), False),
        (("worse", "better"), None),
    ],
)
def test_the_verdict_over_a_control_needs_every_start_that_heals(
    verdicts: tuple[str, str], supported: bool | None
) -> None:
    place = {"scope": "pooled", "rule": "ood", "rl_step": 30, "algorithm": "ppo", "recipe": "plain"}
    mine = {
        "boundary": rows_of(
            "boundary",
            [
                {**place, "sft_step": step, "healing": 0.2, "verdict": verdict}
                for step, verdict in ((4, "heals"), (15, "heals"), (60, "unclear"))
            ],
        ),
        "controls": rows_of(
            "controls",
            [
                {**place, "control": "continued_sft", "sft_step": step, "difference": 0.1, "verdict": verdict}
                # The last start does not heal: its verdict must not count.
                for step, verdict in zip((4, 15, 60), (*verdicts, "worse"), strict=True)
            ],
        ),
    }
    assert by_kind(mine)["continued_sft"].supported is supported


def test_a_control_that_never_came_to_its_end_is_open_and_not_called_not_run(
    full: dict[str, pa.Table],
) -> None:
    rows = [row for row in full["controls"].to_pylist() if row["control"] == "continued_sft"]
    found = by_kind(full | {"controls": rows_of("controls", rows)})
    assert "rejection_sft is open: no such control came to its end" in found["controls_unfinished"].text
    assert "controls" not in found


def test_controls_of_a_smaller_budget_do_not_speak_for_the_largest(full: dict[str, pa.Table]) -> None:
    rows = [
        {**row, "verdict": "worse"} if row["rl_step"] == 15 else row for row in full["controls"].to_pylist()
    ]
    assert by_kind(full | {"controls": rows_of("controls", rows)})["continued_sft"].supported is True


def test_the_section_without_controls_says_what_heals_then_means(tmp_path: Path) -> None:
    section = part(nano_like([0]), "controls", tmp_path / "study")
    assert any("means only that accuracy rose during RL" in line for line in section.lead)
    assert section.figures == []


# --- edges


def test_the_boundary_is_told_with_its_intervals_and_the_range_of_seeds(full: dict[str, pa.Table]) -> None:
    text = by_kind(full)["boundary"].text
    assert (
        "lower edge between 0 and 4, outermost healing step 4 [4, 4] over problems, 4 for every seed" in text
    )
    assert "upper edge between 60 and 120, outermost healing step 60 [30, 60]" in text


def test_an_edge_that_many_draws_do_not_have_says_so() -> None:
    rows = [{**row, "absent": 0.3} for row in edge_rows(nano_like()["boundary"], "plain")]
    assert "In 30 % of the draws of problems nothing heals at all" in sentence(
        rows_of("edges", rows).to_pylist()
    )


def test_no_edges_no_sentence() -> None:
    assert sentence([]) == ""
    nothing = rows_of("edges", [{"rl_step": 30, "edge": "upper", "absent": 1.0}]).to_pylist()
    assert sentence(nothing) == ""


# --- branches that did not finish


def test_every_cell_that_a_branch_never_reached_is_marked_with_its_cause(tmp_path: Path) -> None:
    section = part(
        unfinished(), "healing", tmp_path / "study", rl={"algorithm": "ppo", "budgets": [0, 15, 30]}
    )
    (map_, seeds) = section.figures
    blank = [trace for trace in map_.plot.data if trace.meta == "gap"]
    assert [(x, y) for trace in blank for x, y in zip(trace.x, trace.y, strict=True)] == [
        ("15", "400"),
        ("30", "400"),
    ]
    words = [text for line in map_.plot.data[0].text for text in line if "without seed 1" in text]
    assert len(words) == 2, "cells that lack a seed say which"
    hover = [text for line in map_.plot.data[0].customdata for text in line if text]
    assert any("seed 1 failed after RL update 17: FloatingPointError" in text for text in hover)
    assert all("<b>" not in text for text in hover), "a cause is text, not markup"
    alone = [trace for trace in seeds.plot.data if trace.meta == "gap"]
    assert sum(len(trace.x) for trace in alone) == 3 * 2 + 1 + 1
    table = section.tables[0]
    assert [row[0] for row in table.rows] == ["✕ failed", "□ stopped"]
    assert "NaN <b>&</b>" in table.rows[0][-1]
    assert any("seed 0 from SFT 400" in line for line in section.lead)


def test_the_recommendation_says_which_ends_of_rl_it_could_not_weigh(tmp_path: Path) -> None:
    told = part(unfinished(), "recommendation", tmp_path / "some").lead
    assert any(
        "RL from SFT 30, 120 and 400 is left out" in line and "5 of its branches" in line for line in told
    )
    told = part(with_outcome(nano_like()), "recommendation", tmp_path / "whole").lead
    assert not any("left out" in line for line in told)


def test_a_study_whose_branches_all_failed_shows_a_map_of_failures(tmp_path: Path) -> None:
    mine = empty() | {
        "branches": rows_of(
            "branches",
            [
                {
                    "algorithm": "ppo",
                    "recipe": "plain",
                    "seed": 0,
                    "sft_step": 4,
                    "status": "failed",
                    "rl_step": 0,
                }
            ],
        )
    }
    section = part(mine, "healing", tmp_path / "study", rl={"algorithm": "ppo", "budgets": [0, 15]})
    (map_,) = section.figures
    assert [trace.text for trace in map_.plot.data if trace.meta == "gap"] == [("  failed",)]
    assert "1 failed (PPO from SFT 4)" in by_kind(mine)["unfinished"].text


def test_budgets_that_a_branch_reached_before_it_failed_are_no_gaps() -> None:
    row = {"algorithm": "ppo", "seed": 0, "sft_step": 4, "status": "failed", "rl_step": 17, "cause": "x"}
    found = gaps(rows_of("branches", [row]).to_pylist(), [15, 30])
    assert [(gap.sft_step, gap.rl_step) for gap in found] == [(4, 30)]


# --- recipes


def test_each_recipe_reads_its_own_rows_of_every_table() -> None:
    both = two_recipes([0])
    assert variants(both) == [Variant("plain", "ppo"), Variant("lora", "ppo")]
    for recipe in ("plain", "lora"):
        mine = of_variant(both, Variant(recipe, "ppo"))
        for name in ("sft", "rl", "boundary", "scores", "controls", "branches", "spectra", "edits"):
            assert set(mine[name]["recipe"].to_pylist()) == {recipe}, name
        assert all(f"recipe={recipe}/" in name for name in mine["episodes"]["checkpoint"].to_pylist())
    alone = nano_like([0])
    again = of_variant(both, Variant("plain", "ppo"))
    assert again["spectra"].num_rows == alone["spectra"].num_rows
    assert again["edits"].equals(renamed("edits", alone["edits"], "plain"))


def test_the_base_belongs_to_every_recipe() -> None:
    base = rows_of("scores", [{"checkpoint": "base", "stage": "base", "recipe": "plain", "rule": "ood"}])
    both = two_recipes([0])
    both["scores"] = pa.concat_tables([both["scores"], base])
    assert "base" in of_variant(both, Variant("lora", "ppo"))["scores"]["stage"].to_pylist()


def test_several_recipes_are_compared_by_edges_that_stand_apart_or_not(tmp_path: Path) -> None:
    both = two_recipes()
    assert "That the upper edge differs is not shown" in by_kind(both)["upper_edge"].text
    rows = [
        {**row, "step_low": 120, "step_high": 400}
        if (row["recipe"], row["edge"]) == ("lora", "upper")
        else row
        for row in both["edges"].to_pylist()
    ]
    moved = by_kind(both | {"edges": rows_of("edges", rows)})["upper_edge"].text
    assert "The upper edge of lora lies later than that of plain" in moved and "stand apart" in moved
    section = part(both, "recipes", tmp_path / "study")
    assert {figure.name for figure in section.figures} == {"along-sft", "healing-by-start", "edges"}


# --- the losses


def test_stopping_at_a_losss_minimum_costs_the_ood_accuracy_between_it_and_the_peak() -> None:
    mine = nano_like([0, 1])
    accuracies = Accuracies(mine["scores"])
    found = {one.column: one for one in loss_stops(mine["sft"], accuracies, mine["episodes"])}
    late = found["id_loss"]
    assert {stop.step for stop in late.stops} == {400} and {stop.peak for stop in late.stops} == {6}
    peak, end = (accuracies.mean("ood", step) for step in (6, 400))
    assert peak is not None and end is not None
    # Read on half of 60 problems: one problem more or less on that half moves it by a thirtieth.
    assert late.cost == pytest.approx(peak.value - end.value, abs=0.1)
    assert late.problems is not None and late.problems.low <= late.cost <= late.problems.high


def test_without_episodes_the_cost_is_not_told() -> None:
    mine = nano_like([0])
    assert loss_stops(mine["sft"], Accuracies(mine["scores"]), empty()["episodes"]) == []
