"""What stays of a finished study's checkpoints (`keep`), and what a later run needs of those that are gone.

Of a checkpoint that is not kept its provenance and a note stay, so that what was made from it still counts as done.
Weights that others hold too (edits and `recommended/` are hard links) stay there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from rlheals_ray.config import InputError
from rlheals_ray.grid.branch_states import branch_rows, due_probes
from rlheals_ray.grid.edits import planned_edits
from rlheals_ray.grid.hidden import states_are_collected
from rlheals_ray.grid.peaks import peak_step, probed_trunks
from rlheals_ray.grid.session import Session
from rlheals_ray.grid.spectra import compared_checkpoints, spectra_units
from rlheals_ray.lineage import BASE, branches, controls, trunks
from rlheals_ray.storage import StudyFiles, write_text

NOTE = "REMOVED.md"
"""Stands in a checkpoint whose weights were removed, beside its provenance."""
_PROVENANCE = "provenance.json"


def retention_stage(session: Session) -> None:
    """Remove the checkpoints that `keep` does not name. Nothing, while anything of the study has failed or waits."""
    if session.study.keep == "all" or session.failures:
        return
    if any(row["status"] in ("failed", "waiting") for row in branch_rows(session)) or list(_pending(session)):
        return
    kept, removed = kept_checkpoints(session), 0
    for directory in _checkpoints(session.files):
        name = str(directory.relative_to(session.files.checkpoints))
        if name not in kept and not is_removed(session.files, name):
            _remove(session, directory)
            removed += 1
    if removed:
        print(f"keep={session.study.keep}: removed the weights of {removed} checkpoints, kept {len(kept)}")


def kept_checkpoints(session: Session) -> set[str]:
    """The names of those that `keep` leaves; base and the recommended one always."""
    study, files, units = session.study, session.files, session.units
    chosen = [row["checkpoint"] for row in files.read_table("recommendation").to_pylist() if row["chosen"]]
    kept = {BASE, *(name for name in chosen if name)}
    if study.keep == "best":
        return kept
    for trunk in probed_trunks(session):
        kept.add(trunk.checkpoint(peak_step(session, trunk)))
    for branch in branches(study):
        kept.add(branch.start)
        if reached := due_probes(files, units, branch):
            kept.add(reached[-1].checkpoint)
    return kept


def is_removed(files: StudyFiles, name: str) -> bool:
    """Whether the checkpoint's weights were removed after the study was done."""
    return (files.checkpoint(name) / NOTE).exists()


def check_removed(session: Session) -> None:
    """Raises InputError when what is left to do needs a checkpoint whose weights were removed; nothing is started."""
    files = session.files
    if not any(files.checkpoints.rglob(NOTE)):
        return
    for what, name in _pending(session):
        if is_removed(files, name):
            marker = files.root / "markers" / f"{_made_by(files, name)}.json"
            raise InputError(
                f"keep (got {session.study.keep!r}): {what} is to be done and needs checkpoint {name!r}, whose weights "
                f"were removed when the study was done; set keep=all and delete {str(marker)!r}, which has it made "
                "again, or undo the change that asks for it."
            )


def _pending(session: Session) -> Iterator[tuple[str, str]]:
    """What is not done though its inputs are: a unit's name, and each checkpoint that it reads."""
    study, files, units = session.study, session.files, session.units
    done = [trunk for trunk in trunks(study) if files.is_done(units.trunk(trunk))]
    for trunk in done:
        if not files.is_done(unit := units.losses(trunk)):
            yield from ((unit.name, trunk.checkpoint(step)) for step in study.sft.steps)
        for probe in units.trunk_probes(trunk):
            if not files.is_done(probe.unit):
                yield probe.unit.name, probe.checkpoint
    for branch in [*branches(study), *controls(study)]:
        unit = units.branch(branch)
        if branch.trunk in done and not files.is_done(unit):
            yield unit.name, branch.start
        for probe in due_probes(files, units, branch):
            if not files.is_done(probe.unit):
                yield probe.unit.name, probe.checkpoint
    for trunk, unit in spectra_units(session).items():
        if not files.is_done(unit):
            yield from ((unit.name, name) for name in compared_checkpoints(session, trunk))
    if study.hidden is not None:
        for probe in units.probes():
            if files.holds(probe.checkpoint, probe.made_by) and not states_are_collected(session, probe):
                yield f"hidden/{probe.checkpoint}", probe.checkpoint
    for plan in planned_edits(session):
        if not files.is_done(plan.unit):
            yield from ((plan.unit.name, name) for name in (plan.donor, plan.recipient))
        elif not files.is_done(plan.probe.unit):
            yield plan.probe.unit.name, plan.probe.checkpoint


def _checkpoints(files: StudyFiles) -> list[Path]:
    return sorted(path.parent for path in files.checkpoints.rglob(_PROVENANCE))


def _made_by(files: StudyFiles, name: str) -> str:
    return str(json.loads((files.checkpoint(name) / _PROVENANCE).read_text())["unit"])


def _remove(session: Session, directory: Path) -> None:
    """Everything but the provenance; the note comes first, so that no half-removed checkpoint looks whole."""
    name = str(directory.relative_to(session.files.checkpoints))
    marker = f"markers/{_made_by(session.files, name)}.json"
    write_text(
        directory / NOTE,
        f"The weights of {name} were removed when study {session.study.name} was done: its setting keep was "
        f"{session.study.keep!r}.\nTo have them made again: set keep=all, delete {marker} in the study's directory, "
        "and run the study again.\n",
    )
    for path in directory.iterdir():
        if path.name in (NOTE, _PROVENANCE):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
