"""Figure of every pair of checkpoints: drift of S beside rotation of subspaces; and the table by role."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import degrees
from statistics import fmean
from typing import Any, NamedTuple

import plotly.graph_objects as go

from rlheals_ray.report.comparisons import Comparison, Comparisons, checkpoint_label
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
)

MOST_PAIRS = 40


class Pair(NamedTuple):
    """One pair of checkpoints, means over matrices and seeds; drift a share, angles radians."""

    label: str
    kind: str
    drift: float
    angle: float
    null: float | None
    noise: float | None
    matrices: int


def pairs(comparisons: Comparisons) -> list[Pair]:
    """Every pair of checkpoints at the one k of `comparisons`, seeds together, in the order of training."""
    groups: dict[tuple[Any, ...], list[Comparison]] = {}
    for one in comparisons.means(k=comparisons.k):
        if one.angle() is None or one.measures["drift_mean"] is None:
            continue
        a, b = one.places
        if a is None or b is None:
            key: tuple[Any, ...] = (2, one.a, one.b)
        else:
            if (a.rl_step, a.sft_step) > (b.rl_step, b.sft_step):
                a, b = b, a
            ends = (b.sft_step, b.rl_step, a.sft_step, a.rl_step)
            key = (0, a.rl_step > 0 or b.rl_step > 0, a.sft_step != b.sft_step, *ends)
        groups.setdefault(key, []).append(one)
    return [_pair(key, members) for key, members in sorted(groups.items(), key=lambda item: item[0])]


def _pair(key: tuple[Any, ...], members: Sequence[Comparison]) -> Pair:
    if key[0] == 2:
        kind, label = "as given", f"{checkpoint_label(key[1])} → {checkpoint_label(key[2])}"
    else:
        _, rl, elsewhere, *ends = key
        kind = "along SFT" if not rl else "RL from its own start" if not elsewhere else "RL from elsewhere"
        label = f"{_name(*ends[2:])} → {_name(*ends[:2])}"
    null = [value for one in members if (value := one.null()) is not None]
    noise = [value for one in members if (value := one.noise()) is not None]
    return Pair(
        label,
        kind,
        fmean(one.measures["drift_mean"] or 0.0 for one in members),
        fmean(one.angle() or 0.0 for one in members),
        fmean(null) if null else None,
        fmean(noise) if noise else None,
        sum(one.matrices for one in members),
    )


def _name(sft_step: int, rl_step: int) -> str:
    start = f"SFT {sft_step}" if sft_step else "base"
    return f"{start} + RL {rl_step}" if rl_step else start


def drift_and_rotation(comparisons: Comparisons) -> Figure | None:
    """Per pair of checkpoints, drift of S (left) and mean principal angle with its null angle (right)."""
    k, every = comparisons.k, pairs(comparisons)
    if not every:
        return None
    shown = every[:MOST_PAIRS]
    colours = {
        "as given": SFT_BLUE,
        "along SFT": SFT_BLUE,
        "RL from its own start": RL_ORANGE,
        "RL from elsewhere": PURPLE,
    }
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
        noise = [None if p.noise is None else degrees(p.noise) for p in shown] if index else []
        if any(value is not None for value in noise):
            figure.add_trace(
                go.Scatter(
                    x=noise,
                    y=labels,
                    mode="markers",
                    marker={"symbol": "line-ns-open", "size": 14, "color": GREEN, "line": {"width": 3}},
                    hovertemplate="noise of equal norm: %{x:.2f}°<extra></extra>",
                    **place,
                )
            )
            reach = max(reach, max(value for value in noise if value is not None) * 1.08)
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
                    "range": [len(labels) - 0.4, -0.6],
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
    keys += [Key("noise of equal ‖ΔW‖", GREEN)] if any(p.noise is not None for p in shown) else []
    return Figure("spectra", "Every pair of checkpoints", figure, caption, keys)


def by_role(comparisons: Comparisons) -> list[tuple[str, ...]]:
    """Rows (role, k, matrices, drift %, angle, null and noise angle, stretch, turn) over all pairs, as text."""
    groups: dict[tuple[str, int], list[Comparison]] = {}
    for one in comparisons.means(("role",)):
        if one.angle() is not None:
            groups.setdefault((one.role or "?", one.k or 0), []).append(one)

    def mean(values: Iterable[float | None], scale: float, digits: int, unit: str = "") -> str:
        known = [value for value in values if value is not None]
        return f"{scale * fmean(known):.{digits}f}{unit}" if known else "–"

    return [
        (
            role,
            str(k or "all"),
            str(sum(one.matrices for one in members)),
            mean((one.measures["drift_mean"] for one in members), 100, 1),
            mean((one.angle() for one in members), degrees(1), 1, "°"),
            mean((one.null() for one in members), degrees(1), 1, "°"),
            mean((one.noise() for one in members), degrees(1), 1, "°"),
            mean((one.measures["stretch"] for one in members), 1, 2),
            mean((one.measures["turn"] for one in members), 1, 2),
        )
        for (role, k), members in sorted(groups.items())
    ]
