"""One matrix edited in every way asked for: what the variants share is computed once, nothing is written.

A new kind of control is a function here and a line in CONTROLS.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import TypeAlias

import torch

from rlheals_ray.spectra.edit import RECIPIENT, Variant
from rlheals_ray.spectra.linalg import Factors
from rlheals_ray.spectra.measures import noisy
from rlheals_ray.spectra.recombination import Recombination

ELEMENTS = 1 << 17
"""Taken to float64 at a time when sums are formed: they fit a core's cache, and memory does not notice them."""

BothFactors: TypeAlias = Callable[[], tuple[Factors, Factors]]
"""The factors of recipient and donor, read or decomposed when called."""


@dataclass(frozen=True)
class Way:
    """How far one matrix went, as written: the sums behind an EditReport."""

    edit_donor: float = 0.0
    """⟨ΔW_edit, ΔW_donor⟩."""
    edit_edit: float = 0.0
    """‖ΔW_edit‖²."""
    donor_donor: float = 0.0
    """‖ΔW_donor‖²."""
    length: float = 0.0
    """‖ΔW_edit‖ before rounding to the recipient's dtype: what a control of equal norm is given."""
    smallest: float | None = None
    """The least singular value of the mixed bases, where bases are mixed."""


@dataclass(frozen=True)
class Edited:
    """A matrix as edited, in the recipient's dtype, and how far it went."""

    matrix: torch.Tensor
    way: Way


def edited_matrices(
    name: str,
    recipient: torch.Tensor,
    donor: torch.Tensor,
    variants: Sequence[Variant],
    factors: BothFactors,
    lengths: dict[Variant, float] | None = None,
) -> Iterator[tuple[Variant, Edited | Exception]]:
    """Every variant of the matrix `name`, (m, n) in recipient and donor, one at a time, edits first.

    A variant that cannot be made comes as its exception; the others do not suffer from it. lengths: ‖ΔW‖ of
    edits known from before, for controls whose edit is not among `variants`; those made here are added.
    """
    lengths = {} if lengths is None else lengths
    both = cache(factors)
    edits = sorted((v for v in variants if v.kind == "edit"), key=_shared)
    for (which, mode, part), group in groupby(edits, key=_shared):
        points = {(variant.k, variant.t): variant for variant in group}
        try:
            pair = Recombination(*both(), part)
            for point, matrix in pair.edited(list(points), which, mode):
                variant = points[point]
                smallest = pair.smallest(variant.k) if variant.mixes else None
                edited = _edited(matrix, recipient, donor, smallest)
                lengths[variant] = edited.way.length
                del points[point]
                yield variant, edited
        except Exception as error:  # whatever it is, it is this group's alone
            for variant in points.values():
                yield variant, error
    for variant in variants:
        if variant.kind == "edit":
            continue
        try:
            matrix = CONTROLS[variant.kind](_Control(name, recipient, donor, variant, both, lengths))
            yield variant, _edited(matrix, recipient, donor, None)
        except Exception as error:
            yield variant, error


def way_of(
    matrix: torch.Tensor, recipient: torch.Tensor, donor: torch.Tensor, smallest: float | None = None
) -> Way:
    """The sums of one matrix, float64, over `matrix` rounded to the recipient's dtype."""
    edit_donor = edit_edit = donor_donor = exact = 0.0
    rows = max(1, ELEMENTS // recipient.shape[1])
    for start in range(0, recipient.shape[0], rows):
        block = slice(start, start + rows)
        before = recipient[block].double()
        whole = (donor[block].double() - before).flatten()
        written = (matrix[block].to(recipient.dtype).double() - before).flatten()
        meant = (matrix[block].double() - before).flatten()
        edit_donor += float(torch.dot(written, whole))
        edit_edit += float(torch.dot(written, written))
        donor_donor += float(torch.dot(whole, whole))
        exact += float(torch.dot(meant, meant))
    return Way(edit_donor, edit_edit, donor_donor, math.sqrt(exact), smallest)


def _edited(
    matrix: torch.Tensor, recipient: torch.Tensor, donor: torch.Tensor, smallest: float | None
) -> Edited:
    way = way_of(matrix, recipient, donor, smallest)
    if not math.isfinite(way.edit_edit):
        raise OverflowError(
            f"its values do not fit into {recipient.dtype}; convert the recipient to bfloat16 or float32"
        )
    return Edited(matrix.to(recipient.dtype), way)


def _shared(variant: Variant) -> tuple[str, str, str]:
    return variant.factors, variant.mode, variant.part


@dataclass(frozen=True)
class _Control:
    """What a control is made from."""

    name: str
    recipient: torch.Tensor
    donor: torch.Tensor
    variant: Variant
    factors: BothFactors
    lengths: Mapping[Variant, float]

    @property
    def length(self) -> float:
        """‖ΔW‖ of the edit that it stands beside."""
        measure = self.variant.measure
        if measure is None or measure not in self.lengths:
            raise RuntimeError(f"{self.variant.name}: the edit that it is to go as far as could not be made")
        return self.lengths[measure]

    @property
    def seed(self) -> int:
        # Every matrix its own, whatever process edits it: Python's hash differs between processes.
        return zlib.crc32(f"{self.variant.seed}/{self.name}".encode())


def _interpolated(control: _Control) -> torch.Tensor:
    start = control.recipient.double()
    whole = control.donor.double() - start
    return whole.mul_(control.length / float(torch.linalg.vector_norm(whole))).add_(start)


def _turned(control: _Control) -> torch.Tensor:
    variant = control.variant
    return Recombination(*control.factors(), variant.part).randomly_turned(
        variant.k, control.seed, subspaces_only=variant.mode == "rotate", t=variant.t
    )


CONTROLS: Mapping[str, Callable[[_Control], torch.Tensor]] = {
    RECIPIENT.kind: lambda control: control.recipient,
    "weight_swap": lambda control: control.donor,
    "interpolation": _interpolated,
    "random_angle": _turned,
    "random_norm": lambda control: noisy(control.recipient, control.length, control.seed),
}
"""Each of edit.KINDS but the edit itself, as a matrix (m, n) in any dtype."""
