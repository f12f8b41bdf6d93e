"""Every unit of a study beside what its directory holds: which are done, running, begun, failed or left.

Where the OOD peak lies decides which comparisons and edits there are. It is not computed again here: markers tell it,
for the peak is part of the fingerprint in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

from rlheals_ray.config import EditSettings, EditVariant, edit_kinds
from rlheals_ray.grid.status_runs import Evidence, Found
from rlheals_ray.grid.units import Probe, edit_name
from rlheals_ray.lineage import BASE, Branch, Trunk, branches_of, trunks

STAGES = ("base", "sft", "losses", "rl", "controls", "probes", "spectra", "hidden", "edits", "edit probes")


class Inventory:
    """Every unit of a study, and what became of it."""

    def __init__(self, evidence: Evidence) -> None:
        self._seen = evidence
        self._units, self._study = evidence.units, evidence.units.study
        self._peaks: dict[Trunk, int] = {}
        """The SFT steps of the OOD peaks, as far as markers tell."""
        self._asked_for: set[Trunk] = set()
        """Trunks whose peak decides which edits there are, and was not known when they were listed."""
        self.found = self._all()
        self.at_most = bool(self._asked_for - self._peaks.keys())
        """Whether there may be fewer edits than are listed, since some peak is not known."""

    def _all(self) -> list[Found]:
        every = trunks(self._study)
        rl = [self._seen.branch("rl", branch) for branch, _ in self._units.branches()]
        controls = [self._seen.branch("controls", branch) for branch, _ in self._units.controls()]
        due = self._due([*self._units.probes(), *self._units.control_probes()], [*rl, *controls])
        probes = [self._seen.plain("probes", probe.unit) for probe in due]
        spectra = [self._spectra(trunk) for trunk in every]
        edits = list(self._edits(finished=all(one.state == "done" for one in (*rl, *probes))))
        return [
            self._base(),
            *(self._seen.trunk("sft", trunk) for trunk in every),
            *(self._seen.plain("losses", self._units.losses(trunk)) for trunk in every),
            *rl,
            *controls,
            *probes,
            *spectra,
            *self._hidden(rl),  # after the edits, which may tell peaks
            *edits,
        ]

    def _base(self) -> Found:
        found = self._seen.plain("base", self._units.base)
        # It keeps no state, and nothing else runs before it.
        running = found.state == "left" and self._seen.since is not None
        return Found("base", found.unit, "running", found.outdated) if running else found

    def _due(self, probes: Iterable[Probe], runs: Iterable[Found]) -> list[Probe]:
        """`probes` without those of budgets that a run which was stopped early never came to."""
        came_to = {
            self._units.branch(found.run).fingerprint: found.step
            for found in runs
            if isinstance(found.run, Branch) and found.state == "done"
        }
        return [
            probe
            for probe in probes
            if probe.made_by not in came_to or (probe.rl_step or 0) <= came_to[probe.made_by]
        ]

    def _finished(self, trunk: Trunk) -> list[Branch]:
        """The RL branches of a trunk that came to the last budget."""
        last = self._study.rl.budgets[-1]
        return [
            branch
            for branch in branches_of(self._study, trunk)
            if self._seen.is_done(self._units.branch(branch)) and self._made(branch, last)
        ]

    def _made(self, branch: Branch, budget: int) -> bool:
        return self._seen.holds(branch.checkpoint(budget), self._units.branch(branch).fingerprint)

    def _spectra(self, trunk: Trunk) -> Found:
        name = f"spectra/{trunk.path}"
        recorded = self._seen.recorded(name)
        if recorded is None or not self._units.checked:
            return self._seen.told("spectra", name, recorded is not None)
        if all(self._seen.is_done(probe.unit) for probe in self._units.trunk_probes(trunk)):
            finished = self._finished(trunk)
            for step in self._study.sft.steps:
                if self._units.spectra(trunk, step, finished).fingerprint == recorded:
                    self._peaks[trunk] = step
                    return self._seen.told("spectra", name, True)
        return self._seen.told("spectra", name, False)

    def _hidden(self, rl: Iterable[Found]) -> Iterator[Found]:
        if self._study.hidden is None:
            return
        yield self._seen.plain("hidden", self._units.hidden_answers())
        collected = []
        for probe in self._due(self._units.probes(), rl):
            unit = self._units.hidden_states(probe)
            carried = self._seen.disk.metadata(f"hidden/{probe.checkpoint}.safetensors").get("fingerprint")
            is_there = self._seen.matches(carried, unit.fingerprint)
            if is_there and self._seen.holds(probe.checkpoint, probe.made_by):
                collected.append(unit)
            yield self._seen.told("hidden", unit.name, is_there)
        yield self._seen.plain("hidden", self._units.hidden(collected, self._peaks))

    # --- edits

    def _edits(self, finished: bool) -> Iterator[Found]:
        """finished: RL has nothing left to do, so that what no branch has made never will be there."""
        roles = self._study.spectra.roles
        became: dict[str, tuple[bool, bool]] = {}
        for trunk in trunks(self._study):
            for settings in self._study.edits:
                if self._never(trunk, settings, finished):
                    continue
                for variant in settings.variants(roles):
                    for kind in edit_kinds(variant.factors):
                        name = edit_name(trunk, settings, variant, kind, roles)
                        if name not in became:  # a weight swap belongs to several edits
                            became[name] = self._edit(name, trunk, settings, variant, kind)
        for name, (made, _) in became.items():
            yield self._seen.told("edits", f"edit/{name}", made)
        for name, (_, probed) in became.items():
            yield self._seen.told("edit probes", f"probe/edit/{name}", probed)

    def _edit(
        self, name: str, trunk: Trunk, settings: EditSettings, variant: EditVariant, kind: str
    ) -> tuple[bool, bool]:
        """Whether the edit is made, and whether it is probed."""
        recorded, probed = self._seen.recorded(f"edit/{name}"), self._seen.recorded(f"probe/edit/{name}")
        if recorded is None or not self._units.checked:
            return recorded is not None, None not in (recorded, probed)
        named, steps = (settings.donor, settings.recipient), self._study.sft.steps
        known = self._peaks.get(trunk)
        peaks = [known] if known is not None else list(steps) if "peak" in named else [steps[0]]
        starts = list(self._study.rl.from_steps) if "healed" in named else [steps[0]]
        for peak, start in product(peaks, starts):
            anchors = {"peak": peak, "healed": start}
            unit, probe = self._units.edit(trunk, settings, variant, kind, anchors)
            if unit.fingerprint == recorded:
                if "peak" in named:
                    self._peaks.setdefault(trunk, peak)
                return True, probe.unit.fingerprint == probed
        return False, False

    def _never(self, trunk: Trunk, settings: EditSettings, finished: bool) -> bool:
        """Whether no such edit will be made: donor and recipient are one checkpoint, or one of them is never there."""
        named, peak = (settings.donor, settings.recipient), self._peaks.get(trunk)
        if peak is None and {"peak", "healed"} & set(named):
            self._asked_for.add(trunk)
            return False
        if finished and any(self._never_there(trunk, name, peak) for name in named):
            return True
        places = {"base": BASE, "latest": trunk.checkpoint(self._study.sft.steps[-1])}
        if peak is not None:
            places["peak"] = trunk.checkpoint(peak)
        places |= {f"sft-{step}": trunk.checkpoint(step) for step in self._study.sft.steps}
        donor, recipient = (places.get(name, name) for name in named)
        return donor == recipient

    def _never_there(self, trunk: Trunk, anchor: str, peak: int | None) -> bool:
        """Of a study whose RL is finished."""
        kind, *numbers = anchor.split("-")
        if kind == "healed":
            return not any(peak is not None and branch.sft_step > peak for branch in self._finished(trunk))
        if kind != "rl":
            return False
        start, budget = map(int, numbers)
        return not self._made(Branch(trunk, start, self._study.rl.algorithm), budget)
