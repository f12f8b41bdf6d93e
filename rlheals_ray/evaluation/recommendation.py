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
    seeds: tuple[int, ...]
    checkpoints: tuple[str, ...]
    """One of each of `seeds`."""


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
    """Rows of `tables.RECOMMENDATION`: every cell of `places_to_stop`, the chosen one first, then the eligible ones.

    Arguments as of `boundary_rows`. Cells are the SFT checkpoints (rl_step 0, algorithm null) and the ends of RL, not
    controls. id_floor: as set, or `id_margin` below the best ID accuracy of the map. A cell is eligible when its ID
    accuracy reaches the floor, and chosen when its OOD accuracy is the best of the eligible: both means over seeds, on
    the half that selects. None is chosen where nothing is solved. Of equals the one with less RL is taken, then with
    less SFT. seeds: how many the means are over. ood, id: accuracies on the other half, with 95 % intervals over
    problems and, of ood, over seeds. p_best: the share of the draws in which the same rule takes this cell (see
    `_p_best`). checkpoint: of the seed with the best OOD accuracy on the selecting half.

    Empty where fewer than two clusters were probed, so that there is no second half.
    """
    cells = places_to_stop(scores, recipes, algorithm)
    if not cells:
        return []
    # Seeds of their own: problems of two rules are drawn independently.
    ood, held = (
        _Rule.read(episodes, rule, cells, clusters, draws, seed) for seed, rule in enumerate(("ood", "id"))
    )
    if not (ood.report.any() and held.report.any()):
        return []
    best_id = max(held.chosen_on(index) for index in range(len(cells)))
    floor = best_id - settings.id_margin if settings.id_floor is None else settings.id_floor
    eligible = [held.chosen_on(index) >= floor - _TIE for index in range(len(cells))]
    p_best = _p_best(ood, held, settings)

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
            "seeds": len(cells[index].seeds),
            "chosen": place == 0 and eligible[index] and ood.chosen_on(index) > 0,
            "eligible": eligible[index],
            "p_best": float(p_best[index]),
            **ood.reported(index, "ood", seeds=True),
            **held.reported(index, "id"),
            "id_floor": float(floor),
            "checkpoint": cells[index].checkpoints[ood.best_seed(index)],
        }
        for place, index in enumerate(order)
    ]


def places_to_stop(scores: pa.Table, recipes: Sequence[str], algorithm: str) -> list[Cell]:
    """SFT checkpoints and ends of RL that every seed with a probed trunk of the recipe has, both rules probed."""
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
            Cell(
                recipe, *cell, tuple(sorted(ood[cell])), tuple(path for _, path in sorted(ood[cell].items()))
            )
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
    """(draws, checkpoints): accuracies on resampled problems of the half that reports."""

    @classmethod
    def read(
        cls,
        episodes: pa.Table,
        rule: str,
        cells: Sequence[Cell],
        clusters: Mapping[str, str],
        draws: int,
        seed: int,
    ) -> _Rule:
        paths = sorted({path for cell in cells for path in cell.checkpoints})
        place = {path: index for index, path in enumerate(paths)}
        problems, attempts = first_attempts(episodes, rule, paths)
        labels, solved = cluster_labels(problems, clusters), attempts.astype(np.float64)
        select, report = split_halves(problems, clusters)
        rest = (
            report if report.any() else select
        )  # of a single cluster nothing is reported, see recommendation_rows
        return cls(
            columns=[[place[path] for path in cell.checkpoints] for cell in cells],
            solved=solved,
            select=select,
            report=report,
            drawn=cluster_bootstrap(solved[rest], labels[rest], draws, seed),
        )

    def drawn_of(self, index: int) -> Floats:
        """(draws,) resampled accuracy of a cell."""
        return mean_over(self.drawn, self.columns[index])

    def chosen_on(self, index: int) -> float:
        """Accuracy of a cell on the half that selects."""
        return float(self.solved[self.select][:, self.columns[index]].mean())

    def best_seed(self, index: int) -> int:
        """Which of a cell's checkpoints is the best on the half that selects; of equals the first."""
        return int(self.solved[self.select][:, self.columns[index]].mean(axis=0).argmax())

    def reported(self, index: int, name: str, *, seeds: bool = False) -> dict[str, float | None]:
        by_seed = self.solved[self.report][:, self.columns[index]].mean(axis=0)
        low, high = percentile_interval(self.drawn_of(index))
        row: dict[str, float | None] = {
            name: float(by_seed.mean()),
            f"{name}_low": low,
            f"{name}_high": high,
        }
        if seeds:
            over = t_interval(by_seed) if len(by_seed) > 1 else (None, None)
            row |= {f"{name}_seed_low": over[0], f"{name}_seed_high": over[1]}
        return row


def _p_best(ood: _Rule, held: _Rule, settings: RecommendationSettings) -> Floats:
    """(cells,) the share of draws in which the rule of the recommendation takes each cell.

    A draw resamples clusters of ID and of OOD problems of the half that had no say in the choice, and decides anew:
    the best ID accuracy, the floor, who reaches it, and whose OOD accuracy is then the best. Equals share a draw; one
    in which nobody reaches the floor, or solves anything, counts for nobody. So the shares need not sum to 1, and of n
    equal cells the chosen one's is 1/n on average; drawn from all problems it would be three times that (of 12 cells).
    """
    accuracy, inside = (
        np.column_stack([rule.drawn_of(index) for index in range(len(rule.columns))]) for rule in (ood, held)
    )
    best_id = inside.max(axis=1, keepdims=True)
    floor = best_id - settings.id_margin if settings.id_floor is None else settings.id_floor
    reached = np.where(inside >= floor - _TIE, accuracy, 0.0)
    wins = (reached > 0) & (reached >= reached.max(axis=1, keepdims=True) - _TIE)
    shares: Floats = (wins / np.maximum(wins.sum(axis=1, keepdims=True), 1)).mean(axis=0)
    return shares
