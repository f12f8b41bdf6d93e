"""What edits show: whether they restore OOD accuracy, and whether more than their controls do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from rlheals_ray.report.edits import (
    CONTROL_KINDS,
    Bar,
    EditGroup,
    EditSeries,
    chosen_words,
    edit_groups,
    rows_along,
)
from rlheals_ray.report.paired import Difference, Paired
from rlheals_ray.report.results import Accuracies, Tables
from rlheals_ray.report.words import Finding, interval, listed, number

FEW = 3
"""Up to so many edits are told one by one; of more, the best one and how many do what."""
WORDS = {
    "weight_swap": "the plain weight swap",
    "interpolation": "interpolation at equal ‖ΔW‖",
    "random_angle": "a random rotation of equal angle",
    "random_norm": "a random change of equal norm",
}


def edit_findings(
    tables: Tables, accuracies: Accuracies, clusters: Mapping[str, str] | None = None
) -> list[Finding]:
    """Findings on the edits; empty where none was scored under the OOD rule."""
    groups = [group for group in edit_groups(tables, accuracies, clusters) if "edit" in group.bars["ood"]]
    if not groups:
        return []
    paired = Paired(tables["episodes"], {name for group in groups for name in group.episodes}, clusters)
    imposing = [group for group in groups if _imposes(group)]
    restoring = [group for group in groups if not _imposes(group)]
    if len(restoring) <= FEW:
        told = [_edit(group, paired) for group in restoring]
    else:
        best = max(restoring, key=lambda group: group.bars["ood"]["edit"].value)
        told = [_edit(best, paired, of=len(restoring)), _counts(restoring, paired)]
    doses = [_dose(family) for family in rows_along(restoring, "t")[:FEW]]
    first, *others = [*told, *doses, *(_impose(group, paired) for group in imposing[:FEW])]
    return [replace(first, text=first.text + chosen_words(groups)), *others]


def _imposes(group: EditGroup) -> bool:
    """Whether the donor is the worse one, so that the edit is to spoil what the recipient can do."""
    bars = group.bars["ood"]
    return "donor" in bars and "recipient" in bars and bars["donor"].value < bars["recipient"].value


def _impose(group: EditGroup, paired: Paired) -> Finding:
    """Shown when the edit stands below the recipient and below every control that ran, the weight swap included."""
    bars = group.bars["ood"]
    edit = bars["edit"]
    lowered = sign_against(group, "recipient", paired) == -1
    signs = {kind: sign_against(group, kind, paired) for kind in CONTROL_KINDS}
    verb = "lowers OOD accuracy to" if lowered else "does not lower OOD accuracy:"
    text = f"Imposing the worse checkpoint ({group.label}) {verb} {number(edit.value)}{interval(edit.low, edit.high)}"
    text += f"; recipient {number(bars['recipient'].value)} and donor {number(bars['donor'].value)}."
    beside = [
        f"{ {1: 'higher than', 0: 'no different from', -1: 'lower than'}[sign] } {_control(group, kind)}, "
        f"{number(bars[kind].value)}{_by(group, kind, paired)}"
        for kind, sign in signs.items()
        if sign is not None
    ]
    if beside:
        text += f" It ends {'; '.join(beside)}."
    known = [sign for sign in signs.values() if sign is not None]
    shown = None if signs["weight_swap"] is None else lowered and all(sign == -1 for sign in known)
    return Finding("impose", text, shown)


def _compared(group: EditGroup, kind: str, paired: Paired, alpha: float = 0.05) -> Difference | None:
    """The edit minus a control, recipient or donor, seed by seed on the same problems; None where not known."""
    mine, others = group.checkpoints.get("edit", {}), group.checkpoints.get(kind, {})
    pairs = ((mine[seed], others[seed]) for seed in mine if seed in others)
    return paired.difference(pairs, alpha, held_out=group.held_out)


def sign_against(group: EditGroup, kind: str, paired: Paired, alpha: float = 0.05) -> int | None:
    """1 or −1 where the edit is above or below, else 0; None where there is nothing to compare with.

    By the paired interval where both were probed problem by problem, else by whether intervals stand apart.
    """
    bars = group.bars["ood"]
    if kind not in bars:
        return None
    difference = _compared(group, kind, paired, alpha)
    if difference is not None:
        return difference.sign
    return 1 if _above(bars["edit"], bars[kind]) else -1 if _above(bars[kind], bars["edit"]) else 0


def _edit(group: EditGroup, paired: Paired, of: int = 1) -> Finding:
    """An edit restores when it stands above the recipient. It speaks of directions only when it also stands above
    the plain weight swap and every other control that ran: all of them together are what the claim needs."""
    bars = group.bars["ood"]
    edit, start, swap = bars["edit"], bars.get("recipient"), bars.get("weight_swap")
    raised = sign_against(group, "recipient", paired)
    verb = "gives OOD accuracy"
    if start is not None:
        verb = "raises OOD accuracy to" if raised == 1 else "does not raise OOD accuracy:"
    name = f"The edit ({group.label})"
    if of > 1:
        name = f"The best of {of} edits ({group.label}; chosen on the same problems, which flatters it)"
    ends = [f"{end} {number(bars[end].value)}" for end in ("recipient", "donor") if end in bars]
    text = f"{name} {verb} {number(edit.value)}{interval(edit.low, edit.high)}"
    text += f"; {listed(ends)}." if ends else "."
    shown: bool | None
    signs = {kind: sign_against(group, kind, paired) for kind in CONTROL_KINDS}
    against = signs["weight_swap"]
    if swap is None:
        text += " Its plain weight swap was not scored, so this is no evidence on directions."
        shown = None
    elif against == 1:
        text += f" It does more than the plain weight swap of the same matrices, {number(swap.value)}"
        text += f"{_by(group, 'weight_swap', paired)}."
        shown = (start is None or raised == 1) and all(sign in (None, 1) for sign in signs.values())
    else:
        less = "less than" if against == -1 else "no more than"
        text += (
            f" It does {less} the plain weight swap of the same matrices, {number(swap.value)}"
            f"{_by(group, 'weight_swap', paired)}, so it says nothing about directions that the swap does not."
        )
        shown = False
    others = [
        f"{ {1: 'more than', 0: 'no more than', -1: 'less than'}[sign] } {_control(group, kind)}, "
        f"{number(bars[kind].value)}{_by(group, kind, paired)}"
        for kind in CONTROL_KINDS[1:]
        if (sign := signs[kind]) is not None
    ]
    if others:
        text += f" It does {'; '.join(others)}."
    if group.projection is not None:
        rest = "" if group.residual is None else f", residual {group.residual:.2f}"
        text += f" It goes {100 * group.projection:.0f} % of the way to the donor{rest}."
    return Finding("edit", text, shown)


def _control(group: EditGroup, kind: str) -> str:
    """The control in words; its size beside where that is not the edit's, as with rotations of equal angle."""
    sizes = [group.ways[name].delta_norm if name in group.ways else None for name in (kind, "edit")]
    if kind != "random_angle" or not all(sizes):
        return WORDS[kind]
    control, edit = (size or math.nan for size in sizes)
    return f"{WORDS[kind]} (whose ‖ΔW‖ is {control / edit:.1f} times the edit's)"


def _by(group: EditGroup, kind: str, paired: Paired) -> str:
    difference = _compared(group, kind, paired)
    if difference is None:
        return ""
    # Three digits: the two of an accuracy would round an end of the interval onto 0.
    value, low, high = (f"{x:+.3f}".replace("-", "−").replace("0.", ".") for x in difference)
    return f" ({value} [{low}, {high}])"


def _counts(groups: Sequence[EditGroup], paired: Paired) -> Finding:
    """Shown when some edit stands above the recipient and all of the controls that ran with it, also after
    Bonferroni's correction for the number of edits."""
    kinds = ("recipient", *CONTROL_KINDS)
    signs = [{kind: sign_against(group, kind, paired) for kind in kinds} for group in groups]
    parts = []
    for kind, words in {"recipient": "the recipient", **WORDS}.items():
        known = [mine[kind] for mine in signs if mine[kind] is not None]
        if known:
            below = f" (below it: {sum(sign == -1 for sign in known)})" if kind != "recipient" else ""
            parts.append(f"above {words} in {sum(sign == 1 for sign in known)} of {len(known)}{below}")
    above = [
        group
        for group, mine in zip(groups, signs, strict=True)
        if mine["weight_swap"] is not None and all(sign in (None, 1) for sign in mine.values())
    ]
    alpha = 0.05 / len(groups)
    lasting = sum(all(sign_against(g, kind, paired, alpha) in (None, 1) for kind in kinds) for g in above)
    text = (
        f"Of {len(groups)} edits, OOD accuracy stands {listed(parts)}, by 95 % intervals. Above all of these at once: "
        f"{len(above)}, and {lasting} after Bonferroni’s correction for {len(groups)} edits."
    )
    return Finding("edits", text, lasting > 0)


def _dose(family: EditSeries) -> Finding:
    """Shown when accuracy never falls along t, ends above where it began and above interpolation, intervals apart."""
    points = [(group.t, group.bars["ood"]["edit"]) for group in family.groups]
    start = family.groups[0].bars["ood"].get("recipient")
    if start is not None:
        points = [(0.0, start), *points]
    values = [bar.value for _, bar in points]
    rising = all(later >= earlier for earlier, later in pairwise(values))
    gained = _above(points[-1][1], points[0][1])
    curve = ", ".join(f"{number(bar.value)} at t = {t:g}" for t, bar in points)
    what = family.groups[0].label.replace(f", t = {family.groups[0].t:g}", "")
    if rising and gained:
        text = f"Turning further restores more: OOD accuracy rises with t ({what}): {curve}."
    elif gained:
        text = f"Turning restores OOD accuracy, but not in proportion: {curve} ({what})."
    else:
        text = f"Turning does not restore OOD accuracy: {curve} ({what})."
    same = [group.bars["ood"].get("interpolation") for group in family.groups]
    if all(same):
        beside = listed(number(bar.value) for bar in same if bar)
        text += f" Interpolation at the same norms: {beside}."
    if not (rising and gained):
        return Finding("dose", text, False)
    last = family.groups[-1].bars["ood"]
    beyond = "interpolation" in last and _above(last["edit"], last["interpolation"])
    # Any path from recipient to donor may rise; only one that rises above the straight one speaks of rotation.
    return Finding("dose", text, True if beyond else None)


def _above(a: Bar, b: Bar) -> bool:
    """Whether the interval of `a` stands wholly above that of `b`."""
    return (a.value if a.low is None else a.low) > (b.value if b.high is None else b.high)
