"""One trial of the sweep: a branch trained by a warm worker group, then its checkpoints probed.

A trial only waits for others, so its process stays light: nothing here may import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import tune

from rlheals_ray.config import Study
from rlheals_ray.grid.probes import run_probe
from rlheals_ray.grid.units import StudyUnits
from rlheals_ray.lineage import Branch
from rlheals_ray.rl.spec import BranchSpec
from rlheals_ray.rollout.pool import Pool
from rlheals_ray.storage import StudyFiles
from rlheals_ray.training import Training, Work

TRAIN_BRANCH = "rlheals_ray.rl.learner:train_branch"


def branch_trial(
    config: Mapping[str, Any], *, study: Study, files: StudyFiles, pool: Pool, training: Training
) -> None:
    """Tune's trainable: reports every update of the branch, then probes its budgets. Raises WorkFailed."""
    branch = Branch.of(config["branch"])
    units = StudyUnits(study)
    unit = units.branch(branch)
    if not files.is_done(unit):
        spec = BranchSpec(study, files, pool, branch, unit, branch.start)
        for row in training.run(Work(unit.name, TRAIN_BRANCH, {"spec": spec})):
            tune.report({**row, "updates": 1})
    for wanted in units.branch_probes(branch):
        run_probe(study, files, pool, wanted)
    tune.report({"updates": 0})
