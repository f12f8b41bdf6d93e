"""Finished episodes in the form that TRL's trainers take: one prompt and one completion each.

The prompt is the first turn's; everything after it is the completion, in which the environment's
tokens are marked. An episode's turns therefore stand in one sequence, exactly as they were generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rlheals_ray.rollout.episode import Episode


@dataclass(frozen=True)
class Completions:
    """Episodes as lists, one entry an episode; the lists of an entry are aligned with its completion."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    env_mask: list[list[int]]
    """1 where the model wrote the token, 0 where the environment did (TRL's name for it)."""
    logprobs: list[list[float]]
    """The generator's own; 0 where the environment wrote."""
    returns: list[float]

    @classmethod
    def of(cls, episodes: Sequence[Episode], gamma: float) -> Completions:
        """Lay episodes out; raises ValueError where a token of the model has no log-probability."""
        made = cls([], [], [], [], [])
        for episode in episodes:
            first, ids, mask, logprobs = episode.turns[0], [], [], []
            for k, turn in enumerate(episode.turns):
                if len(turn.logprobs) != len(turn.completion_ids):
                    raise ValueError(
                        f"{episode.problem.id}, turn {k}: {len(turn.completion_ids)} tokens but {len(turn.logprobs)} "
                        "log-probabilities; learning needs one for each token"
                    )
                environment = [] if turn is first else turn.prompt_ids
                ids += [*environment, *turn.completion_ids]
                mask += [0] * len(environment) + [1] * len(turn.completion_ids)
                logprobs += [0.0] * len(environment) + turn.logprobs
            made.prompt_ids.append(first.prompt_ids)
            made.completion_ids.append(ids)
            made.env_mask.append(mask)
            made.logprobs.append(logprobs)
            made.returns.append(episode_return(episode, gamma))
        return made

    def own(self) -> torch.Tensor:
        """(B, C) int64: `env_mask`, 0 in the padding on the right."""
        return _padded([torch.tensor(mask) for mask in self.env_mask])

    def sampled(self) -> torch.Tensor:
        """(B, C) float32: `logprobs`, 0 in the padding on the right."""
        return _padded([torch.tensor(logprobs) for logprobs in self.logprobs])


def episode_return(episode: Episode, gamma: float) -> float:
    """Σ_k γᵏ r_k over the episode's turns, k counted from 0: what GRPO and RLOO call the reward."""
    return sum(gamma**k * turn.verdict.reward for k, turn in enumerate(episode.turns))


def minibatch_order(
    episodes: int, minibatches: int, seed: Sequence[int], *, first: int = 0, count: int | None = None
) -> torch.Tensor:
    """Which of a worker's episodes make up each minibatch: (count,) int64, minibatch after minibatch.

    Every run of `minibatches` neighbouring episodes gives one to each minibatch, at random. Neighbours
    are of one group, so that each minibatch has its part of every group; and since a worker holds whole
    runs, a minibatch is made up of the same episodes whatever the number of workers.
    """
    count = episodes if count is None else count
    runs = np.tile(np.arange(minibatches), (episodes // minibatches, 1))
    shuffled = np.random.default_rng(list(seed)).permuted(runs, axis=1)
    mine = shuffled[first // minibatches : (first + count) // minibatches]
    return torch.from_numpy((mine + np.arange(len(mine))[:, None] * minibatches).T.reshape(-1))


def _padded(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
