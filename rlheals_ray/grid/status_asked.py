"""Which study a status is asked of, and by which settings: those that its last run stored, or those that are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from rlheals_ray.config import InputError, Study, dump_study, load_study, presets
from rlheals_ray.grid.rates import NOT_SETTINGS
from rlheals_ray.mirror_remote import remote_folder
from rlheals_ray.mirror_view import View, for_status
from rlheals_ray.storage import StudyFiles, is_uri

RECORD = "study.yaml"
"""In a study's directory: the settings of its last run."""
_PLACES = ("name", "storage", "work")
"""Fields that only say where a study is."""


@dataclass(frozen=True)
class Asked:
    """A study that is there, and the settings by which it is looked at."""

    study: Study
    root: Path
    stored: Study | None
    """The settings of its last run; None where this version cannot read them."""
    notes: tuple[str, ...] = ()
    view: View | None = None
    """Of a study whose storage is a URI; `root` is its directory. The caller closes it."""


def asked_study(where: str, overrides: Sequence[str] = (), storage: str | None = None) -> Asked:
    """The study that `where` names: a preset, a YAML file, or the study's own directory.

    Its settings are those of its study.yaml. With overrides of more than name and storage they are those of `where`
    with the overrides, as a run would take them.

    Raises InputError where there is no such study, naming those that are there, or where no settings can be read.
    """
    directory = Path(where).expanduser()
    if where not in presets() and directory.is_dir():
        return _at_directory(directory.resolve(), overrides, storage)
    given = load_study(where, overrides)
    if storage:
        given = given.model_copy(update={"storage": storage})
    if is_uri(given.storage):
        return _at_uri(where, given, overrides)
    return _asked(where, given, overrides, StudyFiles.at(given.storage, given.name).root)


def _at_uri(where: str, given: Study, overrides: Sequence[str]) -> Asked:
    """Whatever machine it runs on: from the copy alone."""
    view = View(remote_folder(given.storage, given.name), for_status)
    try:
        if not (view.root / RECORD).is_file():
            raise InputError(
                f"name (got {given.name!r}): no study has run in {view.remote.uri!r}, which has no {RECORD}; check "
                "name and --storage."
            )
        return replace(_asked(where, given, overrides, view.root), view=view)
    except BaseException:
        view.close()
        raise


def _asked(where: str, given: Study, overrides: Sequence[str], root: Path) -> Asked:
    _check_there(root, field="name", value=given.name)
    stored, told = _stored(root)
    if any(override.partition("=")[0].split(".")[0] not in _PLACES for override in overrides):
        return Asked(given, root, stored, _notes(told if stored else ""))
    if stored is None:
        note = f"{RECORD} cannot be read by this version ({told}); the settings are those of {where!r}"
        return Asked(given, root, None, (note,))
    differ = _differences(dump_study(stored), dump_study(given))
    other = (
        f"settings as its last run stored them; {where!r} differs in {', '.join(differ)}" if differ else ""
    )
    return Asked(stored, root, stored, _notes(told, other))


def _notes(*lines: str) -> tuple[str, ...]:
    return tuple(line for line in lines if line)


def _at_directory(root: Path, overrides: Sequence[str], storage: str | None) -> Asked:
    if storage:
        raise InputError(
            f"--storage (got {storage!r}): STUDY {str(root)!r} is the study's directory already; leave --storage out."
        )
    _check_there(root, field="STUDY", value=str(root))
    stored, told = _stored(root)
    if stored is None:
        raise InputError(
            f"STUDY (got {str(root)!r}): its {RECORD} cannot be read by this version ({told}); give the preset or "
            "the YAML file that it was run from, with --storage."
        )
    study = _settings(dump_study(stored), overrides) if overrides else stored
    return Asked(study, root, stored, _notes(told))


def _check_there(root: Path, field: str, value: str) -> None:
    if (root / RECORD).is_file():
        return
    # A storage may have been given where its study was meant.
    for storage in (root, root.parent):
        if studies := studies_in(storage):
            there = f"studies in {str(storage)!r}: {', '.join(studies)}"
            break
    else:
        there = f"{str(root.parent)!r} holds no study"
    raise InputError(
        f"{field} (got {value!r}): no study has run in {str(root)!r}, which has no {RECORD}; {there}. Give one of them "
        "by name=NAME and --storage DIR, or its directory as STUDY."
    )


def studies_in(storage: Path) -> list[str]:
    """The names of the studies under a storage."""
    try:
        return sorted(path.parent.name for path in storage.glob(f"*/{RECORD}"))
    except OSError:
        return []


def _stored(root: Path) -> tuple[Study | None, str]:
    """The settings that a study's last run stored, and what of them is not known here; None, and what is wrong,
    where they cannot be read."""
    try:
        record = yaml.safe_load((root / RECORD).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return None, " ".join(str(error).split())
    if not isinstance(record, dict):
        return None, "it holds no mapping of fields"
    known = {str(k): v for k, v in record.items() if k in Study.model_fields}
    unknown = [str(k) for k in record if k not in known and k not in NOT_SETTINGS]
    note = (
        f"{RECORD} is of another version: {', '.join(unknown)} not known here, and left out"
        if unknown
        else ""
    )
    try:
        return _settings(known, ()), note
    except InputError as error:
        return None, str(error).rstrip(".")


def _settings(values: dict[str, Any], overrides: Sequence[str]) -> Study:
    """A study of plain values; raises InputError as `load_study` does."""
    whole = {**dump_study(Study()), **values}
    fields = [f"{field}={yaml.safe_dump(value, default_flow_style=True)}" for field, value in whole.items()]
    return load_study(presets()[0], [*fields, *overrides])  # of the preset no field remains


def _differences(stored: Any, given: Any, at: str = "") -> list[str]:
    """Dotted names of the fields that differ; where a study is does not count."""
    if not (isinstance(stored, dict) and isinstance(given, dict)):
        return [] if stored == given else [at]
    return [
        name
        for key in {**stored, **given}
        if at or key not in _PLACES
        for name in _differences(stored.get(key), given.get(key), f"{at}.{key}" if at else key)
    ]
