"""Figures of angles: against k beside their null values, and where in the network weights turn most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import degrees
from statistics import fmean
from typing import get_args

import plotly.graph_objects as go

from rlheals_ray.config.fields import Role
from rlheals_ray.report.comparisons import Comparison, Comparisons, Story, over_seeds
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
    short,
    switched,
    translucent,
)

ROLES: tuple[str, ...] = get_args(Role)
COLOURS = (SFT_BLUE, PURPLE, RL_ORANGE, GREEN)
NO_LAYER = "none"
ANGLE_TICKS = [digit * 10.0**power for power in range(-6, 3) for digit in (1, 2, 5)]
"""Degrees, for a log axis."""


def angle_curves(comparisons: Comparisons, stories: Sequence[Story]) -> Figure | None:
    """Mean principal angle of U and of V against k, noise's dotted beside it, random subspaces' as a band.

    One line per story; views: all roles together, and each role. None where nothing was compared.
    """
    every = [
        (story, one)
        for one in comparisons.means(("role",))
        for story in stories
        if one.pair in story.pairs and one.k and one.angle()
    ]
    if not every:
        return None
    roles = [role for role in ROLES if any(one.role == role for _, one in every)]
    plots = {"all roles": _curves(every, stories)}
    if len(roles) > 1:
        plots |= {
            role: _curves([(s, one) for s, one in every if one.role == role], stories) for role in roles
        }
    caption = (
        "<b>Look at</b> the distance of each line from its own dotted line: at the dotted line the subspaces "
        "turn no more than sheer noise of the same ‖ΔW‖ would turn them. The grey band is what random "
        "subspaces of the same sizes have, from the lowest to the highest role (all of R<sup>n</sup> at "
        "k = n: 0). Mean principal angles over matrices and seeds; both axes logarithmic."
    )
    if not any(one.noise() for _, one in every):
        caption += " Noise’s angles were not recorded here."
    keys = [Key(story.label, colour) for story, colour in zip(stories, COLOURS, strict=False)]
    if any(one.noise() for _, one in every):
        keys.append(Key("noise of equal ‖ΔW‖", GREY, "dot"))
    if any(one.null() for _, one in every):
        keys.append(Key("random subspaces (null)", GREY, "dash"))
    return switched("angles", "Angle against k", plots, caption, keys=keys)


def _curves(every: Sequence[tuple[Story, Comparison]], stories: Sequence[Story]) -> go.Figure:
    figure = panels(
        ["U: left singular subspaces", "V: right singular subspaces"],
        x="k, leading singular directions",
        y="angle, degrees",
        height=380,
    )
    ks = sorted({one.k for _, one in every if one.k})
    for index, side in enumerate("uv"):
        place = {"xaxis": f"x{axis(index)}", "yaxis": f"y{axis(index)}"}
        nulls = over_seeds((one.k, _degrees(one.null(side))) for _, one in every)
        _null_band(figure, {k: nulls[k] for k in ks if k in nulls}, place)
        for story, colour in zip(stories, COLOURS, strict=False):
            mine = [one for which, one in every if which is story]
            for dash, width, what, values in (
                ("dot", 1.5, "noise of equal norm", [one.noise(side) for one in mine]),
                ("solid", 2.5, story.label, [one.angle(side) for one in mine]),
            ):
                means = over_seeds(zip([one.k for one in mine], map(_degrees, values), strict=True))
                points = {k: fmean(means[k]) for k in ks if k in means and fmean(means[k]) > 0}
                figure.add_trace(
                    go.Scatter(
                        x=list(points),
                        y=[short(value) for value in points.values()],
                        mode="lines+markers" if dash == "solid" else "lines",
                        line={"color": colour, "width": width, "dash": dash},
                        marker={"size": 8, "color": colour},
                        hovertemplate=f"{what}, k = %{{x}}: %{{y:.3g}}°<extra></extra>",
                        **place,
                    )
                )
        figure.update_layout(
            {
                f"xaxis{axis(index)}": {
                    "type": "log",
                    "tickvals": _sparse(ks),
                    "ticktext": [str(k) for k in _sparse(ks)],
                    "tickangle": 0,
                },
                f"yaxis{axis(index)}": {
                    "type": "log",
                    "tickvals": ANGLE_TICKS,
                    "ticktext": [f"{tick:g}" for tick in ANGLE_TICKS],
                },
            }
        )
    figure.update_layout(yaxis2={"matches": "y"})
    return figure


def _null_band(figure: go.Figure, nulls: Mapping[int, Sequence[float]], place: dict[str, str]) -> None:
    """Lowest and highest null angle over roles at each k; a line where they are one."""
    known = {k: [value for value in values if value > 0] for k, values in nulls.items()}
    known = {k: values for k, values in known.items() if values}
    ks = list(known)
    figure.add_trace(
        go.Scatter(
            x=ks + ks[::-1],
            y=[short(min(known[k])) for k in ks] + [short(max(known[k])) for k in reversed(ks)],
            fill="toself",
            fillcolor=translucent(GREY, 0.3),
            line={"color": GREY, "width": 1.5, "dash": "dash"},
            mode="lines",
            hoverinfo="skip",
            **place,
        )
    )


def _sparse(ks: Sequence[int]) -> list[int]:
    """The k whose tick labels stand apart on a log axis."""
    kept: list[int] = []
    for k in ks:
        if not kept or k / kept[-1] >= (ks[-1] / ks[0]) ** 0.07:
            kept.append(k)
    return kept


Measure = Callable[[Comparison], float | None]
MAPS: Mapping[str, tuple[Measure, str]] = {
    "angle": (lambda one: _degrees(one.angle()), "°"),
    "angle ÷ noise’s angle": (lambda one: _ratio(one.angle(), one.noise()), ""),
    "drift of S": (lambda one: _scaled(one.measures["drift_mean"], 100), "%"),
    "‖ΔW‖": (lambda one: one.measures["delta_norm"], ""),
}
"""What a map may show: its value and its unit."""


def layer_maps(comparisons: Comparisons, stories: Sequence[Story]) -> Figure | None:
    """Layer across, role down, one panel per story; the reader chooses what the colour means."""
    every = comparisons.means(("layer", "role"), k=comparisons.k)
    members = [[one for one in every if one.pair in story.pairs and one.role] for story in stories]
    layers = sorted({one.layer for part in members for one in part if one.layer is not None})
    columns = [str(layer) for layer in layers]
    if any(one.layer is None for part in members for one in part):
        columns.append(NO_LAYER)
    roles = [role for role in ROLES if any(one.role == role for part in members for one in part)]
    plots = {}
    for view, (measure, unit) in MAPS.items():
        cells = [
            over_seeds(((NO_LAYER if o.layer is None else str(o.layer), o.role), measure(o)) for o in part)
            for part in members
        ]
        if any(cells):
            plots[view] = _maps(stories, cells, columns, roles, unit)
    if not plots or len(columns) * len(roles) < 2:
        return None
    top = f"top-{comparisons.k} subspaces" if comparisons.k else "subspaces"
    caption = (
        f"<b>Look at</b> whether the change sits in some layers or roles or is spread evenly. {top.capitalize()}; "
        "angle: mean principal angle of U and V; ÷ noise’s: how many times the angle that Gaussian noise of the "
        "same ‖ΔW‖ in the same matrix would make; ‖ΔW‖ is the Frobenius norm. Means over seeds. One colour "
        "scale for all panels."
    )
    return switched("layers", "Where in the network", plots, caption)


def _maps(
    stories: Sequence[Story],
    cells: Sequence[Mapping[tuple[str, str | None], Sequence[float]]],
    columns: Sequence[str],
    roles: Sequence[str],
    unit: str,
) -> go.Figure:
    figure = panels(
        [story.label for story in stories],
        x="layer",
        y="",
        height=120 + 24 * len(roles),
        columns=2,
        narrowest=380,
    )
    values = [fmean(many) for part in cells for many in part.values()]
    for index, part in enumerate(cells):
        z = [[short(fmean(m)) if (m := part.get((c, role))) else None for c in columns] for role in roles]
        suffix = axis(index)
        written = len(columns) <= 8
        figure.add_trace(
            go.Heatmap(
                z=z,
                x=list(columns),
                y=list(roles),
                text=[["" if v is None else f"{v:.2g}" for v in row] for row in z] if written else None,
                texttemplate="%{text}" if written else None,
                coloraxis="coloraxis",
                xgap=1,
                ygap=1,
                hovertemplate=f"layer %{{x}}, %{{y}}: %{{z:.3g}}{unit}<extra></extra>",
                xaxis=f"x{suffix}",
                yaxis=f"y{suffix}",
            )
        )
        category = {"type": "category", "showgrid": False, "ticks": ""}
        figure.update_layout(
            {
                f"xaxis{suffix}": {**category, "tickangle": 0, "nticks": 15},
                f"yaxis{suffix}": {**category, "autorange": "reversed"},
            }
        )
    figure.update_layout(
        coloraxis={
            "colorscale": "Viridis",
            "cmin": 0,
            "cmax": short(max(values)) or 1,
            "colorbar": {"title": {"text": unit}, "nticks": 5},
        }
    )
    figure.layout.meta["right"] = 84
    return figure


def _degrees(angle: float | None) -> float | None:
    return None if angle is None else degrees(angle)


def _scaled(value: float | None, by: float) -> float | None:
    return None if value is None else value * by


def _ratio(value: float | None, to: float | None) -> float | None:
    return value / to if value is not None and to else None
