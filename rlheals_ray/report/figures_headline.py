"""The headline figure: accuracy before and after RL over SFT steps, OOD beside ID."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from rlheals_ray.report.figures import (
    GREY,
    RL_ORANGE,
    RULE_NAME,
    SFT_BLUE,
    VERDICT_COLOUR,
    Figure,
    Key,
    accuracy_axis,
    axis,
    even_steps,
    panels,
    translucent,
)
from rlheals_ray.report.labels import Points, along, free_place
from rlheals_ray.report.results import Accuracies, Mean, Row
from rlheals_ray.report.words import interval, number

GAINS_AT = 1.13
"""Height of the row of gains, above accuracy 1."""

Means = Mapping[int, Mean]
"""SFT step -> mean over seeds."""


def headline(accuracies: Accuracies, cells: Sequence[Row], problems: Mapping[str, int]) -> Figure | None:
    """Accuracy@1 before and after RL over SFT steps, OOD left, ID right; None without trunk scores.

    `cells` are those of `healing_cells`; `problems` is how many problems each rule was probed on.
    """
    steps = sorted({*accuracies.sft_steps("ood"), *accuracies.sft_steps("id")})
    if not steps:
        return None
    titles = [RULE_NAME["ood"], RULE_NAME["id"]]
    figure = panels(titles, x="", y="accuracy at the first attempt", height=450)
    verdicts = {(row["sft_step"], row["rl_step"]): row["verdict"] for row in cells}
    for index, rule in enumerate(("ood", "id")):
        even_steps(figure, index, steps)
        accuracy_axis(figure, index, top=GAINS_AT + 0.09)
        panel = _Panel(figure, axis(index), {step: position for position, step in enumerate(steps)})
        trunk = {step: mean for step in steps if (mean := accuracies.mean(rule, step))}
        largest: dict[int, Mean] = {}
        best: dict[int, Mean] = {}
        budgets: dict[int, int] = {}
        for step in accuracies.starts(rule):
            means = {b: m for b in accuracies.rl_steps(rule, step) if (m := accuracies.mean(rule, step, b))}
            budgets[step] = max(means)
            largest[step] = means[budgets[step]]
            best[step] = max(means.values(), key=lambda mean: mean.value)
        panel.band(trunk, SFT_BLUE)
        panel.line(trunk, "after SFT", SFT_BLUE, "circle")
        sizes = {*budgets.values()}
        after = f"after {min(sizes)} RL updates" if len(sizes) == 1 else "after RL, largest budget"
        if largest:
            panel.line(largest, after, RL_ORANGE, "square")
            panel.diamonds({s: m for s, m in best.items() if m.value > largest[s].value + 0.005})
            mine = (
                {s: verdicts.get((s, budget), "") for s, budget in budgets.items()} if rule == "ood" else {}
            )
            panel.gains(trunk, largest, mine)
        panel.labels(trunk, largest, after)
    keys = [Key("after SFT", SFT_BLUE, symbol="circle")]
    keys += [Key(after, RL_ORANGE, symbol="square")] if largest else []
    title, caption = "What SFT loses and what RL wins back", _caption(accuracies, problems)
    return Figure("headline", title, figure, caption, keys)


def _caption(accuracies: Accuracies, problems: Mapping[str, int]) -> str:
    seeds = len(accuracies.seeds)
    counts = ", ".join(f"{rule.upper()} n = {count}" for rule, count in problems.items())
    marks, over = "Marks: the one seed", ""
    if seeds > 1:
        marks = f"Large marks: means of {seeds} seeds; small marks: single seeds"
        over = ", averaged over seeds and not narrowed by them, since all seeds answer the same problems"
    return (
        "<b>Look at</b> how far OOD accuracy (left) falls along SFT, blue, how much of it RL wins back, "
        "arrows up to orange, and from which SFT steps; then at what RL does to ID accuracy (right). Left, "
        "green arrows: verdict ‘heals’; purple: ‘harms’; grey: unclear. Right, always grey: no verdict. The "
        f"top row is the change, after RL − after SFT. {marks}; open diamonds: the best budget where it is "
        f"not the largest. Bars and band: 95 % Wilson intervals over problems{over}; they take problems for "
        f"independent. Problems: {counts}."
    )


class _Panel:
    """One panel under construction: a figure, its axes' suffix and the position of each SFT step."""

    def __init__(self, figure: go.Figure, suffix: str, at: Mapping[int, int]) -> None:
        self.figure = figure
        self.at = at
        self.axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        self.refs = {"xref": f"x{suffix}", "yref": f"y{suffix}"}

    def band(self, means: Means, colour: str) -> None:
        """The intervals as a band, so that a falling curve reads as one."""
        xs = [self.at[step] for step in means]
        lows, highs = _bounds(means)
        self.figure.add_trace(
            go.Scatter(
                x=xs + xs[::-1],
                y=highs + lows[::-1],
                fill="toself",
                fillcolor=translucent(colour, 0.14),
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                **self.axes,
            )
        )

    def line(self, means: Means, name: str, colour: str, symbol: str) -> None:
        """Means as a line with error bars; single seeds, where there are several, as small marks."""
        if any(len(mean.seeds) > 1 for mean in means.values()):
            self.figure.add_trace(
                go.Scatter(
                    x=[self.at[step] for step, mean in means.items() for _ in mean.seeds],
                    y=[value for mean in means.values() for _, value in mean.seeds],
                    text=[f"seed {seed}" for mean in means.values() for seed, _ in mean.seeds],
                    mode="markers",
                    marker={"size": 5, "color": colour, "opacity": 0.5},
                    hovertemplate=f"%{{text}}, {name}: %{{y:.2f}}<extra></extra>",
                    **self.axes,
                )
            )
        lows, highs = _bounds(means)
        self.figure.add_trace(
            go.Scatter(
                x=[self.at[step] for step in means],
                y=[mean.value for mean in means.values()],
                customdata=[_hover(step, mean) for step, mean in means.items()],
                mode="lines+markers",
                line={"color": colour, "width": 3},
                marker={"size": 9, "color": colour, "symbol": symbol},
                error_y={
                    "type": "data",
                    "array": [high - m.value for high, m in zip(highs, means.values(), strict=True)],
                    "arrayminus": [m.value - low for low, m in zip(lows, means.values(), strict=True)],
                    "color": colour,
                    "thickness": 1.5,
                    "width": 4,
                },
                hovertemplate=f"{name}, %{{customdata}}<extra></extra>",
                **self.axes,
            )
        )

    def diamonds(self, best: Means) -> None:
        """The best budget of the starts where a smaller one did better than the largest."""
        self.figure.add_trace(
            go.Scatter(
                x=[self.at[step] for step in best],
                y=[mean.value for mean in best.values()],
                mode="markers",
                marker={"symbol": "diamond-open", "size": 11, "color": RL_ORANGE, "line": {"width": 2}},
                hovertemplate="best RL budget: %{y:.2f}<extra></extra>",
                **self.axes,
            )
        )

    def gains(self, before: Means, after: Means, verdicts: Mapping[int, str]) -> None:
        """Arrows from SFT to RL, a little right of the marks, and the row of their lengths above."""
        shared = [step for step in after if step in before]
        for step in shared:
            change = after[step].value - before[step].value
            colour = VERDICT_COLOUR.get(verdicts.get(step, ""), GREY)
            self.figure.add_annotation(
                x=self.at[step],
                y=GAINS_AT,
                text=f"<b>{number(change, signed=True)}</b>",
                showarrow=False,
                font={"size": 11.5, "color": colour},
                name="gain",
                **self.refs,
            )
            if abs(change) >= 0.04:
                x = self.at[step] + 0.22
                self.figure.add_annotation(
                    x=x,
                    y=after[step].value,
                    ax=x,
                    ay=before[step].value,
                    axref=self.refs["xref"],
                    ayref=self.refs["yref"],
                    text="",
                    arrowhead=2,
                    arrowwidth=2.5,
                    arrowcolor=colour,
                    **self.refs,
                )
        if shared:
            self.figure.add_annotation(
                x=0,
                y=GAINS_AT,
                xref=f"{self.refs['xref']} domain",
                yref=self.refs["yref"],
                text="change",
                showarrow=False,
                xanchor="right",
                xshift=-1,
                font={"size": 11},
            )

    def labels(self, trunk: Means, healed: Means, healed_name: str) -> None:
        """Names beside the lines, clear of marks, intervals, arrows and each other."""
        lines = {"after SFT": (trunk, SFT_BLUE), healed_name: (healed, RL_ORANGE)}
        drawn = {name: self._along(means) for name, (means, _) in lines.items() if means}
        bars = [self._bars(means) for means, _ in lines.values()]
        arrows = [
            along([self.at[step] + 0.22] * 2, [trunk[step].value, healed[step].value])
            for step in healed
            if step in trunk
        ]
        placed: list[Points] = []
        low, high = np.array([-0.6, -0.02]), np.array([len(self.at) - 0.35, GAINS_AT - 0.03])
        for name, line in drawn.items():
            others = [points for other, points in drawn.items() if other != name]
            # 8 pixels a letter on a panel 440 wide; 9 pixels half a line on one 330 high.
            half = (4 * len(name) * len(self.at) / 440, 9 * (GAINS_AT + 0.13) / 330)
            x, y = free_place(line, [*others, *bars, *arrows, *placed], half, (low, high))
            placed += [along([x - half[0], x + half[0]], [row, row]) for row in (y - half[1], y, y + half[1])]
            font = {"color": lines[name][1], "size": 14}
            self.figure.add_annotation(
                x=x, y=y, text=f"<b>{name}</b>", showarrow=False, font=font, name="label", **self.refs
            )

    def _along(self, means: Means) -> Points:
        return along([self.at[step] for step in means], [mean.value for mean in means.values()])

    def _bars(self, means: Means) -> Points:
        """Ends of the intervals and single seeds."""
        spots = [
            (self.at[step], value)
            for step, mean in means.items()
            for value in (mean.low, mean.high, *(seed for _, seed in mean.seeds))
            if value is not None
        ]
        return np.array(spots, dtype=np.float64).reshape(-1, 2)


def _bounds(means: Means) -> tuple[list[float], list[float]]:
    lows = [mean.value if mean.low is None else mean.low for mean in means.values()]
    return lows, [mean.value if mean.high is None else mean.high for mean in means.values()]


def _hover(step: int, mean: Mean) -> str:
    over = f"; over seeds{interval(mean.seed_low, mean.seed_high)}" if mean.seed_low is not None else ""
    return f"SFT step {step}: {number(mean.value)}{interval(mean.low, mean.high)} over problems{over}"
