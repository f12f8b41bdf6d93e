"""Checkpoints are read lazily, refused clearly, and written so that transformers loads them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from rlheals_ray.config import InputError
from rlheals_ray.models.checkpoint import INDEX_FILE, Checkpoint, content_hash
from rlheals_ray.models.checkpoint_writer import write_checkpoint


def tiny_llama(directory: Path, dtype: torch.dtype = torch.float32, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=17, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.to(dtype=dtype).eval()
    model.save_pretrained(directory)
    return model


def sharded(directory: Path, weight_map: dict[str, str], shards: dict[str, dict[str, torch.Tensor]]) -> Path:
    directory.mkdir()
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    for name, tensors in shards.items():
        save_file(tensors, directory / name)
    return directory


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
    model = tiny_llama(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="4KB")
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
    "outside", ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", "", 3]
)
def test_an_index_that_leaves_the_directory_is_refused(tmp_path: Path, outside: object) -> None:
    directory = sharded(tmp_path / "m", {"w": outside}, {})  # type: ignore[dict-item]
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_a_written_checkpoint_loads_in_transformers_with_equal_logits(
    tmp_path: Path, dtype: torch.dtype, tied: bool
) -> None:
    model = tiny_llama(tmp_path / "from", dtype, tied)
    (tmp_path / "from" / "tokenizer.json").write_text("{}")
    (tmp_path / "from" / "optimizer.pt").write_bytes(b"not copied")
    source = Checkpoint(tmp_path / "from")
    # In any order, and in a wider dtype than is stored.
    tensors = [(name, source.tensor(name).double()) for name in reversed(source.names())]
    write_checkpoint(tmp_path / "to", tensors, like=tmp_path / "from")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "to").eval()
    assert loaded.dtype == dtype
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    written = sorted(path.name for path in (tmp_path / "to").iterdir())
    assert written == ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]


def test_mixed_dtypes_scalars_and_empty_tensors_survive(tmp_path: Path) -> None:
    tensors = {
        "byte": torch.tensor([1, 2, 3], dtype=torch.uint8), "scalar": torch.tensor(2.5, dtype=torch.float64),
        "half": torch.randn(3, 5).to(torch.float16), "empty": torch.zeros(0, 4), "flag": torch.tensor([True]),
    }  # fmt: skip
    (tmp_path / "from").mkdir()
    save_file(tensors, tmp_path / "from" / "model.safetensors")
    write_checkpoint(tmp_path / "to", tensors.items(), like=tmp_path / "from")
    written = load_file(tmp_path / "to" / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "from")
    source = Checkpoint(tmp_path / "from")
    everything = [(name, source.tensor(name)) for name in source.names()]
    write_checkpoint(tmp_path / "to", everything, like=tmp_path / "from")
    before = Checkpoint(tmp_path / "to").fingerprint()

    def interrupted() -> Iterator[tuple[str, torch.Tensor]]:
        yield everything[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "to", interrupted(), like=tmp_path / "from")
    for wrong, problem in [
        (everything[:-1], "1 tensors of"),
        ([*everything, everything[0]], "doubled"),
        ([("other", torch.ones(1))], "no tensor of"),
        ([(everything[0][0], torch.ones(1))], "has the shape"),
    ]:
        with pytest.raises(ValueError, match=problem):
            write_checkpoint(tmp_path / "to", wrong, like=tmp_path / "from")
    assert Checkpoint(tmp_path / "to").fingerprint() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["from", "to"]
