"""Checkpoints on disk, one tensor at a time: reading, identifying and writing Hugging Face directories.

Nothing here ever holds a model: a reader maps one tensor, the writer streams tensors into place, and
pickled weights (.bin, .pt), which could run code on loading, are refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rlheals_ray.config import InputError
from rlheals_ray.storage import new_directory

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "vocab*", "merges.txt", "chat_template*", "*processor_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
"""What stands beside the weights in a Hugging Face directory and belongs to every checkpoint of the model."""

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Checkpoint:
    """A directory with `model.safetensors`, or with shards and their `model.safetensors.index.json`.

    Opening reads no weights. Every problem of the directory is an InputError that names the file or
    tensor and the remedy.
    """

    directory: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))
        if not self.directory.is_dir():
            raise self._wrong(
                f"checkpoint (got {str(self.directory)!r}): there is no such directory; check the path."
            )

    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header alone."""
        with self._open(name) as file:
            return tuple(file.get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """The stored dtype of a tensor, from the header alone."""
        with self._open(name) as file:
            code = file.get_slice(name).get_dtype()
        if code not in _DTYPES:
            raise self._wrong(
                f"tensor {name!r} has the dtype {code}, which is not supported; "
                "convert the checkpoint to float32 or bfloat16."
            )
        return _DTYPES[code]

    def tensor(self, name: str, finite: bool = True) -> torch.Tensor:
        """One tensor in its stored dtype, on the CPU. With `finite`, NaN or Inf in it raises InputError."""
        with self._open(name) as file:
            tensor: torch.Tensor = file.get_tensor(name)
        if finite and not bool(torch.isfinite(tensor.float() if tensor.itemsize == 1 else tensor).all()):
            raise self._wrong(
                f"tensor {name!r} holds NaN or Inf; the training that wrote it diverged: "
                "use an earlier checkpoint."
            )
        return tensor

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the bytes of the weight files, in the order of their names."""
        digest = hashlib.sha256()
        for file_name in sorted(set(self._files.values())):
            path = self.directory / file_name
            if not path.is_file():
                raise self._wrong(f"{file_name!r} is missing; copy it again.")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _wrong(self, message: str) -> InputError:
        return InputError(f"checkpoint {str(self.directory)!r}: {message}")

    @cached_property
    def _files(self) -> dict[str, str]:
        """Tensor name -> file name within the directory."""
        if (self.directory / INDEX_FILE).is_file():
            return self._read_index()
        if (self.directory / SINGLE_FILE).is_file():
            with self._open_file(SINGLE_FILE) as file:
                return dict.fromkeys(file.keys(), SINGLE_FILE)
        pickled = sorted(
            path.name for suffix in ("*.bin", "*.pt", "*.pth") for path in self.directory.glob(suffix)
        )
        if pickled:
            raise self._wrong(
                f"only pickled weights ({pickled[0]}), which can run code on loading and are never read "
                "here; convert them where you trust them with "
                "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)."
            )
        raise self._wrong(
            f"neither {SINGLE_FILE} nor {INDEX_FILE} is there; name a Hugging Face directory "
            "with safetensors weights."
        )

    def _read_index(self) -> dict[str, str]:
        try:
            files = json.loads((self.directory / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
            items = list(files.items())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._wrong(
                f"{INDEX_FILE} is no valid index with a 'weight_map'; download it again."
            ) from None
        for name, file_name in items:
            # Plain names only. Links are followed: a Hugging Face cache keeps its blobs elsewhere.
            if not isinstance(file_name, str) or file_name in ("", "..") or Path(file_name).name != file_name:
                raise self._wrong(
                    f"{INDEX_FILE} sends tensor {name!r} to {file_name!r}, outside the directory; mend the "
                    "index: shards stand beside it."
                )
        return dict(items)

    @contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        if name not in self._files:
            raise self._wrong(
                f"there is no tensor {name!r} among its {len(self._files)}; check that "
                "all checkpoints are of one architecture."
            )
        with self._open_file(self._files[name], name) as file:
            yield file

    @contextmanager
    def _open_file(self, file_name: str, name: str | None = None) -> Iterator[Any]:
        path = self.directory / file_name
        wanted = f" (for tensor {name!r})" if name else ""
        if not path.is_file():
            raise self._wrong(f"{file_name!r}{wanted} is missing; copy it again.")
        try:
            file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise self._wrong(f"{file_name!r}{wanted} is damaged ({error}); copy it again.") from None
        with file as opened:
            if name is not None and name not in opened.keys():  # noqa: SIM118 (not a mapping)
                raise self._wrong(
                    f"the index sends tensor {name!r} to {file_name!r}, which lacks it; "
                    "copy the shard or the index again."
                )
            yield opened


def write_checkpoint(directory: Path, tensors: Iterable[tuple[str, torch.Tensor]], like: Path) -> None:
    """Write a checkpoint with the names, shapes and dtypes of `like`, and its configuration and tokenizer.

    `tensors` yields (name, tensor) in any order, every tensor of `like` exactly once; each is cast and
    written at once, so the memory taken is that of one tensor. `directory` appears whole or not at all.
    Raises ValueError for a tensor that is missing, unknown, doubled or of another shape.
    """
    model = Checkpoint(like)
    header, places, size = _layout(model)
    with new_directory(directory) as temporary:
        copy_companions(Path(like), temporary)
        with (temporary / SINGLE_FILE).open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(file.tell() + size)
            missing = set(places)
            for name, tensor in tensors:
                if name not in missing:
                    raise ValueError(
                        f"{name!r} is {'doubled' if name in places else 'no tensor of ' + str(like)}"
                    )
                shape, dtype, offset = places[name]
                if tuple(tensor.shape) != shape:
                    raise ValueError(f"{name!r} has the shape {tuple(tensor.shape)}; {like} has {shape}")
                missing.remove(name)
                file.seek(8 + len(header) + offset)
                file.write(_raw(tensor.detach().to(device="cpu", dtype=dtype)))
        if missing:
            raise ValueError(f"{len(missing)} tensors of {like} were not given, among them {min(missing)!r}")


def copy_companions(source: Path, target: Path) -> None:
    """Copy configuration, tokenizer and generation files of a Hugging Face directory."""
    for path in sorted({path for pattern in COMPANIONS for path in source.glob(pattern)}):
        if path.is_file():
            shutil.copyfile(path, target / path.name)


def copy_model(source: Path, target: Path) -> None:
    """Copy the model of a Hugging Face directory, safetensors and companions, and nothing else."""
    copy_companions(source, target)
    for pattern in ("*.safetensors", INDEX_FILE):
        for path in source.glob(pattern):
            shutil.copyfile(path, target / path.name)


def content_hash(tensor: torch.Tensor) -> str:
    """SHA-256 (hex) of a CPU tensor's dtype, shape and values."""
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(_raw(tensor))
    return digest.hexdigest()


def _raw(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _layout(like: Checkpoint) -> tuple[bytes, dict[str, tuple[tuple[int, ...], torch.dtype, int]], int]:
    """The safetensors header (padded to 8 bytes), each tensor's place in the data, and the data's size."""
    kinds = {name: (like.shape(name), like.dtype(name)) for name in like.names()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places, offset = {}, 0
    # Wide dtypes first, so that every tensor is aligned to its own item size.
    for name, (shape, dtype) in sorted(kinds.items(), key=lambda item: (-item[1][1].itemsize, item[0])):
        end = offset + torch.Size(shape).numel() * dtype.itemsize
        entries[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        places[name] = (shape, dtype, offset)
        offset = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8), places, offset
