"""Edited checkpoints: the recipient with some matrices' singular factors, or whole matrices, of the donor.

Every kind of edit is a function of one matrix, so an edit streams: one tensor at a time is read, edited
and written, and no process holds a model. A new kind is one function and one line in KINDS.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import ray
import torch

from rlheals_ray.config import InputError
from rlheals_ray.models.checkpoint import Checkpoint, write_checkpoint
from rlheals_ray.spectra.factors import stored_factors
from rlheals_ray.spectra.linalg import Factors
from rlheals_ray.spectra.measures import noisy
from rlheals_ray.spectra.recombination import (
    MODES,
    Which,
    randomly_turned,
    recombine,
    smallest_singular_value,
)
from rlheals_ray.spectra.roles import ROLES, select


@dataclass(frozen=True)
class Edit:
    """What to write: the matrices of `roles` in `layers` (None: all), changed as `kind` says.

    kind: see KINDS. factors, mode, part, t: as in `recombine`. k: how many triplets, a fraction of
    min(m, n) when it is a float in (0, 1], or None for all. The controls take from them how far to go;
    `weight_swap` ignores them. seed: of the random controls.
    Raises InputError for an unknown name or a k, t or part out of range.
    """

    donor_directory: str
    recipient_directory: str
    factors: Which = "UV"
    k: int | float | None = None
    mode: str = "concatenate"
    part: str = "top"
    t: float = 1.0
    roles: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    layers: tuple[int, ...] | None = None
    kind: str = "edit"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("factors", self.factors, ("UV", "S", "USV")),
            ("mode", self.mode, tuple(MODES)),
            ("part", self.part, ("top", "tail")),
            ("kind", self.kind, tuple(KINDS)),
        ):
            if value not in known:
                raise InputError(f"edit: {name} (got {value!r}) is unknown; choose from {list(known)}.")
        if unknown := sorted(set(self.roles) - set(ROLES)):
            raise InputError(f"edit: roles (got {unknown}) are unknown; choose from {list(ROLES)}.")
        if self.k is not None and (self.k < 0 or (isinstance(self.k, float) and not 0 < self.k <= 1)):
            raise InputError(
                f"edit: k (got {self.k}) must not be negative: it counts directions, or is a fraction in "
                "(0, 1], or null for all of them."
            )
        if not 0 <= self.t <= 1 or (self.t != 1 and self.mode != "rotate"):
            raise InputError(
                f"edit: t (got {self.t}) goes from 0 to 1, and needs mode: rotate to be less than 1."
            )
        if self.mode == "rotate" and self.k is None:
            raise InputError(
                "edit: mode rotate turns a subspace of fewer than all directions into another; give a k."
            )

    def directions(self, shape: tuple[int, ...]) -> int:
        """k for a matrix of this shape; a fraction is rounded up."""
        rank = min(shape)
        if self.k is None:
            return rank
        return math.ceil(self.k * rank) if isinstance(self.k, float) else self.k


@dataclass(frozen=True)
class EditReport:
    """How far an edit leads from recipient to donor, over the edited matrices as written.

    With ΔW_edit = edited − recipient, ΔW_donor = donor − recipient and sums over all edited matrices:
    projection p = ⟨ΔW_edit, ΔW_donor⟩ / ‖ΔW_donor‖² (0: stayed, 1: as far as the donor), and
    residual = ‖ΔW_edit − p ΔW_donor‖ / ‖ΔW_donor‖: what is not on the straight way back.
    smallest: the least singular value of the mixed bases [donor's k, recipient's others] over the matrices
    (1: orthonormal as they stand, 0: a direction was lost); None where no bases are mixed.
    """

    projection: float
    residual: float
    matrices: int
    smallest: float | None = None


@dataclass
class _Way:
    """The sums behind an EditReport, one matrix at a time."""

    edit_donor: float = 0.0
    edit_edit: float = 0.0
    donor_donor: float = 0.0
    matrices: int = 0

    def add(self, edited: torch.Tensor, recipient: torch.Tensor, donor: torch.Tensor) -> None:
        edit, whole = edited.double() - recipient.double(), donor.double() - recipient.double()
        self.edit_donor += float((edit * whole).sum())
        self.edit_edit += float(edit.square().sum())
        self.donor_donor += float(whole.square().sum())
        self.matrices += 1

    def report(self, smallest: float | None) -> EditReport:
        projection = self.edit_donor / self.donor_donor
        # ‖e − p d‖² = ‖e‖² − p² ‖d‖², because p is the projection.
        residual = math.sqrt(max(0.0, self.edit_edit / self.donor_donor - projection**2))
        return EditReport(projection, residual, self.matrices, smallest)


@dataclass(frozen=True)
class _Matrix:
    """One matrix of recipient and donor, with what an edit of it needs."""

    name: str
    recipient: torch.Tensor
    donor: torch.Tensor
    factors_directory: Path

    @cached_property
    def factors(self) -> tuple[Factors, Factors]:
        """Of recipient and donor, read only where a kind asks for them."""
        return (
            stored_factors(self.recipient, self.factors_directory),
            stored_factors(self.donor, self.factors_directory),
        )


def _recombined(edit: Edit, matrix: _Matrix) -> torch.Tensor:
    k = edit.directions(matrix.recipient.shape)
    if k == 0 or edit.t == 0:
        return matrix.recipient  # bit for bit, rather than through its factors
    return recombine(*matrix.factors, k, edit.factors, edit.mode, part=edit.part, t=edit.t)


def _swapped(edit: Edit, matrix: _Matrix) -> torch.Tensor:
    return matrix.donor


def _distance(edit: Edit, matrix: _Matrix) -> float:
    """How far, ‖ΔW‖_F, the edit itself goes."""
    return float(torch.linalg.vector_norm(_recombined(edit, matrix).double() - matrix.recipient.double()))


def _interpolated(edit: Edit, matrix: _Matrix) -> torch.Tensor:
    start, whole = matrix.recipient.double(), matrix.donor.double() - matrix.recipient.double()
    length = float(torch.linalg.vector_norm(whole))
    return matrix.recipient if length == 0.0 else start + _distance(edit, matrix) / length * whole


def _turned_at_random(edit: Edit, matrix: _Matrix) -> torch.Tensor:
    k = edit.directions(matrix.recipient.shape)
    return randomly_turned(
        *matrix.factors,
        k,
        _seed(edit, matrix),
        part=edit.part,
        subspaces_only=edit.mode == "rotate",
        t=edit.t,
    )


def _moved_at_random(edit: Edit, matrix: _Matrix) -> torch.Tensor:
    return noisy(matrix.recipient, _distance(edit, matrix), _seed(edit, matrix))


def _seed(edit: Edit, matrix: _Matrix) -> int:
    # Every matrix its own, whatever process edits it: Python's hash differs between processes.
    return zlib.crc32(f"{edit.seed}/{matrix.name}".encode())


KINDS: Mapping[str, Callable[[Edit, _Matrix], torch.Tensor]] = {
    "edit": _recombined,
    "weight_swap": _swapped,
    "interpolation": _interpolated,
    "random_angle": _turned_at_random,
    "random_norm": _moved_at_random,
}
"""(edit, matrix of recipient and donor) -> the edited matrix.

edit: singular factors recombined. Its controls: weight_swap: the donor's matrices whole. interpolation: the
straight way to the donor, per matrix as far (‖ΔW‖_F) as the edit went. random_angle: the recipient turned by
the same angles in random planes. random_norm: a Gaussian ΔW, per matrix as long as the edit's.
"""


def write_edit(edit: Edit, out_directory: str | Path, factors_directory: str | Path) -> EditReport:
    """Write the edited checkpoint, atomically, in the recipient's dtypes, and say how far it went.

    Every tensor that is not edited, the configuration and the tokenizer are the recipient's.
    Raises InputError when no matrix matches, the checkpoints differ in architecture or do not differ in
    these matrices at all, or k exceeds min(m, n) of a matrix.
    """
    recipient, donor = Checkpoint(Path(edit.recipient_directory)), Checkpoint(Path(edit.donor_directory))
    edited = set(select(recipient.names(), edit.roles, edit.layers))
    _check(edit, recipient, donor, edited)
    way = _Way()
    bases: list[float] = []

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name in recipient.names():
            if name not in edited:
                yield name, recipient.tensor(name, finite=False)
                continue
            matrix = _Matrix(name, recipient.tensor(name), donor.tensor(name), Path(factors_directory))
            after = KINDS[edit.kind](edit, matrix).to(matrix.recipient.dtype)
            way.add(after, matrix.recipient, matrix.donor)
            if edit.kind == "edit" and edit.mode != "rotate" and edit.factors != "S":
                bases.append(
                    smallest_singular_value(*matrix.factors, edit.directions(after.shape), edit.part)
                )
            yield name, after
        if way.donor_donor == 0.0:
            raise InputError(
                f"edit: donor {edit.donor_directory!r} and recipient {edit.recipient_directory!r} have the "
                f"same {way.matrices} matrices of the roles {list(edit.roles)}; name two that differ."
            )

    write_checkpoint(Path(out_directory), tensors(), like=recipient.directory)
    return way.report(min(bases, default=None))


def _check(edit: Edit, recipient: Checkpoint, donor: Checkpoint, edited: set[str]) -> None:
    if not edited:
        raise InputError(
            f"edit: no matrix of {edit.recipient_directory!r} has a role in {list(edit.roles)} and a layer "
            f"in {'all' if edit.layers is None else list(edit.layers)}; check roles and layers."
        )
    for name in sorted(edited):
        shape = recipient.shape(name)
        if donor.shape(name) != shape:
            raise InputError(
                f"edit: {name!r} has the shape {shape} in {edit.recipient_directory!r} and "
                f"{donor.shape(name)} in {edit.donor_directory!r}; use checkpoints of one architecture."
            )
        limit = min(shape) - (edit.mode == "rotate")
        if edit.kind != "weight_swap" and edit.directions(shape) > limit:
            raise InputError(
                f"edit: k (got {edit.k}) exceeds the {limit} singular directions that mode {edit.mode} can take "
                f"of {name!r} {shape}; lower k or leave that role out."
            )


def run_edits(
    edits: Sequence[tuple[Edit, str | Path]],
    factors_directory: str | Path,
    concurrency: int = 1,
    num_cpus: float = 1.0,
) -> list[EditReport]:
    """`write_edit` of each (edit, out_directory) as a Ray task; reports in the order of `edits`.

    At most `concurrency` at one time, each reserving num_cpus and using one thread. Raises what
    `write_edit` raises, for the first edit that fails; edits already written stay.
    """
    task = ray.remote(num_cpus=num_cpus)(_write_edit)
    references: list[ray.ObjectRef] = []
    for edit, out_directory in edits:
        # Workers have other working directories.
        donor, recipient, out, factors = (
            str(Path(directory).absolute())
            for directory in (
                edit.donor_directory,
                edit.recipient_directory,
                out_directory,
                factors_directory,
            )
        )
        running = ray.wait(references, num_returns=len(references), timeout=0)[1] if references else []
        if len(running) >= concurrency:
            ray.wait(running, num_returns=len(running) - concurrency + 1)
        references.append(
            task.remote(replace(edit, donor_directory=donor, recipient_directory=recipient), out, factors)
        )
    try:
        return list(ray.get(references))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise


def _write_edit(edit: Edit, out_directory: str, factors_directory: str) -> EditReport:
    torch.set_num_threads(1)
    return write_edit(edit, out_directory, factors_directory)
