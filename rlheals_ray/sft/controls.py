"""Controls of healing by SFT: as many updates from a branch's start as its compute pays for, budget by budget.

A control is one run of the trunk's own recipe and settings from the checkpoint that the RL branch left, with a fresh
optimiser (RL has one too) and a constant rate without warm-up (a schedule would end in the middle of nowhere). At each
RL budget it publishes the checkpoint whose cost is nearest to what RL had spent by then.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from rlheals_ray import tables
from rlheals_ray.config import Study
from rlheals_ray.lineage import Branch
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.sft.data import Examples, open_examples
from rlheals_ray.sft.run import RunLog, SFTRun, train_run
from rlheals_ray.sft.schedule import Schedule
from rlheals_ray.storage import StudyFiles, Unit
from rlheals_ray.tasks import get_task
from rlheals_ray.training import Report

_AHEAD = 32
"""Updates whose tokens are counted at a time: the user's data start a pipeline for every stream."""
TRAIN = 6
"""FLOPs per parameter and token trained on: a forward and a backward pass."""


def nearest_updates(
    tokens: Callable[[int], int], target: float, *, updates: int = 0, cost: float = 0.0
) -> tuple[int, float]:
    """After how many updates the cost is nearest to `target`, at least one more than `updates`; and that cost.

    tokens: how many update n (from 1) trains on, each of which costs 6 FLOPs per parameter; cost: what the control has
    spent so far, by `updates` updates and otherwise.
    """
    while True:
        updates += 1
        cost += TRAIN * tokens(updates)
        following = TRAIN * tokens(updates + 1)
        if cost >= target or cost + following - target > target - cost:
            return updates, cost


def tokens_of(examples: Examples, batch_size: int, first_position: int = 0) -> Callable[[int], int]:
    """How many tokens update n (from 1) of `batch_size` examples trains on, prompts included, padding not.

    The first update takes the examples from `first_position` on.
    """
    known: dict[int, int] = {}

    def tokens(update: int) -> int:
        if update not in known:
            start = first_position + (update - 1) * batch_size
            stream = examples.stream(range(start, start + _AHEAD * batch_size))
            for number in range(update, update + _AHEAD):
                known[number] = sum(len(example.input_ids) for example in islice(stream, batch_size))
        return known[update]

    return tokens


def train_continued(
    study: Study,
    files: StudyFiles,
    control: Branch,
    unit: Unit,
    targets: Mapping[int, int],
    report: Report,
) -> None:
    """More SFT instead of RL: the trunk's own data go on where it was; called on every rank of a worker group.

    targets: RL budget to the FLOPs per parameter that RL had spent by then. Leaves checkpoints/control/... at each
    of these budgets, the control's part of tables/rl, and its marker.
    """
    if files.is_done(unit):
        return  # the worker that did it died before it could say so
    task = get_task(study.task.name, **study.task.options)
    chat = ChatFormat.of(files.checkpoint(control.start))
    batch = study.sft.batch_size
    examples, first = open_examples(study, files, task, chat, control.seed), control.sft_step * batch
    tokens, updates, cost, publish = tokens_of(examples, batch, first), 0, 0.0, {}
    for budget in sorted(targets):
        updates, cost = nearest_updates(tokens, targets[budget], updates=updates, cost=cost)
        publish[budget] = updates
    train_control(study, files, control, unit, examples, publish, report, first_position=first)


def train_control(
    study: Study,
    files: StudyFiles,
    control: Branch,
    unit: Unit,
    examples: Examples,
    publish: Mapping[int, int],
    report: Report,
    *,
    first_position: int = 0,
    generated: Mapping[int, int] | None = None,
    cause: str | None = None,
) -> None:
    """SFT on `examples` from the control's start, published at update `publish[budget]` for each budget; collective.

    generated: FLOPs per parameter that making the examples took by each budget; cause: why a budget of RL has none.
    """
    updates = max(publish.values())
    run = SFTRun(
        unit=unit,
        start=control.start,
        updates=updates,
        publish={update: control.checkpoint(budget) for budget, update in publish.items()},
        recipe=control.trunk.recipe,
        seed=control.seed,
        schedule=Schedule.constant(study.sft.learning_rate, updates),
        first_position=first_position,
    )
    log = train_run(study, files, run, examples, report)
    if not log.is_main:
        return
    last_position = first_position + updates * study.sft.batch_size
    examples.record(files.received(unit), range(first_position, last_position))
    rows = control_rows(control, log, publish)
    files.write_part("rl", unit, tables.table("rl", rows))
    finish_control(files, unit, control_compute(log, publish, generated or {}), publish, cause)
    shutil.rmtree(files.state(unit), ignore_errors=True)


def control_compute(log: RunLog, publish: Mapping[int, int], generated: Mapping[int, int]) -> dict[int, int]:
    """FLOPs per parameter that the control had spent by each budget, generation included."""
    tokens = [row["tokens"] for row in log.updates]
    return {
        budget: generated.get(budget, 0) + TRAIN * sum(tokens[:updates])
        for budget, updates in publish.items()
    }


def finish_control(
    files: StudyFiles, unit: Unit, compute: Mapping[int, int], publish: Mapping[int, int], cause: str | None
) -> None:
    """The control's marker: what it had spent, and its number of SFT updates, at each budget that it came to."""
    files.mark_done(unit, compute=dict(compute), sft_updates=dict(publish), cause=cause)


def control_rows(control: Branch, log: RunLog, publish: Mapping[int, int]) -> list[dict[str, Any]]:
    """The control's rows of tables/rl, one per budget: means and sums over its SFT updates since the budget before."""
    rows, previous = [], 0
    for budget, updates in sorted(publish.items()):
        part, previous = log.updates[previous:updates], updates
        rows.append(
            {
                **dict.fromkeys(tables.RL.names),
                "recipe": control.trunk.recipe,
                "algorithm": control.algorithm,
                "seed": control.seed,
                "sft_step": control.sft_step,
                "rl_step": budget,
                "policy_loss": sum(row["loss"] for row in part) / len(part),
                "learning_rate": part[-1]["learning_rate"],
                "grad_norm": sum(row["grad_norm"] for row in part) / len(part),
                "tokens": sum(row["tokens"] for row in part),
                "seconds_learn": sum(row["seconds"] for row in part),
                "engine": "trl.SFTTrainer",
                "wrapped_model": log.wrapped_model,
                "train_run": log.train_run,
            }
        )
    return rows
