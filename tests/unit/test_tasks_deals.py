"""What GeneralPoints deals: every solvable deal, split by multiset, spread evenly, the same everywhere."""

import itertools
import time
from collections import Counter
from typing import cast

import pytest

from rlheals_ray.config import InputError
from rlheals_ray.tasks import Rule, Split, get_task
from rlheals_ray.tasks.deals import GeneralPointsProblem
from rlheals_ray.tasks.solver import solvable

NANO = {"cards": 3, "targets": [18, 24], "wording": "compact"}
PAIRS = {"cards": 2, "targets": [*range(1, 17), 18, 20, 24, 36, 40]}
OPTIONS = [NANO, PAIRS, {"cards": 3}, {"cards": 4}, {"cards": 4, "held_out": 0.1}]
SPLITS: tuple[tuple[Rule, Split], ...] = (("id", "train"), ("id", "eval"), ("ood", "eval"))
SIDES: tuple[Split, ...] = ("train", "eval")

_PIPS = {"A": 1} | {str(n): n for n in range(2, 11)}
WORTH = {"id": _PIPS | {"J": 10, "Q": 10, "K": 10}, "ood": _PIPS | {"J": 11, "Q": 12, "K": 13}}


def all_of(options: dict, rule: Rule, split: Split) -> list[GeneralPointsProblem]:
    task = get_task("general_points", **options)
    return cast(list[GeneralPointsProblem], task.problems(rule, split, task.available(rule, split)))


@pytest.mark.parametrize("options", OPTIONS)
def test_training_and_probed_problems_share_no_target_and_multiset(options: dict) -> None:
    train, probed = all_of(options, "id", "train"), all_of(options, "id", "eval")
    assert train and probed
    assert {p.group for p in train}.isdisjoint(p.group for p in probed)
    # The promise of the design, on the cards themselves and on what they are worth.
    for key in (lambda p: (p.target, *sorted(p.cards)), lambda p: (p.target, *sorted(p.values))):
        assert {key(p) for p in train}.isdisjoint(key(p) for p in probed)


@pytest.mark.parametrize("options", OPTIONS)
def test_problems_are_distinct_solvable_and_worth_what_the_rule_says(options: dict) -> None:
    for rule, split in SPLITS:
        problems = all_of(options, rule, split)
        assert len({p.id for p in problems}) == len(problems)
        for problem in problems:
            assert problem.rule == rule
            assert problem.values == tuple(WORTH[rule][card] for card in problem.cards)
            assert problem.target in options.get("targets", [24])
            assert rule == "id" or set(problem.cards) & set("JQK")
        assert all(solvable(p.values, p.target) for p in problems)


@pytest.mark.parametrize("target", [18, 24])
def test_every_solvable_deal_is_dealt_exactly_once_and_nothing_else_is(target: int) -> None:
    def solvable_deals(rule: Rule) -> set[tuple[str, ...]]:
        deals = itertools.product(WORTH[rule], repeat=3)
        return {deal for deal in deals if solvable(tuple(WORTH[rule][card] for card in deal), target)}

    options = {**NANO, "targets": [target]}
    id_deals = [p.cards for split in SIDES for p in all_of(options, "id", split)]
    ood_deals = [p.cards for p in all_of(options, "ood", "eval")]
    assert len(id_deals) == len(set(id_deals))
    assert set(id_deals) == solvable_deals("id")
    assert set(ood_deals) == {deal for deal in solvable_deals("ood") if set(deal) & set("JQK")}


def test_the_nano_study_gets_its_450_probes_of_both_rules() -> None:
    task = get_task("general_points", **NANO)
    assert len(task.problems("id", "eval", 450)) == len(task.problems("ood", "eval", 450)) == 450
    assert task.available("id", "train") >= 600


def test_one_more_than_there_are_is_refused_with_their_number() -> None:
    task = get_task("general_points", **NANO)
    there = task.available("id", "eval")
    with pytest.raises(InputError, match=f"there are {there} distinct"):
        task.problems("id", "eval", there + 1)


def test_the_ood_rule_cannot_be_trained_on() -> None:
    task = get_task("general_points", **NANO)
    assert task.available("ood", "train") == 0
    with pytest.raises(InputError, match="only ever evaluated"):
        task.problems("ood", "train", 1)


@pytest.mark.parametrize("count", [10, 102, 450])
def test_problems_are_spread_evenly_over_groups_and_fewer_are_a_prefix(count: int) -> None:
    task = get_task("general_points", **NANO)
    problems = task.problems("ood", "eval", count)
    per_group = Counter(p.group for p in problems)
    assert len(per_group) == min(count, 102)
    whole = Counter(p.group for p in task.problems("ood", "eval", 552))
    for group, n in per_group.items():
        assert n >= min(max(per_group.values()) - 1, whole[group])
    assert task.problems("ood", "eval", 552)[:count] == problems


def test_the_split_does_not_depend_on_the_seed_or_on_other_targets() -> None:
    probed = {p.id for p in all_of(NANO, "id", "eval")}
    task = get_task("general_points", **NANO)
    train = {p.id for seed in range(5) for p in task.problems("id", "train", 100, seed=seed)}
    assert len(train) > 100
    assert train.isdisjoint(probed)
    assert {p.id for p in all_of({**NANO, "targets": [24]}, "id", "eval")} <= probed


def test_four_cards_are_dealt_at_once() -> None:
    started = time.process_time()
    task = get_task("general_points", cards=4)
    task.problems("ood", "eval", 450)
    assert task.available("ood", "eval") > 450
    assert time.process_time() - started < 2


def test_a_given_deal() -> None:
    task = get_task("general_points", cards=4, targets=[24])
    problem = task.deal(["J", "Q", "A", "A"], rule="ood")
    assert (problem.id, problem.values, problem.target) == ("24:ood:J-Q-A-A", (11, 12, 1, 1), 24)
    assert problem in task.problems("ood", "eval", task.available("ood", "eval"))


@pytest.mark.parametrize(
    ("cards", "target", "message"),
    [
        (["J", "1", "5"], 24, "not cards"),
        (["J", "5"], 24, "deals 3"),
        (["A", "A", "A"], 24, "cannot make 24"),
        (["10", "4", "4"], None, "name one of"),
        (["10", "4", "4"], 25, "not a target"),
    ],
)
def test_a_wrong_deal_is_refused(cards: list[str], target: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_task("general_points", **NANO).deal(cards, rule="id", target=target)
