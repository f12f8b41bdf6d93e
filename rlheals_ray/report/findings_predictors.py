"""What goes with OOD accuracy over all checkpoints, in one sentence that does not crown a winner by chance."""

from __future__ import annotations

import pyarrow as pa

from rlheals_ray.report.figures_predictors import quantity_name
from rlheals_ray.report.results import Row
from rlheals_ray.report.words import Finding, interval, number

ASKED = ("angle_from_base", "angle_from_peak", "forward_kl_id", "forward_kl_ood")
"""Rotation against forward KL: the comparison that was asked for before any number was seen."""
REFERENCE = ("accuracy_id", "sft_steps")


def predictor_findings(predictors: pa.Table) -> list[Finding]:
    """The largest |ρ| with OOD accuracy, the plain references, and rotation beside forward KL; always a note."""
    rows = {r["quantity"]: r for r in predictors.to_pylist() if r["rule"] == "ood" and r["rho"] is not None}
    measured = [row for name, row in rows.items() if name not in REFERENCE]
    if not measured:
        return []
    best = max(measured, key=lambda row: abs(row["rho"]))
    references = [_told(rows[name]) for name in REFERENCE if name in rows]
    text = (
        f"Of {len(measured)} quantities, the largest rank correlation with OOD accuracy is that of {_told(best)} (the "
        "best of many on the same data, so flattered)"
    )
    text += f"; for reference, {'; '.join(references)}." if references else "."
    asked = [rows[name] for name in ASKED if name in rows]
    if len(asked) > 1:
        text += f" Rotation beside forward KL: {'; '.join(_told(row) for row in asked)}."
        if all(row["rho_low"] is not None for row in asked):
            text += " Their intervals overlap." if _overlap(asked) else " Not all of their intervals overlap."
    return [Finding("predictors", text, None)]


def _told(row: Row) -> str:
    bounds = interval(row["rho_low"], row["rho_high"])
    return (
        f"{quantity_name(row['quantity'])}, ρ = {number(row['rho'], signed=True)}{bounds} over {row['checkpoints']} "
        "checkpoints"
    )


def _overlap(rows: list[Row]) -> bool:
    """Whether all intervals of |ρ| share a point; one that spans 0 reaches down to it."""
    spans = []
    for row in rows:
        low, high = sorted((abs(row["rho_low"]), abs(row["rho_high"])))
        spans.append((0.0 if row["rho_low"] <= 0 <= row["rho_high"] else low, high))
    return max(low for low, _ in spans) <= min(high for _, high in spans)
