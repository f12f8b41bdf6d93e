"""What became of every branch and control: done, stopped early, failed, or waiting; how far it came, at what cost.

A finished branch tells by its marker. Of a failed one, and of a failed trunk, a note is kept beside its state until it
is tried again, so that a later report still knows the cause. Light on purpose: the sweep's trials import this, and must
not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlheals_ray.config import Study
from rlheals_ray.event_log import without_secrets
from rlheals_ray.grid.units import Probe, StudyUnits
from rlheals_ray.lineage import Branch
from rlheals_ray.monitoring import CELLS_DONE, CELLS_FAILED
from rlheals_ray.rl.compute import compute_by_update
from rlheals_ray.storage import StudyFiles, Unit, write_json

if TYPE_CHECKING:
    from rlheals_ray.grid.session import Session


def beside(study: Study, control: Branch) -> Branch:
    """The RL branch that a control stands beside."""
    return Branch(control.trunk, control.sft_step, study.rl.algorithm)


def spent_by_budget(study: Study, files: StudyFiles, unit: Unit) -> dict[int, int]:
    """Of an RL branch that is done: FLOPs per parameter that it had spent by each budget above 0 that it came to."""
    tokens = files.read_part("rl", unit)["episode_tokens"].to_pylist()
    spent = compute_by_update(study.rl, tokens)
    return {budget: spent[budget - 1] for budget in study.rl.budgets if 0 < budget <= len(spent)}


def due_probes(files: StudyFiles, units: StudyUnits, branch: Branch) -> list[Probe]:
    """The probes of the budgets that a finished branch or control came to; none while it is not done."""
    unit = units.branch(branch)
    if not files.is_done(unit):
        return []
    details = files.details(unit)
    if branch.is_control:
        reached = {int(budget) for budget in details["sft_updates"]}
    else:
        reached = {budget for budget in units.study.rl.budgets if budget <= details["updates"]}
    return [probe for probe in units.branch_probes(branch) if probe.rl_step in reached]


# --- failures


def _note(files: StudyFiles, unit: Unit) -> Path:
    return files.root / "state" / "failed" / f"{unit.name}.json"


def note_failure(
    files: StudyFiles, unit: Unit, cause: str, update: int | None = None, compute: int | None = None
) -> None:
    """Remember why a trunk or branch failed (without secrets), its last update and what it had spent, where known.

    A disk that takes no more loses the note alone: the cause is told by whoever calls.
    """
    kept = without_secrets(cause)
    record = {"fingerprint": unit.fingerprint, "cause": kept, "update": update, "compute": compute}
    with suppress(OSError):
        write_json(_note(files, unit), record)


def forget_failure(files: StudyFiles, unit: Unit) -> None:
    """Before the unit is tried again."""
    _note(files, unit).unlink(missing_ok=True)


def failure(files: StudyFiles, unit: Unit) -> dict[str, Any] | None:
    """What is remembered of the unit's failure: cause, update, compute; None when it did not fail."""
    try:
        record = dict(json.loads(_note(files, unit).read_text()))
    except (FileNotFoundError, ValueError):
        return None
    return record if record.get("fingerprint") == unit.fingerprint and not files.is_done(unit) else None


# --- the gauges


def record_cells(study: Study, units: StudyUnits, files: StudyFiles) -> None:
    """Set the gauges of the cells that are done and that failed. A control fails with its RL branch."""

    def failed(branch: Branch, unit: Unit) -> bool:
        if files.is_done(unit):
            return False
        needed = units.branch(beside(study, branch)) if branch.is_control else unit
        return failure(files, unit) is not None or failure(files, needed) is not None

    for stage, every in (("rl", list(units.branches())), ("control", list(units.controls()))):
        CELLS_DONE.record(sum(files.is_done(unit) for _, unit in every), stage=stage)
        CELLS_FAILED.record(sum(failed(branch, unit) for branch, unit in every), stage=stage)


# --- the table


def branch_rows(session: Session) -> list[dict[str, Any]]:
    """Rows of tables/branches: every RL branch of the study, then every control."""
    every = [*session.units.branches(), *session.units.controls()]
    return [_row(session, branch, unit) for branch, unit in every]


def _row(session: Session, branch: Branch, unit: Unit) -> dict[str, Any]:
    state = _state(session, branch, unit)
    return {
        "recipe": branch.trunk.recipe,
        "algorithm": branch.algorithm,
        "seed": branch.seed,
        "sft_step": branch.sft_step,
        **{key: state.get(key) for key in ("status", "rl_step", "compute", "sft_updates", "cause")},
    }


def _state(session: Session, branch: Branch, unit: Unit) -> dict[str, Any]:
    study, files = session.study, session.files
    if files.is_done(unit):
        return _control_done(study, files, unit) if branch.is_control else _branch_done(study, files, unit)
    if failed := failure(files, unit):
        cause = last_line(failed["cause"])
        return {
            "status": "failed",
            "rl_step": failed["update"],
            "compute": failed["compute"],
            "cause": cause,
        }
    return {"status": "waiting", "cause": _waits_for(session, branch)}


def _branch_done(study: Study, files: StudyFiles, unit: Unit) -> dict[str, Any]:
    details = files.details(unit)
    spent = compute_by_update(study.rl, files.read_part("rl", unit)["episode_tokens"].to_pylist())
    return {
        "status": "stopped" if details["cause"] else "done",
        "rl_step": details["updates"],
        "compute": spent[-1],
        "cause": details["cause"],
    }


def _control_done(study: Study, files: StudyFiles, unit: Unit) -> dict[str, Any]:
    details = files.details(unit)
    updates = {int(budget): count for budget, count in details["sft_updates"].items()}
    last = max(updates, default=0)
    spent = max(details["compute"].values(), default=0)
    complete = last == study.rl.budgets[-1]
    return {
        "status": "done" if complete else "stopped",
        "rl_step": last,
        "compute": spent,
        "sft_updates": updates.get(last, 0),
        "cause": details["cause"],
    }


def _waits_for(session: Session, branch: Branch) -> str | None:
    units, files = session.units, session.files
    trunk = units.trunk(branch.trunk)
    if not files.is_done(trunk):
        failed = failure(files, trunk)
        return f"its trunk failed: {last_line(failed['cause'])}" if failed else "its trunk is not done"
    if branch.is_control:
        rl = units.branch(beside(session.study, branch))
        if failed_rl := failure(files, rl):
            return f"its RL branch failed: {last_line(failed_rl['cause'])}"
        if not files.is_done(rl):
            return "its RL branch is not done"
    return None


def last_line(text: str) -> str:
    """The last line that says something: of a traceback, the error."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else text


def unfinished(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether any branch failed or waits."""
    return any(row["status"] in ("failed", "waiting") for row in rows)
