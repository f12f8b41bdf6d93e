"""Stored SVD factors: each distinct matrix is decomposed once, whichever checkpoints hold it.

The key is the content of the matrix, so a matrix that training left alone, or that two directories
share, is found again, and a changed one never is. A file holds Uᵀ, S and Vh: the k leading triplets are
its first rows, and only they are read where only they are needed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import torch

from rlheals_ray.folder import Folder
from rlheals_ray.models.checkpoint import content_hash, raw_bytes
from rlheals_ray.models.safetensors_file import Damaged, read_header, read_tensor
from rlheals_ray.spectra.linalg import Factors, decompose


def stored_factors(weight: torch.Tensor, where: str | Path | Folder) -> Factors:
    """U (m, r), S (r,), Vh (r, n) of a matrix, float32, on the CPU: read when stored, else decomposed and stored.

    weight: on the CPU. where: a local directory, or a URI. U may be a transposed view, and what was read is
    not to be written to. Files appear whole; processes that race write the same. Raises ValueError as
    `decompose` does.
    """
    folder, key = Folder.of(where), content_hash(weight)
    return _read(folder, key, None) or _store(folder, key, weight, "cpu")


def store_factors(
    weight: torch.Tensor, where: str | Path | Folder, device: str = "cpu"
) -> tuple[str, torch.Tensor]:
    """Decompose a matrix, on `device`, unless that was done: its key and S (r,), the rest left in the file."""
    folder, key = Folder.of(where), content_hash(weight)
    S = _part(folder, key, "S", None)
    return key, S if S is not None else _store(folder, key, weight, device)[1]


def leading_factors(
    key: str, k: int, where: str | Path | Folder, weight: Callable[[], torch.Tensor]
) -> Factors:
    """U (m, k), S (r,) whole, Vh (k, n) of the matrix with this key; k beyond r is r.

    weight: reads the matrix, should its file have been removed or damaged since it was stored.
    """
    folder = Folder.of(where)
    factors = _read(folder, key, k)
    if factors is None:
        U, S, Vh = _store(folder, key, weight(), "cpu")
        factors = U[:, :k], S, Vh[:k]
    return factors


def _read(folder: Folder, key: str, k: int | None) -> Factors | None:
    """The factors, U and Vh cut to k; None where there is no file, or one that was damaged from outside."""
    Ut, S, Vh = (_part(folder, key, name, rows) for name, rows in (("Ut", k), ("S", None), ("Vh", k)))
    return None if Ut is None or S is None or Vh is None else (Ut.mT, S, Vh)


def _part(folder: Folder, key: str, name: str, rows: int | None) -> torch.Tensor | None:
    try:
        entry = read_header(folder, _file(key)).entries[name]
        cut = None if rows is None else slice(0, min(rows, entry.shape[0]))
        return read_tensor(folder, _file(key), name, entry, cut)
    except (FileNotFoundError, Damaged, KeyError):
        return None


def _store(folder: Folder, key: str, weight: torch.Tensor, device: str) -> Factors:
    U, S, Vh = (factor.cpu() for factor in decompose(weight.to(device)))
    tensors = {"Ut": U.mT.contiguous(), "S": S, "Vh": Vh}
    header, at = {}, 0
    for name, tensor in tensors.items():
        end = at + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    start = json.dumps(header).encode()
    start += b" " * (-len(start) % 8)
    with folder.open_output(_file(key)) as file:
        file.write(struct.pack("<Q", len(start)) + start)
        for tensor in tensors.values():
            file.write(raw_bytes(tensor))
    return U, S, Vh


def _file(key: str) -> str:
    return f"{key[:2]}/{key}.safetensors"
