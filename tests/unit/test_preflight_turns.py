"""Of a task of several turns the longest episode and the longest demonstration must fit, before anything starts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rlheals_ray.config import InputError, Study, load_study
from rlheals_ray.grid.preflight import preflight
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.sft.data import demonstrate
from rlheals_ray.tasks import get_task
from rlheals_ray.tasks.turns import is_turnwise
from tests.tiny_qwen import write_tiny_qwen

OPTIONS = {"turns": [2, 2], "pool": 600}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "qwen"
    return write_tiny_qwen(path, get_task("navigation", **OPTIONS), 2048)


def study(model: Path, *changes: str) -> Study:
    task = {"name": "navigation", **OPTIONS}
    return load_study(
        "tiny",
        [
            f"task={json.dumps(task)}", f"base.model={model}", f"storage={model.parent / 'runs'}", "rl.max_attempts=2",
            "rl.max_new_tokens=24", "evaluation.max_new_tokens=24", "evaluation.max_attempts=2",
            "evaluation.problems=24", "rollout.max_model_len=1536", *changes,
        ],
    )  # fmt: skip


def test_what_fits_passes(model: Path) -> None:
    assert preflight(study(model)).root.name == "tiny"


@pytest.mark.parametrize("stage", ["rl", "evaluation"])
def test_episodes_that_would_not_come_to_their_end_are_refused(model: Path, stage: str) -> None:
    with pytest.raises(InputError) as caught:
        preflight(study(model, f"{stage}.max_new_tokens=160"))
    told = re.search(
        rf"{stage}\.max_new_tokens \(got 160\): episodes of (\d+) turns .* need about (\d+) tokens", str(caught.value)
    )  # fmt: skip
    assert told and int(told[1]) <= 9 and int(told[2]) > 9 * 160
    assert str(caught.value).endswith("use a longer context, fewer tokens or problems of fewer turns.")


def test_the_room_asked_for_is_that_of_the_longest_conversation(model: Path) -> None:
    """Answers of full length at every turn, and failed tries at one: what is refused is not far from what is needed."""
    with pytest.raises(InputError) as caught:
        preflight(study(model, "rollout.max_model_len=300"))
    needed = int(re.findall(r"need about (\d+) tokens", str(caught.value))[0])
    assert preflight(study(model, f"rollout.max_model_len={needed + 40}"))
    # One more attempt takes as much room as one more answer and what is said to it, whatever the number of turns.
    with pytest.raises(InputError) as caught:
        preflight(study(model, "rollout.max_model_len=300", "rl.max_attempts=3"))
    more = int(re.findall(r"need about (\d+) tokens", str(caught.value))[0]) - needed
    assert 24 < more < 24 + 60


def test_a_demonstration_that_is_too_long_to_be_learnt_is_refused(model: Path) -> None:
    task, chat = get_task("navigation", **OPTIONS), ChatFormat.of(model)
    problems = task.problems("id", "train", task.available("id", "train"))
    assert is_turnwise(task)
    most = max(map(task.turns, problems))
    longest = [problem for problem in problems if task.turns(problem) == most]
    length = max(len(demonstrate(task, chat, problem, 0).input_ids) for problem in longest)
    with pytest.raises(
        InputError, match=r"sft\.max_length \(got 600\): the demonstration .* 600 are allowed"
    ):
        preflight(study(model, "sft.max_length=600"))
    assert preflight(study(model, f"sft.max_length={length}"))


def test_a_route_at_once_is_one_turn(model: Path) -> None:
    whole = f"task={json.dumps({'name': 'navigation', 'mode': 'route', **OPTIONS})}"
    assert preflight(study(model, whole, "rl.max_new_tokens=160", "evaluation.max_new_tokens=160"))
    with pytest.raises(InputError, match=r"rl\.max_new_tokens \(got 900\): episodes of 1 turn of"):
        preflight(study(model, whole, "rl.max_new_tokens=900"))
