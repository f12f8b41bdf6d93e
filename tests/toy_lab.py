"""Whole RL branches on the toy task with real parts: vLLM in the pool, the learner in Ray Train worker groups."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlheals_ray.config import Study
from rlheals_ray.grid.units import StudyUnits
from rlheals_ray.lineage import Branch, Trunk
from rlheals_ray.need import Need
from rlheals_ray.rl.spec import BranchSpec
from rlheals_ray.rollout.generator import GeneratorSettings
from rlheals_ray.rollout.pool import Pool
from rlheals_ray.storage import StudyFiles
from rlheals_ray.training import Training
from rlheals_ray.work_queue import Work

TRAIN_BRANCH = "rlheals_ray.rl.learner:train_branch"
ATTEMPTS, NEW_TOKENS = 2, 2

RL = {
    "from_steps": [0],
    "budgets": [0, 64],
    "learning_rate": 2.5e-3,
    "lr_schedule": "linear",
    "episodes": 256,
    "max_attempts": ATTEMPTS,
    "max_new_tokens": NEW_TOKENS,
    "minibatches": 2,
    "clip": 0.2,
    "advantage_floor": 0.1,
}
"""Set once for the toy task, for every algorithm and seed; found with seeds 10 to 15, which no test uses.
At 4e-3 an unlucky branch now and then settles on a wrong colour for one of the keys: nothing here explores."""

WRAPPED = {"ppo": "LlamaForCausalLM", "grpo": "DistributedDataParallel", "rloo": "DistributedDataParallel"}
"""What a model is wrapped in on one worker; TRL's trainers wrap it wherever there is a process group."""


def toy_study(
    name: str, model: Path, *, generators: int = 1, sharding: str = "ddp", workers: int = 1, **rl: Any
) -> Study:
    """A study of the toy task; `rl` overrides RL."""
    return Study.model_validate(
        {
            "name": name,
            "task": {"name": "tests.toy_task:ToyTask"},
            "base": {"model": str(model)},
            "sft": {"steps": [0, 1], "batch_size": 8, "sharding": sharding},
            "rl": {**RL, "workers": workers, **rl},
            "rollout": {"generators": generators, "max_model_len": 64, "kv_cache_mib": 16},
            "evaluation": {"problems": 8, "max_attempts": ATTEMPTS, "max_new_tokens": NEW_TOKENS},
        }
    )


def start_pool(study: Study, model: Path) -> Pool:
    return Pool.start(
        GeneratorSettings(str(model), study.task, study.rollout), threads=1, need=Need(cpus=0.5)
    )


def start_training(storage: Path, name: str, *, groups: int, workers: int) -> Training:
    return Training.start(
        groups=groups, workers=workers, need=Need(cpus=0.5), threads=1, storage=str(storage), name=name
    )


@dataclass(frozen=True)
class Lab:
    """Warm parts, and where branches are kept."""

    model: Path
    storage: Path
    pool: Pool
    training: Training

    def spec(self, study: Study, seed: int) -> BranchSpec:
        """A branch of its own study: branches of one name and seed must not share their files."""
        files = StudyFiles(self.storage / study.name)
        if not files.checkpoint("base").exists():
            shutil.copytree(self.model, files.checkpoint("base"))
        branch = Branch(Trunk("plain", seed), 0, study.rl.algorithm)
        return BranchSpec(study, files, self.pool, branch, StudyUnits(study).branch(branch), "base")

    def train(self, spec: BranchSpec, function: str = TRAIN_BRANCH, **more: Any) -> list[dict[str, Any]]:
        """Have a branch trained; its part of tables/rl."""
        key = f"{spec.study.name}/{spec.unit.name}"
        for _ in self.training.run(Work(key, function, {"spec": spec, **more})):
            pass
        return rows_of(spec)

    def train_together(self, *specs: BranchSpec) -> list[list[dict[str, Any]]]:
        """Several branches at once, one thread each, as the sweep's trials do."""
        with ThreadPoolExecutor(len(specs)) as threads:
            return list(threads.map(self.train, specs))


def rows_of(spec: BranchSpec) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = spec.files.read_part("rl", spec.unit).to_pylist()
    return rows


def check_rows(rows: list[dict[str, Any]], study: Study, wrapped: str = "LlamaForCausalLM") -> None:
    """What must hold of every row of a branch, whatever it learnt.

    Among it the exactness that learning rests on: for the same weights the engine's log-probability of
    every token of every turn is the learner's, within 1e-3, after every sync.
    """
    rl = study.rl
    assert [row["rl_step"] for row in rows] == list(range(1, rl.budgets[-1] + 1)), (
        "a row is missing or double"
    )
    assert rows[0]["tokens"] > rl.episodes * NEW_TOKENS, "there was no second turn"
    for row in rows:
        assert row["logprob_mismatch_max"] < 1e-3, row["rl_step"]
        assert row["weight_lag"] == 0
        assert row["engine"] == "vllm"
        assert row["wrapped_model"] == wrapped
        assert row["train_run"]


def reward_curve(rows: list[Mapping[str, Any]]) -> list[float]:
    return [round(row["reward_mean"], 3) for row in rows]
