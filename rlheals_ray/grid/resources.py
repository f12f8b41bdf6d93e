"""What a study asks of a cluster, and whether that fits: found out before anything starts.

A study that does not fit would not fail: Ray would wait for ever for CPUs that nobody frees, and Linux would kill
whoever asks for memory last.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from rlheals_ray.config import InputError, ProcessSettings, ResourceSettings, Study
from rlheals_ray.connection import SLOTS_PER_CORE, local_slots
from rlheals_ray.grid.plan_memory import GIB, engine_bytes, held_back_bytes, worker_bytes
from rlheals_ray.lineage import branches
from rlheals_ray.need import Need, Offer
from rlheals_ray.storage import is_uri

WAIT = ", or set resources.nodes_seconds=1800 where an autoscaler brings nodes"

RAY_SHARE = 0.6
"""Of a machine's memory, about what Ray lets processes reserve: what is free at its start, without its object store."""

FIXED_GIB = 2.0
"""Resident memory of all the rest: driver, Ray, tasks."""


@dataclass(frozen=True)
class Resources:
    """What a study asks for at once."""

    generators: int
    groups: int
    workers: int
    """Workers of one group."""
    needs_gpus: bool = False
    """Whether the study names a transport that only GPUs have."""
    generator_gib: float = 1.6
    worker_gib: float = 1.2
    shared_gib: float = 0.0
    """What a group holds once for all its workers: weights on their way to the engines, a state that is gathered."""
    each: ResourceSettings = field(default_factory=ResourceSettings)
    """What one worker, one generator and one task ask for."""
    remedies: tuple[tuple[str, float, float], ...] = ()
    """Settings that ask for less memory; how much in all, and how much in the largest process."""

    @property
    def cpus(self) -> float:
        """Of all generators, all training workers, and one task at a time (spectra, losses, edits)."""
        learners = self.groups * self.workers * self.each.learner.cpus
        return self.generators * self.each.generator.cpus + learners + self.each.tasks.cpus

    @property
    def named_gpus(self) -> float:
        """Of those processes for which the study names a number."""
        learners = self.groups * self.workers * (self.each.learner.gpus or 0.0)
        return self.generators * (self.each.generator.gpus or 0.0) + learners + self.each.tasks.gpus

    @property
    def named_memory_gib(self) -> float:
        """What all processes together reserve."""
        learners = self.groups * self.workers * (self.each.learner.memory_gib or 0.0)
        generators = self.generators * (self.each.generator.memory_gib or 0.0)
        return learners + generators + (self.each.tasks.memory_gib or 0.0)

    @property
    def wants_gpus(self) -> int:
        """Processes that take a GPU each if there is one for all of them."""
        learners = self.groups * self.workers if self.each.learner.gpus is None else 0
        return learners + (self.generators if self.each.generator.gpus is None else 0)

    def needs(self, gpus: float) -> dict[str, Need]:
        """What a learner, a generator and a task reserve, on a cluster with this many GPUs."""
        automatic = float(gpus - self.named_gpus >= self.wants_gpus > 0)
        settings = {"learner": self.each.learner, "generator": self.each.generator, "tasks": self.each.tasks}
        return {kind: _need(each, automatic) for kind, each in settings.items()}

    @property
    def memory_gib(self) -> float:
        groups = self.groups * (self.worker_gib * self.workers + self.shared_gib)
        return FIXED_GIB + self.generator_gib * self.generators + groups

    @property
    def largest_gib(self) -> float:
        """The most that one process needs, and so one node."""
        return max(self.generator_gib, self.worker_gib + self.shared_gib)

    def explain(self) -> str:
        """The sum, spelled out."""
        named = (
            (f"{self.generators} generators", self.each.generator.cpus),
            (f"{self.groups} worker groups x {self.workers} workers", self.each.learner.cpus),
        )
        parts = [what if cpus == 1 else f"{what} x {cpus:g} CPUs" for what, cpus in named]
        gpus = f", {self.named_gpus:g} GPUs" if self.named_gpus else ""
        return (
            f"{' + '.join(parts)} + {self.each.tasks.cpus:g} for tasks = {self.cpus:g} CPUs{gpus} and about "
            f"{self.memory_gib:.1f} GiB"
        )

    def memory(self) -> str:
        """The memory, process by process."""
        return (
            f"{self.generator_gib:.1f} GiB a generator, {self.worker_gib:.1f} GiB a worker, {self.shared_gib:.1f} GiB "
            f"more a worker group and {FIXED_GIB:.1f} GiB for the rest"
        )


def _need(asked: ProcessSettings, automatic_gpus: float) -> Need:
    gpus = automatic_gpus if asked.gpus is None else asked.gpus
    memory = 0 if asked.memory_gib is None else round(asked.memory_gib * GIB)
    return Need(asked.cpus, gpus, memory, asked.labels)


def resources_of(study: Study) -> Resources:
    """One worker group per team of generators: as many branches learn side by side as engines can feed.

    Raises InputError where the size of base.model cannot be read.
    """
    asked = _asked(study)
    remedies: dict[str, tuple[str, float, float]] = {}
    for kind, changes, what in _alternatives(study):
        other = _asked(_changed(study, changes))
        if other.memory_gib < asked.memory_gib or other.largest_gib < asked.largest_gib:
            remedies.setdefault(kind, (what, other.memory_gib, other.largest_gib))
    return replace(asked, remedies=tuple(remedies.values()))


def _asked(study: Study) -> Resources:
    trials = len(study.seeds) * len(study.sft.recipes) * len(study.rl.from_steps)
    teams = study.rollout.generators // study.rollout.generators_per_branch
    return Resources(
        generators=study.rollout.generators,
        groups=max(1, min(teams, trials)),
        workers=max(study.sft.workers, study.rl.workers),
        needs_gpus=study.rollout.weight_sync == "nccl",
        generator_gib=engine_bytes(study) / GIB,
        worker_gib=worker_bytes(study) / GIB,
        shared_gib=held_back_bytes(study, learns=any(branches(study))) / GIB,
        each=study.resources,
    )


def _alternatives(study: Study) -> Iterator[tuple[str, dict[str, dict[str, object]], str]]:
    """Other settings of the same study that may ask for less: (kind, changes, how they are written)."""
    least = study.rollout.generators_per_branch
    if study.rollout.generators > least:
        yield "generators", {"rollout": {"generators": least}}, f"rollout.generators={least}"
    if least > 1:
        one: dict[str, object] = {"generators": 1, "generators_per_branch": 1}
        yield "team", {"rollout": one}, "rollout.generators=1 rollout.generators_per_branch=1"
    mode = study.sft.sharding
    sharded = mode if mode in ("fsdp2", "zero3") else "fsdp2"
    present = max(study.sft.workers, study.rl.workers)
    for workers in (2, 4, 8, 16):
        divides = study.sft.batch_size % workers == study.rl.episodes % workers == 0
        if divides and workers > (present if sharded == mode else 1):
            changes: dict[str, dict[str, object]] = {
                "sft": {"sharding": sharded, "workers": workers},
                "rl": {"workers": workers},
            }
            yield "sharding", changes, f"sft.sharding={sharded} sft.workers={workers} rl.workers={workers}"


def _changed(study: Study, changes: dict[str, dict[str, object]]) -> Study:
    parts = {name: getattr(study, name).model_copy(update=values) for name, values in changes.items()}
    return study.model_copy(update=parts)


def local_gpus() -> int:
    """NVIDIA GPUs of this machine, as its driver lists them; without torch."""
    try:
        return len(list(Path("/proc/driver/nvidia/gpus").iterdir()))
    except OSError:
        return 0


def check_local(needed: Resources) -> None:
    """Raises InputError when this machine cannot hold the study."""
    for kind, need in needed.needs(0).items():
        if need.labels:
            raise InputError(
                f"resources.{kind}.labels (got {dict(need.labels)}) are those of a cluster's nodes, but the study runs "
                "on this machine alone; leave them out or name a cluster with --address."
            )
    _check_gpus(needed, local_gpus(), "this machine")
    memory = psutil.virtual_memory().total / 2**30
    if needed.cpus > local_slots():
        raise InputError(
            f"rollout.generators, sft.workers and rl.workers ask for {needed.explain()}, but this machine of "
            f"{os.cpu_count()} cores offers {local_slots()} slots ({SLOTS_PER_CORE} per core); lower them or run on "
            "a cluster with --address."
        )
    named = needed.named_memory_gib
    if named > RAY_SHARE * memory:
        raise InputError(
            f"resources ask for {named:g} GiB by memory_gib, and Ray reserves at most {RAY_SHARE * memory:.0f} of the "
            f"{memory:.1f} GiB of this machine; lower them, leave them out, or run on a cluster with --address."
        )
    _check_memory(needed, memory, [memory], "this machine", local_gpus())


def check_work(study: Study, nodes: int) -> None:
    """Raises InputError where a study at a URI is worked on in a directory that some node does not see."""
    if is_uri(study.storage) and study.work is None and nodes > 1:
        raise InputError(
            f"work (got null): storage {study.storage!r} is a URI, and the study is worked on in a directory that all "
            f"{nodes} nodes of the cluster must see; give one with work=DIR, on a shared filesystem."
        )


def check_cluster(
    needed: Resources,
    cpus: float,
    memory_bytes: float,
    gpus: float = 0,
    nodes: Sequence[float] = (),
    offers: Sequence[Offer] = (),
) -> None:
    """Raises InputError when the connected cluster cannot hold the study.

    nodes: bytes of memory of each node, where they are known. offers: the nodes themselves, where they are known.
    """
    _check_gpus(needed, gpus, "the cluster")
    for kind, need in needed.needs(gpus).items():
        if offers and not any(need.fits(offer) for offer in offers):
            raise InputError(
                f"resources.{kind} (asks for {need}): no node of the cluster has that; ask for less, give a node the "
                f"labels (`ray start --labels`){WAIT}."
            )
    if needed.cpus > cpus:
        raise InputError(
            f"rollout.generators, sft.workers and rl.workers ask for {needed.explain()}, but the cluster has "
            f"{cpus:g} CPUs; lower them or add nodes{WAIT}."
        )
    if memory_bytes:
        sizes = [size / GIB for size in nodes] or [memory_bytes / GIB]
        _check_memory(needed, memory_bytes / GIB, sizes, "the cluster", gpus)


def _check_memory(needed: Resources, memory: float, nodes: Sequence[float], where: str, gpus: float) -> None:
    if gpus >= needed.generators + needed.groups * needed.workers:
        return  # weights, optimiser and cache are in the GPUs, whose memory Ray does not tell
    if needed.memory_gib > memory:
        short = f"{where} has {memory:.1f} GiB of memory"
        remedy = f"{where} with {needed.memory_gib:.0f} GiB" if where == "this machine" else "more nodes"
    elif needed.largest_gib > max(nodes):
        short = (
            f"its largest process needs {needed.largest_gib:.1f} GiB and the largest node of {where} has "
            f"{max(nodes):.1f}"
        )
        remedy = f"a node with {needed.largest_gib:.0f} GiB"
    else:
        return
    remedy = remedy.replace("this machine", "a machine")
    fitting = [what for what, total, one in needed.remedies if total <= memory and one <= max(nodes)]
    less = [
        f"{what} asks for {total:.1f} GiB, {one:.1f} of them in one process"
        for what, total, one in needed.remedies
    ]
    others = "".join(f"{what}, or " for what in fitting)
    smaller = f" ({'; '.join(less)})" if less and not fitting else ""
    raise InputError(
        f"base.model, rollout.generators, sft.sharding, sft.workers and rl.workers ask for {needed.explain()} "
        f"({needed.memory()}), but {short}; use {others}{remedy}{smaller}, or a GPU for each generator and worker."
    )


def _check_gpus(needed: Resources, gpus: float, where: str) -> None:
    if needed.needs_gpus and gpus < 1:
        raise InputError(
            f"rollout.weight_sync (got 'nccl') sends weights from GPU to GPU, but {where} has none; use auto or "
            "object_store."
        )
    if needed.named_gpus > gpus:
        raise InputError(
            f"resources asks for {needed.named_gpus:g} GPUs (learner {needed.each.learner.gpus or 0:g} each, generator "
            f"{needed.each.generator.gpus or 0:g} each, tasks {needed.each.tasks.gpus:g}), but {where} has {gpus:g}; "
            f"lower them, share GPUs by fractions{WAIT if where == 'the cluster' else ''}."
        )
