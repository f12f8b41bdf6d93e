"""The reader of safetensors files against the safetensors library: the same tensors, and never less strict."""

import json
import math
import struct
import tempfile
import uuid
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save

from rlheals_ray.config import InputError
from rlheals_ray.folder import Folder
from rlheals_ray.models.checkpoint import Checkpoint, raw_bytes
from rlheals_ray.models.safetensors_file import DTYPES, LARGEST_HEADER

FILE = "model.safetensors"
NUMBERS = [dtype for dtype in DTYPES.values() if dtype != torch.bool]

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
    lambda name: name != "__metadata__"
)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def some_tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Tensors of any stored dtype, any bits in them."""
    tensors = {}
    for name in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
        shape, dtype = draw(shapes), draw(st.sampled_from(NUMBERS))
        size = math.prod(shape) * dtype.itemsize
        data = torch.tensor(list(draw(st.binary(min_size=size, max_size=size))), dtype=torch.uint8)
        tensors[name] = data.view(dtype).reshape(shape)
    return tensors


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return tensor.dtype, tuple(tensor.shape), bytes(raw_bytes(tensor))


def folders(content: bytes) -> list[Folder]:
    """A local folder and one elsewhere, each with this one file."""
    found = [Folder.of(tempfile.mkdtemp()), Folder.of(f"memory://{uuid.uuid4().hex}/x")]
    for folder in found:
        folder.write(FILE, content)
    return found


@given(some_tensors(), st.none() | st.dictionaries(names, names, max_size=2))
@settings(max_examples=60, deadline=None)
def test_tensors_written_by_the_library_are_read_bit_for_bit(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None
) -> None:
    for folder in folders(save(tensors, metadata)):
        checkpoint = Checkpoint(folder)
        checkpoint.check()
        assert checkpoint.names() == sorted(tensors)
        for name, tensor in tensors.items():
            assert (checkpoint.dtype(name), checkpoint.shape(name)) == (tensor.dtype, tuple(tensor.shape))
            assert bits(checkpoint.tensor(name, finite=False)) == bits(tensor)
        folder.delete()


@given(st.integers(1, 6), st.data())
@settings(max_examples=30, deadline=None)
def test_rows_are_read_alone(count: int, data: st.DataObject) -> None:
    tensor = torch.arange(6.0 * count).reshape(count, 2, 3).to(torch.bfloat16)
    start = data.draw(st.integers(0, count))
    rows = slice(start, data.draw(st.integers(start, count)))
    for folder in folders(save({"before": torch.ones(3), "w": tensor})):
        assert torch.equal(Checkpoint(folder).tensor("w", rows=rows), tensor[rows])
        folder.delete()


def agree(content: bytes) -> None:
    """What the library refuses is refused here by InputError; what both take is the same."""
    try:
        expected = {name: view for name, view in safetensors.deserialize(content)}
    except SafetensorError:
        expected = None
    for folder in folders(content):
        try:
            checkpoint = Checkpoint(folder)
            checkpoint.check()
            read = {name: checkpoint.tensor(name, finite=False) for name in checkpoint.names()}
        except InputError as refusal:
            assert FILE in str(refusal) or "tensor" in str(refusal)
        else:
            assert expected is not None, "the library refuses this file"
            assert {name: bytes(raw_bytes(tensor)) for name, tensor in read.items()} == {
                name: bytes(view["data"]) for name, view in expected.items()
            }
        folder.delete()


@given(some_tensors(), st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_are_refused_as_the_library_does(
    tensors: dict[str, torch.Tensor], data: st.DataObject
) -> None:
    content = bytearray(save(tensors, {"format": "pt"}))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1)) if content else 0
        match data.draw(st.sampled_from(["change", "cut", "insert", "append"])):
            case "change" if content:
                content[at] = data.draw(st.integers(0, 255))
            case "cut":
                del content[at:]
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=3))
            case _:
                content += data.draw(st.binary(min_size=1, max_size=9))
    agree(bytes(content))


numbers = st.one_of(
    st.integers(-2, 9), st.sampled_from([2**31, 2**62, 2**63, 2**64, 10**30, 1.0, True, None, "1"])
)
described = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F16", "F4", "F6_E2M3", "F128", "", 3, None]),
        "shape": st.lists(numbers, max_size=3) | numbers,
        "data_offsets": st.lists(numbers, min_size=2, max_size=2) | st.lists(numbers, max_size=3) | numbers,
        "other": numbers,
    },
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), described | numbers, max_size=3) | numbers,
    st.binary(max_size=16),
)
@example({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234")
@example({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}, b"")
@example({"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}, b"1234")
@example({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, b"1234")
@example({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"1234")
@example({"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}}, b"1234")
@example({"__metadata__": 0}, b"")
@example({"__metadata__": {"a": 1}}, b"")
@example({"__metadata__": None}, b"")
@example({"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 0]}}, b"")
@example(
    {
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    },
    b"1234",
)
@settings(max_examples=300, deadline=None)
def test_lying_headers_are_refused_as_the_library_does(header: Any, data: bytes) -> None:
    text = json.dumps(header).encode()
    agree(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"a": NaN}',
        b'{"\\ud800": {"dtype": "F32", "shape": [], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, '
        b'"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
    ],
    ids=lambda header: header[:12].decode("latin-1"),
)
def test_headers_that_are_no_proper_json_are_refused(header: bytes) -> None:
    for folder in folders(struct.pack("<Q", len(header)) + header):
        with pytest.raises(InputError, match=r"'model\.safetensors' is damaged \(.*header.*copy it again"):
            Checkpoint(folder).names()
        folder.delete()


@pytest.mark.parametrize("length", [41, 2**31, LARGEST_HEADER + 1, 2**63, 2**64 - 1])
def test_a_header_longer_than_its_file_is_never_read(length: int) -> None:
    for folder in folders(struct.pack("<Q", length) + b" " * 40):
        with pytest.raises(InputError, match=f"header would take {length} bytes of the file's 48"):
            Checkpoint(folder).names()
        folder.delete()


def test_a_file_that_shrinks_between_header_and_tensor_is_damaged(tmp_path: Path) -> None:
    content = save({"w": torch.ones(4, 4)})
    for folder in folders(content):
        checkpoint = Checkpoint(folder)
        assert checkpoint.shape("w") == (4, 4)
        folder.write(FILE, content[:-8])
        with pytest.raises(InputError, match=r"'model\.safetensors' \(for tensor 'w'\) is damaged"):
            checkpoint.tensor("w")
        folder.delete()
