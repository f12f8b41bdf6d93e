"""What a checkpoint makes of prompts: the hidden state of every layer, and the distribution of the next token.

Loads torch and transformers: imported by the tasks that collect, never by the driver. On CUDA: UNTESTED.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

TOKENS = 4096
"""Most tokens of one forward pass, padding included: what bounds the memory of the states of all layers."""


class PromptStates(NamedTuple):
    """Of n prompts, in their order, on the CPU."""

    states: torch.Tensor
    """(layers + 1, n, d) float32, mean over a prompt's last tokens. Layer 0 is the embeddings; the last layer's
    state has passed the final norm, and is what the head reads."""
    entropy: torch.Tensor
    """(n,) float64, nats: of the distribution of the token after the prompt."""
    margin: torch.Tensor
    """(n,) float64, nats: the largest logit less the second largest, which is log p₁ − log p₂."""


def load_model(directory: str | Path) -> Any:
    """The causal language model of a Hugging Face directory, float32 whatever is stored, for inference."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval().to(device)


@torch.inference_mode()
def prompt_states(model: Any, prompts: Sequence[Sequence[int]], last_tokens: int) -> PromptStates:
    """States and next-token distributions of token-id `prompts`; a prompt shorter than `last_tokens` counts whole.

    Raises ValueError for a model whose logits are not its head's image of the last hidden state.
    """
    states: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
    entropy, margin = (torch.empty(len(prompts), dtype=torch.float64) for _ in range(2))
    head = model.get_output_embeddings()
    for rows, ids in batches(prompts, model.device):
        output = model(input_ids=ids, output_hidden_states=True, use_cache=False, logits_to_keep=1)
        final = output.hidden_states[-1]
        _check_head(head(final[:, -1]), output.logits[:, -1])
        lengths = torch.tensor([len(prompts[row]) for row in rows], device=ids.device)
        weights = _last_tokens(lengths, ids.shape[1], last_tokens)
        means = torch.stack([torch.einsum("bt,btd->bd", weights, layer) for layer in output.hidden_states])
        logits = head(final[torch.arange(len(rows)), lengths - 1]).double()
        distribution = logits.log_softmax(-1)
        best = logits.topk(2).values
        for place, row in enumerate(rows):
            states[row] = means[:, place].cpu()
        entropy[rows] = torch.special.entr(distribution.exp()).sum(-1).cpu()
        margin[rows] = (best[:, 0] - best[:, 1]).cpu()
    return PromptStates(torch.stack(states, 1), entropy, margin)


def batches(
    sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield (places in `sequences`, ids (B, T) int64): all of them, similar lengths together.

    Padded on the right, where no real token of a causal model sees it; no mask is needed.
    """
    order = sorted(range(len(sequences)), key=lambda place: len(sequences[place]))
    while order:
        rows = [order.pop()]  # the longest of those left sets the width
        width = len(sequences[rows[0]])
        while order and (len(rows) + 1) * width <= TOKENS:
            rows.append(order.pop())
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, : len(sequences[row])] = torch.tensor(sequences[row])
        yield rows, ids.to(device)


def _last_tokens(lengths: torch.Tensor, width: int, last: int) -> torch.Tensor:
    """(B, T) float32 weights whose sum over t averages over the last tokens of each sequence."""
    place = torch.arange(width, device=lengths.device)
    inside = (place < lengths[:, None]) & (place >= lengths[:, None] - last)
    return inside / inside.sum(-1, keepdim=True)


def _check_head(ours: torch.Tensor, model: torch.Tensor) -> None:
    # Also what shows that the last hidden state is the normed one: norming it again would fail here.
    if not torch.allclose(ours, model.float(), rtol=1e-4, atol=1e-4, equal_nan=True):
        raise ValueError(
            "this model's logits are not its head applied to its last hidden state (it caps or scales them); "
            "its next-token distributions are not supported; set hidden=null"
        )
