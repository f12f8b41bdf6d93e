"""The OOD rules of GeneralPoints: each differs in one thing, says so, and keeps clear of what is trained."""

import itertools
import json
import re
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlheals_ray.config import InputError
from rlheals_ray.tasks import Rule, Split, get_task
from rlheals_ray.tasks.deals import GeneralPointsProblem, Group
from rlheals_ray.tasks.points_rules import OOD_RULES, Terms
from rlheals_ray.tasks.solver import solvable

PIPS = {"A": 1} | {str(n): n for n in range(2, 11)}
RULES: list[dict[str, Any]] = [
    {"ood": "faces"},
    {"ood": "other_faces", "ood_faces": [5, 7, 9]},
    {"ood": "other_faces", "ood_faces": [7, 7, 7]},
    {"ood": "other_faces", "ood_faces": [3, 40, 99]},
    {"ood": "larger", "ood_cards": 4},
    {"ood": "target", "ood_targets": [36, 12]},
    {"ood": "wording"},
]
NAMES = [" ".join(map(str, rule.values())) for rule in RULES]
every_rule = pytest.mark.parametrize("rule", RULES, ids=NAMES)


def all_of(options: dict[str, Any], rule: Rule, split: Split) -> list[GeneralPointsProblem]:
    task = get_task("general_points", **{"cards": 3, **options})
    return cast(list[GeneralPointsProblem], task.problems(rule, split, task.available(rule, split)))


def worths(rule: dict[str, Any]) -> dict[str, int]:
    faces = {"faces": [11, 12, 13]}.get(rule["ood"], rule.get("ood_faces", [10, 10, 10]))
    return PIPS | dict(zip("JQK", faces, strict=True))


def hand(problem: GeneralPointsProblem) -> tuple[int, ...]:
    return tuple(sorted(problem.values))


def test_every_rule_of_the_table_is_tried_here() -> None:
    assert {rule["ood"] for rule in RULES} == set(OOD_RULES)


@every_rule
@pytest.mark.parametrize("targets", [[24], [18, 24]])
def test_every_solvable_deal_that_is_clear_of_training_is_dealt_exactly_once(
    rule: dict[str, Any], targets: list[int]
) -> None:
    worth = worths(rule)
    trained = {hand(p) for p in all_of({"targets": targets}, "id", "train")}
    expected = set()
    for cards in itertools.product(worth, repeat=rule.get("ood_cards", 3)):
        values = tuple(worth[card] for card in cards)
        differs = rule["ood"] in ("larger", "target", "wording") or set(cards) & set("JQK")
        if differs and tuple(sorted(values)) not in trained:
            expected |= {(t, cards) for t in rule.get("ood_targets", targets) if solvable(values, t)}
    dealt = [(p.target, p.cards) for p in all_of({**rule, "targets": targets}, "ood", "eval")]
    assert len(dealt) == len(set(dealt))
    assert set(dealt) == expected


@every_rule
def test_the_trained_rule_is_the_same_whatever_the_ood_rule(rule: dict[str, Any]) -> None:
    for split in cast(tuple[Split, ...], ("train", "eval")):
        assert all_of(rule, "id", split) == all_of({}, "id", split)
    assert get_task("general_points", cards=3, **rule).available("ood", "train") == 0


def test_problems_of_two_rules_have_neither_ids_nor_groups_in_common() -> None:
    seen: set[str] = set()
    for problems in [all_of({}, "id", "eval"), *(all_of(rule, "ood", "eval") for rule in RULES)]:
        names = {p.id for p in problems} | {p.group for p in problems}
        assert names.isdisjoint(seen)
        seen |= names


@every_rule
def test_fewer_problems_are_a_prefix_and_groups_are_those_of_target_and_values(rule: dict[str, Any]) -> None:
    task = get_task("general_points", cards=3, **rule)
    problems = cast(list[GeneralPointsProblem], task.problems("ood", "eval", 60, seed=2))
    assert task.problems("ood", "eval", 25, seed=2) == problems[:25]
    assert task.problems("ood", "eval", 25, seed=3) != problems[:25]
    by_group = {p.group: (p.target, hand(p)) for p in problems}
    assert len(set(by_group.values())) == len(by_group)
    assert all(by_group[p.group] == (p.target, hand(p)) for p in problems)


# The compact vocabulary has no words for the others.
WORDED = [("paper", rule) for rule in RULES if rule["ood"] != "wording"] + [
    ("compact", RULES[i]) for i in (0, 1, 2, 4)
]


@pytest.mark.parametrize(("wording", "rule"), WORDED)
def test_the_prompt_tells_the_rule_and_every_demonstration_is_judged_solved(
    wording: str, rule: dict[str, Any]
) -> None:
    task = get_task("general_points", cards=3, wording=wording, **rule)
    worth = worths(rule)
    j, q, k = (worth[face] for face in "JQK")
    for problem in cast(list[GeneralPointsProblem], task.problems("ood", "eval", 50)):
        prompt = task.prompt(problem)
        if wording == "compact":
            cards = " ".join(problem.cards)
            assert prompt == f"make {problem.target} rule J {j} Q {q} K {k} cards {cards} reply"
        else:
            assert f"a set of {len(problem.cards)} cards" in prompt
            assert f"evaluates to {problem.target} " in prompt
            told = [int(n) for n in re.findall(r"'(\d+)'", prompt[: prompt.index(", and each card")])]
            assert told == ([j] if j == q == k else [j, q, k])
        assert problem.values == tuple(worth[card] for card in problem.cards)
        assert task.judge(problem, task.demonstration(problem)).solved


def test_a_face_card_judged_by_its_value_under_the_trained_rule_is_wrong() -> None:
    task = get_task("general_points", cards=3, ood="other_faces", ood_faces=[5, 7, 9])
    problem = task.deal(["J", "10", "9"], rule="ood")
    answers = [json.dumps({"cards": [], "number": [n, 10, 9], "formula": f"{n}+10+9"}) for n in (5, 10)]
    assert [task.judge(problem, answer).reward for answer in answers] == [5, -2]


def test_a_given_deal_has_the_cards_and_targets_of_its_rule() -> None:
    larger = get_task("general_points", cards=3, ood="larger", ood_cards=4)
    assert larger.deal(["2", "J", "2", "A"], rule="ood").values == (2, 10, 2, 1)
    with pytest.raises(InputError, match="4 were dealt; this task deals 3"):
        larger.deal(["2", "J", "2", "A"], rule="id")
    other = get_task("general_points", cards=3, ood="target", ood_targets=[36])
    assert other.deal(["4", "9", "A"], rule="ood").target == 36
    with pytest.raises(InputError, match="name one of"):
        other.deal(["4", "9", "A"], rule="ood", target=24)


@given(
    faces=st.tuples(*[st.integers(1, 13)] * 3),
    indices=st.lists(st.integers(0, 12), min_size=2, max_size=3),
    needs_face=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_the_numbered_deals_of_a_group_are_all_of_its_values_each_once(
    faces: tuple[int, int, int], indices: list[int], needs_face: bool
) -> None:
    terms = Terms("ood", "ood", len(indices), (24,), faces, needs_face)
    worth = PIPS | dict(zip("JQK", faces, strict=True))
    values = tuple(sorted(list(worth.values())[i] for i in indices))
    expected = {
        cards
        for cards in itertools.product(worth, repeat=len(values))
        if tuple(sorted(worth[card] for card in cards)) == values
        and (set(cards) & set("JQK") or not needs_face)
    }
    group = Group(24, terms, values)
    dealt = [group.deal(index) for index in range(group.size)]
    assert len(dealt) == len(expected)
    assert {problem.cards for problem in dealt} == expected
    assert {problem.group for problem in dealt} <= {group.label}


@pytest.mark.parametrize(
    ("options", "field", "remedy"),
    [
        ({"ood": "suits"}, "ood", "'faces', 'other_faces', 'larger', 'target' or 'wording'"),
        # The option of the rule is missing, or is that of another rule.
        ({"ood": "other_faces"}, "ood_faces", r"needs it; for example ood_faces=\[5,7,9\]"),
        ({"ood": "larger"}, "ood_cards", "needs it; for example ood_cards=5"),
        ({"ood": "target"}, "ood_targets", r"needs it; for example ood_targets=\[36\]"),
        ({"ood_faces": [5, 7, 9]}, "ood_faces", "leave it out or write ood=other_faces"),
        ({"ood": "target", "ood_targets": [36], "ood_cards": 5}, "ood_cards", "write ood=larger"),
        # It is no rule of its own.
        ({"ood": "other_faces", "ood_faces": [5, 10, 9]}, "ood_faces", "write any numbers but 10"),
        ({"ood": "larger", "ood_cards": 4}, "ood_cards", "write 5 or more"),
        ({"ood": "larger", "cards": 6, "ood_cards": 6}, "ood_cards", "write cards=5 or fewer"),
        ({"ood": "target", "ood_targets": [36, 24]}, "ood_targets", r"\[24\] are trained on"),
        # It is nothing that can be dealt.
        ({"ood": "other_faces", "ood_faces": [5, 7]}, "ood_faces.2", "required"),
        ({"ood": "other_faces", "ood_faces": [5, 7, 100]}, "ood_faces.2", "less than or equal to 99"),
        ({"ood": "other_faces", "ood_faces": [0, 7, 9]}, "ood_faces.0", "greater than or equal to 1"),
        ({"ood": "larger", "ood_cards": 0}, "ood_cards", "greater than or equal to 2"),
        ({"ood": "larger", "ood_cards": 7}, "ood_cards", "less than or equal to 6"),
        ({"ood": "larger", "ood_cards": "5"}, "ood_cards", "valid integer"),
        ({"ood": "target", "ood_targets": []}, "ood_targets", "at least 1"),
        ({"ood": "target", "ood_targets": [36, 36]}, "ood_targets", r"write \[36\]"),
        ({"ood": "target", "ood_targets": [36, 9999]}, "ood_targets", "can make 9999; write other numbers"),
        (
            {"cards": 2, "ood": "other_faces", "ood_faces": [99, 98, 97]},
            "ood_faces",
            "can make 24; write other numbers",
        ),
        # It is too little to compare anything by.
        (
            {"cards": 2, "targets": [1]},
            "cards",
            "41 distinct id train problems, fewer than 100; deal more cards",
        ),
        ({"cards": 3, "ood": "target", "ood_targets": [900]}, "cards", "ood eval problems, fewer than 100"),
        # The closed vocabulary has no word for it.
        (
            {"wording": "compact", "ood": "other_faces", "ood_faces": [5, 7, 14]},
            "ood_faces",
            "wording=paper",
        ),
        ({"wording": "compact", "ood": "target", "ood_targets": [36]}, "ood_targets", "wording=paper"),
        ({"wording": "compact", "phrasing": "diverse"}, "phrasing", "wording=paper"),
        ({"wording": "compact", "ood": "wording"}, "ood", "wording=paper or leave"),
        ({"wording": "compact", "ood": ["faces", "wording"]}, "ood", "wording=paper or leave"),
        ({"phrasing": "rich"}, "phrasing", "'fixed' or 'diverse'"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_with_its_remedy(
    options: dict[str, Any], field: str, remedy: str
) -> None:
    with pytest.raises(InputError, match=rf"task\.{field} \(got .*{remedy}") as refusal:
        get_task("general_points", **options)
    assert "\n" not in str(refusal.value)


def test_a_wrong_option_beside_the_rule_is_reported_alone() -> None:
    with pytest.raises(InputError) as refusal:
        get_task("general_points", cards="four", ood="target", ood_targets=[36])
    assert str(refusal.value).count("task.") == 1


def test_options_that_came_later_leave_the_fingerprint_of_older_studies_alone() -> None:
    default = get_task("general_points")
    spelled = get_task("general_points", ood="faces", ood_faces=None, phrasing="fixed")
    assert default.fingerprint() == spelled.fingerprint()
    assert set(default.options.declared()) == {
        "cards", "targets", "wording", "additive_penalties", "held_out", "second_solution",
    }  # fmt: skip
    others = [get_task("general_points", cards=3, **rule) for rule in RULES]
    others.append(get_task("general_points", cards=3, phrasing="diverse"))
    assert len({task.fingerprint() for task in others}) == len(others)
