"""The policy as the learner sees it: log-probabilities, entropy and critic features of whole episodes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from rlheals_ray.rl.actions import Actions, per_action
from rlheals_ray.rl.batch import Batch


@dataclass(frozen=True)
class Evaluation:
    """One forward pass over B episodes of A actions."""

    token_logprobs: torch.Tensor
    """(B, T) float32: log-probability, at the sampling temperature, of each token that the model wrote given
    those before it; 0 elsewhere."""
    logprobs: torch.Tensor
    """(B, A) float32: of each action, the sum over its own tokens."""
    entropy: torch.Tensor
    """Scalar: summed entropy (nats) of the distributions that the model's tokens were drawn from."""
    features: torch.Tensor
    """(B, A, hidden) float32: last hidden states before the actions, detached."""

    def detached(self) -> Evaluation:
        """The same figures without their gradients."""
        return Evaluation(*(getattr(self, name).detach() for name in self.__dataclass_fields__))


def evaluate(module: nn.Module, batch: Batch, actions: Actions, temperature: float) -> Evaluation:
    """Score a batch with `module`; gradients flow through log-probabilities and entropy only."""
    own = batch.own
    # What follows the last answer is never looked at, and a micro-batch may be shorter than its batch.
    length = int(own.any(0).nonzero().max()) + 1
    # Episodes are right-padded and attention is causal: no real token sees padding.
    output = module(input_ids=batch.ids[:, :length], output_hidden_states=True, use_cache=False)
    # The logits at t - 1 gave the token at t. Only those of the model's tokens are kept: the environment's
    # teach nothing, and with a large vocabulary the distributions are what fills the memory.
    drawn = own[:, 1:length]
    distribution = torch.log_softmax(output.logits[:, :-1][drawn].float() / temperature, dim=-1)
    chosen = distribution.gather(-1, batch.ids[:, 1:length][drawn][:, None]).squeeze(-1)
    logprobs = torch.zeros(batch.ids.shape, device=chosen.device).masked_scatter(own, chosen)
    hidden = output.hidden_states[-1].detach()
    index = actions.state[..., None].expand(-1, -1, hidden.shape[-1])
    return Evaluation(
        token_logprobs=logprobs,
        logprobs=per_action(logprobs, actions.action_of, actions.exists.shape[1]),
        entropy=-(distribution.exp() * distribution).sum(),
        features=hidden.gather(1, index).float(),
    )
