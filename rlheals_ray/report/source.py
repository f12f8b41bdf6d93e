"""What the report reads of a study's directory: its tables, its settings, its timings; nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError

from rlheals_ray.config import InputError, Study, dump_study
from rlheals_ray.report.results import conform
from rlheals_ray.report.words import algorithm_name
from rlheals_ray.tables import SCHEMAS
from rlheals_ray.tasks import Task, get_task, ood_rules

COMPARED = ("spectra", "updates", "singular_values")
"""Tables that comparisons of checkpoints leave, with or without a study around them."""
EPISODE_COLUMNS = ["checkpoint", "rule", "problem_id", "solved_at"]
"""All of an episode that the report needs; answers, the bulk of the table, are not read."""


@dataclass(frozen=True)
class Source:
    """A study as it stands on disk; every part may be missing."""

    name: str
    study: Mapping[str, Any]
    tables: Mapping[str, pa.Table]
    """Every binding table, empty where there is none yet."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """File name -> why it could not be read."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Stage -> seconds."""
    task: Task | None = None
    """Made again from the settings; None where they are not there or not valid."""
    clusters: Mapping[str, str] | None = None
    """OOD problem id -> the cluster it is resampled with, as the study's task makes them; None if unknown."""
    written: datetime | None = None
    """When the newest table was written, UTC."""
    directory: Path | None = None

    @property
    def outside(self) -> bool:
        """Whether this is no study but comparisons of weights alone, as jobs/spectra.py --out leaves them."""
        other = any(table.num_rows for name, table in self.tables.items() if name not in COMPARED)
        return not self.study and not other and any(self.tables[name].num_rows for name in COMPARED)


def read_study(directory: Path) -> Source:
    """Read what is there; a file that is broken or half-written is named in `unreadable`, not raised."""
    tables: dict[str, pa.Table] = {}
    unreadable: dict[str, str] = {}
    newest = 0.0
    for name in SCHEMAS:
        path = directory / "tables" / f"{name}.parquet"
        table = None
        if path.exists():
            try:
                have = pq.read_schema(path).names
                columns = [c for c in EPISODE_COLUMNS if c in have] if name == "episodes" else None
                table = pq.read_table(path, columns=columns)
                newest = max(newest, path.stat().st_mtime)
            except (pa.ArrowException, OSError) as error:
                unreadable[path.name] = " ".join(str(error).split())[:200]
        tables[name] = conform(name, table)
    study = _mapping(directory / "study.yaml", unreadable)
    timings = {
        str(stage): float(seconds)
        for stage, seconds in _mapping(directory / "timings.json", unreadable).items()
        if isinstance(seconds, int | float)
    }
    written = datetime.fromtimestamp(newest, UTC) if newest else None
    name = str(study.get("name") or directory.resolve().name)
    task = _task(study)
    return Source(name, study, tables, unreadable, timings, task, _clusters(study, task), written, directory)


def resolved(source: Source) -> dict[str, Any] | None:
    """The study's settings with today's defaults for fields that it does not name; None where they are not valid."""
    mine = {key: value for key, value in source.study.items() if key in Study.model_fields and key != "name"}
    try:
        return dump_study(Study.model_validate(mine)) if mine else None
    except ValidationError:
        return None


def _task(study: Mapping[str, Any]) -> Task | None:
    options = dict(_part(study, "task"))
    try:
        return get_task(options.pop("name"), **options)
    except (InputError, KeyError, TypeError):
        return None


def _clusters(study: Mapping[str, Any], task: Task | None) -> dict[str, str] | None:
    """The clusters of the OOD probe problems, made again from the settings as the evaluation made them."""
    if task is None:
        return None
    evaluation = _part(study, "evaluation")
    try:
        problems = [
            problem
            for rule in ood_rules(task)
            for problem in task.problems(rule, "eval", evaluation["problems"], seed=evaluation["seed"])
        ]
    except (InputError, KeyError, TypeError):
        return None
    return {problem.id: problem.group for problem in problems}


def _mapping(path: Path, unreadable: dict[str, str]) -> dict[str, Any]:
    """A YAML or JSON file that holds a mapping; empty when it is missing or anything else."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        unreadable[path.name] = " ".join(str(error).split())[:200]
        return {}
    if not isinstance(value, dict):
        unreadable[path.name] = "it does not hold a mapping"
        return {}
    return value


def facts(source: Source) -> list[tuple[str, str]]:
    """What the head of the page says about the run, as (name, value); only what is known."""
    study = source.study
    base, task = _part(study, "base"), _part(study, "task")
    sft, rl = _part(study, "sft"), _part(study, "rl")
    options = ", ".join(f"{key} {_plain(value)}" for key, value in task.items() if key != "name")
    seeds = study.get("seeds")
    known = [
        ("Model", _plain(base.get("model"))),
        ("Task", f"{_plain(task.get('name'))}{f' ({options})' if options else ''}" if task else ""),
        ("SFT", _plain(sft.get("recipe"))),
        ("RL", algorithm_name(_plain(rl.get("algorithm")))),
        ("Seeds", _plain(seeds)),
        ("Tables written", source.written.strftime("%Y-%m-%d %H:%M UTC") if source.written else ""),
        ("Git commit", _plain(study.get("git_commit"))[:12]),
        ("Versions", _plain(study.get("versions"))),
    ]
    return [(name, value) for name, value in known if value]


def _part(study: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = study.get(name)
    return value if isinstance(value, dict) else {}


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(inner) for inner in value)
    return str(value)
