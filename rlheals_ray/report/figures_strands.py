"""Figures that lay variants side by side: accuracy along SFT, healing by start, and where the boundary lies."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from rlheals_ray.report.edges import between, largest, steps_interval
from rlheals_ray.report.figures import (
    RULE_NAME,
    Figure,
    Key,
    Marks,
    accuracy_axis,
    difference_axis,
    even_steps,
    interval_marks,
    panels,
    side_by_side,
    step_line,
    zero_line,
)
from rlheals_ray.report.results import Row
from rlheals_ray.report.strands import Strand
from rlheals_ray.report.words import interval, number


def keys_of(strands: Sequence[Strand], line: bool = True) -> list[Key]:
    return [Key(one.name, one.colour, one.dash if line else "none", one.symbol) for one in strands]


def along_sft(strands: Sequence[Strand], what: str) -> Figure | None:
    """OOD and ID accuracy@1 along SFT, a line for each strand; None without trunk scores."""
    steps = sorted({s for one in strands for rule in ("ood", "id") for s in one.accuracies.sft_steps(rule)})
    if not steps:
        return None
    at = {step: position for position, step in enumerate(steps)}
    figure = panels([RULE_NAME["ood"], RULE_NAME["id"]], x="", y="accuracy at the first attempt", height=380)
    for index, rule in enumerate(("ood", "id")):
        even_steps(figure, index, steps)
        accuracy_axis(figure, index)
        for one in strands:
            means = {step: one.accuracies.mean(rule, step) for step in steps}
            points = {step: [value for _, value in mean.seeds] for step, mean in means.items() if mean}
            step_line(
                figure, index, at, points, escape(one.name), one.colour, one.symbol, "", one.dash, marked=True
            )
    caption = (
        f"<b>Look at</b> whether the curves of each {what} peak at the same SFT step and fall equally far (left), and "
        "at what that costs in ID accuracy (right). Large marks: means over seeds; small marks: single seeds. Steps "
        "are counted alike, whatever a step of each costs."
    )
    return Figure("along-sft", f"Accuracy along SFT, by {what}", figure, caption, keys_of(strands))


def healing_by_start(strands: Sequence[Strand], what: str) -> Figure | None:
    """Healing at each strand's largest budget by the SFT step that RL starts from, with paired intervals."""
    largest_cells: list[tuple[Strand, list[Row]]] = []
    for one in strands:
        budget = max((row["rl_step"] for row in one.cells), default=0)
        largest_cells.append((one, [row for row in one.cells if row["rl_step"] == budget]))
    steps = sorted({row["sft_step"] for _, rows in largest_cells for row in rows})
    if not steps:
        return None
    figure = panels([""], x="", y="healing: OOD after RL − before", columns=1, height=360)
    even_steps(figure, 0, steps)
    figure.update_layout(xaxis_title_text="SFT steps before RL (evenly spaced)")
    at = {step: position for position, step in enumerate(steps)}
    series = []
    for (one, rows), offset in zip(largest_cells, side_by_side(len(strands)), strict=True):
        marks = Marks(
            [at[row["sft_step"]] + offset for row in rows],
            [row["healing"] for row in rows],
            [row["healing_low"] for row in rows],
            [row["healing_high"] for row in rows],
            [
                f"{escape(one.name)}, SFT {row['sft_step']} + RL {row['rl_step']}: "
                f"{number(row['healing'], signed=True)}{interval(row['healing_low'], row['healing_high'])}, "
                f"{row['verdict'] or 'no verdict'}"
                for row in rows
            ],
        )
        interval_marks(
            figure, 0, marks, one.colour, one.symbol, [row["verdict"] == "unclear" for row in rows]
        )
        series.append(marks)
    zero_line(figure, 0)
    difference_axis(figure, 0, series)
    budgets = "; ".join(
        f"{escape(one.name)} {max((row['rl_step'] for row in rows), default=0)}"
        for one, rows in largest_cells
    )
    caption = (
        f"<b>Look at</b> from which SFT steps RL heals under each {what}: filled marks have a verdict (q &lt; .05 and "
        "every seed agreeing in sign), hollow ones are unclear. Bars: 95 % over problems, paired with the same "
        f"checkpoint before RL. RL updates: {budgets}."
    )
    title = f"Where RL heals, by {what}"
    return Figure("healing-by-start", title, figure, caption, keys_of(strands, line=False))


NO_EDGE = "an edge of the boundary: RL heals from no SFT step tried, or edges.parquet has no rows."
"""What stands in the place of `edge_ranges` where there is none."""


def edge_ranges(strands: Sequence[Strand], what: str) -> Figure | None:
    """Each strand's window of healing SFT steps, and the intervals of its two edges; None without any edge."""
    drawn = [(one, {row["edge"]: row for row in largest(one.edges)}) for one in strands]
    drawn = [(one, pair) for one, pair in drawn if pair]
    if not any(row["step"] is not None for _, pair in drawn for row in pair.values()):
        return None
    names = ("step", "next_step", "step_low", "step_high")
    known = {row[n] for _, pair in drawn for row in pair.values() for n in names if row[n] is not None}
    steps = sorted(known | {row["sft_step"] for one, _ in drawn for row in one.cells})
    at = {step: float(position) for position, step in enumerate(steps)}
    figure = panels([""], x="", y="", columns=1, height=140 + 56 * len(drawn))
    even_steps(figure, 0, steps)
    for line, (one, pair) in enumerate(drawn):
        ends = [row for edge in ("lower", "upper") if (row := pair.get(edge)) and row["step"] is not None]
        if not ends:
            figure.add_annotation(x=(len(steps) - 1) / 2, y=line, text="nothing heals", showarrow=False)
        figure.add_trace(
            go.Scatter(
                x=[at[row["step"]] for row in ends],
                y=[line] * len(ends),
                mode="lines",
                line={"color": one.colour, "width": 7},
                hoverinfo="skip",
            )
        )
        for shift, row in zip((0.2, -0.2), ends, strict=False):
            _edge(figure, one, row, line, line + shift, at)
    figure.update_layout(
        xaxis_title_text="SFT steps before RL",
        yaxis={
            "tickvals": list(range(len(drawn))),
            "ticktext": [escape(_wrapped(one.name)).replace("\n", "<br>") for one, _ in drawn],
            "range": [len(drawn) - 0.4, -0.6],
            "showgrid": False,
        },
    )
    figure.layout.meta["labels"] = 7 * max(
        len(part) for one, _ in drawn for part in _wrapped(one.name).split("\n")
    )
    caption = (
        f"<b>Look at</b> whether the thick bar, the SFT steps from which RL heals, moves with the {what}. Thin bars: "
        "95 % intervals of its two ends over problems (bootstrap of the verdicts); an edge lies somewhere between the "
        "mark and the next step that was tried, the open circle. At the largest budget at which anything heals."
    )
    return Figure("edges", f"The recovery boundary, by {what}", figure, caption)


def _wrapped(name: str, width: int = 16) -> str:
    """A name in lines of about `width` letters."""
    lines = [""]
    for word in name.split(" "):
        joined = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], joined] if len(joined) <= width or not lines[-1] else [*lines, word]
    return "\n".join(lines)


def _edge(figure: go.Figure, one: Strand, row: Row, line: float, beside: float, at: dict[int, float]) -> None:
    over = steps_interval(row["step_low"], row["step_high"])
    if row["step_low"] is not None and row["step_high"] is not None:
        figure.add_trace(
            go.Scatter(
                x=[at[row["step_low"]], at[row["step_high"]]],
                y=[beside, beside],
                mode="lines+markers",
                line={"color": one.colour, "width": 2},
                marker={"symbol": "line-ns-open", "size": 10, "color": one.colour, "line": {"width": 2}},
                hovertemplate=f"{row['edge']} edge: 95 % over problems{over}<extra></extra>",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=[at[row["step"]]],
            y=[line],
            mode="markers",
            marker={"size": 12, "color": one.colour, "symbol": one.symbol},
            hovertemplate=f"{escape(one.name)}: {row['edge']} edge {between(row)}{over}<extra></extra>",
        )
    )
    if row["next_step"] is not None:
        figure.add_trace(
            go.Scatter(
                x=[at[row["next_step"]]],
                y=[line],
                mode="markers",
                marker={"size": 10, "color": one.colour, "symbol": "circle-open", "line": {"width": 2}},
                hovertemplate=f"tried at SFT {row['next_step']}: does not heal<extra></extra>",
            )
        )
