"""One safetensors file on any filesystem: its header, checked before anything in it is believed, and its tensors.

A file is eight bytes with the length N of the header, N bytes of JSON {name: {dtype, shape, data_offsets}}, and
the data (https://huggingface.co/docs/safetensors). The header is held to what the safetensors library demands
and a little more; no size that a file states is used before it is known to lie within the file.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rlheals_ray.folder import Folder

LARGEST_HEADER = 100_000_000
"""Bytes of header that the safetensors library reads at most."""

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "C64": torch.complex64, "BOOL": torch.bool,
}  # fmt: skip
_BITS = {code: 8 * dtype.itemsize for code, dtype in DTYPES.items()} | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


class Damaged(ValueError):
    """A file is no whole safetensors file; the message says what is wrong with it, without its name."""


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its dtype's code, shape, and bytes [start, end) counted from the file's first byte."""

    code: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The tensors of a file in the order of their bytes, its first bytes as they stand, and its size in bytes."""

    entries: Mapping[str, Entry]
    raw: bytes
    size: int


def read_header(folder: Folder, file_name: str) -> Header:
    """The header of a file, two small reads. Raises Damaged, or OSError where the file cannot be read."""
    size = folder.size(file_name)
    if size < 8:
        raise Damaged(f"it has {size} bytes, too few for a header")
    with folder.open_input(file_name) as file:
        first = file.read(8)
        (length,) = struct.unpack("<Q", first) if len(first) == 8 else (size,)
        if length > min(size - 8, LARGEST_HEADER):
            raise Damaged(f"its header would take {length} bytes of the file's {size}")
        header = file.read(length)
    if len(header) != length:
        raise Damaged("it became shorter while it was read")
    return Header(_checked(_parsed(header), 8 + length, size), first + header, size)


def read_tensor(folder: Folder, file_name: str, name: str, entry: Entry, rows: slice | None) -> torch.Tensor:
    """A tensor, or `rows` of it (start and stop set, step 1), in its stored dtype.

    A local file is mapped into memory; from a remote one exactly the tensor's bytes are fetched.
    Raises Damaged, or OSError where the file cannot be read.
    """
    dtype = DTYPES[entry.code]
    shape, start, end = entry.shape, entry.start, entry.end
    if folder.local:
        try:
            with safe_open(folder.local / file_name, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
        except SafetensorError as error:
            raise Damaged(str(error)) from None
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise Damaged("it changed while it was read")
        return tensor if rows is None else tensor[rows]
    if rows is not None:
        of_row = math.prod(shape[1:]) * dtype.itemsize
        start, end = start + rows.start * of_row, start + rows.stop * of_row
        shape = (rows.stop - rows.start, *shape[1:])
    data = torch.empty(end - start, dtype=torch.uint8)
    view, filled = data.numpy().data, 0
    with folder.open_input(file_name) as remote:
        remote.seek(start)
        while filled < len(view):
            count = remote.readinto(view[filled:])  # type: ignore[attr-defined]
            if not count:
                raise Damaged("it became shorter while it was read")
            filled += count
    return data.view(dtype).reshape(shape)


def _parsed(header: bytes) -> dict[str, Any]:
    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise Damaged(f"its header names {key!r} twice")
            found[key] = value
        return found

    def refused(constant: str) -> Any:
        raise Damaged(f"its header holds {constant}")

    try:
        text = header.decode("utf-8")
        parsed = json.loads(text, object_pairs_hook=unique, parse_constant=refused)
        json.dumps(parsed, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no text
    except Damaged:
        raise
    except (ValueError, RecursionError):
        raise Damaged("its header is no JSON") from None
    if not isinstance(parsed, dict):
        raise Damaged("its header is no JSON object")
    return parsed


def _checked(header: dict[str, Any], data: int, size: int) -> dict[str, Entry]:
    """The entries in the order of their bytes; `data` is where those begin, `size` where the file ends."""
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Damaged("its __metadata__ is no map of strings")
    entries = sorted(
        ((name, _entry(name, value, data)) for name, value in header.items()),
        key=lambda item: (item[1].start, item[1].end),
    )
    at = data
    for name, entry in entries:
        if entry.start != at:
            raise Damaged(f"the bytes of tensor {name!r} leave a gap or overlap those of another")
        at = entry.end
        if at > size:
            raise Damaged(f"it ends within tensor {name!r}: {size} bytes of at least {at} are there")
    if at != size:
        raise Damaged(f"it has {size} bytes where its header describes {at}")
    return dict(entries)


def _entry(name: str, value: Any, data: int) -> Entry:
    try:
        code, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        numbers = [*shape, begin, end]
    except (KeyError, TypeError, ValueError):
        raise Damaged(f"its header describes tensor {name!r} without dtype, shape and data_offsets") from None
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise Damaged(f"tensor {name!r} has the shape {shape!r} and the bytes [{begin!r}, {end!r}]")
    if not isinstance(code, str) or code not in _BITS:
        raise Damaged(f"tensor {name!r} has the unknown dtype {code!r}")
    if 8 * (end - begin) != math.prod(shape) * _BITS[code]:
        raise Damaged(f"tensor {name!r} {code} {shape} does not fill its bytes [{begin}, {end}]")
    return Entry(code, tuple(shape), data + begin, data + end)
