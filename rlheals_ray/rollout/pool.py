"""The pool: warm generators, each lent to one consumer at a time.

The driver owns the engines. A consumer (a branch's update, a probe) has exclusive use of one for one
load-and-run; with one engine consumers queue. The lease is held by the pool's own actor and not by
the consumer, so a consumer that dies cannot keep an engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import ray
from ray.exceptions import RayActorError

from rlheals_ray.rollout.episode import EpisodeRequest, Rollout, Sampling, Weights
from rlheals_ray.rollout.generator import GeneratorSettings, start_generator
from rlheals_ray.rollout.load import Load

ATTEMPTS = 3
"""How often a load-and-run is tried when its generator dies; Ray restarts the generator meanwhile."""


class Leases:
    """An asynchronous Ray actor that lends generators, first come first served."""

    def __init__(self, generators: list[ray.actor.ActorHandle]) -> None:
        self._free: asyncio.Queue[ray.actor.ActorHandle] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(max_workers=len(generators))
        for generator in generators:
            self._free.put_nowait(generator)

    async def run(
        self, load: Load, requests: Sequence[EpisodeRequest], sampling: Sampling, weights: Weights
    ) -> tuple[list[ray.ObjectRef], float]:
        """Load and run on the next free generator; a reference to its Rollout, and the seconds of loading."""
        generator = await self._free.get()
        try:
            start = time.perf_counter()
            await generator.load.remote(load, weights)
            loaded = time.perf_counter()
            reference = generator.run.remote(requests, sampling, weights)
            # Wait for the episodes without fetching them: they go straight to the consumer.
            wait = lambda: ray.wait([reference], fetch_local=False)  # noqa: E731
            await asyncio.get_running_loop().run_in_executor(self._threads, wait)
            return [reference], loaded - start
        finally:
            self._free.put_nowait(generator)


@dataclass(frozen=True)
class Pool:
    """A handle on the pool that can be sent to any process of the study."""

    leases: ray.actor.ActorHandle
    generators: tuple[ray.actor.ActorHandle, ...]

    @classmethod
    def start(cls, settings: GeneratorSettings, *, threads: int, num_cpus: float) -> Pool:
        """Start every engine of the study; returns at once, `wait_ready` waits for them."""
        count = settings.rollout.generators
        generators = [start_generator(settings, threads=threads, num_cpus=num_cpus) for _ in range(count)]
        leases = ray.remote(Leases).options(num_cpus=0, max_concurrency=1000).remote(generators)
        return cls(leases, tuple(generators))

    def wait_ready(self) -> None:
        """Wait until every engine is up; raises what kept one from starting."""
        ray.get([generator.ready.remote() for generator in self.generators])

    def run(
        self, load: Load, requests: Sequence[EpisodeRequest], sampling: Sampling, weights: Weights
    ) -> Rollout:
        """Episodes by exactly `weights`, from the next free engine."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                references, seconds = ray.get(self.leases.run.remote(load, requests, sampling, weights))
                rollout: Rollout = ray.get(references[0])
            except RayActorError:
                if attempt == ATTEMPTS:
                    raise
            else:
                return replace(rollout, seconds_sync=seconds)
        raise AssertionError("unreachable")
