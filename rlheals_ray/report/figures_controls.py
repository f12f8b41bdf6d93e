"""The figure of the controls of healing: accuracy before, after RL and after as much SFT, and the differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import pyarrow as pa

from rlheals_ray.lineage import CONTROLS
from rlheals_ray.report.figures import (
    GREEN,
    PURPLE,
    RL_ORANGE,
    SFT_BLUE,
    Figure,
    Key,
    Marks,
    accuracy_axis,
    axis,
    difference_axis,
    even_steps,
    interval_marks,
    panels,
    side_by_side,
    switched,
    zero_line,
)
from rlheals_ray.report.findings_controls import NAMES, at_largest, control_cells
from rlheals_ray.report.results import Accuracies, Mean, Row
from rlheals_ray.report.words import interval, number

STYLE = {
    "before": ("before (SFT)", SFT_BLUE, "circle"),
    "rl": ("after RL", RL_ORANGE, "square"),
    "continued_sft": (NAMES["continued_sft"], GREEN, "triangle-up"),
    "rejection_sft": (NAMES["rejection_sft"], PURPLE, "diamond"),
}
VIEWS = {"ood": "OOD rule (never trained on)", "id": "ID rule (trained on)"}


def controls_figure(controls: pa.Table, scores: pa.Table, accuracies: Accuracies) -> Figure | None:
    """Both rules as views; None where no control was compared."""
    plots = {
        name: _plot(rule, rows, scores, accuracies)
        for rule, name in VIEWS.items()
        if (rows := at_largest(control_cells(controls, rule)))
    }
    if not plots:
        return None
    shown = [name for name in CONTROLS if name in set(controls["control"].to_pylist())]
    keys = [Key(*_key(name)) for name in ("before", "rl", *shown)]
    several = len(accuracies.seeds) > 1
    marks = "Large marks: means over seeds; small marks: single seeds. " if several else ""
    caption = (
        "<b>Look at</b> the orange squares against the triangles and diamonds of the same SFT step (left): the "
        "controls had the compute of the RL branch, so what stands above them only RL did. Right: RL minus each "
        "control on the same problems, with 95 % intervals over problems; filled where it has a verdict, hollow "
        f"where it is unclear. {marks}Left bars: 95 % Wilson intervals. At the largest budget."
    )
    return switched("controls", "RL against as much SFT", plots, caption, keys=keys)


def _key(name: str) -> tuple[str, str, str, str]:
    label, colour, symbol = STYLE[name]
    return label, colour, "none", symbol


def control_accuracies(scores: pa.Table, control: str) -> Accuracies:
    """Accuracies whose places above RL step 0 are those of one control; its rl_step is the budget it equals."""
    rows = [
        {**row, "stage": "rl"}
        for row in scores.to_pylist()
        if row["stage"] == "control" and control in (row["checkpoint"] or "")
    ]
    return Accuracies(pa.Table.from_pylist(rows, schema=scores.schema))


def _plot(rule: str, rows: Sequence[Row], scores: pa.Table, accuracies: Accuracies) -> go.Figure:
    budget = {row["sft_step"]: row["rl_step"] for row in rows}
    steps = sorted(budget)
    at = {step: position for position, step in enumerate(steps)}
    names = [name for name in CONTROLS if any(row["control"] == name for row in rows)]
    means: dict[str, dict[int, Mean]] = {"before": {}, "rl": {}}
    for step in steps:
        for name, rl_step in (("before", 0), ("rl", budget[step])):
            if mean := accuracies.mean(rule, step, rl_step):
                means[name][step] = mean
    for name in names:
        own = control_accuracies(scores, name)
        means[name] = {s: mean for s in steps if (mean := own.mean(rule, s, budget[s]))}
    which = "OOD" if rule == "ood" else "ID"
    figure = panels(
        [f"{which} accuracy by SFT step", "RL − control, paired"],
        x="",
        y=["accuracy at the first attempt", "difference of accuracy"],
        height=400,
    )
    for index in (0, 1):
        even_steps(figure, index, steps)
        figure.update_layout({f"xaxis{axis(index)}": {"title": {"text": "SFT steps before (evenly spaced)"}}})
    accuracy_axis(figure, 0)
    offsets = dict(zip(means, side_by_side(len(means)), strict=True))
    for name, series in means.items():
        _accuracy(figure, name, series, {step: at[step] + offsets[name] for step in steps})
    zero_line(figure, 1)
    drawn = []
    for name, offset in zip(names, side_by_side(len(names)), strict=True):
        mine = [row for row in rows if row["control"] == name]
        marks = Marks(
            [at[row["sft_step"]] + offset for row in mine],
            [row["difference"] for row in mine],
            [row["difference_low"] for row in mine],
            [row["difference_high"] for row in mine],
            [_hover(name, row) for row in mine],
        )
        unclear = [row["verdict"] not in ("better", "worse") for row in mine]
        interval_marks(figure, 1, marks, STYLE[name][1], STYLE[name][2], unclear)
        drawn.append(marks)
    difference_axis(figure, 1, drawn)
    return figure


def _accuracy(figure: go.Figure, name: str, means: Mapping[int, Mean], x: Mapping[int, float]) -> None:
    label, colour, symbol = STYLE[name]
    if any(len(mean.seeds) > 1 for mean in means.values()):
        figure.add_trace(
            go.Scatter(
                x=[x[step] for step, mean in means.items() for _ in mean.seeds],
                y=[value for mean in means.values() for _, value in mean.seeds],
                text=[f"seed {seed}, {label}" for mean in means.values() for seed, _ in mean.seeds],
                mode="markers",
                marker={"size": 4, "color": colour, "opacity": 0.6, "symbol": symbol},
                hovertemplate="%{text}: %{y:.2f}<extra></extra>",
            )
        )
    marks = Marks(
        [x[step] for step in means],
        [mean.value for mean in means.values()],
        [mean.low for mean in means.values()],
        [mean.high for mean in means.values()],
        [
            f"{label}, SFT {step}: {number(mean.value)}{interval(mean.low, mean.high)}"
            for step, mean in means.items()
        ],
    )
    interval_marks(figure, 0, marks, colour, symbol)


def _hover(name: str, row: Row) -> str:
    bounds = interval(row["difference_low"], row["difference_high"])
    return (
        f"SFT {row['sft_step']}: RL {number(row['acc_rl'])}, {NAMES[name]} {number(row['acc_control'])}<br>"
        f"difference {number(row['difference'], signed=True)}{bounds}, {row['verdict'] or 'no verdict'}"
    )
