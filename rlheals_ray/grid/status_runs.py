"""What a unit's marker, state, checkpoints and failure say of it; of trunks and branches how far they came."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from rlheals_ray.config import Study
from rlheals_ray.grid.branch_states import last_line
from rlheals_ray.grid.status_disk import Disk
from rlheals_ray.grid.units import StudyUnits
from rlheals_ray.lineage import Branch, Trunk
from rlheals_ray.storage import Unit

State = Literal["done", "running", "begun", "failed", "left"]
"""begun: something of it is kept, and no process is seen at work on it; a run goes on from there."""


@dataclass(frozen=True)
class Found:
    """One unit and what became of it."""

    stage: str
    unit: str
    state: State
    outdated: bool = False
    """It was done once, from other settings or by other code: a run does it again."""
    cause: str | None = None
    """Why it failed, or why a branch that is done was stopped early."""
    run: Trunk | Branch | None = None
    """Of a trunk, a branch or a control."""
    step: int = 0
    """The last update that is safe on the disk; of a control, the RL budget whose compute it has had."""
    of: int = 0
    """The step of a run that came to its end."""
    written: float | None = None
    """When its state or its curve was last written, in seconds since the epoch."""


class KnownUnits(StudyUnits):
    """A study's units, each computed once. Where `checked` is False fingerprints mean nothing; names always do."""

    checked: bool = True

    @classmethod
    def unchecked(cls, study: Study) -> KnownUnits:
        """For a study whose task or models are not at hand: without them fingerprints cannot be computed."""
        units = cls(study)
        units.__dict__.update(task="unknown", checked=False)
        return units

    @cached_property
    def _known(self) -> dict[Trunk | Branch, Unit]:
        return {}

    def trunk(self, trunk: Trunk) -> Unit:
        if trunk not in self._known:
            self._known[trunk] = super().trunk(trunk)
        return self._known[trunk]

    def branch(self, branch: Branch) -> Unit:
        if branch not in self._known:
            self._known[branch] = super().branch(branch)
        return self._known[branch]


@dataclass(frozen=True)
class Evidence:
    """A study's directory at one moment, read for its units."""

    units: KnownUnits
    disk: Disk
    causes: Mapping[str, str]
    """Of the failures that the last run told, by unit."""
    since: float | None = None
    """When the process began that works on the study, in seconds since the epoch; None where there is none."""

    def recorded(self, name: str) -> str | None:
        """The fingerprint under which unit `name` was last done, if it was."""
        fingerprint = self.disk.json(f"markers/{name}.json").get("fingerprint")
        return fingerprint if isinstance(fingerprint, str) else None

    def matches(self, recorded: object, fingerprint: str) -> bool:
        """Whether what is recorded is of the study's settings, as far as that can be checked."""
        return isinstance(recorded, str) and (not self.units.checked or recorded == fingerprint)

    def is_done(self, unit: Unit) -> bool:
        """Whether the unit's marker is there, from these settings."""
        return self.matches(self.recorded(unit.name), unit.fingerprint)

    def holds(self, checkpoint: str, made_by: str) -> bool:
        """Whether a checkpoint is there that a unit of that fingerprint made."""
        stamp = self.disk.json(f"checkpoints/{checkpoint}/provenance.json")
        return self.matches(stamp.get("fingerprint"), made_by)

    def plain(self, stage: str, unit: Unit) -> Found:
        """Of a unit that keeps no state."""
        return self.told(stage, unit.name, self.is_done(unit))

    def told(self, stage: str, name: str, done: bool) -> Found:
        """The same, where `done` is known otherwise."""
        if done:
            return Found(stage, name, "done")
        cause = self.causes.get(name)
        return Found(
            stage, name, "left" if cause is None else "failed", self.recorded(name) is not None, cause
        )

    def trunk(self, stage: str, trunk: Trunk) -> Found:
        """Of a trunk, with the last SFT update that is safe."""
        return self._run(stage, trunk, self.units.trunk(trunk), trunk.checkpoint, self.units.study.sft.steps)

    def branch(self, stage: str, branch: Branch) -> Found:
        """Of a branch or a control, with the last RL update that is safe or was made."""
        budgets = self.units.study.rl.budgets
        return self._run(stage, branch, self.units.branch(branch), branch.checkpoint, budgets)

    def _run(
        self,
        stage: str,
        run: Trunk | Branch,
        unit: Unit,
        checkpoint: Callable[[int], str],
        published: Sequence[int],
    ) -> Found:
        of = published[-1]
        if self.is_done(unit):
            details = self.disk.json(f"markers/{unit.name}.json")
            early = str(details["cause"]) if details.get("cause") else None
            return Found(stage, unit.name, "done", cause=early, run=run, step=_reached(details, of), of=of)
        step = max((s for s in published if self.holds(checkpoint(s), unit.fingerprint)), default=0)
        state = self._state_of(unit)
        if state is not None and not (isinstance(run, Branch) and run.is_control):
            step = max(step, _saved_update(self.disk, state))
        # An early update has left no state yet, but a point of its curve.
        written = self.disk.newest(_curve(run), *(() if state is None else (state,)))
        note, cause = self._failure_note(unit), self.causes.get(unit.name)
        became: State = "left"
        if note is not None:  # removed before the branch is tried again
            became, cause, step = "failed", note[0], max(step, note[1])
        elif written is not None and self.since is not None and written.at >= self.since:
            became, cause = "running", None
        elif cause is not None:
            became = "failed"
        elif state is not None or step > 0:
            became = "begun"
        outdated = self.recorded(unit.name) is not None
        at = None if written is None else written.at
        return Found(stage, unit.name, became, outdated, cause, run, min(step, of), of, at)

    def _state_of(self, unit: Unit) -> str | None:
        """The directory of the unit's state; where fingerprints are not checked, the newest of that name."""
        parent, _, last = f"state/{unit.name}".rpartition("/")
        names = self.disk.folders.get(parent, [])
        if self.units.checked:
            name = f"{last}-{unit.fingerprint}"
            return f"{parent}/{name}" if name in names else None
        places = [f"{parent}/{name}" for name in names if name.rpartition("-")[0] == last]
        return max(places, key=self._written_at, default=None)

    def _written_at(self, place: str) -> float:
        written = self.disk.newest(place)
        return 0.0 if written is None else written.at

    def _failure_note(self, unit: Unit) -> tuple[str, int] | None:
        """Why a branch failed, and after which update, from the note that its trial left."""
        note = self.disk.json(f"state/failed/{unit.name}.json")
        if not self.matches(note.get("fingerprint"), unit.fingerprint):
            return None
        update = note.get("update")
        return last_line(str(note.get("cause"))), update if isinstance(update, int) else 0


def _curve(run: Trunk | Branch) -> str:
    """Where TensorBoard's events of a run are written, update by update."""
    if isinstance(run, Branch):
        return f"tune/tensorboard/{run.run}"
    recipe = f"{run.recipe}-" if run.named else ""
    return f"tune/tensorboard/sft-{recipe}seed={run.seed}"


def _reached(details: Mapping[str, object], of: int) -> int:
    """The update at which a finished run ended; a control tells the budgets that it came to."""
    updates, budgets = details.get("updates"), details.get("sft_updates")
    if isinstance(updates, int):
        return updates
    if isinstance(budgets, dict):
        return max((int(budget) for budget in budgets if str(budget).isdigit()), default=0)
    return of


def _saved_update(disk: Disk, state: str) -> int:
    """The update up to which the state of a trunk or of an RL branch goes, whichever algorithm wrote it."""
    found = [0]
    for name in disk.folders.get(state, []):
        kind, _, number = name.partition("-")
        if kind == "checkpoint" and number.isdigit():
            if f"{state}/{name}/COMPLETE" in disk.files:  # a trunk's
                found.append(int(number))
            found.append(_rows(disk.json(f"{state}/{name}/branch.json")))  # TRL's
    if version := disk.text(f"{state}/CURRENT"):  # PPO's
        told = disk.metadata(f"{state}/{version}/progress.safetensors").get("progress", "")
        found.append(_rows(_parsed(told)))
    return max(found)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _rows(progress: object) -> int:
    rows = progress.get("rows") if isinstance(progress, dict) else None
    return len(rows) if isinstance(rows, list) else 0
