"""Settings of the edits: which checkpoints, and a grid of how much of what is put where."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from rlheals_ray.config.fields import PositiveInt, Role, Settings

Factors = Literal["UV", "S", "USV"]
Mode = Literal["concatenate", "orthonormal", "rotate"]
Part = Literal["top", "tail"]
Fraction = Annotated[float, Field(gt=0, le=1)]
Directions = (
    Annotated[int, Field(gt=0, strict=True)] | Annotated[float, Field(gt=0, le=1, strict=True)] | None
)
"""How many singular directions: a number, a fraction of min(m, n) when written with a point, or all."""

ANCHOR = re.compile(r"base|peak|latest|sft-\d+|rl-\d+-\d+")


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

    @property
    def whose(self) -> str:
        """Which matrices, as part of a name; empty for all of the study's."""
        layers = "" if self.blocks == 1 else f"_layers={self.block + 1}of{self.blocks}"
        return layers + f"_roles={'+'.join(self.roles)}"

    def layers(self, count: int) -> tuple[int, ...] | None:
        """The layers of the block in a model of `count` layers; None is all of them."""
        if self.blocks == 1:
            return None
        start, end = (count * edge // self.blocks for edge in (self.block, self.block + 1))
        return tuple(range(start, end))


class EditSettings(Settings):
    """Which factors of which checkpoint replace those of another; lists span a grid, and controls always run.

    donor, recipient: base, peak (of OOD), latest (of the trunk), sft-STEP, or rl-SFT_STEP-RL_STEP.
    """

    donor: str = "peak"
    recipient: str = "latest"
    factors: Factors = "UV"
    mode: Mode | Annotated[tuple[Mode, ...], Field(min_length=1)] = "concatenate"
    """How the replaced block joins the rest: see spectra/recombination.py."""
    part: Part = "top"
    k: Directions | Annotated[tuple[Directions, ...], Field(min_length=1)] = None
    """How many singular directions: a number, a fraction (written with a point: 0.2), or null for all."""
    t: Fraction | Annotated[tuple[Fraction, ...], Field(min_length=1)] = 1.0
    """How far to turn; below 1 only with mode: rotate."""
    roles: (
        Annotated[tuple[Role, ...], Field(min_length=1)]
        | Annotated[tuple[Annotated[tuple[Role, ...], Field(min_length=1)], ...], Field(min_length=1)]
        | None
    ) = None
    """The matrices edited, or a list of such groups, each edited alone; null: spectra.roles."""
    blocks: PositiveInt = 1
    """Cut the layers into as many equal blocks, each edited alone; 1 edits all layers together."""

    @field_validator("donor", "recipient")
    @classmethod
    def _anchor(cls, name: str) -> str:
        if not ANCHOR.fullmatch(name):
            raise ValueError("name base, peak, latest, sft-STEP or rl-SFT_STEP-RL_STEP, for example sft-60")
        return name

    @model_validator(mode="after")
    def _makes_sense(self) -> EditSettings:
        if self.donor == self.recipient:
            raise ValueError(
                f"donor (got {self.donor!r}) is the recipient too; name two different checkpoints"
            )
        for field, values in (("mode", _listed(self.mode)), ("k", _listed(self.k)), ("t", _listed(self.t))):
            if len({(type(v), v) for v in values}) != len(values):
                raise ValueError(f"{field} (got {list(values)}) names a value twice; remove one")
        modes = _listed(self.mode)
        if set(modes) != {"rotate"} and _listed(self.t) != (1.0,):
            raise ValueError(
                f"t (got {self.t}) below 1 needs mode: rotate alone; give other modes an edit of their own"
            )
        if "rotate" in modes and (
            None in _listed(self.k) or 1.0 in [k for k in _listed(self.k) if isinstance(k, float)]
        ):
            raise ValueError(
                "k (got null) is all directions, and mode: rotate turns a subspace of fewer than all; give numbers"
            )
        if "rotate" in modes and self.factors == "S":
            raise ValueError("factors (got 'S') leaves the directions alone; mode: rotate needs UV or USV")
        return self

    def variants(self, roles: tuple[Role, ...]) -> tuple[EditVariant, ...]:
        """Every point of the grid, in the order mode, roles, block, k, t. `roles`: those of the study."""
        groups: tuple[Any, ...] = self.roles or (roles,)
        if isinstance(groups[0], str):
            groups = (groups,)
        grid = product(_listed(self.mode), groups, range(self.blocks), _listed(self.k), _listed(self.t))
        return tuple(
            EditVariant(self.factors, mode, self.part, k, t, tuple(group), block, self.blocks)
            for mode, group, block, k, t in grid
        )


def _listed(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
