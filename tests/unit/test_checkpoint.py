"""Checkpoints are read one tensor at a time, wherever they are, and refused clearly."""

import json
import uuid
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlheals_ray.config import InputError
from rlheals_ray.folder import Folder
from rlheals_ray.models.checkpoint import INDEX_FILE, Checkpoint, content_hash
from rlheals_ray.models.checkpoint_writer import copy_model
from tests.checkpoints import sharded, tiny_llama


def test_a_single_file_is_read_by_name(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path, torch.bfloat16)
    checkpoint = Checkpoint(tmp_path)
    state = model.state_dict()
    assert checkpoint.names() == sorted(state)
    for name, expected in state.items():
        assert checkpoint.shape(name) == tuple(expected.shape)
        assert checkpoint.dtype(name) == torch.bfloat16
        assert torch.equal(checkpoint.tensor(name), expected)


def test_shards_are_found_through_their_index(tmp_path: Path) -> None:
    a, b = torch.arange(6.0).reshape(2, 3), torch.arange(4.0)
    directory = sharded(tmp_path / "m", {"a": "1.safetensors", "b": "2.safetensors"},
                        {"1.safetensors": {"a": a}, "2.safetensors": {"b": b}})  # fmt: skip
    checkpoint = Checkpoint(directory)
    assert checkpoint.names() == ["a", "b"]
    assert torch.equal(checkpoint.tensor("a"), a) and torch.equal(checkpoint.tensor("b"), b)


def test_shards_of_transformers_equal_its_single_file(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "one")
    tiny_llama(tmp_path / "many", max_shard_size="4KB")
    assert (tmp_path / "many" / INDEX_FILE).exists()
    one, many = Checkpoint(tmp_path / "one"), Checkpoint(tmp_path / "many")
    assert one.names() == many.names()
    assert all(torch.equal(one.tensor(name), many.tensor(name)) for name in one.names())


def test_the_fingerprint_follows_the_weights_alone(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "a")
    tiny_llama(tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text("{}")
    a, b = Checkpoint(tmp_path / "a"), Checkpoint(tmp_path / "b")
    assert a.fingerprint() == b.fingerprint()
    tensors = load_file(tmp_path / "b" / "model.safetensors")
    tensors["lm_head.weight"][0, 0] += 1e-3
    save_file(tensors, tmp_path / "b" / "model.safetensors")
    assert a.fingerprint() != Checkpoint(tmp_path / "b").fingerprint()


def test_content_is_hashed_with_dtype_and_shape() -> None:
    zeros = torch.zeros(2, 4)
    others = [torch.zeros(4, 2), torch.zeros(2, 2, dtype=torch.float64), torch.ones(2, 4)]
    assert content_hash(zeros) == content_hash(torch.zeros(4, 2).T)
    assert len({content_hash(tensor) for tensor in [zeros, *others]}) == 4


@pytest.mark.parametrize(
    "outside",
    ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", ".", "", "a\0b", 3, None, ["a"]],
)
def test_an_index_that_leaves_the_directory_is_refused(tmp_path: Path, outside: object) -> None:
    directory = sharded(tmp_path / "m", {"w": outside}, {})
    with pytest.raises(InputError, match=r"'w'.*outside the directory"):
        Checkpoint(directory).names()


def test_every_broken_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        Checkpoint(tmp_path / "absent")
    with pytest.raises(InputError, match=r"neither model\.safetensors nor"):
        Checkpoint(tmp_path).names()

    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(InputError, match=r"pickled weights \(pytorch_model\.bin\).*save_pretrained"):
        Checkpoint(pickled).names()

    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(InputError, match="damaged"):
        Checkpoint(damaged).names()

    for number, text in enumerate(["{", "[]", "{}", '{"weight_map": 1}']):
        directory = tmp_path / f"index-{number}"
        directory.mkdir()
        (directory / INDEX_FILE).write_text(text)
        with pytest.raises(InputError, match="no valid index"):
            Checkpoint(directory).names()

    lost = sharded(tmp_path / "lost", {"w": "1.safetensors"}, {})
    with pytest.raises(InputError, match=r"'1\.safetensors'.*'w'.*missing"):
        Checkpoint(lost).tensor("w")
    with pytest.raises(InputError, match="missing"):
        Checkpoint(lost).fingerprint()

    lying = sharded(tmp_path / "lying", {"w": "1.safetensors"}, {"1.safetensors": {"v": torch.ones(1)}})
    with pytest.raises(InputError, match=r"sends tensor 'w'.*lacks it"):
        Checkpoint(lying).tensor("w")
    with pytest.raises(InputError, match="no tensor 'v'"):
        Checkpoint(lying).tensor("v")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nan_and_inf_are_refused_unless_wanted(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    save_file({"w": torch.tensor([1.0, bad], dtype=dtype), "fine": torch.full((2,), 1e30, dtype=dtype)},
              tmp_path / "model.safetensors")  # fmt: skip
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.tensor("fine").shape == (2,)
    with pytest.raises(InputError, match="'w' holds NaN or Inf"):
        checkpoint.tensor("w")
    assert checkpoint.tensor("w", finite=False).shape == (2,)


@pytest.mark.parametrize("shards", ["1GB", "4KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_remote_checkpoint_is_read_as_a_local_one(tmp_path: Path, shards: str, dtype: torch.dtype) -> None:
    tiny_llama(tmp_path / "m", dtype, max_shard_size=shards)
    remote = Folder.of(f"memory://{uuid.uuid4().hex}/m")
    copy_model(tmp_path / "m", remote)
    here, there = Checkpoint(tmp_path / "m"), Checkpoint(remote.uri)
    there.check()
    assert there.names() == here.names() and there.files() == here.files()
    assert there.fingerprint() == here.fingerprint()
    assert there.config() == here.config()
    for name in here.names():
        assert there.dtype(name) == here.dtype(name) and torch.equal(there.tensor(name), here.tensor(name))


def test_of_a_remote_file_only_the_bytes_of_header_and_tensor_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"small": torch.ones(10), "large": torch.ones(1_000_000)}, tmp_path / "model.safetensors")
    remote = Folder.of(f"memory://{uuid.uuid4().hex}/m")
    copy_model(tmp_path, remote)
    from fsspec.implementations.memory import MemoryFile

    read: list[int] = []
    original = MemoryFile.read

    def counted(file: MemoryFile, size: int = -1) -> bytes:
        data: bytes = original(file, size)
        read.append(len(data))
        return data

    monkeypatch.setattr(MemoryFile, "read", counted)
    assert torch.equal(Checkpoint(remote).tensor("small"), torch.ones(10))
    assert 0 < sum(read) < 1000
    assert torch.equal(Checkpoint(remote).tensor("large", rows=slice(999_990, 1_000_000)), torch.ones(10))
    assert sum(read) < 2000


def test_the_whole_directory_is_checked_by_its_headers(tmp_path: Path) -> None:
    one, two = torch.ones(2, 3), torch.zeros(4)
    whole = {"a": "1.safetensors", "b": "2.safetensors"}
    cases: dict[str, tuple[dict[str, str], dict[str, dict[str, torch.Tensor]], str]] = {
        "whole": (whole, {"1.safetensors": {"a": one}, "2.safetensors": {"b": two}}, ""),
        "missing": (whole, {"1.safetensors": {"a": one}, "2.safetensors": {"c": two}}, "sends tensor 'b' to"),
        "unknown": (
            whole,
            {"1.safetensors": {"a": one, "c": two}, "2.safetensors": {"b": two}},
            r"'1\.safetensors' holds the tensor 'c'.*does not know it.*copy all of them again",
        ),
        "twice": (
            whole,
            {"1.safetensors": {"a": one, "b": two}, "2.safetensors": {"b": two}},
            r"'1\.safetensors' holds the tensor 'b'.*sends it to '2\.safetensors'",
        ),
        "lost": (whole, {"1.safetensors": {"a": one}}, r"'2\.safetensors' \(for tensor 'b'\) is missing"),
    }
    for name, (weight_map, shards, problem) in cases.items():
        checkpoint = Checkpoint(sharded(tmp_path / name, weight_map, shards))
        if problem:
            with pytest.raises(InputError, match=problem):
                checkpoint.check()
        else:
            checkpoint.check()


def test_a_truncated_shard_is_found_before_anything_is_read(tmp_path: Path) -> None:
    tiny_llama(tmp_path, max_shard_size="4KB")
    shard = tmp_path / Checkpoint(tmp_path).files()[1]
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(
        InputError, match=rf"'{shard.name}' \(for tensor 'model\..*is damaged \(it ends within tensor"
    ):
        Checkpoint(tmp_path).check()


def test_pickled_shards_and_two_sets_of_weights_are_refused(tmp_path: Path) -> None:
    pickled = sharded(tmp_path / "pickled", {"w": "pytorch_model-00001-of-00002.bin"}, {})
    with pytest.raises(InputError, match=r"pickled weights \(pytorch_model-00001-of-00002\.bin\)"):
        Checkpoint(pickled).names()
    both = sharded(tmp_path / "both", {"w": "1.safetensors"}, {"1.safetensors": {"w": torch.ones(1)}})
    save_file({"w": torch.zeros(1)}, both / "model.safetensors")
    with pytest.raises(InputError, match=r"both model\.safetensors and .* delete the one"):
        Checkpoint(both).names()


def test_a_file_or_a_broken_configuration_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(1)}, file)
    with pytest.raises(InputError, match="is a file; name its directory"):
        Checkpoint(file)
    with pytest.raises(InputError, match=r"config\.json is missing"):
        Checkpoint(tmp_path).config()
    for text in ("", "[]", "{", "\ufeff{}", json.dumps(1)):
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"config\.json is no JSON object"):
            Checkpoint(tmp_path).config()


def test_a_dtype_that_torch_lacks_is_named(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(InputError, match=r"'w' has the dtype F4.*convert the checkpoint"):
        Checkpoint(tmp_path).check()


# --- links


@pytest.mark.parametrize(
    "name", ["vocab.txt", "model.safetensors", "config.json", "additional_chat_templates/x.jinja"]
)
def test_a_link_that_leads_out_of_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    """What stands in the directory is copied into studies: it must not be another file of this machine."""
    secret, model = tmp_path / "auth_token", tmp_path / "model"
    secret.write_text("s3cr3t")
    tiny_llama(model)
    (model / name).unlink(missing_ok=True)
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).symlink_to("../" * (name.count("/") + 1) + "auth_token")
    with pytest.raises(InputError, match=r"leads out of the directory.*remove the link") as refused:
        Checkpoint(model)
    assert repr(name) in str(refused.value) and "\n" not in str(refused.value)


def test_so_is_one_that_leads_round_in_a_circle_or_by_another_link(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "a")
    (tmp_path / "a" / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="'loop' is a link"):
        Checkpoint(tmp_path / "a")
    tiny_llama(tmp_path / "b")
    (tmp_path / "outside").write_text("s3cr3t")
    (tmp_path / "b" / ".hop").symlink_to("../outside")
    (tmp_path / "b" / "vocab.txt").symlink_to(".hop")
    with pytest.raises(InputError, match="is a link"):
        Checkpoint(tmp_path / "b")


def test_links_within_it_and_those_of_a_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "models--some--one"
    snapshot, blobs = repository / "snapshots" / "0123abcd", repository / "blobs"
    tiny_llama(snapshot)
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(f"../../blobs/{number}")
    (snapshot / "LICENSE.txt").symlink_to("config.json")
    (tmp_path / "link").symlink_to(snapshot)
    for where in (snapshot, tmp_path / "link"):
        assert Checkpoint(where).tensor("lm_head.weight").shape[0] > 0
    copy_model(snapshot, tmp_path / "copied")
    assert not [path for path in (tmp_path / "copied").iterdir() if path.is_symlink()]
    # A blob that is a link itself leads on.
    (tmp_path / "outside").write_text("s3cr3t")
    (blobs / "0").unlink()
    (blobs / "0").symlink_to("../../outside")
    with pytest.raises(InputError, match="is a link"):
        Checkpoint(snapshot)
