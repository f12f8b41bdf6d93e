"""A generator: one Ray actor with one warm engine in it.

Whole episodes run here, judge included; only finished ones cross Ray, in blocks while the rest still
decodes. It refuses to answer for weights that it does not hold. While it works it tells how far it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from rlheals_ray.config import RolloutSettings, TaskSettings
from rlheals_ray.event_log import tell
from rlheals_ray.monitoring import record_generated, serve_study
from rlheals_ray.need import Need
from rlheals_ray.placement import options_beside
from rlheals_ray.rollout.engines import ENGINES, make_engine
from rlheals_ray.rollout.episode import Episode, EpisodeRequest, Sampling, Weights, WrongWeights
from rlheals_ray.rollout.load import Load
from rlheals_ray.rollout.progress import Progress
from rlheals_ray.tasks import get_task

BLOCK_SECONDS = 0.5
"""Finished episodes are handed over this often: what a generator's death can cost beyond unfinished ones."""


@dataclass(frozen=True)
class GeneratorSettings:
    """What a generator is built from."""

    architecture: str
    """A Hugging Face directory whose configuration and tokenizer every checkpoint of the study shares."""
    task: TaskSettings
    rollout: RolloutSettings
    study: str = ""
    """Its name, for logs and metrics."""


@dataclass(frozen=True)
class Ready:
    """A generator that is up."""

    engine: str
    process: str
    """See Progress.process."""
    node: str = ""
    """Ray's id of the node that it is on."""


@dataclass(frozen=True)
class Receipt:
    """Follows a block of episodes: whose they are, and the run's counters so far."""

    places: list[int]
    progress: Progress


class Generator:
    """The actor's class; see `start_generator`."""

    def __init__(self, settings: GeneratorSettings) -> None:
        # Imported here, in the actor: vLLM must find its environment and have the process to itself.
        from rlheals_ray.rollout.episodes import RememberingChat

        self._settings, self._study = settings.rollout, settings.study
        self._task = get_task(settings.task.name, **settings.task.options)
        self._chat = RememberingChat.of(settings.architecture)
        self._engine = make_engine(Path(settings.architecture), settings.rollout, self._chat.stop_ids)
        self._weights: Weights | None = None
        self._progress = Progress(f"{ray.util.get_node_ip_address()}:{os.getpid()}")
        self._counted = 0.0
        serve_study(self._study)
        tell(self._study, "generator", self._progress.process, "started")

    def __repr__(self) -> str:
        """What Ray's dashboard and logs call the actor."""
        return f"generator of {self._study}" if self._study else "generator"

    def ready(self) -> Ready:
        """Answers once the actor is up."""
        return Ready(self._engine.name, self._progress.process, ray.get_runtime_context().get_node_id())

    @ray.method(concurrency_group="health")
    def progress(self) -> Progress:
        """How far it is; answers while `load` or `run` is at work."""
        return self._progress

    def load(self, load: Load, weights: Weights, index: int = 0) -> str:
        """Take over weights, unless they are those held already; returns the process that holds them."""
        if self._weights != weights:
            self._weights = None
            load.into(self._engine, index)
            self._weights = weights
        return self._progress.process

    def run(
        self, requests: Sequence[EpisodeRequest], places: Sequence[int], sampling: Sampling, weights: Weights
    ) -> Iterator[list[Episode] | Receipt]:
        """Episodes for the `places` of `requests`, by exactly `weights`: a block of them, its receipt, a block, …

        Raises WrongWeights when other weights are loaded. The receipt comes second, so that whoever has
        it knows the block to be whole.
        """
        from rlheals_ray.rollout.episodes import stream_episodes

        if weights != self._weights:
            raise WrongWeights(f"asked for {weights}, but this generator holds {self._weights}")
        before = replace(self._progress)
        purpose = next(iter(requests[places[0]].seed), None) if places else None
        block: list[Episode] = []
        finished: list[int] = []
        due = time.perf_counter() + BLOCK_SECONDS
        for index, episode in stream_episodes(
            self._engine,
            self._task,
            self._chat,
            [requests[place] for place in places],
            sampling,
            weights,
            self._settings.max_model_len,
            self._progress,
        ):
            block.append(episode)
            finished.append(places[index])
            if time.perf_counter() > due:
                self._count(purpose, block)
                yield block
                yield Receipt(finished, _since(before, self._progress))
                block, finished = [], []
                due = time.perf_counter() + BLOCK_SECONDS
        self._count(purpose, block)
        yield block
        yield Receipt(finished, _since(before, self._progress))

    def _count(self, purpose: object, block: Sequence[Episode]) -> None:
        seconds, self._counted = self._progress.seconds_engine - self._counted, self._progress.seconds_engine
        record_generated(purpose, len(block), sum(episode.tokens for episode in block), seconds)


def _since(before: Progress, now: Progress) -> Progress:
    return replace(
        now,
        submitted=now.submitted - before.submitted,
        steps=now.steps - before.steps,
        turns=now.turns - before.turns,
        episodes=now.episodes - before.episodes,
        seconds_engine=now.seconds_engine - before.seconds_engine,
        seconds_judge=now.seconds_judge - before.seconds_judge,
    )


def start_generator(
    settings: GeneratorSettings, *, threads: int, need: Need, beside: str | None = None
) -> ray.actor.ActorHandle:
    """Start a generator actor, on node `beside` if that has room; its `ready` answers when the engine is up.

    Ray restarts it when its process dies; it comes back without weights, and refuses to answer.
    """
    environment = {**ENGINES[settings.rollout.engine].environment, "OMP_NUM_THREADS": str(threads)}
    actor = ray.remote(concurrency_groups={"health": 1})(Generator).options(
        max_restarts=-1,  # the pool counts, and gives up
        runtime_env={"env_vars": environment},
        **options_beside(need, beside),
    )
    return actor.remote(settings)
