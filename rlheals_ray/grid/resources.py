"""What a study asks of a cluster, and whether that fits: found out before anything starts.

A study that does not fit would not fail: Ray would wait for ever for CPUs that nobody frees.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil

from rlheals_ray.config import InputError, Study

SLOTS_PER_CORE = 4
"""Processes that may share one core of a local machine: stages alternate, so most of them wait."""

GENERATOR_GIB, LEARNER_GIB, FIXED_GIB = 1.6, 1.2, 2.0
"""Resident memory of an engine and of a training worker beyond their weights, and of all the rest."""


@dataclass(frozen=True)
class Resources:
    """What a study asks for at once."""

    generators: int
    groups: int
    workers: int
    """Workers of one group."""

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
    """One worker group per generator: as many branches learn side by side as engines can feed."""
    branches = len(study.seeds) * len(study.rl.from_steps)
    return Resources(
        generators=study.rollout.generators,
        groups=max(1, min(study.rollout.generators, branches)),
        workers=max(study.sft.workers, study.rl.workers),
    )


def local_slots() -> int:
    return SLOTS_PER_CORE * (os.cpu_count() or 1)


def check_local(needed: Resources) -> None:
    """Raises InputError when this machine cannot hold the study."""
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


def check_cluster(needed: Resources, cpus: float, memory_bytes: float) -> None:
    """Raises InputError when the connected cluster cannot hold the study."""
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
