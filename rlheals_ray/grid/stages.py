"""The training stages of a study, each resumable: what is done is skipped, what is missing is made."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import ray

from rlheals_ray.config import Study
from rlheals_ray.grid.branch_states import due_probes, forget_failure, note_failure, record_cells
from rlheals_ray.grid.losses import finish_losses, start_losses
from rlheals_ray.grid.probes import probe_all, side_by_side
from rlheals_ray.grid.progress import StageProgress
from rlheals_ray.grid.session import Session
from rlheals_ray.lineage import BASE, Trunk, branches, controls, trunks
from rlheals_ray.storage import StudyFiles, Unit
from rlheals_ray.training import WorkFailed
from rlheals_ray.work_queue import Work

if TYPE_CHECKING:
    from rlheals_ray.grid.trunk_tracking import TrunkCurves

TRAIN_TRUNK = "rlheals_ray.sft.trainer:train_trunk"


def base_stage(session: Session) -> None:
    """The base model. Without it nothing goes on: its failure ends the run."""
    unit = session.units.base
    if session.files.is_done(unit):
        return
    _begin(session, unit, BASE)
    session.connect()
    total = session.study.base.steps if session.study.base.model == "nano" else 1
    progress = StageProgress("base", total, "updates")
    make = _make_base.options(name=f"base {session.study.name}", **session.needs["tasks"].options())
    for reference in make.remote(session.study, session.files, unit):
        _, loss = ray.get(reference)
        progress.advance(note=f"loss {loss:.3f}")
    session.files.mark_done(unit)
    progress.end()


@ray.remote(num_returns="streaming")
def _make_base(study: Study, files: StudyFiles, unit: Unit) -> Iterator[tuple[int, float]]:
    from rlheals_ray.models.base import make_base

    yield from make_base(study, files, BASE, unit, threads=2)


def sft_stage(session: Session) -> None:
    """The trunks, side by side; their held-out losses; the probes of their checkpoints."""
    study, files, units = session.study, session.files, session.units
    every = trunks(study)
    pending = [trunk for trunk in every if not files.is_done(units.trunk(trunk))]
    if pending:
        # From the main thread, see Session.connect; and both at once: the engines start while SFT runs.
        # (Not already beside the base's training: sharing two cores slowed that more than it saved.)
        session.training, session.pool  # noqa: B018
        _prepare(session, pending)
        progress = StageProgress("sft", study.sft.steps[-1] * len(every), "updates")
        progress.skip(study.sft.steps[-1] * (len(every) - len(pending)))
        from rlheals_ray.grid.trunk_tracking import TrunkCurves  # loads ray.tune

        curves = TrunkCurves(study, files)
        side_by_side(lambda trunk: _trunk(session, trunk, progress, curves), pending, len(pending))
        curves.close()
        progress.end()
    done = [trunk for trunk in every if files.is_done(units.trunk(trunk))]
    probes = [units.base_probe(), *(wanted for trunk in done for wanted in units.trunk_probes(trunk))]
    losses = start_losses(session, done)
    probe_all(session, probes, "probe sft")
    finish_losses(session, losses)


def _prepare(session: Session, trained: Sequence[Trunk]) -> None:
    """What trunks and controls read that is made once: data, factors whose turning is penalised."""
    study, files = session.study, session.files
    if study.sft.data is not None:
        from rlheals_ray.sft.user_data import prepare

        prepare(study, files, session.task_slots, session.needs["tasks"])
    if any(trunk.recipe == "rotation" for trunk in trained):
        from rlheals_ray.spectra.anchor_factors import prepare as prepare_factors

        prepare_factors(study, files)


def _trunk(session: Session, trunk: Trunk, progress: StageProgress, curves: TrunkCurves) -> None:
    unit = session.units.trunk(trunk)
    _begin(session, unit, trunk.name)
    forget_failure(session.files, unit)
    session.started(unit)
    curves.begin(trunk)
    arguments = {"study": session.study, "files": session.files, "trunk": trunk, "unit": unit, "base": BASE}
    try:
        if session.study.sft.checkpoints is not None:
            place = session.needs["tasks"].options()
            take = _take_over.options(name=f"take over {trunk.path}", **place)
            ray.get(take.remote(session.study, session.files, trunk, unit))
            progress.advance(session.study.sft.steps[-1])
            session.events.unit(unit.name, "done")
            return
        reached = 0
        for row in session.training.run(Work(unit.name, TRAIN_TRUNK, arguments)):
            if "note" in row:
                print(f"{trunk.label}: {row['note']}")
                continue
            # What a group that was begun again repeats is no progress.
            progress.advance(int(row["step"] > reached), note=f"{trunk.label}: loss {row['loss']:.3f}")
            reached = max(reached, row["step"])
            curves.update(trunk, row)
        session.events.unit(unit.name, "done")
    except WorkFailed as error:
        _trunk_failed(session, unit, str(error))
    except Exception:
        _trunk_failed(session, unit, traceback.format_exc())
    finally:
        curves.end(trunk, failed=unit.name in session.failures)


def _trunk_failed(session: Session, unit: Unit, cause: str) -> None:
    """Also for later reports, of the branches that wait for it; not where it fails as the study ends."""
    session.fail(unit.name, cause)
    if not session.training.has_ended():
        note_failure(session.files, unit, cause)


@ray.remote(num_cpus=1)
def _take_over(study: Study, files: StudyFiles, trunk: Trunk, unit: Unit) -> None:
    from rlheals_ray.sft.taken_over import take_over

    take_over(study, files, trunk, unit)


def rl_stage(session: Session) -> None:
    """The branches of the trunks that are done, their controls, and the probes of their checkpoints, on Ray Tune."""
    study, files, units = session.study, session.files, session.units
    updates = study.rl.budgets[-1]
    every = [*branches(study), *controls(study)]
    open_branches = [branch for branch in every if files.is_done(units.trunk(branch.trunk))]
    progress = StageProgress("rl", updates * len(open_branches), "updates")
    pending = []
    for branch in open_branches:
        unit = units.branch(branch)
        if files.is_done(unit):
            progress.skip(updates)
            if any(not files.is_done(probe.unit) for probe in due_probes(files, units, branch)):
                pending.append(branch)
        else:
            _begin(session, unit, branch.name)
            forget_failure(files, unit)
            pending.append(branch)
    record_cells(study, units, files)  # also where nothing is left to do
    if pending:
        # Caches: on another machine they may be gone though the trunks are done.
        session.connect()
        _prepare(session, [branch.trunk for branch in pending if branch.is_control])
        from rlheals_ray.grid.sweep import sweep  # loads ray.tune: only where there is something to sweep

        session.failures.update(
            sweep(
                study,
                files,
                session.pool,
                session.training,
                pending,
                progress,
                session.events,
                session.tell_restarts,
            )
        )
        progress.end()


def evaluate_stage(session: Session) -> None:
    """The probes of every checkpoint of the map that exists; after the other stages there is nothing left."""
    every = [*session.units.probes(), *session.units.control_probes()]
    existing = [probe for probe in every if session.files.holds(probe.checkpoint, probe.made_by)]
    probe_all(session, existing, "probe")


def _begin(session: Session, unit: Unit, checkpoints: str) -> None:
    if session.files.begin(unit, checkpoints):
        print(f"{unit.name}: its settings, its parents or its code changed since it was done; doing it again")
