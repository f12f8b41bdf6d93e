"""Trains a branch by GRPO or RLOO: TRL's trainers on every rank, with episodes of the pool.

The reward of an episode is Σ_k γᵏ r_k over its turns (γ = rl.gamma). One update is one generation of
rl.episodes episodes in groups of rl.group_size, and rl.epochs × rl.minibatches optimiser steps on it.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.models.checkpoint_writer import copy_model
from rlheals_ray.rl.branch import Branch
from rlheals_ray.rl.trl_arguments import trl_arguments
from rlheals_ray.rl.trl_metrics import update_metrics
from rlheals_ray.rl.trl_trainers import Grpo, Rloo
from rlheals_ray.rollout.episode import Episode, Rollout
from rlheals_ray.rollout.load import Load
from rlheals_ray.rollout.verification import expected_of
from rlheals_ray.rollout.weight_sync import weight_sync
from rlheals_ray.sharding import wrapped_name

PROGRESS = "branch.json"
"""What makes a checkpoint of the trainer a state of the branch: written last."""


def learn_trl(branch: Branch) -> None:
    """Train `branch` to its last budget, from its saved state where there is one.

    Raises Diverged, before the step is made, when the gradient's norm is not finite.
    """
    settings = branch.settings
    resumed = _saved_state(branch.state_directory)
    if resumed is not None:
        progress = json.loads((resumed / PROGRESS).read_text(encoding="utf-8"))
        branch.resume(progress["rows"], progress["received"])
    if len(branch.rows) == settings.budgets[-1] or branch.hopeless:
        return
    episodes = _BranchEpisodes(branch)
    model = AutoModelForCausalLM.from_pretrained(branch.start_directory, dtype=torch.float32)
    trainer = (Rloo if settings.algorithm == "rloo" else Grpo)(
        model=model,
        args=trl_arguments(
            settings,
            model,
            sharding=branch.study.sft.sharding,
            world_size=branch.world_size,
            seed=branch.spec.branch.seed,
            state=branch.state_directory,
        ),
        source=episodes,
        # Not the branch's: TRL gives a tokenizer without a padding token one.
        tokenizer=ChatFormat.of(branch.start_directory).tokenizer,
        settings=settings,
        seed=(branch.spec.branch.seed, branch.spec.branch.sft_step),
    )
    episodes.trainer = trainer
    trainer.add_callback(_Updates(branch, trainer, episodes))
    try:
        trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    finally:
        # The trainer, its callbacks and its accelerator refer to each other: the worker that goes on to its
        # next branch must not hold two models until the collector happens to run.
        trainer.accelerator.free_memory()
        del trainer, episodes, model
        gc.collect()


class _BranchEpisodes:
    """The branch's episodes of an update, by the trainer's present weights; collective."""

    trainer: Grpo | Rloo
    rollout: Rollout
    """The last one."""
    received_at: float
    """When it had come in, by time.perf_counter."""

    def __init__(self, branch: Branch) -> None:
        self._branch = branch
        self._sync = weight_sync(branch.study.rollout)

    def __call__(self, update: int) -> Sequence[Episode]:
        branch = self._branch
        self.rollout = branch.generate(branch.requests(update), update, self._publish)
        self.received_at = time.perf_counter()
        return self.rollout.episodes

    def _publish(self) -> Load | None:
        """Hand the policy's weights over from rank 0; the other ranks take part in gathering them."""
        rollout, expected = self._branch.study.rollout, None
        if rollout.verify_weights:
            expected = expected_of(self.trainer.model_wrapped, rollout, self._branch.settings.precision)
        tensors = self.trainer.accelerator.get_state_dict(self.trainer.model_wrapped)
        return self._sync.publish(tensors.items(), expected) if self._branch.is_main else None


class _Updates(TrainerCallback):
    """Completes, publishes, saves and reports the branch's updates; the trainer calls it on every rank."""

    def __init__(self, branch: Branch, trainer: Grpo | Rloo, episodes: _BranchEpisodes) -> None:
        self._branch, self._trainer, self._episodes = branch, trainer, episodes
        self._logs: list[Mapping[str, Any]] = []
        self._began = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # The episodes of an update are made within its first step, after this call.
        if state.global_step % self._trainer.steps_per_update == 0:
            self._began = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        self._logs.append(dict(logs))
        update, steps_left = divmod(state.global_step, self._trainer.steps_per_update)
        if steps_left:
            return
        metrics = update_metrics(self._trainer, self._logs)
        self._logs.clear()
        now = time.perf_counter()
        self._branch.completed(
            update,
            self._episodes.rollout,
            metrics,
            seconds_learn=now - self._episodes.received_at,
            seconds=now - self._began,
            wrapped_model=wrapped_name(self._trainer.model_wrapped),
        )
        control.should_training_stop = self._branch.hopeless is not None
        control.should_save = self._branch.is_saved_after(update)
        if not control.should_save:
            self._branch.report()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # Other ranks may still be writing their parts of the state.
        self._trainer.accelerator.wait_for_everyone()
        branch, update = self._branch, len(self._branch.rows)
        if branch.is_main:
            saved = branch.state_directory / f"checkpoint-{state.global_step}"
            # Published first: an update that counts as completed has its checkpoint.
            if update in branch.settings.budgets:
                branch.publish(update, lambda directory: copy_model(saved, directory))
            progress = {"rows": branch.rows, "received": branch.received}
            temporary = saved / f".{PROGRESS}"
            temporary.write_text(json.dumps(progress), encoding="utf-8")
            temporary.replace(saved / PROGRESS)
            for older in branch.state_directory.glob("checkpoint-*"):
                if older != saved:
                    shutil.rmtree(older)
        branch.saved(update)
        branch.report()


def _saved_state(directory: Path) -> Path | None:
    """The newest complete state in `directory`."""
    complete = directory.glob(f"checkpoint-*/{PROGRESS}")
    return max(
        (path.parent for path in complete), key=lambda path: int(path.name.split("-")[1]), default=None
    )
