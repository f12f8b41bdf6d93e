"""Whether a loss tells where the OOD peak is, and what it costs to believe it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import pyarrow as pa

from rlheals_ray.report.loss_stops import LossStop, cost_words
from rlheals_ray.report.results import Peak
from rlheals_ray.report.words import Finding


def loss_findings(sft: pa.Table, peak: Peak | None, stops: Sequence[LossStop] = ()) -> list[Finding]:
    """A loss tells where the OOD peak is when its minimum lies on the peak's step or a neighbouring one."""
    found = []
    for column, name in (("id_loss", "ID loss"), ("ood_loss", "OOD loss")):
        by_step: dict[int, list[float]] = {}
        for row in sft.select(["step", column]).to_pylist():
            if row[column] is not None and row["step"] is not None:
                by_step.setdefault(row["step"], []).append(row[column])
        if len(by_step) < 2 or peak is None or peak.value == 0:
            continue
        mean = {step: fmean(values) for step, values in by_step.items()}
        steps = sorted(mean)
        lowest = min(steps, key=lambda step: mean[step])
        near = min(steps, key=lambda step: abs(step - peak.step))
        tells = abs(steps.index(lowest) - steps.index(near)) <= 1
        text = (
            f"The {name} {'does tell' if tells else 'does not tell'} where the OOD peak is: the loss is "
            f"lowest at step {lowest} ({mean[lowest]:.3g}), OOD accuracy is highest at step {peak.step} "
            f"(loss there {mean[near]:.3g})."
        )
        if stop := next((one for one in stops if one.column == column), None):
            text += f" {cost_words(stop)}."
        found.append(Finding(f"{column}_blind", text, not tells))
    return found
