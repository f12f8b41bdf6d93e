"""Edited checkpoints: the recipient with some matrices' singular factors, or whole matrices, of the donor.

Every kind of edit is a function of one matrix, so an edit streams: one tensor at a time is read, edited
and written, and no process holds a model. A new kind is one function and one line in KINDS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray
import torch

from rlheals_ray.config import InputError
from rlheals_ray.models.checkpoint import Checkpoint, write_checkpoint
from rlheals_ray.spectra.factors import stored_factors
from rlheals_ray.spectra.recombination import MODES, Which, recombine
from rlheals_ray.spectra.roles import ROLES, select


@dataclass(frozen=True)
class Edit:
    """What to write: the matrices of `roles` in `layers` (None: all), changed as `kind` says.

    kind: see KINDS. factors, k, mode: as in `recombine`; `interpolation` takes from them how far to go,
    `weight_swap` ignores them. Raises InputError for an unknown name or a negative k.
    """

    donor_directory: str
    recipient_directory: str
    factors: Which = "UV"
    k: int | None = None
    mode: str = "concatenate"
    roles: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    layers: tuple[int, ...] | None = None
    kind: str = "edit"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("factors", self.factors, ("UV", "S", "USV")),
            ("mode", self.mode, tuple(MODES)),
            ("kind", self.kind, tuple(KINDS)),
        ):
            if value not in known:
                raise InputError(f"edit: {name} (got {value!r}) is unknown; choose from {list(known)}.")
        if unknown := sorted(set(self.roles) - set(ROLES)):
            raise InputError(f"edit: roles (got {unknown}) are unknown; choose from {list(ROLES)}.")
        if self.k is not None and self.k < 0:
            raise InputError(
                f"edit: k (got {self.k}) is negative; use 0 or more, or null for all directions."
            )


@dataclass(frozen=True)
class EditReport:
    """How far an edit leads from recipient to donor, over the edited matrices as written.

    With ΔW_edit = edited − recipient, ΔW_donor = donor − recipient and sums over all edited matrices:
    projection p = ⟨ΔW_edit, ΔW_donor⟩ / ‖ΔW_donor‖² (0: stayed, 1: as far as the donor), and
    residual = ‖ΔW_edit − p ΔW_donor‖ / ‖ΔW_donor‖: what is not on the straight way back.
    """

    projection: float
    residual: float
    matrices: int


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

    def report(self) -> EditReport:
        projection = self.edit_donor / self.donor_donor
        # ‖e − p d‖² = ‖e‖² − p² ‖d‖², because p is the projection.
        residual = math.sqrt(max(0.0, self.edit_edit / self.donor_donor - projection**2))
        return EditReport(projection, residual, self.matrices)


def _recombined(edit: Edit, recipient: torch.Tensor, donor: torch.Tensor, factors: Path) -> torch.Tensor:
    return recombine(
        stored_factors(recipient, factors), stored_factors(donor, factors), edit.k, edit.factors, edit.mode
    )


def _swapped(edit: Edit, recipient: torch.Tensor, donor: torch.Tensor, factors: Path) -> torch.Tensor:
    return donor


def _interpolated(edit: Edit, recipient: torch.Tensor, donor: torch.Tensor, factors: Path) -> torch.Tensor:
    start, whole = recipient.double(), donor.double() - recipient.double()
    length = torch.linalg.vector_norm(whole)
    if float(length) == 0.0:
        return recipient
    wanted = torch.linalg.vector_norm(_recombined(edit, recipient, donor, factors).double() - start)
    return start + wanted / length * whole


KINDS: Mapping[str, Callable[[Edit, torch.Tensor, torch.Tensor, Path], torch.Tensor]] = {
    "edit": _recombined,
    "weight_swap": _swapped,
    "interpolation": _interpolated,
}
"""(edit, recipient matrix, donor matrix, factors directory) -> the edited matrix.

edit: singular factors recombined. weight_swap: the donor's matrices whole, the plain control.
interpolation: the straight way to the donor, per matrix as far (‖ΔW‖_F) as the edit went.
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

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name in recipient.names():
            if name not in edited:
                yield name, recipient.tensor(name, finite=False)
                continue
            before, target = recipient.tensor(name), donor.tensor(name)
            after = KINDS[edit.kind](edit, before, target, Path(factors_directory)).to(before.dtype)
            way.add(after, before, target)
            yield name, after
        if way.donor_donor == 0.0:
            raise InputError(
                f"edit: donor {edit.donor_directory!r} and recipient {edit.recipient_directory!r} have the "
                f"same {way.matrices} matrices of the roles {list(edit.roles)}; name two that differ."
            )

    write_checkpoint(Path(out_directory), tensors(), like=recipient.directory)
    return way.report()


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
        if edit.kind != "weight_swap" and edit.k is not None and edit.k > min(shape):
            raise InputError(
                f"edit: k (got {edit.k}) exceeds the {min(shape)} singular values of {name!r} {shape}; lower "
                "k, leave that role out, or use k: null for all directions."
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
