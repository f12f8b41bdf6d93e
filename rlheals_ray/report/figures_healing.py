"""The map of healing: of a study, seed by seed, and of several variants on one colour scale."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import plotly.graph_objects as go

from rlheals_ray.report.figures import DIVERGING, GREY, VERDICT_MARK, Figure, axis, panels
from rlheals_ray.report.results import Row
from rlheals_ray.report.unfinished import MARK, Gap
from rlheals_ray.report.words import interval, listed, number

LETTER = {"failed": "✕", "stopped": "□", "waiting": "○"}
MARKS = "▲ heals, ▼ harms, · unclear: verdicts at q &lt; .05 (Benjamini-Hochberg). "


class Panel(NamedTuple):
    title: str
    cells: Sequence[Row]
    gaps: Sequence[Gap]


def healing_map(cells: Sequence[Row], title: str, name: str, gaps: Sequence[Gap] = ()) -> Figure | None:
    """SFT step down, RL budget across; each cell its healing, its interval over problems and its verdict.

    `gaps`: cells that a branch never reached; they are marked, with the cause on hover.
    """
    if not cells and not gaps:
        return None
    figure = _maps([Panel("", cells, gaps)], with_interval=True, columns=1)
    figure.layout.meta["widest"] = 300 + 170 * len(
        {row["rl_step"] for row in cells} | {g.rl_step for g in gaps}
    )
    caption = (
        "<b>Look at</b> where the green begins and where it ends: the two sides of the recovery boundary. "
        "Each cell is OOD accuracy after RL minus that of the SFT checkpoint it branched from, with its 95 % "
        f"interval over these probe problems (bootstrap, paired, whole multisets of cards resampled). {MARKS}"
        f"Intervals over seeds stand in the table below.{_gap_words([gaps])}"
    )
    return Figure(name, title, figure, caption)


def seed_maps(boundary: Sequence[Row], gaps: Sequence[Gap] = ()) -> Figure | None:
    """The same map for every seed on its own; None where fewer than two seeds have one."""
    rows = [r for r in boundary if r["scope"] == "seed" and r["rule"] == "ood" and r["rl_step"]]
    rows = [r for r in rows if r["healing"] is not None]
    seeds = sorted({row["seed"] for row in rows if row["seed"] is not None})
    if len(seeds) < 2:
        return None
    parts = [
        Panel(f"seed {s}", [r for r in rows if r["seed"] == s], [gap for gap in gaps if s in gap.seeds])
        for s in seeds
    ]
    caption = (
        "<b>Look at</b> whether the seeds agree in sign, cell by cell. Verdicts per seed: exact McNemar on "
        f"the same problems, Benjamini-Hochberg over that seed's cells.{_gap_words([p.gaps for p in parts])}"
    )
    figure = _maps(parts, with_interval=False, columns=3)
    return Figure("healing-seeds", "Healing, seed by seed", figure, caption)


def maps_beside(parts: Sequence[Panel], title: str) -> Figure | None:
    """Maps of several variants or studies, over the same axes and on one colour scale; None where all are empty."""
    known = [part for part in parts if part.cells or part.gaps]
    if not known:
        return None
    figure = _maps(known, with_interval=True, columns=2)
    caption = (
        "<b>Look at</b> where the green begins and ends in each map: one colour scale, and every SFT step and RL "
        f"budget of any of them; an empty cell without a mark was not part of that study. {MARKS}Brackets: 95 % over "
        f"problems.{_gap_words([part.gaps for part in known])}"
    )
    return Figure("healing-beside", title, figure, caption)


def _gap_words(gaps: Sequence[Sequence[Gap]]) -> str:
    statuses = {gap.status for some in gaps for gap in some}
    shown = [f"{LETTER[status]} {status}" for status in LETTER if status in statuses]
    return (
        f" A branch that never got there is marked: {listed(shown)}; point at the mark for why."
        if shown
        else ""
    )


def _maps(parts: Sequence[Panel], *, with_interval: bool, columns: int) -> go.Figure:
    cells = [row for part in parts for row in part.cells]
    gaps = [gap for part in parts for gap in part.gaps]
    limit = max([0.2, *(abs(row["healing"]) for row in cells)])
    sft_steps = sorted({r["sft_step"] for r in cells} | {gap.sft_step for gap in gaps})
    budgets = sorted({r["rl_step"] for r in cells} | {gap.rl_step for gap in gaps})
    places = {(row["sft_step"], row["rl_step"]) for row in cells}
    partly = with_interval and any((gap.sft_step, gap.rl_step) in places for gap in gaps)
    narrowest = (340 if len(parts) > 1 else 300) if with_interval else 220
    figure = panels(
        [escape(part.title) for part in parts],
        x="RL updates",
        y="SFT steps before RL",
        height=110 + ((62 if partly else 46) if with_interval else 30) * len(sft_steps),
        columns=columns,
        narrowest=narrowest,
    )
    for index, part in enumerate(parts):
        cell = {(row["sft_step"], row["rl_step"]): row for row in part.cells}
        gap = {(one.sft_step, one.rl_step): one for one in part.gaps}
        grid = [[(step, budget) for budget in budgets] for step in sft_steps]
        suffix = axis(index)
        figure.add_trace(
            go.Heatmap(
                z=[[cell[at]["healing"] if at in cell else None for at in line] for line in grid],
                x=[str(budget) for budget in budgets],
                y=[str(step) for step in sft_steps],
                text=[[_cell_text(cell.get(at), gap.get(at), with_interval) for at in line] for line in grid],
                customdata=[[f"<br>{gap[at].hover}" if at in gap else "" for at in line] for line in grid],
                texttemplate="%{text}",
                textfont={"size": 14 if with_interval else 13},
                colorscale=DIVERGING,
                zmin=-limit,
                zmax=limit,
                zmid=0,
                showscale=False,
                xgap=2,
                ygap=2,
                hoverongaps=False,
                hovertemplate="SFT %{y}, RL %{x}: healing %{z:+.3f}%{customdata}<extra></extra>",
                xaxis=f"x{suffix}",
                yaxis=f"y{suffix}",
            )
        )
        _mark(figure, suffix, [one for at, one in gap.items() if at not in cell])
        category = {"type": "category", "showgrid": False, "ticks": ""}
        figure.update_layout(
            {f"xaxis{suffix}": category, f"yaxis{suffix}": {**category, "autorange": "reversed"}}
        )
    return figure


def _mark(figure: go.Figure, suffix: str, gaps: Sequence[Gap]) -> None:
    """A symbol and a word in each cell that has no value, since a blank would say that nothing was to be there."""
    if not gaps:
        return
    figure.add_trace(
        go.Scatter(
            x=[str(gap.rl_step) for gap in gaps],
            y=[str(gap.sft_step) for gap in gaps],
            mode="markers+text",
            marker={
                "symbol": [f"{MARK[gap.status]}-open" for gap in gaps],
                "size": 9,
                "color": GREY,
                "line": {"width": 2},
            },
            text=[f"  {gap.status}" for gap in gaps],
            textposition="middle right",
            customdata=[gap.hover for gap in gaps],
            hovertemplate="SFT %{y}, RL %{x}: no result<br>%{customdata}<extra></extra>",
            xaxis=f"x{suffix}",
            yaxis=f"y{suffix}",
            meta="gap",
        )
    )


def _cell_text(row: Row | None, gap: Gap | None, with_interval: bool) -> str:
    if row is None:
        return ""
    value = f"<b>{number(row['healing'], signed=True)}</b> {VERDICT_MARK.get(row['verdict'] or '', '')}"
    bounds = interval(row["healing_low"], row["healing_high"]).strip()
    if not with_interval:
        return value
    text = f"{value}<br><span style='font-size:11px'>{bounds}</span>" if bounds else value
    if gap is not None:
        seeds = listed(seed for seed in gap.seeds if seed is not None)
        text += f"<br><span style='font-size:11px'>{LETTER[gap.status]} without seed {seeds}</span>"
    return text
