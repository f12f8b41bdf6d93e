"""Spectra arranged for reading: pairs by their places, and angles to the OOD peak before and after RL."""

from __future__ import annotations

from statistics import fmean
from typing import NamedTuple

import pyarrow as pa

from rlheals_ray.report.results import Accuracies, Place, Row, place_of


def angle(row: Row) -> float | None:
    """Mean principal angle of the U and V subspaces of one matrix, radians."""
    both = [row[side] for side in ("angle_u_mean", "angle_v_mean") if row[side] is not None]
    return fmean(both) if both else None


def pair_of(row: Row) -> tuple[Place, Place] | None:
    """The pair's two places, the earlier one first; None for checkpoints outside the study's grid."""
    a, b = place_of(row["a"]), place_of(row["b"])
    if a is None or b is None:
        return None
    return (a, b) if (a.rl_step, a.sft_step) <= (b.rl_step, b.sft_step) else (b, a)


class Turn(NamedTuple):
    """Angles to the peak (radians, mean over the same matrices) of an SFT step and of RL from it."""

    sft_step: int
    before: float
    after: float


def turns_to_peak(spectra: pa.Table, accuracies: Accuracies) -> list[Turn]:
    """Per SFT step, the angle to the seed's OOD peak before and after RL (largest budget), paired by
    seed, matrix and k. Needs the pairs (peak, SFT step) and (peak, RL from it); steps up to the peak,
    where nothing was lost yet, are left out."""
    angles: dict[tuple[Place, Place], dict[tuple[str, int], float]] = {}
    columns = ["seed", "a", "b", "matrix", "k", "angle_u_mean", "angle_v_mean"]
    for row in spectra.select(columns).to_pylist():
        pair, value = pair_of(row), angle(row)
        if pair and value is not None:
            seed = row["seed"] if row["seed"] is not None else pair[1].seed
            key = (pair[0]._replace(seed=seed), pair[1]._replace(seed=seed))
            angles.setdefault(key, {})[row["matrix"], row["k"]] = value
    largest: dict[tuple[Place, int | None, int], int] = {}
    for anchor, after in angles:
        if anchor.rl_step == 0 and after.rl_step > 0 and _is_peak(anchor, accuracies):
            start = (anchor, after.seed, after.sft_step)
            largest[start] = max(largest.get(start, 0), after.rl_step)
    paired: dict[int, list[tuple[float, float]]] = {}
    for (anchor, seed, step), rl_step in largest.items():
        parent = Place(seed, step, 0)
        before, later = angles.get((anchor, parent)), angles[anchor, Place(seed, step, rl_step)]
        if anchor.sft_step < step and before is not None:
            paired.setdefault(step, []).extend((before[m], later[m]) for m in before if m in later)
    return [
        Turn(step, fmean(before for before, _ in both), fmean(later for _, later in both))
        for step, both in sorted(paired.items())
        if both
    ]


def _is_peak(anchor: Place, accuracies: Accuracies) -> bool:
    """Whether the anchor is its seed's OOD peak: within the Wilson interval of the best trunk score.

    The pipeline chooses the peak on half of the problems, so it need not be the best of them all.
    """
    seed = anchor.seed if anchor.seed is not None else 0
    trunk = [row for step in accuracies.sft_steps("ood") if (row := accuracies.row("ood", seed, step))]
    if not trunk:
        return True
    best = max(trunk, key=lambda row: row["acc_1"])
    mine = accuracies.row("ood", seed, anchor.sft_step)
    lowest = best["acc_1"] if best["acc_1_low"] is None else best["acc_1_low"]
    return mine is not None and mine["acc_1"] >= lowest
