"""What a running study holds: the Ray connection, the pool of engines, the worker groups.

Everything starts at most once and only when some stage needs it; engines and worker groups start in
the background, while earlier stages run.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import ray
from ray.exceptions import RayError

from rlheals_ray.config import Study
from rlheals_ray.connection import connect, named_cluster
from rlheals_ray.event_log import EventLog, without_secrets
from rlheals_ray.grid.nodes import await_nodes
from rlheals_ray.grid.plan_bytes import check_disk
from rlheals_ray.grid.progress import Timings
from rlheals_ray.grid.resources import Resources, check_cluster, check_local, check_work, resources_of
from rlheals_ray.grid.units import StudyUnits
from rlheals_ray.lineage import BASE
from rlheals_ray.monitoring import serve_study
from rlheals_ray.need import Need, Offer, side_by_side
from rlheals_ray.placement import is_spread
from rlheals_ray.rollout.generator import GeneratorSettings
from rlheals_ray.rollout.pool import Pool
from rlheals_ray.storage import StudyFiles, Unit
from rlheals_ray.tasks import Task, get_task
from rlheals_ray.training import Training


@dataclass
class Session:
    """A study under way."""

    study: Study
    files: StudyFiles
    address: str | None = None
    timings: Timings = field(default_factory=Timings)
    failures: dict[str, str] = field(default_factory=dict)
    """Unit name to the cause of its failure."""
    _losses_told: int = 0
    _restarts_told: int = 0

    def __post_init__(self) -> None:
        serve_study(self.study.name)

    @cached_property
    def events(self) -> EventLog:
        """Written only while the study's lock is held."""
        return EventLog(self.study.name, self.files.root)

    def started(self, unit: Unit) -> None:
        """Tell that a unit is being done: begun, or resumed from its state."""
        self.events.unit(unit.name, "resumed" if self.files.state(unit).exists() else "started")

    def done(self, unit: Unit, **details: Any) -> None:
        """Write the unit's marker, and tell."""
        self.files.mark_done(unit, **details)
        self.events.unit(unit.name, "done")

    def fail(self, name: str, cause: str) -> None:
        """Remember why the unit or stage `name` failed, without secrets, and tell."""
        self.failures[name] = without_secrets(cause)
        self.events.unit(name, "failed", cause=cause)

    def tell_restarts(self) -> None:
        """Tell which generators, and whose learners, were lost and begun again since the last call."""
        if not ray.is_initialized():
            return
        if "pool" in self.__dict__:
            with suppress(RayError):
                losses = self.pool.failures()
                for loss in losses[self._losses_told :]:
                    number = str(loss.generator)
                    self.events.add("generator", "restarted", number, cause=loss.cause, at=loss.time)
                self._losses_told = len(losses)
        if "training" in self.__dict__:
            with suppress(RayError):
                restarts = self.training.restarts()
                for restart in restarts[self._restarts_told :]:
                    self.events.unit(restart.key, "restarted", cause=restart.cause, at=restart.time)
                self._restarts_told = len(restarts)

    @cached_property
    def units(self) -> StudyUnits:
        return StudyUnits(self.study)

    @cached_property
    def task(self) -> Task:
        return get_task(self.study.task.name, **self.study.task.options)

    @cached_property
    def resources(self) -> Resources:
        return resources_of(self.study)

    def check_resources(self, *, wait: bool = True) -> None:
        """Raises InputError when the study does not fit the disk, the cluster or this machine; joins the cluster.

        wait: for `resources.nodes_seconds`, which asks an autoscaler for nodes; else the cluster is taken as it is.
        """
        check_disk(self.study, self.files)
        if self.is_remote:
            self.connect()
            if wait and self.study.resources.nodes_seconds:
                await_nodes(self.resources, self.needs, self.study.resources.nodes_seconds)
            total, alive = ray.cluster_resources(), [node for node in ray.nodes() if node["Alive"]]
            check_work(self.study, len(alive))
            check_cluster(
                self.resources,
                total.get("CPU", 0.0),
                total.get("memory", 0.0),
                total.get("GPU", 0.0),
                [node["Resources"].get("memory", 0.0) for node in alive],
                [Offer.of(node) for node in alive],
            )
        else:
            check_local(self.resources)

    @property
    def is_remote(self) -> bool:
        """Whether the study runs on a cluster that it did not start."""
        return named_cluster(self.address) is not None

    @property
    def task_slots(self) -> int:
        """How many one-CPU tasks (spectra, edits, hidden states) to run side by side, once connected."""
        each = self.study.resources.tasks
        if not self.is_remote:
            return max(1, int((os.cpu_count() or 1) / each.cpus))
        # What engines and worker groups hold stays theirs; resources.cpus counts one task.
        total = ray.cluster_resources()
        rest = int((total.get("CPU", 1) - self.resources.cpus) / each.cpus) + 1
        # Tasks do nothing but compute: more of them than cores would only load torch more often.
        rest = min(rest, side_by_side(ray.nodes(), self.needs["tasks"]))
        if each.gpus:
            needs, needed = self.needs, self.resources
            held = needed.generators * needs["generator"].gpus
            held += needed.groups * needed.workers * needs["learner"].gpus
            rest = min(rest, int((total.get("GPU", 0) - held) / each.gpus))
        return max(1, rest)

    @cached_property
    def needs(self) -> dict[str, Need]:
        """What a learner, a generator and a task reserve, once connected."""
        needs = self.resources.needs(ray.cluster_resources().get("GPU", 0.0))
        unnamed = [
            kind for kind in ("learner", "generator") if getattr(self.study.resources, kind).gpus is None
        ]
        if any(needs[kind].gpus for kind in unnamed):
            import torch  # only where it may matter: it takes seconds

            if not torch.backends.cuda.is_built():
                needs |= {kind: replace(needs[kind], gpus=0.0) for kind in unnamed}
        return needs

    def connect(self) -> None:
        """Join the cluster, or start Ray on this machine."""
        connect(self.address)

    @cached_property
    def pool(self) -> Pool:
        """The engines, starting; `Pool.wait_ready` waits for them."""
        from rlheals_ray.models.base import write_architecture  # loads transformers: only where engines start

        self.connect()
        architecture = self.files.root / "architecture"
        write_architecture(self.files.checkpoint(BASE), architecture)
        need, study = self.needs["generator"], self.study
        settings = GeneratorSettings(str(architecture), study.task, study.rollout, study.name)
        return Pool.start(settings, threads=_threads(need), need=need, near=self._near())

    def _near(self) -> Training | None:
        """On several nodes, while there is something left to train: the worker groups, beside which engines start."""
        if not is_spread():
            return None
        every = (*self.units.branches(), *self.units.controls())
        return self.training if any(not self.files.is_done(unit) for _, unit in every) else None

    @cached_property
    def training(self) -> Training:
        """The worker groups, starting."""
        self.connect()
        needed, need = self.resources, self.needs["learner"]
        return Training.start(
            groups=needed.groups,
            workers=needed.workers,
            need=need,
            threads=_threads(need),
            storage=str(self.files.root / "train"),
            name=self.study.name,
        )

    def close(self) -> None:
        """End worker groups and disconnect."""
        if not ray.is_initialized():
            return
        if "training" in self.__dict__:
            # At an interrupt the queue may be gone already; shutting down ends the groups all the same.
            with suppress(RayError):
                self.training.close()
        ray.shutdown()


def _threads(need: Need) -> int:
    """As many as a process reserves CPUs, and one where it shares one."""
    return max(1, int(need.cpus))
