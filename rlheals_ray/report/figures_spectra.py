"""Figure of spectra laid over one another: the singular values of base, peak, latest and after RL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import get_args

import plotly.graph_objects as go
import pyarrow as pa

from rlheals_ray.config.fields import Role
from rlheals_ray.report.comparisons import Story, checkpoint_label
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
)

Spectrum = Mapping[int, float]
"""Index from 1 -> mean singular value."""
DASHES = ("solid", "dash", "dot", "dashdot", "solid")
COLOURS = (GREY, SFT_BLUE, PURPLE, RL_ORANGE, GREEN)


def overlays(singular_values: pa.Table, stories: Sequence[Story]) -> Figure | None:
    """σ against its index, one panel per role, one line per checkpoint of the stories; and σ over the first's.

    Means over layers and seeds. None without singular values.
    """
    checkpoints = _checkpoints(stories)
    wanted = {(seed, name): label for label, names in checkpoints.items() for seed, name in names}
    gathered: dict[str, dict[str, dict[int, list[float]]]] = {}
    table = singular_values.select(["seed", "checkpoint", "role", "index", "sigma"])
    grouped = table.group_by(["seed", "checkpoint", "role", "index"], use_threads=False)
    for row in grouped.aggregate([("sigma", "mean")]).to_pylist():
        label = wanted.get((row["seed"], row["checkpoint"])) or wanted.get((None, row["checkpoint"]))
        if label and row["role"] and row["sigma_mean"] is not None:
            own = gathered.setdefault(row["role"], {}).setdefault(label, {})
            own.setdefault(row["index"], []).append(row["sigma_mean"])
    roles = [role for role in get_args(Role) if role in gathered]
    if not roles:
        return None
    spectra = {
        role: {
            label: {i: fmean(gathered[role][label][i]) for i in sorted(gathered[role][label])}
            for label in checkpoints
            if label in gathered[role]
        }
        for role in roles
    }
    labels = [label for label in checkpoints if any(label in spectra[role] for role in roles)]
    plots = {"singular values": _plot(spectra, labels, relative=False)}
    if len(labels) > 1:
        plots[f"change against {labels[0]}"] = _plot(spectra, labels, relative=True)
    caption = (
        "<b>Look at</b> whether the lines lie on one another: then training left the singular values as they "
        "were, whatever it did to their vectors. Mean of σ over layers and seeds at each index (a grid, evenly "
        "spaced on a log scale, first and last included); the second view shows the change of that mean."
    )
    keys = [Key(label, COLOURS[i], DASHES[i]) for i, label in enumerate(labels)]
    return switched("overlays", "Spectra laid over one another", plots, caption, keys=keys, folded=True)


def _checkpoints(stories: Sequence[Story]) -> dict[str, list[tuple[int | None, str]]]:
    """Label -> the seeds' checkpoints, each under the first label that names it."""
    found: dict[str, list[tuple[int | None, str]]] = {}
    seen = set()
    for story in stories:
        for seed, a, b in sorted(story.pairs, key=str):
            before, after = (part.strip() for part in story.label.split("→"))
            after = f"{before} {after}" if after.startswith("+") else after
            for label, name in ((before, a), (after, b)):
                label = label or checkpoint_label(name)
                if (seed, name) not in seen:
                    seen.add((seed, name))
                    found.setdefault(label, []).append((seed, name))
    return dict(list(found.items())[: len(COLOURS)])


def _plot(
    spectra: Mapping[str, Mapping[str, Spectrum]], labels: Sequence[str], *, relative: bool
) -> go.Figure:
    figure = panels(
        list(spectra),
        x="index of σ (log scale)",
        y="change of σ, %" if relative else "σ (log scale)",
        height=270,
        columns=3,
        narrowest=300,
    )
    for index, role in enumerate(spectra):
        reference = spectra[role].get(labels[0], {})
        for line, label in enumerate(labels):
            own = spectra[role].get(label, {})
            points = (
                {i: 100 * (own[i] / reference[i] - 1) for i in own if reference.get(i)}
                if relative
                else {i: sigma for i, sigma in own.items() if sigma > 0}
            )
            figure.add_trace(
                go.Scatter(
                    x=list(points),
                    y=[short(value) for value in points.values()],
                    mode="lines",
                    line={"color": COLOURS[line], "dash": DASHES[line], "width": 2},
                    hovertemplate=f"{label}, σ%{{x}}: %{{y:.3g}}{' %' if relative else ''}<extra></extra>",
                    xaxis=f"x{axis(index)}",
                    yaxis=f"y{axis(index)}",
                )
            )
        figure.update_layout(
            {
                f"xaxis{axis(index)}": {"type": "log", "dtick": 1},
                f"yaxis{axis(index)}": {} if relative else _log_axis(spectra[role]),
            }
        )
    return figure


def _log_axis(lines: Mapping[str, Spectrum]) -> dict[str, object]:
    """Ticks at 1, 2 and 5 of each decade where there are few decades, at 1 alone where there are many."""
    values = [sigma for line in lines.values() for sigma in line.values() if sigma > 0]
    digits = (1, 2, 5) if values and max(values) < 300 * min(values) else (1,)
    ticks = [digit * 10.0**power for power in range(-9, 7) for digit in digits]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
