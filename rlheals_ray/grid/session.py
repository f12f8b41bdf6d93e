"""What a running study holds: the Ray connection, the pool of engines, the worker groups.

Everything starts at most once and only when some stage needs it; engines and worker groups start in
the background, while earlier stages run.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import ray
from ray.exceptions import RayError

from rlheals_ray.config import Study
from rlheals_ray.connection import connect, named_cluster
from rlheals_ray.grid.plan_bytes import check_disk
from rlheals_ray.grid.progress import Timings
from rlheals_ray.grid.resources import Resources, check_cluster, check_local, resources_of
from rlheals_ray.grid.units import StudyUnits
from rlheals_ray.lineage import BASE
from rlheals_ray.placement import is_spread
from rlheals_ray.rollout.generator import GeneratorSettings
from rlheals_ray.rollout.pool import Pool
from rlheals_ray.storage import StudyFiles
from rlheals_ray.tasks import Task, get_task
from rlheals_ray.training import Training, gpus_per_worker


@dataclass
class Session:
    """A study under way."""

    study: Study
    files: StudyFiles
    address: str | None = None
    timings: Timings = field(default_factory=Timings)
    failures: dict[str, str] = field(default_factory=dict)
    """Unit name to the cause of its failure."""

    @cached_property
    def units(self) -> StudyUnits:
        return StudyUnits(self.study)

    @cached_property
    def task(self) -> Task:
        return get_task(self.study.task.name, **self.study.task.options)

    @cached_property
    def resources(self) -> Resources:
        return resources_of(self.study)

    def check_resources(self) -> None:
        """Raises InputError when the study does not fit the disk, the cluster or this machine; joins the cluster."""
        check_disk(self.study, self.files)
        if self.is_remote:
            self.connect()
            total = ray.cluster_resources()
            check_cluster(
                self.resources,
                total.get("CPU", 0.0),
                total.get("memory", 0.0),
                total.get("GPU", 0.0),
                [node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"]],
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
        if not self.is_remote:
            return os.cpu_count() or 1
        # What engines and worker groups hold stays theirs; resources.cpus counts one for tasks.
        return max(1, int(ray.cluster_resources().get("CPU", 1)) - self.resources.cpus + 1)

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
        settings = GeneratorSettings(str(architecture), self.study.task, self.study.rollout)
        return Pool.start(settings, threads=1, num_cpus=1, near=self._near())

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
        needed = self.resources
        return Training.start(
            groups=needed.groups,
            workers=needed.workers,
            cpus_per_worker=1,
            gpus_per_worker=gpus_per_worker(needed.groups * needed.workers, needed.generators),
            threads=1,
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
