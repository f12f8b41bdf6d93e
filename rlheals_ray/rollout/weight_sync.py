"""How a learner hands its weights to the generators that it is going to be lent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import ray
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from rlheals_ray.config import InputError, RolloutSettings
from rlheals_ray.rollout.load import Load, ObjectStoreLoad, Sent
from rlheals_ray.rollout.verification import Expected, checksum

Named = Iterable[tuple[str, torch.Tensor]]

BUCKET_BYTES = 512 << 20
"""Of one object: what a learner may hold of gathered weights beside the store's copy."""


class WeightSync(Protocol):
    """One way from a learner to its generators."""

    @property
    def name(self) -> str:
        """As in `rollout.weight_sync`."""
        ...

    def publish(self, named: Named, expected: Expected | None = None) -> Load:
        """Make the tensors available; the load is good until the next call.

        `named` may gather its tensors as they are asked for: each is let go as soon as it is on its way. Until
        then it must keep its values. What is `expected` (verification.expected_of), every engine is asked
        after it has loaded.
        """
        ...


class ObjectStoreSync:
    """Through Ray's object store: one put, many readers, no copy on their side.

    A storage that has several names (tied embeddings) is sent once. With `dtype`, wider floating-point
    tensors are rounded to it before they are sent: an engine of that dtype would do it on arrival.
    """

    name = "object_store"

    def __init__(
        self,
        seconds: float = 300.0,
        *,
        checksums: bool = False,
        dtype: torch.dtype | None = None,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self._seconds, self._checksums, self._bucket_bytes = seconds, checksums, bucket_bytes
        self._dtype = dtype

    def publish(self, named: Named, expected: Expected | None = None) -> ObjectStoreLoad:
        references: list[Any] = []
        places: list[list[Sent]] = []
        known: dict[Any, tuple[int, int]] = {}
        arrays: list[np.ndarray] = []
        size = 0

        def put() -> None:
            nonlocal arrays, size
            # Separate buffers of one object: Ray copies each straight into shared memory, without a flat copy
            # before.
            references.append(ray.put(arrays))
            arrays, size = [], 0

        for name, tensor in named:
            identity = _identity(tensor)
            if identity in known:
                bucket, place = known[identity]
                first = places[bucket][place]
                places[bucket][place] = first._replace(also=(*first.also, name))
                continue
            if self._dtype and tensor.is_floating_point() and tensor.itemsize > self._dtype.itemsize:
                tensor = tensor.to(self._dtype)
            if arrays and size + tensor.nbytes > self._bucket_bytes:
                put()
            if not arrays:
                places.append([])
            known[identity] = len(places) - 1, len(arrays)
            arrays.append(_bytes(tensor))
            size += tensor.nbytes
            dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
            crc = checksum(name, dtype, shape, arrays[-1]) if self._checksums else None
            places[-1].append(Sent(name, dtype, shape, crc, ()))
            del tensor
        if arrays:
            put()
        return ObjectStoreLoad(tuple(references), tuple(map(tuple, places)), self._seconds, expected)


def weight_sync(settings: RolloutSettings) -> WeightSync:
    """The way that the study asks for (`rollout.weight_sync`); `auto` is NCCL where this process has a GPU.

    Raises InputError for nccl without a GPU; grid/resources.py says so before anything starts.
    """
    store = ObjectStoreSync(
        settings.sync_seconds, checksums=settings.verify_weights, dtype=getattr(torch, settings.dtype)
    )
    has_gpu = torch.cuda.is_available()
    if settings.weight_sync == "nccl" and not has_gpu:
        raise InputError(
            "rollout.weight_sync (got 'nccl') sends weights from GPU to GPU, but the learner has none; use auto or "
            "object_store."
        )
    if settings.weight_sync == "object_store" or settings.engine != "vllm" or not has_gpu:
        return store
    from rlheals_ray.rollout.nccl_sync import NcclSync

    return NcclSync(store, settings.sync_seconds, may_fall_back=settings.weight_sync == "auto")


def named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """A whole model's tensors under their checkpoint's names."""
    yield from model.state_dict().items()


def _identity(tensor: torch.Tensor) -> Any:
    # The weak reference lets the memory go but not its identity, which an address would lose: the next
    # tensor that is gathered may well lie where the last one was.
    storage = StorageWeakRef(tensor.untyped_storage())
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    # As bytes: numpy knows neither bfloat16 nor float8.
    array: np.ndarray = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return array
