"""Does RL heal more than as much SFT does? RL against the controls of healing, from the table `controls`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import pyarrow as pa

from rlheals_ray.lineage import CONTROLS
from rlheals_ray.report.layout import Table
from rlheals_ray.report.results import Row
from rlheals_ray.report.words import Finding, count, interval, listed, number

NAMES = {"continued_sft": "continued SFT", "rejection_sft": "SFT on own solved samples"}
NOT_RUN = (
    "Controls not run: {missing}. Without them ‘heals’ means only that accuracy rose during RL: as much SFT might have "
    "done the same."
)


def control_cells(controls: pa.Table, rule: str = "ood") -> list[Row]:
    """The rows that speak for the study: pooled over seeds, or the only seed's own; budgets above 0."""
    mine = [
        row
        for row in controls.to_pylist()
        if row["rule"] == rule
        and row["rl_step"]
        and row["difference"] is not None
        and row["control"] in CONTROLS
    ]
    pooled = [row for row in mine if row["scope"] == "pooled"]
    if not pooled and len({row["seed"] for row in mine}) == 1:
        pooled = mine
    return sorted(pooled, key=lambda row: (CONTROLS.index(row["control"]), row["sft_step"], row["rl_step"]))


def at_largest(rows: Iterable[Row]) -> list[Row]:
    """Of each control and start, the row of the largest budget."""
    best: dict[tuple[str, int], Row] = {}
    for row in rows:
        key = (row["control"], row["sft_step"])
        if key not in best or row["rl_step"] > best[key]["rl_step"]:
            best[key] = row
    return list(best.values())


def control_findings(
    controls: pa.Table, cells: Sequence[Row], after_rl: bool, branches: Iterable[Row] = ()
) -> list[Finding]:
    """“RL heals more than as much SFT does”, against each control: yes where RL is better from each start that heals.

    No where RL is worse than the control from such a start and better from none; open otherwise. `cells`: those of
    `healing_cells`; `after_rl`: whether any checkpoint after RL was probed; `branches`: of that table, by which a
    control without a comparison is known to have been tried.
    """
    rows = at_largest(control_cells(controls))
    heals = {(row["sft_step"], row["rl_step"]) for row in cells if row["verdict"] == "heals"}
    found = []
    for name in CONTROLS:
        if mine := [row for row in rows if row["control"] == name]:
            found.append(_verdict(name, mine, heals))
    known = {row["algorithm"] for row in branches}
    absent = [name for name in CONTROLS if all(row["control"] != name for row in rows)]
    if started := [name for name in absent if name in known]:
        text = f"Whether RL heals more than {listed(started)} is open: no such control came to its end."
        found.append(Finding("controls_unfinished", text, None))
    missing = [name for name in absent if name not in known]
    if missing and after_rl:
        found.append(Finding("controls", NOT_RUN.format(missing=listed(missing)), None))
    return found


def _verdict(name: str, rows: Sequence[Row], heals: Collection[tuple[int, int]]) -> Finding:
    mine = [row for row in rows if (row["sft_step"], row["rl_step"]) in heals]
    against = f"{NAMES[name]} ({name}) does at equal compute"
    if not mine:
        steps = listed(sorted({row["sft_step"] for row in rows}))
        text = f"Whether RL heals more than {against} is open: RL heals from none of the SFT steps compared ({steps})."
        return Finding(name, text, None)
    better = [row for row in mine if row["verdict"] == "better"]
    worse = [row for row in mine if row["verdict"] == "worse"]
    told = f"where RL heals, {_by_verdict(mine)}"
    if len(better) == len(mine):
        return Finding(name, f"RL heals more than {against}: {told}.", True)
    if worse and not better:
        return Finding(name, f"RL does not heal more than {against}: {told}.", False)
    return Finding(name, f"Whether RL heals more than {against} is open: {told}.", None)


def _by_verdict(rows: Sequence[Row]) -> str:
    """`it is better from SFT 4 (+.30 [.22, .38]) and 15 (...), unclear from SFT 60 (...)`."""
    words = {
        "better": "it is better from SFT",
        "worse": "it is worse from SFT",
        "unclear": "unclear from SFT",
    }
    parts = []
    for verdict, word in words.items():
        mine = [row for row in rows if (row["verdict"] or "unclear") == verdict]
        if mine:
            changes = (
                f"{row['sft_step']} ({number(row['difference'], signed=True)}"
                f"{interval(row['difference_low'], row['difference_high'])})"
                for row in mine
            )
            parts.append(f"{word} {listed(changes)}")
    return ", ".join(parts)


def control_table(rows: Sequence[Row], name: str = "", folded: bool = True) -> Table | None:
    """Every comparison of RL with a control, both rules; None without any."""
    if not rows:
        return None
    lines = [
        (
            row["control"],
            row["rule"].upper(),
            str(row["sft_step"]),
            str(row["rl_step"]),
            number(row["acc_rl"]),
            number(row["acc_control"]),
            number(row["difference"], signed=True),
            interval(row["difference_low"], row["difference_high"]).strip() or "–",
            interval(row["difference_seed_low"], row["difference_seed_high"]).strip() or "one seed",
            count(row["seeds"]),
            "–" if row["q"] is None else f"{row['q']:.2g}",
            f"RL {row['verdict']}" if row["verdict"] in ("better", "worse") else row["verdict"] or "",
        )
        for row in rows
    ]
    heads = (
        "control",
        "rule",
        "SFT step",
        "RL updates",
        "after RL",
        "after the control",
        "RL − control",
        "over problems",
        "over seeds (t)",
        "seeds",
        "q",
        "verdict",
    )
    return Table(f"RL against its controls{f' ({name})' if name else ''}", heads, lines, folded=folded)
