"""Branches that did not reach every budget: what the map marks, what the reader is told, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from rlheals_ray.lineage import CONTROLS
from rlheals_ray.report.layout import Table
from rlheals_ray.report.results import Row
from rlheals_ray.report.variants import Variant
from rlheals_ray.report.words import Finding, algorithm_name, listed

MARK = {"failed": "x-thin", "stopped": "square", "waiting": "circle"}
"""Status -> plotly's symbol; the word stands beside it."""
ORDER = tuple(MARK)
MOST_CAUSE = 160
"""Letters of a cause that a figure's hover shows; the table shows them all."""


class Gap(NamedTuple):
    """A cell of the map that lacks seeds."""

    sft_step: int
    rl_step: int
    status: str
    """The worst of its branches'."""
    seeds: tuple[int | None, ...]
    """Seeds that have no result here."""
    hover: str
    """Their causes, escaped, in lines."""


def unfinished(branches: Iterable[Row], *, controls: bool | None = None) -> list[Row]:
    """Rows of `branches` that are not done, in the order of the map; those of controls alone, without them, or all."""
    mine = [row for row in branches if row["status"] in ORDER and row["sft_step"] is not None]
    if controls is not None:
        mine = [row for row in mine if (row["algorithm"] in CONTROLS) == controls]
    return sorted(
        mine,
        key=lambda r: (
            ORDER.index(r["status"]),
            r["recipe"] or "",
            r["algorithm"] or "",
            r["sft_step"],
            -1 if r["seed"] is None else r["seed"],
        ),
    )


def gaps(branches: Iterable[Row], budgets: Iterable[int]) -> list[Gap]:
    """The cells at `budgets` above 0 that an RL branch which is not done never reached."""
    found: dict[tuple[int, int], list[Row]] = {}
    mine = unfinished(branches, controls=False)
    for budget in sorted(budgets):
        for row in mine:
            if budget > (row["rl_step"] or 0):
                found.setdefault((row["sft_step"], budget), []).append(row)
    return [
        Gap(
            step,
            budget,
            rows[0]["status"],  # sorted by how bad
            tuple(row["seed"] for row in rows),
            "<br>".join(_hover(row) for row in rows),
        )
        for (step, budget), rows in sorted(found.items())
    ]


def _hover(row: Row) -> str:
    seed = "" if row["seed"] is None else f"seed {row['seed']} "
    cause = " ".join((row["cause"] or "").split())
    short = cause if len(cause) <= MOST_CAUSE else f"{cause[: MOST_CAUSE - 1]}…"
    why = f": {escape(short)}" if short else ""
    return f"{seed}{_fate(row)}{why}"


def _fate(row: Row) -> str:
    """`failed after RL update 7`, `waiting`."""
    status, last = row["status"], row["rl_step"]
    if status == "waiting":
        return "is waiting" if not last else f"is waiting at RL update {last}"
    word = "was stopped early" if status == "stopped" else "failed"
    return f"{word} after RL update {last}" if last else f"{word} before its first update"


def unfinished_table(branches: Iterable[Row], title: str = "Branches that did not finish") -> Table | None:
    """Failed and stopped branches and controls, each with its cause; None where there are none."""
    rows = [row for row in unfinished(branches) if row["status"] != "waiting"]
    if not rows:
        return None
    lines = [
        (
            f"{'✕' if row['status'] == 'failed' else '□'} {row['status']}",
            Variant(row["recipe"], row["algorithm"]).label,
            "–" if row["seed"] is None else str(row["seed"]),
            str(row["sft_step"]),
            str(row["rl_step"] or 0),
            " ".join((row["cause"] or "no cause was recorded").split()),
        )
        for row in rows
    ]
    return Table(title, ("status", "branch", "seed", "SFT step", "last update", "cause"), lines, folded=False)


def left_out_line(branches: Iterable[Row]) -> str | None:
    """Which ends of RL no recommendation can name, since some seed lacks them; None where every branch is done."""
    mine = unfinished(branches, controls=False)
    if not mine:
        return None
    starts = listed(sorted({row["sft_step"] for row in mine}))
    return (
        f"RL from SFT {starts} is left out beyond the last budget that every seed reached: {len(mine)} of its branches "
        "did not finish (see the map), and a cell is weighed only where every seed has it."
    )


def waiting_line(branches: Iterable[Row]) -> str | None:
    """Which branches still wait, in one sentence; None where none does."""
    by_kind: dict[str, dict[int | None, list[int]]] = {}
    for row in unfinished(branches):
        if row["status"] == "waiting":
            kind = Variant(row["recipe"], row["algorithm"]).label
            by_kind.setdefault(kind, {}).setdefault(row["seed"], []).append(row["sft_step"])
    if not by_kind:
        return None
    told = [
        f"{kind}: {'; '.join(f'seed {seed} from SFT {listed(sorted(steps))}' for seed, steps in seeds.items())}"
        for kind, seeds in by_kind.items()
    ]
    return f"Waiting, not run yet: {'. '.join(told)}."


def unfinished_findings(branches: Sequence[Row]) -> list[Finding]:
    """One sentence that says how many branches did not finish, so that no gap in the map is taken for a result."""
    rows = unfinished(branches)
    if not rows:
        return []
    parts = []
    for status in ORDER:
        mine = [row for row in rows if row["status"] == status]
        if mine:
            kinds = listed(dict.fromkeys(algorithm_name(row["algorithm"] or "RL") for row in mine))
            steps = listed(sorted({row["sft_step"] for row in mine}))
            word = {"failed": "failed", "stopped": "stopped early", "waiting": "still waiting"}[status]
            parts.append(f"{len(mine)} {word} ({kinds} from SFT {steps})")
    text = (
        f"Of {len(branches)} branches, controls included, {', '.join(parts)}. Below they stand with their causes; what "
        "they did not reach is missing, no evidence that nothing heals."
    )
    return [Finding("unfinished", text, None)]
