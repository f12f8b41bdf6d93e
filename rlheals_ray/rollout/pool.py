"""The pool: warm generators, each lent to one consumer at a time.

The driver owns the engines. A consumer (a branch of RL, a probe) holds an exclusive lease; with one
engine leases queue, and since a consumer never holds two, they cannot deadlock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from rlheals_ray.rollout.generator import GeneratorSettings, start_generator


class Leases:
    """An asynchronous Ray actor that lends generators, first come first served."""

    def __init__(self, generators: list[ray.actor.ActorHandle]) -> None:
        self._free: asyncio.Queue[ray.actor.ActorHandle] = asyncio.Queue()
        for generator in generators:
            self._free.put_nowait(generator)

    async def acquire(self) -> ray.actor.ActorHandle:
        """Wait for a free generator."""
        return await self._free.get()

    async def release(self, generator: ray.actor.ActorHandle) -> None:
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

    def wait_ready(self) -> str:
        """Wait until every engine is up; returns the engine's name."""
        names: list[str] = ray.get([generator.ready.remote() for generator in self.generators])
        return names[0]

    @contextmanager
    def lease(self) -> Iterator[ray.actor.ActorHandle]:
        """Hold one generator exclusively for the length of the block."""
        generator = ray.get(self.leases.acquire.remote())
        try:
            yield generator
        finally:
            ray.get(self.leases.release.remote(generator))
