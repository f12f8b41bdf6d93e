"""What a generator must load before it runs: small descriptions that travel through the pool; tensors do not.

Light on purpose: the pool and the sweep's trials handle loads, and must not import torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import ray
from ray.exceptions import GetTimeoutError

from rlheals_ray.rollout.episode import WrongWeights
from rlheals_ray.rollout.verification import Expected, checksum

if TYPE_CHECKING:
    import numpy as np
    import torch

    from rlheals_ray.rollout.engine import Engine


class Load(Protocol):
    """Weights that an engine can take over; `into` runs in the generator's process."""

    def into(self, engine: Engine, index: int) -> None:
        """Load the weights; `index` is the generator's place among those lent together."""
        ...


@dataclass(frozen=True)
class CheckpointLoad:
    """A Hugging Face directory that every generator can read."""

    directory: str

    def into(self, engine: Engine, index: int) -> None:
        engine.load_checkpoint(Path(self.directory))


class Sent(NamedTuple):
    """One tensor on its way."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    checksum: int | None
    """None where nobody asked for it."""
    also: tuple[str, ...]
    """Other names of the very same tensor."""


@dataclass(frozen=True)
class ObjectStoreLoad:
    """Tensors that a learner has put into Ray's object store, read in place by every generator.

    The objects live as long as somebody holds the load: the learner and the pool, until the run that it
    was published for is over (a generator that is replaced meanwhile reads them again).
    """

    buckets: tuple[Any, ...]
    """ray.ObjectRef, each of a list of arrays of bytes."""
    sent: tuple[tuple[Sent, ...], ...]
    """What the arrays of each bucket are."""
    seconds: float
    """Deadline of one bucket's arrival."""
    expected: Expected | None = None

    def into(self, engine: Engine, index: int) -> None:
        """Load the weights; raises TimeoutError, or WrongWeights when a check is asked for and fails."""
        engine.load_weights(self._tensors())
        if self.expected is not None:
            self.expected.check(engine)

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for place, (reference, sent) in enumerate(zip(self.buckets, self.sent, strict=True), 1):
            try:
                arrays = ray.get(reference, timeout=self.seconds)
            except GetTimeoutError:
                raise TimeoutError(
                    f"part {place} of {len(self.buckets)} of the learner's weights did not arrive within "
                    f"rollout.sync_seconds={self.seconds:g} s"
                ) from None
            for tensor, array in zip(sent, arrays, strict=True):
                if tensor.checksum not in (None, checksum(*tensor[:3], array)):
                    raise WrongWeights(f"{tensor.name!r} did not arrive as it was sent")
                received = _tensor(array, tensor)
                for name in (tensor.name, *tensor.also):
                    yield name, received


def _tensor(array: np.ndarray, sent: Sent) -> torch.Tensor:
    import torch

    with warnings.catch_warnings():
        # The store's memory is read-only, about which torch warns; nobody writes into it.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array).view(getattr(torch, sent.dtype)).view(sent.shape)
