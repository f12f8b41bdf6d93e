"""What the settings are made of: the error for wrong input, the frozen base model, the types of fields."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Role = Literal["q", "k", "v", "o", "gate", "up", "down", "embed", "head"]
Sharding = Literal["none", "ddp", "fsdp2", "zero2", "zero3"]
Recipe = Literal["plain", "lora", "flow", "rotation"]
Algorithm = Literal["ppo", "grpo", "rloo"]
Control = Literal["continued_sft", "rejection_sft"]
Schedule = Literal["constant", "cosine", "linear"]
Steps = Annotated[tuple[int, ...], Field(min_length=1)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NAMED_MODELS = ("nano", "smollm2-135m")
"""The values of base.model that are no directory."""


def _absolute(path: str) -> str:
    # A URI is refused where these files are read.
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _absolute_model(model: str) -> str:
    return model if model in NAMED_MODELS else _absolute(model)


# Absolute from the beginning: fingerprints look at these files from processes that may work in other directories.
LocalPath = Annotated[str, Field(min_length=1), AfterValidator(_absolute)]
ModelPath = Annotated[str, Field(min_length=1), AfterValidator(_absolute_model)]


class InputError(ValueError):
    """The input is wrong. The message is one paragraph: field, value, remedy. Jobs exit with code 2."""


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def strictly_increasing(steps: tuple[int, ...], what: str) -> tuple[int, ...]:
    if any(step < 0 for step in steps):
        raise ValueError(f"{what} are counted from 0; remove the negative ones")
    if list(steps) != sorted(set(steps)):
        remedy = sorted(set(steps))
        raise ValueError(f"{what} must be strictly increasing; write {remedy}")
    return steps
