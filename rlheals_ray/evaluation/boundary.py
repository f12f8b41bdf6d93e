"""The recovery boundary: what RL changed in every cell of the map, with intervals, tests and verdicts.

A cell is (seed, SFT step, RL step); its *pooled* row is the mean over the seeds that have the cell, and says how many.
Everything is paired on problems: accuracies are of first attempts on the same probe problems.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rlheals_ray.evaluation.outcomes import first_attempts
from rlheals_ray.evaluation.paired import Outcomes, difference, judge, mean_over
from rlheals_ray.evaluation.peak import Mask, cluster_labels, ood_peak, split_halves
from rlheals_ray.evaluation.statistics import Floats, cluster_bootstrap, percentile_interval, ratio_interval
from rlheals_ray.lineage import BASE

VERDICTS = {1: "heals", -1: "harms"}
_NOISE = 1e-9  # differences of means below it are rounding, not effects

Trunks = dict[int, dict[int, str]]
"""seed -> SFT step -> checkpoint."""
Branches = dict[tuple[int, int], dict[int, str]]
"""(SFT step, RL step) -> seed -> checkpoint."""


def boundary_rows(
    episodes: pa.Table,
    scores: pa.Table,
    clusters: Mapping[str, str],
    recipe: str,
    algorithm: str,
    *,
    stage: str = "rl",
    draws: int = 2000,
) -> list[dict[str, Any]]:
    """All rows of `tables.BOUNDARY` of one recipe and algorithm, for both rules, per seed and pooled.

    `episodes`, `scores`: the tables of those names; `clusters`: problem id -> cluster label. Cells are
    the `scores` rows of `stage` and `recipe` whose checkpoint path names `algorithm`, or none; their SFT
    checkpoint is the row of stage `sft` with the same seed and step, at step 0 else that of stage `base`.
    A cell whose SFT checkpoint was not scored is left out.

    - seeds: how many seeds the row is over; 1 in a row of a seed, in a pooled one fewer than the study's where a
      branch or its trunk did not finish.
    - ood_sft, ood_rl: accuracy@1 **of the row's rule** before and after; healing: their difference.
      healing_low, _high: 95 % over problems (cluster bootstrap; pooled: the same problems for all
      seeds); healing_seed_low, _high: 95 % over seeds (t), null for fewer than two.
    - p: per seed exact McNemar, pooled the clustered sign-flip test of the mean over seeds; q:
      Benjamini-Hochberg within (rule, seed) or (rule, pooled). Both null at rl_step 0.
    - forgetting: OOD(peak) - OOD(SFT step), the peak chosen on the select half of the problems and
      both accuracies read on the report half; null up to the peak and for rule `id`. recovery: healing
      / forgetting, both on the report half, with a joint 95 % bootstrap interval; null unless the
      95 % interval of forgetting lies above 0.
    - verdict: `heals` or `harms` when q < 0.05 and every one of the `seeds` has that sign, else `unclear`. A claim
      rests on the pooled one: McNemar takes problems for independent, so where clusters rise and fall
      together a seed's own verdict errs more often than 5 % (tests/unit/test_evaluation_calibration.py).

    Raises ValueError for two checkpoints of one cell and for checkpoints whose problems differ.
    """
    rows: list[dict[str, Any]] = []
    for rule in ("ood", "id"):
        trunks, branches = cells_of(scores, rule, recipe, algorithm, stage)
        if not branches:
            continue
        outcomes = _Outcomes.read(episodes, rule, trunks, branches, clusters, draws)
        measured = [
            {"recipe": recipe, "algorithm": algorithm, "rule": rule} | outcomes.measure(cell)
            for cell in _cells(trunks, branches)
        ]
        judge(measured, VERDICTS)
        rows += measured
    return rows


class Cell(NamedTuple):
    """What one row is about: `seed` is None in a pooled row, which is over `seeds`."""

    seed: int | None
    seeds: tuple[int, ...]
    sft_step: int
    rl_step: int
    after: tuple[str, ...]
    """The cell's checkpoint of each of `seeds`."""


def cells_of(scores: pa.Table, rule: str, recipe: str, algorithm: str, stage: str) -> tuple[Trunks, Branches]:
    """The SFT and RL checkpoints that `scores` holds for one rule, recipe and algorithm."""
    trunks: Trunks = {}
    branches: Branches = {}
    base = None
    columns = ["checkpoint", "stage", "recipe", "seed", "sft_step", "rl_step", "rule"]
    for score in scores.select(columns).to_pylist():
        path = score["checkpoint"]
        if score["rule"] != rule:
            continue
        if score["stage"] == "base":
            base = path
        if score["recipe"] != recipe:
            continue
        if score["stage"] == "sft":
            _put(trunks.setdefault(score["seed"], {}), score["sft_step"], path)
        elif score["stage"] == stage:
            named = re.search(r"(?:^|/)algorithm=([^/]+)", path)
            if named is None or named[1] == algorithm:
                _put(branches.setdefault((score["sft_step"], score["rl_step"]), {}), score["seed"], path)
    if base is not None:
        for seed in {seed for branch in branches.values() for seed in branch}:
            trunks.setdefault(seed, {}).setdefault(0, base)
    scored = {
        cell: {seed: path for seed, path in branch.items() if cell[0] in trunks.get(seed, {})}
        for cell, branch in branches.items()
    }
    return trunks, {cell: branch for cell, branch in scored.items() if branch}


def _own_steps(trunk: Mapping[int, str]) -> set[int]:
    """Steps of the trunk's own checkpoints: the base that stands for step 0 is no place where SFT could be stopped."""
    return {step for step, path in trunk.items() if path != BASE} or set(trunk)


def _put(paths: dict[int, str], key: int, path: str) -> None:
    if paths.setdefault(key, path) != path:
        raise ValueError(f"two checkpoints for one cell, of one algorithm: {paths[key]} and {path}")


def _cells(trunks: Trunks, branches: Branches) -> Iterable[Cell]:
    """Every seed's cells, seed by seed, then the pooled ones; each in the order of the map."""
    for seed in sorted(trunks):
        for (sft_step, rl_step), branch in sorted(branches.items()):
            if seed in branch:
                yield Cell(seed, (seed,), sft_step, rl_step, (branch[seed],))
    for (sft_step, rl_step), branch in sorted(branches.items()):
        seeds = tuple(sorted(branch))
        yield Cell(None, seeds, sft_step, rl_step, tuple(branch[seed] for seed in seeds))


@dataclass
class _Outcomes:
    """First attempts of all checkpoints of one rule, and their joint bootstrap over problems."""

    trunks: Trunks
    column: dict[str, int]
    labels: npt.NDArray[np.str_]
    """(problems,) cluster labels."""
    solved: Floats
    """(problems, checkpoints)."""
    drawn: Floats
    """(draws, checkpoints): accuracies on resampled problems."""
    select: Mask
    report: Mask
    drawn_report: Floats | None
    """As `drawn`, on the report half; None where there is no second half."""
    peaks: dict[tuple[int, ...], int] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        episodes: pa.Table,
        rule: str,
        trunks: Trunks,
        branches: Branches,
        clusters: Mapping[str, str],
        draws: int,
    ) -> _Outcomes:
        groups: Sequence[dict[int, str]] = [*trunks.values(), *branches.values()]
        paths = sorted({path for group in groups for path in group.values()})
        problems, attempts = first_attempts(episodes, rule, paths)
        labels, solved = cluster_labels(problems, clusters), attempts.astype(np.float64)
        select, report = split_halves(problems, clusters)
        halved = rule == "ood" and bool(report.any())
        return cls(
            trunks=trunks,
            column={path: index for index, path in enumerate(paths)},
            labels=labels,
            solved=solved,
            drawn=cluster_bootstrap(solved, labels, draws),
            select=select,
            report=report,
            drawn_report=cluster_bootstrap(solved[report], labels[report], draws) if halved else None,
        )

    def measure(self, cell: Cell) -> dict[str, Any]:
        """A row without q and verdict; `signs` (one per seed, for the verdict) is taken off later."""
        after = [self.column[path] for path in cell.after]
        before = self._trunk(cell.seeds, cell.sft_step)
        outcomes = Outcomes(self.solved, self.labels, self.drawn)
        found = difference(outcomes, before, after, pooled=cell.seed is None, tested=cell.rl_step > 0)
        return {
            "scope": "pooled" if cell.seed is None else "seed",
            "seed": cell.seed,
            "seeds": len(cell.seeds),
            "sft_step": cell.sft_step,
            "rl_step": cell.rl_step,
            "ood_sft": float(self.solved[:, before].mean()),
            "ood_rl": float(self.solved[:, after].mean()),
            "healing": found.value,
            "healing_low": found.low,
            "healing_high": found.high,
            "healing_seed_low": found.seed_low,
            "healing_seed_high": found.seed_high,
            "p": found.p,
            "signs": found.signs,
        } | self._recovery(cell, before, after)

    def _recovery(self, cell: Cell, before: list[int], after: list[int]) -> dict[str, float | None]:
        """Forgetting and recovery of a cell; on the report half, which did not choose the peak."""
        empty: dict[str, float | None] = dict.fromkeys(
            ("forgetting", "recovery", "recovery_low", "recovery_high")
        )
        if self.drawn_report is None:
            return empty
        peak_step = self._peak(cell.seeds)
        if cell.sft_step <= peak_step:
            return empty
        peak = self._trunk(cell.seeds, peak_step)
        accuracy = self.solved[self.report]
        forgetting = float((accuracy[:, peak] - accuracy[:, before]).mean())
        drawn_forgetting = mean_over(self.drawn_report, peak) - mean_over(self.drawn_report, before)
        if percentile_interval(drawn_forgetting)[0] <= _NOISE or forgetting <= _NOISE:
            return empty | {"forgetting": forgetting}
        healing = float((accuracy[:, after] - accuracy[:, before]).mean())
        drawn_healing = mean_over(self.drawn_report, after) - mean_over(self.drawn_report, before)
        low, high = ratio_interval(drawn_healing, drawn_forgetting)
        return {
            "forgetting": forgetting,
            "recovery": healing / forgetting,
            "recovery_low": low,
            "recovery_high": high,
        }

    def _peak(self, seeds: tuple[int, ...]) -> int:
        """The peak of the mean curve of `seeds`, over the SFT steps that all of them have; as grid/peaks.py has it."""
        if seeds not in self.peaks:
            steps = set.intersection(*(_own_steps(self.trunks[seed]) for seed in seeds))
            curves = {step: self.solved[:, self._trunk(seeds, step)].mean(axis=1) for step in steps}
            self.peaks[seeds] = ood_peak(curves, self.select, self.report).step
        return self.peaks[seeds]

    def _trunk(self, seeds: tuple[int, ...], step: int) -> list[int]:
        return [self.column[self.trunks[seed][step]] for seed in seeds]
