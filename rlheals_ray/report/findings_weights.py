"""What spectra and edits show: drift against rotation, rotation back to the peak, the swap control."""

from __future__ import annotations

from math import degrees
from statistics import fmean

import pyarrow as pa

from rlheals_ray.report.edits import Bar, EditGroup, edit_groups
from rlheals_ray.report.results import Accuracies, Tables
from rlheals_ray.report.weights import angle, pair_of, turns_to_peak
from rlheals_ray.report.words import Finding, listed, number

UNCHANGED = 0.05
"""A change of angle within this share of the angle itself is called no change."""

BESIDE = {
    "recipient": "recipient",
    "donor": "donor",
    "interpolation": "interpolation at equal norm",
    "random_angle": "random rotation of equal angle",
    "random_norm": "random rotation of equal norm",
}


def weight_findings(tables: Tables, accuracies: Accuracies) -> list[Finding]:
    """Findings on spectra and edits; empty where neither ran."""
    return [
        *_drift(tables["spectra"]),
        *_toward(tables["spectra"], accuracies),
        *(_edit(group) for group in edit_groups(tables, accuracies) if "edit" in group.bars["ood"]),
    ]


def _drift(spectra: pa.Table) -> list[Finding]:
    """Both in one unit: the relative change of S and the angle in radians (the relative turn of a unit
    vector). The claim needs an angle of twice the drift; an angle below the drift contradicts it. Pairs of
    SFT checkpoints speak, the base left out, where there are any."""
    measured = [r for r in spectra.to_pylist() if r["drift_mean"] is not None and angle(r) is not None]
    trunk = [r for r in measured if (pair := pair_of(r)) and pair[0].sft_step and not pair[1].rl_step]
    chosen = trunk or measured
    if not chosen:
        return []
    drift, turned = fmean(r["drift_mean"] for r in chosen), fmean(angle(r) or 0.0 for r in chosen)
    if turned >= 2 * drift:
        text, shown = "Weights rotate more than their singular values drift", True
    elif turned <= drift:
        text, shown = "Singular values drift at least as much as their vectors rotate", False
    else:
        text, shown = "Drift and rotation are of like size", None
    null = [r["null_angle"] for r in chosen if r["null_angle"] is not None]
    chance = f" (random subspaces of the same sizes: {degrees(fmean(null)):.0f}°)" if null else ""
    text += (
        f": {'between SFT checkpoints' if trunk else 'over all pairs'}, singular values change by "
        f"{100 * drift:.1f} % on average, singular subspaces turn by {degrees(turned):.1f}° or {turned:.3f} "
        f"rad{chance}."
    )
    found = [Finding("rotation", text, shown)]
    random = sum(bool(row["looks_random"]) for row in chosen)
    if random:
        text = f"{random} of {len(chosen)} spectra look like a random matrix's: their angles mean little."
        found.append(Finding("looks_random", text, None))
    return found


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


def _edit(group: EditGroup) -> Finding:
    """An edit restores when its interval stands above the recipient's; it shows more than a weight swap
    when its interval stands above the swap's. Only both together are evidence for directions as such."""
    bars = group.bars["ood"]
    edit, start, swap = bars["edit"], bars.get("recipient"), bars.get("weight_swap")
    verb = "gives OOD accuracy"
    if start is not None:
        verb = "raises OOD accuracy to" if _above(edit, start) else "does not raise OOD accuracy:"
    beside = listed(f"{words} {number(bars[name].value)}" for name, words in BESIDE.items() if name in bars)
    text = f"The edit ({group.label}) {verb} {number(edit.value)}; {beside}."
    if swap is None:
        text += " Its plain weight swap was not scored, so this is no evidence on directions."
        shown = None
    elif _above(edit, swap):
        text += f" It does more than the plain weight swap of the same matrices, {number(swap.value)}."
        shown = start is None or _above(edit, start)
    else:
        less = "less than" if _above(swap, edit) else "no more than"
        text += (
            f" It does {less} the plain weight swap of the same matrices, {number(swap.value)}, so it says "
            "nothing about directions that the swap does not."
        )
        shown = False
    if group.projection is not None:
        rest = "" if group.residual is None else f", residual {group.residual:.2f}"
        text += f" It goes {100 * group.projection:.0f} % of the way to the donor{rest}."
    return Finding("edit", text, shown)


def _above(a: Bar, b: Bar) -> bool:
    """Whether the interval of `a` stands wholly above that of `b`."""
    return (a.value if a.low is None else a.low) > (b.value if b.high is None else b.high)
