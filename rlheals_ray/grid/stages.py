"""The stages of a study, each resumable: what is done is skipped, what is missing is made."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import ray

from rlheals_ray import tables
from rlheals_ray.config import EditSettings, Study, TaskSettings
from rlheals_ray.evaluation.outcomes import first_attempts
from rlheals_ray.evaluation.peak import ood_peak, split_halves
from rlheals_ray.evaluation.probe import probe_problems
from rlheals_ray.grid.progress import StageProgress
from rlheals_ray.grid.session import Session
from rlheals_ray.grid.sweep import run_probe, sweep
from rlheals_ray.grid.units import EDIT_KINDS, Probe, edit_name
from rlheals_ray.models.base import make_base
from rlheals_ray.rl.names import branch_checkpoint
from rlheals_ray.sft.names import BASE, trunk_checkpoint
from rlheals_ray.spectra.compare import Pair, compare
from rlheals_ray.spectra.edit import Edit, write_edit
from rlheals_ray.storage import Unit
from rlheals_ray.tasks import Problem
from rlheals_ray.training import Work, WorkFailed

TRAIN_TRUNK = "rlheals_ray.sft.trainer:train_trunk"


def base_stage(session: Session) -> None:
    """The base model."""
    unit = session.units.base
    if session.files.is_done(unit):
        return
    session.connect()
    session.pool, session.training  # noqa: B018 (engines and worker groups start while the base is trained)
    total = session.study.base.steps if session.study.base.model == "nano" else 1
    progress = StageProgress("base", total, "updates")
    directory = session.files.checkpoint(BASE)
    for reference in _make_base.remote(session.study, directory):
        _, loss = ray.get(reference)
        progress.advance(note=f"loss {loss:.3f}")
    session.files.mark_done(unit)
    progress.end()


@ray.remote(num_cpus=1, num_returns="streaming")
def _make_base(study: Study, directory: Path):  # type: ignore[no-untyped-def]
    yield from make_base(study, directory, threads=2)


def sft_stage(session: Session) -> None:
    """The trunks, their held-out losses and the probes of their checkpoints; seeds side by side."""
    study, files, units = session.study, session.files, session.units
    probes = [units.base_probe(), *(probe for seed in study.seeds for probe in units.trunk_probes(seed))]
    pending = [seed for seed in study.seeds if not files.is_done(units.trunk(seed))]
    steps = StageProgress("sft", study.sft.steps[-1] * len(study.seeds), "updates")
    steps.skip(study.sft.steps[-1] * (len(study.seeds) - len(pending)))
    for seed in pending:
        _forget_changed(session, units.trunk(seed), f"sft/seed={seed}")
    with ThreadPoolExecutor(max_workers=max(1, len(study.seeds))) as threads:
        list(threads.map(lambda seed: _trunk(session, seed, steps), pending))
    if pending:
        steps.end()
    _check_no_failures(session, [units.trunk(seed) for seed in study.seeds])
    with ThreadPoolExecutor(max_workers=2) as threads:
        losses = threads.submit(_losses, session)
        probed = threads.submit(probe_all, session, probes, "probe sft")
        losses.result()
        probed.result()


def _trunk(session: Session, seed: int, progress: StageProgress) -> None:
    unit = session.units.trunk(seed)
    arguments = {"study": session.study, "files": session.files, "seed": seed, "unit": unit, "base": BASE}
    try:
        for row in session.training.run(Work(unit.name, TRAIN_TRUNK, arguments)):
            progress.advance(note=f"seed {seed}: loss {row['loss']:.3f}")
    except WorkFailed as error:
        session.failures[unit.name] = str(error)


def _losses(session: Session) -> None:
    """Complete the trunks' rows of tables/sft with the losses on held-out ID and OOD demonstrations."""
    study, files = session.study, session.files
    pending = [seed for seed in study.seeds if not files.is_done(session.units.losses(seed))]
    if not pending:
        return
    session.connect()
    problems = {rule: probe_problems(session.task, study.evaluation, rule) for rule in ("id", "ood")}
    references = {}
    for seed in pending:
        directories = [files.checkpoint(trunk_checkpoint(seed, step)) for step in study.sft.steps]
        for rule in problems:
            references[seed, rule] = _score_losses.remote(directories, study.task, problems[rule])
    for seed in pending:
        part = files.read_part("sft", session.units.trunk(seed))
        for rule in problems:
            values = pa.array(ray.get(references[seed, rule]), pa.float64())
            part = part.set_column(part.schema.get_field_index(f"{rule}_loss"), f"{rule}_loss", values)
        unit = session.units.losses(seed)
        files.write_part("sft", unit, part.cast(tables.SFT))
        files.mark_done(unit)


@ray.remote(num_cpus=1)
def _score_losses(
    directories: Sequence[Path], task: TaskSettings, problems: Sequence[Problem]
) -> list[float]:
    from rlheals_ray.sft.losses import held_out_losses

    return held_out_losses(directories, task, problems)


def probe_all(session: Session, probes: Iterable[Probe], title: str) -> None:
    """Probe every checkpoint that has not been probed, as many at a time as there are engines."""
    probes = list(probes)
    pending = [probe for probe in probes if not session.files.is_done(probe.unit)]
    if not pending:
        return
    progress = StageProgress(title, len(probes), "checkpoints")
    progress.skip(len(probes) - len(pending))

    def one(wanted: Probe) -> None:
        run_probe(session.study, session.files, session.pool, wanted)
        progress.advance(note=wanted.checkpoint)

    with ThreadPoolExecutor(max_workers=session.study.rollout.generators) as threads:
        list(threads.map(one, pending))
    progress.end()


def rl_stage(session: Session) -> None:
    """The branches and the probes of their checkpoints, on Ray Tune."""
    study, files, units = session.study, session.files, session.units
    updates = study.rl.budgets[-1]
    pending = []
    progress = StageProgress("rl", updates * len(list(units.branches())), "updates")
    for seed, step, unit in units.branches():
        if files.is_done(unit):
            progress.skip(updates)
        else:
            _forget_changed(session, unit, f"rl/seed={seed}/sft_step={step:06d}")
        if not files.is_done(unit) or any(not files.is_done(p.unit) for p in units.branch_probes(seed, step)):
            pending.append((seed, step))
    if pending:
        failed = sweep(study, files, session.pool, session.training, pending, progress)
        session.failures.update(failed)
        progress.end()


def evaluate_stage(session: Session) -> None:
    """The probes of every checkpoint of the map that exists; after the other stages there is nothing left."""
    existing = [p for p in session.units.probes() if session.files.checkpoint(p.checkpoint).is_dir()]
    probe_all(session, existing, "probe")


def peak_step(session: Session, seed: int) -> int:
    """The SFT step of the seed's OOD peak, chosen on one half of the probe problems."""
    probes = session.units.trunk_probes(seed)
    episodes = pa.concat_tables([session.files.read_part("episodes", probe.unit) for probe in probes])
    problems, solved = first_attempts(episodes, "ood", [probe.checkpoint for probe in probes])
    select, report = split_halves(problems, clusters(session))
    return ood_peak(
        {probe.sft_step or 0: solved[:, i] for i, probe in enumerate(probes)}, select, report
    ).step


def clusters(session: Session) -> dict[str, str]:
    """Problem id to the cluster that statistics resample: deals of one multiset are not independent."""
    problems = [
        p for rule in ("id", "ood") for p in probe_problems(session.task, session.study.evaluation, rule)
    ]
    return {problem.id: problem.group for problem in problems}


def spectra_stage(session: Session) -> None:
    """Drift and rotation between base, OOD peak, latest and the ends of the branches, on Ray Data."""
    study, files, units = session.study, session.files, session.units
    peaks = {seed: peak_step(session, seed) for seed in study.seeds}
    pending = [seed for seed in study.seeds if not files.is_done(units.spectra(seed, peaks[seed]))]
    if not pending:
        return
    session.connect()
    pairs = [pair for seed in pending for pair in _pairs(session, seed, peaks[seed])]
    progress = StageProgress("spectra", len(pairs), "pairs")
    rows = compare(
        pairs,
        roles=study.spectra.roles,
        ks=study.spectra.k,
        factors_directory=str(files.root / "factors"),
        concurrency=2,
    )
    for seed in pending:
        unit = units.spectra(seed, peaks[seed])
        part = rows.filter(pa.compute.equal(rows["seed"], seed))
        files.write_part("spectra", unit, part)
        files.mark_done(unit)
    progress.advance(len(pairs))
    progress.end()


def _pairs(session: Session, seed: int, peak: int) -> list[Pair]:
    study, files = session.study, session.files
    top, latest = trunk_checkpoint(seed, peak), trunk_checkpoint(seed, study.sft.steps[-1])
    named = [(BASE, top), (BASE, latest), (top, latest)]
    for step in study.rl.from_steps:
        end = branch_checkpoint(seed, step, study.rl.budgets[-1])
        if files.is_done(session.units.branch(seed, step)):
            start = trunk_checkpoint(seed, step)
            named += [(start, end), (top, end), (top, start)]
    return [
        Pair(seed, a, b, str(files.checkpoint(a)), str(files.checkpoint(b)))
        for a, b in dict.fromkeys(named)
        if a != b
    ]


def edit_stage(session: Session) -> None:
    """Every edit with its controls: write the checkpoint, probe it, leave its rows of tables/edits."""
    plans = _edit_plans(session)
    pending = [plan for plan in plans if not session.files.is_done(plan[0])]
    if pending:
        session.connect()
        reports = ray.get([_write_edit.remote(edit, str(session.files.root / "factors"), directory)
                           for _, _, edit, directory, _ in pending])  # fmt: skip
        for (unit, *_), report in zip(pending, reports, strict=True):
            session.files.mark_done(unit, projection=report.projection, residual=report.residual)
    probe_all(session, [probe for _, probe, *_ in plans], "probe edits")
    for unit, probe, edit, _, row in plans:
        details = session.files.details(unit)
        scores = session.files.read_part("scores", probe.unit).to_pylist()
        rows = [
            row
            | {
                "projection": details["projection"],
                "residual": details["residual"],
                "mode": edit.mode,
                **{name: score[name] for name in ("rule", "n", "acc_1", "acc_1_low", "acc_1_high", "acc_k")},
            }
            for score in scores
        ]
        session.files.write_part("edits", unit, tables.table("edits", rows))


Plan = tuple[Unit, Probe, Edit, str, dict[str, object]]


def _edit_plans(session: Session) -> list[Plan]:
    """(unit, probe, edit, its directory, what is known of its row) of every edit and control."""
    study, files, plans = session.study, session.files, []
    for seed in study.seeds:
        peak = peak_step(session, seed)
        for settings in study.edits:
            donor, recipient = (
                _endpoint(study, seed, peak, which) for which in (settings.donor, settings.recipient)
            )
            if donor == recipient:
                continue  # the peak is the latest checkpoint: there is nothing to restore
            for kind in EDIT_KINDS:
                unit, wanted = session.units.edit(seed, settings, kind, peak)
                edit = Edit(
                    donor_directory=str(files.checkpoint(donor)),
                    recipient_directory=str(files.checkpoint(recipient)),
                    factors=settings.factors,
                    k=settings.k,
                    roles=study.spectra.roles,
                    kind=kind,
                )
                row = _edit_row(seed, settings, kind, donor, recipient, study)
                plans.append((unit, wanted, edit, str(files.checkpoint(wanted.checkpoint)), row))
    return plans


def _edit_row(
    seed: int, settings: EditSettings, kind: str, donor: str, recipient: str, study: Study
) -> dict[str, object]:
    return {
        "edit": edit_name(seed, settings, kind),
        "seed": seed,
        "donor": donor,
        "recipient": recipient,
        "kind": kind,
        "factors": settings.factors,
        "k": settings.k,
        "layers": None,
        "roles": list(study.spectra.roles),
    }


def _endpoint(study: Study, seed: int, peak: int, which: str) -> str:
    return trunk_checkpoint(seed, peak if which == "peak" else study.sft.steps[-1])


@ray.remote(num_cpus=1)
def _write_edit(edit: Edit, factors: str, directory: str):  # type: ignore[no-untyped-def]
    return write_edit(edit, directory, factors)


def _forget_changed(session: Session, unit: Unit, checkpoints: str) -> None:
    """Say so, and remove the old checkpoints, when a unit was done before with other inputs."""
    recorded = session.files.recorded(unit)
    if recorded is not None and recorded != unit.fingerprint:
        print(f"{unit.name}: its settings, its parents or its code changed since it was done; doing it again")
        shutil.rmtree(session.files.checkpoint(checkpoints), ignore_errors=True)


def _check_no_failures(session: Session, units: Iterable[Unit]) -> None:
    """Later stages need these units: stop when one of them failed."""
    failed = [unit.name for unit in units if unit.name in session.failures]
    if failed:
        raise StageFailed(failed[0], session.failures[failed[0]])


class StageFailed(RuntimeError):
    """A unit that everything later depends on failed; the message is the cause."""

    def __init__(self, unit: str, cause: str) -> None:
        super().__init__(cause)
        self.unit = unit
