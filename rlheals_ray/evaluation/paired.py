"""What a paired comparison of checkpoints says: a difference with both intervals and a p, and verdicts over a family.

Everything is paired on problems. Intervals over problems resample whole clusters; the pooled test flips their signs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rlheals_ray.evaluation.statistics import (
    Floats,
    benjamini_hochberg,
    cluster_sign_flip_p,
    mcnemar_exact,
    percentile_interval,
    t_interval,
)

SIGNIFICANT = 0.05


class Outcomes(NamedTuple):
    """First attempts of several checkpoints on the same problems, with their joint bootstrap over clusters."""

    solved: Floats
    """(problems, checkpoints), 0 or 1."""
    labels: npt.NDArray[np.str_]
    """(problems,) cluster labels."""
    drawn: Floats
    """(draws, checkpoints): accuracies on resampled problems."""


class Difference(NamedTuple):
    """after − before, the mean over seeds, with 95 % intervals and the sign of every seed."""

    value: float
    low: float
    high: float
    """Over problems."""
    seed_low: float | None
    seed_high: float | None
    """Over seeds (t); None where one seed is asked about, or there is only one."""
    p: float | None
    """Of one seed exact McNemar, pooled the clustered sign-flip test of the mean over seeds."""
    signs: Floats
    """(seeds,)."""


def difference(
    outcomes: Outcomes, before: Sequence[int], after: Sequence[int], *, pooled: bool, tested: bool = True
) -> Difference:
    """Compare columns `after` with columns `before`, one pair per seed. `tested` False: there is nothing to test."""
    change = outcomes.solved[:, list(after)] - outcomes.solved[:, list(before)]
    by_seed = change.mean(axis=0)
    low, high = percentile_interval(mean_over(outcomes.drawn, after) - mean_over(outcomes.drawn, before))
    seed_low, seed_high = t_interval(by_seed) if pooled else (math.nan, math.nan)
    p = None
    if tested:
        if pooled:
            p = cluster_sign_flip_p(change.mean(axis=1), outcomes.labels)
        else:
            p = mcnemar_exact(int((change > 0).sum()), int((change < 0).sum()))
    return Difference(
        float(by_seed.mean()),
        low,
        high,
        None if math.isnan(seed_low) else seed_low,
        None if math.isnan(seed_high) else seed_high,
        p,
        np.sign(by_seed),
    )


def mean_over(drawn: Floats, columns: Sequence[int]) -> Floats:
    """(draws,) mean over seeds of resampled accuracies."""
    means: Floats = drawn[:, list(columns)].mean(axis=1)
    return means


def judge(rows: Sequence[dict[str, Any]], names: Mapping[int, str]) -> None:
    """Add `q` and `verdict` in place, take off `signs`; the families are the pooled rows and each seed's rows.

    names: the verdict for a rise (1) and for a fall (−1); anything else is `unclear`. A verdict needs q < 0.05
    (Benjamini-Hochberg) and all seeds of the row agreeing in sign.
    """
    for seed in {row["seed"] for row in rows}:
        family = [row for row in rows if row["seed"] == seed]
        adjusted = benjamini_hochberg([math.nan if row["p"] is None else row["p"] for row in family])
        for row, q in zip(family, adjusted, strict=True):
            row["q"] = None if row["p"] is None else float(q)
            row["verdict"] = "unclear"
            signs = row.pop("signs")
            if row["q"] is not None and row["q"] < SIGNIFICANT:
                agreed = [sign for sign in names if (signs == sign).all()]
                row["verdict"] = names[agreed[0]] if agreed else "unclear"
