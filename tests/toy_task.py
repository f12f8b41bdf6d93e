"""A toy task with a known optimum, and at the same time a task of one's own: `tests.toy_task:ToyTask`.

The prompt names one of eight keys; under each rule a fixed permutation of eight colours has the right
answer. A right answer is worth 1, a wrong one 0: a policy that knows the permutation has the mean
reward 1, and no policy has more. A policy that guesses uniformly among n words has 1 / n per attempt.
"""

from __future__ import annotations

import hashlib
import random
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from rlheals_ray.config import InputError
from rlheals_ray.tasks import Problem, Rule, Split, Verdict

KEYS = tuple(f"k{i}" for i in range(8))
COLOURS = ("red", "blue", "green", "black", "white", "pink", "gold", "grey")
NOISE = tuple(f"n{i}" for i in range(6))
"""Words without a meaning: they make several problems of one key, and the split."""
WORDS = ("say", "for", "rule", "id", "ood", "wrong", "illegal", *KEYS, *COLOURS, *NOISE)
"""Every word of the task."""

HELD_OUT = 2
"""The last words of NOISE are evaluated only."""


class ToyOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: Annotated[int, Field(ge=1, le=len(KEYS))] = len(KEYS)


class ToyTask:
    """The task; see `rlheals_ray.tasks.task.Task` for what each method promises."""

    name = "toy"
    Options = ToyOptions

    def __init__(self, options: ToyOptions) -> None:
        self.options = options

    def problems(self, rule: Rule, split: Split, count: int, seed: int = 0) -> list[Problem]:
        noise = NOISE[-HELD_OUT:] if split == "eval" else NOISE[:-HELD_OUT] if rule == "id" else ()
        problems = [
            Problem(f"{rule}:{key}:{word}", rule, f"{key}:{word}")
            for word in noise
            for key in KEYS[: self.options.keys]
        ]
        if count > len(problems):
            raise InputError(
                f"count: {count} {rule} {split} problems were asked for; there are {len(problems)}."
            )
        random.Random(f"{seed}/{rule}/{split}").shuffle(problems)
        return problems[:count]

    def available(self, rule: Rule, split: Split) -> int:
        if (rule, split) == ("ood", "train"):
            return 0
        return self.options.keys * (HELD_OUT if split == "eval" else len(NOISE) - HELD_OUT)

    def prompt(self, problem: Problem) -> str:
        rule, key, word = problem.id.split(":")
        return f"rule {rule} for {key} {word} say"

    def demonstration(self, problem: Problem, seed: int = 0) -> str:
        return right_answer(problem)

    def judge(self, problem: Problem, text: str) -> Verdict:
        """The first word counts."""
        answer = next(iter(text.split(maxsplit=1)), "")
        if answer == right_answer(problem):
            return Verdict(1.0, True, True, "")
        return Verdict(0.0, False, answer in COLOURS, "wrong" if answer in COLOURS else "illegal")

    def reply(self, verdict: Verdict) -> str:
        return verdict.feedback

    def fingerprint(self) -> str:
        return hashlib.sha256(f"toy 1 {self.options!r}".encode()).hexdigest()


def right_answer(problem: Problem) -> str:
    rule, key, _ = problem.id.split(":")
    return COLOURS[(3 * KEYS.index(key) + (1 if rule == "id" else 2)) % len(COLOURS)]
