"""Every unit of work of a study, its name and its fingerprint: what must be done, and what is done.

Fingerprints chain: a unit hashes its own settings, the version of its code, and its parents. `seeds`
is in none of them, so that adding a seed adds work and repeats nothing.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rlheals_ray.config import EditSettings, EditVariant, Role, Study
from rlheals_ray.lineage import BASE, Branch, Trunk, branches, branches_of, controls, trunks
from rlheals_ray.models.architecture import PACKAGE, directory_of
from rlheals_ray.storage import Unit, fingerprint
from rlheals_ray.tasks import get_task
from rlheals_ray.tasks.source import source_hash

CODE = {
    "base": 1,
    "sft": 1,
    "losses": 1,
    "rl": 5,
    "probe": 2,
    "spectra": 4,
    "edit": 3,
    "hidden": 1,
    "control": 1,
}
"""Raise a stage's number when its code changes what it computes: old results are then redone."""

SFT_HOW = {
    "workers", "micro_batch", "offload", "gradient_checkpointing", "state_every", "checkpoints", "recipe", "lora",
    "flow", "rotation", "data",
}  # fmt: skip
"""What of `sft` only changes how a trunk is computed, or is hashed apart."""

BRANCH_HOW = {"workers", "from_steps", "micro_batch", "save_every", "gradient_checkpointing"}
"""What of `rl` only changes how a branch is computed, or which branches there are."""


@dataclass(frozen=True)
class Probe:
    """A checkpoint to be probed, and what the scores table says of it."""

    unit: Unit
    checkpoint: str
    made_by: str
    """Fingerprint of the unit that makes the checkpoint."""
    stage: str
    trunk: Trunk | None = None
    sft_step: int | None = None
    rl_step: int | None = None

    @property
    def seed(self) -> int | None:
        return None if self.trunk is None else self.trunk.seed

    @property
    def recipe(self) -> str | None:
        return None if self.trunk is None else self.trunk.recipe


@dataclass(frozen=True)
class StudyUnits:
    """All units of a study that its settings alone determine (edits also depend on where the peak is)."""

    study: Study

    @cached_property
    def task(self) -> str:
        """The task's own fingerprint, and of a task of one's own also a hash of its code."""
        name = self.study.task.name
        declared = get_task(name, **self.study.task.options).fingerprint()
        if ":" not in name:
            return declared
        return fingerprint(declared=declared, source=source_hash(name.partition(":")[0]))

    @cached_property
    def base(self) -> Unit:
        settings = self.study.base
        if settings.model == "nano":
            return Unit(
                "base",
                fingerprint(code=CODE["base"], base=settings.model_dump(exclude={"prompt"}), task=self.task),
            )
        how: dict[str, object] = {"model": settings.model, "content": model_content(settings.model)}
        if settings.prompt != "chat":
            how["prompt"] = settings.prompt
        return Unit("base", fingerprint(code=CODE["base"], **how))

    def trunk(self, trunk: Trunk) -> Unit:
        settings = self.study.sft
        if settings.checkpoints is not None:
            given = {step: where.format(seed=trunk.seed) for step, where in settings.checkpoints.items()}
            how: dict[str, object] = {
                "given": {step: directory_content(given[step]) for step in sorted(given)}
            }
        else:
            how = self._training(trunk)
        return Unit(
            trunk.name,
            fingerprint(
                code=CODE["sft"], seed=trunk.seed, task=self.task, parent=self.base.fingerprint, **how
            ),
        )

    def _training(self, trunk: Trunk) -> dict[str, object]:
        """What SFT itself is done with."""
        settings = self.study.sft
        how: dict[str, object] = {"sft": settings.model_dump(exclude=SFT_HOW), "recipe": trunk.recipe}
        if trunk.recipe in ("lora", "flow", "rotation"):
            how["settings"] = getattr(settings, trunk.recipe).model_dump()
        if settings.data is not None:
            fields = settings.data.model_dump(exclude={"path"})
            how["data"] = (fields, directory_content(settings.data.path))
        return how

    def losses(self, trunk: Trunk) -> Unit:
        return Unit(
            f"losses/{trunk.path}",
            fingerprint(code=CODE["losses"], problems=self._problems, parent=self.trunk(trunk).fingerprint),
        )

    def branch(self, branch: Branch) -> Unit:
        """An RL branch, or a control, which depends on how much compute its RL branch took."""
        if branch.is_control:
            return self._control(branch)
        settings = self.study.rl.model_dump(exclude=BRANCH_HOW)
        return Unit(
            branch.name,
            fingerprint(
                code=CODE["rl"],
                rl=settings,
                sft_step=branch.sft_step,
                generation=self._generation,
                parent=self.trunk(branch.trunk).fingerprint,
            ),
        )

    def _control(self, control: Branch) -> Unit:
        beside = Branch(control.trunk, control.sft_step, self.study.rl.algorithm)
        # Else the trunk's own fingerprint has it.
        taken_over = self.study.sft.checkpoints is not None
        return Unit(
            control.name,
            fingerprint(
                code=CODE["control"],
                algorithm=control.algorithm,
                parent=self.branch(beside).fingerprint,
                **(self._training(control.trunk) if taken_over else {}),
            ),
        )

    def branches(self) -> Iterator[tuple[Branch, Unit]]:
        """Every RL branch."""
        for branch in branches(self.study):
            yield branch, self.branch(branch)

    def controls(self) -> Iterator[tuple[Branch, Unit]]:
        """Every control of healing."""
        for control in controls(self.study):
            yield control, self.branch(control)

    def base_probe(self) -> Probe:
        return self._probe(BASE, self.base.fingerprint, "base")

    def trunk_probes(self, trunk: Trunk) -> list[Probe]:
        parent = self.trunk(trunk).fingerprint
        return [
            self._probe(trunk.checkpoint(step), parent, "sft", trunk, step, 0)
            for step in self.study.sft.steps
        ]

    def branch_probes(self, branch: Branch) -> list[Probe]:
        """The probes of a branch's budgets, or of the control's at the same compute."""
        parent = self.branch(branch).fingerprint
        stage = "control" if branch.is_control else "rl"
        return [
            self._probe(branch.checkpoint(budget), parent, stage, branch.trunk, branch.sft_step, budget)
            for budget in self.study.rl.budgets
            if budget > 0
        ]

    def probes(self) -> list[Probe]:
        """Every probe of the map, in the order of the scores table; controls apart, see `control_probes`."""
        out = [self.base_probe()]
        for trunk in trunks(self.study):
            out += self.trunk_probes(trunk)
            for branch in branches_of(self.study, trunk):
                out += self.branch_probes(branch)
        return out

    def control_probes(self) -> list[Probe]:
        return [probe for control, _ in self.controls() for probe in self.branch_probes(control)]

    def spectra(self, trunk: Trunk, peak: int, branches: Sequence[Branch]) -> Unit:
        """Comparisons of one trunk's checkpoints: they depend on the peak and on which branches are done."""
        return Unit(
            f"spectra/{trunk.path}",
            fingerprint(
                code=CODE["spectra"],
                spectra=self.study.spectra.model_dump(),
                peak=peak,
                trunk=self.trunk(trunk).fingerprint,
                branches=[self.branch(branch).fingerprint for branch in branches],
            ),
        )

    def hidden_answers(self) -> Unit:
        """The prompts on which hidden states are taken, and the base's answers to them."""
        hidden, evaluation = self.study.hidden, self.study.evaluation
        if hidden is None:
            raise ValueError("the study takes no hidden states")
        return Unit(
            "hidden/answers",
            fingerprint(
                code=CODE["hidden"],
                samples=hidden.samples,
                problems={"problems": min(hidden.problems, evaluation.problems), "seed": evaluation.seed},
                max_new_tokens=evaluation.max_new_tokens,
                generation=self._generation,
                task=self.task,
                parent=self.base.fingerprint,
            ),
        )

    def hidden_states(self, probe: Probe) -> Unit:
        """What is collected of one checkpoint on these prompts."""
        parent = self.hidden_answers().fingerprint
        return Unit(
            f"hidden/{probe.checkpoint}",
            fingerprint(
                code=CODE["hidden"],
                checkpoint=probe.checkpoint,
                made_by=probe.made_by,
                last_tokens=self.study.hidden.last_tokens if self.study.hidden else None,
                parent=parent,
            ),
        )

    def hidden(self, collected: Sequence[Unit], peaks: Mapping[Trunk, int]) -> Unit:
        """The measures: they depend on which checkpoints were collected, and on where the trunks' peaks are."""
        return Unit(
            "hidden",
            fingerprint(
                code=CODE["hidden"],
                collected=[(unit.name, unit.fingerprint) for unit in collected],
                peaks=sorted((trunk.path, step) for trunk, step in peaks.items()),
            ),
        )

    def edit(
        self, trunk: Trunk, edit: EditSettings, variant: EditVariant, kind: str, steps: Mapping[str, int]
    ) -> tuple[Unit, Probe]:
        """The unit that writes an edited checkpoint, and its probe.

        steps: the SFT steps that were found for `peak` and, where an edit names it, `healed`.
        """
        roles = self.study.spectra.roles
        name = edit_name(trunk, edit, variant, kind, roles)
        # A control has no more inputs than shape it: the swap of the same matrices is one, whatever edit it is for.
        how = dataclasses.asdict(variant) if kind != "weight_swap" else {"whose": edit_whose(variant, roles)}
        named = (edit.donor, edit.recipient)
        found = {"peak": steps["peak"] if "peak" in named else None}
        if "healed" in named:
            found["healed"] = steps["healed"]
        unit = Unit(
            f"edit/{name}",
            fingerprint(
                code=CODE["edit"],
                variant=how,
                roles=variant.roles,
                kind=kind,
                donor=(edit.donor, self._made_by(trunk, edit.donor, steps)),
                recipient=(edit.recipient, self._made_by(trunk, edit.recipient, steps)),
                **found,
            ),
        )
        return unit, self._probe(f"edit/{name}", unit.fingerprint, "edit", trunk)

    def _made_by(self, trunk: Trunk, anchor: str, steps: Mapping[str, int]) -> str:
        """Fingerprint of the unit that makes the checkpoint which an edit calls `anchor`."""
        kind, *numbers = anchor.split("-")
        if kind in ("rl", "healed"):
            start = int(numbers[0]) if numbers else steps["healed"]
            return self.branch(Branch(trunk, start, self.study.rl.algorithm)).fingerprint
        return self.base.fingerprint if kind == "base" else self.trunk(trunk).fingerprint

    def _probe(
        self,
        checkpoint: str,
        parent: str,
        stage: str,
        trunk: Trunk | None = None,
        sft_step: int | None = None,
        rl_step: int | None = None,
    ) -> Probe:
        unit = Unit(
            f"probe/{checkpoint}",
            fingerprint(
                code=CODE["probe"],
                # A generator knows weights by this fingerprint: two steps of one trunk must not share it.
                checkpoint=checkpoint,
                evaluation=self.study.evaluation.model_dump(),
                generation=self._generation,
                task=self.task,
                parent=parent,
            ),
        )
        return Probe(unit, checkpoint, parent, stage, trunk, sft_step, rl_step)

    @property
    def _problems(self) -> dict[str, int]:
        return {"problems": self.study.evaluation.problems, "seed": self.study.evaluation.seed}

    @property
    def _generation(self) -> dict[str, object]:
        rollout = self.study.rollout
        return {"engine": rollout.engine, "dtype": rollout.dtype, "max_model_len": rollout.max_model_len}


def model_content(model: str) -> object:
    """What tells whether base.model is still the same: the files of a directory, or the package's version."""
    if directory_of(model) is not None:
        return directory_content(model)
    try:
        return importlib.metadata.version(PACKAGE)
    except (
        importlib.metadata.PackageNotFoundError
    ):  # preflight asks for it where the base is still to be made
        return None


def directory_content(path: str) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a directory's files, or of one file: whether it is still the same, without reading it.

    The same path may hold other weights tomorrow.
    """
    where = Path(path).expanduser()
    files = [where] if where.is_file() else sorted(file for file in where.rglob("*") if file.is_file())
    return [(str(f.relative_to(where.parent)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def _of(trunk: Trunk) -> str:
    return trunk.path.replace("/", "_")


def edit_group(trunk: Trunk, edit: EditSettings, variant: EditVariant, roles: tuple[Role, ...]) -> str:
    """What an edit and its controls share: `seed=0_peak-into-latest_UV_k=all`, defaults left out."""
    mode = "" if variant.mode == "concatenate" else f"_{variant.mode}"
    k = "all" if variant.k is None else variant.k
    part = "" if variant.part == "top" else f"_{variant.part}"
    t = "" if variant.t == 1 else f"_t={variant.t:g}"
    whose = edit_whose(variant, roles)
    return f"{_of(trunk)}_{edit.donor}-into-{edit.recipient}_{variant.factors}{mode}_k={k}{part}{t}{whose}"


def edit_name(
    trunk: Trunk, edit: EditSettings, variant: EditVariant, kind: str, roles: tuple[Role, ...]
) -> str:
    """The id of an edit or control, also its directory: `seed=0_peak-into-latest_UV_k=all_edit`."""
    if kind == "weight_swap":
        return f"{_of(trunk)}_{edit.donor}-into-{edit.recipient}{edit_whose(variant, roles)}_{kind}"
    return f"{edit_group(trunk, edit, variant, roles)}_{kind}"


def edit_whose(variant: EditVariant, roles: tuple[Role, ...]) -> str:
    """Which matrices, as part of a name; empty for all of the study's."""
    layers = "" if variant.blocks == 1 else f"_layers={variant.block + 1}of{variant.blocks}"
    return layers + ("" if variant.roles == roles else f"_roles={'+'.join(variant.roles)}")
