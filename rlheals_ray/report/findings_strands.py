"""What may be said of variants side by side: whether the boundary's edges and the SFT peaks differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlheals_ray.report.edges import between, largest, steps_interval
from rlheals_ray.report.results import Row, ood_peak
from rlheals_ray.report.strands import Strand
from rlheals_ray.report.words import Finding, number


def strand_findings(strands: Sequence[Strand], clusters: Mapping[str, str] | None = None) -> list[Finding]:
    """Each further strand beside the first: its edges, and where its OOD accuracy peaks."""
    found = []
    for other in strands[1:]:
        found += _edges(strands[0], other)
    if len(strands) > 1 and (text := _peaks(strands, clusters)):
        found.append(Finding("peaks_beside", text, None))
    return found


def _edges(one: Strand, other: Strand) -> list[Finding]:
    """An edge has moved when the intervals of its outermost healing step share no step: a cautious reading."""
    found = []
    mine, theirs = ({row["edge"]: row for row in largest(strand.edges)} for strand in (one, other))
    for edge in ("upper", "lower"):
        if edge not in mine or edge not in theirs:
            continue
        a, b = mine[edge], theirs[edge]
        told = f"{_told(one, a)}; {_told(other, b)}"
        if a["step"] is None or b["step"] is None:
            text = f"The {edge} edge cannot be compared: {told}."
            found.append(Finding(f"{edge}_edge", text, None))
            continue
        if any(row[end] is None for row in (a, b) for end in ("step_low", "step_high")):
            found.append(Finding(f"{edge}_edge", f"The {edge} edges, without intervals: {told}.", None))
            continue
        apart = a["step_high"] < b["step_low"] or b["step_high"] < a["step_low"]
        if apart:
            way = "later" if b["step_low"] > a["step_high"] else "earlier"
            moved = f"The {edge} edge of {other.name} lies {way} than that of {one.name}"
            found.append(Finding(f"{edge}_edge", f"{moved}: {told}. The intervals stand apart.", None))
        else:
            text = f"That the {edge} edge differs is not shown: {told}. The intervals overlap."
            found.append(Finding(f"{edge}_edge", text, None))
    return found


def _told(strand: Strand, row: Row) -> str:
    if row["step"] is None:
        return f"{strand.name}: nothing heals"
    over = steps_interval(row["step_low"], row["step_high"])
    after = f"after {row['rl_step']} RL updates"
    return f"{strand.name}, {between(row)} (outermost step that heals: {row['step']}{over}, {after})"


def _peaks(strands: Sequence[Strand], clusters: Mapping[str, str] | None) -> str:
    parts = []
    for one in strands:
        peak = ood_peak(one.accuracies, one.tables["episodes"], clusters)
        if peak is not None and peak.value > 0:
            parts.append(f"{one.name} at step {peak.step} with {number(peak.value)}")
    return f"Along SFT, OOD accuracy peaks for {'; '.join(parts)}." if len(parts) > 1 else ""
