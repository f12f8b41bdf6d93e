"""The policy as the learner sees it: log-probabilities, entropy and critic features of whole episodes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from rlheals_ray.rl.batch import Batch, per_turn


@dataclass(frozen=True)
class Evaluation:
    """One forward pass over B episodes of K turns."""

    token_logprobs: torch.Tensor
    """(B, T): log-probability of each token given those before it, at the sampling temperature; 0 at t = 0."""
    turn_logprobs: torch.Tensor
    """(B, K): sums over each turn's own tokens."""
    entropy: torch.Tensor
    """Scalar: summed entropy (nats) of the distributions that the model's tokens were drawn from."""
    features: torch.Tensor
    """(B, K, hidden): last hidden states at the ends of the turns' prompts, detached."""


def evaluate(model: nn.Module, batch: Batch, temperature: float) -> Evaluation:
    """Score a batch with `model`; gradients flow through log-probabilities and entropy only."""
    # Episodes are right-padded and attention is causal: no real token sees padding.
    output = model(input_ids=batch.ids, output_hidden_states=True)
    logits = output.logits[:, :-1].float() / temperature
    distribution = torch.log_softmax(logits, dim=-1)
    chosen = distribution.gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    logprobs = torch.cat([torch.zeros_like(chosen[:, :1]), chosen], dim=1)
    own = batch.turn_of >= 0
    entropy = -(distribution.exp() * distribution).sum(-1)
    hidden = output.hidden_states[-1].detach()
    index = batch.prompt_end[..., None].expand(-1, -1, hidden.shape[-1])
    return Evaluation(
        token_logprobs=logprobs,
        turn_logprobs=per_turn(torch.where(own, logprobs, 0.0), batch.turn_of, batch.exists.shape[1]),
        entropy=torch.where(own[:, 1:], entropy, 0.0).sum(),
        features=hidden.gather(1, index),
    )
