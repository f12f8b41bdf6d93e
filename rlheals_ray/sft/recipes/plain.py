"""Recipe `plain`: all parameters, all examples alike; what the other recipes change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from rlheals_ray.models.checkpoint_writer import copy_model
from rlheals_ray.sft.data import Example
from rlheals_ray.sft.recipes import RecipeContext


class Plain:
    """Full fine-tuning; see `recipes.Recipe`."""

    per_sequence = False

    def __init__(self, context: RecipeContext) -> None:
        self.context = context

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def weights(self, examples: Sequence[Example]) -> Sequence[float] | None:
        return None

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        return None

    def publish(self, model: nn.Module, saved: Path, target: Path) -> None:
        copy_model(saved, target)
