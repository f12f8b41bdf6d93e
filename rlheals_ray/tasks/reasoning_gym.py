"""reasoning_gym: every dataset of the package reasoning-gym that has answers, as a task with two rules.

A study names one dataset and gives two configurations of it, `id` and `ood` (difficulty, size, range). Problems
are the dataset's own items, judged as `reasoning_gym_verify` says. Rewards: +5 solved, -1 an answer that is
wrong, -3 no answer between the tags.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from rlheals_ray.config import InputError
from rlheals_ray.tasks.reasoning_gym_config import Config, check_name, completed, make
from rlheals_ray.tasks.reasoning_gym_draw import Draw, DrawError, Item, draw
from rlheals_ray.tasks.reasoning_gym_verify import Verifier, verifier
from rlheals_ray.tasks.splits import check_count, check_split
from rlheals_ray.tasks.task import Problem, Rule, Split, Verdict

# Raise it whenever problems, prompts, demonstrations or verdicts change for the same options.
_CODE_VERSION = 1

_SOLVED, _WRONG, _WITHOUT = 5.0, -1.0, -3.0
_OPEN, _CLOSE = "<answer>", "</answer>"
_INSTRUCTION = f"Write your final answer, and nothing else, between {_OPEN} and {_CLOSE}."
MAX_CHARACTERS = 65_536
"""Only the end of a longer text is read."""

Count = Annotated[int, Field(strict=True, ge=1, le=100_000)]


class ReasoningGymOptions(BaseModel):
    """What a study may choose. `id` and `ood` take every field of the dataset's configuration but seed and size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    id: Config = Field(default={}, validate_default=True)
    ood: Config
    train_problems: Count = 1_000
    """How many problems of the trained rule to draw at most; a small configuration has fewer."""
    eval_problems: Count = 250
    """How many problems of each rule to draw at most for evaluation."""
    held_out: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.5
    """Share of all questions that training never sees. Items of the other share are drawn and dropped, so
    a share near 0 makes evaluation slow to draw, and one near 1 training."""

    @field_validator("dataset")
    @classmethod
    def _known(cls, dataset: str) -> str:
        check_name(dataset)
        return dataset

    @field_validator("id", "ood")
    @classmethod
    def _complete(cls, config: Config, info: ValidationInfo) -> Config:
        # A refused dataset has been reported already.
        return completed(info.data["dataset"], config) if "dataset" in info.data else config

    @field_validator("ood")
    @classmethod
    def _another_rule(cls, ood: Config, info: ValidationInfo) -> Config:
        if "dataset" in info.data and ood == info.data.get("id"):
            raise ValueError("ood is the same rule as id; change a field of one of them")
        return ood


@dataclass(frozen=True)
class ReasoningGymProblem(Problem):
    """An item with all that its verifier needs."""

    question: str
    answer: str
    metadata: bytes = field(repr=False, compare=False)


class ReasoningGym:
    """The task; see `rlheals_ray.tasks.task.Task` for what each method promises."""

    name = "reasoning_gym"
    Options = ReasoningGymOptions

    def __init__(self, options: ReasoningGymOptions) -> None:
        self.options = options

    def problems(self, rule: Rule, split: Split, count: int, seed: int = 0) -> list[Problem]:
        """The first `count` of all problems of the split in an order of the seed's own.

        All are drawn at the first call in a process: seconds to import the package, then the dataset's own
        time per item. Raises InputError when there are fewer than `count`, or none that can be demonstrated.
        """
        every = self._every(rule, split)
        told = f"dataset={self.options.dataset!r} and {split}_problems={self._most(split)}"
        remedy = f"ask for {len(every)} at most, raise {split}_problems or widen the configuration {rule}"
        check_count(count, len(every), rule, split, told, remedy)
        shuffled = random.Random(f"{seed}/{rule}/{split}").sample(every, len(every))
        return list(shuffled[:count])

    def available(self, rule: Rule, split: Split) -> int:
        """How many there are: `train_problems` or `eval_problems`, or as many as could be found."""
        return len(self._every(rule, split))

    def prompt(self, problem: Problem) -> str:
        return f"{_own(problem).question.rstrip()}\n\n{_INSTRUCTION}"

    def demonstration(self, problem: Problem, seed: int = 0) -> str:
        """The item's own answer, whatever the seed."""
        return f"{_OPEN}{_own(problem).answer}{_CLOSE}"

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Reads what the last pair of tags encloses."""
        own = _own(problem)
        answer = find_answer(text)
        if answer is None:
            feedback = f"You failed this trial because there is no answer between {_OPEN} and {_CLOSE}."
            return Verdict(_WITHOUT, False, False, feedback)
        # Unpickled each time: a verifier of theirs writes into it.
        entry = {"question": own.question, "answer": own.answer, "metadata": pickle.loads(own.metadata)}
        if self._verifier(own.rule)(answer, entry):
            return Verdict(_SOLVED, True, True, "")
        return Verdict(_WRONG, False, True, "You failed this trial because your answer is not right.")

    def reply(self, verdict: Verdict) -> str:
        return verdict.feedback

    def fingerprint(self) -> str:
        package = importlib.metadata.version("reasoning-gym")
        declared = [self.name, _CODE_VERSION, package, self.options.model_dump(mode="json")]
        return hashlib.blake2b(json.dumps(declared, sort_keys=True).encode(), digest_size=16).hexdigest()

    def _every(self, rule: Rule, split: Split) -> tuple[ReasoningGymProblem, ...]:
        check_split(rule, split)
        if rule == "ood" and split == "train":
            return ()
        options = self.options
        return _every(
            self._drawing(), options.dataset, self._config(rule), rule, split, options.held_out, self._most(split)
        )  # fmt: skip

    def _drawing(self) -> Callable[[Draw], list[Item]]:
        """How items are drawn; raises DrawError."""
        return draw

    def _most(self, split: Split) -> int:
        return self.options.train_problems if split == "train" else self.options.eval_problems

    def _config(self, rule: Rule) -> str:
        return json.dumps(self.options.id if rule == "id" else self.options.ood, sort_keys=True)

    def _verifier(self, rule: Rule) -> Verifier:
        return _verifier(self.options.dataset, self._config(rule))


def find_answer(text: str) -> str | None:
    """What the last pair of tags encloses, stripped, or None; the package's convention in linear time."""
    text = text[-MAX_CHARACTERS:]
    answer, at = None, 0
    while (start := text.find(_OPEN, at)) >= 0 and (end := text.find(_CLOSE, start + len(_OPEN))) >= 0:
        answer, at = text[start + len(_OPEN) : end], end + len(_CLOSE)
    return None if answer is None else answer.strip()


@lru_cache(16)
def _every(
    drawing: Callable[[Draw], list[Item]],
    dataset: str,
    config: str,
    rule: Rule,
    split: Split,
    share: float,
    most: int,
) -> tuple[ReasoningGymProblem, ...]:
    wanted = Draw(dataset, json.loads(config), f"{rule}/{split}", share, split == "eval", most)
    try:
        items = drawing(wanted)
    except DrawError as error:
        raise InputError(
            f"task.{rule} (got {config}): problems of {dataset} for {split} cannot be had: {error}; change the "
            f"configuration or lower task.{split}_problems."
        ) from None
    return tuple(_problem(dataset, config, rule, item) for item in items)


def _problem(dataset: str, config: str, rule: Rule, item: Item) -> ReasoningGymProblem:
    declared = json.dumps([config, item.question, item.answer])
    digest = hashlib.blake2b(declared.encode(), digest_size=12).hexdigest()
    # Equal questions are one group under both rules.
    group = hashlib.blake2b(item.question.encode(), digest_size=12).hexdigest()
    return ReasoningGymProblem(
        f"{dataset}:{rule}:{digest}", rule, f"{dataset}:{group}", item.question, item.answer, item.metadata
    )


@lru_cache(8)
def _verifier(dataset: str, config: str) -> Verifier:
    return verifier(dataset, make(dataset, json.loads(config), 0))


def _own(problem: Problem) -> ReasoningGymProblem:
    if not isinstance(problem, ReasoningGymProblem):
        raise TypeError(f"{problem.id!r} is not a problem of reasoning_gym")
    return problem
