"""The engine on plain transformers: for platforms without vLLM, and the reference that vLLM is tested against.

Simple and exact first. All running sequences decode side by side in one batch with a key-value cache,
padded on the left; sequences that join are prefilled on their own and laid beside the others, sequences
that finish leave the cache. One uniform number a token, from the request's own generator, picks the token
by inverting the cumulative distribution, so a request's draws do not depend on its neighbours; rounding
in a batch of another size can still move a draw that falls right between two tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rlheals_ray.config import RolloutSettings
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.rollout.engine import Completion
from rlheals_ray.rollout.episode import Sampling


@dataclass
class _Request:
    id: str
    prompt: list[int]
    sampling: Sampling
    limit: int
    """Most tokens it may write."""
    rng: np.random.Generator
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass
class _Batch:
    """Running sequences and what their next token needs; B rows, T columns, left-padded."""

    requests: list[_Request]
    cache: Any
    """A DynamicCache: every token of every layer, whatever window the layer looks through."""
    mask: torch.Tensor
    """(B, T) int64: 1 where the cache holds a token, 0 where it holds padding."""
    logits: torch.Tensor
    """(B, vocabulary) float32: of each sequence's next token."""


class TransformersEngine:
    """One transformers model. Log-probabilities are those of the sampling distribution, temperature included;
    at temperature 0 those of temperature 1."""

    name = "transformers"

    def __init__(self, directory: Path, settings: RolloutSettings, stop_ids: Iterable[int]) -> None:
        """Build the model for the architecture in `directory`; weights come later."""
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._stop = frozenset(stop_ids)
        self._max_len, self._max_seqs = settings.max_model_len, settings.max_num_seqs
        config = AutoConfig.from_pretrained(directory)
        with self._device:
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, settings.dtype))
        self._model: Any = model.eval().requires_grad_(False)
        self._tensors = self._model.state_dict()
        self._tied: dict[str, str] = dict(self._model.all_tied_weights_keys or {})
        """Tensor to the one whose storage it shares."""
        self._waiting: deque[_Request] = deque()
        self._running: _Batch | None = None

    def submit(self, request_id: str, ids: Sequence[int], *, sampling: Sampling, seed: int) -> None:
        room = self._max_len - len(ids)
        if not ids or room < 1:
            raise ValueError(f"a prompt of {len(ids)} tokens: it must have 1 to {self._max_len - 1}")
        limit = min(sampling.max_new_tokens, room)
        self._waiting.append(
            _Request(request_id, list(ids), sampling, limit, np.random.Generator(np.random.PCG64(seed)))
        )

    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def abort(self) -> None:
        self._waiting.clear()
        self._running = None

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        self._admit()
        if self._running is None:
            return []
        drawn = self._draw(self._running)
        going = [row for row, request in enumerate(self._running.requests) if not self._is_over(request)]
        finished = [
            Completion(request.id, request.ids, request.logprobs, request.ids[-1] in self._stop)
            for request in self._running.requests
            if self._is_over(request)
        ]
        if not going:
            self._running = None
        else:
            if finished:
                _keep(self._running, going)
            self._decode(self._running, [drawn[row] for row in going])
        return finished

    @torch.inference_mode()
    def score(self, ids: Sequence[int]) -> list[float]:
        if self.busy():
            raise RuntimeError("a sequence cannot be scored while requests are running")
        tokens = torch.tensor([list(ids)], device=self._device)
        distribution = self._model(input_ids=tokens, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        scores: list[float] = distribution.gather(-1, tokens[0, 1:, None]).squeeze(-1).tolist()
        return scores

    def load_checkpoint(self, directory: Path) -> None:
        checkpoint = Checkpoint(directory)
        self.load_weights((name, checkpoint.tensor(name)) for name in checkpoint.names())

    @torch.no_grad()
    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        absent = set(self._tensors) - set(self._tied)
        heads: dict[str, torch.Tensor] = {}
        for name, tensor in tensors:
            if name not in self._tensors:
                raise ValueError(f"the model has no tensor {name!r}")
            target = self._tensors[name]
            if tensor.shape != target.shape:
                raise ValueError(
                    f"{name!r} has shape {tuple(tensor.shape)}; the model's is {tuple(target.shape)}"
                )
            if name in self._tied:
                heads[name] = tensor
            else:
                target.copy_(tensor)
                absent.discard(name)
        if absent:
            raise ValueError(
                f"the update lacks {len(absent)} of the model's tensors, such as {min(absent)!r}"
            )
        for name, tensor in heads.items():
            if not torch.equal(self._tensors[name], tensor.to(self._tensors[name])):
                raise ValueError(f"{name!r} differs from {self._tied[name]!r}, to which the model ties it")

    def _is_over(self, request: _Request) -> bool:
        return len(request.ids) == request.limit or request.ids[-1] in self._stop

    def _admit(self) -> None:
        """Prefill what waits, as far as there is room, and lay it beside what runs."""
        room = self._max_seqs - (len(self._running.requests) if self._running else 0)
        new = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        if not new:
            return
        longest = max(len(request.prompt) for request in new)
        ids = torch.zeros(len(new), longest, dtype=torch.long, device=self._device)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(new):
            ids[row, longest - len(request.prompt) :] = torch.tensor(request.prompt)
            mask[row, longest - len(request.prompt) :] = 1
        joining = _Batch(new, DynamicCache(), mask, torch.empty(0))
        self._forward(joining, ids, (mask.cumsum(-1) - 1).clamp(min=0))
        self._running = _side_by_side(self._running, joining) if self._running else joining

    def _decode(self, batch: _Batch, drawn: list[int]) -> None:
        positions = batch.mask.sum(-1, keepdim=True)
        batch.mask = F.pad(batch.mask, (0, 1), value=1)
        self._forward(batch, torch.tensor(drawn, device=self._device)[:, None], positions)

    def _forward(self, batch: _Batch, ids: torch.Tensor, positions: torch.Tensor) -> None:
        output = self._model(
            input_ids=ids,
            attention_mask=batch.mask,
            position_ids=positions,
            past_key_values=batch.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        batch.logits = output.logits[:, -1].float()

    def _draw(self, batch: _Batch) -> list[int]:
        """Draw every sequence's next token and note it with its log-probability."""
        requests = batch.requests
        settings = [request.sampling for request in requests]
        # In the order in which vLLM applies them.
        scores = batch.logits
        for row, sampling in enumerate(settings):
            if sampling.repetition_penalty != 1:
                seen = torch.tensor([requests[row].prompt + requests[row].ids], device=self._device)
                penalty = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
                scores[row] = penalty(seen, scores[row, None])[0]
        scores = scores / torch.tensor([[s.temperature or 1.0] for s in settings], device=self._device)
        for row, sampling in enumerate(settings):
            if sampling.top_k > 0:
                scores[row] = TopKLogitsWarper(sampling.top_k)(None, scores[row, None])[0]
            if sampling.top_p < 1:
                scores[row] = TopPLogitsWarper(sampling.top_p)(None, scores[row, None])[0]
        distribution = scores.log_softmax(-1)
        cumulative = distribution.double().exp().cumsum(-1)
        whole = cumulative[:, -1:]
        uniform = whole.new_tensor([[request.rng.random()] for request in requests])
        # Strictly below the whole, rounding included: never past the last token of any probability.
        point = torch.minimum(uniform * whole, torch.nextafter(whole, torch.zeros_like(whole)))
        drawn = torch.searchsorted(cumulative, point, right=True)
        greedy = torch.tensor([[s.temperature == 0] for s in settings], device=self._device)
        drawn = torch.where(greedy, distribution.argmax(-1, keepdim=True), drawn)
        logprobs = distribution.gather(-1, drawn).squeeze(-1).tolist()
        tokens: list[int] = drawn.squeeze(-1).tolist()
        for request, token, logprob in zip(requests, tokens, logprobs, strict=True):
            request.ids.append(token)
            if request.sampling.logprobs:
                request.logprobs.append(logprob)
        return tokens


def _keep(batch: _Batch, rows: list[int]) -> None:
    """Drop every other row, and the columns that are padding in all that stay."""
    index = torch.tensor(rows, device=batch.mask.device)
    batch.requests = [batch.requests[row] for row in rows]
    batch.mask = batch.mask[index]
    padding = int(batch.mask.any(0).int().argmax())
    batch.mask = batch.mask[:, padding:]
    for layer in batch.cache.layers:
        layer.keys = layer.keys[index][..., padding:, :]
        layer.values = layer.values[index][..., padding:, :]


def _side_by_side(one: _Batch, other: _Batch) -> _Batch:
    """One batch of both, padded on the left to the longer."""
    length = max(one.mask.shape[1], other.mask.shape[1])

    def together(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.pad(x, (0, 0, length - x.shape[-2], 0)) for x in (a, b)])

    cache: Any = DynamicCache()
    for layer, (a, b) in enumerate(zip(one.cache.layers, other.cache.layers, strict=True)):
        cache.update(together(a.keys, b.keys), together(a.values, b.values), layer)
    mask = together(one.mask[..., None], other.mask[..., None]).squeeze(-1)
    return _Batch(one.requests + other.requests, cache, mask, torch.cat([one.logits, other.logits]))
