"""Edits in the report: beside their controls, paired on problems, the best of many not crowned by chance."""

from typing import Any

import pyarrow as pa
import pytest

from rlheals_ray.report import Finding, findings_of
from rlheals_ray.report.edits import CHOSEN, HELD_OUT, edit_groups, rows_along
from rlheals_ray.report.paired import Paired, held_out
from rlheals_ray.report.results import Accuracies, conform
from rlheals_ray.report.variants import Variant, of_variant
from rlheals_ray.tables import SCHEMAS
from tests.report_mechanism import branch, edit_grid, trunk, whole
from tests.report_tables import rows_of


@pytest.fixture(scope="module")
def full() -> dict[str, pa.Table]:
    return whole((0, 1))


def by_kind(of: dict[str, pa.Table]) -> dict[str, Finding]:
    return {finding.kind: finding for finding in findings_of(of)}


def test_a_shared_control_stands_beside_every_edit_of_its_group(full: dict[str, pa.Table]) -> None:
    groups = edit_groups(
        {name: conform(name, full.get(name)) for name in SCHEMAS}, Accuracies(full["scores"])
    )
    assert len(groups) == 16
    for group in groups:
        assert {"edit", "weight_swap", "interpolation", "random_angle", "random_norm"} <= set(
            group.bars["ood"]
        )
        assert group.donor == "the OOD peak" and group.recipient == "SFT 400"
        assert set(group.checkpoints["weight_swap"]) == {0, 1}
    assert len({frozenset(group.checkpoints["weight_swap"].values()) for group in groups}) == 3
    doses = rows_along(groups, "t")
    assert [[group.t for group in family.groups] for family in doses] == [[0.25, 0.5, 0.75, 1.0]]
    sizes = {tuple(group.k for group in family.groups) for family in rows_along(groups, "k")}
    assert sizes == {(8, 16, 32, None), (8, 16, 32)}
    assert rows_along(groups, "roles") == []


def test_many_edits_are_told_by_the_best_one_and_by_counts(full: dict[str, pa.Table]) -> None:
    found = by_kind(full)
    assert "The best of 16 edits" in found["edit"].text and "which flatters it" in found["edit"].text
    assert found["edit"].text.endswith(CHOSEN), "the peak is every one's donor"
    assert "above the recipient in 16 of 16" in found["edits"].text
    assert found["edits"].supported is False
    assert ".01 at t = 0, " in found["dose"].text and found["dose"].supported is None


@pytest.mark.parametrize(("swap", "supported"), [(0.1, True), (0.68, False)])
def test_edits_are_shown_only_by_standing_above_every_control(
    full: dict[str, pa.Table], swap: float, supported: bool
) -> None:
    mine = dict(full)
    grid = edit_grid((0, 1), 6, 400, swap=swap, edit=0.7).to_pylist()
    low = [
        row | {"acc_1": 0.1, "acc_1_low": 0.08, "acc_1_high": 0.13}
        for row in grid
        if row["kind"] == "interpolation"
    ]
    mine["edits"] = rows_of("edits", [row for row in grid if row["kind"] != "interpolation"] + low)
    assert by_kind(mine)["edits"].supported is supported


def test_an_edit_is_paired_with_its_control_on_the_same_problems(full: dict[str, pa.Table]) -> None:
    """Two hundred problems: wide intervals overlap, but the edit solves all that the swap solves and ten more."""
    rows = [
        row for row in full["edits"].to_pylist() if row["t"] == 1 and row["k"] is None and row["seed"] == 0
    ]
    rows = [
        r | {"n": 200, "acc_1_low": 0.4, "acc_1_high": 0.8}
        for r in rows
        if r["kind"] in ("edit", "weight_swap")
    ]
    rows = [r for r in rows if r["mode"] == "concatenate" and r["layers"] is None]
    solved = {"edit": 130, "weight_swap": 120}
    episodes = [
        {"checkpoint": f"edit/{row['edit']}", "rule": "ood", "problem_id": f"T24:{i}-{i}-{i}",
         "solved_at": 1 if i < solved[row["kind"]] else None}
        for row in rows if row["rule"] == "ood" for i in range(200)
    ]  # fmt: skip
    mine = {
        "edits": rows_of("edits", rows),
        "scores": full["scores"],
        "episodes": rows_of("episodes", episodes),
    }
    assert "It does more than the plain weight swap" in by_kind(mine)["edit"].text
    assert "(+.050 [" in by_kind(mine)["edit"].text
    del mine["episodes"]
    assert "It does no more than the plain weight swap" in by_kind(mine)["edit"].text


def test_what_takes_after_the_peak_is_reported_on_the_problems_that_did_not_choose_it(
    full: dict[str, pa.Table],
) -> None:
    """Every checkpoint solves nothing but what chose: of the other half each has to show nothing."""
    problems = [f"T24:{i}-{j}" for i in range(100) for j in "ab"]
    clusters = {problem: problem.split("-")[0] for problem in problems}
    others = held_out(problems, clusters)
    assert len(others) == 100 and not others & (set(problems) - set(others))
    edits = [
        row for row in full["edits"].to_pylist() if row["t"] == 1 and row["k"] is None and row["seed"] == 0
    ]
    edits = [row for row in edits if row["mode"] == "concatenate" and row["layers"] is None]
    ends = {edits[0]["donor"], edits[0]["recipient"]}
    episodes = [
        {
            "checkpoint": name,
            "rule": "ood",
            "problem_id": problem,
            "solved_at": None if problem in others else 1,
        }
        for name in {f"edit/{row['edit']}" for row in edits} | ends
        for problem in problems
    ]
    mine = {name: conform(name, full.get(name)) for name in SCHEMAS}
    mine |= {"edits": rows_of("edits", edits), "episodes": rows_of("episodes", episodes)}
    (group,) = edit_groups(mine, Accuracies(mine["scores"]), clusters)
    assert {(bar.value, bar.low, bar.n) for bar in group.bars["ood"].values()} == {(0.0, 0.0, 100)}
    assert {bar.n for bar in group.bars["id"].values()} == {450}, "no ID problem chose anything"
    assert {"recipient", "donor", "edit", "weight_swap"} <= set(group.bars["ood"])
    found = {finding.kind: finding for finding in findings_of(mine, clusters)}["edit"]
    assert found.text.endswith(HELD_OUT) and "(+.000 [+.000, +.000])" in found.text

    # Without the task's clusters the half that chose is not known.
    assert by_kind(mine)["edit"].text.endswith(CHOSEN)

    # Beside another recipe, whose checkpoints are named by it, nothing changes.
    others_too = mine | {"episodes": rows_of("episodes", [
        row | {"checkpoint": name.replace("edit/", "edit/recipe=lora_")} for row in episodes
        for name in [row["checkpoint"]] if "edit/" in name
    ])}  # fmt: skip
    lora = of_variant(others_too, Variant("lora", None))["episodes"]
    assert lora.num_rows == others_too["episodes"].num_rows > 0
    assert of_variant(others_too, Variant("plain", None))["episodes"].num_rows == 0

    # An end whose episodes are gone: nothing is mixed, and what flatters is said.
    mine["episodes"] = rows_of("episodes", [row for row in episodes if row["checkpoint"] not in ends])
    (group,) = edit_groups(mine, Accuracies(mine["scores"]), clusters)
    assert not group.held_out and group.bars["ood"]["edit"].value > 0
    assert {finding.kind: finding for finding in findings_of(mine, clusters)}["edit"].text.endswith(CHOSEN)


@pytest.mark.parametrize(("edit", "supported"), [(0.02, True), (0.4, False)])
def test_imposing_a_worse_checkpoint_is_judged_by_what_it_spoils(
    full: dict[str, pa.Table], edit: float, supported: bool
) -> None:
    values = {"edit": edit, "weight_swap": 0.4, "interpolation": 0.5, "random_norm": 0.7}
    rows = [
        {"edit": f"seed=0_latest-into-rl_{kind}", "group": "seed=0_latest-into-rl_UV_k=all", "seed": 0, "kind": kind,
         "donor": trunk(0, 400), "recipient": branch(0, 4, 30), "mode": "concatenate", "factors": "UV", "rule": "ood",
         "n": 400, "acc_1": value, "acc_1_low": value - 0.02, "acc_1_high": value + 0.02}
        for kind, value in values.items()
    ]  # fmt: skip
    found = by_kind({"edits": rows_of("edits", rows), "scores": full["scores"]})
    assert "edit" not in found and found["impose"].supported is supported
    assert CHOSEN not in found["impose"].text, "neither end was chosen by accuracy"
    assert (
        "lowers OOD accuracy to" in found["impose"].text
        and "recipient .93 and donor .01" in found["impose"].text
    )


def test_a_paired_difference_is_the_mean_over_seeds_and_problems() -> None:
    def attempts(checkpoint: str, solved: str) -> list[dict[str, Any]]:
        return [
            {
                "checkpoint": checkpoint,
                "rule": "ood",
                "problem_id": f"p{i}",
                "solved_at": 1 if mark == "1" else 2,
            }
            for i, mark in enumerate(solved)
        ]

    episodes = rows_of(
        "episodes",
        [*attempts("a0", "1110"), *attempts("b0", "1000"), *attempts("a1", "1100"), *attempts("b1", "1100")],
    )
    paired = Paired(episodes, ["a0", "b0", "a1", "b1"])
    difference = paired.difference([("a0", "b0"), ("a1", "b1")])
    assert difference is not None and difference.value == 0.25
    assert 0 <= difference.low <= 0.25 <= difference.high <= 0.5
    assert paired.difference([("a0", "absent")]) is None


def test_a_smaller_alpha_widens_the_interval() -> None:
    episodes = rows_of(
        "episodes",
        [
            {
                "checkpoint": name,
                "rule": "ood",
                "problem_id": f"p{i}",
                "solved_at": 1 if i % modulus else None,
            }
            for name, modulus in (("a", 5), ("b", 2))
            for i in range(60)
        ],
    )
    paired = Paired(episodes, ["a", "b"])
    wide, narrow = paired.difference([("a", "b")], alpha=0.005), paired.difference([("a", "b")])
    assert wide is not None and narrow is not None
    assert wide.value == narrow.value and wide.low < narrow.low < narrow.high < wide.high
