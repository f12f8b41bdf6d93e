"""How a learner hands its weights to the generators that it is going to be lent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import ray
import torch

from rlheals_ray.config import RolloutSettings
from rlheals_ray.rollout.load import Load, ObjectStoreLoad

Named = Iterable[tuple[str, torch.Tensor]]


class WeightSync(Protocol):
    """One way from a learner to its generators."""

    name: str

    def publish(self, named: Named) -> Load:
        """Make the tensors available; the load is good until the next call."""
        ...


class ObjectStoreSync:
    """Through Ray's object store: one put, many readers, no copy on their side."""

    name = "object_store"

    def publish(self, named: Named) -> Load:
        items = [(name, tensor.detach().cpu()) for name, tensor in named]
        # Separate buffers of one object: Ray copies each straight into shared memory, without a flat copy before.
        reference = ray.put([tensor.contiguous().numpy() for _, tensor in items])
        return ObjectStoreLoad(reference, tuple(name for name, _ in items))


def weight_sync(settings: RolloutSettings) -> WeightSync:
    """The way that the study asks for, or that is there."""
    return ObjectStoreSync()


def named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """A whole model's tensors under their checkpoint's names."""
    yield from model.state_dict().items()
