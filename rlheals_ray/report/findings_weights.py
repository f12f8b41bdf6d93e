"""What spectra show: drift against rotation, rotation against noise, back to the peak, and RL's update beside SFT's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import degrees
from statistics import fmean

import pyarrow as pa

from rlheals_ray.evaluation.quantities import middle_k, past
from rlheals_ray.report.comparisons import Comparison, Comparisons
from rlheals_ray.report.results import Accuracies, Row, Tables, seed_interval
from rlheals_ray.report.weights import turns_to_peak
from rlheals_ray.report.words import Finding, interval, listed, number

UNCHANGED = 0.05
"""A change of angle within this share of the angle itself is called no change."""
BEYOND = 1.1
"""Angles beyond so many times those of noise are called systematic; below the inverse, less than noise."""


def weight_findings(tables: Tables, accuracies: Accuracies) -> list[Finding]:
    """Findings on spectra and updates; empty where neither was measured."""
    comparisons = Comparisons(tables["spectra"])
    return [
        *_drift(comparisons),
        *_noise(comparisons),
        *_random(tables["spectra"]),
        *_toward(tables["spectra"], accuracies),
        *_undoes(tables["updates"]),
    ]


def _trunk(members: Sequence[Comparison]) -> list[Comparison]:
    """Pairs of SFT checkpoints, the base left out."""
    return [
        one
        for one in members
        if all(one.places)
        and all(p.seed is not None and p.sft_step and not p.rl_step for p in one.places if p)
    ]


def _own(members: Sequence[Comparison]) -> list[Comparison]:
    """Branches from their own start to their end."""
    return [
        one
        for one in members
        if (a := one.places[0]) and (b := one.places[1]) and not a.rl_step < 0 and b.rl_step > a.rl_step == 0
        and a.seed is not None and a.sft_step == b.sft_step
    ]  # fmt: skip


def _drift(comparisons: Comparisons) -> list[Finding]:
    """Both in one unit: the relative change of S and the angle in radians (the relative turn of a unit
    vector). The claim needs an angle of twice the drift; an angle below the drift contradicts it. Pairs of
    SFT checkpoints speak, the base left out, where there are any; over all k."""
    measured = [one for one in comparisons.means() if one.measures["drift_mean"] is not None and one.angle()]
    trunk = _trunk(measured)
    chosen = trunk or measured
    if not chosen:
        return []
    drift, turned = fmean(one.measures["drift_mean"] or 0.0 for one in chosen), fmean(_angles(chosen))
    if turned >= 2 * drift:
        text, shown = "Weights rotate more than their singular values drift", True
    elif turned <= drift:
        text, shown = "Singular values drift at least as much as their vectors rotate", False
    else:
        text, shown = "Drift and rotation are of like size", None
    null = [value for one in chosen if (value := one.null()) is not None]
    chance = f" (random subspaces of the same sizes: {degrees(fmean(null)):.0f}°)" if null else ""
    drifts = _over_seeds(chosen, lambda one: 100 * (one.measures["drift_mean"] or 0.0), ".1f")
    angles = _over_seeds(chosen, lambda one: degrees(one.angle() or 0.0), ".1f")
    text += (
        f": {'between SFT checkpoints' if trunk else 'over all pairs'}, singular values change by "
        f"{100 * drift:.1f} %{drifts} on average, singular subspaces turn by {degrees(turned):.1f}°{angles} or "
        f"{turned:.3f} rad{chance}."
    )
    return [Finding("rotation", text, shown)]


def _noise(comparisons: Comparisons) -> list[Finding]:
    """The ratio of the mean angle to that of Gaussian noise of the same ‖ΔW‖, for each k; `BEYOND` decides at every k:
    a change may turn the few leading directions more than noise does, and the many less."""
    every = [one for one in comparisons.means() if one.angle() is not None and one.noise()]
    parts = {"between SFT checkpoints": _trunk(every), "in RL from its own start": _own(every)}
    if not any(parts.values()):
        parts = {"over all pairs": every}
    told, ratios = [], []
    for where, members in parts.items():
        by_k = []
        for k in sorted({one.k for one in members if one.k is not None}):
            mine = [one for one in members if one.k == k]
            ratio = fmean(_angles(mine)) / fmean(one.noise() or 0.0 for one in mine)
            over = _over_seeds(mine, lambda one: (one.angle() or 0.0) / (one.noise() or 1.0), ".1f")
            by_k.append(f"{ratio:.1f}{over} at k = {k}")
            ratios.append(ratio)
        if by_k:
            told.append(f"{where} {listed(by_k)}")
    if not ratios:
        return []
    what = f"in multiples of the angle that Gaussian noise of the same ‖ΔW‖ makes, {'; '.join(told)}"
    if min(ratios) >= BEYOND:
        return [Finding("beyond_noise", f"Rotation goes beyond noise at every k measured: {what}.", True)]
    if max(ratios) <= 1 / BEYOND:
        return [Finding("beyond_noise", f"Subspaces turn less than noise would turn them: {what}.", False)]
    return [Finding("beyond_noise", f"Rotation does not go beyond noise at every k: {what}.", None)]


def _angles(members: Iterable[Comparison]) -> list[float]:
    return [one.angle() or 0.0 for one in members]


def _over_seeds(members: Sequence[Comparison], value: Callable[[Comparison], float], digits: str) -> str:
    """` [1.8, 2.2]`: Student's 95 % interval of the seeds' own means; nothing for one seed."""
    seeds: dict[int | None, list[float]] = {}
    for one in members:
        seeds.setdefault(one.seed, []).append(value(one))
    low, high = seed_interval(fmean(values) for values in seeds.values())
    return "" if low is None or high is None else f" [{low:{digits}}, {high:{digits}}]"


def _random(spectra: pa.Table) -> list[Finding]:
    """How many distinct spectra (pairs and matrices) are flagged, with the power of the test that flags them."""
    seen: dict[tuple[object, ...], tuple[bool, float | None]] = {}
    columns = ["seed", "a", "b", "matrix", "looks_random", "random_power"]
    for row in spectra.select(columns).to_pylist():
        if row["looks_random"] is not None:
            key = (row["seed"], row["a"], row["b"], row["matrix"])
            seen[key] = (row["looks_random"], row["random_power"])
    flagged = sum(random for random, _ in seen.values())
    if not flagged:
        return []
    text = f"{flagged} of {len(seen)} compared matrices have a spectrum like a random one’s: their angles mean little."
    powers = [power for random, power in seen.values() if random and power is not None]
    if powers:
        text += (
            f" The test calls at least 99 % of Gaussian matrices random; one planted direction undoes that in "
            f"{100 * fmean(powers):.0f} % of cases (its power, mean over these sizes)."
        )
    return [Finding("looks_random", text, None)]


def _toward(spectra: pa.Table, accuracies: Accuracies) -> list[Finding]:
    """By the mean change of the angle to the OOD peak, against `UNCHANGED`."""
    turns = turns_to_peak(spectra, accuracies)
    if not turns:
        return []
    before, after = fmean(turn.before for turn in turns), fmean(turn.after for turn in turns)
    change = (after - before) / before if before else 0.0
    cases = "; ".join(f"SFT {t.sft_step}: {degrees(t.before):.1f}° → {degrees(t.after):.1f}°" for t in turns)
    angles = f"angle to the peak, before → after RL: {cases}"
    if change <= -UNCHANGED:
        text = f"RL rotates the weights back toward the OOD peak; {angles}."
        return [Finding("rotates_back", text, True)]
    how = "it turns them further away" if change >= UNCHANGED else "it leaves the angle to it unchanged"
    text = f"RL does not rotate the weights back to the OOD peak: {how}; {angles}."
    return [Finding("rotates_back", text, False)]


def _undoes(updates: pa.Table) -> list[Finding]:
    """By the cosine of RL's update with SFT's since the OOD peak, where RL started past it: below 0 in every seed
    and in its interval, and further below than the cosine with all of SFT since the base from the same starts.

    No control runs: more SFT, or any return toward a mean, may have the same sign.
    """
    rows = [r for r in updates.to_pylist() if r["cosine"] is not None and r["a"] and r["b"]]
    k = middle_k(rows)
    mine = [r for r in rows if r["k"] == k and r["a"] != "base" and past(r["a"], r["b"])]
    starts = {r["b"] for r in mine}
    peak = _means_by_seed(mine)
    base = _means_by_seed([r for r in rows if r["k"] == k and r["a"] == "base" and r["b"] in starts])
    if not peak:
        return []
    low, high = seed_interval(peak)
    over = "" if low is None or high is None else f"{interval(low, high)} over seeds"
    cosine = number(fmean(peak), signed=True)
    told = f"the cosine of the two updates, ΔW of SFT from the peak and ΔW of RL, is {cosine}{over}"
    if base:
        told += f"; with ΔW of SFT from the base it is {number(fmean(base), signed=True)}"
    if max(peak) >= 0 or (high is not None and high >= 0):
        return [Finding("undoes", f"RL does not undo what SFT did past the OOD peak: {told}.", False)]
    if base and fmean(base) <= fmean(peak):
        text = f"RL goes against SFT as a whole, no more against what SFT did past the OOD peak: {told}."
        return [Finding("undoes", text, None)]
    caution = "No control was run: more SFT from the same checkpoint might have the same sign."
    text = f"RL goes against part of what SFT did past the OOD peak: {told}. {caution}"
    return [Finding("undoes", text, True)]


def _means_by_seed(rows: Sequence[Row]) -> list[float]:
    seeds: dict[int | None, list[float]] = {}
    for row in rows:
        seeds.setdefault(row["seed"], []).append(row["cosine"])
    return [fmean(values) for values in seeds.values()]
