"""Configurations of reasoning-gym's datasets, as a study file gives them: checked, completed and made into datasets.

The package is imported when a function here is called, never before: that takes seconds.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import enum
import importlib
import textwrap
import warnings
from functools import lru_cache
from typing import Any

from rlheals_ray.tasks.reasoning_gym_verify import REFUSED

CHUNK = 10_000
"""Items of one dataset object; some make a list of that length at once, one allows at most twice as many."""
_OURS = ("seed", "size")
Config = dict[str, Any]


def names() -> list[str]:
    """The datasets that a task can be made of, in order."""
    return sorted(set(_registry()) - set(REFUSED))


def check_name(name: str) -> None:
    """Raises ValueError with a remedy unless a task can be made of the dataset of this name."""
    known = names()
    if name in REFUSED:
        raise ValueError(f"{REFUSED[name]}; use another dataset, for example {known[0]}")
    if name not in known:
        close = difflib.get_close_matches(name, known, 4, 0.5)
        raise ValueError(
            f"reasoning-gym has no such dataset; use {' or '.join(close)}"
            if close
            else f"reasoning-gym has no such dataset; it has {len(known)}, from {known[0]} to {known[-1]}"
        )


def completed(name: str, given: Config) -> Config:
    """All fields of the dataset's configuration, as JSON has them, but for seed and size.

    Raises ValueError with a remedy where a field is unknown or ours, or the dataset refuses a value.
    """
    config = _dataclass(name, given)
    _dataset(name, config)
    fields = {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return {field: value for field, value in fields.items() if field not in _OURS}


def make(name: str, given: Config, seed: int) -> Any:
    """The package's dataset of `CHUNK` items; raises ValueError as `completed` does."""
    return _dataset(name, dataclasses.replace(_dataclass(name, given), seed=seed, size=CHUNK))


def _dataset(name: str, config: Any) -> Any:
    try:
        if hasattr(config, "validate"):
            config.validate()
        return _registry()[name][0](config)
    except Exception as error:  # AssertionError mostly, but a value of a wrong kind raises anything
        raise ValueError(f"the dataset refuses it ({_told(error)}); change that field") from None


def _dataclass(name: str, given: Config) -> Any:
    kind = _registry()[name][1]
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name not in _OURS}
    for field in given:
        if field in _OURS:
            raise ValueError(f"{field} is not yours to set, the task draws its own; leave it out")
        if field not in fields:
            raise ValueError(f"{name} has no field {field}; use {', '.join(fields) or 'none at all'}")
    defaults = kind()
    return kind(**{field: _like(getattr(defaults, field), value, field) for field, value in given.items()})


def _like(default: Any, value: Any, field: str) -> Any:
    """`value` as the kind that `default` is: study files have neither tuples, times, enumerations nor dataclasses."""
    if isinstance(default, enum.Enum):
        kind = type(default)
        if value not in [one.value for one in kind]:
            raise ValueError(
                f"{field} cannot be {value!r}; write {' or '.join(repr(one.value) for one in kind)}"
            )
        return kind(value)
    try:
        if dataclasses.is_dataclass(default) and isinstance(value, dict):
            return dataclasses.replace(default, **value)  # type: ignore[type-var]
        if isinstance(default, datetime.date | datetime.time) and isinstance(value, str):
            return type(default).fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{field} cannot be {value!r} ({_told(error)}); mend it") from None
    if isinstance(default, tuple | list) and isinstance(value, tuple | list):
        return type(default)(value)
    wanted: Any = (int, float) if type(default) is float else type(default)
    wrong_bool = isinstance(value, bool) and not isinstance(default, bool)
    if default is not None and (wrong_bool or not isinstance(value, wanted)):
        raise ValueError(
            f"{field} cannot be {value!r}; write {_named(type(default))}, for example {default!r}"
        )
    return value


def _named(kind: type) -> str:
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(
        kind, f"a {kind.__name__}"
    )


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return value if isinstance(value, int | float | str | bool | None) else str(value)


def _told(error: Exception) -> str:
    # One of the datasets names six hundred fonts.
    return textwrap.shorten(str(error), 300) or type(error).__name__


@lru_cache(1)
def _registry() -> dict[str, tuple[Any, Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of a package that it needs
            importlib.import_module("reasoning_gym")
        return dict(importlib.import_module("reasoning_gym.factory").DATASETS)
    except ImportError as error:
        raise ValueError(
            f"reasoning-gym cannot be imported ({_told(error)}); install the extra reasoning_gym of this package"
        ) from None
