"""What a study's tables show, in sentences, and as plainly what they do not show.

Pure: tables in, findings out. The thresholds behind each sentence stand in its function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rlheals_ray.report.findings_controls import control_findings
from rlheals_ray.report.findings_edits import edit_findings
from rlheals_ray.report.findings_losses import loss_findings
from rlheals_ray.report.findings_predictors import predictor_findings
from rlheals_ray.report.findings_recovery import healing_cells, recovery_findings
from rlheals_ray.report.findings_strands import strand_findings
from rlheals_ray.report.findings_weights import weight_findings
from rlheals_ray.report.loss_stops import loss_stops
from rlheals_ray.report.recommendation import recommendation_findings
from rlheals_ray.report.results import (
    Accuracies,
    Halves,
    Peak,
    Row,
    Tables,
    conform,
    held_out_mean,
    ood_peak,
    split_curves,
)
from rlheals_ray.report.strands import of_edges, strands
from rlheals_ray.report.unfinished import unfinished_findings
from rlheals_ray.report.variants import of_variant, variants
from rlheals_ray.report.words import Finding, interval, listed, number
from rlheals_ray.tables import SCHEMAS


def findings_of(tables: Tables, clusters: Mapping[str, str] | None = None) -> list[Finding]:
    """Every finding of a study, for its main recipe and algorithm, in the order a reader asks.

    `tables` maps table names to tables; missing tables and columns count as empty. `clusters` maps problem
    id to the cluster it is resampled with; see `ood_peak`.
    """
    every = {name: conform(name, tables.get(name)) for name in SCHEMAS}
    variant = variants(every)[0]
    main = of_variant(every, variant)
    accuracies = Accuracies(main["scores"])
    cells = healing_cells(main["boundary"])
    peak = ood_peak(accuracies, main["episodes"], clusters)
    found = [
        *_forgetting(accuracies, peak, split_curves(main["episodes"], clusters)),
        *recovery_findings(cells, accuracies, of_edges(every["edges"], variant)),
        *control_findings(
            main["controls"], cells, bool(accuracies.starts("ood")), main["branches"].to_pylist()
        ),
        *recommendation_findings(every["recommendation"].to_pylist()),
        *strand_findings(strands(every), clusters),
        *loss_findings(main["sft"], peak, loss_stops(main["sft"], accuracies, main["episodes"], clusters)),
        *weight_findings(main, accuracies),
        *edit_findings(main, accuracies, clusters),
        *predictor_findings(main["predictors"]),
        *unfinished_findings(every["branches"].to_pylist()),
        *_seeds(accuracies),
    ]
    return _open_where_nothing_was_learnt(found, main["scores"].to_pylist())


def _open_where_nothing_was_learnt(found: list[Finding], scores: Sequence[Row]) -> list[Finding]:
    """Where no checkpoint solves anything, nothing speaks for or against any claim."""
    if not scores or any(row["acc_1"] for row in scores):
        return found
    text = (
        "Nothing was learnt: no checkpoint solves a single probe problem at the first attempt, under the trained rule "
        "or another. What follows speaks for nothing and against nothing; train longer, or begin with a base that "
        "solves some."
    )
    return [Finding("nothing_learnt", text, None), *(replace(each, supported=None) for each in found)]


def _forgetting(
    accuracies: Accuracies, peak: Peak | None, curves: Mapping[tuple[int | None, int], Halves]
) -> list[Finding]:
    """Shown when the Wilson intervals at the peak and at the end stand apart and every seed fell.

    All of it on the half of the problems that did not choose the peak, where there is one.
    """
    steps = accuracies.sft_steps("ood")
    if peak is None or len(steps) < 2:
        text = "OOD accuracy along SFT is not there yet, so forgetting is open."
        return [Finding("forgetting", text, None)]
    top, end = (
        held_out_mean(curves, accuracies.seeds, step) if peak.split else accuracies.mean("ood", step)
        for step in (peak.step, steps[-1])
    )
    assert end is not None and top is not None
    own = ""
    if len(peak.by_seed) > 1:
        own = f" The seeds' own peaks are at steps {listed(step for _, step in peak.by_seed)}."
    last = f"{number(end.value)}{interval(end.low, end.high)} at step {steps[-1]}, the last one probed"
    if top.value == end.value == 0:
        text = f"OOD accuracy is 0 at its peak and {last}: there was nothing to forget."
        return [Finding("forgetting", text, None), *_id_trend(accuracies, peak)]
    if peak.step == steps[-1] or end.value >= top.value:
        text = f"SFT did not forget here: OOD accuracy does not fall after its peak; it is {last}.{own}"
        return [Finding("forgetting", text, False), *_id_trend(accuracies, peak)]
    how = "step and value from the same problems, which flatters the value"
    if peak.split:
        how = "step chosen on one half of the probe problems, both values from the other half"
    text = f"OOD accuracy peaks at SFT step {peak.step} with {number(peak.value)} ({how}) and is {last}"
    later = dict(end.seeds)
    fell = all(later[seed] < first for seed, first in top.seeds if seed in later)
    apart = top.low is not None and end.high is not None and end.high < top.low
    if apart and fell:
        return [Finding("forgetting", f"SFT forgets: {text}.{own}", True), *_id_trend(accuracies, peak)]
    why = "not every seed fell" if apart else "the intervals overlap"
    text = f"Forgetting is not shown: {text}; {why}.{own}"
    return [Finding("forgetting", text, None), *_id_trend(accuracies, peak)]


def _id_trend(accuracies: Accuracies, peak: Peak) -> list[Finding]:
    """ID accuracy from the OOD peak to the end, by the sign of its change."""
    means = {
        s: mean for s in accuracies.sft_steps("id") if s >= peak.step and (mean := accuracies.mean("id", s))
    }
    if len(means) < 2 or peak.step not in means:
        return []
    first, last, end = means[peak.step], means[max(means)], max(means)
    lowest = min(means, key=lambda step: means[step].value)
    path = (
        f"from {number(first.value)} at the OOD peak (step {peak.step}) to {number(last.value)} at step {end}"
    )
    if lowest not in (peak.step, end):
        path += f", by way of {number(means[lowest].value)} at step {lowest}"
    if last.value > first.value:
        return [Finding("id_rising", f"ID accuracy rises over the same steps, {path}.", True)]
    word = "falls" if last.value < first.value else "stays level"
    return [Finding("id_rising", f"ID accuracy does not rise over the same steps: it {word}, {path}.", False)]


def _seeds(accuracies: Accuracies) -> list[Finding]:
    """What the intervals cover, given how many seeds there are."""
    count = len(accuracies.seeds)
    if not count:
        return []
    if count == 1:
        text = "One seed: no interval over seeds. Every interval here is over problems, for this seed alone."
        return [Finding("seeds", text, None)]
    few = {2: "Two", 3: "Three", 4: "Four"}.get(count, str(count))
    freedom = f"{count - 1} degree{'s' if count > 2 else ''} of freedom"
    text = (
        f"{few} seeds{' are few' if count < 5 else ''}: intervals over problems hold for these seeds only; "
        f"those over seeds are Student's t with {freedom}. All seeds share one base model."
    )
    return [Finding("seeds", text, None)]
