"""Figures of the two trainings: SFT losses against the OOD peak, and RL's own metrics per branch."""

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
    axis,
    panels,
    step_colours,
)
from rlheals_ray.report.results import Accuracies

LOSS_TICKS = [digit * 10.0**power for power in range(-5, 3) for digit in (1, 2, 5)]

METRICS = (
    ("reward_mean", "mean reward", "reward"),
    ("solved_at_1", "solved at the first attempt", "share of episodes"),
    ("entropy", "policy entropy", "nats per token"),
    ("approx_kl", "approximate KL per update", "nats"),
    ("explained_variance", "critic's explained variance", "share"),
)


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


def rl_learning(rl: pa.Table) -> Figure | None:
    """RL's own metrics over its updates, one line per SFT step it branched from; None without RL rows."""
    rows = [row for row in rl.to_pylist() if row["sft_step"] is not None and row["rl_step"] is not None]
    shown = [metric for metric in METRICS if any(row[metric[0]] is not None for row in rows)]
    if not shown:
        return None
    colours = step_colours({row["sft_step"] for row in rows})
    figure = panels(
        [title for _, title, _ in shown],
        x="RL updates",
        y=[unit for *_, unit in shown],
        height=290,
        columns=3,
        narrowest=300,
    )
    for index, (column, title, _) in enumerate(shown):
        for step, colour in colours.items():
            values: dict[int, list[float]] = {}
            for row in rows:
                if row["sft_step"] == step and row[column] is not None:
                    values.setdefault(row["rl_step"], []).append(row[column])
            points = {update: fmean(many) for update, many in sorted(values.items())}
            figure.add_trace(
                go.Scatter(
                    x=list(points),
                    y=list(points.values()),
                    mode="lines+markers" if len(points) == 1 else "lines",
                    line={"color": colour, "width": 2},
                    hovertemplate=f"from SFT {step}, update %{{x}}: {title} %{{y:.3g}}<extra></extra>",
                    xaxis=f"x{axis(index)}",
                    yaxis=f"y{axis(index)}",
                )
            )
    mismatch = [row["logprob_mismatch_max"] for row in rows if row["logprob_mismatch_max"] is not None]
    stated = "The mismatch of log-probabilities was not recorded."
    if mismatch:
        stated = (
            "Largest mismatch between the generator's and the learner's log-probability of one token, over "
            f"all updates: <b>{max(mismatch):.2g}</b> nats."
        )
    caption = (
        "<b>Look at</b> which starts learn at all, and whether entropy collapses before they do. One line "
        "per SFT step that RL branched from, dark (short SFT) to light (long SFT); means over seeds. "
        f"{stated}"
    )
    keys = [Key(f"from SFT {step}", colour) for step, colour in colours.items()]
    return Figure("rl", "What RL itself saw", figure, caption, keys)
