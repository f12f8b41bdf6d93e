"""Figure of output distributions along SFT and RL: forward KL from the base, entropy and margin, beside OOD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import pyarrow as pa

from rlheals_ray.report.comparisons import over_seeds
from rlheals_ray.report.figures import (
    RL_ORANGE,
    SFT_BLUE,
    BySeed,
    Figure,
    Key,
    accuracy_axis,
    axis,
    even_steps,
    panels,
    step_line,
    switched,
)
from rlheals_ray.report.results import Accuracies, Place, Row, place_of

MEASURES = {
    "forward_kl": ("forward KL from the base", "nats per response"),
    "forward_kl_token": ("forward KL per token", "nats per token"),
    "entropy": ("next-token entropy", "nats"),
    "margin": ("top-1 margin", "difference"),
}


def output_shift(shift: pa.Table, accuracies: Accuracies) -> Figure | None:
    """What a checkpoint's outputs are on ID and on OOD prompts, beside OOD accuracy; a view for each measure."""
    rows: list[tuple[Row, Place]] = [
        (row, place) for row in shift.to_pylist() if (place := place_of(row["checkpoint"])) is not None
    ]
    budget = max((place.rl_step for _, place in rows), default=0)
    steps = sorted({place.sft_step for _, place in rows})
    plots = {}
    for measure, (name, unit) in MEASURES.items():
        series = {
            (rule, rl): _series(rows, measure, rule, rl) for rule in ("id", "ood") for rl in (0, budget)
        }
        if any(len(points) > 1 for points in series.values()):
            plots[name] = _plot(steps, budget, unit, series, accuracies)
    if not plots:
        return None
    caption = (
        "<b>Look at</b> whether the left panels tell what the right one shows: where OOD accuracy falls along SFT "
        "(blue) and what RL (orange, largest budget, over the step that it started from) does to both. Forward KL, "
        "KL(base ‖ checkpoint), is summed along answers that the base wrote: 0 at the base by construction. Large "
        "marks: means over seeds, small marks: single seeds."
    )
    keys = [Key("SFT", SFT_BLUE), *([Key("after RL, largest budget", RL_ORANGE)] if budget else [])]
    return switched("shift", "How far the outputs move from the base", plots, caption, keys=keys)


def _series(rows: Sequence[tuple[Row, Place]], measure: str, rule: str, rl: int) -> dict[int, list[float]]:
    values = (
        (place.sft_step, row[measure]) for row, place in rows if row["rule"] == rule and place.rl_step == rl
    )
    return dict(sorted(over_seeds(values).items()))


def _plot(
    steps: Sequence[int],
    budget: int,
    unit: str,
    series: Mapping[tuple[str, int], BySeed],
    accuracies: Accuracies,
) -> go.Figure:
    figure = panels(
        ["on ID prompts", "on OOD prompts", "OOD accuracy"],
        x="",
        y=[unit, unit, "accuracy@1"],
        height=340,
        columns=3,
        narrowest=320,
    )
    at = {step: position for position, step in enumerate(steps)}
    for index in range(3):
        even_steps(figure, index, steps)
    for rl, name, colour, symbol in (
        (0, "SFT", SFT_BLUE, "circle"),
        (budget, "after RL", RL_ORANGE, "square"),
    ):
        if rl == 0 and name != "SFT":
            continue
        for index, rule in enumerate(("id", "ood")):
            step_line(figure, index, at, series[rule, rl], name, colour, symbol, "")
        means = {step: accuracies.mean("ood", step, rl) for step in steps}
        found = {step: [value for _, value in mean.seeds] for step, mean in means.items() if mean}
        step_line(figure, 2, at, found, name, colour, symbol, "")
    accuracy_axis(figure, 2)
    for index in (0, 1):
        figure.update_layout({f"yaxis{axis(index)}": {"rangemode": "tozero"}})
    return figure
