"""Probing the checkpoints of a study: which are due, several at a time, each leaving its parts of the tables."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from rlheals_ray.config import Study
from rlheals_ray.evaluation.probe import probe, probe_problems
from rlheals_ray.evaluation.scores import score_rows
from rlheals_ray.grid.progress import StageProgress
from rlheals_ray.grid.units import Probe
from rlheals_ray.rollout.pool import Pool
from rlheals_ray.storage import StudyFiles
from rlheals_ray.tables import table
from rlheals_ray.tasks import get_task, rules_of

if TYPE_CHECKING:
    from rlheals_ray.grid.session import Session

T = TypeVar("T")


def run_probe(study: Study, files: StudyFiles, pool: Pool, wanted: Probe) -> None:
    """Probe one checkpoint on every rule and leave its parts of tables/episodes and tables/scores.

    Raises FileNotFoundError when the checkpoint is absent or was made from other inputs than the study's.
    """
    if files.is_done(wanted.unit):
        return
    if not files.holds(wanted.checkpoint, wanted.made_by):
        raise FileNotFoundError(
            f"{files.checkpoint(wanted.checkpoint)} is not there, or not from this study's settings"
        )
    files.begin(wanted.unit)
    task = get_task(study.task.name, **study.task.options)
    problems = [p for rule in rules_of(task) for p in probe_problems(task, study.evaluation, rule)]
    directory, start = files.checkpoint(wanted.checkpoint), time.perf_counter()
    episodes, engine = probe(
        pool, wanted.checkpoint, directory, wanted.unit.fingerprint, problems, study.evaluation
    )
    rows = score_rows(
        episodes,
        stage=wanted.stage,
        recipe=wanted.recipe,
        seed=wanted.seed,
        sft_step=wanted.sft_step,
        rl_step=wanted.rl_step,
        engine=engine,
    )
    files.write_part("episodes", wanted.unit, episodes)
    files.write_part("scores", wanted.unit, table("scores", rows))
    files.mark_done(wanted.unit, seconds=time.perf_counter() - start)  # what --plan reckons with


def probe_all(session: Session, probes: Iterable[Probe], title: str) -> None:
    """Probe every checkpoint that has not been probed, as many at a time as there are engines."""
    probes = list(probes)
    pending = [wanted for wanted in probes if not session.files.is_done(wanted.unit)]
    if not pending:
        return
    session.pool.wait_ready()
    progress = StageProgress(title, len(probes), "checkpoints")
    progress.skip(len(probes) - len(pending))

    def one(wanted: Probe) -> None:
        session.started(wanted.unit)
        try:
            run_probe(session.study, session.files, session.pool, wanted)
            session.events.unit(wanted.unit.name, "done")
        except Exception:
            session.fail(wanted.unit.name, traceback.format_exc())
        progress.advance(note=wanted.checkpoint)

    side_by_side(one, pending, session.study.rollout.generators)
    progress.end()


def side_by_side(function: Callable[[T], object], items: Sequence[T], threads: int) -> None:
    """Call `function` on every item, some at a time; an interrupt does not wait for the calls under way."""
    if not items:
        return
    executor = ThreadPoolExecutor(max_workers=threads)
    try:
        for future in [executor.submit(function, item) for item in items]:
            future.result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
