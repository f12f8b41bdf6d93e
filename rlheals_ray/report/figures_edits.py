"""Figures of edits: accuracy beside every control, and along what a grid of edits varies (t, k, layers, ...)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from rlheals_ray.report.edits import Bar, EditGroup, EditSeries, chosen_words, layer_label, rows_along
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
    accuracy_axis,
    axis,
    panels,
    short,
    switched,
)
from rlheals_ray.report.layout import Table
from rlheals_ray.report.words import interval, number

VIOLET, OCHRE = "#8B7BD8", "#9A7200"
BARS = (
    ("recipient", "recipient", GREY),
    ("donor", "donor", SFT_BLUE),
    ("edit", "edit", RL_ORANGE),
    ("weight_swap", "weight swap", GREEN),
    ("interpolation", "interpolation, equal ‖ΔW‖", PURPLE),
    ("random_angle", "random rotation, equal angle", VIOLET),
    ("random_norm", "random change, equal norm", OCHRE),
)
DASHES = {"weight_swap": "dash", "interpolation": "dashdot", "random_angle": "dot", "random_norm": "dash"}
SYMBOLS = {
    "edit": "circle", "weight_swap": "square", "interpolation": "diamond", "random_angle": "triangle-up",
    "random_norm": "triangle-down",
}  # fmt: skip
MOST_VIEWS = 8
TITLES = {
    "t": ("Dose-response: how far to turn", "t, share of the way (0: the recipient)"),
    "k": ("How many singular directions", "k, singular directions"),
    "layers": ("Which layers", "layers edited"),
    "roles": ("Which matrices", "matrices edited"),
    "mode": ("Which way of joining", "mode"),
}


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
        f"Problems: {', '.join(counts) or 'unknown'}.{goes}{chosen_words([group])}"
    )
    return Figure(f"edit-{index}", group.label[0].upper() + group.label[1:], figure, caption)


def along(groups: Sequence[EditGroup], varied: str, explain: bool = True) -> Figure | None:
    """Accuracy of edits and controls along one axis of the grid, with projection and residual beside it.

    One view for each family of edits that differ in `varied` alone, `MOST_VIEWS` at most. None where no two
    edits differ so. `explain`: whether the caption says what every mark is.
    """
    families = rows_along(groups, varied)
    if not families:
        return None
    title, x = TITLES[varied]
    plots: dict[str, go.Figure] = {}
    for family in families[:MOST_VIEWS]:
        plots[_distinct(family.label, plots)] = _family(family, x)
    kinds = {kind for family in families for group in family.groups for kind in group.bars["ood"]}
    cut = ""
    if len(families) > MOST_VIEWS:
        cut = f" {MOST_VIEWS} of {len(families)} families are drawn, the longest first; edits.parquet holds all."
    caption = (
        "<b>Look at</b> whether the edit (orange) stands above its controls and how it moves from the recipient "
        "(grey line) to the donor (blue line). "
    )
    if explain:
        caption += (
            "Controls belong to the same point: the plain weight swap of the same matrices, interpolation with the "
            "edit’s ‖ΔW‖, a random rotation of the edit’s angle (which goes further in ‖ΔW‖: it turns directions of "
            "unlike σ into one another) and a random change of its norm. Bars: 95 % Wilson intervals "
            "over problems, averaged over seeds. Right: how much of donor − recipient the edit puts in "
            "(projection, filled) and how much it does besides (residual, dashed, open)."
        )
    caption += cut + chosen_words(group for family in families for group in family.groups)
    keys = [Key(words, colour, DASHES.get(kind, "solid")) for kind, words, colour in BARS if kind in kinds]
    return switched(f"edits-{varied}", title, plots, caption, keys=keys)


def _distinct(label: str, taken: Mapping[str, go.Figure]) -> str:
    return label if label not in taken else f"{label} ({len(taken) + 1})"


def _family(family: EditSeries, x: str) -> go.Figure:
    figure = panels(
        [RULE_NAME["ood"], RULE_NAME["id"], "Projection and residual"],
        x=x,
        y=["accuracy@1", "accuracy@1", "share of ‖donor − recipient‖"],
        height=380,
        columns=3,
        narrowest=330,
    )
    dose = family.axis == "t"
    ordered = family.axis in ("t", "k")
    spots = [group.t if dose else float(i) for i, group in enumerate(family.groups)]
    gap = (max(spots) - min(spots)) / max(1, len(spots) - 1) * 0.06
    for index, rule in enumerate(("ood", "id")):
        place = {"xaxis": f"x{axis(index)}", "yaxis": f"y{axis(index)}"}
        accuracy_axis(figure, index, top=1.05)
        for end, colour in (("recipient", GREY), ("donor", SFT_BLUE)):
            known = [bar for group in family.groups if (bar := group.bars[rule].get(end))]
            if known:
                _reference(figure, index, known[0], colour)
        for offset, (kind, words, colour) in enumerate(BARS[2:]):
            points = [
                (spot + (offset - 2) * gap, bar)
                for spot, group in zip(spots, family.groups, strict=True)
                if (bar := group.bars[rule].get(kind))
            ]
            if kind == "edit" and dose and points and (start := family.groups[0].bars[rule].get("recipient")):
                points = [(0.0, start), *points]
            trace = _with_intervals(points, kind, words, colour, place)
            figure.add_trace(trace if ordered else trace.update(mode="markers"))
    for name, dash in (("projection", "solid"), ("residual", "dash")):
        for kind, words, colour in reversed(BARS[2:]):  # the edit last, on top
            shown = [
                (spot, value)
                for spot, group in zip(spots, family.groups, strict=True)
                if kind in group.ways and (value := getattr(group.ways[kind], name)) is not None
            ]
            if kind not in ("edit", "interpolation") or not shown:
                continue
            figure.add_trace(
                go.Scatter(
                    x=[spot for spot, _ in shown],
                    y=[short(value) for _, value in shown],
                    mode="lines+markers" if ordered else "markers",
                    line={"color": colour, "width": 2 if kind == "edit" else 4, "dash": dash},
                    marker={
                        "size": 7 if kind == "edit" else 11,
                        "color": colour,
                        "symbol": SYMBOLS[kind] if name == "projection" else f"{SYMBOLS[kind]}-open",
                    },
                    hovertemplate=f"{words}: {name} %{{y:.3f}}<extra></extra>",
                    xaxis="x3",
                    yaxis="y3",
                )
            )
    figure.update_layout(yaxis3={"rangemode": "tozero"})
    if dose:
        ticks = {"tickvals": sorted({0.0, *spots}), "ticktext": [f"{t:g}" for t in sorted({0.0, *spots})]}
        ticks |= {"range": [-0.06, max(spots) + 0.06]}
    else:
        ticks = {"tickvals": spots, "ticktext": [_tick(family.axis, group) for group in family.groups]}
        ticks |= {"range": [-0.5, len(spots) - 0.5]}
    for index in range(3):
        figure.update_layout({f"xaxis{axis(index)}": {**ticks, "tickangle": 0}})
    return figure


def _tick(varied: str, group: EditGroup) -> str:
    if varied == "k":
        return (
            "all"
            if group.k is None
            else f"{100 * group.k:g}%"
            if isinstance(group.k, float)
            else str(group.k)
        )
    if varied == "layers":
        return layer_label(group.layers).removeprefix("layers ").removeprefix("layer ").replace(" to ", "–")
    return "<br>".join(group.roles) if varied == "roles" else str(group.coordinate(varied))


def _reference(figure: go.Figure, index: int, bar: Bar, colour: str) -> None:
    """A level line across the panel: the recipient's or the donor's accuracy."""
    figure.add_shape(
        type="line",
        x0=0,
        x1=1,
        xref=f"x{axis(index)} domain",
        y0=bar.value,
        y1=bar.value,
        yref=f"y{axis(index)}",
        line={"color": colour, "width": 2},
        layer="below",
    )


def _with_intervals(
    points: Sequence[tuple[float, Bar]], kind: str, words: str, colour: str, place: Mapping[str, str]
) -> go.Scatter:
    tops = [bar.value if bar.high is None else bar.high for _, bar in points]
    lows = [bar.value if bar.low is None else bar.low for _, bar in points]
    return go.Scatter(
        x=[short(spot) for spot, _ in points],
        y=[short(bar.value) for _, bar in points],
        mode="lines+markers",
        line={"color": colour, "width": 3 if kind == "edit" else 1.5, "dash": DASHES.get(kind, "solid")},
        marker={"size": 9 if kind == "edit" else 7, "color": colour, "symbol": SYMBOLS[kind]},
        error_y={
            "type": "data",
            "array": [short(top - bar.value) for top, (_, bar) in zip(tops, points, strict=True)],
            "arrayminus": [short(bar.value - low) for low, (_, bar) in zip(lows, points, strict=True)],
            "color": colour,
            "thickness": 1.2,
            "width": 3,
        },
        hovertemplate=f"{words}: %{{y:.3f}}<extra></extra>",
        **place,
    )


def edit_table(groups: Sequence[EditGroup]) -> Table:
    """Every edit in numbers: OOD accuracy beside its controls, and how far it goes."""
    kinds = [(kind, words) for kind, words, _ in BARS if any(kind in group.bars["ood"] for group in groups)]
    heads = (
        "edit",
        "n",
        *(words for _, words in kinds),
        "projection",
        "residual",
        "least σ of mixed basis",
        "‖ΔW‖",
    )
    lines = []
    for group in groups:
        bars, way = group.bars["ood"], group.ways.get("edit")
        accuracies = [
            number(bars[kind].value) + interval(bars[kind].low, bars[kind].high) if kind in bars else "–"
            for kind, _ in kinds
        ]
        moved = ["–" if way is None or value is None else f"{value:.3g}" for value in way or (None,) * 4]
        lines.append(
            (group.label, str(next(iter(bars.values())).n or "–") if bars else "–", *accuracies, *moved)
        )
    return Table("Every edit, OOD accuracy@1 with 95 % Wilson intervals", heads, lines)
