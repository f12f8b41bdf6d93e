"""Writing Hugging Face directories one tensor at a time, so that no reader ever finds half of one.

A local directory is made beside its place and renamed. On another filesystem the files go up one by one, and
last the one without which nothing can be loaded: the index, or the only weight file.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

import torch

from rlheals_ray.config import InputError
from rlheals_ray.folder import Folder
from rlheals_ray.models.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint, is_finite, raw_bytes
from rlheals_ray.models.safetensors_file import Entry
from rlheals_ray.storage import new_directory

COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "vocab*", "merges.txt", "chat_template*", "*processor_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
"""What stands beside the weights in a Hugging Face directory and belongs to every checkpoint of the model."""
_CHUNK = 4 << 20


def write_checkpoint(
    out: str | Path | Folder,
    tensors: Iterable[tuple[str, torch.Tensor]],
    like: str | Path | Folder | Checkpoint,
    changed: Collection[str] | None = None,
    link: bool = False,
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Write a checkpoint with the names, shapes, dtypes and shards of `like`, its configuration and tokenizer.

    tensors: (name, tensor) in any order, exactly once each of `changed` (None: of all tensors); each is cast to
    the dtype in `like` and written at once. All others are copied from `like` as they stand, and a shard
    without a changed tensor is copied whole, or hard-linked with `link` where that is possible.
    extra: further small files by name. The memory taken is that of one tensor. `out` appears whole or not at
    all, in place of what was there; on a remote filesystem what was there goes first, and the scratch
    directory of this machine needs room for the shards that are being written: for one, if `tensors` follows
    the order of the shards.
    Raises ValueError for a tensor that is missing, unknown, doubled or of another shape, and InputError for one
    whose values do not fit into the dtype of `like`.
    """
    model = like if isinstance(like, Checkpoint) else Checkpoint(like)
    model.check()
    names = set(model.names())
    expected = names if changed is None else set(changed)
    if unknown := expected - names:
        raise ValueError(f"{min(unknown)!r} is no tensor of {model.where}")
    shards = {model.file(name) for name in expected}
    with appearing(Folder.of(out), model) as (folder, scratch):
        copy_companions(model.folder, folder)
        for name, data in (extra or {}).items():
            folder.write(name, data)
        for file_name in model.files():
            if file_name not in shards and file_name != SINGLE_FILE:
                model.folder.copy(file_name, folder, link)
        open_shards: dict[str, _Shard] = {}
        missing = set(expected)
        for name, tensor in tensors:
            if name not in missing:
                raise ValueError(
                    f"{name!r} is {'doubled' if name in expected else f'no tensor of {model.where}'}"
                )
            missing.remove(name)
            file_name = model.file(name)
            if file_name not in open_shards:
                open_shards[file_name] = _Shard(model, file_name, scratch, expected)
            shard = open_shards[file_name]
            shard.put(name, tensor)
            del tensor  # before the next one is made
            if not shard.missing and file_name != SINGLE_FILE:
                _hand_over(file_name, scratch, folder)
        if missing:
            raise ValueError(
                f"{len(missing)} tensors of {model.where} were not given, among them {min(missing)!r}"
            )
        if SINGLE_FILE in shards:
            _hand_over(SINGLE_FILE, scratch, folder)
        elif SINGLE_FILE in model.files():
            model.folder.copy(SINGLE_FILE, folder, link)
        index = model.index()
        if index is not None:
            sizes = (model.entry(name) for name in names)
            metadata = index.get("metadata")
            write_index(
                folder,
                {name: model.file(name) for name in names},
                sum(entry.end - entry.start for entry in sizes),
                metadata if isinstance(metadata, dict) else None,
            )


def write_index(
    folder: Folder, files: Mapping[str, str], total_size: int, metadata: Mapping[str, object] | None = None
) -> None:
    """Write the index of a sharded checkpoint, which makes it one: the last write of a checkpoint.

    files: tensor -> the name of its shard in the folder. total_size: bytes of all tensors. metadata: further
    entries beside total_size.
    """
    index = {
        "metadata": {**(metadata or {}), "total_size": total_size},
        "weight_map": dict(sorted(files.items())),
    }
    folder.write(INDEX_FILE, (json.dumps(index, indent=2) + "\n").encode())


def shard_name(number: int, count: int) -> str:
    """The usual name of a shard; `number` counts from 1."""
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def copy_companions(source: Path | Folder, target: Path | Folder) -> None:
    """Copy configuration, tokenizer and generation files of a Hugging Face directory."""
    here, there = Folder.of(source), Folder.of(target)
    for name in here.names():
        if any(fnmatchcase(name, pattern) for pattern in COMPANIONS):
            here.copy(name, there)


def copy_model(source: Path | Folder, target: Path | Folder) -> None:
    """Copy the model of a Hugging Face directory, safetensors and companions, and nothing else."""
    here, there = Folder.of(source), Folder.of(target)
    copy_companions(here, there)
    for name in here.names():
        if name.endswith(".safetensors"):
            here.copy(name, there)
    if here.exists(INDEX_FILE):
        here.copy(INDEX_FILE, there)


class _Shard:
    """A weight file being written in the scratch directory, laid out as that of the model."""

    def __init__(self, model: Checkpoint, file_name: str, scratch: Path, changed: Collection[str]) -> None:
        header = model.header(file_name)
        self.missing = set(header.entries) & set(changed)
        self._model, self._entries, self._path = model, header.entries, scratch / file_name
        with self._path.open("wb") as file:
            file.write(header.raw)
            file.truncate(header.size)
            kept = [entry for name, entry in header.entries.items() if name not in self.missing]
            if kept:  # a remote file is opened only where something is read
                with model.folder.open_input(file_name) as source:
                    for start, end in _joined(kept):
                        _copy_range(source, file, start, end)

    def put(self, name: str, tensor: torch.Tensor) -> None:
        entry = self._entries[name]
        dtype = self._model.dtype(name)
        if tuple(tensor.shape) != entry.shape:
            raise ValueError(
                f"{name!r} has the shape {tuple(tensor.shape)}; {self._model.where} has {entry.shape}"
            )
        cast = tensor.detach().to(device="cpu", dtype=dtype)
        if cast.dtype != tensor.dtype and not is_finite(cast) and is_finite(tensor):
            raise InputError(
                f"checkpoint {self._model.where!r}: the new values of tensor {name!r} do not fit into its {dtype}; "
                "convert the checkpoint to bfloat16 or float32."
            )
        with self._path.open("r+b") as file:
            file.seek(entry.start)
            file.write(raw_bytes(cast))
        self.missing.remove(name)


def _joined(entries: Iterable[Entry]) -> list[tuple[int, int]]:
    """The bytes of tensors, as few ranges [start, end) in order."""
    ranges: list[tuple[int, int]] = []
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if ranges and ranges[-1][1] == entry.start:
            ranges[-1] = (ranges[-1][0], entry.end)
        else:
            ranges.append((entry.start, entry.end))
    return ranges


def _copy_range(source: IO[bytes], target: IO[bytes], start: int, end: int) -> None:
    source.seek(start)
    target.seek(start)
    while start < end:
        chunk = source.read(min(_CHUNK, end - start))
        if not chunk:
            raise OSError("a shard became shorter while it was copied")
        target.write(chunk)
        start += len(chunk)


def _hand_over(file_name: str, scratch: Path, folder: Folder) -> None:
    """Put a finished file into the folder, where it is not already."""
    if folder.local != scratch:
        Folder.of(scratch).copy(file_name, folder)
        (scratch / file_name).unlink()


@contextmanager
def appearing(out: Folder, model: Checkpoint) -> Iterator[tuple[Folder, Path]]:
    """A folder for the finished files, index or single file last, and a scratch directory to make them in."""
    if out.local:
        with new_directory(out.local) as temporary:
            yield Folder.of(temporary), temporary
        return
    if out == model.folder:
        raise InputError(f"checkpoint {out.uri!r}: it cannot be replaced by an edit of itself; name another.")
    _remove(out)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            yield out, Path(scratch)
        except BaseException:
            _remove(out)
            raise


def _remove(out: Folder) -> None:
    """Delete a checkpoint, first that without which nothing can be loaded."""
    for name in (INDEX_FILE, SINGLE_FILE):
        out.remove(name)
    out.delete()
