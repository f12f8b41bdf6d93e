"""Held-out losses of saved trunk checkpoints: ID and OOD, scored apart from the SFT workers. On CUDA: UNTESTED."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from rlheals_ray.config import TaskSettings
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.sft.data import IGNORE, Example, evaluation_examples
from rlheals_ray.sharding import local_device
from rlheals_ray.tasks import Problem, get_task

LOGITS = 1 << 26
"""Logits that a batch may have, 256 MiB in float32: a large vocabulary makes batches smaller."""


def held_out_losses(
    directories: Sequence[Path], task_settings: TaskSettings, problems: Sequence[Problem]
) -> list[float]:
    """Mean response-token loss (nats) of each checkpoint on the canonical demonstrations of `problems`."""
    task = get_task(task_settings.name, **task_settings.options)
    examples = evaluation_examples(task, ChatFormat.of(directories[0]), problems)
    return [_loss(directory, examples) for directory in directories]


@torch.inference_mode()
def _loss(directory: Path, examples: Sequence[Example]) -> float:
    device = local_device()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval().to(device)
    total, count = 0.0, 0
    for batch in _batches(examples, model.config.get_text_config().vocab_size):
        ids = _pad([example.input_ids for example in batch], 0).to(device)
        labels = _pad([example.labels for example in batch], IGNORE)[:, 1:].to(device)
        counted = labels != IGNORE
        logits = model(input_ids=ids).logits[:, :-1][counted].float()
        total += F.cross_entropy(logits, labels[counted], reduction="sum").item()
        count += int(counted.sum())
    return total / count


def _batches(examples: Sequence[Example], vocabulary: int) -> Iterator[list[Example]]:
    """Examples of like length together, as many as LOGITS allows and at least one."""
    batch: list[Example] = []
    for example in sorted(examples, key=lambda example: len(example.input_ids)):
        if batch and (len(batch) + 1) * len(example.input_ids) * vocabulary > LOGITS:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def _pad(rows: Sequence[list[int]], value: int) -> torch.Tensor:
    # Right padding: under causal attention no real token sees it.
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=value
    )
