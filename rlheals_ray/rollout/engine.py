"""The engine seam: token ids in, sampled token ids with their log-probabilities out, one step at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from rlheals_ray.rollout.episode import Sampling


@dataclass(frozen=True)
class Completion:
    """What the model wrote for one request, stop token included; logprobs empty unless asked for."""

    request_id: str
    ids: list[int]
    logprobs: list[float]
    stopped: bool


class Engine(Protocol):
    """A continuously batching generator of one model."""

    name: str

    def submit(self, request_id: str, ids: Sequence[int], *, sampling: Sampling, seed: int) -> None:
        """Queue a request; it joins the running batch at the next step.

        `sampling.max_attempts` is not the engine's business. Raises ValueError for a prompt that does not fit.
        """
        ...

    def step(self) -> list[Completion]:
        """Decode one token for every running sequence; returns those that finished."""
        ...

    def busy(self) -> bool:
        """Whether any request is unfinished."""
        ...

    def abort(self) -> None:
        """Drop every unfinished request."""
        ...

    def score(self, ids: Sequence[int]) -> list[float]:
        """log p(ids[t] | ids[:t]) at temperature 1 for t = 1 … len(ids) - 1, as the engine would serve it.

        The last one is read like the next token of a served request, from whatever is cached of its
        prefix. Raises RuntimeError while requests are unfinished.
        """
        ...

    def load_checkpoint(self, directory: Path) -> None:
        """Replace the weights by those of a Hugging Face directory of the same architecture."""
        ...

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace the weights by named tensors, in the checkpoint's own names and shapes.

        Raises ValueError when the model has tensors that the update lacks; tied ones may be left out.
        """
        ...
