"""Findings say what the tables show: opposite tables give opposite sentences, missing ones give none.

The tables are invented (tests/report_tables.py); what is tested is the reading of them.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.weightstats import DescrStatsW

from rlheals_ray.report import Finding, build_report, findings_of
from rlheals_ray.report.results import Accuracies, Place, ood_peak, place_of, seed_interval, split_curves
from rlheals_ray.report.words import interval, listed, number
from tests.report_tables import empty, nano_like, opposite, rows_of, write_study


def by_kind(tables: dict[str, pa.Table]) -> dict[str, Finding]:
    return {finding.kind: finding for finding in findings_of(tables)}


@pytest.fixture(scope="module")
def nano() -> dict[str, Finding]:
    return by_kind(nano_like())


@pytest.fixture(scope="module")
def reverse() -> dict[str, Finding]:
    return by_kind(opposite())


@pytest.mark.parametrize(
    ("kind", "shown", "said", "otherwise", "said_otherwise"),
    [
        (
            "forgetting",
            True,
            "SFT forgets: OOD accuracy peaks at SFT step 6",
            False,
            "SFT did not forget here",
        ),
        ("healing", True, "RL heals.", False, "RL heals from none of the 7 SFT steps"),
        ("boundary", True, "RL heals from SFT 4 to 60; not at 0", False, "no recovery boundary"),
        ("id_after_rl", True, "RL lowers it from none", False, "RL lowers it from 6 of 6"),
        ("id_loss_blind", True, "The ID loss does not tell", False, "The ID loss does tell"),
        ("ood_loss_blind", True, "The OOD loss does not tell", False, "The OOD loss does tell"),
        ("rotation", True, "Weights rotate more", False, "Singular values drift at least as much"),
        ("rotates_back", False, "RL does not rotate the weights back", True, "RL rotates the weights back"),
        (
            "edit",
            False,
            "It does no more than the plain weight swap",
            False,
            "It does more than the plain weight",
        ),
    ],
)
def test_opposite_tables_give_opposite_sentences(
    nano: dict[str, Finding],
    reverse: dict[str, Finding],
    kind: str,
    shown: bool,
    said: str,
    otherwise: bool,
    said_otherwise: str,
) -> None:
    assert (said in nano[kind].text, nano[kind].supported) == (True, shown), nano[kind]
    assert (said_otherwise in reverse[kind].text, reverse[kind].supported) == (True, otherwise), reverse[kind]


def test_the_boundary_names_both_sides_and_where_its_edges_lie(nano: dict[str, Finding]) -> None:
    text = nano["boundary"].text
    assert "not at 0 (+.00), too short; nor at 120" in text
    assert "400 (+.00), too long" in text
    assert "between 0 and 4 and between 60 and 120" in text


def test_harm_is_said_only_where_a_verdict_says_so(
    nano: dict[str, Finding], reverse: dict[str, Finding]
) -> None:
    assert "harm" not in nano
    assert "RL harms OOD accuracy from SFT steps 4:" in reverse["harm"].text


def test_id_that_climbs_over_the_forgetting_is_told_with_its_dip(nano: dict[str, Finding]) -> None:
    assert nano["id_rising"].supported is True
    assert "from .82 at the OOD peak (step 6) to .93 at step 400, by way of .68" in nano["id_rising"].text


def test_an_edit_that_beats_the_swap_but_restores_nothing_is_no_support(reverse: dict[str, Finding]) -> None:
    assert "does not raise OOD accuracy" in reverse["edit"].text


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ((0,), "One seed: no interval over seeds"),
        ((0, 1, 2), "Three seeds are few"),
        (range(6), "6 seeds: interval"),
    ],
)
def test_what_an_interval_covers_is_said_for_the_number_of_seeds(seeds: Any, said: str) -> None:
    assert said in by_kind(nano_like(seeds))["seeds"].text


def test_a_study_that_has_only_begun_claims_nothing() -> None:
    for tables in (empty(), {}):
        found = findings_of(tables)
        assert found and all(finding.supported is None for finding in found)


@pytest.mark.parametrize("missing", ["sft", "rl", "episodes", "scores", "boundary", "spectra", "edits"])
def test_any_one_table_may_be_missing(missing: str, tmp_path: Path) -> None:
    tables = nano_like([0])
    del tables[missing]
    findings_of(tables)
    assert build_report(write_study(tmp_path / "study", tables)).exists()


def test_without_controls_healing_is_called_what_it_is(nano: dict[str, Finding]) -> None:
    assert "Controls not run: continued_sft and rejection_sft" in nano["controls"].text
    assert "'RL heals' means 'RL after SFT heals'" in nano["controls"].text


@pytest.mark.parametrize(("accuracy", "shown"), [(0.10, True), (0.99, False)])
def test_a_control_that_ran_is_compared_with_rl_from_the_same_checkpoint(
    accuracy: float, shown: bool
) -> None:
    tables = nano_like([0])
    control = {
        "checkpoint": "control/continued_sft/seed=0/sft_step=000030/rl_step=000030", "stage": "control",
        "recipe": "continued_sft", "seed": 0, "sft_step": 30, "rl_step": 30, "rule": "ood", "n": 552,
        "acc_1": accuracy,
    }  # fmt: skip
    tables["scores"] = pa.concat_tables([tables["scores"], rows_of("scores", [control])])
    found = by_kind(tables)
    assert found["continued_sft"].supported is shown
    assert f"30: {number(accuracy)} (RL" in found["continued_sft"].text
    assert "Controls not run: rejection_sft." in found["controls"].text


@pytest.mark.parametrize(("top", "rarely"), [(0.70, True), (0.99, False)])
def test_exceeding_the_sft_peak_needs_intervals_that_stand_apart(top: float, rarely: bool) -> None:
    def score(stage: str, rl_step: int, value: float) -> dict[str, Any]:
        name = f"{stage}/seed=0/" + (f"sft_step=000006/rl_step={rl_step:06d}" if rl_step else "step=000006")
        bounds = {"acc_1_low": value - 0.04, "acc_1_high": min(1.0, value + 0.04)}
        place = {"seed": 0, "sft_step": 6, "rl_step": rl_step, "rule": "ood", "n": 500}
        return {"checkpoint": name, "stage": stage, "acc_1": value, **bounds, **place}

    found = by_kind({"scores": rows_of("scores", [score("sft", 0, 0.69), score("rl", 30, top)])})
    assert found["rarely_exceeds"].supported is rarely


@given(
    st.dictionaries(
        st.sampled_from([0, 2, 4, 8, 15, 30, 60]), st.sampled_from(["heals", "unclear"]), min_size=1
    )
)
def test_the_boundary_is_shown_exactly_when_both_sides_were_tried(verdicts: dict[int, str]) -> None:
    rows = [
        {
            "scope": "pooled",
            "rule": "ood",
            "sft_step": step,
            "rl_step": 30,
            "healing": 0.1,
            "verdict": verdict,
        }
        for step, verdict in verdicts.items()
    ]
    found = by_kind({"boundary": rows_of("boundary", rows)})["boundary"]
    healing = [step for step, verdict in verdicts.items() if verdict == "heals"]
    both = bool(healing) and min(verdicts) < min(healing) and max(healing) < max(verdicts)
    assert found.supported is both
    if healing:
        assert f"RL heals from SFT {min(healing)}" in found.text
        gaps = [s for s, v in verdicts.items() if v != "heals" and min(healing) < s < max(healing)]
        assert bool(gaps) == ("healing is not shown at" in found.text)


def test_the_peak_is_chosen_on_one_half_of_the_problems_and_reported_on_the_other() -> None:
    problems = [f"T24:{i}-{i + 1}-{i + 2}" for i in range(40)]
    flat = [_trunk(step, problems, lambda _: True) for step in (4, 8)]
    curves = split_curves(rows_of("episodes", [row for rows in flat for row in rows]))
    assert curves == {(0, 4): (1.0, 1.0), (0, 8): (1.0, 1.0)}
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


def test_permutations_of_one_multiset_fall_into_the_same_half() -> None:
    orders = ["a-b-c", "c-a-b", "b-c-a"] * 4
    problems = [f"{order}:{i // 3}" for i, order in enumerate(orders)]
    half = _choosing_half(problems)
    for deal in range(4):
        assert len({problem in half for problem in problems[3 * deal : 3 * deal + 3]}) == 1


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


def test_a_second_algorithm_is_drawn_but_not_mixed_into_the_first(tmp_path: Path) -> None:
    tables = nano_like([0])
    other = [
        {**row, "algorithm": "grpo", "verdict": "harms", "healing": -0.9}
        for row in tables["boundary"].to_pylist()[:3]
    ]
    tables["boundary"] = pa.concat_tables([tables["boundary"], rows_of("boundary", other)])
    assert "harm" not in by_kind(tables)
    page = build_report(write_study(tmp_path / "study", tables)).read_text()
    assert "(plain, ppo)" in page and "(plain, grpo)" in page


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


def test_text_from_a_study_cannot_become_markup(tmp_path: Path) -> None:
    study = write_study(
        tmp_path / "study", nano_like([0]), name="<script>x</script>", versions={"<b>": "</b>"}
    )
    page = build_report(study).read_text()
    assert "<script>x" not in page and "&lt;script&gt;x" in page


def test_a_broken_table_is_named_and_the_page_is_written(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", nano_like([0]))
    (study / "tables" / "rl.parquet").write_bytes(b"PAR1 half a file")
    (study / "study.yaml").write_text("name: [unclosed")
    page = build_report(study).read_text()
    assert "rl.parquet: it cannot be read" in page and "study.yaml: it cannot be read" in page
    assert not list(study.glob(".report.html*")), "no temporary file stays behind"


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no study here"):
        build_report(tmp_path / "absent")
