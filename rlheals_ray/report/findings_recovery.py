"""What RL won back: healing and its boundary, ID accuracy after RL, the SFT peak."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from rlheals_ray.lineage import CONTROLS
from rlheals_ray.report.edges import sentence as edge_sentence
from rlheals_ray.report.results import Accuracies, Row, rows
from rlheals_ray.report.words import Finding, interval, listed, number


def recovery_findings(
    cells: Sequence[Row], accuracies: Accuracies, edges: Sequence[Row] = ()
) -> list[Finding]:
    """Findings on healing from the cells of `healing_cells`, the accuracies around them and the boundary's edges."""
    return [
        *_healing(cells, len(accuracies.seeds)),
        *_boundary(cells, edges),
        *_id_after_rl(accuracies),
        *_exceeds(accuracies),
    ]


def healing_cells(boundary: pa.Table) -> list[Row]:
    """The OOD cells that speak for the study: pooled over seeds, or the only seed's own; budgets above 0."""
    ood = [row for row in rows(boundary, rule="ood") if row["rl_step"] and row["healing"] is not None]
    ood = [row for row in ood if row["algorithm"] not in CONTROLS and row["recipe"] not in CONTROLS]
    pooled = [row for row in ood if row["scope"] == "pooled"]
    if not pooled and len({row["seed"] for row in ood}) == 1:
        pooled = ood
    return sorted(pooled, key=lambda row: (row["sft_step"], row["rl_step"]))


def best_cells(cells: Sequence[Row]) -> dict[int, Row]:
    """The cell that speaks for each SFT step: one that heals before any other, then the largest healing."""
    best: dict[int, Row] = {}
    for row in cells:
        old = best.get(row["sft_step"])
        rank = (row["verdict"] == "heals", row["healing"])
        if old is None or rank > (old["verdict"] == "heals", old["healing"]):
            best[row["sft_step"]] = row
    return best


def _cell_words(row: Row, seeds: int) -> str:
    """`60: +.14 [.07, .20]`; of a cell that not all of the `seeds` reached, how many did."""
    change = number(row["healing"], signed=True)
    fewer = f" ({row['seeds']} of {seeds} seeds)" if row["seeds"] is not None and row["seeds"] < seeds else ""
    return f"{row['sft_step']}: {change}{interval(row['healing_low'], row['healing_high'])}{fewer}"


def _healing(cells: Sequence[Row], seeds: int) -> list[Finding]:
    """Verdicts are those of the boundary table; only words are made here."""
    if not cells:
        text = "RL from the SFT checkpoints has not been compared yet, so healing is open."
        return [Finding("healing", text, None)]
    best = best_cells(cells)
    healed = [row for row in best.values() if row["verdict"] == "heals"]
    budgets = sorted({row["rl_step"] for row in cells})
    read = f"best of {listed(budgets)} RL updates" if len(budgets) > 1 else f"after {budgets[0]} RL updates"
    found = []
    if healed:
        lacks = any(row["seeds"] is not None and row["seeds"] < seeds for row in healed)
        every = f", every seed {'that a cell has ' if lacks else ''}agreeing in sign" if seeds > 1 else ""
        gains = "; ".join(_cell_words(row, seeds) for row in healed)
        text = f"RL heals. OOD accuracy gained, by the SFT step it starts from ({read}{every}): {gains}."
        back = [row["recovery"] for row in healed if row["recovery"] is not None]
        if back:
            span = f"{number(min(back))} to {number(max(back))}" if len(back) > 1 else number(back[0])
            text += f" Where SFT had forgotten, that is {span} of what was forgotten."
        found.append(Finding("healing", text, True))
    else:
        most = "; ".join(_cell_words(row, seeds) for row in best.values())
        text = f"RL heals from none of the {len(best)} SFT steps tried ({read}): {most}."
        found.append(Finding("healing", text, False))
    harmed = [row for row in cells if row["verdict"] == "harms"]
    if harmed:
        worst = {row["sft_step"]: row for row in sorted(harmed, key=lambda row: -row["healing"])}
        losses = [
            f"{_cell_words(row, seeds)} after {row['rl_step']} updates" for _, row in sorted(worst.items())
        ]
        text = f"RL harms OOD accuracy from SFT steps {'; '.join(losses)}."
        found.append(Finding("harm", text, True))
    return found


def _boundary(cells: Sequence[Row], edges: Sequence[Row]) -> list[Finding]:
    """A side of the boundary is shown when a step further out was tried and does not heal."""
    best = best_cells(cells)
    if not best:
        return []
    steps = sorted(best)
    healing = [step for step in steps if best[step]["verdict"] == "heals"]
    if not healing:
        text = "There is no recovery boundary to report: RL heals from no SFT step tried."
        return [Finding("boundary", text, False)]
    first, last = healing[0], healing[-1]
    short, long = [s for s in steps if s < first], [s for s in steps if s > last]
    text = f"Recovery boundary: RL heals from SFT {first}" + (f" to {last}" if last != first else " only")
    outside: list[str] = []
    for side, why in ((short, "too short"), (long, "too long")):
        if side:
            changes = [f"{step} ({number(best[step]['healing'], signed=True)})" for step in side]
            outside.append(f"{'nor' if outside else 'not'} at {listed(changes)}, {why}")
    text += f"; {'; '.join(outside)}." if outside else "."
    sides = [f"between {short[-1]} and {first}"] if short else []
    sides += [f"between {last} and {long[0]}"] if long else []
    if sides:
        text += f" The edge{'s lie' if len(sides) > 1 else ' lies'} {listed(sides)}, the steps tried."
    for tried, name in ((short, "lower"), (long, "upper")):
        text += "" if tried else f" No {name} side was reached."
    gaps = [step for step in steps if first < step < last and step not in healing]
    if gaps:
        text += f" Within it, healing is not shown at {listed(gaps)}."
    return [Finding("boundary", text + edge_sentence(edges), bool(short and long))]


def _id_after_rl(accuracies: Accuracies) -> list[Finding]:
    """By the sign of the change at each start's largest budget; the base (step 0) is left out."""
    changes = []
    for step in accuracies.starts("id"):
        before, after = (
            accuracies.mean("id", step),
            accuracies.mean("id", step, accuracies.rl_steps("id", step)[-1]),
        )
        if before and after and step > 0:
            changes.append((step, before.value, after.value))
    if not changes:
        return []
    fell = [f"{step} ({number(b)} to {number(a)})" for step, b, a in changes if a < b]
    ends = [after for *_, after in changes]
    span = " to ".join(dict.fromkeys((number(min(ends)), number(max(ends)))))
    text = f"ID accuracy after RL (largest budget) is {span}"
    if fell:
        text += f": RL lowers it from {len(fell)} of {len(changes)} SFT steps, {listed(fell)}."
        return [Finding("id_after_rl", text, False)]
    text += f": RL lowers it from none of the {len(changes)} SFT steps above 0."
    return [Finding("id_after_rl", text, True)]


def _exceeds(accuracies: Accuracies) -> list[Finding]:
    """The claim is the paper's "RL rarely exceeds the SFT peak": in at most a tenth of the cells and under
    half of the seeds, exceeding meaning that the two Wilson intervals stand apart."""
    cells, above, clear, per_seed = 0, 0, 0, []
    for seed in accuracies.seeds:
        trunk = [row for step in accuracies.sft_steps("ood") if (row := accuracies.row("ood", seed, step))]
        healed = [
            row
            for step in accuracies.starts("ood")
            for rl_step in accuracies.rl_steps("ood", step)
            if (row := accuracies.row("ood", seed, step, rl_step))
        ]
        if not trunk or not healed:
            continue
        peak, top = (max(group, key=lambda row: row["acc_1"]) for group in (trunk, healed))
        ceiling = peak["acc_1"] if peak["acc_1_high"] is None else peak["acc_1_high"]
        beyond = sum((r["acc_1"] if r["acc_1_low"] is None else r["acc_1_low"]) > ceiling for r in healed)
        cells += len(healed)
        above += sum(row["acc_1"] > peak["acc_1"] for row in healed)
        clear += beyond
        per_seed.append((seed, peak["acc_1"], top["acc_1"], beyond > 0))
    if not per_seed:
        return []
    rarely = clear <= 0.1 * cells and 2 * sum(beyond for *_, beyond in per_seed) < len(per_seed)
    verb = "does exceed" if not rarely else "rarely exceeds" if clear else "does not clearly exceed"
    tops = listed(f"{number(top)} against {number(peak)} (seed {seed})" for seed, peak, top, _ in per_seed)
    text = (
        f"RL {verb} the SFT peak of OOD accuracy: it is above it in {above} of {cells} cells, with intervals "
        f"apart in {clear}. Best after RL against best of SFT: {tops}."
    )
    return [Finding("rarely_exceeds", text, rarely)]
