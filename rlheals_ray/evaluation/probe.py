"""A probe: one checkpoint answers the study's fixed problems of every rule through a leased generator.

Every checkpoint gets the same problems, so every comparison between checkpoints is paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from rlheals_ray.config import EvaluationSettings
from rlheals_ray.rollout.episode import EpisodeRequest, Sampling, Weights, episodes_table
from rlheals_ray.rollout.load import CheckpointLoad
from rlheals_ray.rollout.pool import Pool
from rlheals_ray.tasks import Problem, Rule, Task


def probe_problems(task: Task, settings: EvaluationSettings, rule: Rule) -> list[Problem]:
    """The probe problems of one rule, the same for every checkpoint of the study."""
    return task.problems(rule, "eval", settings.problems, seed=settings.seed)


def probe(
    pool: Pool,
    checkpoint: str,
    directory: Path,
    fingerprint: str,
    problems: Sequence[Problem],
    settings: EvaluationSettings,
) -> tuple[pa.Table, str]:
    """Episodes (tables.EPISODES) of the checkpoint named `checkpoint` in `directory`, and the engine's name."""
    requests = [EpisodeRequest(problem, ("probe", problem.id)) for problem in problems]
    sampling = Sampling(
        settings.temperature,
        settings.max_new_tokens,
        settings.max_attempts,
        top_p=settings.top_p,
        top_k=settings.top_k,
        repetition_penalty=settings.repetition_penalty,
    )
    rollout = pool.run(CheckpointLoad(str(directory)), requests, sampling, Weights(fingerprint))
    return episodes_table(checkpoint, rollout.episodes), rollout.engine
