"""What a running study holds: the Ray connection, the pool of engines, the worker groups.

Everything starts at most once and only when some stage needs it; engines and worker groups start in
the background, while earlier stages run.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import ray
from ray.exceptions import RayError

from rlheals_ray.config import InputError, Study
from rlheals_ray.grid.progress import Timings
from rlheals_ray.grid.resources import Resources, check_cluster, check_local, local_slots, resources_of
from rlheals_ray.grid.units import StudyUnits
from rlheals_ray.rollout.generator import GeneratorSettings
from rlheals_ray.rollout.pool import Pool
from rlheals_ray.storage import StudyFiles
from rlheals_ray.tasks import Task, get_task
from rlheals_ray.training import Training, gpus_per_worker

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "DS_ACCELERATOR": "cpu",
}


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
        """Raises InputError when the study does not fit the cluster, or this machine; joins the cluster."""
        if self._cluster:
            self.connect()
            total = ray.cluster_resources()
            check_cluster(
                self.resources, total.get("CPU", 0.0), total.get("memory", 0.0), total.get("GPU", 0.0)
            )
        else:
            check_local(self.resources)

    @property
    def is_remote(self) -> bool:
        """Whether the study runs on a cluster that it did not start."""
        return self._cluster is not None

    @property
    def _cluster(self) -> str | None:
        return self.address or os.environ.get("RAY_ADDRESS")

    def connect(self) -> None:
        """Join the cluster, or start Ray on this machine."""
        if ray.is_initialized():
            return
        if threading.current_thread() is not threading.main_thread():
            # The kernel ends Ray's processes with the thread that started them, not with the process.
            raise RuntimeError("Ray must be started from the main thread")
        common: dict[str, Any] = {
            "runtime_env": {"env_vars": WORKER_ENVIRONMENT},
            "log_to_driver": False,
            "logging_level": "ERROR",
        }
        if self._cluster:
            try:
                ray.init(address=self._cluster, **common)
            except (ConnectionError, RuntimeError, ValueError) as error:
                cause = " ".join(str(error).split())
                raise InputError(
                    f"--address (got {self._cluster!r}): no Ray cluster answers there ({cause}); "
                    "check the address, or leave it out to run on this machine."
                ) from None
            return
        # Workers are many and mostly wait: start them side by side, and do not warn about their number.
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(local_slots()))
        # Every worker here has its own environment: those that Ray starts in advance would never be used.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        os.environ["RAY_AUTH_MODE"] = "disabled"  # a private cluster of this process, on loopback
        ray.init(num_cpus=local_slots(), include_dashboard=False, **common)

    @cached_property
    def pool(self) -> Pool:
        """The engines, starting; `Pool.wait_ready` waits for them."""
        from rlheals_ray.models.base import write_architecture  # loads transformers: only where engines start

        self.connect()
        architecture = self.files.root / "architecture"
        write_architecture(self.study, architecture)
        settings = GeneratorSettings(str(architecture), self.study.task, self.study.rollout)
        return Pool.start(settings, threads=1, num_cpus=1)

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
