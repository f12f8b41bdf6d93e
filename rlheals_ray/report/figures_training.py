"""The figure of SFT: losses against the OOD peak."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from statistics import fmean

import plotly.graph_objects as go
import pyarrow as pa

from rlheals_ray.report.figures import (
    ACCURACY_TICKS,
    GREEN,
    GREY,
    RL_ORANGE,
    SFT_BLUE,
    Figure,
    Key,
    panels,
)
from rlheals_ray.report.results import Accuracies

LOSS_TICKS = [digit * 10.0**power for power in range(-5, 3) for digit in (1, 2, 5)]


def losses(sft: pa.Table, accuracies: Accuracies) -> Figure | None:
    """Train, ID and OOD loss along SFT with OOD accuracy overlaid; None without any loss."""
    kinds = (
        ("train_loss", "training loss", GREY, "solid"),
        ("id_loss", "ID loss", SFT_BLUE, "solid"),
        ("ood_loss", "OOD loss", RL_ORANGE, "dash"),
    )
    series = {column: _by_step(sft, column) for column, *_ in kinds}
    if not any(series.values()):
        return None
    figure = panels(
        [""], x="SFT steps (log scale of 1 + step)", y="loss, nats per token", columns=1, height=420
    )
    for column, name, colour, dash in kinds:
        points = series[column]
        few = len(points) <= 40
        figure.add_trace(
            go.Scatter(
                x=[log10(1 + step) for step in points],
                y=list(points.values()),
                customdata=list(points),
                mode="lines+markers" if few else "lines",
                line={"color": colour, "width": 2.5 if few else 1.5, "dash": dash if few else "solid"},
                marker={"size": 7, "color": colour},
                hovertemplate=f"{name} at step %{{customdata}}: %{{y:.3g}}<extra></extra>",
            )
        )
        if column != "train_loss" and len(points) > 1:
            low = min(points, key=lambda step: points[step])
            figure.add_trace(
                go.Scatter(
                    x=[log10(1 + low)],
                    y=[points[low]],
                    mode="markers",
                    marker={"size": 16, "symbol": "circle-open", "color": colour, "line": {"width": 2.5}},
                    hovertemplate=f"{name} is lowest at step {low}<extra></extra>",
                )
            )
    means = {
        step: mean.value for step in accuracies.sft_steps("ood") if (mean := accuracies.mean("ood", step))
    }
    if means:
        figure.add_trace(
            go.Scatter(
                x=[log10(1 + step) for step in means],
                y=list(means.values()),
                customdata=list(means),
                mode="lines+markers",
                line={"color": GREEN, "width": 3, "dash": "dashdot"},
                marker={"size": 8, "symbol": "square", "color": GREEN},
                hovertemplate="OOD accuracy at step %{customdata}: %{y:.2f}<extra></extra>",
                yaxis="y2",
            )
        )
        top = max(means, key=lambda step: means[step])
        figure.add_vline(x=log10(1 + top), line={"color": GREEN, "width": 1.5, "dash": "dot"})
        figure.update_layout(
            yaxis2={
                "overlaying": "y",
                "side": "right",
                "range": [-0.04, 1.08],
                "tickmode": "array",
                **ACCURACY_TICKS,
                "showgrid": False,
                "zeroline": False,
                "title": {"text": "OOD accuracy@1", "font": {"color": GREEN}},
                "tickfont": {"color": GREEN},
            }
        )
    shown = _spread(sorted({*means, *series["id_loss"]} or {*series["train_loss"]}))
    figure.update_layout(
        xaxis={
            "tickvals": [log10(1 + s) for s in shown],
            "ticktext": [str(s) for s in shown],
            "tickangle": 0,
        },
        yaxis={"type": "log", "tickvals": LOSS_TICKS, "ticktext": [f"{tick:g}" for tick in LOSS_TICKS]},
    )
    caption = (
        "<b>Look at</b> the rings, where each loss is lowest, and the dotted line, where OOD accuracy is "
        "highest. Losses on the left axis (log scale; ID and OOD loss scored from the saved checkpoints), "
        "OOD accuracy on the right. Means over seeds."
    )
    keys = [Key(name, colour, dash) for column, name, colour, dash in kinds if series[column]]
    keys += [Key("OOD accuracy@1 (right axis)", GREEN, "dashdot")] if means else []
    return Figure("losses", "Do the losses tell where the OOD peak is?", figure, caption, keys)


def _by_step(table: pa.Table, column: str) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for row in table.select(["step", column]).to_pylist():
        if row["step"] is not None and row[column] is not None:
            found.setdefault(row["step"], []).append(row[column])
    return {step: fmean(values) for step, values in sorted(found.items())}


def _spread(steps: Sequence[int]) -> list[int]:
    """The steps whose tick labels stand apart on a log axis."""
    kept: list[int] = []
    for step in steps:
        if not kept or log10(1 + step) - log10(1 + kept[-1]) >= 0.23:
            kept.append(step)
    return kept
