"""A generator: one Ray actor with one warm engine in it.

Whole episodes run here, judge included; only finished ones cross Ray. It refuses to answer for
weights that it does not hold.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from rlheals_ray.config import RolloutSettings, TaskSettings
from rlheals_ray.rollout.episode import EpisodeRequest, Rollout, Sampling, Weights, WrongWeights
from rlheals_ray.rollout.load import Load
from rlheals_ray.tasks import get_task

MAX_RESTARTS = 3
"""How often Ray restarts a generator that died; it comes back without weights, and refuses to answer."""


@dataclass(frozen=True)
class GeneratorSettings:
    """What a generator is built from."""

    architecture: str
    """A Hugging Face directory whose configuration and tokenizer every checkpoint of the study shares."""
    task: TaskSettings
    rollout: RolloutSettings


class Generator:
    """The actor's class; see `start_generator`."""

    def __init__(self, settings: GeneratorSettings) -> None:
        # Imported here, in the actor: vLLM must find its environment and have the process to itself.
        from rlheals_ray.models.chat import ChatFormat
        from rlheals_ray.rollout.vllm_engine import VllmEngine

        self._settings = settings.rollout
        self._task = get_task(settings.task.name, **settings.task.options)
        self._chat = ChatFormat.of(settings.architecture)
        self._engine = VllmEngine(Path(settings.architecture), settings.rollout, self._chat.stop_ids)
        self._weights: Weights | None = None

    def ready(self) -> str:
        """The engine's name, once the actor is up."""
        return self._engine.name

    def load(self, load: Load, weights: Weights, index: int = 0) -> None:
        """Take over weights, unless they are those held already."""
        if self._weights == weights:
            return
        self._weights = None
        load.into(self._engine, index)
        self._weights = weights

    def run(self, requests: Sequence[EpisodeRequest], sampling: Sampling, weights: Weights) -> Rollout:
        """Episodes for `requests` with exactly `weights`; raises WrongWeights when others are loaded."""
        from rlheals_ray.rollout.episodes import run_episodes

        if weights != self._weights:
            raise WrongWeights(f"asked for {weights}, but this generator holds {self._weights}")
        start = time.perf_counter()
        episodes = run_episodes(
            self._engine, self._task, self._chat, requests, sampling, weights, self._settings.max_model_len
        )
        seconds = time.perf_counter() - start
        return Rollout(episodes, self._engine.name, seconds, seconds, 0.0, 0.0)


def start_generator(settings: GeneratorSettings, *, threads: int, num_cpus: float) -> ray.actor.ActorHandle:
    """Start a generator actor; its `ready` answers when the engine is up."""
    from rlheals_ray.rollout.vllm_environment import ENVIRONMENT

    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
    actor = ray.remote(Generator).options(
        num_cpus=num_cpus, max_restarts=MAX_RESTARTS, runtime_env={"env_vars": environment}
    )
    return actor.remote(settings)
