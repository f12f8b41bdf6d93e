"""The trunk's training data: prompts and answers, tokenised, in a fixed order.

The order is part of the data: epoch after epoch, each a seeded permutation, without an end. An example is a pure
function of its position in it. Any number of workers therefore sees the same global batches, and a resumed run
continues where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from rlheals_ray.config import SFTSettings, Study
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.received import record_received
from rlheals_ray.storage import StudyFiles
from rlheals_ray.tasks import Problem, Task
from rlheals_ray.tasks.turns import demonstration_turns, replies_of

IGNORE = -100


@dataclass(frozen=True)
class Example:
    """One tokenised demonstration; `labels` is IGNORE on all that is not an answer (response-only loss)."""

    problem: Problem | None
    """The task's problem; None for a row of the user's own data."""
    input_ids: list[int]
    labels: list[int]
    row: int | None = None
    """The row of the user's data, counted from 0 over all its files; None for a demonstration of the task."""


class Examples(Protocol):
    """An endless sequence of examples: position p = update · batch_size + place in the global batch."""

    @property
    def count(self) -> int:
        """Distinct training problems, or rows: the length of an epoch."""
        ...

    def stream(self, positions: Iterable[int]) -> Iterator[Example]:
        """The examples at these positions, in this order; nothing is made before it is wanted."""
        ...

    def record(self, path: Path, positions: Iterable[int]) -> None:
        """Write which problems or rows stand at these positions, with prompt and count: see `received`."""
        ...


def open_examples(study: Study, files: StudyFiles, task: Task, chat: ChatFormat, seed: int) -> Examples:
    """The training data of a trunk's seed: the user's, where the study names some, else the task's.

    The user's data must have been prepared (`user_data.prepare`). The same on every worker.
    """
    if study.sft.data is not None:
        from rlheals_ray.sft.user_data import UserExamples

        return UserExamples.open(study, files, chat, seed)
    return TaskExamples(task, chat, seed, study.sft.examples)


@dataclass(frozen=True)
class TaskExamples:
    """Demonstrations of the task's training problems of the ID rule; each epoch demonstrates every one afresh."""

    task: Task
    chat: ChatFormat
    seed: int
    examples: int | None = None
    """How many problems; None: all there are."""
    _prompts: dict[int, list[int]] = field(default_factory=dict, repr=False, compare=False)
    """Ids of prompts by the place of their problem: they are the same in every epoch."""

    @cached_property
    def problems(self) -> list[Problem]:
        """The training problems; their order here is not that of training."""
        available = self.task.available("id", "train")
        return self.task.problems("id", "train", min(self.examples or available, available), seed=0)

    @property
    def count(self) -> int:
        return len(self.problems)

    def stream(self, positions: Iterable[int]) -> Iterator[Example]:
        for position in positions:
            seed = self.seed * 1_000_003 + position // self.count
            at = place(self.seed, position, self.count)
            prompt = self._prompts.get(at)
            if prompt is None:
                prompt = self._prompts[at] = self.chat.first_turn(self.task.prompt(self.problems[at]))
            yield demonstrate(self.task, self.chat, self.problems[at], seed, prompt)

    def problem(self, position: int) -> Problem:
        """The problem at a position."""
        return self.problems[place(self.seed, position, self.count)]

    def record(self, path: Path, positions: Iterable[int]) -> None:
        record_received(path, self.task, (self.problem(position) for position in positions))


def place(seed: int, position: int, count: int) -> int:
    """Which of `count` problems or rows stands at a position of the endless order."""
    epoch, within = divmod(position, count)
    return int(_permutation(seed, epoch, count)[within])


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def demonstrate(
    task: Task, chat: ChatFormat, problem: Problem, seed: int, prompt: list[int] | None = None
) -> Example:
    """A problem's prompt and demonstration as token ids; `prompt`: the ids of its prompt, where they are known.

    Where it takes several answers: the whole conversation, as an episode without a failure has it.
    """
    said = chat.first_turn(task.prompt(problem)) if prompt is None else prompt
    answers = demonstration_turns(task, problem, seed)
    replies = replies_of(task, problem, answers)
    ids: list[int] = []
    labels: list[int] = []
    for place, answer in enumerate(answers):
        if place:
            said = chat.next_turn(replies[place - 1], ended=True)
        completion = chat.completion(answer)
        ids += said + completion
        labels += [IGNORE] * len(said) + completion
    return Example(problem, ids, labels)


def training_examples(task: Task, chat: ChatFormat, settings: SFTSettings, seed: int) -> list[Example]:
    """Every demonstration of the trunk in the order in which it is trained on, at once: for tests and benchmarks."""
    examples = TaskExamples(task, chat, seed, settings.examples)
    return list(examples.stream(range(settings.steps[-1] * settings.batch_size)))


def evaluation_examples(task: Task, chat: ChatFormat, problems: Sequence[Problem]) -> list[Example]:
    """One fixed demonstration of each probed problem, for the held-out losses; never sent to a worker."""
    return [demonstrate(task, chat, problem, seed=0) for problem in problems]
