"""Findings say what the tables show: opposite tables give opposite sentences, missing ones give none.

The tables are invented (tests/report_tables.py); what is tested is the reading of them.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlheals_ray.report import Finding, build_report, findings_of
from tests.report_tables import NANO, empty, nano_like, opposite, rows_of, tables, write_study


def by_kind(of: dict[str, pa.Table]) -> dict[str, Finding]:
    return {finding.kind: finding for finding in findings_of(of)}


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
    for begun in (empty(), {}):
        found = findings_of(begun)
        assert found and all(finding.supported is None for finding in found)


@pytest.mark.parametrize("missing", ["sft", "rl", "episodes", "scores", "boundary", "spectra", "edits"])
def test_any_one_table_may_be_missing(missing: str, tmp_path: Path) -> None:
    mine = nano_like([0])
    del mine[missing]
    findings_of(mine)
    assert build_report(write_study(tmp_path / "study", mine)).exists()


def test_without_controls_healing_is_called_what_it_is(nano: dict[str, Finding]) -> None:
    assert "Controls not run: continued_sft and rejection_sft" in nano["controls"].text
    assert "‘heals’ means only that accuracy rose during RL" in nano["controls"].text


@pytest.mark.parametrize(("top", "rarely"), [(0.70, True), (0.99, False)])
def test_exceeding_the_sft_peak_needs_intervals_that_stand_apart(top: float, rarely: bool) -> None:
    def score(stage: str, rl_step: int, value: float) -> dict[str, Any]:
        name = f"{stage}/seed=0/" + (f"sft_step=000006/rl_step={rl_step:06d}" if rl_step else "step=000006")
        bounds = {"acc_1_low": value - 0.04, "acc_1_high": min(1.0, value + 0.04)}
        place = {"seed": 0, "sft_step": 6, "rl_step": rl_step, "rule": "ood", "n": 500}
        return {"checkpoint": name, "stage": stage, "acc_1": value, **bounds, **place}

    found = by_kind({"scores": rows_of("scores", [score("sft", 0, 0.69), score("rl", 30, top)])})
    assert found["rarely_exceeds"].supported is rarely


@settings(deadline=None)
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


@pytest.mark.parametrize(
    ("after", "said"), [(0.06, "RL rotates the weights back"), (0.2, "turns them further away")]
)
def test_rotation_back_is_judged_by_the_angle_to_the_peak(after: float, said: str) -> None:
    found = by_kind(tables(replace(NANO, angle_after=after), (0,), verdict=lambda _: "unclear"))
    assert said in found["rotates_back"].text
    assert found["rotates_back"].supported is (after < NANO.angle)


def test_where_the_peak_is_the_last_step_there_is_nothing_to_rotate_back_to(
    reverse: dict[str, Finding],
) -> None:
    assert "rotates_back" not in reverse


def test_equal_controls_of_different_edits_are_not_mixed() -> None:
    mine = nano_like([0])
    values = {
        ("UV", "edit"): 0.6,
        ("UV", "weight_swap"): 0.61,
        ("S", "edit"): 0.02,
        ("S", "weight_swap"): 0.03,
    }
    mine["edits"] = rows_of(
        "edits",
        [
            {"seed": 0, "donor": "sft/seed=0/step=000006", "recipient": "sft/seed=0/step=000400", "kind": kind,
             "factors": factors, "rule": "ood", "n": 450, "acc_1": value}
            for (factors, kind), value in values.items()
        ],
    )  # fmt: skip
    found = [finding.text for finding in findings_of(mine) if finding.kind == "edit"]
    assert len(found) == 2
    assert "UV of SFT 6 in SFT 400" in found[0] and "matrices, .61" in found[0]
    assert "S of SFT 6 in SFT 400" in found[1] and "matrices, .03" in found[1]


def test_a_second_algorithm_is_drawn_but_not_mixed_into_the_first(tmp_path: Path) -> None:
    mine = nano_like([0])
    other = [
        {**row, "algorithm": "grpo", "verdict": "harms", "healing": -0.9}
        for row in mine["boundary"].to_pylist()[:3]
    ]
    mine["boundary"] = pa.concat_tables([mine["boundary"], rows_of("boundary", other)])
    assert "harm" not in by_kind(mine)
    page = build_report(write_study(tmp_path / "study", mine)).read_text()
    assert "(plain, PPO)" in page and "(plain, GRPO)" in page


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


def test_where_no_checkpoint_solves_anything_no_sentence_is_for_or_against() -> None:
    known = nano_like((0, 1, 2))
    scores = known["scores"]
    nothing = pa.array([0.0] * scores.num_rows)
    for name in ("acc_1", "acc_1_low", "acc_k", "acc_k_low"):
        scores = scores.set_column(scores.schema.get_field_index(name), name, nothing)
    found = findings_of({**known, "scores": scores})
    assert found[0].kind == "nothing_learnt"
    assert {each.supported for each in found} == {None}
    assert "nothing_learnt" not in {each.kind for each in findings_of(known)}
