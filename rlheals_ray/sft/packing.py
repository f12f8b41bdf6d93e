"""Whether a model keeps packed examples apart.

Packed, several examples stand in one row, and only position_ids that begin again say where one ends. transformers
makes a block-diagonal mask of that for the attention implementations `sdpa`, `eager` and `flex_attention`, and hands
the lengths to flash attention. A model that makes its own mask, or carries a state along, would let an example see
those before it, without an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlheals_ray.config import InputError
from rlheals_ray.sft.batches import Collator
from rlheals_ray.sft.data import Example

TOLERANCE = 1e-3
"""Nats, float32: rounding is a hundredth of it, a neighbour that is seen many times as much."""


@torch.inference_mode()
def check_packing(model: Any, examples: Sequence[Example]) -> None:
    """Compare the token losses of `examples` packed and one by one; raises InputError where they differ."""
    training = model.training
    model.eval()
    packed = _losses(model, Collator(packing=True)(examples))
    alone = torch.cat([_losses(model, Collator(packing=True)([example])) for example in examples])
    model.train(training)
    apart = float((packed - alone).abs().max())
    if not apart < TOLERANCE:
        raise InputError(
            f"sft.packing (got true): {type(model).__name__} with attention {model.config._attn_implementation!r} lets "
            f"packed examples see each other (a token's loss differs by {apart:.2g} nats); use sft.packing=false."
        )


def _losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(response tokens,) nats."""
    labels = batch.pop("labels")[:, 1:].to(model.device)
    inputs = {name: values.to(model.device) for name, values in batch.items()}
    logits = model(**inputs, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")
