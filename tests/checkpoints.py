"""Checkpoints for tests, and processes that write them, to be killed or measured."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, Mapping
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from rlheals_ray.models.checkpoint import INDEX_FILE, Checkpoint
from rlheals_ray.models.checkpoint_writer import write_checkpoint

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


M_MMAP_THRESHOLD = -3  # of malloc.h


def tiny_llama(
    directory: Path, dtype: torch.dtype = torch.float32, tied: bool = False, max_shard_size: str = "1GB"
) -> LlamaForCausalLM:
    # Imported late: processes to be killed or measured need none of it.
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=17, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.to(dtype=dtype).eval()
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    return model


def sharded(
    directory: Path, weight_map: Mapping[str, object], shards: Mapping[str, Mapping[str, torch.Tensor]]
) -> Path:
    """A directory with this index and these shards, which need not fit."""
    directory.mkdir()
    (directory / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for name, tensors in shards.items():
        save_file(dict(tensors), directory / name)
    return directory


def blank_checkpoint(directory: Path, tensors: int, elements: int, shards: int) -> Path:
    """Zero tensors t00, t01, ... of so many float32 elements each, spread over so many shards (1: one file)."""
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    names = [f"t{number:02d}" for number in range(tensors)]
    if shards == 1:
        save_file({name: torch.zeros(elements) for name in names}, directory / "model.safetensors")
        return directory
    files = {name: f"model-{number % shards + 1}.safetensors" for number, name in enumerate(names)}
    (directory / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    for file in sorted(set(files.values())):
        save_file({name: torch.zeros(elements) for name in names if files[name] == file}, directory / file)
    return directory


def write_again_and_again(out: str, like: str, started: Connection) -> None:
    """Write checkpoints full of 1, then of 2, and so on, each in place of the last, until killed."""
    model = Checkpoint(like)
    for value in count(1):
        tensors = ((name, torch.full(model.shape(name), float(value))) for name in model.names())
        write_checkpoint(out, tensors, like, extra={"value": str(value).encode()})
        if value == 1:
            started.send("one is written")


def peak_memory_of_writing(out: str, like: str, result: Connection) -> None:
    """Sends by how many bytes the memory of this process peaked while it read, doubled and wrote every tensor."""

    def edited(model: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
        for name in model.names():
            yield name, model.tensor(name) * 2

    torch.set_num_threads(1)
    # What is freed goes back to the system at once: what is measured is what is held, not the allocator's habits.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
    write_checkpoint(f"{out}-before", edited(Checkpoint(like)), like)  # loads the code, which is no tensor
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
    before = memory_status("VmRSS")
    write_checkpoint(out, edited(Checkpoint(like)), like)
    result.send(memory_status("VmHWM") - before)


def memory_status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
