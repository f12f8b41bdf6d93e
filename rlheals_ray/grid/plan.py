"""`--plan`: the resolved study and what it would take, printed; nothing is allocated, waited for or written."""

from __future__ import annotations

import os
from collections.abc import Callable

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from rlheals_ray.config import InputError, Study, dump_study
from rlheals_ray.connection import SLOTS_PER_CORE, local_slots, named_cluster
from rlheals_ray.grid.plan_bytes import check_disk, disk_lines
from rlheals_ray.grid.plan_counts import counts, sharing_lines
from rlheals_ray.grid.plan_memory import memory_lines
from rlheals_ray.grid.plan_time import time_lines
from rlheals_ray.grid.preflight import preflight
from rlheals_ray.grid.resources import WAIT, check_local, resources_of
from rlheals_ray.grid.units import StudyUnits
from rlheals_ray.lineage import trunks
from rlheals_ray.sft.schedule import Schedule
from rlheals_ray.storage import StudyFiles


def print_plan(study: Study, address: str | None = None) -> int:
    """Print the plan; returns 0. Raises InputError for a wrong study, and after the plan where it does not fit."""
    files = preflight(study)
    needed = resources_of(study)
    console = Console()
    resolved = yaml.safe_dump(dump_study(study), sort_keys=False)
    # A plan of what does not fit here is how one finds out where it would.
    where, refusal = (
        _ask_cluster(study, files, address) if named_cluster(address) else _ask_here(study, files)
    )
    console.print(resolved, highlight=False, markup=False, soft_wrap=True)
    console.print(_stages(study, StudyUnits(study), files))
    lines = [
        *schedule_lines(study),
        *sharing_lines(study),
        f"asks for {needed.explain()}; {where}",
        *memory_lines(study),
        *disk_lines(study, files),
        *time_lines(study, files),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if refusal is not None:
        raise refusal
    return 0


def _ask_here(study: Study, files: StudyFiles) -> tuple[str, InputError | None]:
    """What this machine has, and what the study would be refused for."""
    has = (
        f"this machine has {os.cpu_count()} cores = {local_slots()} slots ({SLOTS_PER_CORE} per core) and "
        f"{psutil.virtual_memory().total / 2**30:.1f} GiB"
    )
    disk = _refusal(lambda: check_disk(study, files))
    return has, disk or _refusal(lambda: check_local(resources_of(study)))


def _ask_cluster(study: Study, files: StudyFiles, address: str | None) -> tuple[str, InputError | None]:
    """The same of the cluster as it is now: it is joined and looked at, and no autoscaler learns of it."""
    from rlheals_ray.grid.nodes import cluster_words
    from rlheals_ray.grid.session import Session  # only here: it takes ten seconds to import

    session = Session(study, files, address)
    if error := _refusal(session.connect):
        return "what the cluster has could not be asked", error
    try:
        has = cluster_words()
        error = _refusal(lambda: session.check_resources(wait=False))
    finally:
        session.close()
    # A disk that is too small stays so, however many nodes come.
    disk, seconds = _refusal(lambda: check_disk(study, files)), study.resources.nodes_seconds
    if error is None or disk is not None or not seconds:
        return f"{has}{'' if error else ' and can hold it'}", disk or error
    why = str(error).replace(WAIT, "")
    return f"{has}; the run would wait up to {seconds:g} s for nodes (resources.nodes_seconds): {why}", None


def _refusal(check: Callable[[], None]) -> InputError | None:
    try:
        check()
    except InputError as error:
        return error
    return None


def schedule_lines(study: Study) -> list[str]:
    """The SFT schedule as it will be applied, with its rate at a few updates."""
    settings = study.sft
    if settings.checkpoints is not None:
        return []
    updates = settings.steps[-1]
    schedule = Schedule.of(settings, updates)
    shown = sorted({1, 2, max(1, schedule.warmup), (updates + 1) // 2, updates})
    rates = ", ".join(f"{n}: {schedule.rate(n - 1):.3g}" for n in shown if n <= updates)
    return [f"SFT schedule: {schedule}; rate of update {rates}"]


def _stages(study: Study, units: StudyUnits, files: StudyFiles) -> Table:
    each = counts(study)
    rl, beside, probes = list(units.branches()), list(units.controls()), units.probes()
    trunk_units = [units.trunk(trunk) for trunk in trunks(study)]
    table = Table(title=f"stages of {files.root}", title_justify="left")
    for column in ("stage", "units", "done", "of what"):
        table.add_column(column)

    def done(some: list[bool]) -> str:
        return str(sum(some))

    is_nano, taken_over = study.base.model == "nano", study.sft.checkpoints is not None
    base_updates = f"{study.base.steps} updates" if is_nano else "taken over"
    how = "taken over" if taken_over else f"{study.sft.steps[-1]} updates each"
    recipes = study.sft.recipes
    if len(recipes) > 1:
        how += f", {len(study.seeds)} of each recipe: {', '.join(recipes)}"
    problems = f"{study.evaluation.problems} ID and as many OOD problems each"
    table.add_row("base", "1", done([files.is_done(units.base)]), base_updates)
    table.add_row("sft", str(each.trunks), done([files.is_done(unit) for unit in trunk_units]), how)
    table.add_row(
        "rl", str(each.branches), done([files.is_done(unit) for _, unit in rl]),
        f"{study.rl.budgets[-1]} updates of {study.rl.episodes} episodes each",
    )  # fmt: skip
    if beside:
        kinds = ", ".join(study.controls.kinds)
        table.add_row(
            "controls", str(each.controls), done([files.is_done(unit) for _, unit in beside]),
            f"{kinds}: the compute of the RL branch each",
        )  # fmt: skip
    table.add_row("probe", str(each.probes), done([files.is_done(p.unit) for p in probes]), problems)
    if beside:
        of_controls = [files.is_done(p.unit) for p in units.control_probes()]
        table.add_row("control probes", str(each.control_probes), done(of_controls), problems)
    table.add_row("spectra", str(each.trunks), "-", "peak, latest and the ends of the branches")
    if study.hidden is not None:
        states = [files.is_done(units.hidden_states(p)) for p in probes]
        table.add_row(
            "hidden", str(each.hidden), done(states), f"{study.hidden.problems} prompts of either rule each"
        )
    table.add_row("edit", str(each.edits), "-", "each probed; edits with their controls")
    return table
