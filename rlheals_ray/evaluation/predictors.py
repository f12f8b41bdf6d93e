"""Which quantity of a checkpoint goes with its accuracy: Spearman's ρ over all checkpoints of a study.

Correlation, not cause, and not independent samples: checkpoints of one trunk or branch follow one another,
so intervals resample whole trunks and branches. Many quantities are looked at on the same checkpoints; the
largest ρ is the largest of many.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from math import sqrt
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rlheals_ray.tables import SCHEMAS

Floats = npt.NDArray[np.float64]
Row = Mapping[str, Any]
Tables = Mapping[str, pa.Table]

FEWEST = 8
"""Below so many checkpoints ρ has no interval."""
FEWEST_CLUSTERS = 6
"""Nor below so many trunks and branches: a bootstrap over three clusters covers far less than it says."""
DRAWS = 4000
BASE = "base"


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
    for row in _rows(tables, "scores"):
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


def quantities(tables: Tables) -> dict[str, dict[str, float]]:
    """Quantity -> checkpoint -> value, for every quantity that some table holds.

    Names end in what they are measured from or on: `_from_base`, `_from_peak`, `_id`, `_ood`. From the
    weights: means over matrices at the middle k. The peak has no quantity measured from itself: it is 0 by
    construction there, where accuracy was chosen to be highest. What is measured from the base is 0 at the base.
    """
    found: dict[str, dict[str, float]] = {}
    for part in (_weights, _updates, _similarities, _shifts, _losses, _scores):
        for (quantity, checkpoint), value in part(tables).items():
            found.setdefault(quantity, {})[checkpoint] = value
    return found


Values = dict[tuple[str, str], float]
"""(quantity, checkpoint) -> value."""

WEIGHT_MEASURES: Mapping[str, Callable[[Row], float | None]] = {
    "angle": lambda row: _mean(row["angle_u_mean"], row["angle_v_mean"]),
    "angle_u": lambda row: row["angle_u_mean"],
    "angle_v": lambda row: row["angle_v_mean"],
    "chordal": lambda row: _mean(row["chordal_u"], row["chordal_v"]),
    "drift": lambda row: row["drift_mean"],
    "delta_norm": lambda row: row["delta_norm"],
}


def _weights(tables: Tables) -> Values:
    """Distances of weights from base and peak; `delta_norm` is ‖ΔW‖_F over all matrices together."""
    rows = [row for row in _rows(tables, "spectra") if row["a"] and row["b"]]
    middle = middle_k(rows)
    peaks = _peaks(rows)
    gathered: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        origin = "base" if row["a"] == BASE else "peak" if row["a"] in peaks else None
        if row["k"] != middle or origin is None:
            continue
        for name, measure in WEIGHT_MEASURES.items():
            if (value := measure(row)) is not None:
                gathered.setdefault((f"{name}_from_{origin}", row["b"]), []).append(value)
    found = {
        key: sqrt(sum(value**2 for value in values)) if key[0].startswith("delta_norm") else fmean(values)
        for key, values in gathered.items()
    }
    found |= {(quantity, BASE): 0.0 for quantity, _ in gathered if quantity.endswith("_from_base")}
    return found


def _peaks(rows: Iterable[Row]) -> set[str]:
    """Only the peak is ever compared with another checkpoint of its trunk."""
    return {row["a"] for row in rows if row["a"].startswith("sft/") and row["b"].startswith("sft/")}


def _updates(tables: Tables) -> Values:
    """RL's update beside SFT's, from the base or from the peak: of RL checkpoints alone."""
    rows = [row for row in _rows(tables, "updates") if row["a"] and row["c"]]
    middle = middle_k(rows)
    gathered: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["k"] != middle:
            continue
        origin = "base" if row["a"] == BASE else "peak"
        for name, value in (
            ("update_cosine", row["cosine"]),
            ("update_angle", _mean(row["angle_u_mean"], row["angle_v_mean"])),
        ):
            if value is not None:
                gathered.setdefault((f"{name}_from_{origin}", row["c"]), []).append(value)
    return {key: fmean(values) for key, values in gathered.items()}


def _similarities(tables: Tables) -> Values:
    """Hidden states against those of base and peak: means over layers."""
    gathered: dict[tuple[str, str], list[float]] = {}
    rows = [row for row in _rows(tables, "similarity") if row["a"] and row["b"] and row["rule"] is not None]
    peaks = _peaks(rows)
    for row in rows:
        origin = "base" if row["a"] == BASE else "peak" if row["a"] in peaks else None
        if origin is None:  # a branch's start beside its end
            continue
        for name in ("cka", "mmd2", "cosine"):
            if row[name] is not None:
                gathered.setdefault((f"{name}_from_{origin}_{row['rule']}", row["b"]), []).append(row[name])
    return {key: fmean(values) for key, values in gathered.items()}


def _shifts(tables: Tables) -> Values:
    """Output distributions: forward KL from the base, entropy and margin, on either rule's prompts."""
    return {
        (f"{name}_{row['rule']}", row["checkpoint"]): row[name]
        for row in _rows(tables, "shift")
        for name in ("forward_kl", "entropy", "margin")
        if row[name] is not None and row["checkpoint"] and row["rule"]
    }


def _losses(tables: Tables) -> Values:
    """Losses of SFT checkpoints alone."""
    places = {
        (row["recipe"], row["seed"], row["sft_step"]): row["checkpoint"]
        for row in _rows(tables, "scores")
        if row["stage"] == "sft"
    }
    return {
        (name, checkpoint): row[name]
        for row in _rows(tables, "sft")
        if (checkpoint := places.get((row["recipe"], row["seed"], row["step"])))
        for name in ("train_loss", "id_loss", "ood_loss")
        if row[name] is not None
    }


def _scores(tables: Tables) -> Values:
    """The plain predictors that every other must beat: the other rule's accuracy, and how long SFT ran."""
    found: Values = {}
    for row in _rows(tables, "scores"):
        if row["stage"] in ("base", "sft", "rl") and row["checkpoint"]:
            if row["acc_1"] is not None:
                found.setdefault((f"accuracy_{row['rule']}", row["checkpoint"]), row["acc_1"])
            found["sft_steps", row["checkpoint"]] = float(row["sft_step"] or 0)
    return found


def middle_k(rows: Iterable[Row]) -> int | None:
    """The middle of the k that were measured, of an even number the lower one; None where none was."""
    ks = sorted({row["k"] for row in rows if row["k"] is not None})
    return ks[(len(ks) - 1) // 2] if ks else None


def _rows(tables: Tables, name: str) -> list[dict[str, Any]]:
    """The table's rows with every column of its schema; those that it lacks are None."""
    table = tables.get(name)
    if table is None:
        return []
    blank = dict.fromkeys(SCHEMAS[name].names)
    wanted = [column for column in table.column_names if column in blank]
    return [{**blank, **row} for row in table.select(wanted).to_pylist()]


def _mean(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
