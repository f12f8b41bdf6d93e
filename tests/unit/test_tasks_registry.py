"""Tasks are found by name, their options are validated, and nothing depends on the process."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlheals_ray.config import InputError
from rlheals_ray.tasks import Problem, Task, get_task
from tests.toy_task import COLOURS


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


def test_a_task_of_ones_own_is_named_by_module_and_class_and_its_options_are_validated() -> None:
    task = get_task("tests.toy_task:ToyTask", keys=3)
    assert task.available("id", "train") == 12
    with pytest.raises(InputError, match=r"task\.keys .*less than or equal to 8"):
        get_task("tests.toy_task:ToyTask", keys=9)
    with pytest.raises(InputError, match=r"task\.key: .*use keys"):
        get_task("tests.toy_task:ToyTask", key=3)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("tests.no_such:Task", "no module tests.no_such; .*PYTHONPATH"),
        ("no_such.deeper:Task", "no module no_such.deeper"),
        ("tests.toy_task:Toy", r"no class Toy \(it has ToyTask\)"),
        ("tests.toy_task:right_answer", "no class right_answer"),
        (
            "collections:Counter",
            "lacks problems, available, prompt, demonstration, judge, reply, fingerprint",
        ),
        ("tests.toy_task:", "write module:Class"),
        (":ToyTask", "write module:Class"),
        ("tests/toy_task.py:ToyTask", "write module:Class"),
    ],
)
def test_a_task_of_ones_own_that_is_not_there_is_refused(name: str, remedy: str) -> None:
    with pytest.raises(InputError, match=rf"task\.name \(got '{name}'\): .*{remedy}"):
        get_task(name)


def test_a_module_that_cannot_be_imported_is_named_with_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "damaged_task.py").write_text("import no_such_package")
    (tmp_path / "half_a_task.py").write_text(
        "from tests.toy_task import ToyTask\nclass Half(ToyTask):\n    Options = dict\n    judge = None\n"
        "class Loose(ToyTask):\n    Options = dict\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"importing damaged_task fails .*no_such_package"):
        get_task("damaged_task:Task")
    with pytest.raises(InputError, match="Half lacks judge"):
        get_task("half_a_task:Half")
    with pytest.raises(InputError, match="Loose has no Options"):
        get_task("half_a_task:Loose")


def test_the_toy_task_keeps_its_promises() -> None:
    task: Task = get_task("tests.toy_task:ToyTask")
    train, held_out, ood = (
        task.problems(rule, split, task.available(rule, split), seed=1)
        for rule, split in (("id", "train"), ("id", "eval"), ("ood", "eval"))
    )
    assert not {p.group for p in train} & {p.group for p in held_out}
    for problem in [*train, *held_out, *ood]:
        answers = {word: task.judge(problem, word).reward for word in COLOURS}
        assert sorted(answers.values()) == [0.0] * 7 + [1.0], "the optimum is not what it is said to be"
        assert task.judge(problem, task.demonstration(problem)).solved
