"""Trains one trunk inside a Ray Train worker group: an SFT run over the study's data, from its base model.

Restarted, it resumes from its newest complete state, with optimiser, schedule and data order.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from rlheals_ray import tables
from rlheals_ray.config import Study
from rlheals_ray.lineage import Trunk
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.sft.data import open_examples
from rlheals_ray.sft.run import RunLog, SFTRun, train_run
from rlheals_ray.sft.schedule import Schedule
from rlheals_ray.storage import StudyFiles, Unit
from rlheals_ray.tasks import get_task
from rlheals_ray.training import Report


def train_trunk(study: Study, files: StudyFiles, trunk: Trunk, unit: Unit, base: str, report: Report) -> None:
    """Train `trunk` from checkpoint `base`; called on every rank of a worker group.

    Leaves a checkpoint for every step of sft.steps, the trunk's part of tables/sft without the held-out
    losses (they are scored elsewhere, from the checkpoints), and its marker.
    """
    if files.is_done(unit):
        return  # the worker that did it died before it could say so
    settings = study.sft
    task = get_task(study.task.name, **study.task.options)
    chat = ChatFormat.of(files.checkpoint(base))
    examples = open_examples(study, files, task, chat, trunk.seed)
    run = trunk_run(study, trunk, unit, base)
    log = train_run(study, files, run, examples, report)
    if log.is_main:
        consumed = range(run.updates * settings.batch_size)
        examples.record(files.received(unit), consumed)
        files.write_part("sft", unit, tables.table("sft", _rows(trunk, settings.steps, log)))
        files.mark_done(unit)
        shutil.rmtree(files.state(unit), ignore_errors=True)


def trunk_run(study: Study, trunk: Trunk, unit: Unit, base: str) -> SFTRun:
    """The SFT run that a trunk is."""
    steps = study.sft.steps
    return SFTRun(
        unit=unit,
        start=base,
        updates=steps[-1],
        publish={step: trunk.checkpoint(step) for step in steps},
        recipe=trunk.recipe,
        seed=trunk.seed,
        schedule=Schedule.of(study.sft, steps[-1]),
    )


def _rows(trunk: Trunk, steps: Sequence[int], log: RunLog) -> list[dict[str, Any]]:
    """One row per saved step; train_loss and grad_norm are means over the updates since the one before."""
    rows, previous = [], 0
    for step in steps:
        updates = [update for update in log.updates if previous < update["step"] <= step]
        rows.append(
            {
                "recipe": trunk.recipe,
                "seed": trunk.seed,
                "step": step,
                "train_loss": _mean(updates, "loss"),
                "id_loss": None,
                "ood_loss": None,
                "learning_rate": updates[-1]["learning_rate"] if updates else None,
                "grad_norm": _mean(updates, "grad_norm"),
                "tokens": sum(update["tokens"] for update in updates),
                "seconds": sum(update["seconds"] for update in updates),
                "parameter_bytes": log.parameter_bytes,
                "engine": "trl.SFTTrainer",
                "wrapped_model": log.wrapped_model,
                "train_run": log.train_run,
            }
        )
        previous = step
    return rows


def _mean(updates: Sequence[dict[str, Any]], key: str) -> float | None:
    return sum(update[key] for update in updates) / len(updates) if updates else None
