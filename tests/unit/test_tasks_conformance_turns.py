"""Tasks of several turns: each law that a judge of single answers must keep as well is broken by a toy, and told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from rlheals_ray.tasks import Problem, Verdict, get_task
from rlheals_ray.tasks.conformance import Effort, check_task

SMALL = Effort(problems=4, calls=160)


class NoOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Spelling:
    """Say the letters of a word of four, one at a time."""

    name = "spelling"
    Options = NoOptions

    def __init__(self, options: NoOptions) -> None:
        self.options = options

    def problems(self, rule: str, split: str, count: int, seed: int = 0) -> list[Problem]:
        from rlheals_ray.config import InputError

        if count > self.available(rule, split):
            raise InputError(f"count: {count}; use {self.available(rule, split)} at most.")
        start = (0 if split == "train" else 40) + seed % 7
        numbers = [start + i for i in range(33)][:count]
        return [
            Problem(f"{rule}:{n:04}", rule, f"{rule}:{n:04}") for n in sorted(numbers, key=lambda n: n % 10)
        ]

    def available(self, rule: str, split: str) -> int:
        return 0 if (rule, split) == ("ood", "train") else 33

    def prompt(self, problem: Problem) -> str:
        return f"Read out number {int(problem.id[4:] if problem.rule == 'ood' else problem.id[3:])}, four digits."

    def word(self, problem: Problem) -> list[str]:
        names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
        return [names[int(digit)] for digit in problem.id[-4:]]

    def demonstration(self, problem: Problem, seed: int = 0) -> str:
        return " ".join(self.word(problem))

    def judge(self, problem: Problem, text: str) -> Verdict:
        right = text[-200:].split() == self.word(problem)
        return Verdict(4.0, True, True, "") if right else Verdict(0.0, False, bool(text), "Wrong.")

    def reply(self, verdict: Verdict) -> str:
        return verdict.feedback

    def fingerprint(self) -> str:
        return "spelling"

    def turns(self, problem: Problem) -> int:
        return 4

    def judge_turn(self, problem: Problem, earlier: Sequence[str], text: str) -> Verdict:
        word, place = self.word(problem), len(earlier)
        if place >= len(word) or text[-200:].split() != [word[place]]:
            return Verdict(0.0, False, bool(text), "Wrong.")
        last = place == len(word) - 1
        return Verdict(1.0, last, True, "" if last else "Go on.", accepted=not last)

    def demonstration_turns(self, problem: Problem, seed: int = 0) -> list[str]:
        return self.word(problem)


def test_the_toy_keeps_every_law() -> None:
    found = check_task(Spelling(NoOptions()), effort=SMALL)  # type: ignore[arg-type]
    assert found.kept, "\n".join(map(str, found.breaches))


class Stops(Spelling):
    def judge_turn(self, problem: Problem, earlier: Sequence[str], text: str) -> Verdict:
        verdict = super().judge_turn(problem, earlier, text)
        return Verdict(1.0, False, True, "Go on.") if len(earlier) == 1 and verdict.accepted else verdict


class Endless(Spelling):
    def judge_turn(self, problem: Problem, earlier: Sequence[str], text: str) -> Verdict:
        verdict = super().judge_turn(problem, earlier, text)
        return Verdict(1.0, False, True, "Go on.", accepted=True) if verdict.solved else verdict


class TooMany(Spelling):
    def turns(self, problem: Problem) -> int:
        return 3


class Tells(Spelling):
    def judge_turn(self, problem: Problem, earlier: Sequence[str], text: str) -> Verdict:
        verdict = super().judge_turn(problem, earlier, text)
        if verdict.accepted or verdict.solved or len(earlier) > 3:
            return verdict
        return Verdict(0.0, False, True, f"{self.word(problem)[len(earlier)]} was right.")


class Pays(Spelling):
    def judge_turn(self, problem: Problem, earlier: Sequence[str], text: str) -> Verdict:
        return super().judge_turn(problem, earlier, text) if text else Verdict(1.0, False, False, "Wrong.")


class Raises(Spelling):
    def judge_turn(self, problem: Problem, earlier: Sequence[str], text: str) -> Verdict:
        if "\0" in text:
            raise ValueError("NUL")
        return super().judge_turn(problem, earlier, text)


class Lacks(Spelling):
    turns = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("kind", "law", "told"),
    [
        (
            Stops,
            "demonstrations",
            "does not come to its end: ValueError: .* turn 2 of its demonstration is not",
        ),
        (Endless, "demonstrations", "is not solved by its last turn alone"),
        (TooMany, "demonstrations", "has 4 turns of at most 3"),
        (Tells, "leaks", "was right"),
        (Pays, "rewards", "an unsolved answer .* is worth 1.0, a demonstration 1.0"),
        (Raises, "total", "raises ValueError: NUL"),
        (Lacks, "protocol", "it lacks turns"),
    ],
)
def test_a_task_that_breaks_a_law_at_a_turn_is_told_of_it(kind: Any, law: str, told: str) -> None:

    found = check_task(kind(NoOptions()), effort=SMALL)
    assert set(found.broken) == {law}, "\n".join(map(str, found.breaches))
    assert re.search(told, str(found.breaches[0]))


def test_single_turns_of_navigation_are_judged_too() -> None:
    task = get_task("navigation", pool=500, turns=[2, 2])
    found = check_task(task, effort=SMALL)
    assert found.kept and found.calls >= 160 + 80
