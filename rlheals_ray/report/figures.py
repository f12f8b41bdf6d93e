"""What every figure of the report shares: colours, panels that reflow, and how a figure meets its words.

A figure is a row of equal panels. Their places are set in the browser (page.js) from the width that is
there, so that one figure reads on a slide, on paper and on a telephone. Ink, grid and ground come from
the page too, so that light, dark and print each get their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

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
    """One entry of the legend that the page sets above a figure."""

    name: str
    colour: str
    dash: str = "solid"


@dataclass(frozen=True)
class Figure:
    """A plot with its title, its caption (HTML, already escaped) and its legend."""

    name: str
    title: str
    plot: go.Figure
    caption: str
    keys: Sequence[Key] = field(default_factory=tuple)


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
