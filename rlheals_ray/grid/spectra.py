"""The stage about the weights: drift and rotation between a study's checkpoints, on Ray Data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from rlheals_ray.grid.peaks import finished_branches, peak_step, probed_seeds
from rlheals_ray.grid.progress import StageProgress
from rlheals_ray.grid.session import Session
from rlheals_ray.rl.names import branch_checkpoint
from rlheals_ray.sft.names import BASE, trunk_checkpoint
from rlheals_ray.storage import Unit

if TYPE_CHECKING:
    # spectra loads torch and ray.data; a driver that only resumes or reports shall not wait for them.
    from rlheals_ray.spectra.compare import Pair
    from rlheals_ray.spectra.updates import Chain

FACTORS = "factors"
"""Where a study keeps the SVD factors of its matrices."""
COMPARISONS = "parts/comparisons"
"""Where a study keeps what was found of each matrix, so that a killed stage goes on."""


def spectra_units(session: Session) -> dict[int, Unit]:
    """The comparisons of every seed whose peak is known."""
    return {
        seed: session.units.spectra(seed, peak_step(session, seed), finished_branches(session, seed))
        for seed in probed_seeds(session)
    }


def spectra_stage(session: Session) -> None:
    """Drift and rotation of trunk and branches from the base and the OOD peak; SFT's updates beside RL's."""
    study, files = session.study, session.files
    pending = {seed: unit for seed, unit in spectra_units(session).items() if not files.is_done(unit)}
    if not pending:
        return
    from rlheals_ray.spectra.compare import compare
    from rlheals_ray.spectra.stock import Workers, matrix_shapes, stocked
    from rlheals_ray.spectra.updates import compare_updates

    session.connect()
    pairs = [pair for seed in pending for pair in _pairs(session, seed)]
    chains = [chain for seed in pending for chain in _chains(session, seed)]
    named = {
        (p.seed, name): where for p in pairs for name, where in ((p.a, p.a_directory), (p.b, p.b_directory))
    }
    directories = list(dict.fromkeys(named.values()))
    roles, ks, slots = study.spectra.roles, study.spectra.k, session.task_slots
    factors, results = str(files.root / FACTORS), str(files.root / COMPARISONS)
    shapes = matrix_shapes(directories[0], roles)
    sizes = {tuple(sorted(shape)) for shape in shapes.values()}  # each has a null spectrum to simulate

    with _shown("decompose", len(directories) * len(shapes) + len(sizes)) as progress:
        stock = stocked(directories, roles, factors, Workers(slots, progress=progress))
    with _shown("spectra", len(pairs) * len(shapes)) as progress:
        rows = compare(pairs, roles, ks, factors, slots, results=results, stock=stock, progress=progress)
    updates_made = {step for c in chains for step in ((c.a, c.b), (c.b, c.c))}
    with _shown("updates", (len(updates_made) + len(chains)) * len(shapes)) as progress:
        updates = compare_updates(chains, roles, ks, factors, slots, results=results, progress=progress)
    sigma = stock.singular_values([(seed, name, where) for (seed, name), where in named.items()])
    for seed, unit in pending.items():
        for name, table in (("spectra", rows), ("updates", updates), ("singular_values", sigma)):
            files.write_part(name, unit, table.filter(pc.equal(table["seed"], seed)))
        files.mark_done(unit)


@contextmanager
def _shown(name: str, total: int) -> Iterator[Callable[[int], None]]:
    progress = StageProgress(name, total, "matrices")
    yield progress.advance
    progress.end()


def _pairs(session: Session, seed: int) -> list[Pair]:
    """Every checkpoint where RL starts or ends, the peak and the latest: from base and from the peak."""
    from rlheals_ray.spectra.compare import Pair

    study, files, last = session.study, session.files, session.study.rl.budgets[-1]
    peak = trunk_checkpoint(seed, peak_step(session, seed))
    latest = trunk_checkpoint(seed, study.sft.steps[-1])
    named = [(BASE, peak), (BASE, latest), (peak, latest)]
    named += [(anchor, trunk_checkpoint(seed, s)) for s in study.rl.from_steps for anchor in (BASE, peak)]
    for step in finished_branches(session, seed):
        start, end = trunk_checkpoint(seed, step), branch_checkpoint(seed, step, last)
        named += [(start, end), (BASE, end), (peak, end)]
    return [
        Pair(seed, a, b, str(files.checkpoint(a)), str(files.checkpoint(b)))
        for a, b in dict.fromkeys(named)
        if a != b
    ]


def _chains(session: Session, seed: int) -> list[Chain]:
    """From base by SFT to a branch's start and by RL to its end; and the same from the peak, which RL may undo."""
    from rlheals_ray.spectra.updates import Chain

    files, last = session.files, session.study.rl.budgets[-1]
    peak = trunk_checkpoint(seed, peak_step(session, seed))
    named = [
        (origin, trunk_checkpoint(seed, step), branch_checkpoint(seed, step, last))
        for step in finished_branches(session, seed)
        for origin in (BASE, peak)
    ]
    return [
        Chain(seed, a, b, c, *(str(files.checkpoint(name)) for name in (a, b, c)))
        for a, b, c in named
        if a != b
    ]
