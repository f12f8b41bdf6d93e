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
"""Taken at a time when sums are formed: they fit a core's cache, and memory does not notice them."""

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
    ways = Ways(recipient, donor)
    both = cache(factors)
    edits = sorted((v for v in variants if v.kind == "edit"), key=_shared)
    for (which, mode, part), group in groupby(edits, key=_shared):
        points = {(variant.k, variant.t): variant for variant in group}
        try:
            own, other = both()
            pair = Recombination(own, other, part, _precision(recipient, own, other))
            smallest = pair.smallest(variant.k for variant in points.values() if variant.mixes)
            for point, matrix in pair.edited(list(points), which, mode):
                variant = points[point]
                edited = ways.edited(matrix, smallest.get(variant.k))
                lengths[variant] = edited.way.length
                del points[point]
                yield variant, edited
                del edited  # or two are held while the next one is made
        except Exception as error:  # whatever it is, it is this group's alone
            for variant in points.values():
                yield variant, error
    for variant in variants:
        if variant.kind == "edit":
            continue
        try:
            matrix = CONTROLS[variant.kind](_Control(name, recipient, donor, variant, both, lengths))
            yield variant, ways.edited(matrix)
        except Exception as error:
            yield variant, error


class Ways:
    """Measures how far edits of one matrix lead. recipient, donor: (m, n) in any floating dtypes."""

    def __init__(self, recipient: torch.Tensor, donor: torch.Tensor) -> None:
        self._recipient, self._donor = recipient, donor
        # Differences of stored values are exact in float32, or all but; sums of their products need float64.
        wide = torch.float64 in (recipient.dtype, donor.dtype)
        self._dtype = torch.float64 if wide else torch.float32
        wholes = (self._whole(block, recipient[block].to(self._dtype)) for block in self._blocks())
        self.donor_donor = math.fsum(_dot(whole, whole) for whole in wholes)
        """‖ΔW_donor‖²."""

    def edited(self, matrix: torch.Tensor, smallest: float | None = None) -> Edited:
        """`matrix` in the recipient's dtype, and how far it went. Raises OverflowError where it does not fit."""
        written = matrix.to(self._recipient.dtype)
        # To float32 nothing that matters is lost, and to a matrix of the recipient's dtype nothing at all.
        rounds = self._recipient.itemsize < 4 and written.dtype != matrix.dtype
        edit_donor = edit_edit = exact = 0.0
        for block in self._blocks():
            before = self._recipient[block].to(self._dtype)
            edit = (written[block].to(self._dtype) - before).flatten().double()
            edit_donor += _dot(edit, self._whole(block, before))
            edit_edit += _dot(edit, edit)
            if rounds:
                meant = (matrix[block].to(self._dtype) - before).flatten().double()
                exact += _dot(meant, meant)
        if not math.isfinite(edit_edit):
            raise OverflowError(f"edited values exceed {written.dtype}; convert the recipient to bfloat16")
        length = math.sqrt(exact if rounds else edit_edit)
        return Edited(written, Way(edit_donor, edit_edit, self.donor_donor, length, smallest))

    def _whole(self, block: slice, before: torch.Tensor) -> torch.Tensor:
        return (self._donor[block].to(self._dtype) - before).flatten().double()

    def _blocks(self) -> Iterator[slice]:
        rows = max(1, ELEMENTS // self._recipient.shape[1])
        return (slice(start, start + rows) for start in range(0, self._recipient.shape[0], rows))


def _precision(recipient: torch.Tensor, own: Factors, other: Factors) -> torch.dtype:
    """In which products are added up: float32 errs by 1e-7 of the larger matrix, far below what rounding to 16 bits
    does, unless one matrix is much larger than the other."""
    scales = float(own[1][0]), float(other[1][0])
    return torch.float32 if recipient.itemsize == 2 and max(scales) < 10 * min(scales) else torch.float64


def _dot(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.dot(a, b))


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
