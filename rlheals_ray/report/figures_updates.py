"""Figure of RL's update beside SFT's: their cosine and the angles between their leading subspaces."""

from __future__ import annotations

from math import degrees
from statistics import fmean

import pyarrow as pa

from rlheals_ray.evaluation.quantities import middle_k, past
from rlheals_ray.report.comparisons import checkpoint_label
from rlheals_ray.report.figures import (
    GREY,
    PURPLE,
    SFT_BLUE,
    Figure,
    Key,
    axis,
    even_steps,
    panels,
    step_line,
)
from rlheals_ray.report.results import place_of
from rlheals_ray.report.words import number


def updates(table: pa.Table) -> Figure | None:
    """Cosine and angles between SFT's update ΔW₁ and RL's from there, ΔW₂, by where RL started; None without rows.

    From the base: does RL go on where SFT went? From the OOD peak: does RL undo what SFT did past it?
    """
    rows = [row for row in table.to_pylist() if row["cosine"] is not None and row["a"] and place_of(row["b"])]
    rows = [row for row in rows if row["a"] == "base" or past(row["a"], row["b"])]
    k = middle_k(rows)
    rows = [row for row in rows if row["k"] == k]
    if not rows:
        return None
    top = f"top-{k} subspaces" if k else "subspaces"
    figure = panels(
        ["Cosine of the two updates", f"Angle between their {top}"],
        x="",
        y=["cosine", "angle, degrees"],
        height=360,
    )
    steps = sorted({place.sft_step for row in rows if (place := place_of(row["b"]))})
    at = {step: position for position, step in enumerate(steps)}
    origins = {"SFT from the base": SFT_BLUE, "SFT from the OOD peak": PURPLE}
    shown = []
    nulls: dict[int, list[float]] = {}
    for origin, colour in origins.items():
        from_base = origin == "SFT from the base"
        mine = [r for r in rows if (r["a"] == "base" if from_base else past(r["a"], r["b"]))]
        cosines: dict[int, dict[object, list[float]]] = {}
        angles: dict[int, dict[object, list[float]]] = {}
        for row in mine:
            place = place_of(row["b"])
            if place is None:
                continue
            cosines.setdefault(place.sft_step, {}).setdefault(row["seed"], []).append(row["cosine"])
            sides = [row[name] for name in ("angle_u_mean", "angle_v_mean") if row[name] is not None]
            chance = [row[name] for name in ("null_angle_u", "null_angle_v") if row[name] is not None]
            if sides:
                angles.setdefault(place.sft_step, {}).setdefault(row["seed"], []).append(
                    degrees(fmean(sides))
                )
            if chance:
                nulls.setdefault(place.sft_step, []).append(degrees(fmean(chance)))
        for index, gathered, unit in ((0, cosines, ""), (1, angles, "°")):
            means = {step: [fmean(v) for v in gathered[step].values()] for step in sorted(gathered)}
            step_line(figure, index, at, means, origin, colour, "circle", unit)
        if mine:
            shown.append(Key(origin, colour))
    for index in (0, 1):
        even_steps(figure, index, steps)
        figure.update_layout({f"xaxis{axis(index)}": {"title": {"text": "SFT steps before RL"}}})
    step_line(
        figure,
        1,
        at,
        {s: [fmean(v)] for s, v in sorted(nulls.items())},
        "random",
        GREY,
        "line-ew",
        "°",
        dash="dash",
    )
    figure.add_shape(type="line", x0=0, x1=1, xref="x domain", y0=0, y1=0, line={"color": GREY, "width": 1.5})
    figure.update_layout(yaxis2={"rangemode": "tozero"})
    caption = (
        "<b>Look at</b> the sign on the left. Below 0, RL’s update goes against SFT’s: seen from the OOD peak (only "
        "starts past a seed’s own peak are), it would undo what SFT did past it; at 0 it is orthogonal, as two random "
        "changes would be. No control was run: more SFT might have the same sign. Right: the smaller the angle, the "
        "more the two updates share their leading directions. Means over matrices; large marks: means over seeds, "
        "small marks: single seeds."
    )
    keys = [*shown, *([Key("random subspaces", GREY, "dash")] if nulls else [])]
    return Figure("updates", "RL’s update beside SFT’s", figure, caption, keys)


def by_role(table: pa.Table) -> list[tuple[str, ...]]:
    """Rows (pair of updates, role, k, matrices, cosine, angle, null angle) as text; seeds together.

    The updates of a study are told by where they start: from the base, or from the peak on.
    """
    groups: dict[tuple[str, str, int], list[dict[str, float | None]]] = {}
    for row in table.to_pylist():
        if row["cosine"] is None or not row["a"] or not row["b"] or not row["c"]:
            continue
        if place_of(row["b"]) and row["a"] != "base" and not past(row["a"], row["b"]):
            continue
        labels = [checkpoint_label(row[name]) for name in "abc"]
        which = " → ".join(labels)
        if place_of(row["b"]):
            which = "SFT from the base, then RL" if row["a"] == "base" else "SFT from the OOD peak, then RL"
        groups.setdefault((which, row["role"] or "?", row["k"] or 0), []).append(row)

    def mean(members: list[dict[str, float | None]], columns: tuple[str, ...], scale: float) -> float | None:
        known = [value for row in members for name in columns if (value := row[name]) is not None]
        return scale * fmean(known) if known else None

    def angle(value: float | None) -> str:
        return "–" if value is None else f"{value:.1f}°"

    return [
        (
            which,
            role,
            str(k or "all"),
            str(len(members)),
            number(mean(members, ("cosine",), 1), signed=True),
            angle(mean(members, ("angle_u_mean", "angle_v_mean"), degrees(1))),
            angle(mean(members, ("null_angle_u", "null_angle_v"), degrees(1))),
        )
        for (which, role, k), members in sorted(groups.items())
    ]
