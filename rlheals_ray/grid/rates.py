"""Seconds per unit of work, from what finished studies recorded or `--calibrate` measured, and what they depend on.

A study's wall time is modelled stage by stage (plan_time.py) as counts times these rates. What a recorded stage took
beyond the work that its tables account for (start-up, saving, waiting) is a rate of its own, per stage or per branch.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError

from rlheals_ray.config import InputError, Study, dump_study
from rlheals_ray.grid.plan_counts import Counts, counts
from rlheals_ray.grid.resources import resources_of
from rlheals_ray.storage import fingerprint, write_json

FILE = "rates.json"
"""Under a storage: what `--calibrate` measured there."""

NOT_SETTINGS = ("versions", "git_commit")
"""What a study.yaml of a run holds beside the study."""


@dataclass(frozen=True)
class Rate:
    """Seconds of one unit of work."""

    seconds: float
    source: str
    """Where it comes from, for the plan."""


UNITS: Mapping[str, str] = {
    "base": "an update of the base",
    "sft": "an SFT update",
    "sft_rest": "for engines and workers to start",
    "rl": "an RL update",
    "control": "a control per RL update",
    "branch_rest": "a branch beyond its updates",
    "rl_rest": "for the sweep to start",
    "probe": "a probe",
    "spectra": "a set of matrices compared",
    "hidden": "a checkpoint's hidden states",
    "edit": "an edit written",
    "close": "for tables and report",
}
"""Every rate, and what it is of."""


def conditions(study: Study, rate: str) -> str:
    """A hash of the settings that a rate depends on."""
    plain, needed = dump_study(study), resources_of(study)
    sft = {k: v for k, v in plain["sft"].items() if k not in ("steps", "checkpoints", "state_every")}
    rl = {
        k: v
        for k, v in plain["rl"].items()
        if k not in ("from_steps", "budgets", "save_every", "early_stop", "critic_warmup", "learning_rate")
    }
    engines = {k: v for k, v in plain["rollout"].items() if not k.endswith("_seconds")}
    size = {"model": study.base.model, "task": plain["task"]}
    side_by_side = {"groups": needed.groups, "workers": needed.workers}
    depends: dict[str, dict[str, Any]] = {
        "base": {},
        "sft": {"sft": sft, **side_by_side},
        "sft_rest": {"engines": engines, **side_by_side},
        "rl": {"rl": rl, "engines": engines, "sharding": study.sft.sharding, **side_by_side},
        "control": {"rl": rl, "sft": sft, "kinds": plain["controls"]["kinds"], **side_by_side},
        "branch_rest": {"rl": rl, "engines": engines, "kinds": plain["controls"]["kinds"], **side_by_side},
        "rl_rest": {"algorithm": study.rl.algorithm, "engines": engines, **side_by_side},
        "probe": {"evaluation": plain["evaluation"], "engines": engines},
        "spectra": {"spectra": plain["spectra"]},
        "hidden": {"hidden": plain["hidden"]},
        "edit": {"roles": plain["spectra"]["roles"]},
        "close": {},
    }
    return fingerprint(rate=rate, **size, **depends[rate])


def rates_for(study: Study, root: Path) -> dict[str, Rate]:
    """The rates known for a study that is kept in `root`: its own, else calibrated ones, else other studies'."""
    own: dict[str, Rate] = {}
    others: dict[str, Rate] = {}
    for one, where in _recorded(root):
        is_own = where == root
        source = "recorded by this study" if is_own else f"recorded by study {where.name}"
        for name, seconds in measured(one, where).items():
            if conditions(one, name) == conditions(study, name):
                (own if is_own else others).setdefault(name, Rate(seconds, source))
    found = {**others, **_calibrated(study, root.parent), **own}
    return {name: found[name] for name in UNITS if name in found}


def _recorded(root: Path) -> Iterator[tuple[Study, Path]]:
    """Finished studies of the same storage, the own first, then the newest."""
    try:
        others = [path.parent for path in root.parent.glob("*/timings.json") if path.parent != root]
    except OSError:
        others = []
    others.sort(key=lambda path: (path / "timings.json").stat().st_mtime, reverse=True)
    for path in [root, *others]:
        if (path / "timings.json").exists() and (study := _study_of(path)) is not None:
            yield study, path


def _study_of(root: Path) -> Study | None:
    """The study that a run recorded; None where this version does not read it."""
    try:
        record = yaml.safe_load((root / "study.yaml").read_text(encoding="utf-8"))
        return Study.model_validate({k: v for k, v in record.items() if k not in NOT_SETTINGS})
    except (OSError, ValueError, AttributeError, yaml.YAMLError, ValidationError, InputError):
        return None


def measured(study: Study, root: Path) -> dict[str, float]:
    """The rates that a finished study's tables, markers and timings give; {} where it is not finished."""
    from rlheals_ray.grid.plan_time import rl_wall, sft_wall

    try:
        took: dict[str, float] = json.loads((root / "timings.json").read_text())
    except (OSError, ValueError):
        return {}
    if took.get("rl") is None and took.get("sft") is None:
        return {}
    each, needed = counts(study), resources_of(study)
    out: dict[str, float] = {}
    if study.base.model == "nano" and took.get("base", 0.0) > 1.0:
        out["base"] = took["base"] / study.base.steps
    sft = _columns(root, "sft", ("step", "seconds"))
    trained = max((row["step"] for row in sft), default=0) * each.trunks
    if trained and study.sft.checkpoints is None:
        out["sft"] = sum(row["seconds"] or 0.0 for row in sft) / trained
    _of_rl(out, root, each, needed.groups)
    probes = _probe_seconds(root)
    if probes:
        out["probe"] = statistics.median(probes)
    if took.get("sft") and "sft" in out and "probe" in out:
        out["sft_rest"] = max(0.0, took["sft"] - sft_wall(study, out, rest=0.0))
    if took.get("rl") and "rl" in out and "probe" in out and each.branches:
        if "branch_rest" in out:
            out["rl_rest"] = max(0.0, took["rl"] - rl_wall(study, {**out, "rl_rest": 0.0}))
        else:
            beyond = took["rl"] - rl_wall(study, {**out, "branch_rest": 0.0, "rl_rest": 0.0})
            lanes = min(needed.groups, each.branches)
            out["branch_rest"] = max(0.0, beyond) / math.ceil((each.branches + each.controls) / lanes)
            out["rl_rest"] = 0.0
    for stage, count in (("spectra", each.compared), ("hidden", each.hidden)):
        if took.get(stage, 0.0) > 0.5 and count:
            out[stage] = took[stage] / count
    written = len(list((root / "markers" / "edit").glob("*.json")))
    if took.get("edit", 0.0) > 0.5 and written and "probe" in out:
        teams = study.rollout.generators // study.rollout.generators_per_branch
        out["edit"] = max(0.0, took["edit"] - written * out["probe"] / teams) / written
    out["close"] = sum(took.get(stage, 0.0) for stage in ("tables", "export", "report", "retention"))
    return out


def _of_rl(out: dict[str, float], root: Path, each: Counts, lanes: int) -> None:
    """What an update takes, a branch beyond its updates, and an update of a control.

    Means: updates differ (answers grow shorter), so that their sum is what counts. Of branches the first of every
    lane is left out where there are others: it pays for imports and first passes, which the sweep pays once.
    """
    parts = ("seconds_generate", "seconds_learn", "seconds_sync")
    rows = _columns(root, "rl", ("rl_step", *parts))
    learnt = [row for row in rows if row["seconds_generate"] is not None]
    warm = [row for row in learnt if row["rl_step"] > 1] or learnt
    if warm:
        out["rl"] = sum(row[part] or 0.0 for row in warm for part in parts) / len(warm)
        beyond = [seconds - updates * out["rl"] for updates, seconds in _branches(root)]
        if len(beyond) == each.branches:  # a branch that was resumed does not tell
            settled = beyond[lanes:] or beyond
            out["branch_rest"] = max(0.0, statistics.fmean(settled))
    if each.control_updates:
        # A control that had nothing to learn from leaves no rows: its time is then the branches' rest.
        beside = [row["seconds_learn"] or 0.0 for row in rows if row["seconds_generate"] is None]
        out["control"] = sum(beside) / each.control_updates


def _branches(root: Path) -> list[tuple[int, float]]:
    """(updates, seconds) of every branch that one process did from start to end, in the order in which they ended."""
    found = []
    for path in (root / "markers" / "rl").rglob("*.json"):
        try:
            details, ended = json.loads(path.read_text()), path.stat().st_mtime
        except (OSError, ValueError):
            continue
        if isinstance(details.get("seconds"), int | float):
            found.append((ended, int(details["updates"]), float(details["seconds"])))
    return [(updates, seconds) for _, updates, seconds in sorted(found)]


def _columns(root: Path, name: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    try:
        return list(pq.read_table(root / "tables" / f"{name}.parquet", columns=list(columns)).to_pylist())
    except (OSError, ValueError):
        return []


def _probe_seconds(root: Path) -> list[float]:
    """Of the probes of SFT and of edits, beside which nothing else uses the engines."""
    found = []
    for where in ("probe/sft", "probe/edit"):
        for path in (root / "markers" / where).rglob("*.json"):
            try:
                seconds = json.loads(path.read_text()).get("seconds")
            except (OSError, ValueError):
                continue
            if isinstance(seconds, int | float):
                found.append(float(seconds))
    return found


def _calibrated(study: Study, storage: Path) -> dict[str, Rate]:
    try:
        stored = json.loads((storage / FILE).read_text())
        return {
            name: Rate(float(stored[key]["seconds"]), str(stored[key]["source"]))
            for name in UNITS
            if (key := _key(study, name)) in stored
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def store_rates(study: Study, storage: Path, found: Mapping[str, float], source: str) -> None:
    """Keep calibrated rates for later plans under `storage`."""
    path = storage / FILE
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError):
        stored = {}
    for name, seconds in found.items():
        stored[_key(study, name)] = {"of": UNITS[name], "seconds": seconds, "source": source}
    write_json(path, stored)


def _key(study: Study, name: str) -> str:
    """What a calibrated rate depends on, the machine and the libraries included."""
    from rlheals_ray.provenance import versions

    return f"{name}-{conditions(study, name)}-{fingerprint(cores=os.cpu_count(), versions=versions())}"
