"""Where to stop: the cell of the map with the best OOD accuracy among those whose ID accuracy is high enough.

Chosen on one half of the problems and reported on the other: the best of many noisy accuracies is too high on the
problems that chose it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from rlheals_ray.config import RecommendationSettings
from rlheals_ray.evaluation.boundary import cells_of
from rlheals_ray.evaluation.outcomes import first_attempts
from rlheals_ray.evaluation.paired import mean_over
from rlheals_ray.evaluation.peak import Mask, cluster_labels, split_halves
from rlheals_ray.evaluation.rules import OOD
from rlheals_ray.evaluation.statistics import Floats, cluster_bootstrap, percentile_interval, t_interval

_TIE = 1e-9


class Cell(NamedTuple):
    """A place to stop, the same for all seeds."""

    recipe: str
    sft_step: int
    rl_step: int
    checkpoints: tuple[str, ...]
    """One per seed."""


def recommendation_rows(
    episodes: pa.Table,
    scores: pa.Table,
    clusters: Mapping[str, str],
    settings: RecommendationSettings,
    recipes: Sequence[str],
    algorithm: str,
    *,
    draws: int = 2000,
) -> list[dict[str, Any]]:
    """Rows of `tables.RECOMMENDATION`: every cell that all seeds have, the chosen one first, then the eligible ones.

    Arguments as of `boundary_rows`. Cells are the SFT checkpoints (rl_step 0, algorithm null) and the ends of RL, not
    controls. id_floor: as set, or `id_margin` below the best ID accuracy of the map. A cell is eligible when its ID
    accuracy reaches the floor, and chosen when its OOD accuracy is the best of the eligible: both means over seeds, on
    the half that selects. None is chosen where nothing is solved. Of equals the one with less RL is taken, then with
    less SFT. ood, id: accuracies on the other half, with 95 % intervals over problems and, of ood, over seeds. p_best:
    in how many of the draws of all problems the cell is the best of the eligible; equals share a draw. checkpoint: of
    the seed with the best OOD accuracy on the selecting half.

    Empty where fewer than two clusters were probed, so that there is no second half.
    """
    cells = _cells(scores, recipes, algorithm)
    if not cells:
        return []
    ood, held = (_Rule.read(episodes, rule, cells, clusters, draws) for rule in ("ood", "id"))
    if not (ood.report.any() and held.report.any()):
        return []
    best_id = max(held.chosen_on(index) for index in range(len(cells)))
    floor = best_id - settings.id_margin if settings.id_floor is None else settings.id_floor
    eligible = [held.chosen_on(index) >= floor - _TIE for index in range(len(cells))]
    p_best = _p_best(ood, eligible)

    def rank(index: int) -> tuple[bool, float, int, int]:
        cell = cells[index]
        return not eligible[index], -round(ood.chosen_on(index), 9), cell.rl_step, cell.sft_step

    order = sorted(range(len(cells)), key=rank)
    return [
        {
            "rule": OOD,
            "recipe": cells[index].recipe,
            "algorithm": algorithm if cells[index].rl_step else None,
            "sft_step": cells[index].sft_step,
            "rl_step": cells[index].rl_step,
            "chosen": place == 0 and eligible[index] and ood.chosen_on(index) > 0,
            "eligible": eligible[index],
            "p_best": p_best[index],
            **ood.reported(index, "ood", seeds=True),
            **held.reported(index, "id"),
            "id_floor": float(floor),
            "checkpoint": cells[index].checkpoints[ood.best_seed(index)],
        }
        for place, index in enumerate(order)
    ]


def _cells(scores: pa.Table, recipes: Sequence[str], algorithm: str) -> list[Cell]:
    """SFT checkpoints and ends of RL that every seed of the recipe has, both rules probed."""
    cells = []
    for recipe in recipes:
        found = []
        for rule in ("ood", "id"):
            trunks, branches = cells_of(scores, rule, recipe, algorithm, "rl")
            seeds = sorted(trunks)
            paths: dict[tuple[int, int], dict[int, str]] = {
                cell: branch for cell, branch in branches.items() if cell[1]
            }
            for step in sorted({step for trunk in trunks.values() for step in trunk}):
                paths[step, 0] = {seed: trunks[seed][step] for seed in seeds if step in trunks[seed]}
            found.append({cell: own for cell, own in paths.items() if set(own) == set(seeds)})
        ood, held = found
        cells += [
            Cell(recipe, *cell, tuple(ood[cell][seed] for seed in sorted(ood[cell])))
            for cell in sorted(ood.keys() & held.keys())
        ]
    return cells


@dataclass
class _Rule:
    """The cells' outcomes under one rule."""

    columns: list[list[int]]
    """Of every cell, one per seed."""
    solved: Floats
    """(problems, checkpoints)."""
    select: Mask
    report: Mask
    drawn: Floats
    """(draws, checkpoints) on all problems."""
    drawn_report: Floats
    """The same on the half that reports."""

    @classmethod
    def read(
        cls, episodes: pa.Table, rule: str, cells: Sequence[Cell], clusters: Mapping[str, str], draws: int
    ) -> _Rule:
        paths = sorted({path for cell in cells for path in cell.checkpoints})
        place = {path: index for index, path in enumerate(paths)}
        problems, attempts = first_attempts(episodes, rule, paths)
        labels, solved = cluster_labels(problems, clusters), attempts.astype(np.float64)
        select, report = split_halves(problems, clusters)
        drawn = cluster_bootstrap(solved, labels, draws)
        return cls(
            columns=[[place[path] for path in cell.checkpoints] for cell in cells],
            solved=solved,
            select=select,
            report=report,
            drawn=drawn,
            drawn_report=cluster_bootstrap(solved[report], labels[report], draws) if report.any() else drawn,
        )

    def chosen_on(self, index: int) -> float:
        """Accuracy of a cell on the half that selects."""
        return float(self.solved[self.select][:, self.columns[index]].mean())

    def best_seed(self, index: int) -> int:
        """Which of a cell's checkpoints is the best on the half that selects; of equals the first."""
        return int(self.solved[self.select][:, self.columns[index]].mean(axis=0).argmax())

    def reported(self, index: int, name: str, *, seeds: bool = False) -> dict[str, float | None]:
        by_seed = self.solved[self.report][:, self.columns[index]].mean(axis=0)
        low, high = percentile_interval(mean_over(self.drawn_report, self.columns[index]))
        row: dict[str, float | None] = {
            name: float(by_seed.mean()),
            f"{name}_low": low,
            f"{name}_high": high,
        }
        if seeds:
            over = t_interval(by_seed) if len(by_seed) > 1 else (None, None)
            row |= {f"{name}_seed_low": over[0], f"{name}_seed_high": over[1]}
        return row


def _p_best(ood: _Rule, eligible: Sequence[bool]) -> list[float | None]:
    """Of every eligible cell the share of draws in which none is better; None for the others."""
    places = [index for index, may in enumerate(eligible) if may]
    shares: list[float | None] = [None] * len(eligible)
    if not places:
        return shares
    drawn = np.column_stack([mean_over(ood.drawn, ood.columns[index]) for index in places])
    wins = drawn >= drawn.max(axis=1, keepdims=True) - _TIE
    for index, share in zip(places, (wins / wins.sum(axis=1, keepdims=True)).mean(axis=0), strict=True):
        shares[index] = float(share)
    return shares
