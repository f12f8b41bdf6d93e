"""How a study stands, from its directory alone: without Ray, without writing, while it runs or afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rlheals_ray.config import InputError, Study
from rlheals_ray.grid.status_asked import Asked
from rlheals_ray.grid.status_disk import Disk, Holder, Written, holder_of
from rlheals_ray.grid.status_runs import Evidence, Found, KnownUnits, State
from rlheals_ray.grid.status_time import Left, known_rates, time_left
from rlheals_ray.grid.status_units import STAGES, Inventory
from rlheals_ray.lineage import Branch, Trunk
from rlheals_ray.mirror_view import View
from rlheals_ray.models.architecture import directory_of

PLACES: Mapping[str, tuple[str, ...]] = {
    "base": ("checkpoints/base",),
    "sft": ("checkpoints/sft", "state/sft"),
    "losses": ("markers/losses",),
    "rl": ("checkpoints/rl", "state/rl"),
    "controls": ("checkpoints/control", "state/control"),
    "probes": ("markers/probe/sft", "markers/probe/rl", "markers/probe/control"),
    "spectra": ("factors", "parts/comparisons", "markers/spectra"),
    "hidden": ("hidden", "markers/hidden"),
    "edits": ("checkpoints/edit", "pieces", "markers/edit"),
    "edit probes": ("markers/probe/edit",),
}
"""Where each stage writes: what was written there last tells whether it moves."""


@dataclass(frozen=True)
class Stage:
    """A stage's units, counted by what became of them."""

    name: str
    units: int
    done: int
    running: int
    begun: int
    failed: int
    left: int
    outdated: int
    """Of those that are not done: done once from other settings or by other code."""
    at_most: bool
    """There may be fewer units: some peak is not known yet."""
    last_written: Written | None
    seconds_left: float | None
    """An estimate; None: nothing is left, or no rate was recorded."""


@dataclass(frozen=True)
class Run:
    """A trunk, a branch or a control, and how far it came."""

    stage: str
    recipe: str
    algorithm: str | None
    """RL's or a control's; None of a trunk."""
    seed: int
    sft_step: int | None
    """Where a branch starts; None of a trunk."""
    state: State
    step: int
    of: int
    cause: str | None
    written_at: float | None
    """Of its state or its curve, in seconds since the epoch; None where it has neither, or is done."""


@dataclass(frozen=True)
class Failure:
    """A unit, or a whole stage, that failed and has not been done since."""

    unit: str
    cause: str
    log: str | None
    """A path in the study."""
    before_this_run: bool
    """It failed in an earlier run than the one under way, which may not have come to it yet."""


@dataclass(frozen=True)
class Status:
    """A study at one moment. Times in seconds since the epoch, durations in seconds."""

    study: str
    root: str
    at: float
    notes: tuple[str, ...]
    holder: Holder | None
    """The process that works on the study, as far as this machine sees."""
    complete: bool
    """Every unit is done and nothing failed."""
    stages: tuple[Stage, ...]
    runs: tuple[Run, ...]
    failures: tuple[Failure, ...]
    recorded_seconds: Mapping[str, float]
    """By stage, of the runs that came to their end, from timings.json."""
    running_seconds: float | None
    """Of the run under way."""
    left: Left
    bytes: Mapping[str, int]
    """By what stands directly in the study's directory."""
    last_written: Written | None

    def plain(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


class Watched:
    """A study that is looked at again and again; what did not change is not read again."""

    def __init__(self, asked: Asked) -> None:
        self._asked, self._study = asked, asked.study
        self._units, self._notes = _units(asked.study)
        self._disk: Disk | None = None
        self._last: Status | None = None
        self._causes_count = asked.stored is None or _same_work(self._units, asked.stored)

    @cached_property
    def _rates(self) -> Mapping[str, float]:
        return known_rates(self._study, self._asked.root)

    def look_again(self) -> Status:
        """How the study stands now, or as it was seen last, with a note, where its copy cannot be read for a while."""
        try:
            self._last = self.look()
        except InputError as error:
            if self._last is None:
                raise
            age = time.time() - self._last.at
            return replace(self._last, notes=(*self._last.notes, f"as it was {age:.0f} s ago: {error}"))
        return self._last

    def look(self) -> Status:
        """How the study stands now. Raises InputError where its copy at a URI cannot be read."""
        root, now, view = self._asked.root, time.time(), self._asked.view
        if view is not None and self._disk is not None:  # at the first look it is fresh
            view.refresh()
        holder = holder_of(root) if view is None else _holder_elsewhere(view)
        disk = self._disk = Disk.walk(root, self._disk)
        causes = _causes(disk) if self._causes_count else {}
        inventory = Inventory(Evidence(self._units, disk, causes, holder.since if holder else None))
        found = inventory.found
        # A finished study needs no rates: reading tables takes longer than all the rest.
        pending = any(one.state != "done" for one in found)
        left = time_left(self._study, found, self._rates if pending else {})
        failures = tuple(_failures(disk, causes, found, holder))
        return Status(
            study=self._study.name,
            root=str(root) if view is None else view.remote.uri,
            at=now,
            notes=(*self._asked.notes, *self._notes, *_outdated_note(found)),
            holder=holder,
            complete=all(one.state == "done" for one in found) and not failures,
            stages=tuple(_stages(found, disk, left, inventory.at_most)),
            runs=tuple(_run(one) for one in found if one.run is not None),
            failures=failures,
            recorded_seconds=_numbers(disk.json("timings.json")),
            running_seconds=max(0.0, now - holder.since) if holder else None,
            left=left,
            bytes=dict(sorted(disk.bytes.items(), key=lambda item: -item[1])),
            last_written=disk.newest(),
        )


def _holder_elsewhere(view: View) -> Holder | None:
    """Who said last that it works on the study."""
    if not view.is_worked_on:
        return None
    state = view.state
    sign = f"on {state.get('host')}, whose last sign is {time.time() - state['at']:.0f} s old"
    return Holder(float(state.get("began", state["at"])), int(state["pid"]), sign)


def _units(study: Study) -> tuple[KnownUnits, tuple[str, ...]]:
    """The study's units; unchecked, with a note, where what their fingerprints hash is not at hand."""
    absent = [str(path) for path in _given_files(study) if not path.exists()]
    try:
        if not absent:
            units = KnownUnits(study)
            _ = units.task, units.base
            return units, ()
        problem = f"{', '.join(absent)} is not here"
    except Exception as error:  # a task of one's own may raise anything
        problem = f"task {study.task.name}: {' '.join(str(error).split())}"
    note = f"fingerprints cannot be checked, so every marker counts as of these settings: {problem}"
    return KnownUnits.unchecked(study), (note,)


def _given_files(study: Study) -> Iterator[Path]:
    """What a study reads from outside its directory, whose names, sizes and times are hashed."""
    if (model := directory_of(study.base.model)) is not None:
        yield model
    if study.sft.data is not None:
        yield Path(study.sft.data.path).expanduser()
    for where in (study.sft.checkpoints or {}).values():
        for seed in study.seeds:
            yield Path(where.format(seed=seed)).expanduser()


def _same_work(units: KnownUnits, stored: Study) -> bool:
    """Whether what failed in the last run is what these settings ask for: failures.json tells only names."""
    if units.study == stored or not units.checked:
        return True

    def named(of: KnownUnits) -> dict[str, str]:
        probes = [probe.unit for probe in (*of.probes(), *of.control_probes())]
        return {unit.name: unit.fingerprint for unit in probes}

    other, _ = _units(stored)
    mine, theirs = named(units), named(other)
    return all(mine[name] == theirs[name] for name in mine.keys() & theirs.keys())


def _causes(disk: Disk) -> dict[str, str]:
    return {name: str(cause) for name, cause in disk.json("failures.json").items()}


def _failures(
    disk: Disk, causes: Mapping[str, str], found: Sequence[Found], holder: Holder | None
) -> Iterator[Failure]:
    told = disk.files.get("failures.json", (0, 0))[0] / 1e9
    earlier = holder is not None and told < holder.since
    known = {one.unit for one in found}
    for one in found:
        if one.state == "failed":
            note = disk.files.get(f"state/failed/{one.unit}.json", (0, 0))[0] / 1e9
            before = earlier and holder is not None and note < holder.since
            yield Failure(one.unit, one.cause or "", _log(disk, one.unit), before)
    for name, cause in causes.items():
        if name not in known:  # a stage that broke off
            yield Failure(name, cause, _log(disk, name), earlier)


def _log(disk: Disk, unit: str) -> str | None:
    path = f"logs/{unit.replace('/', '_')}.log"
    return path if path in disk.files else None


def _stages(found: Sequence[Found], disk: Disk, left: Left, at_most: bool) -> Iterator[Stage]:
    for name in STAGES:
        mine = [one for one in found if one.stage == name]
        if mine:
            count = {state: sum(one.state == state for one in mine) for state in ("done", "running", "begun")}
            yield Stage(
                name,
                len(mine),
                **count,
                failed=sum(one.state == "failed" for one in mine),
                left=sum(one.state == "left" for one in mine),
                outdated=sum(one.outdated for one in mine),
                at_most=at_most and name.startswith("edit"),
                last_written=disk.newest(*PLACES[name]),
                seconds_left=left.stages.get(name),
            )


def _outdated_note(found: Sequence[Found]) -> tuple[str, ...]:
    outdated = sum(one.outdated for one in found)
    if not outdated:
        return ()
    return (
        f"{outdated} units were done from other settings or by other code: a run with these does them again",
    )


def _run(found: Found) -> Run:
    run = found.run
    assert isinstance(run, Trunk | Branch)
    trunk, algorithm, start = (
        (run, None, None) if isinstance(run, Trunk) else (run.trunk, run.algorithm, run.sft_step)
    )
    return Run(
        found.stage, trunk.recipe, algorithm, trunk.seed, start, found.state, found.step, found.of, found.cause,
        found.written,
    )  # fmt: skip


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
