"""Several OOD rules of GeneralPoints in one task: each under its own name, none of them ever trained on."""

from typing import Any

import pytest

from rlheals_ray.config import InputError
from rlheals_ray.tasks import get_task, ood_rules, rules_of

SMALL: dict[str, Any] = {"cards": 3, "targets": [18, 24], "wording": "compact"}
SEVERAL = SMALL | {"ood": ["faces", "target", "other_faces"], "ood_targets": [12], "ood_faces": [5, 7, 9]}


def test_one_rule_is_called_ood_and_several_by_their_names() -> None:
    assert ood_rules(get_task("general_points", **SMALL)) == ("ood",)
    assert rules_of(get_task("general_points", **SEVERAL)) == ("id", "faces", "target", "other_faces")


@pytest.mark.parametrize("rule", ["faces", "target", "other_faces"])
def test_each_of_several_rules_asks_what_it_would_ask_alone(rule: str) -> None:
    option = {"target": {"ood_targets": [12]}, "other_faces": {"ood_faces": [5, 7, 9]}}.get(rule, {})
    alone = get_task("general_points", **SMALL, ood=rule, **option)
    several = get_task("general_points", **SEVERAL)
    mine, its = several.problems(rule, "eval", 50, seed=3), alone.problems("ood", "eval", 50, seed=3)
    assert [problem.id for problem in mine] == [problem.id for problem in its]
    assert [several.prompt(problem) for problem in mine] == [alone.prompt(problem) for problem in its]
    assert {problem.rule for problem in mine} == {rule}
    with pytest.raises(InputError, match="only ever evaluated"):
        several.problems(rule, "train", 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ood": ["faces", "faces"]}, "task.ood .*named once; write \\['faces'\\]"),
        ({"ood": ["faces", "larger"]}, "task.ood_cards .*for example ood_cards=5"),
        ({"ood": []}, "^task.ood \\(got \\[\\]\\)[^:]*: [^:]*$"),
        ({"ood": "nonsense"}, "^task.ood \\(got 'nonsense'\\): input should be 'faces', [^:]*$"),
        ({"ood": ["faces"], "ood_cards": 5}, "task.ood_cards .*ood faces has no use for it"),
    ],
)
def test_wrong_rules_are_told_once_with_the_remedy(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        get_task("general_points", **SMALL, **options)
