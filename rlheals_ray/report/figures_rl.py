"""Figures of RL: what every update reported, one line per branch point, and where the updates' time went."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import plotly.graph_objects as go
import pyarrow as pa

from rlheals_ray.report.figures import (
    GREEN,
    GREY,
    PURPLE,
    RL_ORANGE,
    SFT_BLUE,
    Figure,
    Key,
    axis,
    panels,
    step_colours,
)
from rlheals_ray.report.words import algorithm_name, listed

Row = Mapping[str, Any]
Metric = tuple[str, str, str]
"""A column of tables/rl, its panel's title and its unit."""

LEARNING: Sequence[Metric] = (
    ("reward_mean", "mean reward", "reward"),
    ("solved_at_1", "solved at the first attempt", "share of episodes"),
    ("entropy", "policy entropy", "nats per token"),
    ("approx_kl", "approximate KL per update", "nats per token"),
    ("logprob_mismatch_kl", "mismatch KL, engine to learner", "nats per token"),
    ("explained_variance", "critic's explained variance", "share"),
)
ENGINES: Sequence[Metric] = (
    ("tokens_per_second", "tokens per second while generating", "tokens per second"),
    ("idle_share", "engines' idle share of an update", "share of seconds"),
)
SPLIT: Sequence[tuple[str, str, str, Callable[[Row], float]]] = (
    (
        "generating",
        SFT_BLUE,
        "seconds_generate",
        lambda row: row["seconds_generate"] - (row["seconds_judge"] or 0),
    ),
    ("judging", GREEN, "seconds_judge", lambda row: row["seconds_judge"]),
    ("sending weights", PURPLE, "seconds_sync", lambda row: row["seconds_sync"]),
    ("learning", RL_ORANGE, "seconds_learn", lambda row: row["seconds_learn"]),
)
"""Parts of an update: name, colour, the column that must be there, seconds. Judging is part of seconds_generate."""


def rl_learning(rl: pa.Table) -> Figure | None:
    """RL's own metrics over its updates, one line per SFT step it branched from; None without RL rows.

    A metric that the algorithm does not have (null throughout) has no panel.
    """
    rows = _updates(rl)
    shown = _measured(rows, LEARNING)
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
    for index, metric in enumerate(shown):
        _add_lines(figure, index, rows, colours, metric)
        figure.update_layout({f"yaxis{axis(index)}": {"exponentformat": "e"}})  # 2e-9, not 2n
    mismatch = [row["logprob_mismatch_max"] for row in rows if row["logprob_mismatch_max"] is not None]
    stated = "The mismatch of log-probabilities was not recorded."
    if mismatch:
        stated = (
            "Largest mismatch between the generator's and the learner's log-probability of one token, over "
            f"all updates: <b>{max(mismatch):.2g}</b> nats."
        )
    learnt_by = listed(sorted({algorithm_name(row["algorithm"]) for row in rows if row["algorithm"]}))
    caption = (
        "<b>Look at</b> which starts learn at all, and whether entropy collapses before they do. One line "
        "per SFT step that RL branched from, dark (short SFT) to light (long SFT); means over seeds. "
        f"Learnt by {learnt_by}. {stated}"
    )
    keys = [Key(f"from SFT {step}", colour) for step, colour in colours.items()]
    return Figure("rl", "What RL itself saw", figure, caption, keys)


def rl_time(rl: pa.Table) -> Figure | None:
    """Where an update's seconds go and how busy the engines are; None where no seconds were recorded."""
    rows = _updates(rl)
    parts = [part for part in SPLIT if any(row[part[2]] is not None for row in rows)]
    shown = _measured(rows, ENGINES)
    if not parts:
        return None
    colours = step_colours({row["sft_step"] for row in rows})
    figure = panels(
        ["seconds of one update", *(title for _, title, _ in shown)],
        x="RL updates",
        y=["seconds", *(unit for *_, unit in shown)],
        height=290,
        columns=3,
        narrowest=300,
    )
    for name, colour, column, seconds in parts:
        means = {
            step: fmean(values)
            for step in colours
            if (values := [seconds(r) for r in rows if r["sft_step"] == step and r[column] is not None])
        }
        figure.add_trace(
            go.Bar(
                x=[str(step) for step in means],
                y=list(means.values()),
                marker={"color": colour},
                hovertemplate=f"from SFT %{{x}}: {name} %{{y:.2f}} s<extra></extra>",
            )
        )
    figure.update_layout(barmode="stack", xaxis={"type": "category", "title": {"text": "from SFT step"}})
    for index, metric in enumerate(shown, start=1):
        _add_lines(figure, index, rows, colours, metric, GREY)
        bounds = {"range": [0, 1.02]} if metric[0] == "idle_share" else {"rangemode": "tozero"}
        figure.update_layout({f"yaxis{axis(index)}": bounds})
    caption = (
        "<b>Look at</b> the largest part of the bars: that is what a faster run would have to shorten. Means over "
        "updates and seeds; each grey line is one SFT step, mean over seeds. The engines that a branch was lent idle "
        "while it learns."
    )
    keys = [Key(name, colour) for name, colour, *_ in parts]
    return Figure("rl-time", "Where an RL update's time goes", figure, caption, keys)


def _updates(rl: pa.Table) -> list[Row]:
    return [row for row in rl.to_pylist() if row["sft_step"] is not None and row["rl_step"] is not None]


def _measured(rows: Iterable[Row], metrics: Sequence[Metric]) -> list[Metric]:
    rows = list(rows)
    return [metric for metric in metrics if any(row[metric[0]] is not None for row in rows)]


def _add_lines(
    figure: go.Figure,
    index: int,
    rows: Sequence[Row],
    colours: Mapping[int, str],
    metric: Metric,
    colour: str | None = None,
) -> None:
    """One line per branch point into panel `index`: means over seeds; updates without a value are left out."""
    column, title, _ = metric
    for step, own in colours.items():
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
                line={"color": colour or own, "width": 2},
                hovertemplate=f"from SFT {step}, update %{{x}}: {title} %{{y:.3g}}<extra></extra>",
                xaxis=f"x{axis(index)}",
                yaxis=f"y{axis(index)}",
            )
        )
