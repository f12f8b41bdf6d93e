"""One generator as the pool sees it: started, watched by deadlines, killed when it hangs, restarted, replaced.

Lives in the pool's own actor, beside all others; light, as everything there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from rlheals_ray.config import RolloutSettings
from rlheals_ray.placement import has_process
from rlheals_ray.rollout.episode import Sampling, Weights, WrongWeights
from rlheals_ray.rollout.failures import Failures, PoolFailed
from rlheals_ray.rollout.generator import Ready, Receipt
from rlheals_ray.rollout.load import Load
from rlheals_ray.rollout.progress import Progress

START_ATTEMPTS = 3
"""Starts in a row that may fail before the pool gives up: a fourth would hardly fare better. Waiting for a node that
has room is no start."""

HOST_SECONDS = 120.0
"""How long the first start of an engine waits to be told where its learner is."""

_DEAD = (RayActorError, NodeDiedError, OutOfMemoryError, WorkerCrashedError)


class Lost(Exception):
    """The generator is lost to the lease; its cause is recorded, and it is being brought up again."""


@dataclass
class WatchedGenerator:
    """A generator in the pool's hands."""

    number: int
    start: Callable[[str | None], ray.actor.ActorHandle]
    """Starts the actor beside a node, or anywhere."""
    settings: RolloutSettings
    failures: Failures
    host: Callable[[], Awaitable[str | None]] | None = None
    """Tells the node of the learner that it is to serve; None where any node will do."""
    handle: ray.actor.ActorHandle = None
    engine: str = ""
    process: str = ""
    """The process that was last seen; a restart shows by another."""
    node: str = ""
    """The node that it was last seen on."""
    is_up: asyncio.Event = field(default_factory=asyncio.Event)
    was_lost: bool = False
    """Not up because it was lost; False while it starts for the first time."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def begin(self) -> None:
        """Start it; `up` waits for it."""
        self._spawn(self._bring_up(first=True))

    async def up(self) -> None:
        """Wait until it answers; raises PoolFailed when the pool has given up."""
        self.failures.check()
        waits = [asyncio.ensure_future(self.is_up.wait()), asyncio.ensure_future(self.failures.fatal.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        self.failures.check()

    async def load(self, load: Load, weights: Weights, index: int) -> float:
        """Have it hold `weights`; returns the seconds that took. Raises Lost, or what `load.into` raised."""
        start = time.perf_counter()
        try:
            process = await asyncio.wait_for(
                self.handle.load.remote(load, weights, index), self.settings.sync_seconds
            )
        except RayTaskError:
            raise
        except TimeoutError:
            raise self._hung(
                f"did not load weights within rollout.sync_seconds={self.settings.sync_seconds:g} s"
            ) from None
        except _DEAD as error:
            raise self._died(error) from None
        if process != self.process:
            # It died while nobody watched, and Ray had restarted it by now.
            self._record(f"was gone, {process} in its place")
            self.process = process
        return time.perf_counter() - start

    async def run(
        self, requests: ray.ObjectRef, places: list[int], sampling: Sampling, weights: Weights
    ) -> AsyncIterator[tuple[ray.ObjectRef, Receipt]]:
        """Yield blocks of finished episodes, unopened, with their receipts. Raises Lost, or what the run raised."""
        stream = self.handle.run.remote(requests, places, sampling, weights)

        async def next_block() -> tuple[ray.ObjectRef, Receipt] | None:
            if (block := await anext(stream, None)) is None:
                return None
            if (receipt := await anext(stream, None)) is None:
                await block  # the stream broke off: its last reference raises why
                raise RuntimeError("a block of episodes came without its receipt")
            return block, await receipt

        try:
            while (item := await self._watched(next_block())) is not None:
                yield item
        except WrongWeights as error:
            # It was restarted between the load and the run, or never took the weights: load again.
            self._record(f"held other weights than it was to have loaded: {_line(error)}")
            raise Lost from None
        except RayTaskError:
            raise
        except _DEAD as error:
            raise self._died(error) from None

    async def progress(self, seconds: float) -> Progress:
        """What it has done; without counters when it does not answer in `seconds`."""
        if self.handle is None:
            return Progress()
        with suppress(TimeoutError, *_DEAD):
            progress: Progress = await asyncio.wait_for(self.handle.progress.remote(), seconds)
            return progress
        return Progress(self.process)

    async def _watched(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of `work`, or Lost when the generator stops making progress meanwhile."""
        limit = self.settings.stall_seconds
        interval = min(limit / 4, 5.0)
        task = asyncio.ensure_future(work)
        last, since = Progress(), time.monotonic()
        try:
            while not (await asyncio.wait({task}, timeout=interval))[0]:
                seen = await self.progress(interval)
                if seen.submitted and seen != last:
                    last, since = seen, time.monotonic()
                elif time.monotonic() - since > limit:
                    raise self._hung(f"made no progress for rollout.stall_seconds={limit:g} s ({last})")
            return task.result()
        finally:
            task.cancel()

    def _hung(self, cause: str) -> Exception:
        ray.kill(self.handle, no_restart=False)
        return self._lose(cause)

    def _died(self, error: Exception) -> Exception:
        return self._lose(f"died: {_line(error)}")

    def _lose(self, cause: str) -> Exception:
        """Note the loss and bring the generator up again in the background; returns what to raise."""
        self.is_up.clear()
        self.was_lost = True
        self._record(cause)
        self._spawn(self._bring_up(first=False))
        return Lost()

    def _record(self, cause: str) -> None:
        self.failures.add(self.number, f"process {self.process} {cause}")

    async def _bring_up(self, *, first: bool) -> None:
        try:
            await self._start_or_restart(first)
        except Exception as error:  # a background task: unheard, it would leave everyone waiting
            self.failures.give_up(PoolFailed(f"generator {self.number} cannot start: {_line(error)}"))

    async def _start_or_restart(self, first: bool) -> None:
        """Wait until a process other than the last one answers; start another actor when none does in time."""
        if first:
            self.handle = self.start(await self._beside())
        for _ in range(START_ATTEMPTS):
            try:
                ready = await self._answer_in_time()
            except TimeoutError:
                cause = f"did not start within rollout.start_seconds={self.settings.start_seconds:g} s"
            except RayActorError as error:
                if first and error.actor_init_failed:
                    self.failures.give_up(PoolFailed(f"generator {self.number} cannot start: {error}"))
                    return
                cause = f"did not start: {_line(error)}"
            else:
                self.engine, self.process, self.node = ready.engine, ready.process, ready.node
                self.was_lost = False
                self.is_up.set()
                return
            self.failures.add(self.number, cause)
            ray.kill(self.handle)
            self.handle = self.start(await self._beside())
        self.failures.give_up(
            PoolFailed(
                f"{self.failures.causes()}generator {self.number} failed to start {START_ATTEMPTS} times"
            )
        )

    async def _beside(self) -> str | None:
        """The node to start on, unless its learner keeps it waiting: an engine anywhere is better than none."""
        if self.host is None:
            return None
        try:
            return await asyncio.wait_for(self.host(), HOST_SECONDS)
        except (TimeoutError, *_DEAD):
            return None

    async def _answer_in_time(self) -> Ready:
        """Its answer; raises TimeoutError when it has had a process for `start_seconds` without one.

        However long it waits for a node with room: the cluster may bring one, and its learner's work waits as well.
        """
        had, interval = 0.0, min(self.settings.start_seconds / 4, 2.0)
        answer = asyncio.ensure_future(self._answer())
        try:
            while not (await asyncio.wait({answer}, timeout=interval))[0]:
                had += interval if has_process(self.handle) else 0.0
                if had >= self.settings.start_seconds:
                    raise TimeoutError
            return answer.result()
        finally:
            answer.cancel()

    async def _answer(self) -> Ready:
        while True:
            try:
                ready: Ready = await self.handle.ready.remote()
            except ActorUnavailableError:
                pass  # Ray is restarting it
            else:
                if ready.process != self.process:
                    return ready
            await asyncio.sleep(0.2)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
