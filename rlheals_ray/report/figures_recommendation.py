"""The figure beside the recommendation: OOD against ID accuracy of every cell, the ID floor and the chosen one."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from rlheals_ray.report.figures import GREY, RL_ORANGE, SFT_BLUE, Figure, Key, panels, short
from rlheals_ray.report.recommendation import chosen_row, place_words, several_kinds
from rlheals_ray.report.results import Row
from rlheals_ray.report.variants import Variant
from rlheals_ray.report.words import interval, number

TICKS = {"tickvals": [0, 0.2, 0.4, 0.6, 0.8, 1], "tickformat": ".1f", "range": [-0.05, 1.06]}


def trade_off(rows: Sequence[Row]) -> Figure | None:
    """Every cell by its ID (across) and OOD accuracy (up); None without a cell that has both."""
    known = [row for row in rows if row["ood"] is not None and row["id"] is not None]
    if not known:
        return None
    figure = panels([""], x="ID accuracy", y="OOD accuracy", columns=1, height=400)
    figure.layout.meta["widest"] = 620
    kinds = ((0, "SFT alone", SFT_BLUE, "circle"), (1, "after RL", RL_ORANGE, "square"))
    keys = []
    for after, name, colour, symbol in kinds:
        mine = [row for row in known if bool(row["rl_step"]) == bool(after)]
        if not mine:
            continue
        keys.append(Key(name, colour, "none", symbol))
        figure.add_trace(
            go.Scatter(
                x=[short(row["id"]) for row in mine],
                y=[short(row["ood"]) for row in mine],
                text=[_hover(row, several_kinds(rows)) for row in mine],
                mode="markers",
                marker={
                    "size": 9,
                    "color": colour,
                    "symbol": [symbol if row["eligible"] else f"{symbol}-open" for row in mine],
                    "line": {"width": 1.5, "color": colour},
                },
                hovertemplate="%{text}<extra></extra>",
            )
        )
    floors = {row["id_floor"] for row in known if (row["id_floor"] or 0) > 0}
    for floor in floors if len(floors) == 1 else ():
        figure.add_vline(x=floor, line={"color": GREY, "width": 2, "dash": "dash"})
        figure.add_annotation(
            x=floor,
            y=1.06,
            text=f"ID floor {number(floor)}",
            showarrow=False,
            xanchor="right" if floor > 0.5 else "left",
            yanchor="bottom",
            yshift=2,
        )
    chosen = chosen_row(known) if any(row["ood"] for row in known) else None
    if chosen:
        _chosen(figure, chosen)
        keys.append(Key(f"recommended: {place_words(chosen)}", GREY, "none", "ring"))
    figure.update_layout(xaxis={**TICKS, "showgrid": True}, yaxis=TICKS)
    which = "no cell is there, so none is recommended"
    if chosen:
        which = "the recommended one is the highest of them on the half of the problems that chooses"
    caption = (
        f"<b>Look at</b> the cells right of the ID floor (filled): {which}. Drawn are accuracies on the other half, so "
        "that being chosen does not flatter. Cells below the floor on the half that chooses are hollow."
    )
    caption += " Bars at the recommended cell: 95 % over problems." if chosen else ""
    return Figure("trade-off", "What each place to stop gives", figure, caption, keys)


def _chosen(figure: go.Figure, row: Row) -> None:
    figure.add_trace(
        go.Scatter(
            x=[short(row["id"])],
            y=[short(row["ood"])],
            mode="markers",
            marker={"size": 20, "symbol": "circle-open", "color": GREY, "line": {"width": 2.5}},
            error_x=_bar(row, "id"),
            error_y=_bar(row, "ood") | {"color": GREY},
            hoverinfo="skip",
        )
    )


def _bar(row: Row, side: str) -> dict[str, object]:
    value, low, high = row[side], row[f"{side}_low"], row[f"{side}_high"]
    return {
        "type": "data",
        "array": [0.0 if high is None else short(high - value)],
        "arrayminus": [0.0 if low is None else short(value - low)],
        "thickness": 1.5,
        "width": 4,
    }


def _hover(row: Row, named: bool) -> str:
    which = f"{escape(Variant(row['recipe'], row['algorithm']).label)}, " if named else ""
    sure = "" if row["p_best"] is None else f"<br>taken in {100 * row['p_best']:.0f} % of the draws"
    return (
        f"{which}{place_words(row)}<br>OOD {number(row['ood'])}{interval(row['ood_low'], row['ood_high'])}"
        f"<br>ID {number(row['id'])}{interval(row['id_low'], row['id_high'])}{sure}"
    )
