"""Every unit of work of a study, its name and its fingerprint: what must be done, and what is done.

Fingerprints chain: a unit hashes its own settings, the version of its code, and its parents. `seeds`
is in none of them, so that adding a seed adds work and repeats nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rlheals_ray.config import EditSettings, EditVariant, Role, Study
from rlheals_ray.rl.names import branch_checkpoint
from rlheals_ray.sft.names import BASE, trunk_checkpoint
from rlheals_ray.storage import Unit, fingerprint
from rlheals_ray.tasks import get_task

CODE = {"base": 1, "sft": 1, "losses": 1, "rl": 4, "probe": 2, "spectra": 3, "edit": 3, "hidden": 1}
"""Raise a stage's number when its code changes what it computes: old results are then redone."""

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
    seed: int | None
    sft_step: int | None
    rl_step: int | None


@dataclass(frozen=True)
class StudyUnits:
    """All units of a study that its settings alone determine (edits also depend on where the peak is)."""

    study: Study

    @cached_property
    def task(self) -> str:
        return get_task(self.study.task.name, **self.study.task.options).fingerprint()

    @cached_property
    def base(self) -> Unit:
        settings = self.study.base
        if settings.model == "nano":
            return Unit("base", fingerprint(code=CODE["base"], base=settings.model_dump(), task=self.task))
        # The same path may hold other weights tomorrow: sizes and times of its files tell, without reading them.
        files = sorted(Path(settings.model).expanduser().iterdir())
        content = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return Unit("base", fingerprint(code=CODE["base"], model=settings.model, content=content))

    def trunk(self, seed: int) -> Unit:
        settings = self.study.sft.model_dump(exclude={"workers"})
        return Unit(
            f"sft/seed={seed}",
            fingerprint(
                code=CODE["sft"], sft=settings, seed=seed, task=self.task, parent=self.base.fingerprint
            ),
        )

    def losses(self, seed: int) -> Unit:
        return Unit(
            f"losses/seed={seed}",
            fingerprint(code=CODE["losses"], problems=self._problems, parent=self.trunk(seed).fingerprint),
        )

    def branch(self, seed: int, sft_step: int) -> Unit:
        settings = self.study.rl.model_dump(exclude=BRANCH_HOW)
        return Unit(
            f"rl/seed={seed}/sft_step={sft_step:06d}",
            fingerprint(
                code=CODE["rl"],
                rl=settings,
                sft_step=sft_step,
                generation=self._generation,
                parent=self.trunk(seed).fingerprint,
            ),
        )

    def branches(self) -> Iterator[tuple[int, int, Unit]]:
        """(seed, SFT step, unit) of every branch."""
        for seed in self.study.seeds:
            for step in self.study.rl.from_steps:
                yield seed, step, self.branch(seed, step)

    def base_probe(self) -> Probe:
        return self._probe(BASE, self.base.fingerprint, "base", None, None, None)

    def trunk_probes(self, seed: int) -> list[Probe]:
        parent = self.trunk(seed).fingerprint
        return [
            self._probe(trunk_checkpoint(seed, step), parent, "sft", seed, step, 0)
            for step in self.study.sft.steps
        ]

    def branch_probes(self, seed: int, sft_step: int) -> list[Probe]:
        parent = self.branch(seed, sft_step).fingerprint
        return [
            self._probe(branch_checkpoint(seed, sft_step, budget), parent, "rl", seed, sft_step, budget)
            for budget in self.study.rl.budgets
            if budget > 0
        ]

    def probes(self) -> list[Probe]:
        """Every probe of the map, in the order of the scores table."""
        out = [self.base_probe()]
        for seed in self.study.seeds:
            out += self.trunk_probes(seed)
            for step in self.study.rl.from_steps:
                out += self.branch_probes(seed, step)
        return out

    def spectra(self, seed: int, peak: int, branches: Sequence[int]) -> Unit:
        """Comparisons of one seed's checkpoints: they depend on the peak and on which branches are done."""
        return Unit(
            f"spectra/seed={seed}",
            fingerprint(
                code=CODE["spectra"],
                spectra=self.study.spectra.model_dump(),
                peak=peak,
                trunk=self.trunk(seed).fingerprint,
                branches=[self.branch(seed, step).fingerprint for step in branches],
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

    def hidden(self, collected: Sequence[Unit], peaks: Mapping[int, int]) -> Unit:
        """The measures: they depend on which checkpoints were collected, and on where the seeds' peaks are."""
        return Unit(
            "hidden",
            fingerprint(
                code=CODE["hidden"],
                collected=[(unit.name, unit.fingerprint) for unit in collected],
                peaks=sorted(peaks.items()),
            ),
        )

    def edit(
        self, seed: int, edit: EditSettings, variant: EditVariant, kind: str, steps: Mapping[str, int]
    ) -> tuple[Unit, Probe]:
        """The unit that writes an edited checkpoint, and its probe.

        steps: the SFT steps that were found for `peak` and, where an edit names it, `healed`.
        """
        roles = self.study.spectra.roles
        name = edit_name(seed, edit, variant, kind, roles)
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
                donor=(edit.donor, self._made_by(seed, edit.donor, steps)),
                recipient=(edit.recipient, self._made_by(seed, edit.recipient, steps)),
                **found,
            ),
        )
        return unit, self._probe(f"edit/{name}", unit.fingerprint, "edit", seed, None, None)

    def _made_by(self, seed: int, anchor: str, steps: Mapping[str, int]) -> str:
        """Fingerprint of the unit that makes the checkpoint which an edit calls `anchor`."""
        kind, *numbers = anchor.split("-")
        if kind in ("rl", "healed"):
            return self.branch(seed, int(numbers[0]) if numbers else steps["healed"]).fingerprint
        return self.base.fingerprint if kind == "base" else self.trunk(seed).fingerprint

    def _probe(
        self,
        checkpoint: str,
        parent: str,
        stage: str,
        seed: int | None,
        sft_step: int | None,
        rl_step: int | None,
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
        return Probe(unit, checkpoint, parent, stage, seed, sft_step, rl_step)

    @property
    def _problems(self) -> dict[str, int]:
        return {"problems": self.study.evaluation.problems, "seed": self.study.evaluation.seed}

    @property
    def _generation(self) -> dict[str, object]:
        rollout = self.study.rollout
        return {"engine": rollout.engine, "dtype": rollout.dtype, "max_model_len": rollout.max_model_len}


def edit_group(seed: int, edit: EditSettings, variant: EditVariant, roles: tuple[Role, ...]) -> str:
    """What an edit and its controls share: `seed=0_peak-into-latest_UV_k=all`, defaults left out."""
    mode = "" if variant.mode == "concatenate" else f"_{variant.mode}"
    k = "all" if variant.k is None else variant.k
    part = "" if variant.part == "top" else f"_{variant.part}"
    t = "" if variant.t == 1 else f"_t={variant.t:g}"
    whose = edit_whose(variant, roles)
    return f"seed={seed}_{edit.donor}-into-{edit.recipient}_{variant.factors}{mode}_k={k}{part}{t}{whose}"


def edit_name(seed: int, edit: EditSettings, variant: EditVariant, kind: str, roles: tuple[Role, ...]) -> str:
    """The id of an edit or control, also its directory: `seed=0_peak-into-latest_UV_k=all_edit`."""
    if kind == "weight_swap":
        return f"seed={seed}_{edit.donor}-into-{edit.recipient}{edit_whose(variant, roles)}_{kind}"
    return f"{edit_group(seed, edit, variant, roles)}_{kind}"


def edit_whose(variant: EditVariant, roles: tuple[Role, ...]) -> str:
    """Which matrices, as part of a name; empty for all of the study's."""
    layers = "" if variant.blocks == 1 else f"_layers={variant.block + 1}of{variant.blocks}"
    return layers + ("" if variant.roles == roles else f"_roles={'+'.join(variant.roles)}")
