"""Laws of a task's fingerprint, and the options that differ in one field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from rlheals_ray.tasks.conformance.laws import Findings, cause
from rlheals_ray.tasks.task import Task


def other_options(options: BaseModel) -> Iterator[tuple[str, BaseModel]]:
    """Options that differ from these in one field each, and the field with its other value as text.

    A field for which no other valid value is guessed is left out.
    """
    given = {name: getattr(options, name) for name in type(options).model_fields}
    for name, field in type(options).model_fields.items():
        for value in _others(given[name], field.annotation):
            try:
                changed = type(options).model_validate({**given, name: value})
            except (ValidationError, TypeError):
                continue
            if getattr(changed, name) != given[name]:
                yield f"{name}={value!r}", changed
                break


def check_fingerprint(task: Task, twin: Task | None, options: BaseModel | None, findings: Findings) -> None:
    """That it is a stable str, and another for every option that differs."""
    first = _fingerprint(task, findings, "fingerprint()")
    if first is None:
        return
    for which, of in (("a second time", task), ("of an equal task", twin)):
        if of is not None and (again := _fingerprint(of, findings, "fingerprint()")) is not None:
            findings.check(
                "fingerprint",
                again == first,
                f"fingerprint() {which} is another",
                "hash options and a version of the code, with hashlib",
            )
    if options is None:
        return
    for changed, other in other_options(options):
        findings.doing("fingerprint", f"a task with {changed}")
        try:
            varied = type(task)(other)  # type: ignore[call-arg]
        except Exception:  # the options are valid, but not what they name (a file that is not there)
            continue
        if (theirs := _fingerprint(varied, findings, f"fingerprint() with {changed}")) is not None:
            findings.check(
                "fingerprint",
                theirs != first,
                f"fingerprint() with {changed} is the same",
                "hash all options: json.dumps(self.options.model_dump(mode='json'), sort_keys=True)",
            )


def _fingerprint(task: Task, findings: Findings, what: str) -> str | None:
    findings.doing("fingerprint", what)
    try:
        got: object = task.fingerprint()
        wrong = "" if isinstance(got, str) and got else f"{what} gives {got!r}"
    except Exception as error:
        got, wrong = None, f"{what} raises {cause(error)}"
    findings.check("fingerprint", not wrong, wrong, "give a str")
    return got if isinstance(got, str) and got else None


def _others(value: Any, annotation: Any) -> Iterator[Any]:
    """Guesses at other values of a field."""
    yield from (choice for choice in _choices(annotation) if choice != value)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1, value * 2, value // 2)
    elif isinstance(value, float):
        yield from (value / 2, value * 2, value + 0.1, value - 0.1, 1 - value)
    elif isinstance(value, str):
        yield from (f"{value}x", value[:-1])
    elif isinstance(value, list | tuple):
        kind = type(value)
        for position, item in enumerate(value):
            for other in _others(item, None):
                yield kind([*value[:position], other, *value[position + 1 :]])
        yield from (kind([*value, *value[-1:]]), kind(value[:-1]))
    elif value is None:
        yield from (1, 0.5, True, "x")


def _choices(annotation: Any) -> Iterator[Any]:
    """The values that a Literal anywhere in an annotation names."""
    for argument in get_args(annotation):
        if isinstance(argument, str | int):
            yield argument
        yield from _choices(argument)
