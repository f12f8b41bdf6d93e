"""Trains the nano base model: AdamW, cosine schedule, singles and correction dialogs (nano_corpus.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from rlheals_ray.models import nano
from rlheals_ray.models.nano_corpus import IGNORE, Example, NanoCorpus

LEARNING_RATE, WARMUP, WEIGHT_DECAY = 2e-3, 100, 0.01
SINGLES, DIALOGS = 192, 96
"""Examples of a batch of either kind."""
DIALOG_SHARE = 0.3
LENGTH_BUCKETS = 3
"""A batch is computed in this many parts of similar length: padding is most of the cost otherwise."""


def train_nano_base(
    directory: Path, *, cards: int, targets: Sequence[int], seed: int, steps: int
) -> Iterator[tuple[int, float]]:
    """Train for `steps` updates, yielding (step, smoothed loss in nats), then save a Hugging Face directory.

    The same arguments give the same weights on the same machine and number of torch threads.
    """
    targets = list(targets)
    word_ids = {word: index for index, word in enumerate(nano.vocabulary(targets))}
    corpus = NanoCorpus(cards, targets, word_ids, seed)
    model = nano.untrained(targets, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, steps))
    kinds = torch.Generator().manual_seed(seed)
    smoothed = math.nan
    for step in range(steps):
        is_dialog = torch.rand((), generator=kinds).item() < DIALOG_SHARE
        batch = corpus.dialogs(DIALOGS) if is_dialog else corpus.singles(SINGLES)
        loss = _backward(model, batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        smoothed = loss if math.isnan(smoothed) else 0.95 * smoothed + 0.05 * loss
        yield step + 1, smoothed
    nano.save(model, targets, directory)


def _cosine(step: int, steps: int) -> float:
    warmup = min(WARMUP, steps // 4)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _backward(model: LlamaForCausalLM, batch: list[Example]) -> float:
    """Accumulate the gradient of the mean token loss; returns that loss."""
    total = sum(sum(example.loss[1:]) for example in batch)
    batch = sorted(batch, key=lambda example: len(example.ids))
    size = math.ceil(len(batch) / LENGTH_BUCKETS)
    value = 0.0
    for start in range(0, len(batch), size):
        ids, labels = _pad(batch[start : start + size])
        # Right padding needs no attention mask under causal attention: no real token sees it.
        logits = model(input_ids=ids).logits[:, :-1].float()
        loss = F.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
        )
        (loss / total).backward()
        value += loss.item() / total
    return value


def _pad(examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, labels), both (batch, longest) int64; labels are IGNORE where no loss is carried."""
    longest = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    labels = torch.full((len(examples), longest), IGNORE)
    for row, example in enumerate(examples):
        tokens = torch.tensor(example.ids)
        ids[row, : len(tokens)] = tokens
        labels[row, : len(tokens)] = torch.where(torch.tensor(example.loss), tokens, IGNORE)
    return ids, labels
