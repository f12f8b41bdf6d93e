"""One matrix in all its variants, each made once and kept in a safetensors file: a piece.

A piece is named by the contents of the two matrices that it was made from and by its variant, appears whole
or not at all, and is found again by whoever needs it next: layers and roles are no part of it, so
checkpoints that edit other sets of matrices are put together from the same pieces.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import load, load_file

from rlheals_ray.folder import Folder
from rlheals_ray.models.checkpoint import content_hash, raw_bytes
from rlheals_ray.models.safetensors_file import DTYPES
from rlheals_ray.spectra.edit import RECIPIENT, Variant
from rlheals_ray.spectra.variants import BothFactors, Way, Ways, edited_matrices

CODE = 1
"""Part of every piece's name: raise it when a variant comes to mean other numbers."""
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Piece:
    """A file that holds these tensors alone; a checkpoint may take it as a shard."""

    folder: str
    """URI."""
    file: str
    tensors: tuple[str, ...]

    def tensor(self, name: str) -> torch.Tensor:
        """One of its tensors; reads the file whole."""
        folder = Folder.of(self.folder)
        if folder.local:
            return load_file(folder.local / self.file)[name]
        return load(folder.read(self.file))[name]


@dataclass(frozen=True)
class Made:
    """A variant of a matrix, and how far it went."""

    piece: Piece
    way: Way


def make_pieces(
    name: str,
    recipient: torch.Tensor,
    donor: torch.Tensor,
    variants: Sequence[Variant],
    factors: BothFactors,
    pieces: Folder,
) -> dict[Variant, Made | Exception]:
    """Every variant of the matrix `name`, found in `pieces` or made, in the recipient's dtype.

    recipient, donor: (m, n), one shape. factors: called where a variant needs the factors of both. A variant
    that cannot be made has its exception in its place; the others do not suffer from it.
    """
    total = Ways(recipient, donor).donor_donor
    wanted = list(dict.fromkeys(variants))
    if total == 0.0:
        # Nothing to exchange: what edits and controls would write is the recipient, but for rounding.
        still = keep({name: recipient}, f"{name}.safetensors", pieces)
        return {variant: Made(still, Way(smallest=1.0 if variant.mixes else None)) for variant in wanted}
    both = pieces.child(_key({name: recipient}, donor))
    found: dict[Variant, Made | Exception] = {}
    lengths: dict[Variant, float] = {}
    missing = []
    for variant in wanted + [measure for variant in wanted if (measure := variant.measure)]:
        piece = Piece(both.child(variant.name).uri, f"{name}.safetensors", (name,))
        if variant == RECIPIENT:
            found[variant] = Made(keep({name: recipient}, piece.file, pieces), Way(donor_donor=total))
        elif way := _stored(piece):
            found[variant] = Made(piece, way)
            lengths[variant] = way.length
        elif variant not in missing:
            missing.append(variant)
    for variant, edited in edited_matrices(name, recipient, donor, missing, factors, lengths):
        if isinstance(edited, Exception):
            found[variant] = edited
        elif variant in wanted:
            piece = Piece(both.child(variant.name).uri, f"{name}.safetensors", (name,))
            write_piece(piece, {name: edited.matrix}, edited.way)
            found[variant] = Made(piece, edited.way)
        del edited  # or two are held while the next one is made
    return {variant: found[variant] for variant in wanted}


def keep(tensors: Mapping[str, torch.Tensor], file: str, pieces: Folder) -> Piece:
    """A piece that is a recipient's own tensors; written if it is not there."""
    folder = pieces.child(_key(tensors)).child(RECIPIENT.name)
    piece = Piece(folder.uri, file, tuple(tensors))
    if _stored(piece) is None:
        write_piece(piece, tensors, Way())
    return piece


def _key(tensors: Mapping[str, torch.Tensor], *donor: torch.Tensor) -> str:
    contents = [[name, content_hash(tensor)] for name, tensor in tensors.items()]
    others = [content_hash(tensor) for tensor in donor]
    digest = hashlib.sha256(json.dumps([CODE, contents, others]).encode()).hexdigest()
    return f"{digest[:2]}/{digest[:32]}"


def write_piece(piece: Piece, tensors: Mapping[str, torch.Tensor], way: Way) -> None:
    """Write a piece, whole or not at all, without a copy of its tensors."""
    # "format" is what transformers asks for; the sums travel with the matrix that they were formed on.
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "way": json.dumps(asdict(way))}}
    at = 0
    # Wide dtypes first, so that every tensor is aligned to its own item size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
    for name, tensor in ordered:
        end = at + tensor.nbytes
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    start = json.dumps(header).encode()
    start += b" " * (-len(start) % 8)
    with Folder.of(piece.folder).open_output(piece.file) as file:
        file.write(struct.pack("<Q", len(start)) + start)
        for _, tensor in ordered:
            file.write(raw_bytes(tensor))


def _stored(piece: Piece) -> Way | None:
    """What was stored with a piece; None where there is none, or none that is whole."""
    folder, file = Folder.of(piece.folder), piece.file
    try:
        (length,) = struct.unpack("<Q", folder.read_range(file, 0, 8))
        header = json.loads(folder.read_range(file, 8, length))
        end = max(header[name]["data_offsets"][1] for name in piece.tensors)
        return (
            Way(**json.loads(header["__metadata__"]["way"]))
            if folder.size(file) == 8 + length + end
            else None
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, struct.error):
        return None
