"""Figures of the weights: drift of S beside rotation of subspaces, and edits beside their controls."""

from __future__ import annotations

from collections.abc import Sequence
from math import degrees
from statistics import fmean
from typing import NamedTuple

import plotly.graph_objects as go
import pyarrow as pa

from rlheals_ray.report.figures import (
    ACCURACY_TICKS,
    GREEN,
    GREY,
    PURPLE,
    RL_ORANGE,
    RULE_NAME,
    SFT_BLUE,
    Figure,
    Key,
    axis,
    panels,
)
from rlheals_ray.report.results import Place, Row
from rlheals_ray.report.weights import EditGroup, angle, pair_of
from rlheals_ray.report.words import number

MOST_PAIRS = 40
BARS = (
    ("recipient", "recipient", GREY),
    ("donor", "donor", SFT_BLUE),
    ("edit", "edit", RL_ORANGE),
    ("weight_swap", "weight swap", GREEN),
    ("interpolation", "interpolation", PURPLE),
    ("random_angle", "random, equal angle", PURPLE),
    ("random_norm", "random, equal norm", PURPLE),
)


class Pair(NamedTuple):
    """One pair of checkpoints, means over matrices and seeds; drift a share, angles radians."""

    label: str
    kind: str
    drift: float
    angle: float
    null: float | None
    matrices: int


def pairs(spectra: pa.Table) -> tuple[int | None, list[Pair]]:
    """The smallest k that was measured, and every pair of checkpoints at it."""
    rows = [r for r in spectra.to_pylist() if angle(r) is not None and r["drift_mean"] is not None]
    if not rows:
        return None, []
    k = min((row["k"] for row in rows if row["k"] is not None), default=None)
    groups: dict[tuple[int, ...], tuple[str, str, list[Row]]] = {}
    for row in rows:
        places = pair_of(row)
        if row["k"] != k or places is None:
            continue
        a, b = places
        order = (
            a.rl_step > 0 or b.rl_step > 0,
            a.sft_step != b.sft_step,
            b.sft_step,
            b.rl_step,
            a.sft_step,
            a.rl_step,
        )
        kind = (
            "along SFT" if not order[0] else "RL from its own start" if not order[1] else "RL from elsewhere"
        )
        label = f"{_name(a)} → {_name(b)}"
        groups.setdefault(tuple(map(int, order)), (label, kind, []))[2].append(row)
    found = []
    for _, (label, kind, members) in sorted(groups.items()):
        null = [row["null_angle"] for row in members if row["null_angle"] is not None]
        found.append(
            Pair(
                label,
                kind,
                fmean(row["drift_mean"] for row in members),
                fmean(angle(row) or 0.0 for row in members),
                fmean(null) if null else None,
                len(members),
            )
        )
    return k, found


def _name(place: Place) -> str:
    start = f"SFT {place.sft_step}" if place.sft_step else "base"
    return f"{start} + RL {place.rl_step}" if place.rl_step else start


def drift_and_rotation(spectra: pa.Table) -> Figure | None:
    """Per pair of checkpoints, drift of S (left) and mean principal angle with its null angle (right)."""
    k, every = pairs(spectra)
    if not every:
        return None
    shown = every[:MOST_PAIRS]
    colours = {"along SFT": SFT_BLUE, "RL from its own start": RL_ORANGE, "RL from elsewhere": PURPLE}
    top = f"top-{k} subspaces" if k else "subspaces"
    figure = panels(
        ["Drift of singular values", f"Rotation of {top}"],
        x="",
        y="",
        height=130 + 24 * len(shown),
        narrowest=400,
    )
    labels = [pair.label for pair in shown]
    for index, values in enumerate(([100 * p.drift for p in shown], [degrees(p.angle) for p in shown])):
        suffix = axis(index)
        place = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        figure.add_trace(
            go.Bar(
                x=values,
                y=labels,
                orientation="h",
                marker={"color": [colours[pair.kind] for pair in shown]},
                text=[f"{value:.1f}" for value in values],
                textposition="outside",
                cliponaxis=False,
                hovertemplate="%{y}: %{x:.2f}<extra></extra>",
                **place,
            )
        )
        unit = ("change of S, %", "angle, degrees")[index]
        reach = max(values) * 1.18 or 1
        null = [degrees(p.null) for p in shown if p.null is not None] if index else []
        if null:
            figure.add_trace(
                go.Scatter(
                    x=[None if p.null is None else degrees(p.null) for p in shown],
                    y=labels,
                    mode="lines+markers",
                    marker={"symbol": "line-ns-open", "size": 12, "color": GREY, "line": {"width": 2}},
                    line={"color": GREY, "dash": "dash", "width": 1},
                    hovertemplate="random subspaces: %{x:.1f}°<extra></extra>",
                    **place,
                )
            )
            reach = max(reach, max(null) * 1.08)
        figure.update_layout(
            {
                f"xaxis{suffix}": {"title": {"text": unit}, "range": [0, reach]},
                f"yaxis{suffix}": {
                    "autorange": "reversed",
                    "type": "category",
                    "showgrid": False,
                    "automargin": True,
                    "showticklabels": True,
                },
            }
        )
    figure.layout.meta["labels"] = 7 * max(len(label) for label in labels)
    cut = f" The first {MOST_PAIRS} of {len(every)} pairs are drawn." if len(every) > MOST_PAIRS else ""
    sizes = [pair.matrices for pair in shown]
    counts = " to ".join(dict.fromkeys((str(min(sizes)), str(max(sizes)))))
    caption = (
        "<b>Look at</b> which of the two is large for its scale, and how far the angles stay from the dashed "
        "line, the null angle of random subspaces of the same sizes. Left: mean relative change of singular "
        f"values; right: mean principal angle of U and V. Means over matrices and seeds (n = {counts} "
        f"matrices a pair); no interval: matrices of one model are not independent.{cut}"
    )
    keys = [Key(kind, colour) for kind, colour in colours.items() if any(p.kind == kind for p in shown)]
    keys += [Key("null angle", GREY, "dash")] if any(p.null is not None for p in shown) else []
    return Figure("spectra", "Drift against rotation", figure, caption, keys)


def by_role(spectra: pa.Table) -> list[tuple[str, ...]]:
    """Rows (role, k, matrices, drift %, angle, null angle, stretch, turn) over all pairs, as text."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in spectra.to_pylist():
        if angle(row) is not None:
            groups.setdefault((row["role"] or "?", row["k"] or 0), []).append(row)

    def mean(members: Sequence[Row], column: str, scale: float = 1.0, digits: int = 1) -> str:
        values = [row[column] for row in members if row[column] is not None]
        return f"{scale * fmean(values):.{digits}f}" if values else "–"

    return [
        (
            role,
            str(k or "all"),
            str(len(members)),
            mean(members, "drift_mean", 100),
            f"{degrees(fmean(angle(row) or 0.0 for row in members)):.1f}°",
            f"{mean(members, 'null_angle', degrees(1))}°",
            mean(members, "stretch", digits=2),
            mean(members, "turn", digits=2),
        )
        for (role, k), members in sorted(groups.items())
    ]


def edit(group: EditGroup, index: int) -> Figure:
    """Accuracy@1 of recipient, donor, edit and every control that ran, OOD left, ID right."""
    shown = [bar for bar in BARS if any(bar[0] in group.bars[rule] for rule in ("ood", "id"))]
    titles = [RULE_NAME["ood"], RULE_NAME["id"]]
    figure = panels(titles, x="accuracy@1", y="", height=120 + 36 * len(shown), narrowest=400)
    counts = []
    for panel, rule in enumerate(("ood", "id")):
        suffix = axis(panel)
        bars = [(words, colour, bar) for name, words, colour in shown if (bar := group.bars[rule].get(name))]
        if bars and bars[0][2].n:
            counts.append(f"{rule.upper()} n = {bars[0][2].n}")
        tops = [bar.value if bar.high is None else bar.high for *_, bar in bars]
        figure.add_trace(
            go.Bar(
                y=[words for words, *_ in bars],
                x=[bar.value for *_, bar in bars],
                orientation="h",
                marker={"color": [colour for _, colour, _ in bars]},
                error_x={
                    "type": "data",
                    "array": [top - bar.value for top, (*_, bar) in zip(tops, bars, strict=True)],
                    "arrayminus": [
                        bar.value - (bar.value if bar.low is None else bar.low) for *_, bar in bars
                    ],
                    "thickness": 1.5,
                    "width": 6,
                },
                hovertemplate="%{y}: %{x:.2f}<extra></extra>",
                xaxis=f"x{suffix}",
                yaxis=f"y{suffix}",
            )
        )
        for (words, _, bar), top in zip(bars, tops, strict=True):
            figure.add_annotation(
                x=top,
                y=words,
                xref=f"x{suffix}",
                yref=f"y{suffix}",
                text=f"<b>{number(bar.value)}</b>",
                showarrow=False,
                xanchor="left",
                xshift=5,
            )
        figure.update_layout(
            {
                f"xaxis{suffix}": {"range": [0, 1.12], "showgrid": True, **ACCURACY_TICKS},
                f"yaxis{suffix}": {"type": "category", "autorange": "reversed", "showgrid": False},
            }
        )
    figure.layout.meta["labels"] = 7 * max((len(words) for _, words, _ in shown), default=0)
    goes = ""
    if group.projection is not None:
        rest = "" if group.residual is None else f", residual {group.residual:.2f}"
        goes = f" Projection of the edit on donor − recipient: {group.projection:.2f}{rest}."
    caption = (
        "<b>Look at</b> the edit beside the plain weight swap of the same matrices: only a difference "
        "between these two speaks of directions as such. Accuracy at the first attempt; bars: means over "
        "seeds, with 95 % Wilson intervals over problems, averaged over seeds. "
        f"Problems: {', '.join(counts) or 'unknown'}.{goes}"
    )
    return Figure(f"edit-{index}", group.label[0].upper() + group.label[1:], figure, caption)
