"""Figures of what goes with accuracy: rank correlations with their intervals, and the points behind a few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from rlheals_ray.evaluation.predictors import FEWEST, Scored, scored_checkpoints
from rlheals_ray.evaluation.quantities import quantities
from rlheals_ray.report.figures import (
    GREEN,
    GREY,
    PURPLE,
    RL_ORANGE,
    SFT_BLUE,
    Figure,
    Key,
    accuracy_axis,
    axis,
    panels,
    short,
    switched,
)
from rlheals_ray.report.results import Row, Tables
from rlheals_ray.report.words import number

MOST = 40
FAMILIES = (
    ("weights", SFT_BLUE, ("angle", "drift", "delta_norm", "chordal", "update")),
    ("outputs", RL_ORANGE, ("forward_kl", "entropy", "margin")),
    ("hidden states", PURPLE, ("cka", "mmd2", "cosine")),
    ("losses", GREEN, ("train_loss", "id_loss", "ood_loss")),
    ("for reference", GREY, ("accuracy", "sft_steps")),
)
NAMES = {
    "angle": "rotation, U and V",
    "angle_u": "rotation, U",
    "angle_v": "rotation, V",
    "chordal": "chordal distance",
    "drift": "drift of S",
    "delta_norm": "‖ΔW‖",
    "update_cosine": "cosine of RL’s and SFT’s ΔW",
    "update_angle": "angle of RL’s and SFT’s ΔW",
    "forward_kl": "forward KL from base",
    "entropy": "entropy",
    "margin": "top-1 margin",
    "cka": "CKA",
    "mmd2": "MMD²",
    "cosine": "cosine of hidden states",
    "train_loss": "training loss (SFT only)",
    "id_loss": "ID loss (SFT only)",
    "ood_loss": "OOD loss (SFT only)",
    "accuracy": "accuracy@1",
    "sft_steps": "SFT steps",
}
SCATTERED = (
    "angle_from_base", "angle_from_peak", "forward_kl_id", "forward_kl_ood", "delta_norm_from_base",
    "accuracy_id",
)  # fmt: skip


def quantity_name(quantity: str) -> str:
    """`forward_kl_id` as "forward KL from base, ID prompts"."""
    plain, where = quantity, []
    for ending, words in (("_id", "ID prompts"), ("_ood", "OOD prompts")):
        if plain.endswith(ending) and not plain.startswith("accuracy"):
            plain, where = plain.removesuffix(ending), [words]
    for ending, words in (("_from_base", "from base"), ("_from_peak", "from OOD peak")):
        if plain.endswith(ending):
            plain, where = plain.removesuffix(ending), [words, *where]
    if plain.startswith("accuracy_"):
        return f"{plain.removeprefix('accuracy_').upper()} accuracy@1"
    return ", ".join((NAMES.get(plain, plain), *where))


def family(quantity: str) -> tuple[str, str]:
    """Name and colour of the family of a quantity."""
    for name, colour, stems in FAMILIES:
        # "cosine" begins nothing else; "update_cosine" begins with update.
        if any(quantity == stem or quantity.startswith(f"{stem}_") for stem in stems):
            return name, colour
    return "for reference", GREY


def correlations(predictors: Sequence[Row]) -> Figure | None:
    """Spearman's ρ of every quantity with accuracy@1, sorted by size, with intervals; a view per rule."""
    by_rule: dict[str, list[Row]] = {}
    for row in sorted(predictors, key=lambda row: -abs(row["rho"] or 0.0)):
        if row["rho"] is not None:
            by_rule.setdefault(row["rule"], []).append(row)
    plots = {f"{r.upper()} accuracy": _forest(by_rule[r][:MOST]) for r in ("ood", "id") if r in by_rule}
    if not plots:
        return None
    count, tried = max(row["checkpoints"] for row in predictors), len({row["quantity"] for row in predictors})
    caption = (
        "<b>Look at</b> whether an interval stays clear of 0 and whether it stays clear of the others’. Spearman’s "
        f"rank correlation across up to {count} checkpoints (base, SFT, RL; the count stands beside each); it sees "
        "only what rises or falls throughout: a hump has a small ρ, however tight. 95 % bootstrap intervals resample "
        "whole trunks and branches, since checkpoints of one run are not independent; hollow marks have none, for "
        f"want of {FEWEST} checkpoints or of enough runs. <b>Beware:</b> the quantity at the top is the best of "
        f"{tried}, chosen on these same data, so its ρ flatters it; intervals are not adjusted for this. Not all "
        "quantities are known for the same checkpoints: those of updates, for RL alone. What is measured from the OOD "
        "peak is 0 there by construction, so the peak is left out of it; even so the peak was chosen for its accuracy. "
        "Correlation over training time is no cause."
    )
    if max(len(mine) for mine in by_rule.values()) > MOST:
        caption += f" The largest {MOST} are drawn; predictors.parquet holds all."
    keys = [
        Key(name, colour)
        for name, colour, _ in FAMILIES
        if any(family(row["quantity"])[0] == name for row in predictors)
    ]
    return switched("predictors", "What goes with accuracy?", plots, caption, keys=keys)


def _forest(rows: Sequence[Row]) -> go.Figure:
    figure = panels([""], x="Spearman’s ρ with accuracy@1", y="", height=120 + 22 * len(rows), columns=1)
    labels = [f"{quantity_name(row['quantity'])} ({row['checkpoints']})" for row in rows]
    for name, colour, _ in FAMILIES:
        mine = [
            (label, row)
            for label, row in zip(labels, rows, strict=True)
            if family(row["quantity"])[0] == name
        ]
        known = [(label, row) for label, row in mine if row["rho_low"] is not None]
        figure.add_trace(
            go.Scatter(
                x=[x for _, row in known for x in (short(row["rho_low"]), short(row["rho_high"]), None)],
                y=[y for label, _ in known for y in (label, label, None)],
                mode="lines",
                line={"color": colour, "width": 3},
                hoverinfo="skip",
            )
        )
        figure.add_trace(
            go.Scatter(
                x=[short(row["rho"]) for _, row in mine],
                y=[label for label, _ in mine],
                mode="markers",
                marker={
                    "color": colour,
                    "size": 10,
                    "symbol": ["circle" if row["rho_low"] is not None else "circle-open" for _, row in mine],
                },
                hovertemplate="%{y}: ρ = %{x:.2f}<extra></extra>",
            )
        )
    for label, row in zip(labels, rows, strict=True):
        figure.add_annotation(
            x=1.04,
            y=label,
            text=number(row["rho"], signed=True),
            showarrow=False,
            xanchor="left",
            font={"size": 12},
        )
    figure.add_shape(type="line", x0=0, x1=0, y0=0, y1=1, yref="y domain", line={"color": GREY, "width": 1.5})
    figure.update_layout(
        xaxis={"range": [-1.04, 1.2], "tickvals": [-1, -0.5, 0, 0.5, 1], "showgrid": True},
        yaxis={
            "type": "category",
            "categoryorder": "array",
            "categoryarray": labels[::-1],
            "range": [-0.6, len(labels) - 0.4],
            "showgrid": False,
            "tickfont": {"size": 12},
        },
    )
    figure.layout.meta["labels"] = 6.4 * max(map(len, labels))
    figure.layout.meta["rows"] = len(rows)
    figure.layout.meta["widest"] = 900
    return figure


def scatters(tables: Tables) -> Figure | None:
    """OOD accuracy@1 against rotation, forward KL and a few others, one mark per checkpoint."""
    every = [one for one in scored_checkpoints(tables) if "ood" in one.accuracy]
    values = quantities(tables)
    shown = [
        name
        for name in SCATTERED
        if len([one for one in every if one.checkpoint in values.get(name, {})]) >= 3
    ]
    if len(shown) < 2:
        return None
    figure = panels(
        [quantity_name(name) for name in shown],
        x="",
        y="OOD accuracy@1",
        height=300,
        columns=3,
        narrowest=300,
    )
    for index, name in enumerate(shown):
        accuracy_axis(figure, index)
        figure.update_layout({f"xaxis{axis(index)}": {"title": {"text": _unit(name)}, "nticks": 6}})
        _points(figure, index, every, values[name])
    caption = (
        "<b>Look at</b> whether one curve runs through SFT (blue) and RL (orange) alike: only then does the "
        "quantity tell OOD accuracy whatever the stage. Each mark is one checkpoint of one seed; lines follow "
        "each seed’s SFT in time."
    )
    keys = [Key("base and SFT", SFT_BLUE), Key("after RL", RL_ORANGE)]
    return Figure("scatters", "The checkpoints behind the correlations", figure, caption, keys)


def _unit(name: str) -> str:
    if name.startswith("angle"):
        return "mean principal angle, rad"
    return "nats" if name.startswith("forward_kl") else "accuracy@1" if name.startswith("accuracy") else ""


def _points(figure: go.Figure, index: int, every: Sequence[Scored], values: Mapping[str, float]) -> None:
    place = {"xaxis": f"x{axis(index)}", "yaxis": f"y{axis(index)}"}
    trunks: dict[int | None, list[Scored]] = {}
    branches: list[Scored] = []
    for one in every:
        if one.checkpoint in values:
            if "rl_step=" in one.checkpoint:
                branches.append(one)
            else:
                trunks.setdefault(one.cluster[0], []).append(one)
    groups = [
        (sorted(mine, key=lambda o: o.checkpoint), SFT_BLUE, "lines+markers") for mine in trunks.values()
    ]
    for mine, colour, mode in [*groups, (branches, RL_ORANGE, "markers")]:
        figure.add_trace(
            go.Scatter(
                x=[short(values[one.checkpoint]) for one in mine],
                y=[short(one.accuracy["ood"]) for one in mine],
                text=[one.checkpoint for one in mine],
                mode=mode,
                line={"color": colour, "width": 1},
                marker={"size": 7, "color": colour, "symbol": "circle" if mode != "markers" else "square"},
                hovertemplate="%{text}: %{x:.3g}, OOD %{y:.2f}<extra></extra>",
                **place,
            )
        )
