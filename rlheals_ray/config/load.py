"""From a preset's name or a YAML file, and dotted overrides, to a `Study`; or to one paragraph on what is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rlheals_ray.config.fields import InputError
from rlheals_ray.config.study import Study

STUDIES = Path(__file__).parents[1] / "studies"


def presets() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def load_study(study: str, overrides: Sequence[str] = ()) -> Study:
    """The study named by a preset or a YAML path, with dotted overrides applied.

    Raises InputError (field, value, remedy) for anything that is wrong with it.
    """
    values = _read(study)
    for override in overrides:
        _apply(values, override)
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(error)) from None


def dump_study(study: Study) -> dict[str, Any]:
    """The resolved study as plain JSON-like values, in the order of its fields."""
    return study.model_dump(mode="json")


def _read(study: str) -> dict[str, Any]:
    path = STUDIES / f"{study}.yaml" if study in presets() else Path(study)
    if path.suffix not in (".yaml", ".yml"):
        near = difflib.get_close_matches(study, presets(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"STUDY: there is no preset {study!r}.{hint} Use one of {presets()} or the path of a YAML file."
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"STUDY: {study!r} cannot be read ({error.strerror}); check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            f"STUDY: {study!r} is not valid YAML ({' '.join(str(error).split())}); mend the file."
        ) from None
    if not isinstance(values, dict):
        raise InputError(f"STUDY: {study!r} holds a {type(values).__name__}; a study is a mapping of fields.")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    field, equals, text = override.partition("=")
    if not equals or not field:
        raise InputError(f"override {override!r}: write field=value, for example sft.learning_rate=2e-4.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(
            f"{field}: the value {text!r} is not valid YAML; quote it or mend the brackets."
        ) from None
    *parents, leaf = field.split(".")
    node: Any = values
    for depth, name in enumerate([*parents, leaf]):
        key: Any = name
        if isinstance(node, list) and name.isdigit() and int(name) < len(node):
            key = int(name)
        elif not isinstance(node, dict):
            raise InputError(
                f"{field}: {'.'.join(field.split('.')[:depth])} has no field {key!r}; check the name."
            )
        if depth == len(parents):
            node[key] = value
        else:
            node = node[key] if isinstance(node, list) else node.setdefault(key, {})


def _explain(error: ValidationError) -> str:
    details = [_untagged(detail) for detail in error.errors()]
    return " ".join(_explain_one(detail) for detail in details if not _follows(detail, details))


def _untagged(detail: Any) -> dict[str, Any]:
    """Without what pydantic puts into a place to say which member of a union it tried."""
    place = tuple(part for part in detail["loc"] if not (isinstance(part, str) and "[" in part))
    return {**detail, "loc": place, "tried": place != detail["loc"]}


def _follows(detail: Any, details: Sequence[Any]) -> bool:
    """Whether it only repeats another: a list too short as some items are wrong, or one that need not be a list."""
    where = detail["loc"]
    if detail["tried"]:
        # Of the members of a union the one that fits best tells: the one that was read furthest, else the first.
        members = [other for other in details if other["tried"] and other["loc"][: len(where)] == where]
        return detail is not max(members, key=lambda other: len(other["loc"]))
    return detail["type"] == "too_short" and any(
        other["loc"][: len(where)] == where and len(other["loc"]) > len(where) for other in details
    )


def _explain_one(detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"]) or "study"
    if detail["type"] == "extra_forbidden":
        known = _fields(detail["loc"][:-1])
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"{where}: there is no such field.{hint} Known here: {', '.join(known)}."
    message = detail["msg"].removeprefix("Value error, ")
    if not isinstance(detail["input"], dict | BaseModel):
        return f"{where} (got {detail['input']!r}): {message}."
    if detail["type"] != "value_error":
        return f"{where}: {message}."
    # A model's own check, of several fields together: it begins with the field, dotted from the model or from the top.
    from_the_top = not detail["loc"] or message.startswith(f"{where}.")
    return f"{message}." if from_the_top else f"{where}.{message}."


def _fields(location: Iterable[int | str]) -> list[str]:
    model: Any = Study
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        arguments = getattr(annotation, "__args__", (annotation,))
        model = next((a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)), annotation)
    return list(model.model_fields)
