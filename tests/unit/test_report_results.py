"""Reading a study's tables: the peak on two halves, places from names, intervals over seeds, numbers as words."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.weightstats import DescrStatsW

from rlheals_ray.evaluation.peak import split_halves
from rlheals_ray.report import findings_of
from rlheals_ray.report.results import Accuracies, Place, ood_peak, place_of, seed_interval, split_curves
from rlheals_ray.report.source import read_study
from rlheals_ray.report.words import interval, listed, number
from rlheals_ray.tasks import get_task
from tests.report_tables import empty, rows_of, write_study


def test_the_peak_is_chosen_on_one_half_of_the_problems_and_reported_on_the_other() -> None:
    problems = [f"T24:{i}-{i + 1}-{i + 2}" for i in range(40)]
    flat = [_trunk(step, problems, lambda _: True) for step in (4, 8)]
    curves = split_curves(rows_of("episodes", [row for rows in flat for row in rows]))
    assert curves == {(0, 4): (1.0, 1.0, 20), (0, 8): (1.0, 1.0, 20)}
    # Step 8 is perfect on the choosing half alone, step 4 middling on both: 8 wins and is reported as 0.
    half = _choosing_half(problems)
    lucky = [
        *_trunk(4, problems, lambda problem: problems.index(problem) % 2 == 0),
        *_trunk(8, problems, lambda problem: problem in half),
    ]
    scores = rows_of(
        "scores",
        [
            {"checkpoint": f"sft/seed=0/step={step:06d}", "stage": "sft", "seed": 0, "sft_step": step,
             "rl_step": 0, "rule": "ood", "n": 40, "acc_1": 0.5}
            for step in (4, 8)
        ],
    )  # fmt: skip
    peak = ood_peak(Accuracies(scores), rows_of("episodes", lucky))
    assert peak is not None and (peak.step, peak.value, peak.split) == (8, 0.0, True)


def test_what_was_only_luck_at_the_peak_is_not_told_as_forgotten() -> None:
    """Of all problems step 4 solves half and step 8 a fifth; of those that did not choose step 4 it solves none."""
    problems = [f"T24:{i}-{i + 1}-{i + 2}" for i in range(400)]
    half = _choosing_half(problems)
    rows = [
        *_trunk(4, problems, lambda problem: problem in half),
        *_trunk(8, problems, lambda problem: problems.index(problem) % 5 == 0),
    ]
    scores = [
        {"checkpoint": f"sft/seed=0/step={step:06d}", "stage": "sft", "seed": 0, "sft_step": step, "rl_step": 0,
         "rule": "ood", "n": 400, "acc_1": value, "acc_1_low": value - 0.05, "acc_1_high": value + 0.05}
        for step, value in ((4, 0.5), (8, 0.2))
    ]  # fmt: skip
    tables = {"scores": rows_of("scores", scores), "episodes": rows_of("episodes", rows)}
    (told,) = [found for found in findings_of(tables) if found.kind == "forgetting"]
    assert told.supported is False and "does not fall after its peak" in told.text
    # Without episodes there is one set of problems for both, and the report says so.
    (told,) = [found for found in findings_of({"scores": tables["scores"]}) if found.kind == "forgetting"]
    assert told.supported is True and "which flatters the value" in told.text


def test_permutations_of_one_multiset_fall_into_the_same_half() -> None:
    orders = ["a-b-c", "c-a-b", "b-c-a"] * 4
    problems = [f"{order}:{i // 3}" for i, order in enumerate(orders)]
    half = _choosing_half(problems)
    for deal in range(4):
        assert len({problem in half for problem in problems[3 * deal : 3 * deal + 3]}) == 1


def test_the_halves_are_those_of_the_studys_own_clusters(tmp_path: Path) -> None:
    study = write_study(
        tmp_path / "study", empty(), name="nano", evaluation={"problems": 60, "seed": 0, "max_attempts": 3}
    )
    clusters = read_study(study).clusters
    assert clusters is not None
    problems = get_task("general_points", cards=3, targets=[18, 24]).problems("ood", "eval", 60, seed=0)
    assert clusters == {problem.id: problem.group for problem in problems}
    select, _ = split_halves(list(clusters), clusters)
    chosen = {problem for problem, inside in zip(clusters, select, strict=True) if inside}
    episodes = rows_of("episodes", _trunk(4, list(clusters), chosen.__contains__))
    assert split_curves(episodes, clusters)[0, 4] == (1.0, 0.0, 30)


def _trunk(step: int, problems: list[str], solved: Any) -> list[dict[str, Any]]:
    name = f"sft/seed=0/step={step:06d}"
    return [
        {
            "checkpoint": name,
            "rule": "ood",
            "problem_id": problem,
            "solved_at": 1 if solved(problem) else None,
        }
        for problem in problems
    ]


def _choosing_half(problems: list[str]) -> set[str]:
    """The problems whose solving counts for the first half, found one at a time."""
    return {
        problem
        for problem in problems
        if split_curves(rows_of("episodes", _trunk(4, problems, problem.__eq__)))[0, 4][0] > 0
    }


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=9).filter(lambda values: max(values) - min(values) > 1e-3)
)
def test_the_interval_over_seeds_is_students(values: list[float]) -> None:
    assert seed_interval(values) == pytest.approx(DescrStatsW(values).tconfint_mean(alpha=0.05))


def test_one_seed_has_no_interval_over_seeds() -> None:
    assert seed_interval([0.5]) == (None, None)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("base", Place(None, 0, 0)),
        ("sft/seed=2/step=000120", Place(2, 120, 0)),
        ("sft/recipe=flow/seed=0/step=000004", Place(0, 4, 0)),
        ("rl/seed=1/sft_step=000120/rl_step=000040", Place(1, 120, 40)),
        ("edit/uv-all", None),
        (None, None),
    ],
)
def test_places_are_read_from_checkpoint_names(name: str | None, place: Place | None) -> None:
    assert place_of(name) == place


def test_the_base_stands_for_step_0_of_every_seed() -> None:
    row = {"stage": "sft", "sft_step": 4, "rl_step": 0, "rule": "ood", "n": 9, "acc_1": 0.5}
    base = {"checkpoint": "base", "stage": "base", "rule": "ood", "n": 9, "acc_1": 0.25}
    accuracies = Accuracies(rows_of("scores", [{**row, "seed": 0}, {**row, "seed": 1}, base]))
    assert [accuracies.row("ood", seed, 0)["acc_1"] for seed in (0, 1)] == [0.25, 0.25]  # type: ignore[index]


def test_numbers_are_written_as_the_field_writes_them() -> None:
    assert [number(0.354), number(1.0), number(None)] == [".35", "1.00", "–"]
    assert [number(x, signed=True) for x in (0.35, -0.02, -0.001)] == ["+.35", "−.02", "+.00"]
    assert interval(0.2, 0.48) == " [.20, .48]" and interval(None, 0.48) == ""
    assert [listed([]), listed([4]), listed([4, 6]), listed([4, 6, 8])] == [
        "none",
        "4",
        "4 and 6",
        "4, 6 and 8",
    ]
