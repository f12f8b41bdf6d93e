"""What every checkpoint is asked: the same prompts, as the engines render them, and the base's answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rlheals_ray.rollout.episode import EpisodeRequest, Sampling, Weights
from rlheals_ray.rollout.load import CheckpointLoad
from rlheals_ray.rollout.pool import Pool
from rlheals_ray.tasks import Problem

_ids = pa.list_(pa.int64())
ASKED = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("rule", "problem_id", "group")),
        pa.field("prompt", _ids),
        pa.field("answers", pa.list_(_ids)),
    ]
)
"""hidden/answers.parquet: one row per problem; prompt and answers in token ids."""


@dataclass(frozen=True)
class Asked:
    """One problem's prompt, and what the base answered."""

    rule: str
    problem_id: str
    group: str
    prompt: list[int]
    answers: list[list[int]]
    """Each with its end of turn, where the base wrote one within its limit of tokens."""


def ask_base(
    pool: Pool,
    directory: Path,
    fingerprint: str,
    problems: Sequence[Problem],
    samples: int,
    max_new_tokens: int,
) -> pa.Table:
    """Have the base in `directory` answer every problem `samples` times at temperature 1, once each: ASKED."""
    requests = [
        EpisodeRequest(problem, ("hidden", problem.id, sample))
        for problem in problems
        for sample in range(samples)
    ]
    sampling = Sampling(temperature=1.0, max_new_tokens=max_new_tokens, max_attempts=1)
    rollout = pool.run(CheckpointLoad(str(directory)), requests, sampling, Weights(fingerprint))
    turns = [episode.turns[0] for episode in rollout.episodes]
    rows = [
        {
            "rule": problem.rule,
            "problem_id": problem.id,
            "group": problem.group,
            "prompt": turns[place * samples].prompt_ids,
            "answers": [turn.completion_ids for turn in turns[place * samples : (place + 1) * samples]],
        }
        for place, problem in enumerate(problems)
    ]
    return pa.Table.from_pylist(rows, schema=ASKED)


def asked_of(table: pa.Table) -> list[Asked]:
    """The rows of a table of ASKED."""
    return [Asked(**row) for row in table.select(ASKED.names).to_pylist()]
