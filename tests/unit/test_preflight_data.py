"""The user's data before a study starts: too long, without rows, or asking what a probe asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlheals_ray.config import InputError, Study, load_study
from rlheals_ray.grid.preflight_data import check_data
from rlheals_ray.tasks.general_points import GeneralPoints


def nano(tmp_path: Path, rows: list[tuple[str, str]], *overrides: str) -> Study:
    text = "".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in rows)
    (tmp_path / "d.jsonl").write_text(text)
    return load_study("nano", [f"sft.data.path={tmp_path}/d.jsonl", f"storage={tmp_path}/runs", *overrides])


def refused(study: Study, task: GeneralPoints) -> str:
    with pytest.raises(InputError) as caught:
        check_data(study, task)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def trained(game: GeneralPoints) -> list[tuple[str, str]]:
    problems = game.problems("id", "train", 40)
    return [(game.prompt(p), game.demonstration(p)) for p in problems]


def test_the_task_s_own_training_problems_are_fine(
    tmp_path: Path, game: GeneralPoints, trained: list[tuple[str, str]]
) -> None:
    check_data(nano(tmp_path, trained), game)


@pytest.mark.parametrize("rule", ["id", "ood"])
def test_a_prompt_that_a_probe_asks_is_refused(
    tmp_path: Path, game: GeneralPoints, trained: list[tuple[str, str]], rule: str
) -> None:
    probed = [game.prompt(p) for p in game.problems(rule, "eval", 3)]  # type: ignore[arg-type]
    rows = [*trained[:20], *((f" {prompt}\n", "a") for prompt in probed), *trained[20:]]
    message = refused(nano(tmp_path, rows), game)
    assert (
        f"row 21 of 'd.jsonl' has the prompt of a problem that is probed under the {rule.upper()} rule"
        in message
    )
    assert "2 more rows" in message


def test_no_problem_of_the_ood_rule_is_let_in_though_it_is_not_probed(
    tmp_path: Path, game: GeneralPoints, trained: list[tuple[str, str]]
) -> None:
    every = game.problems("ood", "eval", game.available("ood", "eval"))
    study = nano(tmp_path, [*trained, (game.prompt(every[-1]), "a")], "evaluation.problems=10")
    assert "the OOD rule never reaches SFT" in refused(study, game)


def test_a_row_that_the_model_cannot_read_is_refused(
    tmp_path: Path, game: GeneralPoints, trained: list[tuple[str, str]]
) -> None:
    long = (trained[0][0], " ".join(["10"] * 300))
    assert "row 41 of 'd.jsonl' has about" in (message := refused(nano(tmp_path, [*trained, long]), game))
    assert "base.model 'nano' reads 256" in message
    assert "sft.max_length is 8" in refused(nano(tmp_path, trained, "sft.max_length=8"), game)


def test_no_rows_are_refused(tmp_path: Path, game: GeneralPoints) -> None:
    assert "there are no rows" in refused(nano(tmp_path, []), game)


def test_a_number_of_the_task_s_problems_does_not_go_with_data_of_one_s_own(
    tmp_path: Path, game: GeneralPoints, trained: list[tuple[str, str]]
) -> None:
    assert "sft.examples (got 50)" in refused(nano(tmp_path, trained, "sft.examples=50"), game)


def test_rotation_is_not_for_zero3(game: GeneralPoints) -> None:
    study = load_study("nano", ["sft.recipe=rotation", "sft.sharding=zero3", "sft.workers=2"])
    assert "sft.sharding (got 'zero3')" in refused(study, game)
