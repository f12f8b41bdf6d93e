"""`--plan`: the resolved study and what it would take, printed; nothing is allocated or written."""

from __future__ import annotations

import os

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from rlheals_ray.config import Study, dump_study, edit_kinds
from rlheals_ray.connection import SLOTS_PER_CORE, local_slots
from rlheals_ray.grid.preflight import preflight
from rlheals_ray.grid.resources import (
    GENERATOR_GIB,
    LEARNER_GIB,
    check_local,
    resources_of,
)
from rlheals_ray.grid.units import StudyUnits, edit_name
from rlheals_ray.lineage import trunks
from rlheals_ray.models.architecture import base_bytes
from rlheals_ray.storage import StudyFiles

NANO_CHECKPOINT_BYTES = 540_000


def print_plan(study: Study, address: str | None = None) -> int:
    """Print the plan; returns 0. Raises InputError for a study that is wrong or does not fit."""
    files = preflight(study)
    needed = resources_of(study)
    console = Console()
    resolved = yaml.safe_dump(dump_study(study), sort_keys=False)
    console.print(resolved, highlight=False, markup=False, soft_wrap=True)
    console.print(_stages(study, StudyUnits(study), files))
    console.print(_sharing(study), highlight=False)
    if address or os.environ.get("RAY_ADDRESS"):
        from rlheals_ray.grid.session import Session  # only here: it takes ten seconds to import

        session = Session(study, files, address)
        session.check_resources()
        console.print(f"asks for {needed.explain()}; the cluster can hold it", highlight=False)
        session.close()
    else:
        check_local(needed)
        total = psutil.virtual_memory().total / 2**30
        console.print(
            f"asks for {needed.explain()}; this machine has {os.cpu_count()} cores = {local_slots()} slots "
            f"({SLOTS_PER_CORE} per core) and {total:.1f} GiB",
            highlight=False,
        )
    console.print(_memory(study), highlight=False)
    console.print(_bytes(study), highlight=False)
    return 0


def _stages(study: Study, units: StudyUnits, files: StudyFiles) -> Table:
    probes = units.probes()
    branches = list(units.branches())
    trunk_units = [units.trunk(trunk) for trunk in trunks(study)]
    table = Table(title=f"stages of {files.root}", title_justify="left")
    for column in ("stage", "units", "done", "of what"):
        table.add_column(column)
    base_updates = f"{study.base.steps} updates" if study.base.model == "nano" else "taken over"
    done = files.is_done
    table.add_row("base", "1", str(int(done(units.base))), base_updates)
    table.add_row(
        "sft", str(len(trunk_units)), str(sum(map(done, trunk_units))), f"{study.sft.steps[-1]} updates each"
    )
    table.add_row(
        "rl", str(len(branches)), str(sum(done(unit) for _, unit in branches)),
        f"{study.rl.budgets[-1]} updates of {study.rl.episodes} episodes each",
    )  # fmt: skip
    table.add_row(
        "probe", str(len(probes)), str(sum(done(probe.unit) for probe in probes)),
        f"{study.evaluation.problems} ID and as many OOD problems each",
    )  # fmt: skip
    table.add_row("spectra", str(len(trunk_units)), "-", "peak, latest and the ends of the branches")
    table.add_row("edit", str(len(_edits(study))), "-", "each probed; edits with their controls")
    return table


def _edits(study: Study) -> set[str]:
    """Every edited checkpoint, controls included; what they share is there once."""
    roles = study.spectra.roles
    return {
        edit_name(trunk, settings, variant, kind, roles)
        for trunk in trunks(study)
        for settings in study.edits
        for variant in settings.variants(roles)
        for kind in edit_kinds(variant.factors)
    }


def _sharing(study: Study) -> str:
    """What training every trunk and branch once saves, against training every cell by itself."""
    seeds, starts, budgets = len(study.seeds), study.rl.from_steps, [b for b in study.rl.budgets if b]
    shared_sft = seeds * study.sft.steps[-1]
    shared_rl = seeds * len(starts) * max(budgets, default=0)
    apart_sft = seeds * sum(starts) * len(budgets)
    apart_rl = seeds * len(starts) * sum(budgets)
    cells = seeds * len(starts) * len(study.rl.budgets)
    return (
        f"cells: {cells}; SFT updates {shared_sft} (each cell by itself: {apart_sft}); "
        f"RL updates {shared_rl} (each cell by itself: {apart_rl})"
    )


def _memory(study: Study) -> str:
    return f"memory per worker: generator about {GENERATOR_GIB} GiB, learner about {LEARNER_GIB} GiB, plus the weights"


def _bytes(study: Study) -> str:
    seeds = len(study.seeds)
    kept = len([b for b in study.rl.budgets if b])
    checkpoints = 1 + seeds * (len(study.sft.steps) + len(study.rl.from_steps) * kept) + len(_edits(study))
    size = NANO_CHECKPOINT_BYTES if study.base.model == "nano" else base_bytes(study.base.model)
    return f"to be stored: {checkpoints} checkpoints of {size / 2**20:.1f} MiB = {checkpoints * size / 2**20:.0f} MiB"
