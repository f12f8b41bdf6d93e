"""Trains one branch inside a Ray Train worker group, by the algorithm that the study names."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping

from rlheals_ray.rl.branch import Branch
from rlheals_ray.rl.ppo_learner import learn_ppo
from rlheals_ray.rl.spec import BranchSpec
from rlheals_ray.training import Report


def _learn_trl(branch: Branch) -> None:
    # Imported when it is asked for: TRL's trainers take ten seconds to import.
    from rlheals_ray.rl.trl_learner import learn_trl

    learn_trl(branch)


ALGORITHMS: Mapping[str, Callable[[Branch], None]] = {
    "ppo": learn_ppo,
    "grpo": _learn_trl,
    "rloo": _learn_trl,
}
"""Each trains a branch from where its saved state stands to the last budget, on every rank alike."""


def train_branch(spec: BranchSpec, report: Report) -> None:
    """Train a branch; called on every rank of a worker group.

    Leaves checkpoints/rl/… at every budget above 0, the branch's part of tables/rl, and its marker.
    Raises Diverged when the policy's gradient is no longer finite.
    """
    if spec.files.is_done(spec.unit):
        return  # the worker that did it died before it could say so
    began = time.perf_counter()
    branch = Branch(spec, report)
    ALGORITHMS[branch.settings.algorithm](branch)
    if branch.is_main:
        branch.finish(time.perf_counter() - began)
        shutil.rmtree(branch.state_directory, ignore_errors=True)
