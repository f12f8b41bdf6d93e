"""The weight matrices of a checkpoint by role: whole tensors, or the rows of a fused tensor that are one role's.

Comparisons and edits see matrices only; which rows of which stored tensor one is, is known here alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rlheals_ray.config import InputError
from rlheals_ray.folder import Folder
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.spectra.roles import FUSED, locate, select, split_part


@dataclass(frozen=True)
class Matrices:
    """The matrices of a checkpoint. Their names are those of tensors, or `...qkv_proj.weight[q]` for a part.

    `Matrices.of(where)` opens a directory. Nothing is read but headers and config.json until `tensor`.
    """

    checkpoint: Checkpoint

    @classmethod
    def of(cls, where: str | Path | Folder | Checkpoint) -> Matrices:
        return cls(where if isinstance(where, Checkpoint) else Checkpoint(where))

    def names(self, roles: Collection[str], layers: Collection[int] | None = None) -> list[str]:
        """As `roles.select`; raises InputError for a matrix of these roles that is none of numbers (quantised,
        or not of two dimensions) or whose fused parts are not where config.json says."""
        found = select(self.checkpoint.names(), roles, layers)
        for name in found:
            self.shape(name)
        return found

    def shape(self, name: str) -> tuple[int, int]:
        """(rows, columns) of a matrix, from headers and, for a part, config.json."""
        tensor, rows = self.place(name)
        return rows.stop - rows.start, self.checkpoint.shape(tensor)[1]

    def dtype(self, name: str) -> torch.dtype:
        """The stored dtype of a matrix."""
        return self.checkpoint.dtype(split_part(name)[0])

    def tensor(self, name: str) -> torch.Tensor:
        """The matrix in its stored dtype, contiguous; raises InputError for NaN or Inf in it.

        A part of a fused tensor is read alone.
        """
        stored, rows = self.place(name)
        return self.checkpoint.tensor(stored, rows=rows)

    def place(self, name: str) -> tuple[str, slice]:
        """Where a matrix stands: the stored tensor's name, and its rows in it (start and stop are set)."""
        tensor, part = split_part(name)
        if part and locate(name) is None:
            raise self._wrong(tensor, f"has no part {part!r}; known are {FUSED}")
        shape = self.checkpoint.shape(tensor)
        if len(shape) != 2:
            raise self._wrong(
                tensor, f"has the shape {shape}; a matrix has two dimensions: leave out its role"
            )
        if self.checkpoint.dtype(tensor) not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            raise self._wrong(
                tensor,
                f"is stored as {self.checkpoint.dtype(tensor)}, quantised; convert the checkpoint to float32 or "
                "bfloat16",
            )
        if part is None or part == "head":
            return tensor, slice(0, shape[0])
        fused = next(roles for roles in FUSED.values() if part in roles)
        sizes = self._part_sizes(fused, shape[0])
        if sum(sizes) != shape[0]:
            raise self._wrong(
                tensor,
                f"has {shape[0]} rows, but its parts {list(fused)} have {list(sizes)} by config.json; mend "
                "config.json or leave out these roles",
            )
        start = sum(sizes[: fused.index(part)])
        return tensor, slice(start, start + sizes[fused.index(part)])

    def fused(self, tensor: str, edited: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The stored tensor with the rows of the edited matrices in it replaced, in its stored dtype.

        `edited`: matrix name -> its new values; all of them lie in `tensor`. A whole matrix is passed through.
        """
        if set(edited) == {tensor}:
            return edited[tensor].to(self.dtype(tensor))
        whole = self.checkpoint.tensor(tensor, finite=False).clone()
        for name, values in edited.items():
            stored, rows = self.place(name)
            if stored != tensor or tuple(values.shape) != self.shape(name):
                raise ValueError(
                    f"{name!r} {tuple(values.shape)} is no part of {tensor!r} {tuple(whole.shape)}"
                )
            whole[rows] = values.to(whole.dtype)
        return whole

    def _part_sizes(self, fused: tuple[str, ...], rows: int) -> tuple[int, ...]:
        config = self._config
        try:
            if fused == FUSED["gate_up"]:
                return (int(config["intermediate_size"]),) * 2
            heads = int(config["num_attention_heads"])
            head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
            keys = int(config.get("num_key_value_heads") or heads) * head_dim
            return (heads * head_dim, keys, keys)
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            raise InputError(
                f"checkpoint {self.checkpoint.where!r}: config.json lacks the sizes of heads or of the MLP, which say "
                f"where the fused matrices of {list(fused)} divide; add them or leave out these roles."
            ) from None

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        config = self.checkpoint.config()
        # Models with images keep their text model's sizes apart.
        text = config.get("text_config")
        return text if isinstance(text, Mapping) else config

    def _wrong(self, tensor: str, message: str) -> InputError:
        return InputError(f"checkpoint {self.checkpoint.where!r}: tensor {tensor!r} {message}.")
