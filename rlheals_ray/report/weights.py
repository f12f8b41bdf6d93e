"""Spectra and edits arranged for reading: pairs, angles to the peak, edits beside their controls."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import pyarrow as pa

from rlheals_ray.report.results import Accuracies, Place, Row, Tables, place_of


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
    for row in spectra.to_pylist():
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


class Bar(NamedTuple):
    """An accuracy@1, its interval and how many problems it rests on; means over seeds."""

    value: float
    low: float | None
    high: float | None
    n: int | None


class EditGroup(NamedTuple):
    """One edit over its seeds, with its controls: bars by rule, then by kind, recipient and donor among "
    "them."""

    label: str
    bars: dict[str, dict[str, Bar]]
    projection: float | None
    residual: float | None


def edit_groups(tables: Tables, accuracies: Accuracies) -> list[EditGroup]:
    """Edits grouped over seeds by what they put where. A control joins the edit that has the same seed,
    donor, recipient, k, layers, roles and, where it names any, factors."""
    every = [row for row in tables["edits"].to_pylist() if row["acc_1"] is not None]
    scores = {
        (row["checkpoint"], row["rule"]): row
        for row in tables["scores"].to_pylist()
        if row["acc_1"] is not None
    }
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in every:
        if row["kind"] == "edit":
            what = (row["factors"], row["mode"], _unseeded(row["recipient"]), *_where(row))
            groups.setdefault(what, []).append(row)
    found = []
    for edits in groups.values():
        ends = {_ends(row) for row in edits}
        controls = [
            row
            for row in every
            if row["kind"] not in (None, "edit")
            and _ends(row) in ends
            and row["factors"] in (None, edits[0]["factors"])
        ]
        bars: dict[str, dict[str, Bar]] = {}
        for rule in ("ood", "id"):
            here = [row for row in edits if row["rule"] == rule]
            members: dict[str, list[Row]] = {
                end: [score for row in here if (score := _score_of(row, end, scores, accuracies))]
                for end in ("recipient", "donor")
            }
            members["edit"] = here
            for row in controls:
                if row["rule"] == rule:
                    members.setdefault(row["kind"], []).append(row)
            bars[rule] = {name: _bar(mine) for name, mine in members.items() if mine}
        found.append(EditGroup(_label(edits[0]), bars, _mean(edits, "projection"), _mean(edits, "residual")))
    return found


def _where(row: Row) -> tuple[object, ...]:
    return (row["k"], tuple(row["layers"] or ()), tuple(row["roles"] or ()))


def _ends(row: Row) -> tuple[object, ...]:
    return (row["seed"], row["donor"], row["recipient"], *_where(row))


def _unseeded(checkpoint: str | None) -> tuple[object, ...]:
    """What a checkpoint is apart from its seed, so that the seeds of one edit meet."""
    place = place_of(checkpoint)
    return (checkpoint,) if place is None else (place.sft_step, place.rl_step)


def _label(row: Row) -> str:
    size = "all directions" if row["k"] is None else f"top {row['k']} directions"
    layers, roles = row["layers"] or (), row["roles"] or ()
    which = f"layers {min(layers)} to {max(layers)}" if layers else "all layers"
    named = f", {' '.join(roles)}" if roles else ""
    return f"{row['factors'] or 'factors'} of the donor in the recipient, {size}, {which}{named}"


def _mean(group: Sequence[Row], column: str) -> float | None:
    values = [row[column] for row in group if row[column] is not None]
    return fmean(values) if values else None


def _bar(group: Sequence[Row]) -> Bar:
    low, high = _mean(group, "acc_1_low"), _mean(group, "acc_1_high")
    return Bar(fmean(row["acc_1"] for row in group), low, high, group[0]["n"])


def _score_of(row: Row, end: str, scores: dict[tuple[str, str], Row], accuracies: Accuracies) -> Row | None:
    """Score of an edit's donor or recipient: by its checkpoint's name, else by the place that it names."""
    exact = scores.get((row[end], row["rule"]))
    place = place_of(row[end])
    if exact is not None or place is None:
        return exact
    seed = place.seed if place.seed is not None else row["seed"]
    return accuracies.row(row["rule"], seed or 0, place.sft_step, place.rl_step)
