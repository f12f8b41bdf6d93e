"""Which matrices a set of ordered edits needs, in which variants: what is distinct, and what only looks so."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from rlheals_ray.config import InputError
from rlheals_ray.folder import Folder
from rlheals_ray.spectra.edit import Edit, Variant
from rlheals_ray.spectra.matrices import Matrices

GROUP_BYTES = 64 << 20
"""Tensors that no order edits are kept together, as many as fit in this: norms and biases in a file or two."""


@dataclass(frozen=True)
class Order:
    """An edited checkpoint to write: to the directory or URI `out`, with small files that are there when it appears."""

    edit: Edit
    out: str
    extra: Mapping[str, bytes] = field(default_factory=dict)


class Place(NamedTuple):
    """One matrix of one pair of checkpoints."""

    recipient: str
    donor: str
    matrix: str


@dataclass(frozen=True)
class Plan:
    """The rows of work behind some orders. `Plan.of` raises InputError for an order that cannot be carried out."""

    orders: Sequence[Order]
    """With absolute paths or URIs."""
    edits: Sequence[Mapping[str, Variant]]
    """For each order what it does to each of its matrices."""
    models: Mapping[str, Model]
    """Every checkpoint that an order names."""
    keeps: bool
    """Whether tensors that an order leaves alone are wanted as pieces too."""

    @classmethod
    def of(cls, orders: Sequence[Order], keeps: bool = True) -> Plan:
        orders = [_placed(order) for order in orders]
        directories = {d for o in orders for d in (o.edit.donor_directory, o.edit.recipient_directory)}
        models = {directory: Model(Matrices.of(directory)) for directory in sorted(directories)}
        edits = [
            _variants(o.edit, models[o.edit.recipient_directory], models[o.edit.donor_directory])
            for o in orders
        ]
        return cls(orders, edits, models, keeps)

    @cached_property
    def needed(self) -> Mapping[Place, Sequence[Variant]]:
        """The distinct variants of every distinct matrix."""
        found: dict[Place, dict[Variant, None]] = {}
        for order, variants in zip(self.orders, self.edits, strict=True):
            for matrix, variant in variants.items():
                place = Place(order.edit.recipient_directory, order.edit.donor_directory, matrix)
                found.setdefault(place, {})[variant] = None
        return {place: list(variants) for place, variants in found.items()}

    @cached_property
    def catalogue(self) -> list[Variant]:
        """Every distinct variant."""
        return list(dict.fromkeys(variant for variants in self.needed.values() for variant in variants))

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each distinct matrix, with all its variants, and one for each group of tensors to keep.

        recipient; donor ("" where tensors are only kept); tensors: the matrix, or the tensors kept together;
        name: of the tensor in its pieces, or of the group's file; variants: their places in the catalogue.
        """
        number = {variant: index for index, variant in enumerate(self.catalogue)}
        rows = [
            {
                "recipient": place.recipient,
                "donor": place.donor,
                "tensors": [place.matrix],
                "name": self.models[place.recipient].shard(place.matrix),
                "variants": [number[variant] for variant in variants],
            }
            for place, variants in self.needed.items()
        ]
        if self.keeps:
            rows += [
                {"recipient": recipient, "donor": "", "tensors": tensors, "name": name, "variants": []}
                for recipient in dict.fromkeys(order.edit.recipient_directory for order in self.orders)
                for name, tensors in self._kept(recipient)
            ]
        return rows

    @cached_property
    def elements(self) -> int:
        """Σ m · n · min(m, n) over the distinct matrices: what decomposing them costs."""
        shapes = (self.models[place.recipient].matrices.shape(place.matrix) for place in self.needed)
        return sum(math.prod(shape) * min(shape) for shape in shapes)

    def _kept(self, recipient: str) -> list[tuple[str, list[str]]]:
        """(name, tensors) of the recipient as its orders may need them: alone what some order edits and another
        leaves, in groups what no order edits."""
        model = self.models[recipient]
        edited = [
            set(model.touched(variants))
            for order, variants in zip(self.orders, self.edits, strict=True)
            if order.edit.recipient_directory == recipient
        ]
        some, every = set.union(*edited), set.intersection(*edited)
        kept = [(tensor, [tensor]) for tensor in sorted(some - every)]
        groups: list[list[str]] = []
        size = GROUP_BYTES
        for tensor in sorted(set(model.matrices.checkpoint.names()) - some):
            size += model.size(tensor)
            if size > GROUP_BYTES:
                groups.append([])
                size = model.size(tensor)
            groups[-1].append(tensor)
        return kept + [(f"others-{number:05d}", group) for number, group in enumerate(groups)]


@dataclass(frozen=True)
class Model:
    """The matrices of a checkpoint, and how they lie in its stored tensors."""

    matrices: Matrices

    def size(self, tensor: str) -> int:
        """Bytes of a stored tensor."""
        checkpoint = self.matrices.checkpoint
        return math.prod(checkpoint.shape(tensor)) * checkpoint.dtype(tensor).itemsize

    def shard(self, matrix: str) -> str:
        """The name under which a matrix lies in its pieces: that of the stored tensor, where it is the whole of it."""
        tensor, rows = self.matrices.place(matrix)
        if rows.stop - rows.start == self.matrices.checkpoint.shape(tensor)[0]:
            return tensor
        # Brackets in the name of a file are patterns to some filesystems.
        return matrix.replace("[", ".").removesuffix("]")

    def touched(self, matrices: Iterable[str]) -> dict[str, list[str]]:
        """The stored tensors that hold these matrices, each with those it holds."""
        found: dict[str, list[str]] = {}
        for matrix in matrices:
            found.setdefault(self.matrices.place(matrix)[0], []).append(matrix)
        return found


def _placed(order: Order) -> Order:
    # Workers have other working directories.
    edit = replace(
        order.edit,
        donor_directory=Folder.of(order.edit.donor_directory).uri,
        recipient_directory=Folder.of(order.edit.recipient_directory).uri,
    )
    return replace(order, edit=edit, out=Folder.of(order.out).uri)


def _variants(edit: Edit, recipient: Model, donor: Model) -> dict[str, Variant]:
    """What an edit does to each matrix that it edits; raises InputError where it cannot."""
    names = recipient.matrices.names(edit.roles, edit.layers)
    others = set(donor.matrices.names(edit.roles, edit.layers))
    if not names:
        raise InputError(
            f"edit: no matrix of {edit.recipient_directory!r} has a role in {list(edit.roles)} and a layer "
            f"in {'all' if edit.layers is None else list(edit.layers)}; check roles and layers."
        )
    for name in names:
        shape, other = recipient.matrices.shape(name), donor.matrices.shape(name) if name in others else None
        if shape != other:
            raise InputError(
                f"edit: {name!r} has the shape {shape} in {edit.recipient_directory!r} and "
                f"{other} in {edit.donor_directory!r}; use checkpoints of one architecture."
            )
        limit = min(shape) - (edit.mode == "rotate")
        if edit.kind != "weight_swap" and edit.directions(shape) > limit:
            raise InputError(
                f"edit: k (got {edit.k}) exceeds the {limit} singular directions that mode {edit.mode} can take "
                f"of {name!r} {shape}; lower k or leave that role out."
            )
    return {name: edit.variant(recipient.matrices.shape(name)) for name in names}
