"""How far a checkpoint's answers have moved from the base's: forward KL along answers that the base wrote.

KL(π₀ ‖ π) = E_{y∼π₀} Σ_t KL(π₀(·|x, y_<t) ‖ π(·|x, y_<t)), the sum over an answer's tokens of the divergence over
the whole vocabulary. Only y is sampled; the next token is summed over exactly (Rao-Blackwell), so a single
answer for each prompt tells more than log π₀(y) − log π(y) would, and no answer gives a negative value. That
forward KL on the new task's prompts goes with forgetting: Shenfeld et al. 2025 (RL's Razor, arXiv 2509.04259).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from rlheals_ray.evaluation.hidden_states import batches, load_model

LOGITS = 1 << 24
"""Most logits of one model held at once: 64 MiB."""


Written = tuple[Sequence[int], Sequence[int]]
"""A prompt and an answer that the base gave to it, in token ids; its end of turn included where it wrote one."""


@dataclass(frozen=True)
class Reference:
    """What is kept of the base, so that no process holds two models: its head, and what the head reads."""

    head: Any
    states: torch.Tensor
    """(tokens of all answers, d) float32: the final state before each token, in the order of the answers."""

    @classmethod
    def of(cls, base: str | Path, written: Sequence[Written]) -> Reference:
        """Run the base in directory `base` along the answers."""
        model = load_model(base)
        return cls(copy.deepcopy(model.get_output_embeddings()), final_states(model, written))


@torch.inference_mode()
def final_states(model: Any, written: Sequence[Written]) -> torch.Tensor:
    """(tokens of all answers, d) float32: the state from which the model predicts each token of each answer."""
    decoder = model.get_decoder()
    sequences = [[*prompt, *answer] for prompt, answer in written]
    found: list[torch.Tensor] = [torch.empty(0)] * len(written)
    for rows, ids in batches(sequences, model.device):
        states = decoder(input_ids=ids, use_cache=False).last_hidden_state
        for place, row in enumerate(rows):
            prompt, answer = written[row]
            found[row] = states[place, len(prompt) - 1 : len(prompt) - 1 + len(answer)]
    return torch.cat(found)


@torch.inference_mode()
def forward_kl(reference: Reference, model: Any, written: Sequence[Written]) -> torch.Tensor:
    """(answers,) float64, nats: Σ_t KL(base ‖ model) along each of the answers that `reference` was made of.

    Distributions are those at temperature 1, in float32: a token's KL below about 1e-7 is rounding, of either
    sign. The base against itself gives exactly 0.
    """
    head, states = model.get_output_embeddings(), final_states(model, written)
    rows = max(1, LOGITS // reference.head.weight.shape[0])
    tokens = [
        F.kl_div(
            head(q).log_softmax(-1), reference.head(p).log_softmax(-1), reduction="none", log_target=True
        ).sum(-1, dtype=torch.float64)
        for p, q in zip(reference.states.split(rows), states.split(rows), strict=True)
    ]
    answers = torch.cat(tokens).split([len(answer) for _, answer in written])
    return torch.stack([answer.sum() for answer in answers]).cpu()
