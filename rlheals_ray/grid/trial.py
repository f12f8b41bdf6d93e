"""One trial of the sweep: a branch or a control trained by a warm worker group, then its checkpoints probed.

A trial only waits for others, so its process stays light: nothing here may import torch.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from ray import tune

from rlheals_ray.config import Study
from rlheals_ray.event_log import tell, without_secrets
from rlheals_ray.grid.branch_states import beside, due_probes, failure, note_failure, spent_by_budget
from rlheals_ray.grid.probes import run_probe
from rlheals_ray.grid.units import StudyUnits
from rlheals_ray.lineage import Branch
from rlheals_ray.monitoring import place_of
from rlheals_ray.rl.compute import flops_per_token
from rlheals_ray.rl.spec import BranchSpec
from rlheals_ray.rollout.pool import Pool
from rlheals_ray.storage import StudyFiles, Unit
from rlheals_ray.training import Training, WorkFailed
from rlheals_ray.work_queue import Work

TRAIN_BRANCH = "rlheals_ray.rl.learner:train_branch"
TRAIN_CONTINUED = "rlheals_ray.sft.controls:train_continued"
TRAIN_REJECTION = "rlheals_ray.rl.rejection:train_rejection"


def branch_trial(
    config: Mapping[str, Any], *, study: Study, files: StudyFiles, pool: Pool, training: Training
) -> None:
    """Tune's trainable: reports every update, then probes the budgets. Raises WorkFailed.

    A control waits for its RL branch, whose compute it is to have; where that failed it is left untrained.
    """
    branch = Branch.of(config["branch"])
    units = StudyUnits(study)
    unit = units.branch(branch)
    if failed := failure(files, unit):
        # Tune tries again after any error; only a lost process is worth that.
        raise WorkFailed(failed["cause"])
    if not files.is_done(unit):
        spec = BranchSpec(study, files, pool, branch, unit, branch.start)
        told: list[Mapping[str, Any]] = []
        try:
            for row in (
                _control(spec, units, training) if branch.is_control else _branch(spec, training, told)
            ):
                tune.report(row)
        except Exception:
            cause = without_secrets(traceback.format_exc())
            if not training.has_ended():  # else, as after an interrupt, it is no failure of this branch
                note_failure(files, unit, cause, *_how_far(study, told))
                tell(study.name, *place_of(unit.name), "failed", cause)
            raise WorkFailed(cause) from None  # Tune keeps what a trial raises, in files too
    for wanted in due_probes(files, units, branch):
        run_probe(study, files, pool, wanted)
    tune.report({"updates": 0})


def _branch(spec: BranchSpec, training: Training, told: list[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Train an RL branch; `told` gets its rows."""
    for row in training.run(Work(spec.unit.name, TRAIN_BRANCH, {"spec": spec})):
        told.append(row)
        yield {**row, "updates": 1}


def _how_far(study: Study, told: list[Mapping[str, Any]]) -> tuple[int | None, int | None]:
    """The last update of a branch that broke off, and its compute; that is unknown after a resume."""
    if not told:
        return None, None
    if told[0]["rl_step"] != 1:
        return told[-1]["rl_step"], None
    spent = sum(flops_per_token(study.rl, row["rl_step"]) * row["episode_tokens"] for row in told)
    return told[-1]["rl_step"], spent


def _control(spec: BranchSpec, units: StudyUnits, training: Training) -> Iterator[dict[str, Any]]:
    """Train a control once its RL branch is done."""
    study, files = spec.study, spec.files
    other = beside(study, spec.branch)
    rl = units.branch(other)
    if not files.is_done(rl):
        if failure(files, rl):
            return
        try:
            # Joins the work under way; where the branch's own trial was lost, the work is done for this one.
            for _ in _branch(BranchSpec(study, files, spec.pool, other, rl, other.start), training, []):
                pass
        except WorkFailed:
            return
    targets = spent_by_budget(study, files, rl)
    last = study.rl.budgets[-1]
    if not targets:
        cause = "its RL branch was stopped before its first budget"
        files.mark_done(spec.unit, compute={}, sft_updates={}, cause=cause)
        return
    counted = 0
    for row in training.run(_work(spec, targets)):
        if "loss" not in row:
            continue
        # A control's updates are as many as its compute pays for; progress is counted in RL's.
        now = int(row["step"] * last / row["of"])
        curve = {key: row[key] for key in ("learning_rate", "grad_norm", "tokens") if key in row}
        yield {
            "rl_step": row["step"],
            "policy_loss": row["loss"],
            **curve,
            "updates": max(0, now - counted),
        }
        counted = max(now, counted)


def _work(spec: BranchSpec, targets: Mapping[int, int]) -> Work:
    if spec.branch.algorithm == "rejection_sft":
        return Work(spec.unit.name, TRAIN_REJECTION, {"spec": spec, "targets": targets})
    arguments = {"study": spec.study, "files": spec.files, "control": spec.branch, "unit": spec.unit}
    return Work(spec.unit.name, TRAIN_CONTINUED, {**arguments, "targets": targets})


def failed_elsewhere(files: StudyFiles, unit: Unit, cause: str | None) -> None:
    """Note the failure of a trial that did not note it itself: its process is gone, or the queue is."""
    if not files.is_done(unit) and failure(files, unit) is None:
        note_failure(files, unit, cause or "the trial's process ended; see tune/")
