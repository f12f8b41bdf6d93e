"""Figure of drift against rotation along SFT and RL: from the OOD peak, from the base, and of RL alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import degrees
from statistics import fmean

import plotly.graph_objects as go

from rlheals_ray.report.comparisons import BASE, Comparison, Comparisons, over_seeds
from rlheals_ray.report.figures import (
    GREY,
    RL_ORANGE,
    SFT_BLUE,
    BySeed,
    Figure,
    Key,
    axis,
    even_steps,
    panels,
    short,
    step_line,
    switched,
)
from rlheals_ray.report.results import place_of

OFF_SCALE = 2.5
"""A null angle this many times the largest angle is told in words: drawn, it would flatten what is shown."""


def rotation_path(comparisons: Comparisons) -> Figure | None:
    """Drift of S and rotation along the trunk and after RL, from the peak, from the base, and of RL alone.

    Trunk points by SFT step; RL points stand over the step that RL started from, largest budget. None
    where no view has two points.
    """
    every = comparisons.means(k=comparisons.k)
    peaks = comparisons.peaks()
    parts = {
        "from the OOD peak": [one for one in every if one.a == peaks.get(one.seed)],
        "from the base": [one for one in every if place_of(one.a) == BASE],
        "RL alone, from its own start": [one for one in every if _is_branch(one)],
    }
    plots = {}
    for view, members in parts.items():
        own = view.startswith("RL")
        trunk = [one for one in members if not own and (p := one.places[1]) and not p.rl_step]
        trained = _largest_budget([one for one in members if (p := one.places[1]) and p.rl_step])
        if len({one.b for one in [*trunk, *trained]}) > 1:
            plots[view] = _path(trunk, trained, comparisons.k)
    if not plots:
        return None
    noise = any(one.noise() is not None for one in every)
    beside = ", beside the angle that Gaussian noise of the same ‖ΔW‖ would make (dotted)" if noise else ""
    caption = (
        "<b>Look at</b> which of the two is large for its scale, and at whether orange, after RL, comes back "
        "down from blue, the SFT checkpoint that it started from. Left: mean relative change of the leading "
        f"singular values; middle: mean principal angle of U and V{beside}; right: one against the other, numbers "
        "are SFT steps, the grey line is equal relative size. Means over matrices; large marks: means over seeds, "
        "small marks: single seeds. No interval: matrices of one model are not independent. What is measured from "
        "the peak is 0 at each seed’s own peak by construction."
    )
    keys = [
        Key("SFT", SFT_BLUE),
        Key("after RL, largest budget", RL_ORANGE),
    ]
    if noise:
        keys.append(Key("noise of equal ‖ΔW‖", GREY, "dot"))
    return switched("rotation", "Drift against rotation over SFT and RL", plots, caption, keys=keys)


def _is_branch(one: Comparison) -> bool:
    """Whether the pair is a branch: its start and its end."""
    a, b = one.places
    return a is not None and b is not None and a.rl_step == 0 < b.rl_step and a.sft_step == b.sft_step


def _largest_budget(members: Sequence[Comparison]) -> list[Comparison]:
    steps = [place.rl_step for one in members if (place := one.places[1])]
    return [one for one in members if (place := one.places[1]) and place.rl_step == max(steps)]


def _by_step(members: Sequence[Comparison], values: Sequence[float | None]) -> dict[int, list[float]]:
    steps = [place.sft_step for one in members if (place := one.places[1])]
    return dict(sorted(over_seeds(zip(steps, values, strict=True)).items()))


def _path(trunk: Sequence[Comparison], trained: Sequence[Comparison], k: int | None) -> go.Figure:
    top = f"top-{k} subspaces" if k else "subspaces"
    figure = panels(
        ["Drift of singular values", f"Rotation of {top}", "One against the other"],
        x="",
        y=["change of S, %", "angle, degrees", "angle, degrees"],
        height=380,
        columns=3,
        narrowest=330,
    )
    steps = sorted({p.sft_step for one in [*trunk, *trained] if (p := one.places[1])})
    at = {step: position for position, step in enumerate(steps)}
    for index in (0, 1):
        even_steps(figure, index, steps)
        figure.update_layout({f"yaxis{axis(index)}": {"rangemode": "tozero"}})
    drawn: list[tuple[dict[int, list[float]], dict[int, list[float]]]] = []
    nulls = [degrees(n) for one in [*trunk, *trained] if (n := one.null()) is not None]
    largest = 0.0
    for members, name, colour, symbol in (
        (trunk, "SFT", SFT_BLUE, "circle"),
        (trained, "after RL", RL_ORANGE, "square"),
    ):
        drifts = _by_step(members, [_scaled(one.measures["drift_mean"], 100) for one in members])
        turned = _by_step(members, [_scaled(one.angle(), degrees(1)) for one in members])
        noise = _by_step(members, [_scaled(one.noise(), degrees(1)) for one in members])
        step_line(figure, 0, at, drifts, f"{name}: drift", colour, symbol, "%")
        step_line(figure, 1, at, noise, f"noise of {name}'s ‖ΔW‖", colour, "line-ew", "°", dash="dot")
        step_line(figure, 1, at, turned, f"{name}: angle", colour, symbol, "°")
        drawn.append((drifts, turned))
        largest = max([largest, *(fmean(v) for part in (turned, noise) for v in part.values())])
    if nulls and largest:
        _null_line(figure, 1, fmean(nulls), largest)
    _against(figure, 2, drawn)
    return figure


def _null_line(figure: go.Figure, index: int, null: float, largest: float) -> None:
    refs = {"xref": f"x{axis(index)} domain", "yref": f"y{axis(index)}"}
    near = null <= OFF_SCALE * largest
    if near:
        figure.add_shape(
            type="line",
            x0=0,
            x1=1,
            y0=null,
            y1=null,
            line={"color": GREY, "dash": "dash", "width": 2},
            **refs,
        )
    figure.add_annotation(
        x=0 if not near else 1,
        y=null if near else 1,
        **(refs if near else {**refs, "yref": f"y{axis(index)} domain"}),
        xanchor="right" if near else "left",
        xshift=0 if near else 6,
        yanchor="bottom" if near else "top",
        text=f"random subspaces: {null:.0f}°" + ("" if near else ", off the scale"),
        showarrow=False,
        font={"size": 12, "color": GREY},
    )


def _against(figure: go.Figure, index: int, drawn: Sequence[tuple[BySeed, BySeed]]) -> None:
    """Drift across, angle up; SFT as a path through its steps, RL as marks joined to their starts."""
    place = {"xaxis": f"x{axis(index)}", "yaxis": f"y{axis(index)}"}
    spots = [
        {step: (fmean(drifts[step]), fmean(turned[step])) for step in drifts if step in turned}
        for drifts, turned in drawn
    ]
    trunk, trained = spots
    for step in trained.keys() & trunk.keys():
        figure.add_trace(
            go.Scatter(
                x=[short(trunk[step][0]), short(trained[step][0])],
                y=[short(trunk[step][1]), short(trained[step][1])],
                mode="lines",
                line={"color": RL_ORANGE, "width": 1, "dash": "dot"},
                hoverinfo="skip",
                **place,
            )
        )
    for points, name, colour, symbol in (
        (trunk, "SFT", SFT_BLUE, "circle"),
        (trained, "RL", RL_ORANGE, "square"),
    ):
        figure.add_trace(
            go.Scatter(
                x=[short(x) for x, _ in points.values()],
                y=[short(y) for _, y in points.values()],
                text=[str(step) for step in points],
                mode="lines+markers" if name == "SFT" else "markers",
                line={"color": colour, "width": 1.5},
                marker={"size": 8, "color": colour, "symbol": symbol},
                hovertemplate=f"{name}, SFT step %{{text}}: S %{{x:.3g}} %, angle %{{y:.3g}}°<extra></extra>",
                **place,
            )
        )
    labelled = trunk or trained
    kept = _apart(labelled)
    for step in kept:
        figure.add_annotation(
            x=labelled[step][0],
            y=labelled[step][1],
            xref=f"x{axis(index)}",
            yref=f"y{axis(index)}",
            text=str(step),
            showarrow=False,
            xanchor="left",
            xshift=7,
            yshift=-9,
            font={"size": 11},
        )
    every = [*trunk.values(), *trained.values()]
    reach = max(x for x, _ in every) * 1.15 if every else 0
    top = max(y for _, y in every) * 1.1 if every else 0
    if reach and top:
        end = min(reach, 100 * top / degrees(1))
        figure.add_trace(
            go.Scatter(
                x=[0, short(end)],
                y=[0, short(degrees(end / 100))],
                mode="lines",
                line={"color": GREY, "width": 1.5},
                hoverinfo="skip",
                **place,
            )
        )
        figure.update_layout(
            {
                f"xaxis{axis(index)}": {"range": [0, reach], "title": {"text": "change of S, %"}},
                f"yaxis{axis(index)}": {"range": [0, top]},
            }
        )


def _apart(spots: Mapping[int, tuple[float, float]], gap: float = 0.09) -> list[int]:
    """The steps whose numbers stand apart on a panel; the last ones first, for the path's end matters most."""
    reach = [max((abs(spot[i]) for spot in spots.values()), default=1) or 1 for i in (0, 1)]
    kept: list[int] = []
    for step in sorted(spots, reverse=True):
        x, y = (spots[step][i] / reach[i] for i in (0, 1))
        if all(max(abs(x - spots[o][0] / reach[0]), abs(y - spots[o][1] / reach[1])) > gap for o in kept):
            kept.append(step)
    return kept


def _scaled(value: float | None, by: float) -> float | None:
    return None if value is None else value * by
