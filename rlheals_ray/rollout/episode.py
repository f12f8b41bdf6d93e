"""What an episode is: a problem, and up to `max_attempts` turns at it, or at each of its steps.

Token ids, log-probabilities and the identity of the weights are append-only per turn; nothing is
decoded and encoded again, so the learner sees exactly what the engine sampled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from rlheals_ray import tables
from rlheals_ray.tasks import Problem, Verdict


@dataclass(frozen=True)
class Weights:
    """Which weights an engine holds: a checkpoint's fingerprint and the RL updates made since."""

    checkpoint: str
    update: int = 0
    attempt: str = ""
    """Who made these updates: made again after a crash, they may give other weights."""


class WrongWeights(RuntimeError):
    """A generator was asked to answer for weights that it does not hold."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. Learning needs `logprobs`: those of the sampling distribution itself.

    Raises ValueError where log-probabilities are asked for that would not be those of the softmax at
    `temperature`, the only distribution that a learner can recompute.
    """

    temperature: float
    max_new_tokens: int
    max_attempts: int
    """Tries at a problem; of a task that is solved in several turns, at each of them."""
    logprobs: bool = False
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.logprobs and (self.top_p, self.top_k, self.repetition_penalty) != (1.0, 0, 1.0):
            raise ValueError(
                f"log-probabilities for learning need top_p=1, top_k=0 and repetition_penalty=1, not {self}"
            )


@dataclass(frozen=True)
class EpisodeRequest:
    """One problem to attempt; `seed` seeds every turn of the episode."""

    problem: Problem
    seed: tuple[int | str, ...] = ()

    @property
    def id(self) -> str:
        """What the episode is known by, the same in every process: problem and seed, hence its content.

        Requests of equal id would give equal episodes; a batch must not hold two.
        """
        return json.dumps([self.problem.id, *self.seed])

    def turn_seed(self, turn: int) -> int:
        """A 62-bit seed for one turn, the same in every process."""
        digest = hashlib.blake2b(repr((*self.seed, turn)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 2


@dataclass(frozen=True)
class Turn:
    """One answer. `prompt_ids` are the environment's new tokens only; `completion_ids` the model's."""

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float]
    ended: bool
    """Whether the model closed its turn; False means that it ran into `max_new_tokens`."""
    answer: str
    verdict: Verdict
    weights: Weights
    """The weights that the engine held when it wrote the completion."""


@dataclass
class Episode:
    """The finished turns of one problem."""

    problem: Problem
    weights: Weights
    """The weights that were asked for; those of every turn."""
    turns: list[Turn] = field(default_factory=list)
    id: str = ""
    """That of its request."""

    @property
    def solved_at(self) -> int | None:
        """The attempt that solved it, counted from 1; None where none did.

        Where it takes several right answers, the most tries that one of them took: 1 where nothing failed.
        """
        most = failed = 0
        for turn in self.turns:
            if turn.verdict.solved:
                return most + 1
            failed = 0 if turn.verdict.accepted else failed + 1
            most = max(most, failed)
        return None

    @property
    def accepted(self) -> list[str]:
        """The right answers so far that did not yet solve it."""
        return [turn.answer for turn in self.turns if turn.verdict.accepted]

    @property
    def failed(self) -> int:
        """Tries without success since the last right answer."""
        failed = 0
        for turn in self.turns:
            failed = 0 if turn.verdict.accepted else failed + 1
        return failed

    @property
    def tokens(self) -> int:
        """Tokens that the model wrote."""
        return sum(len(turn.completion_ids) for turn in self.turns)

    @property
    def all_tokens(self) -> int:
        """Tokens of the whole conversation: prompt, answers and replies."""
        return self.tokens + sum(len(turn.prompt_ids) for turn in self.turns)


def episodes_table(checkpoint: str, episodes: Sequence[Episode]) -> pa.Table:
    """Episodes as rows of tables/episodes.parquet."""
    return tables.table("episodes", [_row(checkpoint, episode) for episode in episodes])


def _row(checkpoint: str, episode: Episode) -> dict[str, Any]:
    verdicts = [turn.verdict for turn in episode.turns]
    return {
        "checkpoint": checkpoint,
        "rule": episode.problem.rule,
        "problem_id": episode.problem.id,
        "attempts": len(verdicts),
        "solved_at": episode.solved_at,
        "well_formed": [verdict.well_formed for verdict in verdicts],
        "rewards": [verdict.reward for verdict in verdicts],
        "answers": [turn.answer for turn in episode.turns],
    }


@dataclass(frozen=True)
class Rollout:
    """Finished episodes in the order of their requests, and where the time went."""

    episodes: list[Episode]
    engine: str
    """The name of the engine that made them."""
    seconds: float
    """From the first request to the last finished episode; what lost generators cost is in it."""
    seconds_engine: float
    """Of these, inside the engine (mean over the team)."""
    seconds_judge: float
    """Of these, between two steps of the engine: decoding answers, judging them, rendering the next
    prompts (mean over the team)."""
    seconds_sync: float
    """Loading the weights, for the most part before `seconds` began (mean over the team)."""
