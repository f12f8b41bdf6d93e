"""What a study does, counted: units and work by stage, and what sharing trunks and branches saves."""

from __future__ import annotations

from dataclasses import dataclass

from rlheals_ray.config import Study, edit_kinds
from rlheals_ray.grid.units import edit_name
from rlheals_ray.lineage import branches, controls, trunks


@dataclass(frozen=True)
class Counts:
    """Of a whole study. Where a peak turns out to be the latest step, spectra and edits are fewer."""

    trunks: int
    sft_updates: int
    """Of all trunks together."""
    branches: int
    rl_updates: int
    """Of all branches together."""
    controls: int
    control_updates: int
    """RL updates whose compute the controls get."""
    probes: int
    """Of the map: base, trunks, branches."""
    control_probes: int
    edits: int
    """Edited checkpoints, controls of edits included."""
    hidden: int
    """Checkpoints whose hidden states are taken."""
    compared: int
    """Sets of matrices that spectra decompose, at most: of checkpoints, and of the updates between them."""


@dataclass(frozen=True)
class Sharing:
    """A study's training, shared and with every cell by itself."""

    cells: int
    sft_updates: int
    rl_updates: int
    control_updates: int
    sft_apart: int
    rl_apart: int
    control_apart: int
    """Of control cells, each of which repeats its trunk and its RL branch, whose compute it is to have, too."""
    sft_apart_controls: int
    rl_apart_controls: int


def counts(study: Study) -> Counts:
    """Count, from the settings alone."""
    every, rl, beside = trunks(study), list(branches(study)), list(controls(study))
    kept = len([budget for budget in study.rl.budgets if budget])
    trained = 0 if study.sft.checkpoints is not None else study.sft.steps[-1]
    probes = 1 + len(every) * len(study.sft.steps) + len(rl) * kept
    steps = {study.sft.steps[-1], *study.rl.from_steps}
    return Counts(
        trunks=len(every),
        sft_updates=len(every) * trained,
        branches=len(rl),
        rl_updates=len(rl) * study.rl.budgets[-1],
        controls=len(beside),
        control_updates=len(beside) * study.rl.budgets[-1],
        probes=probes,
        control_probes=len(beside) * kept,
        edits=len(edit_names(study)),
        hidden=probes if study.hidden is not None else 0,
        # Of a branch: its end, RL's update, and SFT's from the base and from the peak.
        compared=1 + len(every) * (len(steps) + 1) + 4 * len(rl),
    )


def edit_names(study: Study) -> set[str]:
    """Every edited checkpoint, controls included; what they share is there once."""
    roles = study.spectra.roles
    return {
        edit_name(trunk, settings, variant, kind, roles)
        for trunk in trunks(study)
        for settings in study.edits
        for variant in settings.variants(roles)
        for kind in edit_kinds(variant.factors)
    }


def sharing(study: Study) -> Sharing:
    """What training every trunk and branch once saves, against training every cell by itself.

    By itself, the cell (f, b) is a trunk of f updates and a branch of b; with budget 0 it is a trunk's checkpoint,
    and costs nothing more.
    """
    each = counts(study)
    budgets = [budget for budget in study.rl.budgets if budget]
    taken_over = study.sft.checkpoints is not None
    starts = [0 if taken_over else branch.sft_step for branch in branches(study)]
    beside = [0 if taken_over else control.sft_step for control in controls(study)]
    return Sharing(
        cells=each.trunks * len(study.rl.from_steps) * len(study.rl.budgets),
        sft_updates=each.sft_updates,
        rl_updates=each.rl_updates,
        control_updates=each.control_updates,
        sft_apart=sum(starts) * len(budgets),
        rl_apart=len(starts) * sum(budgets),
        control_apart=len(beside) * sum(budgets),
        sft_apart_controls=sum(beside) * len(budgets),
        rl_apart_controls=len(beside) * sum(budgets),
    )


def sharing_lines(study: Study) -> list[str]:
    """For the plan."""
    cost = sharing(study)
    lines = [
        f"cells: {cost.cells}; SFT updates {cost.sft_updates} (each cell by itself: {cost.sft_apart}); "
        f"RL updates {cost.rl_updates} (each cell by itself: {cost.rl_apart})"
    ]
    if cost.control_updates:
        lines.append(
            f"controls: the compute of {cost.control_updates} RL updates (each cell by itself: {cost.control_apart}, "
            f"and {cost.sft_apart_controls} SFT and {cost.rl_apart_controls} RL updates more to come to where they "
            "start and to what they may spend)"
        )
    return lines
