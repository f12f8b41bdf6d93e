"""Whether a task keeps the promises of `rlheals_ray.tasks.task.Task`: every promise a law that can be put to the test.

    python jobs/evaluate.py --check-task my_tasks:MyTask

checks a task from outside, in processes of its own; a study checks a task of one's own quickly before it starts.
"""

from __future__ import annotations

import inspect

from pydantic import BaseModel

from rlheals_ray.tasks.conformance.judging import Judging, Oracle
from rlheals_ray.tasks.conformance.laws import (
    JUDGE_SECONDS,
    LAWS,
    Breach,
    Conformance,
    Doing,
    Effort,
    Findings,
)
from rlheals_ray.tasks.conformance.leaks import check_prompts
from rlheals_ray.tasks.conformance.options import check_fingerprint, other_options
from rlheals_ray.tasks.conformance.problems import Drawing
from rlheals_ray.tasks.conformance.texts import check_texts
from rlheals_ray.tasks.conformance.turns import absent_of_turns, check_turns
from rlheals_ray.tasks.task import Task
from rlheals_ray.tasks.turns import is_turnwise

__all__ = [
    "JUDGE_SECONDS",
    "LAWS",
    "Breach",
    "Conformance",
    "Effort",
    "Oracle",
    "check_task",
    "other_options",
]

_METHODS = tuple(name for name, member in vars(Task).items() if inspect.isfunction(member) and name[0] != "_")


def check_task(
    task: Task,
    *,
    options: BaseModel | None = None,
    oracle: Oracle | None = None,
    effort: Effort | None = None,
    doing: Doing | None = None,
) -> Conformance:
    """Hold any object against the protocol, in this process; a judge that hangs hangs this too.

    `options` are those that the task was made with, by default its attribute of that name: with them an equal task and
    tasks that differ in one option are made as well. `oracle` proves that nothing wrong is judged solved. The law
    `processes` needs other processes: see `conformance.apart`. Raises nothing, whatever the task does.
    """
    findings = Findings(effort or Effort(), doing)
    absent = [method for method in _METHODS if not callable(getattr(task, method, None))]
    absent += absent_of_turns(task)
    if not isinstance(getattr(task, "name", None), str):
        absent.append("name")
    if not findings.check(
        "protocol", not absent, f"it lacks {', '.join(absent)}", "see rlheals_ray/tasks/task.py"
    ):
        return findings.result
    declared = options if options is not None else getattr(task, "options", None)
    known = declared if isinstance(declared, BaseModel) else None
    twin = _twin(task, known)
    sample = Drawing(task, twin, findings).check().sample
    texts = check_texts(task, twin, sample, findings)
    check_prompts(findings, texts.prompts, texts.demonstrations)
    findings.begin_anew()  # slow draws leave the judge its time
    Judging(task, twin, findings, texts, oracle).check(sample)
    if is_turnwise(task):
        check_turns(task, twin, sample, texts, findings)
    check_fingerprint(task, twin, known, findings)
    return findings.result


def _twin(task: Task, options: BaseModel | None) -> Task | None:
    """A task made anew with the same options; None where it is not known how."""
    if options is None or not hasattr(type(task), "Options"):
        return None
    try:
        return type(task)(options)  # type: ignore[call-arg]
    except Exception:
        return None
