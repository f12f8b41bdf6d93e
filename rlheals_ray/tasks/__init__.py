"""Tasks: one file per task and one line in the registry below; or one's own, named as `module:Class`."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, Literal, overload

from pydantic import BaseModel, ValidationError

from rlheals_ray.config import InputError
from rlheals_ray.tasks.determinant import Determinant
from rlheals_ray.tasks.general_points import GeneralPoints
from rlheals_ray.tasks.matrix_rank import MatrixRank
from rlheals_ray.tasks.navigation import Navigation
from rlheals_ray.tasks.reasoning_gym import ReasoningGym
from rlheals_ray.tasks.task import Problem, Rule, Split, Task, TurnwiseTask, Verdict, ood_rules, rules_of

__all__ = [
    "Problem",
    "Rule",
    "Split",
    "Task",
    "TurnwiseTask",
    "Verdict",
    "get_task",
    "ood_rules",
    "rules_of",
]

_TASKS: dict[str, Any] = {
    "general_points": GeneralPoints,
    "matrix_rank": MatrixRank,
    "determinant": Determinant,
    "navigation": Navigation,
    "reasoning_gym": ReasoningGym,
}

_METHODS = tuple(name for name, member in vars(Task).items() if inspect.isfunction(member) and name[0] != "_")


@overload
def get_task(name: Literal["general_points"], **options: Any) -> GeneralPoints: ...
@overload
def get_task(name: str, **options: Any) -> Task: ...
def get_task(name: str, **options: Any) -> Task:
    """The task of this name with its options validated; raises InputError naming field, value, remedy.

    `module:Class` names a task of one's own: a class with the methods of `Task` and a pydantic model
    `Options`, an instance of which is its one argument. The module must be importable in every process
    of the study: from the directory that the job is started in, from PYTHONPATH, or installed.
    """
    task = _own_task(name) if ":" in name else _TASKS.get(name)
    if task is None:
        raise InputError(
            f"task.name: there is no task {name!r}; use one of {', '.join(_TASKS)}, or module:Class for your own."
        )
    try:
        return task(task.Options.model_validate(options))
    except ValidationError as error:
        told: dict[str, Any] = {}
        for detail in error.errors():
            told.setdefault(_field(detail), detail)  # of what may be one thing or another, the first
        raise InputError(" ".join(_explain(detail, task.Options) for detail in told.values())) from None


def _own_task(name: str) -> Any:
    """The class at `module:Class`; raises InputError where it is not there or is no task."""
    module_name, _, class_name = name.partition(":")
    got = f"task.name (got {name!r})"
    if not all(part.isidentifier() for part in (*module_name.split("."), class_name)):
        raise InputError(f"{got}: write module:Class, for example my_tasks:MyTask.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code, which may raise anything
        missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        if not missing:
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(
                f"{got}: importing {module_name} fails ({cause}); mend it or install what it needs."
            ) from error
        raise InputError(
            f"{got}: there is no module {module_name}; start the job in the directory that holds it, or put that on "
            "PYTHONPATH."
        ) from None
    task = getattr(module, class_name, None)
    if not inspect.isclass(task):
        classes = [
            n for n, member in vars(module).items() if inspect.isclass(member) and hasattr(member, "Options")
        ]
        hint = f" (it has {', '.join(classes)})" if classes else ""
        raise InputError(f"{got}: module {module_name} has no class {class_name}{hint}; check the name.")
    absent = [method for method in _METHODS if not callable(getattr(task, method, None))]
    if absent:
        raise InputError(
            f"{got}: {class_name} lacks {', '.join(absent)}; a task has the methods of rlheals_ray.tasks.Task."
        )
    options = getattr(task, "Options", None)
    if not (inspect.isclass(options) and issubclass(options, BaseModel)):
        raise InputError(
            f"{got}: {class_name} has no Options; give it a pydantic model of its options, empty if there are none."
        )
    return task


def _field(detail: Any) -> str:
    """The option's dotted name, without what pydantic puts in to say which member of a union it tried."""
    return ".".join(str(part) for part in detail["loc"] if not (isinstance(part, str) and "[" in part))


def _explain(detail: Any, options: type[BaseModel]) -> str:
    field = _field(detail)
    if detail["type"] == "extra_forbidden":
        return (
            f"task.{field}: there is no such option; use {', '.join(options.model_fields) or 'none at all'}."
        )
    remedy = detail["msg"].removeprefix("Value error, ")
    return f"task.{field} (got {detail['input']!r}): {remedy[:1].lower()}{remedy[1:]}."
