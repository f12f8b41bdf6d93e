"""Checkpoints are written as the recipient's were: shards, dtypes, companions; whole, and in little memory."""

import json
import multiprocessing
import random
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from rlheals_ray.config import InputError
from rlheals_ray.folder import Folder
from rlheals_ray.models.checkpoint import INDEX_FILE, Checkpoint
from rlheals_ray.models.checkpoint_writer import copy_model, shard_name, write_checkpoint, write_index
from tests.checkpoints import (
    blank_checkpoint,
    peak_memory_of_writing,
    tiny_llama,
    write_again_and_again,
)

# Forked from a process that has torch loaded and nothing running: processes to kill start in no time.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.checkpoints"])


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(12).reshape(2, 6)).logits


def elsewhere() -> Folder:
    """A folder on a filesystem that is not local."""
    return Folder.of(f"memory://{uuid.uuid4().hex}/to")


def fetched(folder: Folder, to: Path) -> Path:
    for name in folder.names():
        folder.copy(name, Folder.of(to))
    return to


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", ["1GB", "4KB"])
def test_a_written_checkpoint_loads_in_transformers_with_equal_logits(
    tmp_path: Path, dtype: torch.dtype, tied: bool, shards: str
) -> None:
    model = tiny_llama(tmp_path / "from", dtype, tied, shards)
    (tmp_path / "from" / "tokenizer.json").write_text("{}")
    (tmp_path / "from" / "optimizer.pt").write_bytes(b"not copied")
    source, remote = Checkpoint(tmp_path / "from"), elsewhere()
    # In any order, and in a wider dtype than is stored.
    tensors = [(name, source.tensor(name).double()) for name in reversed(source.names())]
    write_checkpoint(tmp_path / "to", tensors, like=tmp_path / "from")
    write_checkpoint(remote, tensors, like=tmp_path / "from")
    for directory in (tmp_path / "to", fetched(remote, tmp_path / "fetched")):
        loaded = AutoModelForCausalLM.from_pretrained(directory)
        assert loaded.dtype == dtype
        assert torch.equal(logits(loaded), logits(model))
        written = {path.name for path in directory.iterdir()}
        assert written == {path.name for path in (tmp_path / "from").iterdir()} - {"optimizer.pt"}


def test_the_index_gives_the_size_of_all_tensors_and_keeps_the_shards(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "from", torch.bfloat16, max_shard_size="4KB")
    source = Checkpoint(tmp_path / "from")
    before = json.loads((tmp_path / "from" / INDEX_FILE).read_text())
    assert len(source.files()) > 2
    (tmp_path / "from" / INDEX_FILE).write_text(
        json.dumps({**before, "metadata": {"total_size": 1, "kept": 2}})
    )
    write_checkpoint(tmp_path / "to", [], like=tmp_path / "from", changed=[])
    index = json.loads((tmp_path / "to" / INDEX_FILE).read_text())
    assert index["weight_map"] == before["weight_map"]
    assert index["metadata"] == {
        "total_size": sum(source.tensor(name).nbytes for name in source.names()),
        "kept": 2,
    }


@pytest.mark.parametrize("shards", ["1GB", "4KB"])
def test_only_shards_with_changed_tensors_are_made_anew(tmp_path: Path, shards: str) -> None:
    tiny_llama(tmp_path / "from", max_shard_size=shards)
    source, remote = Checkpoint(tmp_path / "from"), elsewhere()
    changed = ["model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"]
    new = {name: torch.full(source.shape(name), 0.5) for name in changed}
    write_checkpoint(tmp_path / "linked", new.items(), like=source, changed=changed, link=True)
    write_checkpoint(tmp_path / "copied", new.items(), like=source, changed=changed)
    write_checkpoint(remote, new.items(), like=source, changed=changed)
    for where in (tmp_path / "linked", tmp_path / "copied", remote):
        written = Checkpoint(where)
        written.check()
        for name in source.names():
            assert torch.equal(written.tensor(name), new.get(name, source.tensor(name)))
    for file in source.files():
        is_new = file in {source.file(name) for name in changed}
        assert (tmp_path / "linked" / file).samefile(tmp_path / "from" / file) is not is_new
        assert not (tmp_path / "copied" / file).samefile(tmp_path / "from" / file)
    LlamaForCausalLM.from_pretrained(tmp_path / "linked")


def test_a_checkpoint_is_put_together_from_linked_files_and_an_index(tmp_path: Path) -> None:
    """As edits are: one file a matrix, shared by all checkpoints that have it."""
    model = tiny_llama(tmp_path / "from")
    source, pieces, out = Checkpoint(tmp_path / "from"), Folder.of(tmp_path / "pieces"), tmp_path / "to"
    files = {}
    (tmp_path / "pieces").mkdir()
    for number, name in enumerate(source.names(), start=1):
        files[name] = shard_name(number, len(source.names()))
        save_file({name: source.tensor(name).clone()}, tmp_path / "pieces" / files[name], {"format": "pt"})
        pieces.copy(files[name], Folder.of(out), link=True)
    source.folder.copy("config.json", Folder.of(out))
    write_index(Folder.of(out), files, sum(source.tensor(name).nbytes for name in files))
    Checkpoint(out).check()
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out)), logits(model))


def test_mixed_dtypes_scalars_and_empty_tensors_survive(tmp_path: Path) -> None:
    tensors = {
        "byte": torch.tensor([1, 2, 3], dtype=torch.uint8), "scalar": torch.tensor(2.5, dtype=torch.float64),
        "half": torch.randn(3, 5).to(torch.float16), "empty": torch.zeros(0, 4), "flag": torch.tensor([True]),
    }  # fmt: skip
    (tmp_path / "from").mkdir()
    save_file(tensors, tmp_path / "from" / "model.safetensors")
    for changed in (None, ["half", "empty"], ["scalar"]):
        given = {name: tensor for name, tensor in tensors.items() if changed is None or name in changed}
        write_checkpoint(tmp_path / "to", given.items(), like=tmp_path / "from", changed=changed)
        written = load_file(tmp_path / "to" / "model.safetensors")
        assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())


def test_values_beyond_the_recipients_dtype_are_refused(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "from", torch.float16)
    name = "model.layers.0.mlp.up_proj.weight"
    large = torch.full((24, 16), 1e5)
    with pytest.raises(InputError, match=rf"'{name}' do not fit into its torch\.float16"):
        write_checkpoint(tmp_path / "to", [(name, large)], like=tmp_path / "from", changed=[name])
    assert not (tmp_path / "to").exists()


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "from")
    source, remote = Checkpoint(tmp_path / "from"), elsewhere()
    everything = [(name, source.tensor(name)) for name in source.names()]
    write_checkpoint(tmp_path / "to", everything, like=tmp_path / "from")
    before = Checkpoint(tmp_path / "to").fingerprint()

    def interrupted() -> Iterator[tuple[str, torch.Tensor]]:
        yield everything[0]
        raise KeyboardInterrupt

    for out in (tmp_path / "to", remote):
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(out, interrupted(), like=tmp_path / "from")
        for wrong, problem in [
            (everything[:-1], "1 tensors of"),
            ([*everything, everything[0]], "doubled"),
            ([("other", torch.ones(1))], "no tensor of"),
            ([(everything[0][0], torch.ones(1))], "has the shape"),
        ]:
            with pytest.raises(ValueError, match=problem):
                write_checkpoint(out, wrong, like=tmp_path / "from")
        with pytest.raises(ValueError, match="'other' is no tensor of"):
            write_checkpoint(out, [], like=tmp_path / "from", changed=["other"])
    assert Checkpoint(tmp_path / "to").fingerprint() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["from", "to"]
    assert not remote.exists()  # an object store has no rename: nothing is left rather than a half


def test_a_remote_checkpoint_is_not_replaced_by_an_edit_of_itself(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "from")
    remote = Folder.of(f"memory://{uuid.uuid4().hex}/from")
    copy_model(tmp_path / "from", remote)
    with pytest.raises(InputError, match="edit of itself"):
        write_checkpoint(remote, [], like=remote, changed=[])
    Checkpoint(remote).check()


@pytest.mark.parametrize(
    ("scheme", "shards"),
    [("", 4), ("", 1), ("local://", 4), ("local://", 1)],
    ids=lambda value: str(value) or "path",
)
def test_a_writer_killed_at_any_time_leaves_no_half_checkpoint(
    tmp_path: Path, scheme: str, shards: int
) -> None:
    """local:// goes file by file, as object stores do: what is seen there is a whole checkpoint or none."""
    like = blank_checkpoint(tmp_path / "from", tensors=12, elements=100_000, shards=shards)
    out = f"{scheme}{tmp_path}/to"
    seed = random.randrange(10**6)
    delays = random.Random(seed)
    seen = []
    for _ in range(6):
        here, there = PROCESSES.Pipe(duplex=False)
        writer = PROCESSES.Process(target=write_again_and_again, args=(out, str(like), there))
        writer.start()
        there.close()
        assert here.poll(60) and here.recv() == "one is written"
        delay = delays.uniform(0, 0.15)
        time.sleep(delay)
        writer.kill()
        writer.join()
        seen.append((round(delay, 3), _whole_value(out)))
        print(f"seed {seed}: killed after {delay:.3f} s, found {seen[-1][1]}")
    write_checkpoint(out, [], like, changed=[])  # what was left is in nobody's way
    assert _whole_value(out) == 0.0


def _whole_value(out: str) -> float | None:
    """The one value that fills all tensors of a whole checkpoint; None where there is no checkpoint."""
    folder = Folder.of(out)
    if not folder.exists() or not {INDEX_FILE, "model.safetensors"} & set(folder.names()):
        return None
    checkpoint = Checkpoint(folder)
    checkpoint.check()
    values = {float(value) for name in checkpoint.names() for value in checkpoint.tensor(name).unique()}
    assert len(checkpoint.names()) == 12 and len(values) == 1, values
    (value,) = values
    assert value == 0.0 or float(folder.read("value")) == value
    return value


@pytest.mark.parametrize("scheme", ["", "local://"], ids=["path", "remote"])
def test_reading_and_writing_take_the_memory_of_a_tensor_not_of_the_model(
    tmp_path: Path, scheme: str
) -> None:
    elements = 2 << 20
    peaks = {}
    for tensors in (4, 24):
        like = blank_checkpoint(tmp_path / f"from-{tensors}", tensors, elements, shards=2)
        here, there = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(
            target=peak_memory_of_writing,
            args=(f"{scheme}{tmp_path}/to-{tensors}", f"{scheme}{like}", there),
        )
        process.start()
        assert here.poll(120)
        peaks[tensors] = here.recv() / (4 * elements)
        process.join()
    print(f"peak memory in tensors, by the model's tensors: {peaks}")
    assert all(peak < 3 for peak in peaks.values()), peaks
    assert abs(peaks[24] - peaks[4]) < 0.5, peaks
