"""Tasks: one file per task and one line in the registry below."""

from __future__ import annotations

from typing import Any, Literal, overload

from pydantic import BaseModel, ValidationError

from rlheals_ray.config import InputError
from rlheals_ray.tasks.general_points import GeneralPoints
from rlheals_ray.tasks.task import Problem, Rule, Split, Task, Verdict

__all__ = ["Problem", "Rule", "Split", "Task", "Verdict", "get_task"]

_TASKS = {
    "general_points": GeneralPoints,
}


@overload
def get_task(name: Literal["general_points"], **options: Any) -> GeneralPoints: ...
@overload
def get_task(name: str, **options: Any) -> Task: ...
def get_task(name: str, **options: Any) -> Task:
    """The task of this name with its options validated; raises InputError naming field, value, remedy."""
    if name not in _TASKS:
        raise InputError(f"task.name: there is no task {name!r}; use one of {', '.join(_TASKS)}.")
    task = _TASKS[name]
    try:
        return task(task.Options.model_validate(options))
    except ValidationError as error:
        raise InputError(" ".join(_explain(detail, task.Options) for detail in error.errors())) from None


def _explain(detail: Any, options: type[BaseModel]) -> str:
    field = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"task.{field}: there is no such option; use {', '.join(options.model_fields)}."
    remedy = detail["msg"].removeprefix("Value error, ")
    return f"task.{field} (got {detail['input']!r}): {remedy[:1].lower()}{remedy[1:]}."
