"""Recipe `flow` (arXiv 2502.02797): samples that the base model finds easy weigh more, so that less is forgotten.

    loss = mean_i w_i ℓ_i(θ),    w_i ∝ exp(−ℓ_i(θ*) / τ)

ℓ_i: mean −log p over the response tokens of sample i, in nats; θ*: the base; τ: `sft.flow.temperature`, or the
median of ℓ_i(θ*), as published. The weights are fixed once, before training, and scaled so that their mean is 1.
Median and mean are over the trunk's first epoch, as far as the trunk goes; later epochs' fresh demonstrations
are weighed by the same τ and scale, and so are those of a control.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from rlheals_ray.config import InputError
from rlheals_ray.lineage import BASE
from rlheals_ray.sft.data import IGNORE, Example
from rlheals_ray.sft.recipes import RecipeContext
from rlheals_ray.sft.recipes.plain import Plain
from rlheals_ray.sharding import local_device
from rlheals_ray.storage import fingerprint

_BATCH = 16
"""Samples that the base scores at a time, where sft.micro_batch does not say."""
_AHEAD = 64
"""Batches of samples that are sorted by length together, so that little is padding."""


@dataclass(frozen=True)
class SampleWeights:
    """w_i of every sample, found by its content."""

    keys: np.ndarray
    """Of the samples, uint64, ascending."""
    values: np.ndarray
    """w_i, float64."""

    @classmethod
    def of(
        cls, keys: np.ndarray, losses: np.ndarray, reference: np.ndarray, temperature: float | None
    ) -> SampleWeights:
        """From the base's losses of the samples `keys`; `reference`: keys of the samples, with repeats, whose
        median loss is τ and whose mean weight is 1. Raises InputError where that median is not positive."""
        order = np.argsort(keys)
        keys, losses = keys[order], losses[order].astype(np.float64)
        of_reference = losses[np.searchsorted(keys, reference)]
        tau = float(np.median(of_reference)) if temperature is None else temperature
        if not tau > 0:
            raise InputError(
                f"sft.flow.temperature (got null): the median of the base's losses is {tau}, which is no temperature; "
                "set one in nats, for example 0.5."
            )
        # The smallest loss is taken out before exp, which the scale undoes: nothing can become 0 / 0.
        least = of_reference.min()
        scale = np.exp(-(of_reference - least) / tau).mean()
        return cls(keys, np.exp(-(losses - least) / tau) / scale)

    def __getitem__(self, example: Example) -> float:
        """w_i of an example; raises KeyError for one that was not scored."""
        key = sample_key(example)
        at = int(np.searchsorted(self.keys, key))
        if at == len(self.keys) or self.keys[at] != key:
            raise KeyError("recipe flow has no weight for an example: it was not in the run's stream")
        return float(self.values[at])


def sample_key(example: Example) -> np.uint64:
    """The same for the same tokens and labels."""
    content = np.asarray([example.input_ids, example.labels], dtype=np.int32).tobytes()
    return np.frombuffer(hashlib.blake2b(content, digest_size=8).digest(), np.uint64)[0]


class Flow(Plain):
    """See the module. The base is read, scores the run's samples and is let go before the trained model is built."""

    per_sequence = True

    def __init__(self, context: RecipeContext) -> None:
        super().__init__(context)
        settings = context.study.sft
        epoch = min(context.examples.count, settings.steps[-1] * settings.batch_size)
        first, last = (
            context.first_position,
            context.first_position + context.updates * settings.batch_size,
        )
        keys, losses, reference = _scored(context, epoch, range(first, last))
        self.sample_weights = SampleWeights.of(keys, losses, reference, settings.flow.temperature)

    def weights(self, examples: Sequence[Example]) -> Sequence[float] | None:
        return [self.sample_weights[e] / sum(label != IGNORE for label in e.labels[1:]) for e in examples]


def _scored(context: RecipeContext, epoch: int, run: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys and base losses of every distinct sample of the first epoch and of the run, and the epoch's keys.

    Each worker scores its share; a restarted run finds what was scored before.
    """
    positions = sorted({*range(epoch), *run})
    mine = context.examples.stream(positions[context.rank :: context.workers])
    every = _together(context.workers, np.array([sample_key(example) for example in mine], np.uint64))
    keys, first = np.unique(every, return_index=True)
    reference = every[:epoch]  # the epoch's positions are the first ones
    cache = _cache(context, every)
    if not _everywhere(cache.exists()):
        distinct = np.sort(first)
        losses = np.empty(len(every))
        losses[distinct] = _together(context.workers, _score(context, [positions[at] for at in distinct]))
        if context.rank == 0:
            _write(cache, losses=losses[first])
        return keys, losses[first], reference
    with np.load(cache, allow_pickle=False) as found:
        return keys, found["losses"], reference


def _together(workers: int, mine: np.ndarray) -> np.ndarray:
    """Of what was dealt over the workers one by one, every worker's part in the order of the whole."""
    if workers == 1:
        return mine
    parts: list[np.ndarray] = [mine] * workers
    dist.all_gather_object(parts, mine)
    whole = np.empty(sum(map(len, parts)), mine.dtype)
    for rank, part in enumerate(parts):
        whole[rank::workers] = part
    return whole


def _everywhere(here: bool) -> bool:
    """Whether it is so on every worker: all of them score, or none does."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return here
    seen = [here] * dist.get_world_size()
    dist.all_gather_object(seen, here)
    return all(seen)


def _cache(context: RecipeContext, every: np.ndarray) -> Path:
    """Named by all that the losses depend on: base, precision, and the samples themselves, as their keys in order.

    What settings say of the samples is not enough: the code of a task changes them too, and a control draws its own.
    """
    stamp = context.files.checkpoint(BASE) / "provenance.json"
    key = fingerprint(
        base=stamp.read_text() if stamp.exists() else None,
        precision=context.study.sft.precision,
        samples=hashlib.sha256(every.tobytes()).hexdigest(),
    )
    return context.files.root / "flow" / f"{key}.npz"


def _write(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp-0.npz")
    np.savez(temporary, **arrays)  # type: ignore[arg-type]
    temporary.replace(path)


def _score(context: RecipeContext, positions: Sequence[int]) -> np.ndarray:
    """The base's losses of this worker's share of the samples at `positions`, float64."""
    settings = context.study.sft
    dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
    model: nn.Module = AutoModelForCausalLM.from_pretrained(context.files.checkpoint(BASE), dtype=dtype)
    model.to(local_device()).eval()
    mine = positions[context.rank :: context.workers]
    losses = np.empty(len(mine))
    size = settings.micro_batch or _BATCH
    stream = enumerate(context.examples.stream(mine))
    while chunk := list(islice(stream, size * _AHEAD)):
        chunk.sort(key=lambda item: len(item[1].input_ids))
        for start in range(0, len(chunk), size):
            batch = chunk[start : start + size]
            losses[[at for at, _ in batch]] = sequence_losses(model, [example for _, example in batch])
    return losses


@torch.inference_mode()
def sequence_losses(model: nn.Module, examples: Sequence[Example]) -> torch.Tensor:
    """ℓ_i (n,): the mean −log p (nats) over the response tokens of each example, float32 on the CPU."""
    device = next(model.parameters()).device
    ids, mask, labels = (
        torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
        for rows, value in (
            ([e.input_ids for e in examples], 0),
            ([[1] * len(e.input_ids) for e in examples], 0),
            ([e.labels for e in examples], IGNORE),
        )
    )  # fmt: skip
    targets = labels[:, 1:].to(device)
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    each = F.cross_entropy(logits[:, :-1].float().mT, targets, ignore_index=IGNORE, reduction="none")
    return (each.sum(1) / (targets != IGNORE).sum(1)).cpu()
