"""What every figure of the report shares: colours, panels that reflow, and how a figure meets its words.

A figure is a row of equal panels. Their places are set in the browser (page.js) from the width that is
there, so that one figure reads on a slide, on paper and on a telephone. Ink, grid and ground come from
the page too, so that light, dark and print each get their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import fmean
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

# Okabe and Ito's colour-blind-safe set (2008); each keeps a contrast of 3:1 on white and on near-black.
SFT_BLUE, RL_ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#B0609A", "#808790"
VERDICT_COLOUR = {"heals": GREEN, "harms": PURPLE, "unclear": GREY}
VERDICT_MARK = {"heals": "▲", "harms": "▼", "unclear": "·"}
RULE_NAME = {"ood": "OOD rule (never trained on)", "id": "ID rule (trained on)"}
DIVERGING = [(0.0, "#762A83"), (0.25, "#C2A5CF"), (0.5, "#F7F7F7"), (0.75, "#A6DBA0"), (1.0, "#1B7837")]
"""ColorBrewer PRGn, colour-blind safe: purple harms, green heals, neutral at 0."""


@dataclass(frozen=True)
class Key:
    """One entry of the legend that the page sets above a figure: its line (dash "none": no line) and its mark."""

    name: str
    colour: str
    dash: str = "solid"
    symbol: str = ""


@dataclass(frozen=True)
class Figure:
    """A plot with its title, its caption (HTML, already escaped) and its legend.

    `views`: further plots that the reader may switch to, by what they show; `view` is what `plot` shows.
    A folded figure is drawn when it is opened.
    """

    name: str
    title: str
    plot: go.Figure
    caption: str
    keys: Sequence[Key] = field(default_factory=tuple)
    view: str = ""
    views: Mapping[str, go.Figure] = field(default_factory=dict)
    folded: bool = False

    @property
    def plots(self) -> dict[str, go.Figure]:
        """Every plot by what it shows, the one shown first leading."""
        return {self.view: self.plot, **self.views}


def switched(name: str, title: str, plots: Mapping[str, go.Figure], caption: str, **more: Any) -> Figure:
    """A figure of one or several plots among which the reader switches; the first is shown first."""
    (view, plot), *others = plots.items()
    return Figure(name, title, plot, caption, view=view, views=dict(others), **more)


def panels(
    titles: Sequence[str],
    *,
    x: str,
    y: str | Sequence[str],
    height: int = 360,
    columns: int = 2,
    narrowest: int = 430,
) -> go.Figure:
    """An empty figure of len(titles) panels with axes x, x2, ... and y, y2, ...

    `height` is one panel's, `columns` the most side by side, `narrowest` the least width of one; pixels.
    """
    figure = go.Figure()
    for index, title in enumerate(titles, start=1):
        axis = "" if index == 1 else str(index)
        label = y if isinstance(y, str) else y[index - 1]
        figure.update_layout(
            {
                f"xaxis{axis}": {
                    "anchor": f"y{axis}",
                    "title": {"text": x, "standoff": 8},
                    "zeroline": False,
                },
                f"yaxis{axis}": {
                    "anchor": f"x{axis}",
                    "title": {"text": label, "standoff": 6},
                    "zeroline": False,
                },
            }
        )
        figure.add_annotation(
            text=f"<b>{escape(title)}</b>",
            xref=f"x{axis} domain",
            yref=f"y{axis} domain",
            x=0,
            y=1,
            yshift=8,
            xanchor="left",
            yanchor="bottom",
            showarrow=False,
            font={"size": 15},
            name="title",
        )
    figure.update_layout(
        meta={"panels": len(titles), "height": height, "columns": columns, "narrowest": narrowest},
        template="none",
        showlegend=False,
        hovermode="closest",
        dragmode=False,
        font={"size": 13, "family": "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"},
        separators=".",
    )
    return figure


def axis(index: int) -> str:
    """Plotly's suffix of the panel counted from 0: none, "2", "3", ..."""
    return "" if index == 0 else str(index + 1)


def even_steps(figure: go.Figure, index: int, steps: Sequence[int]) -> None:
    """Steps as evenly spaced categories: early steps, where most happens, get as much room as late ones."""
    figure.update_layout(
        {
            f"xaxis{axis(index)}": {
                "tickvals": list(range(len(steps))),
                "ticktext": [str(step) for step in steps],
                "range": [-0.6, len(steps) - 0.35],
                "title": {"text": "SFT steps (evenly spaced)"},
                "tickangle": 0,
                "tickfont": {"size": 12},
            }
        }
    )


BySeed = Mapping[int, Sequence[float]]
"""SFT step -> one value per seed."""


def step_line(
    figure: go.Figure,
    index: int,
    at: Mapping[int, int],
    points: BySeed,
    name: str,
    colour: str,
    symbol: str,
    unit: str,
    dash: str = "solid",
    marked: bool = False,
) -> None:
    """A line through the means over seeds and, where there are several, small marks of single seeds.

    `at`: SFT step -> its place on the axis (`even_steps`). A dashed line has neither marks nor seeds, unless `marked`.
    """
    place = {"xaxis": f"x{axis(index)}", "yaxis": f"y{axis(index)}"}
    hover = f"{name} at SFT step %{{customdata}}: %{{y:.3g}}{unit}<extra></extra>"
    solid = marked or dash == "solid"
    if solid and any(len(values) > 1 for values in points.values()):
        figure.add_trace(
            go.Scatter(
                x=[at[step] for step, values in points.items() for _ in values],
                y=[short(value) for values in points.values() for value in values],
                mode="markers",
                marker={"size": 5, "color": colour, "opacity": 0.5},
                hoverinfo="skip",
                **place,
            )
        )
    figure.add_trace(
        go.Scatter(
            x=[at[step] for step in points],
            y=[short(fmean(values)) for values in points.values()],
            customdata=list(points),
            mode="lines+markers" if solid else "lines",
            line={"color": colour, "width": 2.5 if solid else 1.5, "dash": dash},
            marker={"size": 8, "color": colour, "symbol": symbol},
            hovertemplate=hover,
            **place,
        )
    )


class Marks(NamedTuple):
    """Marks of one series: places on both axes, interval bounds where known, hover texts."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float | None]
    high: Sequence[float | None]
    hover: Sequence[str]


def interval_marks(
    figure: go.Figure, index: int, marks: Marks, colour: str, symbol: str, open_at: Sequence[bool] = ()
) -> None:
    """Marks with vertical intervals; those of `open_at` are drawn hollow."""
    hollow = [*open_at, *[False] * (len(marks.x) - len(open_at))]
    known = list(zip(marks.y, marks.low, marks.high, strict=True))
    figure.add_trace(
        go.Scatter(
            x=list(marks.x),
            y=[short(value) for value in marks.y],
            mode="markers",
            marker={
                "size": 10,
                "color": colour,
                "symbol": [f"{symbol}-open" if empty else symbol for empty in hollow],
                "line": {"width": 2, "color": colour},
            },
            error_y={
                "type": "data",
                "array": [short(0.0 if high is None else high - y) for y, _, high in known],
                "arrayminus": [short(0.0 if low is None else y - low) for y, low, _ in known],
                "color": colour,
                "thickness": 1.5,
                "width": 4,
            },
            text=list(marks.hover),
            hovertemplate="%{text}<extra></extra>",
            xaxis=f"x{axis(index)}",
            yaxis=f"y{axis(index)}",
        )
    )


def zero_line(figure: go.Figure, index: int) -> None:
    """A line across the panel at 0."""
    suffix = axis(index)
    line = {"color": GREY, "width": 1.5}
    figure.add_shape(
        type="line", x0=0, x1=1, y0=0, y1=0, xref=f"x{suffix} domain", yref=f"y{suffix}", line=line
    )


def difference_axis(figure: go.Figure, index: int, rows: Iterable[Marks]) -> None:
    """A vertical axis of differences around 0 that holds all intervals and never shows less than ±.1."""
    bounds = [v for marks in rows for side in (marks.y, marks.low, marks.high) for v in side if v is not None]
    low, high = min([-0.1, *bounds]), max([0.1, *bounds])
    air = 0.06 * (high - low)
    figure.update_layout(
        {f"yaxis{axis(index)}": {"tickformat": "+.2f", "nticks": 8, "range": [low - air, high + air]}}
    )


def side_by_side(count: int, width: float = 0.66, most: float = 0.3) -> list[float]:
    """Offsets of `count` series around one tick of an axis of even steps, so that their intervals do not cover.

    At most `most` apart, over at most `width` in all.
    """
    apart = min(most, width / max(1, count - 1))
    return [apart * (i - (count - 1) / 2) for i in range(count)]


def short(value: float | None) -> float | None:
    """Four significant digits: enough for a plot, a third of the bytes."""
    return None if value is None else float(f"{value:.4g}")


ACCURACY_TICKS = {"tickvals": [0, 0.2, 0.4, 0.6, 0.8, 1], "tickformat": ".1f"}


def accuracy_axis(figure: go.Figure, index: int, top: float = 1.08) -> None:
    """A vertical accuracy axis from 0 to 1 with a little air for marks on its edges."""
    figure.update_layout({f"yaxis{axis(index)}": {**ACCURACY_TICKS, "range": [-0.04, top]}})


def translucent(colour: str, opacity: float) -> str:
    """`#RRGGBB` as rgba()."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def step_colours(steps: Iterable[int]) -> dict[int, str]:
    """One colour per step along viridis without its ends, which vanish on dark or on light ground."""
    ordered = sorted(steps)
    spots = [0.15 + 0.7 * i / max(1, len(ordered) - 1) for i in range(len(ordered))]
    return dict(zip(ordered, sample_colorscale("Viridis", spots), strict=True)) if ordered else {}
