"""The frozen start of a branch, which rl.kl_coefficient holds the policy to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from rlheals_ray.config import Sharding
from rlheals_ray.rl.policy_state import world
from rlheals_ray.rl.sharded_policy import ShardedPolicy


def frozen_reference(
    directory: Path | str, sharding: Sharding, precision: str, device: torch.device
) -> nn.Module:
    """The model in `directory`, to be called without gradients only; collective.

    Divided over the workers where the policy's own parameters are, else whole on each of them.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model = model.to(device).eval()
    if world()[1] > 1 and sharding in ("fsdp2", "zero3"):
        # Never stepped: its optimiser stays empty.
        return ShardedPolicy(model, sharding, learning_rate=0.0, precision=precision).module
    return model.requires_grad_(False)
