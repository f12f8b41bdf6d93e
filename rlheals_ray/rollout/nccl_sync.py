"""Weights from a learner's GPU to its generators' GPUs by vLLM's own NCCL transfer engine. UNTESTED: needs GPUs.

Written after the sources of vLLM 0.32 (vllm/distributed/weight_transfer). What does run without a GPU is
tested: who asks whom, the deadlines, and the way back to the object store; not one byte sent by NCCL.

The generators pull. Which of them will serve a load is the pool's decision, made after it is published,
and one that is replaced must get the weights again; so each asks at the learner's desk, a Ray actor,
since a learner that waits for its episodes answers no calls. A thread beside the learner opens a
communicator of two for every request and sends. Until its next `publish` the learner keeps what it sends.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError

from rlheals_ray.rollout.engine import Engine
from rlheals_ray.rollout.load import ObjectStoreLoad
from rlheals_ray.rollout.verification import Expected
from rlheals_ray.rollout.weight_sync import Named, ObjectStoreSync

log = logging.getLogger(__name__)

SETUP_SHARE = 1 / 3
"""Of rollout.sync_seconds, for setting the transfer up: what is left must do for the object store."""


class TransferFailed(RuntimeError):
    """NCCL could not be set up between a learner and a generator; the message says why."""


class Desk:
    """An actor's class: generators leave requests, the learner's thread takes them up and answers."""

    def __init__(self) -> None:
        self._requests: asyncio.Queue[tuple[int, int, str]] = asyncio.Queue()
        self._answers: dict[int, asyncio.Queue[Any]] = {}

    async def ask(self, version: int, way: str) -> int:
        """Leave a request for the weights of `version` by `way` (nccl, or object_store after `way: why not`)."""
        ticket = len(self._answers)
        self._answers[ticket] = asyncio.Queue()
        await self._requests.put((ticket, version, way))
        return ticket

    async def answered(self, ticket: int) -> Any:
        return await self._answers[ticket].get()

    async def request(self) -> tuple[int, int, str]:
        return await self._requests.get()

    async def answer(self, ticket: int, answer: Any) -> None:
        await self._answers[ticket].put(answer)


@dataclass(frozen=True)
class NcclLoad:
    """The weights of one version, to be asked for at the learner's desk."""

    desk: ray.actor.ActorHandle
    version: int
    seconds: float
    may_fall_back: bool
    expected: Expected | None = None

    def into(self, engine: Engine, index: int) -> None:
        """Raises TransferFailed, or loads through the object store where that is allowed; WrongWeights."""
        try:
            self._receive(engine)
        except TransferFailed as error:
            if not self.may_fall_back:
                raise
            load = self._wait(self._ask(f"object_store: {error}"), self.seconds)
            if isinstance(load, Exception):
                raise load from None
            load.into(engine, index)
        else:
            if self.expected is not None:
                self.expected.check(engine)

    def _receive(self, engine: Engine) -> None:
        deadline = self.seconds * SETUP_SHARE
        if not getattr(engine, "can_receive", False):
            raise TransferFailed(f"the generator's {engine.name} engine has no GPU to receive with")
        ticket = self._ask("nccl")
        setup = self._wait(ticket, deadline)
        if isinstance(setup, Exception):
            raise TransferFailed(f"the learner could not send: {setup}")
        # The rendezvous has a deadline of its own, five minutes, that vLLM does not let us choose.
        executor = ThreadPoolExecutor(1)
        try:
            executor.submit(engine.connect, setup).result(deadline)  # type: ignore[attr-defined]
        except FutureTimeoutError:
            raise TransferFailed(f"no NCCL connection within {deadline:g} s") from None
        except Exception as error:
            raise TransferFailed(f"no NCCL connection: {error}") from error
        finally:
            executor.shutdown(wait=False)
        engine.receive(lambda: self._wait(ticket, deadline))  # type: ignore[attr-defined]

    def _ask(self, way: str) -> int:
        ticket: int = ray.get(self.desk.ask.remote(self.version, way), timeout=self.seconds)
        return ticket

    def _wait(self, ticket: int, seconds: float) -> Any:
        try:
            return ray.get(self.desk.answered.remote(ticket), timeout=seconds)
        except GetTimeoutError:
            raise TransferFailed(
                f"the learner did not answer within {seconds:g} s (of rollout.sync_seconds={self.seconds:g})"
            ) from None


class NcclSync:
    """From GPU to GPU, and where `may_fall_back` through the object store once NCCL has failed."""

    def __init__(self, fallback: ObjectStoreSync, seconds: float, *, may_fall_back: bool) -> None:
        self._fallback, self._seconds, self._may_fall_back = fallback, seconds, may_fall_back
        self._desk: ray.actor.ActorHandle = None
        self._version = 0
        self._held: list[tuple[str, torch.Tensor]] = []
        self._expected: Expected | None = None
        self._lock = threading.Lock()
        self._through_store: ObjectStoreLoad | None = None
        self._has_failed = False

    @property
    def name(self) -> str:
        """The way that the next load goes."""
        return self._fallback.name if self._has_failed else "nccl"

    def publish(self, named: Named, expected: Expected | None = None) -> NcclLoad | ObjectStoreLoad:
        if self._has_failed:
            self._held, self._through_store = [], None
            return self._fallback.publish(named, expected)
        if self._desk is None:
            self._desk = ray.remote(Desk).options(num_cpus=0, max_concurrency=1000).remote()
            threading.Thread(target=_serve, args=(self._desk, weakref.ref(self)), daemon=True).start()
            # The worker outlives the branch, and must not keep its weights.
            weakref.finalize(self, _close, self._desk)
        self._version += 1
        self._held, self._expected, self._through_store = list(named), expected, None
        return NcclLoad(self._desk, self._version, self._seconds, self._may_fall_back, expected)

    def serve(self, ticket: int, version: int, way: str) -> None:
        """Answer one request; in a thread of its own."""
        try:
            if version != self._version:
                raise ValueError(f"version {version} is gone: the learner is at {self._version}")
            if way == "nccl":
                _send(self._held, _Client(self._desk, ticket))
            else:
                ray.get(self._desk.answer.remote(ticket, self._put(way)))
        except Exception as error:  # it belongs to the generator that asked; this thread has no other caller
            ray.get(self._desk.answer.remote(ticket, error))

    def _put(self, why: str) -> ObjectStoreLoad:
        with self._lock:
            if not self._has_failed:
                cause = why.removeprefix("object_store: ")
                log.warning("weights go through the object store from now on, not by NCCL: %s", cause)
            self._has_failed = True
            if self._through_store is None:
                self._through_store = self._fallback.publish(self._held, self._expected)
            return self._through_store


def _serve(desk: ray.actor.ActorHandle, sync: weakref.ref[NcclSync]) -> None:
    """Take up requests for as long as there is a learner to answer them."""
    with suppress(RayError):
        while True:
            request = ray.get(desk.request.remote())
            if (learner := sync()) is None:
                return
            # One thread each: whoever hangs with one generator can still serve the others.
            threading.Thread(target=learner.serve, args=request, daemon=True).start()
            del learner


def _close(desk: ray.actor.ActorHandle) -> None:
    with suppress(Exception):  # Ray itself may be gone
        ray.kill(desk)


@dataclass
class _Client:
    """vLLM's VLLMWeightSyncClient, whose calls become answers to the generator that asked."""

    desk: ray.actor.ActorHandle
    ticket: int

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        ray.get(self.desk.answer.remote(self.ticket, init_info))

    def start_weight_update(self) -> None:
        """The generator's own business."""

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        ray.get(self.desk.answer.remote(self.ticket, update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """The generator's own business."""


def _send(held: list[tuple[str, torch.Tensor]], client: _Client) -> None:
    """Open a communicator of two and send everything; the learner's side. UNTESTED."""
    if not torch.cuda.is_available():
        raise RuntimeError("the learner has no GPU")
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
    from vllm.distributed.weight_transfer.nccl_engine import (
        NCCLTrainerInitInfo,
        NCCLTrainerWeightTransferEngine,
    )

    class Held(WeightSource):
        def metadata(self) -> list[Any]:
            return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in held]

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in held:
                yield name, tensor.detach().cuda()

    info = NCCLTrainerInitInfo(
        rank=0, master_address=ray.util.get_node_ip_address(), master_port=_free_port(), world_size=2
    )
    engine = NCCLTrainerWeightTransferEngine.trainer_init(info, client=client, source=Held())
    try:
        engine.send_weights()
    finally:
        engine.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
