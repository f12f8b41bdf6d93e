"""Settings of the edits: which checkpoints, and a grid of how much of what is put where."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from rlheals_ray.config.fields import PositiveInt, Role, Settings

Factors = Literal["UV", "S", "USV"]
Mode = Literal["concatenate", "orthonormal", "rotate"]
Part = Literal["top", "tail"]


def _listed(value: Any) -> Any:
    """A single value stands for the list of it."""
    return value if isinstance(value, list | tuple) else (value,)


def _groups(value: Any) -> Any:
    """A single group of roles stands for the list of it; null for none."""
    if value is None:
        return ()
    value = _listed(value)
    return (value,) if value and all(isinstance(role, str) for role in value) else value


def _directions(value: Any) -> Any:
    number = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if value is not None and not number and not (isinstance(value, float) and 0 < value <= 1):
        raise ValueError(
            "give a number of singular directions above 0, a fraction of them up to 1.0 (written with a point), or "
            "null for all"
        )
    return value


Modes = Annotated[tuple[Mode, ...], Field(min_length=1), BeforeValidator(_listed)]
Directions = Annotated[
    tuple[Annotated[int | float | None, BeforeValidator(_directions)], ...],
    Field(min_length=1),
    BeforeValidator(_listed),
]
Fractions = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1), BeforeValidator(_listed)
]
Groups = Annotated[tuple[Annotated[tuple[Role, ...], Field(min_length=1)], ...], BeforeValidator(_groups)]

ANCHOR = re.compile(r"base|peak|latest|healed|sft-\d+|rl-\d+-\d+")


def edit_kinds(factors: Factors) -> tuple[str, ...]:
    """An edit and its controls: it never stands without them. (Singular values alone turn nothing.)"""
    angle = () if factors == "S" else ("random_angle",)
    return ("edit", "weight_swap", "interpolation", *angle, "random_norm")


@dataclass(frozen=True)
class EditVariant:
    """One point of an edit's grid."""

    factors: Factors
    mode: Mode
    part: Part
    k: int | float | None
    t: float
    roles: tuple[Role, ...]
    block: int
    """Which block of layers, from 0."""
    blocks: int
    """Into how many blocks the layers are cut; 1: all layers."""

    def layers(self, count: int) -> tuple[int, ...] | None:
        """The layers of the block in a model of `count` layers; None is all of them."""
        if self.blocks == 1:
            return None
        start, end = (count * edge // self.blocks for edge in (self.block, self.block + 1))
        return tuple(range(start, end))


class EditSettings(Settings):
    """Which factors of which checkpoint replace those of another; lists span a grid, and controls always run.

    donor, recipient: base; peak (of OOD); latest (of the trunk); healed (of RL from past the peak, the end with the
    best OOD accuracy); sft-STEP; or rl-SFT_STEP-RL_STEP.
    """

    donor: str = "peak"
    recipient: str = "latest"
    factors: Factors = "UV"
    mode: Modes = ("concatenate",)
    """How the replaced block joins the rest: see spectra/recombination.py."""
    part: Part = "top"
    k: Directions = (None,)
    """How many singular directions: a number, a fraction (written with a point: 0.2), or null for all."""
    t: Fractions = (1.0,)
    """How far to turn; below 1 only with mode: rotate."""
    roles: Groups = ()
    """The matrices edited, or a list of such groups, each edited alone; null: spectra.roles."""
    blocks: PositiveInt = 1
    """Cut the layers into as many equal blocks, each edited alone; 1 edits all layers together."""

    @field_validator("donor", "recipient")
    @classmethod
    def _anchor(cls, name: str) -> str:
        if not ANCHOR.fullmatch(name):
            raise ValueError(
                "name base, peak, latest, healed, sft-STEP or rl-SFT_STEP-RL_STEP, for example sft-60"
            )
        return name

    @model_validator(mode="after")
    def _makes_sense(self) -> EditSettings:
        if self.donor == self.recipient:
            raise ValueError(
                f"donor (got {self.donor!r}) is the recipient too; name two different checkpoints"
            )
        for field, values in (("mode", self.mode), ("k", self.k), ("t", self.t), ("roles", self.roles)):
            if len({(type(v), v) for v in values}) != len(values):
                raise ValueError(f"{field} (got {list(values)}) names a value twice; remove one")
        if set(self.mode) != {"rotate"} and self.t != (1.0,):
            raise ValueError(
                f"t (got {list(self.t)}) below 1 needs mode: rotate alone; give other modes an edit of their own"
            )
        if "rotate" in self.mode and any(k is None or (isinstance(k, float) and k == 1) for k in self.k):
            raise ValueError(
                f"k (got {list(self.k)}) takes all directions, and mode: rotate turns a subspace of fewer than all; "
                "give numbers"
            )
        if "rotate" in self.mode and self.factors == "S":
            raise ValueError("factors (got 'S') leaves the directions alone; mode: rotate needs UV or USV")
        return self

    def variants(self, roles: tuple[Role, ...]) -> tuple[EditVariant, ...]:
        """Every point of the grid, in the order mode, roles, block, k, t. `roles`: those of the study."""
        grid = product(self.mode, self.roles or (roles,), range(self.blocks), self.k, self.t)
        return tuple(
            EditVariant(self.factors, mode, self.part, k, t, group, block, self.blocks)
            for mode, group, block, k, t in grid
        )
