"""Prompts in many wordings: each states every fact of the rule, and nothing but the words differs."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from typing import cast

import pytest

from rlheals_ray.tasks import Rule, Split, get_task
from rlheals_ray.tasks.deals import GeneralPointsProblem
from rlheals_ray.tasks.points_phrasing import (
    EVERY,
    PHRASINGS,
    RESERVED,
    TRAINED,
    described,
    numbered,
    phrasing_of,
)

FIXED = get_task("general_points", targets=[24, 36])
DIVERSE = get_task("general_points", targets=[24, 36], phrasing="diverse")
SPLITS: tuple[tuple[Rule, Split], ...] = (("id", "train"), ("id", "eval"), ("ood", "eval"))


def dealt(rule: Rule, split: Split, count: int) -> list[GeneralPointsProblem]:
    return cast(list[GeneralPointsProblem], DIVERSE.problems(rule, split, count))


def facts(prompt: str) -> tuple[set[int], set[int], set[tuple[int, ...]], int]:
    """(targets, numbers of cards, values of J, Q, K, how often it is said that each card is used once)."""
    task, output = prompt.split("[Input]")[0], prompt.split("[Output]")[1]
    sentences = [
        part
        for text in (task, output)
        for line in text.splitlines()
        for part in re.split(r"(?<=[.;,]) (?=[A-Zn])|; ", line)
    ]
    values = set()
    for text in (task, output):
        match = re.search(r"\bJ\b.*?\bK\b[^\n]*", text)
        assert match, text
        # In the order J, Q, K, or one number for all three; the clause on use of the cards has no numbers.
        numbers = tuple(map(int, re.findall(r"\d+", match[0])))
        values.add(numbers * 3 if len(numbers) == 1 else numbers)
    without_values = [part for part in sentences if not re.search(r"\b[JQK]\b", part)]
    counts = {int(n) for part in without_values for n in re.findall(r"(\d+)(?: of them| cards)", part)}
    others = {int(n) for part in without_values for n in re.findall(r"\d+", part)} - counts
    once = len(re.findall(r"must be used once|exactly once|left out or used twice|each one time", task))
    return others, counts, values, once


@pytest.mark.parametrize("faces", [(10, 10, 10), (11, 12, 13), (5, 7, 9), (7, 7, 9)])
@pytest.mark.parametrize("target", [24, 1000])
def test_every_wording_states_target_number_of_cards_face_values_and_use(
    target: int, faces: tuple[int, int, int]
) -> None:
    cards = ["A", "Q", "2", "J", "8"]
    for number in range(PHRASINGS):
        prompt = described(numbered(number), target, cards, faces)
        assert facts(prompt) == ({target}, {5}, {faces}, 1), prompt
        assert all(f"'{sign}'" in prompt for sign in "+-*/()=")
        assert f"[Input]\nCards: {cards}\n" in prompt


def test_wordings_are_many_distinct_and_the_first_is_the_published_one() -> None:
    problem = dealt("ood", "eval", 1)[0]
    prompts = {described(numbered(n), problem.target, problem.cards, (11, 12, 13)) for n in range(PHRASINGS)}
    assert len(prompts) == PHRASINGS >= 24
    assert described(numbered(0), problem.target, problem.cards, (11, 12, 13)) == FIXED.prompt(problem)


def test_the_form_of_the_answer_is_asked_for_alike() -> None:
    for rule, split in SPLITS:
        for problem in dealt(rule, split, 300):
            forms = [
                re.sub(r"where (?!a, b).*,\n", "where,\n", task.prompt(problem).split("[Output]")[1])
                for task in (FIXED, DIVERSE)
            ]
            assert forms[0] == forms[1]


def test_problems_demonstrations_verdicts_and_replies_are_those_of_the_fixed_prompt() -> None:
    for rule, split in SPLITS:
        assert FIXED.problems(rule, split, 200) == DIVERSE.problems(rule, split, 200)
        for problem in dealt(rule, split, 50):
            assert FIXED.demonstration(problem, 3) == DIVERSE.demonstration(problem, 3)
            verdict = DIVERSE.judge(problem, "24")
            assert verdict == FIXED.judge(problem, "24")
            assert DIVERSE.reply(verdict) == FIXED.reply(verdict)


def test_both_splits_and_rules_draw_from_the_same_wordings_evenly() -> None:
    for rule, split in SPLITS:
        drawn = [phrasing_of(problem.id) for problem in dealt(rule, split, 2000)]
        for sentence, ways in (
            ("opening", 5),
            ("faces", 5),
            ("once", 4),
            ("note", 3),
            ("goal", 4),
            ("goal_first", 2),
        ):
            times = Counter(getattr(phrasing, sentence) for phrasing in drawn)
            assert set(times) == set(range(ways))
            # Five standard deviations of a binomial.
            tolerance = 5 * (2000 / ways * (1 - 1 / ways)) ** 0.5
            assert all(abs(n - 2000 / ways) < tolerance for n in times.values())


@pytest.mark.parametrize("phrasing", ["fixed", "diverse"])
def test_the_rule_wording_is_asked_in_no_sentence_that_training_or_another_rule_has(phrasing: str) -> None:
    task = get_task("general_points", targets=[24, 36], phrasing=phrasing, ood=["faces", "wording"])

    def sentences(rule: Rule, split: Split) -> set[str]:
        problems = cast(list[GeneralPointsProblem], task.problems(rule, split, 400))
        said = set()
        for problem in problems:
            description = task.prompt(problem).split("[Input]")[0].replace(f"{problem.target}", "T")
            said |= set(description.splitlines())
        return said - {"", "[Task Description]"}

    others = sentences("id", "train") | sentences("id", "eval") | sentences("faces", "eval")
    new = sentences("wording", "eval")
    assert len(new) == 2 + 2 + 4  # openings, goals, notes
    assert new.isdisjoint(others)


def test_the_wordings_that_are_reserved_share_no_place_with_the_trained_ones_but_the_order() -> None:
    for trained, reserved, every in list(zip(TRAINED, RESERVED, EVERY, strict=True))[:-1]:
        assert sorted([*trained, *reserved]) == list(every)
    assert 0 in TRAINED[0]  # the published wording, which fixed prompts have


def test_under_the_rule_wording_every_fact_is_stated_as_under_the_trained_one() -> None:
    task = get_task("general_points", targets=[24, 36], ood="wording")
    for problem in cast(list[GeneralPointsProblem], task.problems("ood", "eval", 400)):
        assert facts(task.prompt(problem)) == ({problem.target}, {4}, {(10, 10, 10)}, 1)
        assert task.judge(problem, task.demonstration(problem)).solved


def test_a_problem_has_one_wording_whoever_deals_it_in_whatever_process() -> None:
    problem = dealt("ood", "eval", 20)[7]
    prompt = DIVERSE.prompt(problem)
    assert DIVERSE.prompt(DIVERSE.deal(problem.cards, "ood", problem.target)) == prompt
    code = (
        "import json, sys\nfrom rlheals_ray.tasks import get_task\n"
        "task = get_task('general_points', targets=[24, 36], phrasing='diverse')\n"
        f"print(json.dumps(task.prompt(task.deal({list(problem.cards)}, 'ood', {problem.target}))))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    assert json.loads(subprocess.check_output([sys.executable, "-c", code], env=environment)) == prompt
