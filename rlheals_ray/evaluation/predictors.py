"""Which quantity of a checkpoint goes with its accuracy: Spearman's ρ over all checkpoints of a study.

Correlation, not cause, and not independent samples: checkpoints of one trunk or branch follow one another,
so intervals resample whole trunks and branches. Many quantities are looked at on the same checkpoints; the
largest ρ is the largest of many.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rlheals_ray.evaluation.quantities import BASE, Row, Tables, quantities, table_rows

Floats = npt.NDArray[np.float64]

FEWEST = 8
"""Below so many checkpoints ρ has no interval."""
FEWEST_CLUSTERS = 6
"""Nor below so many trunks and branches: a bootstrap over three clusters covers far less than it says."""
DRAWS = 4000


class Scored(NamedTuple):
    """A checkpoint with its accuracy@1 by rule and the cluster that it is resampled with."""

    checkpoint: str
    cluster: tuple[int | None, str]
    accuracy: Mapping[str, float]
    problems: Mapping[str, int]


def predictor_rows(tables: Tables, draws: int = DRAWS, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the table `predictors`: each quantity against accuracy@1 of each rule, largest |ρ| first.

    A quantity counts where at least three checkpoints have it. ρ is null where either side is constant; its
    95 % interval is the percentile interval of a bootstrap over clusters (a trunk, or a branch with all its
    budgets, of one seed; the base alone), null below `FEWEST` checkpoints or `FEWEST_CLUSTERS`. `n`:
    problems behind an accuracy. Missing tables and columns count as empty.
    """
    every = scored_checkpoints(tables)
    found = []
    for quantity, values in quantities(tables).items():
        for rule in ("ood", "id"):
            if quantity == f"accuracy_{rule}":
                continue
            mine = [one for one in every if one.checkpoint in values and rule in one.accuracy]
            if len(mine) < 3:
                continue
            x = np.array([values[one.checkpoint] for one in mine])
            y = np.array([one.accuracy[rule] for one in mine])
            low, high = rho_interval(x, y, [one.cluster for one in mine], draws, seed)
            found.append(
                {
                    "quantity": quantity,
                    "rule": rule,
                    "n": max(one.problems[rule] for one in mine),
                    "checkpoints": len(mine),
                    "rho": _known(spearman(x, y, np.ones((1, len(mine))))[0]),
                    "rho_low": low,
                    "rho_high": high,
                }
            )
    return sorted(found, key=lambda row: (row["rule"] != "ood", -abs(row["rho"] or 0.0), row["quantity"]))


def spearman(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Spearman's ρ of each resample, (draws,): `weights` (draws, n) says how often each of n points is taken.

    Mid-ranks within the resample itself, ties as in scipy.stats.spearmanr; nan where a side is constant.
    """
    ranks = [weights @ _not_above(values).T for values in (x, y)]
    total = weights.sum(axis=1, keepdims=True)
    a, b = (rank - (weights * rank).sum(axis=1, keepdims=True) / total for rank in ranks)
    covariance = (weights * a * b).sum(axis=1)
    scale = np.sqrt((weights * a**2).sum(axis=1) * (weights * b**2).sum(axis=1))
    # Ranks are multiples of a half: a scale below that is rounding of a constant.
    rho: Floats = np.divide(covariance, scale, out=np.full(len(weights), np.nan), where=scale > 1e-6)
    return rho


def _not_above(values: Floats) -> Floats:
    """(n, n): 1 where value j lies below value i, a half where they tie; its products with counts are mid-ranks."""
    return (values[None, :] < values[:, None]) + 0.5 * (values[None, :] == values[:, None])


def rho_interval(
    x: Floats, y: Floats, clusters: Iterable[object], draws: int = DRAWS, seed: int = 0
) -> tuple[float | None, float | None]:
    """95 % percentile interval of Spearman's ρ, whole clusters resampled; (None, None) for too few points.

    Deterministic in `seed`. Draws in which a side is constant have no ρ and are left out; where they are
    half of all or more, there is no interval.
    """
    labels = [repr(cluster) for cluster in clusters]
    names, index = np.unique(labels, return_inverse=True)
    if len(labels) < FEWEST or len(names) < FEWEST_CLUSTERS:
        return None, None
    generator = np.random.default_rng(seed)
    taken = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    rhos = spearman(x, y, taken[:, index].astype(np.float64))
    rhos = rhos[~np.isnan(rhos)]
    if len(rhos) <= draws / 2:
        return None, None
    low, high = np.quantile(rhos, [0.025, 0.975])
    return float(low), float(high)


def scored_checkpoints(tables: Tables) -> list[Scored]:
    """Base, SFT and RL checkpoints with an accuracy@1. A trunk's step 0 is the base and counts once with it."""
    rows: dict[str, dict[str, Row]] = {}
    for row in table_rows(tables, "scores"):
        if row["stage"] in ("base", "sft", "rl") and row["acc_1"] is not None and row["checkpoint"]:
            rows.setdefault(row["checkpoint"], {}).setdefault(row["rule"], row)
    found = []
    for checkpoint, by_rule in rows.items():
        one = next(iter(by_rule.values()))
        if BASE in rows and one["stage"] == "sft" and one["sft_step"] == 0:
            continue
        branch = re.fullmatch(r"(rl/.*sft_step=\d+)/rl_step=\d+", checkpoint)
        line = BASE if one["stage"] == "base" else branch[1] if branch else "trunk"
        recipe = "" if one["recipe"] is None or one["stage"] == "base" else one["recipe"]
        found.append(
            Scored(
                checkpoint,
                (one["seed"], f"{recipe} {line}"),
                {rule: row["acc_1"] for rule, row in by_rule.items()},
                {rule: row["n"] or 0 for rule, row in by_rule.items()},
            )
        )
    return found


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
