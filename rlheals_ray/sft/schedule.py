"""The learning rate of every update, as a formula: the one that training applies and that the log states."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rlheals_ray.config import SFTSettings

Kind = Literal["constant", "cosine", "linear", "warmup_log"]


@dataclass(frozen=True)
class Schedule:
    """Warm-up and decay over `updates` updates. The rate of an update is a pure function of its number."""

    kind: Kind
    learning_rate: float
    """The highest rate."""
    updates: int
    warmup: int = 0
    """Updates of warm-up."""

    @classmethod
    def of(cls, settings: SFTSettings, updates: int) -> Schedule:
        """The schedule of a trunk of `updates` updates."""
        # As transformers' TrainingArguments.get_warmup_steps rounds a share.
        warmup = settings.warmup_steps or math.ceil(settings.warmup_ratio * updates)
        return cls(settings.lr_schedule, settings.learning_rate, updates, warmup)

    @classmethod
    def constant(cls, learning_rate: float, updates: int) -> Schedule:
        """One rate throughout."""
        return cls("constant", learning_rate, updates)

    def factor(self, update: int) -> float:
        """The share of the highest rate that update `update`, counted from 0, is made with.

        constant, cosine, linear: transformers.get_{constant_schedule_with,cosine_schedule_with,
        linear_schedule_with}_warmup, whose first update has the rate 0 where there is a warm-up. warmup_log:
        deepspeed.runtime.lr_schedules.WarmupLR with its default type `log`, stepped once after every update
        as DeepSpeed's engine does: the first two updates have the rate 0.
        """
        if self.kind == "warmup_log":
            iteration, warmup = update - 1, max(self.warmup, 2)
            if iteration < 0:
                return 0.0
            return math.log(iteration + 1) / math.log(warmup) if iteration < warmup else 1.0
        if update < self.warmup:
            return update / self.warmup
        if self.kind == "constant":
            return 1.0
        progress = (update - self.warmup) / max(self.updates - self.warmup, 1)
        if self.kind == "linear":
            return max(0.0, 1.0 - progress)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))

    def rate(self, update: int) -> float:
        """The learning rate of update `update`, counted from 0."""
        return self.learning_rate * self.factor(update)

    def __str__(self) -> str:
        """What is really done: `cosine from 0.001 to 0 over 400 updates, 12 of them warm-up (linear)`."""
        end = {"constant": "constant", "warmup_log": "constant"}.get(self.kind, f"{self.kind} decay to 0")
        if self.kind == "warmup_log":
            rise = f", after a logarithmic warm-up of {max(self.warmup, 2)} updates"
        else:
            rise = f", after a linear warm-up of {self.warmup} updates" if self.warmup else ""
        return f"learning rate {self.learning_rate:g}, {end}{rise}, {self.updates} updates"
