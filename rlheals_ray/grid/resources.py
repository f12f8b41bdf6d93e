"""What a study asks of a cluster, and whether that fits: found out before anything starts.

A study that does not fit would not fail: Ray would wait for ever for CPUs that nobody frees.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from rlheals_ray.config import InputError, Study
from rlheals_ray.connection import SLOTS_PER_CORE, local_slots

GENERATOR_GIB, LEARNER_GIB, FIXED_GIB = 1.6, 1.2, 2.0
"""Resident memory of an engine and of a training worker beyond their weights, and of all the rest."""


@dataclass(frozen=True)
class Resources:
    """What a study asks for at once."""

    generators: int
    groups: int
    workers: int
    """Workers of one group."""
    needs_gpus: bool = False
    """Whether the study names a transport that only GPUs have."""

    @property
    def cpus(self) -> int:
        """One CPU for each generator, each training worker, and one for tasks (spectra, losses, edits)."""
        return self.generators + self.groups * self.workers + 1

    @property
    def memory_gib(self) -> float:
        return FIXED_GIB + GENERATOR_GIB * self.generators + LEARNER_GIB * self.groups * self.workers

    def explain(self) -> str:
        """The sum, spelled out."""
        return (
            f"{self.generators} generators + {self.groups} worker groups x {self.workers} workers + 1 for tasks "
            f"= {self.cpus} CPUs and about {self.memory_gib:.1f} GiB"
        )


def resources_of(study: Study) -> Resources:
    """One worker group per team of generators: as many branches learn side by side as engines can feed."""
    branches = len(study.seeds) * len(study.sft.recipes) * len(study.rl.from_steps)
    teams = study.rollout.generators // study.rollout.generators_per_branch
    return Resources(
        generators=study.rollout.generators,
        groups=max(1, min(teams, branches)),
        workers=max(study.sft.workers, study.rl.workers),
        needs_gpus=study.rollout.weight_sync == "nccl",
    )


def local_gpus() -> int:
    """NVIDIA GPUs of this machine, as its driver lists them; without torch."""
    try:
        return len(list(Path("/proc/driver/nvidia/gpus").iterdir()))
    except OSError:
        return 0


def check_local(needed: Resources) -> None:
    """Raises InputError when this machine cannot hold the study."""
    _check_gpus(needed, local_gpus(), "this machine")
    memory = psutil.virtual_memory().total / 2**30
    if needed.cpus > local_slots():
        raise InputError(
            f"rollout.generators, sft.workers and rl.workers ask for {needed.explain()}, but this machine of "
            f"{os.cpu_count()} cores offers {local_slots()} slots ({SLOTS_PER_CORE} per core); lower them or run on "
            "a cluster with --address."
        )
    if needed.memory_gib > memory:
        raise InputError(
            f"rollout.generators, sft.workers and rl.workers ask for {needed.explain()}, but this machine has "
            f"{memory:.1f} GiB of memory; lower them or run on a cluster with --address."
        )


def check_cluster(needed: Resources, cpus: float, memory_bytes: float, gpus: float = 0) -> None:
    """Raises InputError when the connected cluster cannot hold the study."""
    _check_gpus(needed, gpus, "the cluster")
    if needed.cpus > cpus:
        raise InputError(
            f"rollout.generators, sft.workers and rl.workers ask for {needed.explain()}, but the cluster has "
            f"{cpus:g} CPUs; lower them or add nodes."
        )
    if memory_bytes and needed.memory_gib > memory_bytes / 2**30:
        raise InputError(
            f"rollout.generators, sft.workers and rl.workers ask for {needed.explain()}, but the cluster has "
            f"{memory_bytes / 2**30:.1f} GiB of memory; lower them or add nodes."
        )


def _check_gpus(needed: Resources, gpus: float, where: str) -> None:
    if needed.needs_gpus and gpus < 1:
        raise InputError(
            f"rollout.weight_sync (got 'nccl') sends weights from GPU to GPU, but {where} has none; use auto or "
            "object_store."
        )
