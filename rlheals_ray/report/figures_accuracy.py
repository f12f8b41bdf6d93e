"""Figures of accuracy: the map of healing, and attempts and form along SFT."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from rlheals_ray.report.figures import (
    DIVERGING,
    GREEN,
    PURPLE,
    RULE_NAME,
    SFT_BLUE,
    VERDICT_MARK,
    Figure,
    Key,
    accuracy_axis,
    axis,
    even_steps,
    panels,
)
from rlheals_ray.report.results import Accuracies, Row
from rlheals_ray.report.words import interval, number


def healing_map(cells: Sequence[Row], title: str, name: str) -> Figure | None:
    """SFT step down, RL budget across; each cell its healing, its interval over problems and its verdict."""
    if not cells:
        return None
    figure = _maps([("", list(cells))], with_interval=True, columns=1)
    figure.layout.meta["widest"] = 300 + 170 * len({row["rl_step"] for row in cells})
    caption = (
        "<b>Look at</b> where the green begins and where it ends: the two sides of the recovery boundary. "
        "Each cell is OOD accuracy after RL minus that of the SFT checkpoint it branched from, with its 95 % "
        "interval over these probe problems (bootstrap, paired, whole multisets of cards resampled). ▲ "
        "heals, ▼ harms, · unclear: verdicts at q &lt; .05 (Benjamini-Hochberg). Intervals over seeds stand "
        "in the table below."
    )
    return Figure(name, title, figure, caption)


def seed_maps(boundary: Sequence[Row]) -> Figure | None:
    """The same map for every seed on its own; None where fewer than two seeds have one."""
    rows = [r for r in boundary if r["scope"] == "seed" and r["rule"] == "ood" and r["rl_step"]]
    rows = [r for r in rows if r["healing"] is not None]
    seeds = sorted({row["seed"] for row in rows if row["seed"] is not None})
    if len(seeds) < 2:
        return None
    figure = _maps(
        [(f"seed {s}", [r for r in rows if r["seed"] == s]) for s in seeds], with_interval=False, columns=3
    )
    caption = (
        "<b>Look at</b> whether the seeds agree in sign, cell by cell. Verdicts per seed: exact McNemar on "
        "the same problems, Benjamini-Hochberg over that seed's cells."
    )
    return Figure("healing-seeds", "Healing, seed by seed", figure, caption)


def _maps(parts: Sequence[tuple[str, list[Row]]], *, with_interval: bool, columns: int) -> go.Figure:
    every = [row for _, rows in parts for row in rows]
    limit = max(0.2, *(abs(row["healing"]) for row in every))
    sft_steps, budgets = sorted({r["sft_step"] for r in every}), sorted({r["rl_step"] for r in every})
    row_height, narrowest = (46 if with_interval else 30), (300 if with_interval else 220)
    figure = panels(
        [title for title, _ in parts],
        x="RL updates",
        y="SFT steps before RL",
        height=110 + row_height * len(sft_steps),
        columns=columns,
        narrowest=narrowest,
    )
    for index, (_, rows) in enumerate(parts):
        cell = {(row["sft_step"], row["rl_step"]): row for row in rows}
        grid = [[cell.get((step, budget)) for budget in budgets] for step in sft_steps]
        suffix = axis(index)
        figure.add_trace(
            go.Heatmap(
                z=[[row and row["healing"] for row in line] for line in grid],
                x=[str(budget) for budget in budgets],
                y=[str(step) for step in sft_steps],
                text=[[_cell_text(row, with_interval) for row in line] for line in grid],
                texttemplate="%{text}",
                textfont={"size": 14 if with_interval else 13},
                colorscale=DIVERGING,
                zmin=-limit,
                zmax=limit,
                zmid=0,
                showscale=False,
                xgap=2,
                ygap=2,
                hovertemplate="SFT %{y}, RL %{x}: healing %{z:+.3f}<extra></extra>",
                xaxis=f"x{suffix}",
                yaxis=f"y{suffix}",
            )
        )
        category = {"type": "category", "showgrid": False, "ticks": ""}
        figure.update_layout(
            {f"xaxis{suffix}": category, f"yaxis{suffix}": {**category, "autorange": "reversed"}}
        )
    return figure


def _cell_text(row: Row | None, with_interval: bool) -> str:
    if row is None:
        return ""
    value = f"<b>{number(row['healing'], signed=True)}</b> {VERDICT_MARK.get(row['verdict'] or '', '')}"
    bounds = interval(row["healing_low"], row["healing_high"]).strip()
    return f"{value}<br><span style='font-size:11px'>{bounds}</span>" if with_interval and bounds else value


def curves(accuracies: Accuracies) -> Figure | None:
    """First-attempt accuracy, k-attempt accuracy and malformed share along SFT, both rules."""
    steps = sorted({*accuracies.sft_steps("ood"), *accuracies.sft_steps("id")})
    if not steps:
        return None
    at = {step: position for position, step in enumerate(steps)}
    figure = panels([RULE_NAME["ood"], RULE_NAME["id"]], x="SFT steps", y="share of problems")
    lines = (
        ("acc_1", "solved at the first attempt", SFT_BLUE, "solid", "circle"),
        ("acc_k", "solved within k attempts", GREEN, "dash", "triangle-up"),
        ("malformed", "malformed answers", PURPLE, "dot", "x"),
    )
    for index, rule in enumerate(("ood", "id")):
        even_steps(figure, index, steps)
        accuracy_axis(figure, index)
        for column, name, colour, dash, symbol in lines:
            means = {step: mean for step in steps if (mean := accuracies.mean(rule, step, column=column))}
            figure.add_trace(
                go.Scatter(
                    x=[at[step] for step in means],
                    y=[mean.value for mean in means.values()],
                    mode="lines+markers",
                    line={"color": colour, "width": 2.5, "dash": dash},
                    marker={"size": 8, "color": colour, "symbol": symbol},
                    hovertemplate=f"{name}: %{{y:.2f}}<extra></extra>",
                    xaxis=f"x{axis(index)}",
                    yaxis=f"y{axis(index)}",
                )
            )
    caption = (
        "<b>Look at</b> whether lost OOD accuracy is lost form (malformed rises) or lost content (it does "
        "not), and whether further attempts with feedback win it back. Means over seeds."
    )
    keys = [Key(name, colour, dash) for _, name, colour, dash, _ in lines]
    return Figure("curves", "Attempts and form along SFT", figure, caption, keys)
