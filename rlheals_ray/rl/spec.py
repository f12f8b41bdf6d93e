"""What a branch is. Light on purpose: the sweep's trials pass it on, and must not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from rlheals_ray.config import Study
from rlheals_ray.lineage import Branch
from rlheals_ray.rollout.pool import Pool
from rlheals_ray.storage import StudyFiles, Unit


@dataclass(frozen=True)
class BranchSpec:
    """A branch to be trained; travels to the workers."""

    study: Study
    files: StudyFiles
    pool: Pool
    branch: Branch
    unit: Unit
    start: str
    """The checkpoint it leaves from."""
