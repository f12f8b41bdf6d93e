"""The pool's own actor: lends teams of generators, first come first served, and does the work of a lease.

The lease is held here and not by the consumer, so a consumer that dies cannot keep a team: the run
under way ends, and the team is free. Teams are fixed when the pool starts, so nobody ever waits for
one generator while holding another, and leases cannot deadlock. Episodes pass through as references;
nothing of them is opened here. Light: this process must not import torch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import ray

from rlheals_ray.need import Need
from rlheals_ray.rollout.episode import Sampling, Weights
from rlheals_ray.rollout.failures import Failure, Failures
from rlheals_ray.rollout.generator import GeneratorSettings, start_generator
from rlheals_ray.rollout.lending import Lending
from rlheals_ray.rollout.load import Load
from rlheals_ray.rollout.progress import Progress
from rlheals_ray.rollout.shares import Shares
from rlheals_ray.rollout.watched import Lost, WatchedGenerator
from rlheals_ray.training import Training


@dataclass
class Run:
    """What a lease made: references to blocks of episodes, and where the time went (see Rollout)."""

    blocks: list[ray.ObjectRef]
    engine: str
    seconds: float
    seconds_engine: float
    seconds_judge: float
    seconds_sync: float


@dataclass
class _Lease:
    """One load-and-run under way."""

    load: Load
    requests: ray.ObjectRef
    sampling: Sampling
    weights: Weights
    shares: Shares
    blocks: list[ray.ObjectRef] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced, whenever the shares may hold something for a member that waits."""
    has_failed: bool = False
    began: float | None = None
    seconds_engine: float = 0.0
    seconds_judge: float = 0.0
    seconds_sync: float = 0.0

    @property
    def is_over(self) -> bool:
        return self.has_failed or self.shares.done

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def serve(self, member: int, generator: WatchedGenerator) -> None:
        """One member's part: load, run what is its share, again after a loss, until all is finished."""
        try:
            await self._serve(member, generator)
        except BaseException:
            self.has_failed = True  # the others finish what they are running, and take no more
            raise
        finally:
            self.notify()

    async def _serve(self, member: int, generator: WatchedGenerator) -> None:
        if is_lost := generator.was_lost:
            self.shares.lose(member)
        while not self.is_over:
            try:
                if not await self._until_up_or_over(generator):
                    return
                self.seconds_sync += await generator.load(self.load, self.weights, member)
                if is_lost:
                    self.shares.return_(member)
                    self.notify()
                    is_lost = False
                await self._work(member, generator)
            except Lost:
                self.shares.lose(member)
                self.notify()
                is_lost = True

    async def _until_up_or_over(self, generator: WatchedGenerator) -> bool:
        up = asyncio.ensure_future(generator.up())
        try:
            while not up.done() and not self.is_over:
                changed = asyncio.ensure_future(self.changed.wait())
                await asyncio.wait({up, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
            if up.done():
                up.result()
            return up.done()
        finally:
            up.cancel()

    async def _work(self, member: int, generator: WatchedGenerator) -> None:
        if self.began is None:
            self.began = time.perf_counter()
        while not self.is_over:
            if not (places := self.shares.take(member)):
                await self.changed.wait()
                continue
            done = Progress()
            async for block, receipt in generator.run(self.requests, places, self.sampling, self.weights):
                self.shares.finish(member, receipt.places)
                self.blocks.append(block)
                self.seconds_engine += receipt.progress.seconds_engine - done.seconds_engine
                self.seconds_judge += receipt.progress.seconds_judge - done.seconds_judge
                done = receipt.progress
            self.shares.end(member)
            self.notify()


class Leases:
    """The actor's class; see Pool."""

    def __init__(
        self, settings: GeneratorSettings, threads: int, need: Need, near: Training | None = None
    ) -> None:
        """With `near`, each team starts beside the worker group that it serves."""
        rollout = settings.rollout
        size = rollout.generators_per_branch
        self._failures = Failures(rollout.max_failures, size)

        def start(node: str | None) -> ray.actor.ActorHandle:
            return start_generator(settings, threads=threads, need=need, beside=node)

        def host(number: int) -> Callable[[], Awaitable[str | None]] | None:
            return None if near is None else lambda: near.host(number // size)

        self._generators = [
            WatchedGenerator(number, start, rollout, self._failures, host(number))
            for number in range(rollout.generators)
        ]
        teams = [self._generators[first : first + size] for first in range(0, rollout.generators, size)]
        self._lending = Lending(teams, lambda team: [generator.node for generator in team])

    async def start(self) -> None:
        """Start every generator; returns at once."""
        for generator in self._generators:
            generator.begin()

    async def ready(self) -> None:
        """Wait until every generator is up; raises PoolFailed with what kept one from starting."""
        await asyncio.gather(*(generator.up() for generator in self._generators))

    async def run(
        self,
        load: Load,
        requests: list[ray.ObjectRef],
        count: int,
        sampling: Sampling,
        weights: Weights,
        near: str | None = None,
    ) -> Run:
        """Load and run on the next free team. `requests` holds one reference, to `count` requests.

        Of several that are free, the one on node `near`.

        Raises PoolFailed, or at once what loading, the task or the engine raised.
        """
        self._failures.check()
        team = await self._lending.take(near)
        try:
            lease = _Lease(load, requests[0], sampling, weights, Shares(count, len(team)))
            parts = await asyncio.gather(
                *(lease.serve(member, generator) for member, generator in enumerate(team)),
                return_exceptions=True,
            )
            # Only now is none of the team at work any more, and the next lease may have it.
            for error in parts:
                if error is not None:
                    raise error
            self._failures.finished(team[0].number)
            size = len(team)
            return Run(
                lease.blocks,
                team[0].engine,
                0.0 if lease.began is None else time.perf_counter() - lease.began,
                lease.seconds_engine / size,
                lease.seconds_judge / size,
                lease.seconds_sync / size,
            )
        finally:
            self._lending.give_back(team)

    async def lost_episodes(self, cause: str, in_a_row: int) -> None:
        """Count episodes that were finished but lost on their way, with the node that held them: so many times to the
        one who asked for them."""
        self._failures.add_episodes(cause, in_a_row)

    async def failures(self) -> list[Failure]:
        return self._failures.all

    async def progress(self) -> list[Progress]:
        """What each generator has done; one that does not answer within a second is told by its process alone."""
        return await asyncio.gather(*(generator.progress(1.0) for generator in self._generators))
