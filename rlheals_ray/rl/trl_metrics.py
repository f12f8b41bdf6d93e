"""What an update of GRPO or RLOO did: the columns of tables/rl that TRL does not log, or not exactly.

Every mean is over the tokens that the model wrote, of all workers together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rlheals_ray.rl.collectives import gathered, total
from rlheals_ray.rl.metrics import advantage_shape, mean_kl, mismatch
from rlheals_ray.rl.trl_trainers import Grpo, Rloo


def update_metrics(trainer: Grpo | Rloo, logs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Metrics of the update just made; collective.

    `logs` are the trainer's of its optimiser steps. `policy_loss` is the whole loss that was minimised,
    GRPO's KL term included; `clip_fraction` is of tokens in GRPO and of episodes in RLOO; `approx_kl` is
    KL(generator || updated policy), `logprob_mismatch_kl` KL(generator || policy before the update) and
    `reference_kl` KL(policy before the update || start of the branch), each by the estimate k3 =
    r - 1 - log r (Schulman 2020). The advantages are those in the loss: normalised in GRPO.
    """
    return {
        "policy_loss": _mean(logs, "loss"),
        "grad_norm": _mean(logs, "grad_norm"),
        "clip_fraction": _mean(logs, "clip_ratio/region_mean"),
        "learning_rate": float(logs[0]["learning_rate"]),
        "entropy": trainer.mean_entropy(),
        **_divergences(trainer),
        **advantage_shape(gathered(torch.cat([batch["advantages"] for batch in trainer.buffers]))),
    }


def _mean(logs: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([float(entry[key]) for entry in logs]))


def _divergences(trainer: Grpo | Rloo) -> dict[str, float | None]:
    buffers = trainer.buffers
    own = torch.cat([batch["tool_mask"] * batch["completion_mask"] for batch in buffers]).bool()
    tokens = total(float(own.sum()))

    def scored(name: str) -> torch.Tensor:
        return torch.cat([batch[name] for batch in buffers])

    sampled, before = scored("sampling_per_token_logps"), scored("old_per_token_logps")
    after = torch.cat(trainer.logprobs_now())
    penalised = trainer.beta != 0.0
    return {
        **mismatch(sampled, before, own, tokens),
        "approx_kl": mean_kl(sampled, after, own, tokens),
        "reference_kl": mean_kl(before, scored("ref_per_token_logps"), own, tokens) if penalised else None,
    }
