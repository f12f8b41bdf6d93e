"""Checkpoints one tensor at a time: Hugging Face directories, local or on any pyarrow filesystem.

Nothing here ever holds a model: a local tensor is mapped, a remote one fetched by its bytes alone, and pickled
weights (.bin, .pt), which could run code on loading, are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rlheals_ray.config import InputError
from rlheals_ray.folder import Folder
from rlheals_ray.models.safetensors_file import DTYPES, Damaged, Entry, Header, read_header, read_tensor

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth")
_TEMPLATES = "additional_chat_templates"
"""The one directory below that transformers reads of a tokenizer."""
_CHUNK = 4 << 20


class Checkpoint:
    """A directory with `model.safetensors`, or with shards and their `model.safetensors.index.json`.

    Opening reads no weights, and headers are read once each. Every problem of the directory is an InputError
    that names the tensor, or the file where no tensor can be named, and the remedy.
    """

    def __init__(self, where: str | Path | Folder) -> None:
        """where: a local path, or a URI of any filesystem that `Folder` knows."""
        self.folder = Folder.of(where)
        self._headers: dict[str, Header] = {}
        try:
            there = self.folder.exists()
        except OSError as error:  # a bucket without access, a host that does not answer
            raise InputError(
                f"checkpoint (got {self.where!r}): it cannot be reached ({error}); check address and access rights."
            ) from None
        if not there:
            raise InputError(f"checkpoint (got {self.where!r}): there is no such directory; check the path.")
        if self.folder.local and not self.folder.local.is_dir():
            raise InputError(f"checkpoint (got {self.where!r}): this is a file; name its directory.")
        if self.folder.local:
            self._check_links(self.folder.local)

    @property
    def where(self) -> str:
        """The local path or URI."""
        return self.folder.uri

    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self._files)

    def files(self) -> list[str]:
        """The names of the weight files, sorted."""
        return sorted(set(self._files.values()))

    def file(self, name: str) -> str:
        """The weight file that holds a tensor."""
        if name not in self._files:
            raise self._wrong(
                f"there is no tensor {name!r} among its {len(self._files)}; check that "
                "all checkpoints are of one architecture."
            )
        return self._files[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header alone."""
        return self.entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """The stored dtype of a tensor, from the header alone."""
        code = self.entry(name).code
        if code not in DTYPES:
            raise self._wrong(
                f"tensor {name!r} has the dtype {code}, which is not supported; "
                "convert the checkpoint to float32 or bfloat16."
            )
        return DTYPES[code]

    def tensor(self, name: str, finite: bool = True, rows: slice | None = None) -> torch.Tensor:
        """One tensor in its stored dtype, on the CPU. With `finite`, NaN or Inf in it raises InputError.

        rows: only these of its first dimension (start and stop within it, step 1).
        A local tensor is a view of the mapped file and is not to be written to.
        """
        entry, file_name = self.entry(name), self.file(name)
        self.dtype(name)
        try:
            tensor = read_tensor(self.folder, file_name, name, entry, rows)
        except (Damaged, FileNotFoundError) as error:
            raise self._damaged(file_name, error, name) from None
        if finite and not is_finite(tensor):
            raise self._wrong(
                f"tensor {name!r} holds NaN or Inf; the training that wrote it diverged: "
                "use an earlier checkpoint."
            )
        return tensor

    def entry(self, name: str) -> Entry:
        """Where a tensor's bytes stand in its file."""
        file_name = self.file(name)
        entry = self.header(file_name, name).entries.get(name)
        if entry is None:
            raise self._wrong(
                f"the index sends tensor {name!r} to {file_name!r}, which lacks it; "
                "copy the shard or the index again."
            )
        return entry

    def header(self, file_name: str, wanted: str | None = None) -> Header:
        """The checked header of a weight file. wanted: the tensor to name in an error."""
        if file_name not in self._headers:
            try:
                self._headers[file_name] = read_header(self.folder, file_name)
            except (Damaged, OSError) as error:
                raise self._damaged(file_name, error, wanted) from None
        return self._headers[file_name]

    def check(self) -> None:
        """Check the whole checkpoint by its headers: every tensor of the index is in its shard, whole; no shard
        holds one that the index does not send there. Raises InputError."""
        expected: dict[str, list[str]] = {file_name: [] for file_name in self.files()}
        for name, file_name in sorted(self._files.items()):
            expected[file_name].append(name)
        for file_name, names in expected.items():
            for name in names:
                self.dtype(name)
            if extra := sorted(set(self.header(file_name).entries) - set(names)):
                other = self._files.get(extra[0])
                sent = f"sends it to {other!r}" if other else "does not know it"
                raise self._wrong(
                    f"{file_name!r} holds the tensor {extra[0]!r}, but {INDEX_FILE} {sent}: shards and index "
                    "are of different checkpoints; copy all of them again."
                )

    def config(self) -> dict[str, Any]:
        """config.json of the model."""
        try:
            config = json.loads(self.folder.read("config.json").decode("utf-8"))
        except FileNotFoundError:
            raise self._wrong("config.json is missing; copy it again.") from None
        except (ValueError, RecursionError):
            config = None
        if not isinstance(config, dict):
            raise self._wrong("config.json is no JSON object; copy it again.")
        return config

    def index(self) -> Mapping[str, Any] | None:
        """The index of the shards as it stands; None where one file holds all tensors."""
        if not self.folder.exists(INDEX_FILE):
            return None
        try:
            index = json.loads(self.folder.read(INDEX_FILE).decode("utf-8"))
            if not isinstance(index["weight_map"], dict) or not index["weight_map"]:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._wrong(
                f"{INDEX_FILE} is no valid index with a 'weight_map'; download it again."
            ) from None
        return dict(index)

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the bytes of the weight files, in the order of their names."""
        digest = hashlib.sha256()
        for file_name in self.files():
            one = hashlib.sha256()
            try:
                with self.folder.open_input(file_name) as file:
                    while chunk := file.read(_CHUNK):
                        one.update(chunk)
            except FileNotFoundError as error:
                raise self._damaged(file_name, error, None) from None
            digest.update(one.digest())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"Checkpoint({self.where!r})"

    def _wrong(self, message: str) -> InputError:
        return InputError(f"checkpoint {self.where!r}: {message}")

    def _damaged(self, file_name: str, error: Exception, name: str | None) -> InputError:
        wanted = f" (for tensor {name!r})" if name else ""
        if isinstance(error, FileNotFoundError):
            return self._wrong(f"{file_name!r}{wanted} is missing; copy it again.")
        return self._wrong(f"{file_name!r}{wanted} is damaged ({error}); copy it again.")

    def _check_links(self, directory: Path) -> None:
        """Files are copied into studies and exports, so that a link must not lead to what is nobody else's to read."""
        root = directory.resolve()
        allowed = [root]
        if (
            root.parent.name == "snapshots"
        ):  # of a Hugging Face cache: snapshots/REVISION/x -> ../../blobs/HASH
            allowed.append(root.parents[1] / "blobs")
        for path in (*directory.iterdir(), *(directory / _TEMPLATES).glob("*")):
            if path.is_symlink() and not any(_resolved(path).is_relative_to(place) for place in allowed):
                raise self._wrong(
                    f"{path.relative_to(directory).as_posix()!r} is a link that leads out of the directory, to "
                    f"{os.readlink(path)!r}; only a Hugging Face cache's links to its blobs are followed: put the file "
                    "itself there if you trust it, or remove the link."
                )

    @cached_property
    def _files(self) -> dict[str, str]:
        """Tensor name -> file name within the directory."""
        index = self.index()
        if index is not None:
            return self._sent(index["weight_map"])
        present = self.folder.names()
        if SINGLE_FILE in present:
            return dict.fromkeys(self.header(SINGLE_FILE).entries, SINGLE_FILE)
        if pickled := [name for name in present if name.endswith(_PICKLED)]:
            raise self._pickled(pickled[0])
        raise self._wrong(
            f"neither {SINGLE_FILE} nor {INDEX_FILE} is there; name a Hugging Face directory "
            "with safetensors weights."
        )

    def _sent(self, weight_map: Mapping[str, Any]) -> dict[str, str]:
        for name, file_name in weight_map.items():
            # Plain names only; where links lead was checked at the opening.
            plain = isinstance(file_name, str) and file_name not in ("", ".", "..") and "\0" not in file_name
            if not plain or Path(file_name).name != file_name:
                raise self._wrong(
                    f"{INDEX_FILE} sends tensor {name!r} to {file_name!r}, outside the directory; mend the "
                    "index: shards stand beside it."
                )
            if file_name.endswith(_PICKLED):
                raise self._pickled(file_name)
        if SINGLE_FILE not in weight_map.values() and self.folder.exists(SINGLE_FILE):
            raise self._wrong(
                f"both {SINGLE_FILE} and {INDEX_FILE} are there, and libraries differ in which they load; "
                "delete the one that does not belong to the checkpoint."
            )
        return dict(weight_map)

    def _pickled(self, file_name: str) -> InputError:
        return self._wrong(
            f"only pickled weights ({file_name}), which can run code on loading and are never read "
            "here; convert them where you trust them with "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)."
        )


def _resolved(path: Path) -> Path:
    """Where a link leads in the end; the root, which is nobody's own, where it leads round in a circle."""
    try:
        return path.resolve()
    except (RuntimeError, OSError):
        return Path("/")


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor Inf; without a copy of it, for the usual dtypes."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return True
    if tensor.is_complex() or tensor.itemsize == 1:
        return bool(torch.isfinite(tensor if tensor.is_complex() else tensor.float()).all())
    # The least and the largest value are NaN where any value is.
    return all(bool(torch.isfinite(bound)) for bound in torch.aminmax(tensor))


def content_hash(tensor: torch.Tensor) -> str:
    """SHA-256 (hex) of a CPU tensor's dtype, shape and values."""
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The values of a CPU tensor in C order as bytes, without a copy where it is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
