"""Where the recovery boundary lies: the edges of the SFT steps from which RL heals, and how sure they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.stats

from rlheals_ray.evaluation.boundary import cells_of
from rlheals_ray.evaluation.outcomes import first_attempts
from rlheals_ray.evaluation.paired import SIGNIFICANT
from rlheals_ray.evaluation.peak import cluster_labels
from rlheals_ray.evaluation.rules import OOD
from rlheals_ray.evaluation.statistics import Floats, benjamini_hochberg


@dataclass(frozen=True)
class BoundaryEdges:
    """The healing SFT steps at one RL budget, from pooled OOD verdicts.

    An edge is known only between two tested steps: `lower_edge` = (last tested step below, `lowest`),
    `upper_edge` = (`highest`, next tested step above); None in a pair means that no step was tested on
    that side, so the boundary may lie anywhere beyond. All four are None where nothing heals. `gaps`:
    tested steps between `lowest` and `highest` that do not heal; the window is one piece when empty.
    """

    tested: tuple[int, ...]
    heals: tuple[int, ...]
    gaps: tuple[int, ...]
    lowest: int | None
    highest: int | None
    lower_edge: tuple[int | None, int] | None
    upper_edge: tuple[int, int | None] | None
    by_seed: Mapping[int, tuple[int, int] | None]
    """Each seed's own (lowest, highest) healing step, None where none heals: the spread over seeds."""


def boundary_edges(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], dict[int, BoundaryEdges]]:
    """(recipe, algorithm) -> RL step -> edges, from rows of `tables.BOUNDARY`; rl_step 0 is left out."""
    verdicts: dict[tuple[str, str], dict[int, dict[int | None, dict[int, str]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))
    )
    for row in rows:
        if row["rule"] == "ood" and row["rl_step"]:
            seed = None if row["scope"] == "pooled" else row["seed"]
            verdicts[row["recipe"], row["algorithm"]][row["rl_step"]][seed][row["sft_step"]] = row["verdict"]
    return {
        key: {rl_step: _edges(scopes) for rl_step, scopes in sorted(budgets.items())}
        for key, budgets in sorted(verdicts.items())
    }


def _edges(scopes: Mapping[int | None, Mapping[int, str]]) -> BoundaryEdges:
    pooled = scopes.get(None, {})
    tested, heals = tuple(sorted(pooled)), _healing(pooled)
    by_seed: dict[int, tuple[int, int] | None] = {}
    for seed in sorted(seed for seed in scopes if seed is not None):
        own = _healing(scopes[seed])
        by_seed[seed] = (own[0], own[-1]) if own else None
    if not heals:
        return BoundaryEdges(tested, heals, (), None, None, None, None, by_seed)
    lowest, highest = heals[0], heals[-1]
    return BoundaryEdges(
        tested=tested,
        heals=heals,
        gaps=tuple(step for step in tested if lowest < step < highest and step not in heals),
        lowest=lowest,
        highest=highest,
        lower_edge=(max((step for step in tested if step < lowest), default=None), lowest),
        upper_edge=(highest, min((step for step in tested if step > highest), default=None)),
        by_seed=by_seed,
    )


def _healing(verdicts: Mapping[int, str]) -> tuple[int, ...]:
    return tuple(sorted(step for step, verdict in verdicts.items() if verdict == "heals"))


def edge_rows(
    boundary: Sequence[Mapping[str, Any]],
    episodes: pa.Table,
    scores: pa.Table,
    clusters: Mapping[str, str],
    recipe: str,
    algorithm: str,
    *,
    draws: int = 2000,
) -> list[dict[str, Any]]:
    """Rows of `tables.EDGES` of one recipe and RL algorithm: both edges at every budget, with 95 % over problems.

    boundary: the rows that `boundary_rows` made of the same arguments; they say where the edges are. The intervals come
    from drawing clusters of problems again and judging every draw as a whole (`healing_in_draws`). step_low, _high are
    percentiles of the edge over the draws in which something heals; absent is the share of the others. They answer what
    map another sample of problems from the same seeds would have shown, not what another seed would. seeds: the fewest
    of any cell at the budget.
    """
    own = [row for row in boundary if (row["recipe"], row["algorithm"]) == (recipe, algorithm)]
    budgets = boundary_edges(own).get((recipe, algorithm), {})
    cells, heals = healing_in_draws(episodes, scores, clusters, recipe, algorithm, draws=draws)
    rows: list[dict[str, Any]] = []
    for rl_step, edges in budgets.items():
        columns = [index for index, cell in enumerate(cells) if cell[1] == rl_step]
        steps = np.array([cells[index][0] for index in columns], dtype=np.float64)
        drawn = heals[:, columns]
        some = drawn.any(axis=1)
        outermost = {
            "lower": np.where(drawn, steps, np.inf)[some].min(axis=1),
            "upper": np.where(drawn, steps, -np.inf)[some].max(axis=1),
        }
        by_seed = [own for own in edges.by_seed.values() if own is not None]
        pooled = [
            row for row in own if (row["scope"], row["rule"], row["rl_step"]) == ("pooled", OOD, rl_step)
        ]
        for side, (name, step, beyond) in enumerate(
            (
                ("lower", edges.lowest, edges.lower_edge and edges.lower_edge[0]),
                ("upper", edges.highest, edges.upper_edge and edges.upper_edge[1]),
            )
        ):
            ends = [int(own[side]) for own in by_seed]
            low, high = _order_interval(outermost[name]) if some.any() else (None, None)
            rows.append(
                {
                    "rule": OOD,
                    "recipe": recipe,
                    "algorithm": algorithm,
                    "rl_step": rl_step,
                    "seeds": min(row["seeds"] for row in pooled),
                    "edge": name,
                    "step": step,
                    "next_step": beyond,
                    "step_low": low,
                    "step_high": high,
                    "absent": float(1 - some.mean()),
                    "seeds_low": min(ends, default=None),
                    "seeds_high": max(ends, default=None),
                }
            )
    return rows


def _order_interval(values: Floats, level: float = 0.95) -> tuple[int, int]:
    """Percentile interval of a statistic that takes the values of tested steps only."""
    quantiles = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(values, quantiles, method="inverted_cdf")
    return int(low), int(high)


def healing_in_draws(
    episodes: pa.Table,
    scores: pa.Table,
    clusters: Mapping[str, str],
    recipe: str,
    algorithm: str,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[list[tuple[int, int]], npt.NDArray[np.bool_]]:
    """Cells (SFT step, RL step) of the map above budget 0, and (draws, cells) whether each heals in each draw.

    A draw takes as many clusters as there are, with replacement. In it a cell heals as in the boundary: its mean change
    over seeds is significant at q < 0.05 (Benjamini-Hochberg over the map) and positive in every seed. The p of a draw
    is that of the cluster-robust z (ratio estimator, normal), as flipping signs within every draw would take minutes;
    tests/unit/test_simulation_edges.py compares the two rules.
    """
    trunks, branches = cells_of(scores, "ood", recipe, algorithm, "rl")
    cells = [cell for cell in sorted(branches) if cell[1]]
    if not cells:
        return [], np.zeros((draws, 0), dtype=np.bool_)
    pairs = [[(trunks[s][cell[0]], path) for s, path in sorted(branches[cell].items())] for cell in cells]
    paths = sorted({path for pair in pairs for both in pair for path in both})
    column = {path: index for index, path in enumerate(paths)}
    problems, attempts = first_attempts(episodes, "ood", paths)
    solved = attempts.astype(np.float64)
    names, place = np.unique(cluster_labels(problems, clusters), return_inverse=True)
    count = len(names)
    sizes = np.bincount(place, minlength=count).astype(np.float64)
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)
    total = weights @ sizes
    p = np.ones((draws, len(cells)))
    agree = np.ones((draws, len(cells)), dtype=np.bool_)
    for index, pair in enumerate(pairs):
        # (clusters, seeds): how much each cluster of problems changed in each seed.
        change = np.stack(
            [
                np.bincount(place, solved[:, column[after]] - solved[:, column[before]], minlength=count)
                for before, after in pair
            ],
            axis=1,
        )
        agree[:, index] = (weights @ change > 0).all(axis=1)
        p[:, index] = _cluster_robust_p(change.mean(axis=1), sizes, weights, total)
    q = np.stack([benjamini_hochberg(row) for row in p])
    return cells, (q < SIGNIFICANT) & agree


def _cluster_robust_p(sums: Floats, sizes: Floats, weights: Floats, total: Floats) -> Floats:
    """(draws,) two-sided p of a ratio estimator Σ sums / Σ sizes over drawn clusters being 0 (Cochran 1977, 6.3)."""
    mean = weights @ sums / total
    # Σ w (sums − mean · sizes)², expanded: no (draws, clusters) matrix of residuals.
    squares = weights @ sums**2 - 2 * mean * (weights @ (sums * sizes)) + mean**2 * (weights @ sizes**2)
    drawn = weights.sum(axis=1)
    variance = np.maximum(squares, 0) * drawn / np.maximum(drawn - 1, 1) / total**2
    z = np.divide(np.abs(mean), np.sqrt(variance), out=np.zeros_like(mean), where=variance > 0)
    sure = (variance == 0) & (mean != 0)
    p: Floats = np.where(sure, 0.0, 2 * scipy.stats.norm.sf(z))
    return p
