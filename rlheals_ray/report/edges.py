"""The edges of the recovery boundary in words and as a table, with their intervals over problems and over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rlheals_ray.report.layout import Table
from rlheals_ray.report.results import Row
from rlheals_ray.report.words import count

OFTEN = 0.05
"""Share of draws without any healing from which on it is told."""


def between(row: Row) -> str:
    """Where an edge lies: `between 60 and 120`, `at 60 or beyond (no further step was tried)`, `nothing heals`."""
    step, beyond = row["step"], row["next_step"]
    if step is None:
        return "nothing heals"
    if beyond is None:
        return f"at {step} or beyond (no step further out was tried)"
    return f"between {min(step, beyond)} and {max(step, beyond)}"


def steps_interval(low: int | None, high: int | None) -> str:
    """` [30, 120]` with its leading space, or nothing where there is no interval."""
    return "" if low is None or high is None else f" [{low}, {high}]"


def told(row: Row) -> str:
    """One edge in words: where, its interval over problems, the seeds' range."""
    if row["step"] is None:
        return f"{row['edge']} edge: nothing heals"
    over = steps_interval(row["step_low"], row["step_high"])
    text = f"{row['edge']} edge {between(row)}, outermost healing step {row['step']}{over} over problems"
    return text + _seeds(row)


def _seeds(row: Row) -> str:
    low, high = row["seeds_low"], row["seeds_high"]
    if low is None or high is None:
        return ""
    return f", {low} for every seed" if low == high else f", {low} to {high} over the seeds"


def largest(edges: Iterable[Row]) -> list[Row]:
    """The edges at the largest budget at which anything heals; at the largest where nothing does."""
    every = [row for row in edges if row["rl_step"]]
    budgets = sorted({row["rl_step"] for row in every if row["step"] is not None})
    budgets = budgets or sorted({row["rl_step"] for row in every})
    return [row for row in every if row["rl_step"] == budgets[-1]] if budgets else []


def sentence(edges: Sequence[Row]) -> str:
    """The edges at their largest budget as one sentence with a leading space; empty without any."""
    mine = [row for row in largest(edges) if row["step"] is not None]
    if not mine:
        return ""
    text = f" With their intervals, after {mine[0]['rl_step']} RL updates: {'; '.join(told(row) for row in mine)}."
    absent = max((row["absent"] or 0.0 for row in mine), default=0.0)
    if absent >= OFTEN:
        text += f" In {100 * absent:.0f} % of the draws of problems nothing heals at all."
    return text


def edge_table(edges: Sequence[Row], name: str = "", folded: bool = False) -> Table | None:
    """Every edge of every budget; None without any."""
    if not edges:
        return None
    lines = [
        (
            *((row["name"],) if "name" in row else ()),
            str(row["rl_step"]),
            row["edge"],
            "–" if row["step"] is None else str(row["step"]),
            between(row),
            steps_interval(row["step_low"], row["step_high"]).strip() or "–",
            steps_interval(row["seeds_low"], row["seeds_high"]).strip() or "–",
            count(row["seeds"]),
            "–" if row["absent"] is None else f"{100 * row['absent']:.0f} %",
        )
        for row in edges
    ]
    heads = (
        "RL updates",
        "edge",
        "outermost step that heals",
        "the edge lies",
        "95 % over problems",
        "range of the seeds",
        "fewest seeds of a cell",
        "draws in which nothing heals",
    )
    named = ("of", *heads) if "name" in edges[0] else heads
    return Table(f"Edges of the boundary{f' ({name})' if name else ''}", named, lines, folded=folded)
