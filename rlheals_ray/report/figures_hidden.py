"""Figures of hidden states: how like they stay to the base's and the peak's, and the paths of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import plotly.graph_objects as go
import pyarrow as pa

from rlheals_ray.report.comparisons import over_seeds
from rlheals_ray.report.figures import (
    GREY,
    RL_ORANGE,
    SFT_BLUE,
    Figure,
    Key,
    axis,
    panels,
    short,
    switched,
)
from rlheals_ray.report.results import Row, place_of

MEASURES = {"cka": "CKA", "mmd2": "MMD²", "cosine": "cosine"}
MOST_FITS = 3
"""Plots of paths side by side: one for each fit of the components."""


def similarity_maps(similarity: pa.Table) -> Figure | None:
    """Layer up, SFT step across: likeness of hidden states to the base's and the peak's, after SFT and after RL.

    A view for each measure and rule; RL at its largest budget, over the step that it started from.
    """
    rows = [row for row in similarity.to_pylist() if place_of(row["a"]) and place_of(row["b"])]
    # Only the peak is ever compared with another checkpoint of its trunk; the rest is a branch's start and its end.
    peaks = {row["a"] for row in rows if row["a"].startswith("sft/") and row["b"].startswith("sft/")}
    rows = [row for row in rows if row["a"] == "base" or row["a"] in peaks]
    budget = max((p.rl_step for row in rows if (p := place_of(row["b"]))), default=0)
    plots = {}
    for measure, name in MEASURES.items():
        for rule in ("ood", "id"):
            cells: dict[str, dict[tuple[int, int], list[float]]] = {}
            for origin, words in ((True, "the base"), (False, "the OOD peak")):
                for rl, stage in ((0, "SFT"), (budget, f"after RL {budget}")):
                    found = over_seeds(
                        ((row["layer"], place.sft_step), row[measure])
                        for row in rows
                        if row["rule"] == rule
                        and (row["a"] == "base") == origin
                        and (place := place_of(row["b"])) is not None
                        and place.rl_step == rl
                    )
                    if found and f"{stage}, to {words}" not in cells:
                        cells[f"{stage}, to {words}"] = found
            if cells:
                plots[f"{name}, {rule.upper()} prompts"] = _maps(cells, measure)
    if not plots:
        return None
    caption = (
        "<b>Look at</b> from which layer on a row changes, and whether RL brings it back toward the peak. Linear CKA "
        "(unbiased), MMD² (one bandwidth for all pairs of a rule and layer; 0 is alike), and the mean cosine of hidden "
        "states on the same prompts; layer 0 is the embeddings. Means over seeds; RL stands over the SFT step that it "
        "started from."
    )
    return switched("similarity", "How like the hidden states stay", plots, caption)


def _maps(cells: Mapping[str, Mapping[tuple[int, int], Sequence[float]]], measure: str) -> go.Figure:
    layers = sorted({layer for part in cells.values() for layer, _ in part})
    steps = sorted({step for part in cells.values() for _, step in part})
    figure = panels(
        list(cells),
        x="SFT steps",
        y="layer",
        height=max(230, 130 + 12 * len(layers)),
        columns=2,
        narrowest=380,
    )
    values = [fmean(many) for part in cells.values() for many in part.values()]
    for index, part in enumerate(cells.values()):
        figure.add_trace(
            go.Heatmap(
                z=[[short(fmean(m)) if (m := part.get((la, s))) else None for s in steps] for la in layers],
                x=[str(step) for step in steps],
                y=[str(layer) for layer in layers],
                coloraxis="coloraxis",
                xgap=1,
                ygap=1,
                hovertemplate="SFT %{x}, layer %{y}: %{z:.3g}<extra></extra>",
                xaxis=f"x{axis(index)}",
                yaxis=f"y{axis(index)}",
            )
        )
        category = {"type": "category", "showgrid": False, "ticks": "", "tickangle": 0}
        figure.update_layout(
            {
                f"xaxis{axis(index)}": {**category, "tickfont": {"size": 11}},
                f"yaxis{axis(index)}": {**category, "nticks": 15},
            }
        )
    low, high = min(values), max(values)
    alike = (0.0, high or 1.0) if measure == "mmd2" else (min(low, 0.99), 1.0)
    figure.update_layout(
        coloraxis={
            "colorscale": "Viridis",
            "reversescale": measure == "mmd2",
            "cmin": short(alike[0]),
            "cmax": short(alike[1]),
            "colorbar": {"nticks": 5},
        }
    )
    figure.layout.meta["right"] = 84
    return figure


def paths(hidden: pa.Table) -> Figure | None:
    """Mean hidden states of checkpoints in the plane of their first two principal components, and by t-SNE.

    SFT is a line in time, RL dotted from its start. Views: last, middle and first layer, each rule. Rows whose
    components were fitted together share their variance shares and one plot.
    """
    rows = [row for row in hidden.to_pylist() if row["pca_1"] is not None and row["pca_2"] is not None]
    layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
    chosen = dict.fromkeys((layers[-1], layers[len(layers) // 2], layers[0])) if layers else {}
    plots = {}
    for layer in chosen:
        for rule in ("ood", "id"):
            fits: dict[tuple[float | None, ...], list[Row]] = {}
            for row in rows:
                if row["layer"] == layer and row["rule"] == rule:
                    fits.setdefault((row["pca_share_1"], row["pca_share_2"]), []).append(row)
            if fits:
                plots[f"layer {layer}, {rule.upper()} prompts"] = _paths(list(fits.items())[:MOST_FITS])
    if not plots:
        return None
    caption = (
        "<b>Look at</b> whether orange turns back along the blue path toward the peak or leaves it sideways: a "
        "detour is no return. Each mark is one checkpoint’s mean hidden state over the same prompts; numbers are SFT "
        "steps. Axes give the share of variance; of t-SNE’s map only neighbourhoods mean something, and it needs ten "
        "checkpoints."
    )
    keys = [Key("SFT in time", SFT_BLUE), Key("RL from its start", RL_ORANGE, "dot")]
    return switched("paths", "Paths of checkpoints in hidden states", plots, caption, keys=keys, folded=True)


def _paths(fits: Sequence[tuple[tuple[float | None, ...], Sequence[Row]]]) -> go.Figure:
    kinds = [("pca", shares, rows) for shares, rows in fits]
    kinds += [("tsne", shares, rows) for shares, rows in fits if any(r["tsne_1"] is not None for r in rows)]
    seeds = [sorted({row["seed"] for row in rows if row["seed"] is not None}) for _, _, rows in kinds]
    names = {"pca": "PCA", "tsne": "t-SNE"}
    of = [f", seed {mine[0]}" if len(mine) == 1 else "" for mine in seeds]
    figure = panels(
        [f"{names[kind]}{which}" for (kind, *_), which in zip(kinds, of, strict=True)],
        x="",
        y="",
        height=400,
        columns=2 if len(kinds) != 3 else 3,
        narrowest=330,
    )
    for index, (kind, shares, rows) in enumerate(kinds):
        titles = ["", ""]
        if kind == "pca":
            titles = [
                f"component {i}" + ("" if share is None else f", {100 * share:.0f} %")
                for i, share in enumerate(shares, start=1)
            ]
        figure.update_layout(
            {
                f"xaxis{axis(index)}": {"title": {"text": titles[0]}, "nticks": 6},
                f"yaxis{axis(index)}": {"title": {"text": titles[1]}, "nticks": 6},
            }
        )
        _draw_paths(figure, index, kind, rows)
    return figure


def _draw_paths(figure: go.Figure, index: int, kind: str, rows: Sequence[Row]) -> None:
    place = {"xaxis": f"x{axis(index)}", "yaxis": f"y{axis(index)}"}
    spots = {
        (row["seed"], at.sft_step, at.rl_step): (row[f"{kind}_1"], row[f"{kind}_2"])
        for row in rows
        if (at := place_of(row["checkpoint"])) and row[f"{kind}_1"] is not None
    }
    seeds = sorted({seed for seed, *_ in spots if seed is not None}) or [None]
    for seed in seeds:
        trunk = {step: spot for (s, step, rl), spot in sorted(spots.items(), key=str) if s == seed and not rl}
        if (None, 0, 0) in spots:
            trunk[0] = spots[None, 0, 0]
        ends = [(key, spot) for key, spot in spots.items() if key[0] == seed and key[2]]
        for (_, step, rl), spot in ends:
            before = max((r for s, t, r in spots if s == seed and t == step and 0 < r < rl), default=0)
            start = spots.get((seed, step, before)) or trunk.get(step)
            if start is not None:
                figure.add_trace(
                    go.Scatter(
                        x=[short(start[0]), short(spot[0])],
                        y=[short(start[1]), short(spot[1])],
                        mode="lines",
                        line={"color": RL_ORANGE, "width": 1.2, "dash": "dot"},
                        hoverinfo="skip",
                        **place,
                    )
                )
        steps = sorted(trunk)
        for xy, text, colour, symbol, mode in (
            ([trunk[s] for s in steps], [f"SFT {s}" for s in steps], SFT_BLUE, "circle", "lines+markers"),
            (
                [s for _, s in ends],
                [f"SFT {k[1]} + RL {k[2]}" for k, _ in ends],
                RL_ORANGE,
                "square",
                "markers",
            ),
        ):
            figure.add_trace(
                go.Scatter(
                    x=[short(x) for x, _ in xy],
                    y=[short(y) for _, y in xy],
                    text=[f"{words}{'' if seed is None else f', seed {seed}'}" for words in text],
                    mode=mode,
                    line={"color": colour, "width": 1.5},
                    marker={"size": 7, "color": colour, "symbol": symbol},
                    hovertemplate="%{text}<extra></extra>",
                    **place,
                )
            )
        for step in (steps[0], steps[-1]) if steps else ():
            figure.add_annotation(
                x=trunk[step][0],
                y=trunk[step][1],
                xref=f"x{axis(index)}",
                yref=f"y{axis(index)}",
                text=str(step) if step else "base",
                showarrow=False,
                yshift=12,
                font={"size": 11, "color": GREY if step == 0 else SFT_BLUE},
            )
