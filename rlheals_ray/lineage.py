"""Trunks and branches of a study, and the names of their checkpoints; a name is also the path under checkpoints/.

`recipe=` stands in a path when the study has more than one recipe, `algorithm=` in those of controls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rlheals_ray.config import Study

BASE = "base"
CONTROLS = ("continued_sft", "rejection_sft")
"""Controls of healing: they stand where an RL algorithm's name does, in tables and paths."""


@dataclass(frozen=True, order=True)
class Trunk:
    """One SFT run: a recipe and a seed."""

    recipe: str
    seed: int
    named: bool = False
    """Whether paths say the recipe."""

    @property
    def path(self) -> str:
        """`seed=0`, or `recipe=lora/seed=0`."""
        return f"{self._recipe}seed={self.seed}"

    @property
    def _recipe(self) -> str:
        return f"recipe={self.recipe}/" if self.named else ""

    @property
    def name(self) -> str:
        """`sft/seed=0`: of the unit of work, and of the directory of its checkpoints."""
        return f"sft/{self.path}"

    @property
    def label(self) -> str:
        """For progress lines: `seed 0`, or `lora, seed 0`."""
        return f"{self.recipe}, seed {self.seed}" if self.named else f"seed {self.seed}"

    def checkpoint(self, step: int) -> str:
        """`sft/seed=0/step=000120`."""
        return f"{self.name}/step={step:06d}"


@dataclass(frozen=True, order=True)
class Branch:
    """One run from a trunk's checkpoint: of an RL algorithm, or of a control."""

    trunk: Trunk
    sft_step: int
    algorithm: str

    @property
    def is_control(self) -> bool:
        return self.algorithm in CONTROLS

    @property
    def seed(self) -> int:
        return self.trunk.seed

    @property
    def start(self) -> str:
        """The checkpoint that it leaves from."""
        return self.trunk.checkpoint(self.sft_step)

    @property
    def name(self) -> str:
        """`rl/seed=0/sft_step=000120`, or `control/algorithm=continued_sft/seed=0/sft_step=000120`."""
        if self.is_control:
            recipe = f"recipe={self.trunk.recipe}/" if self.trunk.named else ""
            return f"control/{recipe}algorithm={self.algorithm}/seed={self.seed}/sft_step={self.sft_step:06d}"
        return f"rl/{self.trunk.path}/sft_step={self.sft_step:06d}"

    @property
    def label(self) -> str:
        """For progress lines: `seed 0, from SFT 120`."""
        what = f"{self.algorithm}, " if self.is_control else ""
        return f"{what}{self.trunk.label}, from SFT {self.sft_step}"

    @property
    def run(self) -> str:
        """Its run in every tracker: `ppo-seed=0-sft_step=000120`."""
        recipe = f"{self.trunk.recipe}-" if self.trunk.named else ""
        return f"{recipe}{self.algorithm}-seed={self.seed}-sft_step={self.sft_step:06d}"

    def plain(self) -> dict[str, str | int | bool]:
        """As plain values, for Tune's record of its trials; `Branch.of` reads them."""
        return {**asdict(self.trunk), "sft_step": self.sft_step, "algorithm": self.algorithm}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Branch:
        """The branch of `plain` values."""
        trunk = Trunk(plain["recipe"], plain["seed"], plain["named"])
        return cls(trunk, plain["sft_step"], plain["algorithm"])

    def checkpoint(self, rl_step: int) -> str:
        """`rl/seed=0/sft_step=000120/rl_step=000030`; a control's rl_step is the budget whose compute it had."""
        return f"{self.name}/rl_step={rl_step:06d}"


def trunks(study: Study) -> list[Trunk]:
    """Every trunk of the study: recipe by recipe, seed by seed."""
    recipes = study.sft.recipes
    return [Trunk(recipe, seed, named=len(recipes) > 1) for recipe in recipes for seed in study.seeds]


def branches(study: Study) -> Iterator[Branch]:
    """Every RL branch of the study; none when its only budget is 0."""
    if study.rl.budgets[-1] > 0:
        for trunk in trunks(study):
            yield from branches_of(study, trunk)


def branches_of(study: Study, trunk: Trunk) -> list[Branch]:
    """The RL branches that leave one trunk."""
    if study.rl.budgets[-1] == 0:
        return []
    return [Branch(trunk, step, study.rl.algorithm) for step in study.rl.from_steps]


def controls(study: Study) -> Iterator[Branch]:
    """Every control of the study, beside its RL branch."""
    wanted = study.controls.from_steps
    for branch in branches(study):
        if wanted is None or branch.sft_step in wanted:
            for kind in study.controls.kinds:
                yield Branch(branch.trunk, branch.sft_step, kind)
