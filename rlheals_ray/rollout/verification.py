"""Whether an engine serves the weights that a learner holds: two checks of a weight sync (`rollout.verify_weights`).

A checksum compares what a generator received with what was sent. It cannot see what the engine made of
it: a head that was not renewed, or keys and values of the old weights in a prefix cache. So the learner
also says which log-probabilities its weights give to a fixed sequence of tokens, and the engine must
serve the same ones. Light: whoever handles loads must not import torch.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlheals_ray.config import RolloutSettings
from rlheals_ray.rollout.episode import WrongWeights

if TYPE_CHECKING:
    from torch import nn

    from rlheals_ray.rollout.engine import Engine

PROBE_TOKENS = 192
"""More than a block of vLLM's prefix cache (128 tokens on a CPU, 16 on a GPU), so that the cache is read."""

TOLERANCE = {"float32": 2e-3, "bfloat16": 1.0}
"""Largest difference (nats) that rounding is allowed to make to one token's log-probability. Measured: 3e-5
in float32, 0.6 in bfloat16; a head or cache of other weights is off by 3 to 13."""


@dataclass(frozen=True)
class Expected:
    """What an engine with the right weights answers to `score`."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of `ids[1:]`, at temperature 1."""
    tolerance: float

    def check(self, engine: Engine) -> None:
        """Raises WrongWeights when the engine serves anything else; it must have no request running."""
        served = np.array(engine.score(self.ids))
        off = np.abs(served - np.array(self.logprobs))
        wrong = ~(off <= self.tolerance)  # NaN is wrong
        if not wrong.any():
            return
        where = "only after a cached prefix: its keys and values are stale" if wrong[:-1].sum() == 0 else ""
        raise WrongWeights(
            f"the engine serves other weights than the learner holds: {wrong.sum()} of {len(off)} log-probabilities "
            f"differ, by up to {off.max():.3g} where {self.tolerance:g} is allowed"
            + (where and f" ({where})")
        )


def expected_of(module: nn.Module, settings: RolloutSettings, precision: str = "float32") -> Expected:
    """The log-probabilities that `module` itself gives to the probe; one forward pass without gradients.

    module: the policy as it is called in training, wrapped or not, without dropout; where its parameters
    are divided every rank must call this. precision: that of its forward pass, "float32" or "bfloat16".
    """
    import torch

    model: Any = getattr(module, "module", module)  # of DistributedDataParallel or DeepSpeed's engine
    ids = probe_ids(model.config.get_text_config().vocab_size, settings)
    with torch.no_grad():
        tokens = torch.tensor([ids], device=next(module.parameters()).device)
        distribution = module(input_ids=tokens).logits[0, :-1].float().log_softmax(-1)
        logprobs = distribution.gather(-1, tokens[0, 1:, None]).squeeze(-1).tolist()
    return Expected(ids, tuple(logprobs), max(TOLERANCE[settings.dtype], TOLERANCE[precision]))


def probe_ids(vocabulary: int, settings: RolloutSettings) -> tuple[int, ...]:
    """The same tokens at every sync, so that an engine that kept an old prefix cache reads from it."""
    length = min(PROBE_TOKENS, settings.max_model_len - 1)
    return tuple(np.random.default_rng(0).integers(vocabulary, size=length).tolist())


def checksum(name: str, dtype: str, shape: tuple[int, ...], content: np.ndarray) -> int:
    """CRC-32 of a tensor's description and bytes: any burst of up to 32 flipped bits shows for certain."""
    return zlib.crc32(content.data, zlib.crc32(f"{name} {dtype} {shape}".encode()))
