"""The trunk's training data: prompts and demonstrations of the ID rule, tokenised, in a fixed order.

The order is part of the data: epoch after epoch, each a seeded permutation with fresh demonstrations.
Any number of workers therefore sees the same global batches, and a resumed run continues where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlheals_ray.config import SFTSettings
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.tasks import Problem, Task

IGNORE = -100


@dataclass(frozen=True)
class Example:
    """One tokenised demonstration; `labels` is IGNORE on the prompt (response-only loss)."""

    problem: Problem
    input_ids: list[int]
    labels: list[int]


def demonstrate(task: Task, chat: ChatFormat, problem: Problem, seed: int) -> Example:
    """A problem's prompt and demonstration as token ids."""
    prompt = chat.first_turn(task.prompt(problem))
    completion = chat.completion(task.demonstration(problem, seed=seed))
    return Example(problem, prompt + completion, [IGNORE] * len(prompt) + completion)


def training_examples(task: Task, chat: ChatFormat, settings: SFTSettings, seed: int) -> list[Example]:
    """Every example of the trunk in the order in which it is trained on."""
    available = task.available("id", "train")
    problems = task.problems("id", "train", min(settings.examples or available, available), seed=0)
    needed = settings.steps[-1] * settings.batch_size
    examples: list[Example] = []
    epoch = 0
    while len(examples) < needed:
        order = np.random.default_rng((seed, epoch)).permutation(len(problems))
        demonstration_seed = seed * 1_000_003 + epoch
        examples += [
            demonstrate(task, chat, problems[i], demonstration_seed) for i in order[: needed - len(examples)]
        ]
        epoch += 1
    return examples


def evaluation_examples(task: Task, chat: ChatFormat, problems: Sequence[Problem]) -> list[Example]:
    """One fixed demonstration of each probed problem, for the held-out losses; never sent to a worker."""
    return [demonstrate(task, chat, problem, seed=0) for problem in problems]
