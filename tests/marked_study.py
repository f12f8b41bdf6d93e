"""Studies that nobody ran: the markers, stamps and files that a run would leave, written as a run writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save_file

from rlheals_ray.config import Study, dump_study, edit_kinds, load_study
from rlheals_ray.grid.status import Status, Watched
from rlheals_ray.grid.status_asked import asked_study
from rlheals_ray.grid.units import Probe, StudyUnits
from rlheals_ray.lineage import BASE, Branch, Trunk, branches_of, trunks
from rlheals_ray.storage import StudyFiles, Unit, new_directory, write_json, write_text


@dataclass
class MarkedStudy:
    """A study's directory under `storage`. peaks: of the trunks whose OOD peak is not at the first step."""

    storage: Path
    study: Study
    peaks: Mapping[Trunk, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.files = StudyFiles.at(str(self.storage), self.study.name)
        self.units = StudyUnits(self.study)
        record = dump_study(self.study) | {"versions": {"python": "3.11"}, "git_commit": "abc"}
        write_text(self.files.root / "study.yaml", yaml.safe_dump(record, sort_keys=False))

    @property
    def root(self) -> Path:
        return self.files.root

    def peak(self, trunk: Trunk) -> int:
        return self.peaks.get(trunk, self.study.sft.steps[0])

    def checkpoint(self, name: str, unit: Unit) -> None:
        with new_directory(self.files.checkpoint(name)) as directory:
            (directory / "model.safetensors").write_bytes(b"weights")
            self.files.stamp(directory, unit)

    def base(self) -> None:
        self.checkpoint(BASE, self.units.base)
        self.files.mark_done(self.units.base)

    def trunk(self, trunk: Trunk) -> None:
        unit = self.units.trunk(trunk)
        for step in self.study.sft.steps:
            self.checkpoint(trunk.checkpoint(step), unit)
        self.files.mark_done(unit)
        self.files.mark_done(self.units.losses(trunk))

    def branch(self, branch: Branch, updates: int | None = None) -> None:
        """A branch or a control; updates: how far it came before it was stopped early."""
        unit, budgets = self.units.branch(branch), self.study.rl.budgets
        reached = [b for b in budgets if 0 < b <= (budgets[-1] if updates is None else updates)]
        for budget in reached:
            self.checkpoint(branch.checkpoint(budget), unit)
        cause = None if updates is None else "stopped early"
        if branch.is_control:
            self.files.mark_done(unit, compute={}, sft_updates={b: 3 * b for b in reached}, cause=cause)
        else:
            self.files.mark_done(unit, updates=budgets[-1] if updates is None else updates, cause=cause)

    def probe(self, probe: Probe) -> None:
        self.files.mark_done(probe.unit, seconds=1.0)

    def spectra(self, trunk: Trunk) -> None:
        finished = branches_of(self.study, trunk)
        self.files.mark_done(self.units.spectra(trunk, self.peak(trunk), finished))

    def hidden(self) -> None:
        self.files.mark_done(self.units.hidden_answers())
        collected = []
        for probe in self.units.probes():
            unit = self.units.hidden_states(probe)
            path = self.root / "hidden" / f"{probe.checkpoint}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"states": np.zeros(3, np.float32)}, path, {"fingerprint": unit.fingerprint})
            collected.append(unit)
        peaks = {trunk: self.peak(trunk) for trunk in trunks(self.study)}
        self.files.mark_done(self.units.hidden(collected, peaks))

    def planned_edits(self) -> Iterator[tuple[Unit, Probe]]:
        """Every edit of the study, whose donor and recipient must never be one checkpoint; once each."""
        seen = set()
        for trunk in trunks(self.study):
            anchors = {"peak": self.peak(trunk), "healed": self.study.rl.from_steps[-1]}
            for edit in self.study.edits:
                for variant in edit.variants(self.study.spectra.roles):
                    for kind in edit_kinds(variant.factors):
                        unit, probe = self.units.edit(trunk, edit, variant, kind, anchors)
                        if unit not in seen:
                            seen.add(unit)
                            yield unit, probe

    def edits(self) -> None:
        for unit, probe in self.planned_edits():
            self.checkpoint(probe.checkpoint, unit)
            self.files.mark_done(unit)
            self.probe(probe)

    def everything(self, edits: bool = True) -> MarkedStudy:
        """All that a whole run leaves, tables and report apart."""
        self.base()
        for trunk in trunks(self.study):
            self.trunk(trunk)
        for branch, _ in [*self.units.branches(), *self.units.controls()]:
            self.branch(branch)
        for probe in [*self.units.probes(), *self.units.control_probes()]:
            self.probe(probe)
        for trunk in trunks(self.study):
            self.spectra(trunk)
        self.hidden()
        if edits:
            self.edits()
        write_json(self.root / "failures.json", {})
        write_json(self.root / "timings.json", {"base": 3.0, "sft": 4.0, "total": 7.5})
        return self

    def status(self, *overrides: str) -> Status:
        return Watched(asked_study(str(self.root), overrides)).look()


def tiny(storage: Path, *overrides: str) -> MarkedStudy:
    """The preset `tiny`, not begun."""
    return MarkedStudy(storage, load_study("tiny", overrides))


def counted(status: Status) -> dict[str, tuple[int, int]]:
    """By stage: units that are done, and all of them."""
    return {stage.name: (stage.done, stage.units) for stage in status.stages}
