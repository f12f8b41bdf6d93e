"""An ablation of k × layer block on two checkpoints: this system ÷ the published procedure, side by side."""

from __future__ import annotations

import os
import shutil
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from rlheals_ray.bench.measure import Figure, Outcome, alternate, at_least
from rlheals_ray.bench.published_edit import Published, edit_as_published, seconds_of_svds
from rlheals_ray.bench.spectra_models import Checkpoints
from rlheals_ray.bench.spectra_unwritten import make_unwritten
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.spectra.ablation import SECONDS_PER_PRODUCT, Order, run_edits
from rlheals_ray.spectra.edit import Edit, EditReport
from rlheals_ray.spectra.matrices import Matrices
from rlheals_ray.spectra.orders import Plan
from rlheals_ray.spectra.pipeline import mapped
from rlheals_ray.spectra.stock import Workers, stocked

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
AGREEMENT = 2.0**-8
"""‖ours − theirs‖_F ÷ ‖theirs‖_F allowed for one matrix: both are rounded to bfloat16, at most 2⁻⁹ each."""


@dataclass(frozen=True)
class Setting:
    """One edited checkpoint of the ablation."""

    share: float
    """k ÷ min(m, n)."""
    layers: tuple[int, ...]


def settings_of(layers: int, ks: int, blocks: int) -> list[Setting]:
    """k at ks shares between none and all, times blocks of layers as equal as can be."""
    edges = [round(layers * block / blocks) for block in range(blocks + 1)]
    ranges = [tuple(range(a, b)) for a, b in pairwise(edges)]
    return [Setting(k / (ks + 1), block) for block in ranges for k in range(1, ks + 1)]


def whole(settings: Sequence[Setting], count: int) -> list[Setting]:
    """The settings that the published procedure runs whole: evenly among blocks and among k."""
    blocks = list(dict.fromkeys(setting.layers for setting in settings))
    shares = list(dict.fromkeys(setting.share for setting in settings))
    chosen = []
    for number in range(count):
        share = shares[(number * len(shares) // count + len(shares) // (2 * count)) % len(shares)]
        chosen.append(Setting(share, blocks[number % len(blocks)]))
    return chosen


def measure_ablation(checkpoints: Checkpoints, directory: Path, options: Namespace, layers: int) -> Outcome:
    """Both sides in turn, from nothing each time. Ray is connected."""
    return _Ablation(checkpoints, directory, options, layers).outcome()


class _Ablation:
    def __init__(self, checkpoints: Checkpoints, directory: Path, options: Namespace, layers: int) -> None:
        self.checkpoints, self.directory, self.options = checkpoints, directory, options
        self.settings = settings_of(layers, options.ks, options.blocks)
        self.whole = whole(self.settings, options.settings)
        self.late = Matrices.of(checkpoints.late)
        self.cores = options.workers or os.cpu_count() or 1
        matrix = self.late.tensor(self.late.names(("gate",))[0])
        took = {n: seconds_of_svds(matrix, n) for n in sorted({1, os.cpu_count() or 1})}
        self.threads = min(took, key=lambda n: took[n])
        self.embedding = seconds_of_svds(self.late.tensor(*self.late.names(("embed",))), self.threads, goes=1)
        self.difference = 0.0

    def outcome(self) -> Outcome:
        arms: dict[str, Any] = {"published": self.published, "edits": self.edits, "written": self.written}
        made = alternate(arms, self.options.repetitions)
        total = sum(len(self.names(setting)) for setting in self.settings)
        count = len(self.settings)
        loaded: dict[str, list[float]] = {"without writing": [], "with writing": []}
        for runs in made["published"]:
            # Loading and saving cost the same for every setting, editing by the matrix.
            edit = sum(run.edit for run in runs) / sum(run.matrices for run in runs) * total
            load, save = (
                count * sum(getattr(run, part) for run in runs) / len(runs) for part in ("load", "save")
            )
            loaded["without writing"].append(load + edit)
            loaded["with writing"].append(load + edit + save)
        theirs = {way: Figure(f"published, {count} settings, {way} (extrapolated)", "s", tuple(seconds))
                  for way, seconds in loaded.items()}  # fmt: skip
        ours = {
            "without writing": Figure(
                f"this system, {count} settings, without writing", "s", tuple(made["edits"])
            ),
            "with writing": Figure(
                f"this system, {count} settings, with writing", "s", tuple(made["written"])
            ),
        }
        ratios = [
            theirs[way].over(
                ours[way],
                f"ablation, {way}: published ÷ this system",
                target=at_least(10) if way == "without writing" else None,
            )
            for way in theirs
        ]
        runs = made["published"][-1]
        parts = [
            Figure(f"published, one setting, {part}", "s", tuple(getattr(run, part) for run in runs))
            for part in ("load", "edit", "save")
        ]
        parts.append(Figure("published, two SVDs of the embedding (in no ratio)", "s", (self.embedding,)))
        return Outcome({}, ratios, [*theirs.values(), *ours.values(), *parts], self.notes(runs, total))

    def notes(self, runs: Sequence[Published], total: int) -> list[str]:
        each = "; ".join(
            f"k = {setting.share:.2f} r, layers {setting.layers[0]}-{setting.layers[-1]}: {run.matrices} "
            f"matrices in {run.edit:.1f} s"
            for setting, run in zip(self.whole, runs, strict=True)
        )
        return [
            f"ablation: the published procedure ran {len(runs)} of {len(self.settings)} settings whole ({each}); its "
            f"time for all is extrapolated: editing by the matrix ({total} over all settings), loading and saving by "
            f"the setting. It used {self.threads} thread(s), the faster of 1 and {os.cpu_count()}; this system "
            f"{self.cores} worker(s) of one thread.",
            f"ablation: {len(self.late.names(ROLES))} matrices; both sides edit the same. They agree in a matrix of "
            f"each of these settings: relative difference at most {self.difference:.1e} (allowed {AGREEMENT:.1e}, "
            "the rounding of two bfloat16 values).",
        ]

    def names(self, setting: Setting) -> list[str]:
        return self.late.names(ROLES, setting.layers)

    def published(self, repetition: int) -> list[Published]:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return [
                edit_as_published(
                    self.checkpoints.peak, self.checkpoints.late, setting.share, set(self.names(setting)),
                    self.theirs(setting), self.options.device,
                )
                for setting in self.whole
            ]  # fmt: skip
        finally:
            torch.set_num_threads(before)

    def orders(self, out: Path) -> list[Order]:
        return [
            Order(
                Edit(
                    self.checkpoints.peak,
                    self.checkpoints.late,
                    k=setting.share,
                    roles=ROLES,
                    layers=setting.layers,
                ),
                str(out / str(number)),
            )
            for number, setting in enumerate(self.settings)
        ]

    def edits(self, repetition: int) -> float:
        """Seconds of every edited matrix made, and none written; the factors are."""
        scratch = self.directory / "edits"
        start = time.perf_counter()
        self.decompose(scratch / "factors")
        plan = Plan.of(self.orders(scratch / "out"), keeps=False)
        mapped(
            plan.rows,
            make_unwritten,
            SECONDS_PER_PRODUCT * plan.elements,
            self.cores,
            catalogue=[asdict(variant) for variant in plan.catalogue],
            factors=str(scratch / "factors"),
        )
        seconds = time.perf_counter() - start
        shutil.rmtree(scratch)
        return seconds

    def written(self, repetition: int) -> float:
        """Seconds of `run_edits`, which writes every checkpoint; checks them against the published ones."""
        scratch = self.directory / "written"
        start = time.perf_counter()
        self.decompose(scratch / "factors")
        reports = run_edits(
            self.orders(scratch / "out"), str(scratch / "factors"), str(scratch / "pieces"), self.cores
        )
        seconds = time.perf_counter() - start
        if failed := [report for report in reports if not isinstance(report, EditReport)]:
            raise RuntimeError(f"{len(failed)} edits failed, the first: {failed[0]}")
        for setting in self.whole:
            number, name = self.settings.index(setting), self.names(setting)[-1]
            self.check(Checkpoint(scratch / "out" / str(number)), Checkpoint(self.theirs(setting)), name)
        shutil.rmtree(scratch)
        shutil.rmtree(self.directory / "published")
        return seconds

    def decompose(self, factors: Path) -> None:
        """On a GPU the decompositions go first (UNTESTED); on CPUs every edit's task makes its own."""
        if self.options.device == "cuda":
            stocked([self.checkpoints.peak, self.checkpoints.late], ROLES, factors, Workers(1, num_gpus=1.0))

    def check(self, ours: Checkpoint, theirs: Checkpoint, name: str) -> None:
        """Raises AssertionError where the two edits of a matrix are not the same one."""
        a, b, before = (c.tensor(name).double() for c in (ours, theirs, self.late.checkpoint))
        difference = float((a - b).norm() / b.norm())
        if difference > AGREEMENT or difference * b.norm() > 0.1 * (b - before).norm():
            raise AssertionError(
                f"{name}: this system's edit and the published one differ by {difference:.1e}"
            )
        self.difference = max(self.difference, difference)

    def theirs(self, setting: Setting) -> Path:
        return self.directory / "published" / str(self.settings.index(setting))
