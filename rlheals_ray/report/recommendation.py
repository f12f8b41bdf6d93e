"""The map's recommendation in words: where to stop SFT, how much RL then, how sure that is, and how to serve it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rlheals_ray.report.layout import Table
from rlheals_ray.report.results import Row
from rlheals_ray.report.source import Source
from rlheals_ray.report.variants import Variant
from rlheals_ray.report.words import Finding, count, interval, listed, number

SURE, LIKELY = 0.9, 0.5
"""Shares of draws in which a cell is the best: from SURE on it is called the best, below LIKELY it is not."""
RECOMMENDED = "recommended"
"""The directory of a study that holds the recommended checkpoint."""
MOST_RIVALS = 4
RARE = 0.05
"""Share of draws below which a rival is not named."""


def chosen_row(rows: Sequence[Row]) -> Row | None:
    """The cell that the study recommends; None where it recommends none."""
    return next((row for row in rows if row["chosen"]), None)


def stop_words(row: Row, named: bool = False) -> str:
    """`stop SFT at 15, then RL for 30 updates`; `named`: with the recipe and algorithm."""
    if not row["sft_step"] and not row["rl_step"]:
        return f"take the base as it is{_kind(row, named)}"
    sft = f"stop SFT at step {row['sft_step']}" if row["sft_step"] else "leave out SFT"
    rl = f"then RL for {row['rl_step']} updates" if row["rl_step"] else "and leave out RL"
    return f"{sft}, {rl}{_kind(row, named)}"


def _kind(row: Row, named: bool) -> str:
    return f" ({Variant(row['recipe'], row['algorithm']).label})" if named else ""


def place_words(row: Row) -> str:
    """`SFT 15 + RL 30`."""
    return f"SFT {row['sft_step']}" + (f" + RL {row['rl_step']}" if row["rl_step"] else "")


def several_kinds(rows: Sequence[Row]) -> bool:
    """Whether rows are of several recipes or algorithms; of SFT alone a row names no algorithm."""
    recipes, algorithms = ({row[name] for row in rows} - {None} for name in ("recipe", "algorithm"))
    return len(recipes) > 1 or len(algorithms) > 1


def recommendation_words(rows: Sequence[Row]) -> str:
    """The recommendation in one or two sentences, with its numbers and what it is worth."""
    row = chosen_row(rows)
    if any(one["ood"] is not None for one in rows) and not any(one["ood"] for one in rows):
        return (
            "There is nothing to recommend: OOD accuracy is 0 in every cell, so no place to stop is better."
        )
    if row is None:
        return _none_chosen(rows)
    words = stop_words(row, several_kinds(rows))
    over = _seeds(row)
    text = (
        f"{words[0].upper()}{words[1:]}: OOD accuracy {number(row['ood'])}{interval(row['ood_low'], row['ood_high'])}"
        f"{over}, ID accuracy {number(row['id'])}{interval(row['id_low'], row['id_high'])}"
    )
    if row["id_floor"] is not None:
        text += f", at an ID floor of {number(max(0.0, row['id_floor']))}"
    return f"{text}. {confidence_words(rows, row)}"


def confidence_words(rows: Sequence[Row], row: Row) -> str:
    """What `p_best` says of the chosen cell, in plain words: no certainty that the problems do not give."""
    p = row["p_best"]
    if p is None:
        return "How sure that is was not computed."
    if sum(bool(one["eligible"]) for one in rows) == 1:
        alone = "On the half that chose, no other cell reaches the ID floor. "
        return alone + _confidence(rows, row, p)
    return _confidence(rows, row, p)


def _confidence(rows: Sequence[Row], row: Row, p: float) -> str:
    share = (
        f"in {100 * p:.0f} % of the draws of the other problems the same rule, ID floor included, takes it"
    )
    rivals = sorted(
        (one for one in rows if one is not row and (one["p_best"] or 0) > RARE),
        key=lambda one: -one["p_best"],
    )[:MOST_RIVALS]
    if (nobody := 1 - sum(one["p_best"] or 0.0 for one in rows)) > RARE:
        share += f", and in {100 * nobody:.0f} % it takes no cell at all"
    named = several_kinds(rows)
    others = listed(f"{place_words(one)}{_kind(one, named)} ({100 * one['p_best']:.0f} %)" for one in rivals)
    if p >= SURE:
        return f"These problems are clear: {share}."
    if p >= LIKELY:
        return f"Likely, not certain: {share}" + (f"; otherwise {others}." if rivals else ".")
    return f"No cell stands out: only {share}" + (f"; {others} may do as well." if rivals else ".")


def _none_chosen(rows: Sequence[Row]) -> str:
    floors = [row["id_floor"] for row in rows if row["id_floor"] is not None]
    measured = [row for row in rows if row["id"] is not None]
    if not measured:
        return "There is no recommendation: no cell of the map has been probed on both rules."
    if any(row["eligible"] for row in rows):
        return "There is no recommendation: the table names none, though some cells reach the ID floor."
    top = max(measured, key=lambda row: row["id"])
    floor = f" of {number(floors[0])}" if floors else ""
    return (
        f"There is no recommendation: no cell reaches the ID floor{floor}. The highest ID accuracy is "
        f"{number(top['id'])}{interval(top['id_low'], top['id_high'])}, at {place_words(top)} (OOD "
        f"{number(top['ood'])}). Lower recommendation.id_floor, or train longer."
    )


def _seeds(row: Row) -> str:
    low, high = row["ood_seed_low"], row["ood_seed_high"]
    if low is None or high is None:
        return " (one seed)"
    return f" (over {'' if row['seeds'] is None else str(row['seeds']) + ' '}seeds{interval(low, high)})"


def recommendation_findings(rows: Sequence[Row]) -> list[Finding]:
    return [Finding("recommendation", recommendation_words(rows), None)] if rows else []


def serving(source: Source, row: Row) -> tuple[str, str]:
    """A sentence that says where the recommended checkpoint is, and the command that serves it, if it is there."""
    directory = source.directory
    exported = directory / RECOMMENDED if directory else None
    if exported is not None and (exported / "config.json").exists():
        path = exported.resolve()
        return (
            f"Exported as a Hugging Face directory: {path} (checkpoint {row['checkpoint'] or 'not named'}).",
            _serve(path, source),
        )
    where = f"The checkpoint is {row['checkpoint']}" if row["checkpoint"] else "The table names no checkpoint"
    kept = directory / "checkpoints" / row["checkpoint"] if directory and row["checkpoint"] else None
    if kept is not None and (kept / "config.json").exists():
        return (
            f"{where}; it has not been exported to {RECOMMENDED}/ yet.",
            _serve(kept.resolve(), source),
        )
    return f"{where}; it is not among the files of this study now.", ""


def _serve(path: Path, source: Source) -> str:
    """In the precision of the study's own engines, so that it answers as it was probed."""
    rollout = source.study.get("rollout")
    dtype = rollout.get("dtype") if isinstance(rollout, dict) else None
    precision = f" --dtype {shlex.quote(str(dtype))}" if dtype else ""
    return f"vllm serve {shlex.quote(str(path))}{precision}"


def runners_up(rows: Sequence[Row], folded: bool = True) -> Table | None:
    """Every cell as a place to stop, in the order of the table; None without any."""
    if not rows:
        return None
    named = several_kinds(rows)
    lines = [
        (
            *((Variant(row["recipe"], row["algorithm"]).label,) if named else ()),
            str(row["sft_step"]),
            str(row["rl_step"]),
            f"{number(row['ood'])}{interval(row['ood_low'], row['ood_high'])}",
            interval(row["ood_seed_low"], row["ood_seed_high"]).strip() or "one seed",
            count(row["seeds"]),
            f"{number(row['id'])}{interval(row['id_low'], row['id_high'])}",
            {True: "yes", False: "no, below the ID floor"}.get(row["eligible"], "–"),
            "–" if row["p_best"] is None else f"{100 * row['p_best']:.0f} %",
            "recommended" if row["chosen"] else "",
        )
        for row in rows
    ]
    heads = (
        "SFT step",
        "RL step",
        "OOD",
        "OOD over seeds (t)",
        "seeds",
        "ID",
        "eligible",
        "taken in draws",
        "",
    )
    title = f"All {len(rows)} cells as places to stop"
    return Table(title, ("recipe and algorithm", *heads) if named else heads, lines, folded=folded)
