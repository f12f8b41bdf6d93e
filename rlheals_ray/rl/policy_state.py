"""State that several workers write together and that is replaced as a whole: versions and their shards.

A directory holds at most one complete version, and a file that names it. Every worker writes its shard
into a new version; only when all are there does rank 0 switch the name over, in one rename. A kill at
any moment therefore leaves the old state or the new one, never a mix of workers. Safetensors only:
nothing is ever unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from rlheals_ray.storage import write_text
from rlheals_ray.training import Hopeless

_CURRENT = "CURRENT"
_VERSION = "version-"


class StateMismatch(Hopeless):
    """A saved state cannot be loaded by this group of workers."""


def world() -> tuple[int, int]:
    """(rank, number of workers) of this process; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def barrier() -> None:
    """Wait for all workers, where there are several."""
    if world()[1] > 1:
        dist.barrier()


@contextmanager
def new_version(directory: Path) -> Iterator[Path]:
    """Every worker enters with the same `directory` and fills the one directory that it is given.

    What they wrote becomes the current version when the last of them leaves the block.
    """
    rank, _ = world()
    before = current_version(directory)
    number = int(before.name.removeprefix(_VERSION)) + 1 if before else 0
    version = directory / f"{_VERSION}{number:06d}"
    barrier()  # every worker has read which version is current: it may be replaced from here on
    if rank == 0:
        for left in directory.glob(f"{_VERSION}*"):
            if left != before:
                shutil.rmtree(left)
        version.mkdir(parents=True)
    barrier()
    yield version
    barrier()
    if rank == 0:
        write_text(directory / _CURRENT, version.name)
        if before:
            shutil.rmtree(before)
    barrier()


def current_version(directory: Path) -> Path | None:
    """The complete version in `directory`; None where none was ever completed."""
    try:
        return directory / (directory / _CURRENT).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def write_shard(version: Path, tensors: Mapping[str, torch.Tensor], layout: Mapping[str, Any]) -> None:
    """This worker's share of a state; `layout` says how it was divided."""
    rank, workers = world()
    metadata = {"layout": json.dumps({**layout, "workers": workers})}
    save_file(dict(tensors), version / f"rank-{rank:05d}.safetensors", metadata=metadata)


class Shards:
    """The shards of a state, read lazily."""

    def __init__(self, version: Path, stack: ExitStack) -> None:
        paths = sorted(version.glob("rank-*.safetensors"))
        self.files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        self.layout: dict[str, Any] = json.loads(self.files[0].metadata()["layout"])

    @classmethod
    @contextmanager
    def open(cls, version: Path) -> Iterator[Shards]:
        with ExitStack() as stack:
            yield cls(version, stack)

    def require(self, divided: str, workers: int | None = None) -> Shards:
        """Raises StateMismatch unless the state was divided like that (by so many workers)."""
        if self.layout["divided"] != divided or workers not in (None, self.layout["workers"]):
            wanted = f"{divided!r}" + (f" by {workers} workers" if workers else "")
            raise StateMismatch(
                f"the saved state was divided as {self.layout['divided']!r} by {self.layout['workers']} workers, "
                f"and this group reads {wanted}: resume with the sharding and the number of workers that it "
                "began with, or remove the study's state/ directory to begin the branch again"
            )
        return self

    def names(self, rank: int = 0) -> list[str]:
        return list(self.files[rank].keys())

    def whole(self, name: str) -> torch.Tensor:
        """A tensor that was divided along its first dimension, put together; scalars are rank 0's."""
        first: torch.Tensor = self.files[0].get_tensor(name)
        if first.ndim == 0 or len(self.files) == 1:
            return first
        return torch.cat([first, *(file.get_tensor(name) for file in self.files[1:])])
