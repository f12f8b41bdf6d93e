"""Ray Train worker groups that are started once and reused: trunks of SFT and branches of RL are work
items that a warm group takes from a queue.

Starting a group costs half a minute of imports; a map of a small model has dozens of trunks and
branches of as much each. The same training functions run at any number of workers. When a worker
dies, Ray Train restarts its group, and the item that it was at is handed to the group again; the
training function resumes from its own state on storage.
"""

from __future__ import annotations

import importlib
import math
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from rlheals_ray import placement
from rlheals_ray.need import Need
from rlheals_ray.work_queue import Restart, Work, WorkQueue

MAX_IDLE_RESTARTS = 2
"""How often a group may be restarted without asking for work in between: workers that cannot even start must
not try for ever. Restarts in the midst of work are bounded for each item (see work_queue.py)."""

REPORT_SECONDS = 0.5
"""How often a group tells its progress at most."""

Report = Callable[[Mapping[str, Any]], None]
"""How a training function tells its progress; rows reach `WorkQueue.follow`."""


class WorkFailed(RuntimeError):
    """A work item failed; the message holds the worker's traceback."""


class Hopeless(RuntimeError):
    """Raised by a training function, on every rank alike, where doing the item again would not help."""


@dataclass(frozen=True)
class Training:
    """A handle on the study's queue and worker groups that can be sent to any process."""

    queue: ray.actor.ActorHandle
    groups: tuple[ray.ObjectRef, ...]
    names: tuple[str, ...]
    """Of the groups, as the queue knows them."""

    @classmethod
    def start(
        cls,
        *,
        groups: int,
        workers: int,
        need: Need,
        threads: int,
        storage: str,
        name: str,
    ) -> Training:
        """Start `groups` Ray Train runs of `workers` workers each, in the background; every worker reserves `need`.

        How a model is spread over a group belongs to the work, not to the group: the same workers do
        items of every sharding. With GPUs they speak NCCL for tensors on them, beside gloo for the others
        (untested: no GPU was at hand).
        """
        stays = placement.here()
        options = {"num_cpus": 0, "max_concurrency": 1000, "scheduling_strategy": stays}
        queue = ray.remote(WorkQueue).options(**options).remote()
        names = tuple(f"{name}-{index}" for index in range(groups))
        run = _run_group.options(scheduling_strategy=stays)
        runs = tuple(run.remote(queue, group, workers, need, threads, storage) for group in names)
        return cls(queue, runs, names)

    def run(self, work: Work) -> Iterator[Mapping[str, Any]]:
        """Have one item done: yields its progress rows, returns at its end, raises WorkFailed."""
        ray.get(self.queue.submit.remote(work))
        seen = 0
        while True:
            rows, finished, error = self._news(work.key, seen)
            yield from rows
            seen += len(rows)
            if finished:
                if error is not None:
                    raise WorkFailed(error)
                return

    def _news(self, key: str, seen: int) -> tuple[list[Mapping[str, Any]], bool, str | None]:
        news, left = self.queue.follow.remote(key, seen), list(self.groups)
        while news not in (ended := ray.wait([news, *left], num_returns=1)[0]):
            # A group that ended does no more: the others have its item. Where none is left, why they ended.
            left = [group for group in left if group not in ended]
            if not left:
                ray.get(ended)
        result: tuple[list[Mapping[str, Any]], bool, str | None] = ray.get(news)
        return result

    def restarts(self) -> list[Restart]:
        """Every worker group lost so far in the midst of an item that was begun again: when, which item, why."""
        restarts: list[Restart] = ray.get(self.queue.restarts.remote())
        return restarts

    def host(self, number: int) -> ray.ObjectRef:
        """Resolves to the node of the worker group that team `number` of generators serves; see WorkQueue.host."""
        reference: ray.ObjectRef = self.queue.host.remote(self.names[number % len(self.names)])
        return reference

    def has_ended(self) -> bool:
        """Whether the queue is closed or gone: the study ends, and what fails now fails for that."""
        if not ray.is_initialized():
            return True
        try:
            return bool(ray.get(self.queue.is_closed.remote(), timeout=10))
        except RayError:
            return True

    def close(self) -> None:
        """End the groups once they are idle."""
        ray.get(self.queue.close.remote(), timeout=10)


@ray.remote(num_cpus=0)
def _run_group(
    queue: ray.actor.ActorHandle,
    name: str,
    workers: int,
    need: Need,
    threads: int,
    storage: str,
) -> None:
    """The driver of a worker group: a Ray Train run, begun again while it gets on."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    while True:
        before = ray.get(queue.taken.remote(name))
        try:
            # TorchTrainer.fit blocks until the workers return, hence a task of its own.
            TorchTrainer(
                _work_until_closed,
                train_loop_config={"queue": queue, "group": name, "threads": threads},
                torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if need.gpus else "gloo"),
                scaling_config=ScalingConfig(
                    num_workers=workers,
                    use_gpu=need.gpus > 0,
                    resources_per_worker=need.bundle,
                    label_selector=dict(need.labels) or None,
                ),
                run_config=RunConfig(
                    name=name,
                    storage_path=storage,
                    failure_config=FailureConfig(max_failures=MAX_IDLE_RESTARTS),
                ),
            ).fit()
            return
        except TrainingFailedError:
            # Ray Train counts failures over the whole life of a run, the weeks of a study included.
            if ray.get(queue.taken.remote(name)) == before:
                ray.get(queue.lose.remote(name, traceback.format_exc()))
                raise


class _Progress:
    """Rows on their way to the queue: updates of some milliseconds are told of several at a time."""

    def __init__(self, queue: ray.actor.ActorHandle, group: str) -> None:
        self._queue, self._group = queue, group
        self._rows: list[dict[str, Any]] = []
        self._sent = -math.inf
        self._underway: ray.ObjectRef | None = None

    def add(self, row: Mapping[str, Any]) -> None:
        self._rows.append(dict(row))
        if time.monotonic() - self._sent >= REPORT_SECONDS:
            self._send()

    def arrive(self) -> None:
        """Returns when the queue has every row."""
        self._send()
        self._wait()

    def _send(self) -> None:
        self._wait()  # one message at a time is under way, so that rows stay in their order
        if self._rows:
            self._underway = self._queue.report.remote(self._group, self._rows)
        self._rows, self._sent = [], time.monotonic()

    def _wait(self) -> None:
        if self._underway is not None:
            ray.get(self._underway)
        self._underway = None


def _work_until_closed(config: Mapping[str, Any]) -> None:
    """The training loop of every worker: rank 0 takes items, all ranks do them together."""
    import ray.train
    import torch
    from ray.train.collective import broadcast_from_rank_zero

    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    queue, group = config["queue"], config["group"]
    rank, workers = context.get_world_rank(), context.get_world_size()

    progress = _Progress(queue, group)

    def report(row: Mapping[str, Any]) -> None:
        if rank == 0:
            progress.add(row)

    incarnation, node = uuid.uuid4().hex, ray.get_runtime_context().get_node_id()
    while True:
        work = ray.get(queue.take.remote(group, incarnation, node)) if rank == 0 else None
        if workers > 1:
            work = broadcast_from_rank_zero(work)
        if work is None:
            return
        module, _, function = work.function.partition(":")
        try:
            getattr(importlib.import_module(module), function)(**work.arguments, report=report)
        except Exception as error:
            progress.arrive()
            cause = traceback.format_exc()
            if workers > 1:
                # Ranks may have left a collective at different places, or lost a peer that was killed:
                # the group is started afresh, and the item done again unless that is hopeless.
                ray.get(queue.note.remote(group, rank, cause))
                if isinstance(error, Hopeless) and rank == 0:
                    ray.get(queue.finish.remote(group, cause))
                raise
            ray.get(queue.finish.remote(group, cause))
        else:
            progress.arrive()
            if rank == 0:
                ray.get(queue.finish.remote(group))
