"""Finished episodes as tensors: one row per episode, its turns in order, exactly the engine's token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from rlheals_ray.rollout.episode import Episode


@dataclass(frozen=True)
class Batch:
    """B episodes of at most T tokens and at most K turns; right-padded."""

    ids: torch.Tensor
    """(B, T) int64."""
    turn_of: torch.Tensor
    """(B, T) int64: which turn a model-written token belongs to; -1 for the environment's and padding."""
    logprobs: torch.Tensor
    """(B, T) float32: the generator's own log-probability of each model-written token; 0 elsewhere."""
    prompt_end: torch.Tensor
    """(B, K) int64: position of the last token before each turn's answer; 0 where there is no turn."""
    rewards: torch.Tensor
    """(B, K) float32."""
    exists: torch.Tensor
    """(B, K) bool: whether the episode had that turn."""

    @property
    def own(self) -> torch.Tensor:
        """(B, T) bool: the tokens that the model wrote."""
        return self.turn_of >= 0

    def rows(self, rows: torch.Tensor) -> Batch:
        """The episodes at `rows`."""
        return Batch(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def to(self, device: torch.device) -> Batch:
        """The same on `device`."""
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def batch_of(episodes: Sequence[Episode], max_attempts: int) -> Batch:
    """Lay episodes out as tensors; K = max_attempts, or more where an episode has more turns."""
    ids, turn_of, logprobs = [], [], []
    shape = (len(episodes), max([max_attempts, *(len(episode.turns) for episode in episodes)]))
    prompt_end = torch.zeros(shape, dtype=torch.long)
    rewards = torch.zeros(shape)
    exists = torch.zeros(shape, dtype=torch.bool)
    for row, episode in enumerate(episodes):
        tokens: list[int] = []
        owner: list[int] = []
        sampled: list[float] = []
        for k, turn in enumerate(episode.turns):
            if len(turn.logprobs) != len(turn.completion_ids):
                raise ValueError(
                    f"{episode.problem.id}, turn {k}: {len(turn.completion_ids)} tokens but {len(turn.logprobs)} "
                    "log-probabilities; learning needs one for each token"
                )
            tokens += turn.prompt_ids + turn.completion_ids
            owner += [-1] * len(turn.prompt_ids) + [k] * len(turn.completion_ids)
            sampled += [0.0] * len(turn.prompt_ids) + turn.logprobs
            prompt_end[row, k] = len(tokens) - len(turn.completion_ids) - 1
            rewards[row, k] = turn.verdict.reward
            exists[row, k] = True
        ids.append(torch.tensor(tokens))
        turn_of.append(torch.tensor(owner))
        logprobs.append(torch.tensor(sampled))
    return Batch(
        ids=pad_sequence(ids, batch_first=True),
        turn_of=pad_sequence(turn_of, batch_first=True, padding_value=-1),
        logprobs=pad_sequence(logprobs, batch_first=True),
        prompt_end=prompt_end,
        rewards=rewards,
        exists=exists,
    )
