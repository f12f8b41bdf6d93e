"""What a study stores: checkpoints by kind, the peak of resumable state, factors, edits, and what `keep` leaves."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from rlheals_ray.config import InputError, Study, edit_kinds
from rlheals_ray.grid.model_size import FLOAT32, ModelSize, model_size
from rlheals_ray.grid.plan_counts import counts, edit_names
from rlheals_ray.grid.resources import resources_of
from rlheals_ray.grid.units import edit_name
from rlheals_ray.lineage import trunks
from rlheals_ray.storage import StudyFiles, is_uri

STATES = 2
"""Of one run: `KEPT` of sft/run_state.py, and a branch's version while the next one is written."""


@dataclass(frozen=True)
class Stored:
    """Bytes, and how many files' worth, of one kind."""

    count: int
    bytes: int


@dataclass(frozen=True)
class Disk:
    """What a study takes on disk; tables, parts and logs apart."""

    checkpoints: Mapping[str, Stored]
    """By kind: base, sft, rl, control, edit."""
    factors: Stored
    hidden: Stored
    states: Stored
    """Resumable states at one moment, at most; they are gone when their units are done."""
    kept: Mapping[str, int]
    """Bytes of checkpoints that stay, by `keep`."""

    @property
    def peak(self) -> int:
        """The most at any moment: all that is kept, and the larger of the states, while training, and of the edits."""
        lasting = sum(s.bytes for kind, s in self.checkpoints.items() if kind != "edit")
        edits = self.checkpoints["edit"].bytes + self.factors.bytes + self.hidden.bytes
        return lasting + max(self.states.bytes, edits)


def disk(study: Study) -> Disk:
    """Predict it. Raises InputError where the size of base.model cannot be read."""
    size, each = model_size(study), counts(study)
    trained = size.checkpoint_bytes
    copies = each.trunks if 0 in study.sft.steps else 0
    steps = each.trunks * len(study.sft.steps)
    kept = len([budget for budget in study.rl.budgets if budget])
    sft = copies * size.base_bytes + (steps - copies) * trained
    checkpoints = {
        "base": Stored(1, size.base_bytes),
        "sft": Stored(steps, sft),
        "rl": Stored(each.branches * kept, each.branches * kept * trained),
        "control": Stored(each.controls * kept, each.controls * kept * trained),
        "edit": _edits(study, size),
    }
    # One peak more a trunk, where RL does not start there.
    start = each.trunks * (len({*study.rl.from_steps}) + 1)
    return Disk(
        checkpoints=checkpoints,
        factors=Stored(each.compared, each.compared * size.factor_bytes(study.spectra.roles)),
        hidden=Stored(each.hidden, each.hidden * _hidden_bytes(study, size)),
        states=_states(study, size),
        kept={
            "all": sum(stored.bytes for stored in checkpoints.values()),
            "boundary": size.base_bytes + (start + each.branches) * trained,
            "best": size.base_bytes + trained,
        },
    )


def check_disk(study: Study, files: StudyFiles) -> None:
    """Raises InputError where a new study's checkpoints of trunks and branches alone exceed the free space.

    A study that is there already has part of it; what is only stored at most (controls, edits) is not held against it.
    """
    if files.root.exists():
        return
    found, free = disk(study), free_bytes(files)
    least = sum(found.checkpoints[kind].bytes for kind in ("base", "sft", "rl")) + found.states.bytes
    if least > free:
        field, option = ("work", "work=DIR") if is_uri(study.storage) else ("storage", "--storage")
        raise InputError(
            f"{field} (got {str(files.root.parent)!r}): the study stores at least {in_units(least)} (base, trunks, "
            f"branches and their resumable states; with controls, factors and edits up to {in_units(found.peak)}), and "
            f"{in_units(free)} are free there; use {option} with more space, or fewer of seeds, sft.steps, "
            "rl.from_steps and rl.budgets (keep removes checkpoints only when the study is done)."
        )


def free_bytes(files: StudyFiles) -> int:
    """What is free where the study is, or will be, kept."""
    there = next(parent for parent in (files.root, *files.root.parents) if parent.exists())
    return shutil.disk_usage(there).free


def _states(study: Study, size: ModelSize) -> Stored:
    """Two states of each run under way: the newest, and the one before while that is being written."""
    needed, each = resources_of(study), counts(study)
    runs = min(needed.groups, max(each.trunks, each.branches + each.controls))
    # DeepSpeed keeps its own copy of the weights beside the model's.
    divided = study.sft.sharding in ("zero2", "zero3") and needed.workers > 1
    state = size.state_bytes + (FLOAT32 * size.parameters if divided else 0)
    return Stored(runs * STATES, runs * STATES * state)


def _edits(study: Study, size: ModelSize) -> Stored:
    """Edited matrices are files of their own; what an edit leaves alone is a link to one copy a recipient."""
    roles, written, left_alone = study.spectra.roles, {}, {}
    for trunk in trunks(study):
        for settings in study.edits:
            for variant in settings.variants(roles):
                layers = variant.layers(size.layers)
                count = size.layers if layers is None else len(layers)
                for kind in edit_kinds(variant.factors):
                    name = edit_name(trunk, settings, variant, kind, roles)
                    written[name] = size.matrix_bytes(variant.roles, count) + size.companions
                left_alone[trunk, settings.recipient] = (
                    size.checkpoint_bytes - size.matrix_bytes(roles) if size.matrices else 0
                )
    return Stored(len(edit_names(study)), sum(written.values()) + sum(left_alone.values()))


def _hidden_bytes(study: Study, size: ModelSize) -> int:
    """The float32 states of every prompt of both rules in every layer, the embeddings included; measures apart."""
    if study.hidden is None:
        return 0
    problems = min(study.hidden.problems, study.evaluation.problems)
    return FLOAT32 * 2 * problems * (size.layers + 1) * size.hidden


def disk_lines(study: Study, files: StudyFiles) -> list[str]:
    """For the plan."""
    found = disk(study)
    kinds = ", ".join(
        f"{kind} {'at most ' if kind in ('control', 'edit') else ''}{stored.count} = {in_units(stored.bytes)}"
        for kind, stored in found.checkpoints.items()
        if stored.count
    )
    total, count = found.kept["all"], sum(stored.count for stored in found.checkpoints.values())
    lines = [
        f"to be stored: {count} checkpoints = {in_units(total)} ({kinds}; edits link what they leave alone)",
        f"factors of at most {found.factors.count} checkpoints and updates: {in_units(found.factors.bytes)}; "
        f"hidden states: {in_units(found.hidden.bytes)}; resumable states while training: at most "
        f"{found.states.count} = {in_units(found.states.bytes)} (weights and AdamW's moments, {STATES} a run)",
        f"at the most {in_units(found.peak)} at one time, tables and logs apart; "
        f"{in_units(free_bytes(files))} are free",
    ]
    if is_uri(study.storage):
        lines.append(
            f"storage is a URI: the study is worked on in {files.root} and mirrored from there to {study.storage}; "
            "what is done is counted in that directory as it is now: a run first fetches what other machines have done"
        )
    if study.keep != "all":
        left = f"keep={study.keep}: when the study is done, about {in_units(found.kept[study.keep])} of them stay"
        return [*lines, left]
    boundary, best = in_units(found.kept["boundary"]), in_units(found.kept["best"])
    return [*lines, f"keep=boundary would leave about {boundary}, keep=best {best}"]


def in_units(count: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
