"""The recipes of SFT by name. A new one is a file of this package and a line here.

A recipe may wrap the model, weigh examples, add a penalty to the loss, and say how a published checkpoint is
written. Everything else (data order, optimiser, schedule, workers, states) is the same for all of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import nn

from rlheals_ray.config import Study
from rlheals_ray.sft.data import Example
from rlheals_ray.storage import StudyFiles

if TYPE_CHECKING:
    from rlheals_ray.sft.data import Examples


@dataclass(frozen=True)
class RecipeContext:
    """What a recipe is made from, on every worker, before the model is built."""

    study: Study
    files: StudyFiles
    start: Path
    """The Hugging Face directory that the run starts from."""
    examples: Examples
    first_position: int
    """Of the run's first example in the stream of `examples`."""
    updates: int
    seed: int
    rank: int
    workers: int


class Recipe(Protocol):
    """How the run differs from plain SFT; `recipes.plain.Plain` does nothing, and may be inherited from."""

    per_sequence: bool
    """Whether the loss of an update is divided by the number of its examples, not of their response tokens."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model to be trained, made from the one read from `start`: float32, on the CPU, not yet divided."""
        ...

    def weights(self, examples: Sequence[Example]) -> Sequence[float] | None:
        """Weights of one micro-batch's examples in the loss, or None: all 1.

        The loss of an update is Σ_examples weight · Σ_tokens −log p, divided by the number of response tokens
        of the whole batch over all workers, or with `per_sequence` by the number of its examples.
        """
        ...

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        """Added to the loss of every update: a scalar with a gradient, the same on every worker.

        `model`: the trainable one, without the wrapping of data parallelism; its parameters are DTensors in
        mode fsdp2 and empty in mode zero3.
        """
        ...

    def publish(self, model: nn.Module, saved: Path, target: Path) -> None:
        """Fill the directory `target` with the checkpoint, a full Hugging Face directory; called on rank 0 alone.

        saved: where the trainer has just saved the model: a full Hugging Face directory if `wrap` returned the
        model itself.
        """
        ...


RECIPES: Mapping[str, str] = {
    "plain": "plain:Plain",
    "lora": "lora:Lora",
    "flow": "flow:Flow",
    "rotation": "rotation:Rotation",
}
"""Recipe to its class, `module:class` in this package: one that is not used is not imported."""


def make_recipe(name: str, context: RecipeContext) -> Recipe:
    """The recipe `name`, ready to train."""
    module, _, attribute = RECIPES[name].partition(":")
    maker = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    return cast(Callable[[RecipeContext], Recipe], maker)(context)
