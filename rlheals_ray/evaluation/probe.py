"""A probe: one checkpoint answers the study's fixed problems of both rules through a leased generator.

Every checkpoint gets the same problems, so every comparison between checkpoints is paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from rlheals_ray.config import EvaluationSettings
from rlheals_ray.rollout.episode import EpisodeRequest, Sampling, Weights, episodes_table
from rlheals_ray.rollout.pool import Pool
from rlheals_ray.tasks import Problem, Task


def probe_problems(task: Task, settings: EvaluationSettings, rule: str) -> list[Problem]:
    """The probe problems of one rule, the same for every checkpoint of the study."""
    return task.problems(rule, "eval", settings.problems, seed=settings.seed)  # type: ignore[arg-type]


def probe(
    pool: Pool,
    checkpoint: str,
    directory: Path,
    fingerprint: str,
    problems: Sequence[Problem],
    settings: EvaluationSettings,
) -> pa.Table:
    """Episodes (tables.EPISODES) of the checkpoint named `checkpoint` in `directory` on `problems`."""
    weights = Weights(fingerprint)
    requests = [EpisodeRequest(problem, ("probe", problem.id)) for problem in problems]
    sampling = Sampling(settings.temperature, settings.max_new_tokens, settings.max_attempts)
    with pool.lease() as generator:
        ray.get(generator.load_checkpoint.remote(str(directory), weights))
        rollout: Any = ray.get(generator.run.remote(requests, sampling, weights))
    return episodes_table(checkpoint, rollout.episodes)
