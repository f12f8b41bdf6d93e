"""Edited checkpoints put together from pieces: links and an index, or the recipient's own shards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from rlheals_ray.config import InputError
from rlheals_ray.folder import Folder
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.models.checkpoint_writer import appearing, copy_companions, write_checkpoint, write_index
from rlheals_ray.spectra.edit import EditReport, Variant
from rlheals_ray.spectra.orders import Model, Order, Place, Plan
from rlheals_ray.spectra.pieces import Made, Piece, write_piece
from rlheals_ray.spectra.variants import Way


class Assembly:
    """A plan whose rows are done. Raises InputError where a donor does not differ from its recipient."""

    def __init__(self, plan: Plan, results: Sequence[Mapping[str, Any]]) -> None:
        """results: of ablation.make_rows, in any order; rows may be missing."""
        self.plan = plan
        self._made: dict[Place, Mapping[str, Any]] = {}
        self._kept: dict[str, list[Piece]] = {}
        self._failed: dict[tuple[str, str], str] = {}
        for result in results:
            if kept := result.get("kept"):
                piece = Piece(kept["folder"], kept["file"], tuple(kept["tensors"]))
                self._kept.setdefault(result["recipient"], []).append(piece)
            elif made := result.get("made"):
                self._made[Place(result["recipient"], result["donor"], *result["tensors"])] = made
            else:
                for tensor in result["tensors"]:
                    self._failed[result["recipient"], tensor] = result["failed"]
        for number in range(len(plan.orders)):
            self._check_difference(number)

    def write(self, number: int) -> EditReport:
        """Put the checkpoint of order `number` together, unless it is there.

        Raises RuntimeError where a piece of it could not be made.
        """
        order = self.plan.orders[number]
        made = {
            matrix: self._one(order, matrix, variant) for matrix, variant in self.plan.edits[number].items()
        }
        if is_written(order):
            pass
        elif self.plan.keeps:
            self._link(order, made)
        else:
            model = self.plan.models[order.edit.recipient_directory]
            touched = model.touched(made)
            files = sorted(touched, key=lambda tensor: (model.matrices.checkpoint.file(tensor), tensor))
            tensors = ((tensor, self._fused(model, tensor, touched[tensor], made)) for tensor in files)
            write_checkpoint(
                order.out, tensors, model.matrices.checkpoint, changed=list(touched), extra=dict(order.extra)
            )
        return _report([one.way for one in made.values()])

    def _link(self, order: Order, made: Mapping[str, Made]) -> None:
        recipient = order.edit.recipient_directory
        model = self.plan.models[recipient]
        checkpoint = model.matrices.checkpoint
        touched = model.touched(made)
        files: dict[str, str] = {}
        with appearing(Folder.of(order.out), checkpoint) as (folder, _):
            copy_companions(checkpoint.folder, folder)
            for name, data in order.extra.items():
                folder.write(name, data)
            for tensor, matrices in touched.items():
                piece = made[matrices[0]].piece
                if piece.tensors == (tensor,):
                    Folder.of(piece.folder).copy(piece.file, folder, link=True)
                else:
                    piece = Piece(folder.uri, f"{tensor}.safetensors", (tensor,))
                    write_piece(piece, {tensor: self._fused(model, tensor, matrices, made)}, Way())
                files[tensor] = piece.file
            for piece in self._kept.get(recipient, []):
                if not set(piece.tensors) & set(touched):
                    Folder.of(piece.folder).copy(piece.file, folder, link=True)
                    files |= dict.fromkeys(piece.tensors, piece.file)
            if missing := sorted(set(checkpoint.names()) - set(files)):
                raise RuntimeError(f"{missing[0]!r}: {self._failed.get((recipient, missing[0]), _LOST)}")
            write_index(folder, files, sum(model.size(tensor) for tensor in files))

    def _fused(
        self, model: Model, tensor: str, matrices: Sequence[str], made: Mapping[str, Made]
    ) -> torch.Tensor:
        """The stored tensor with its edited matrices."""
        values = {matrix: made[matrix].piece.tensor(model.shard(matrix)) for matrix in matrices}
        return model.matrices.fused(tensor, values)

    def _one(self, order: Order, matrix: str, variant: Variant) -> Made:
        place = Place(order.edit.recipient_directory, order.edit.donor_directory, matrix)
        found = self._made.get(place)
        if found is None:
            raise RuntimeError(f"{matrix!r}: {self._failed.get((place.recipient, matrix), _LOST)}")
        one = found[variant.name]
        if "failed" in one:
            raise RuntimeError(f"{matrix!r}: {one['failed']}")
        piece = Piece(one["piece"]["folder"], one["piece"]["file"], tuple(one["piece"]["tensors"]))
        return Made(piece, Way(**one["way"]))

    def _check_difference(self, number: int) -> None:
        order = self.plan.orders[number]
        edit = order.edit
        places = [
            Place(edit.recipient_directory, edit.donor_directory, matrix)
            for matrix in self.plan.edits[number]
        ]
        if all(place in self._still for place in places):
            raise InputError(
                f"edit: donor {edit.donor_directory!r} and recipient {edit.recipient_directory!r} have the "
                f"same {len(places)} matrices of the roles {list(edit.roles)}; name two that differ."
            )

    @cached_property
    def _still(self) -> set[Place]:
        """The matrices in which donor and recipient do not differ."""
        return {
            place
            for place, made in self._made.items()
            if all("way" in one and one["way"]["donor_donor"] == 0.0 for one in made.values())
        }


def is_written(order: Order) -> bool:
    """Whether its checkpoint is there, whole, and by its `extra` files, of which there must be any, the same."""
    folder = Folder.of(order.out)
    try:
        same = all(folder.read(name) == data for name, data in order.extra.items())
        if not order.extra or not same:
            return False
        Checkpoint(folder).check()
    except (OSError, InputError):
        return False
    return True


_LOST = "it was lost with the process that made it; the same command makes it again"


def _report(ways: Sequence[Way]) -> EditReport:
    edit_donor, edit_edit, donor_donor = (
        math.fsum(getattr(way, name) for way in ways) for name in ("edit_donor", "edit_edit", "donor_donor")
    )
    projection = edit_donor / donor_donor
    # ‖e − p d‖² = ‖e‖² − p² ‖d‖², because p is the projection.
    residual = math.sqrt(max(0.0, edit_edit / donor_donor - projection**2))
    smallest = [way.smallest for way in ways if way.smallest is not None]
    return EditReport(
        projection, residual, len(ways), min(smallest) if smallest else None, math.sqrt(edit_edit)
    )
