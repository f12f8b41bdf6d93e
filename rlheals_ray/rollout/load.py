"""What a generator must load before it runs: small descriptions that travel through the pool; tensors do not.

Light on purpose: the pool and the sweep's trials handle loads, and must not import torch.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ray

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


@dataclass(frozen=True)
class ObjectStoreLoad:
    """Tensors that a learner has put into Ray's object store: one object, read in place by every generator."""

    reference: Any
    """ray.ObjectRef of a list of arrays, one a tensor."""
    names: tuple[str, ...]

    def into(self, engine: Engine, index: int) -> None:
        arrays = ray.get(self.reference)
        engine.load_weights(zip(self.names, map(_tensor, arrays), strict=True))


def _tensor(array: np.ndarray) -> torch.Tensor:
    import torch

    with warnings.catch_warnings():
        # The store's memory is read-only, about which torch warns; nobody writes into it.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
