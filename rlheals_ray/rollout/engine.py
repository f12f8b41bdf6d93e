"""The engine seam: token ids in, sampled token ids with their log-probabilities out, one step at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch


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

    def submit(
        self,
        request_id: str,
        ids: Sequence[int],
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int,
        logprobs: bool,
    ) -> None:
        """Queue a request; it joins the running batch at the next step."""
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

    def load_checkpoint(self, directory: Path) -> None:
        """Replace the weights by those of a Hugging Face directory of the same architecture."""
        ...

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace the weights by named tensors, in the checkpoint's own names and shapes."""
        ...
