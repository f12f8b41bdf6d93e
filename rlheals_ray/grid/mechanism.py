"""The stages about the mechanism: spectra of the map's checkpoints, and edits of their rotations."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from rlheals_ray import tables
from rlheals_ray.config import EditSettings
from rlheals_ray.evaluation.outcomes import first_attempts
from rlheals_ray.evaluation.peak import ood_peak, split_halves
from rlheals_ray.evaluation.probe import probe_problems
from rlheals_ray.grid.probes import probe_all
from rlheals_ray.grid.progress import StageProgress
from rlheals_ray.grid.session import Session
from rlheals_ray.grid.units import EDIT_KINDS, Probe, edit_name
from rlheals_ray.rl.names import branch_checkpoint
from rlheals_ray.sft.names import BASE, trunk_checkpoint
from rlheals_ray.storage import StudyFiles, Unit

if TYPE_CHECKING:
    # spectra loads torch and ray.data; a driver that only resumes or reports shall not wait for them.
    from rlheals_ray.spectra.compare import Pair
    from rlheals_ray.spectra.edit import Edit, EditReport

FACTORS = "factors"
"""Where a study keeps the SVD factors of its matrices."""


def probed_seeds(session: Session) -> list[int]:
    """The seeds whose whole trunk has been probed, so that their OOD peak is known."""
    files, units = session.files, session.units
    return [
        s for s in session.study.seeds if all(files.is_done(wanted.unit) for wanted in units.trunk_probes(s))
    ]


def peak_step(session: Session, seed: int) -> int:
    """The SFT step of the seed's OOD peak, chosen on one half of the probe problems."""
    probes = session.units.trunk_probes(seed)
    episodes = pa.concat_tables([session.files.read_part("episodes", wanted.unit) for wanted in probes])
    problems, solved = first_attempts(episodes, "ood", [wanted.checkpoint for wanted in probes])
    select, report = split_halves(problems, clusters(session))
    curves = {step: solved[:, index] for index, step in enumerate(session.study.sft.steps)}
    return ood_peak(curves, select, report).step


def clusters(session: Session) -> dict[str, str]:
    """Problem id to the cluster that statistics resample: deals of one multiset are not independent."""
    problems = [
        p for rule in ("id", "ood") for p in probe_problems(session.task, session.study.evaluation, rule)
    ]
    return {problem.id: problem.group for problem in problems}


def spectra_units(session: Session) -> dict[int, Unit]:
    """The comparisons of every seed whose peak is known."""
    files, units, steps = session.files, session.units, session.study.rl.from_steps
    return {
        seed: units.spectra(
            seed,
            peak_step(session, seed),
            [step for step in steps if files.is_done(units.branch(seed, step))],
        )
        for seed in probed_seeds(session)
    }


def spectra_stage(session: Session) -> None:
    """Drift and rotation between base, OOD peak, latest and the ends of the branches, on Ray Data."""
    study, files = session.study, session.files
    pending = {seed: unit for seed, unit in spectra_units(session).items() if not files.is_done(unit)}
    if not pending:
        return
    from rlheals_ray.spectra.compare import compare

    session.connect()
    pairs = [pair for seed in pending for pair in _pairs(session, seed)]
    progress = StageProgress("spectra", len(pairs), "pairs")
    rows = compare(pairs, study.spectra.roles, study.spectra.k, files.root / FACTORS, concurrency=2)
    for seed, unit in pending.items():
        files.write_part("spectra", unit, rows.filter(pc.equal(rows["seed"], seed)))
        files.mark_done(unit)
    progress.advance(len(pairs))
    progress.end()


def _pairs(session: Session, seed: int) -> list[Pair]:
    from rlheals_ray.spectra.compare import Pair

    study, files, last = session.study, session.files, session.study.rl.budgets[-1]
    top, latest = (
        trunk_checkpoint(seed, peak_step(session, seed)),
        trunk_checkpoint(seed, study.sft.steps[-1]),
    )
    named = [(BASE, top), (BASE, latest), (top, latest)]
    for step in study.rl.from_steps:
        if last > 0 and files.is_done(session.units.branch(seed, step)):
            start, end = trunk_checkpoint(seed, step), branch_checkpoint(seed, step, last)
            named += [(start, end), (top, end), (top, start)]
    return [
        Pair(seed, a, b, str(files.checkpoint(a)), str(files.checkpoint(b)))
        for a, b in dict.fromkeys(named)
        if a != b
    ]


@dataclass(frozen=True)
class PlannedEdit:
    """One edit or control: the unit that writes it, its probe, and what is known of its rows."""

    unit: Unit
    probe: Probe
    edit: Edit
    columns: dict[str, Any]


def planned_edits(session: Session) -> list[PlannedEdit]:
    """Every edit and control of the seeds whose peak is known; none where the peak is the latest checkpoint."""
    plans = []
    for seed in probed_seeds(session):
        peak = peak_step(session, seed)
        for settings in session.study.edits:
            donor, recipient = (
                trunk_checkpoint(seed, peak if which == "peak" else session.study.sft.steps[-1])
                for which in (settings.donor, settings.recipient)
            )
            if donor != recipient:
                plans += [
                    _planned(session, seed, settings, kind, peak, donor, recipient) for kind in EDIT_KINDS
                ]
    return plans


def _planned(
    session: Session, seed: int, settings: EditSettings, kind: str, peak: int, donor: str, recipient: str
) -> PlannedEdit:
    from rlheals_ray.spectra.edit import Edit

    study, files = session.study, session.files
    unit, wanted = session.units.edit(seed, settings, kind, peak)
    edit = Edit(
        donor_directory=str(files.checkpoint(donor)),
        recipient_directory=str(files.checkpoint(recipient)),
        factors=settings.factors,
        k=settings.k,
        roles=study.spectra.roles,
        kind=kind,
    )
    columns = {
        "edit": edit_name(seed, settings, kind),
        "seed": seed,
        "donor": donor,
        "recipient": recipient,
        "kind": kind,
        "mode": edit.mode,
        "factors": settings.factors,
        "k": settings.k,
        "layers": None,
        "roles": list(study.spectra.roles),
    }
    return PlannedEdit(unit, wanted, edit, columns)


def edit_stage(session: Session) -> None:
    """Every edit with its controls: write the checkpoint, probe it, leave its rows of tables/edits."""
    files = session.files
    plans = planned_edits(session)
    pending = [plan for plan in plans if not files.is_done(plan.unit)]
    if pending:
        session.connect()
    reports = [_write_edit.remote(files, plan) for plan in pending]
    for plan, reference in zip(pending, reports, strict=True):
        try:
            report = ray.get(reference)
            files.mark_done(plan.unit, projection=report.projection, residual=report.residual)
        except Exception:
            session.failures[plan.unit.name] = traceback.format_exc()
    written = [plan for plan in plans if files.is_done(plan.unit)]
    probe_all(session, [plan.probe for plan in written], "probe edits")
    for plan in written:
        if files.is_done(plan.probe.unit):
            files.write_part("edits", plan.unit, _rows(files, plan))


def _rows(files: StudyFiles, plan: PlannedEdit) -> pa.Table:
    details = files.details(plan.unit)
    moved = {name: details[name] for name in ("projection", "residual")}
    measured = ("rule", "n", "acc_1", "acc_1_low", "acc_1_high", "acc_k")
    scores = files.read_part("scores", plan.probe.unit).to_pylist()
    return tables.table("edits", [plan.columns | moved | {c: score[c] for c in measured} for score in scores])


@ray.remote(num_cpus=1)
def _write_edit(files: StudyFiles, plan: PlannedEdit) -> EditReport:
    from rlheals_ray.spectra.edit import write_edit

    files.begin(plan.unit, plan.probe.checkpoint)
    directory = files.checkpoint(plan.probe.checkpoint)
    report = write_edit(plan.edit, directory, files.root / FACTORS)
    files.stamp(directory, plan.unit)
    return report
