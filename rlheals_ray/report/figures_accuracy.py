"""The figure of attempts and form along SFT."""

from __future__ import annotations

import plotly.graph_objects as go

from rlheals_ray.report.figures import (
    GREEN,
    PURPLE,
    RULE_NAME,
    SFT_BLUE,
    Figure,
    Key,
    accuracy_axis,
    axis,
    even_steps,
    panels,
)
from rlheals_ray.report.results import Accuracies


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
