"""How long what is left of a study takes: its counts times rates that were recorded or calibrated, as the plan reckons.

Without a recorded rate there is no estimate. What failed counts as left: a run does it again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlheals_ray.config import InputError, Study
from rlheals_ray.grid.plan_counts import counts
from rlheals_ray.grid.rates import UNITS, rates_for
from rlheals_ray.grid.resources import resources_of
from rlheals_ray.grid.status_runs import Found


@dataclass(frozen=True)
class Left:
    """Estimates in seconds of wall time."""

    stages: Mapping[str, float | None]
    """Of the stages that have work left and a rate of their own; None: a rate is not known."""
    seconds: float | None
    """Of all of them, tables and report included; None where a rate is missing."""
    missing: tuple[str, ...]
    """What the missing rates are of."""


def known_rates(study: Study, root: Path) -> dict[str, float]:
    """Seconds per unit of work that this or another study of the storage recorded; {} where there are none."""
    try:
        return {name: rate.seconds for name, rate in rates_for(study, root).items()}
    except Exception:  # damaged files of any study of the storage, a base model that is not at hand
        return {}


def time_left(study: Study, found: Sequence[Found], rates: Mapping[str, float]) -> Left:
    """The estimate for what is not done of `found`."""
    pending = [one for one in found if one.state != "done"]
    if not pending:
        return Left({}, 0.0, ())
    work = _work(study, found, pending)
    needed = {name for each in work.values() for name in each} | {"close"}
    stages = {
        stage: None if set(each) - set(rates) else sum(rates[name] * count for name, count in each.items())
        for stage, each in work.items()
    }
    missing = tuple(UNITS[name] for name in UNITS if name in needed and name not in rates)
    known = [seconds for seconds in stages.values() if seconds is not None]
    return Left(stages, None if missing else sum(known) + rates["close"], missing)


def _work(study: Study, found: Sequence[Found], pending: Sequence[Found]) -> dict[str, dict[str, float]]:
    """By stage: how many units of each rate are left one after another, where lanes work side by side."""
    each = counts(study)
    teams = study.rollout.generators // study.rollout.generators_per_branch
    left = {stage: [one for one in pending if one.stage == stage] for stage in {one.stage for one in pending}}
    out: dict[str, dict[str, float]] = {}
    if "base" in left and study.base.model == "nano":
        out["base"] = {"base": study.base.steps}
    if "sft" in left and study.sft.checkpoints is None:
        updates = [one.of - one.step for one in left["sft"]]
        out["sft"] = {"sft": max(max(updates), sum(updates) / _lanes(study, each.trunks))}
        if not any(one.state in ("done", "running") for one in found if one.stage == "sft"):
            out["sft"]["sft_rest"] = 1
    for stage, rate in (("rl", "rl"), ("controls", "control")):
        if stage in left:
            lanes = _lanes(study, each.branches)
            updates = [one.of - one.step for one in left[stage]]
            out[stage] = {rate: sum(updates) / lanes, "branch_rest": len(updates) / lanes}
            begun = any(one.state in ("done", "running") for one in found if one.stage in ("rl", "controls"))
            if stage == "rl" and not begun:
                out[stage]["rl_rest"] = 1
    for stage in ("probes", "edit probes"):
        if stage in left:
            out[stage] = {"probe": math.ceil(len(left[stage]) / teams)}
    if "spectra" in left:
        out["spectra"] = {"spectra": each.compared * len(left["spectra"]) / each.trunks}
    if "hidden" in left:
        out["hidden"] = {"hidden": len(left["hidden"])}
    if "edits" in left:
        out["edits"] = {"edit": len(left["edits"])}
    return out


def _lanes(study: Study, runs: int) -> int:
    try:
        return max(1, min(resources_of(study).groups, runs))
    except InputError:  # the size of a base model that is not at hand
        return 1
