"""Tasks are found by name, their options are validated, and nothing depends on the process."""

import json
import os
import pickle
import subprocess
import sys
from typing import Any

import pytest

from rlheals_ray.config import InputError
from rlheals_ray.tasks import Problem, Task, get_task


@pytest.mark.parametrize(
    ("options", "field", "remedy"),
    [
        ({"card": 3}, "task.card", "cards, targets, wording"),
        ({"cards": "3"}, "task.cards", "valid integer"),
        ({"cards": 3.0}, "task.cards", "valid integer"),
        ({"cards": True}, "task.cards", "valid integer"),
        ({"cards": 1}, "task.cards", "greater than or equal to 2"),
        ({"cards": 7}, "task.cards", "less than or equal to 6"),
        ({"targets": []}, "task.targets", "at least 1"),
        ({"targets": 24}, "task.targets", "tuple"),
        ({"targets": [24, 24]}, "task.targets", r"write \[24\]"),
        ({"targets": [0]}, "task.targets.0", "greater than or equal to 1"),
        ({"wording": "terse"}, "task.wording", "'compact' or 'paper'"),
        ({"held_out": 1.0}, "task.held_out", "less than 1"),
        ({"second_solution": -0.1}, "task.second_solution", "greater than or equal to 0"),
        ({"additive_penalties": "yes"}, "task.additive_penalties", "valid boolean"),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(options: dict[str, Any], field: str, remedy: str) -> None:
    with pytest.raises(InputError, match=rf"{field}\b.*{remedy}"):
        get_task("general_points", **options)


def test_an_unknown_task_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'chess'.*general_points"):
        get_task("chess")


def test_an_unknown_rule_or_split_is_refused() -> None:
    task = get_task("general_points")
    with pytest.raises(InputError, match="rule"):
        task.problems("odd", "eval", 1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="split"):
        task.available("id", "test")  # type: ignore[arg-type]


def test_another_tasks_problem_is_a_programming_error() -> None:
    with pytest.raises(TypeError):
        get_task("general_points").judge(Problem("x", "id", "x"), "")


def test_the_task_keeps_the_protocol_and_problems_travel() -> None:
    task: Task = get_task("general_points", cards=3)
    problem = task.problems("id", "eval", 1)[0]
    assert pickle.loads(pickle.dumps(problem)) == problem
    assert pickle.loads(pickle.dumps(task)).judge(problem, task.demonstration(problem)).solved


def test_the_fingerprint_is_that_of_the_options() -> None:
    same = [get_task("general_points"), get_task("general_points", cards=4, targets=(24,))]
    others = [
        get_task("general_points", **{name: value})
        for name, value in {
            "cards": 3,
            "targets": [18],
            "wording": "compact",
            "additive_penalties": True,
            "held_out": 0.3,
            "second_solution": 0.0,
        }.items()
    ]
    assert same[0].fingerprint() == same[1].fingerprint()
    assert len({task.fingerprint() for task in [*same, *others]}) == 7


_EVERYTHING = """
import json
from rlheals_ray.tasks import get_task
task = get_task("general_points", cards=3, targets=[18, 24], wording="compact")
seen = [task.fingerprint()]
for rule, split in (("id", "train"), ("id", "eval"), ("ood", "eval")):
    for problem in task.problems(rule, split, 200, seed=3):
        seen.append([problem.id, problem.group, task.prompt(problem), task.demonstration(problem, seed=5)])
print(json.dumps(seen))
"""


def test_nothing_depends_on_the_process_or_its_hash_seed() -> None:
    outputs = [
        subprocess.run(
            [sys.executable, "-c", _EVERYTHING],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert len(json.loads(outputs[0])) == 601


def test_importing_tasks_loads_nothing_heavy() -> None:
    code = "import sys, rlheals_ray.tasks; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"torch", "ray", "vllm", "transformers", "numpy"} & set(loaded)
