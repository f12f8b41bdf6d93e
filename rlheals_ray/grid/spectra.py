"""The stage about the weights: drift and rotation between a study's checkpoints, on Ray Data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from rlheals_ray.grid.peaks import finished_branches, peak_step, probed_trunks
from rlheals_ray.grid.progress import StageProgress
from rlheals_ray.grid.session import Session
from rlheals_ray.lineage import BASE, Trunk
from rlheals_ray.storage import Unit

if TYPE_CHECKING:
    # spectra loads torch and ray.data; a driver that only resumes or reports shall not wait for them.
    from rlheals_ray.spectra.compare import Pair
    from rlheals_ray.spectra.updates import Chain

FACTORS = "factors"
"""Where a study keeps the SVD factors of its matrices."""
COMPARISONS = "parts/comparisons"
"""Where a study keeps what was found of each matrix, so that a killed stage goes on."""


def spectra_units(session: Session) -> dict[Trunk, Unit]:
    """The comparisons of every trunk whose peak is known."""
    return {
        trunk: session.units.spectra(trunk, peak_step(session, trunk), finished_branches(session, trunk))
        for trunk in probed_trunks(session)
    }


def spectra_stage(session: Session) -> None:
    """Drift and rotation of trunk and branches from the base and the OOD peak; SFT's updates beside RL's."""
    pending = {t: unit for t, unit in spectra_units(session).items() if not session.files.is_done(unit)}
    for recipe in dict.fromkeys(trunk.recipe for trunk in pending):
        _compare(session, {trunk: unit for trunk, unit in pending.items() if trunk.recipe == recipe}, recipe)


def _compare(session: Session, pending: Mapping[Trunk, Unit], recipe: str) -> None:
    """The comparisons of one recipe's trunks; the base's matrices are decomposed once for all recipes."""
    study, files = session.study, session.files
    for unit in pending.values():
        session.started(unit)
    from rlheals_ray.spectra.compare import compare
    from rlheals_ray.spectra.stock import Workers, matrix_shapes, stocked
    from rlheals_ray.spectra.updates import compare_updates

    session.connect()
    pairs = [pair for trunk in pending for pair in _pairs(session, trunk)]
    chains = [chain for trunk in pending for chain in _chains(session, trunk)]
    named = {
        (p.seed, name): where for p in pairs for name, where in ((p.a, p.a_directory), (p.b, p.b_directory))
    }
    directories = list(dict.fromkeys(named.values()))
    roles, ks, slots = study.spectra.roles, study.spectra.k, session.task_slots
    factors, results = str(files.root / FACTORS), str(files.root / COMPARISONS)
    shapes = matrix_shapes(directories[0], roles)
    sizes = {tuple(sorted(shape)) for shape in shapes.values()}  # each has a null spectrum to simulate

    need = session.needs["tasks"]
    spread: dict[str, Any] = {
        "num_cpus": need.cpus,
        "num_gpus": need.gpus,
        "memory": need.memory,
        "labels": need.labels,
    }
    with _shown("decompose", len(directories) * len(shapes) + len(sizes)) as progress:
        stock = stocked(directories, roles, factors, Workers(slots, progress=progress, **spread))
    spread["results"] = results
    with _shown("spectra", len(pairs) * len(shapes)) as progress:
        rows = compare(pairs, roles, ks, factors, slots, stock=stock, progress=progress, **spread)
    updates_made = {step for c in chains for step in ((c.a, c.b), (c.b, c.c))}
    with _shown("updates", (len(updates_made) + len(chains)) * len(shapes)) as progress:
        updates = compare_updates(chains, roles, ks, factors, slots, progress=progress, **spread)
    sigma = stock.singular_values([(seed, name, where) for (seed, name), where in named.items()])
    for trunk, unit in pending.items():
        for name, table in (("spectra", rows), ("updates", updates), ("singular_values", sigma)):
            mine = table.filter(pc.equal(table["seed"], trunk.seed))
            column = pa.array([recipe] * mine.num_rows, pa.string())
            files.write_part(
                name, unit, mine.set_column(mine.schema.get_field_index("recipe"), "recipe", column)
            )
        session.done(unit)


def compared_checkpoints(session: Session, trunk: Trunk) -> list[str]:
    """The names of all checkpoints that the trunk's comparisons read."""
    study, last = session.study, session.study.rl.budgets[-1]
    steps = {peak_step(session, trunk), study.sft.steps[-1], *study.rl.from_steps}
    ends = [branch.checkpoint(last) for branch in finished_branches(session, trunk)]
    return [BASE, *(trunk.checkpoint(step) for step in sorted(steps)), *ends]


@contextmanager
def _shown(name: str, total: int) -> Iterator[Callable[[int], None]]:
    progress = StageProgress(name, total, "matrices")
    yield progress.advance
    progress.end()


def _pairs(session: Session, trunk: Trunk) -> list[Pair]:
    """Every checkpoint where RL starts or ends, the peak and the latest: from base and from the peak."""
    from rlheals_ray.spectra.compare import Pair

    study, files, last = session.study, session.files, session.study.rl.budgets[-1]
    peak = trunk.checkpoint(peak_step(session, trunk))
    latest = trunk.checkpoint(study.sft.steps[-1])
    named = [(BASE, peak), (BASE, latest), (peak, latest)]
    named += [(anchor, trunk.checkpoint(s)) for s in study.rl.from_steps for anchor in (BASE, peak)]
    for branch in finished_branches(session, trunk):
        start, end = branch.start, branch.checkpoint(last)
        named += [(start, end), (BASE, end), (peak, end)]
    return [
        Pair(trunk.seed, a, b, str(files.checkpoint(a)), str(files.checkpoint(b)))
        for a, b in dict.fromkeys(named)
        if a != b
    ]


def _chains(session: Session, trunk: Trunk) -> list[Chain]:
    """From base by SFT to a branch's start and by RL to its end; and the same from the peak, which RL may undo."""
    from rlheals_ray.spectra.updates import Chain

    files, last = session.files, session.study.rl.budgets[-1]
    peak = trunk.checkpoint(peak_step(session, trunk))
    named = [
        (origin, branch.start, branch.checkpoint(last))
        for branch in finished_branches(session, trunk)
        for origin in (BASE, peak)
    ]
    return [
        Chain(trunk.seed, a, b, c, *(str(files.checkpoint(name)) for name in (a, b, c)))
        for a, b, c in named
        if a != b
    ]
