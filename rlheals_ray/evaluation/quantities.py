"""Quantities of checkpoints, from every table: what may go with accuracy (predictors.py)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from math import sqrt
from statistics import fmean
from typing import Any

import pyarrow as pa

from rlheals_ray.tables import SCHEMAS

Row = Mapping[str, Any]
Tables = Mapping[str, pa.Table]
BASE = "base"


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
    rows = [row for row in table_rows(tables, "spectra") if row["a"] and row["b"]]
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
    """RL's update beside SFT's, from the base or from the peak: of RL checkpoints alone.

    From the peak only where RL started past it: before, ΔW₁ would run against SFT's own time.
    """
    rows = [row for row in table_rows(tables, "updates") if row["a"] and row["c"]]
    middle = middle_k(rows)
    gathered: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["k"] != middle:
            continue
        origin = "base" if row["a"] == BASE else "peak"
        if origin == "peak" and not past(row["a"], row["b"]):
            continue
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
    rows = [
        row for row in table_rows(tables, "similarity") if row["a"] and row["b"] and row["rule"] is not None
    ]
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
        for row in table_rows(tables, "shift")
        for name in ("forward_kl", "entropy", "margin")
        if row[name] is not None and row["checkpoint"] and row["rule"]
    }


def _losses(tables: Tables) -> Values:
    """Losses of SFT checkpoints alone."""
    places = {
        (row["recipe"], row["seed"], row["sft_step"]): row["checkpoint"]
        for row in table_rows(tables, "scores")
        if row["stage"] == "sft"
    }
    return {
        (name, checkpoint): row[name]
        for row in table_rows(tables, "sft")
        if (checkpoint := places.get((row["recipe"], row["seed"], row["step"])))
        for name in ("train_loss", "id_loss", "ood_loss")
        if row[name] is not None
    }


def _scores(tables: Tables) -> Values:
    """The plain predictors that every other must beat: the other rule's accuracy, and how long SFT ran."""
    found: Values = {}
    for row in table_rows(tables, "scores"):
        if row["stage"] in ("base", "sft", "rl") and row["checkpoint"]:
            if row["acc_1"] is not None:
                found.setdefault((f"accuracy_{row['rule']}", row["checkpoint"]), row["acc_1"])
            found["sft_steps", row["checkpoint"]] = float(row["sft_step"] or 0)
    return found


def past(a: str, b: str) -> bool:
    """Whether b is a later checkpoint of the trunk than a, by their names."""
    steps = [re.search(r"/step=(\d+)$", name) for name in (a, b)]
    return all(steps) and int(steps[0][1]) < int(steps[1][1])  # type: ignore[index]


def middle_k(rows: Iterable[Row]) -> int | None:
    """The middle of the k that were measured, of an even number the lower one; None where none was."""
    ks = sorted({row["k"] for row in rows if row["k"] is not None})
    return ks[(len(ks) - 1) // 2] if ks else None


def table_rows(tables: Tables, name: str) -> list[dict[str, Any]]:
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
