"""The user's own training data, checked row by row before anything starts; nothing is kept but what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

from rlheals_ray.config import InputError, Study
from rlheals_ray.grid.preflight_base import positions, token_counter
from rlheals_ray.grid.progress import StageProgress
from rlheals_ray.sft.user_files import content, find_files, pieces, wrong_data
from rlheals_ray.sft.user_rows import Row, read_rows
from rlheals_ray.tasks import Rule, Task, ood_rules

_MOST_OOD = 20_000
"""Problems of the OOD rule whose prompts are looked for, where the task has more."""
_SHORT = 4
"""A text of a quarter as many bytes as tokens are allowed has few enough of them, whatever the tokenizer."""

_LARGE = 64 << 20
"""Bytes of data from which progress is shown."""
_WHY = {
    "id": "a probe would ask for what was learnt by heart",
    "ood": "the OOD rule never reaches SFT",
}
_CHECKED: set[str] = set()
"""Data that this process has found right: they are not read again for the same study."""


def check_data(study: Study, task: Task) -> None:
    """Raises InputError for the first row that cannot be trained on, or that a probe will ask for."""
    check_recipes(study)
    settings = study.sft.data
    if settings is None:
        return
    if study.sft.examples is not None:
        raise InputError(
            f"sft.examples (got {study.sft.examples}): it counts the task's problems, but sft.data names data of "
            "your own; remove one of the two."
        )
    checked = f"{content(settings)} {study.model_dump_json()}"
    if checked in _CHECKED:
        return
    bounds = (study.sft.max_length, positions(study.base.model))
    limit = min((bound for bound in bounds if bound is not None), default=None)
    tokens = cache(lambda: token_counter(study))  # reads the tokenizer: only where a row may be too long
    probed = _probed(study, task)
    count, total, found = 0, sum(file.stat().st_size for file in find_files(settings)), list(pieces(settings))
    progress = StageProgress("check data", len(found), "parts") if total > _LARGE else None
    same, first = 0, None
    for piece in found:
        for row in read_rows(settings, piece):
            count += 1
            _check_length(study, row, limit, tokens)
            if rule := next(_rules(row, probed), None):
                same, first = same + 1, first or (row, rule)
        if progress:
            progress.advance(note=f"{count} rows")
    if progress:
        progress.end()
    if not count:
        raise wrong_data(settings, "there are no rows; name data that has some")
    if first:
        row, rule = first
        more = f", and {same - 1} more rows have such prompts" if same > 1 else ""
        raise wrong_data(
            settings,
            f"row {row.number} of {row.file!r} has the prompt of a problem that is probed under the {rule.upper()} rule"
            f"{more}; {_WHY[rule]}: remove these rows",
        )
    _CHECKED.add(checked)


def check_recipes(study: Study) -> None:
    """Raises InputError for a recipe that the study's sharding cannot do."""
    if (
        "rotation" in study.sft.recipes
        and study.sft.sharding == "zero3"
        and max(study.sft.workers, study.rl.workers) > 1
    ):
        raise InputError(
            "sft.sharding (got 'zero3'): recipe 'rotation' needs the matrices, which ZeRO-3 takes away between "
            "layers; use fsdp2, zero2 or ddp."
        )


def _probed(study: Study, task: Task) -> dict[str, Rule]:
    """Prompts of the problems that are probed, and of what else the OOD rule has."""
    # Here, since it imports more than a preflight without data needs.
    from rlheals_ray.evaluation.probe import probe_problems

    problems = list(probe_problems(task, study.evaluation, "id"))
    for rule in ood_rules(task):
        problems += probe_problems(task, study.evaluation, rule)
        problems += task.problems(rule, "eval", min(task.available(rule, "eval"), _MOST_OOD), seed=0)
    return {_plain(task.prompt(problem)): problem.rule for problem in problems}


def _rules(row: Row, probed: dict[str, Rule]) -> Iterator[Rule]:
    return (rule for prompt in row.prompts if (rule := probed.get(_plain(prompt))))


def _plain(text: str) -> str:
    """Without differences of white space."""
    return " ".join(text.split())


def _check_length(
    study: Study, row: Row, limit: int | None, tokens: Callable[[], Callable[[str], int]]
) -> None:
    if limit is None or _SHORT * sum(len(text.encode()) + _SHORT for text in row.turns) < limit:
        return
    # Every turn with its template: an answer has less around it than a prompt, so this is never too little.
    length = sum(map(tokens(), row.turns))
    if length > limit:
        whose = (
            f"sft.max_length is {limit}"
            if limit == study.sft.max_length
            else f"base.model {study.base.model!r} reads {limit}"
        )
        assert study.sft.data is not None
        raise wrong_data(
            study.sft.data,
            f"row {row.number} of {row.file!r} has about {length} tokens, {whose}; shorten or remove it",
        )
