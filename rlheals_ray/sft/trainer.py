"""Trains one trunk inside a Ray Train worker group: TRL's SFTTrainer, checkpoints at the study's steps.

Restarted, it resumes from the last step whose checkpoint was published, with optimiser, schedule and
data order.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.distributed as dist
from transformers import (
    AutoModelForCausalLM,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from rlheals_ray import tables
from rlheals_ray.config import Study
from rlheals_ray.lineage import Trunk
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.models.checkpoint_writer import copy_model
from rlheals_ray.received import record_received
from rlheals_ray.sft.data import Example, training_examples
from rlheals_ray.sharding import effective, prepare_process, trainer_arguments, wrapped_name
from rlheals_ray.storage import StudyFiles, Unit, new_directory
from rlheals_ray.tasks import get_task
from rlheals_ray.training import Report

_PUBLISHED = "PUBLISHED"
"""In a saved state whose checkpoint was published: who can read it."""


def train_trunk(study: Study, files: StudyFiles, trunk: Trunk, unit: Unit, base: str, report: Report) -> None:
    """Train `trunk` from checkpoint `base`; called on every rank of a worker group.

    Leaves checkpoints/sft/seed=S/step=N for every N of sft.steps, the trunk's part of tables/sft
    without the held-out losses (they are scored elsewhere, from the checkpoints), and its marker.
    """
    import ray.train

    if files.is_done(unit):
        return  # the worker that did it died before it could say so
    context = ray.train.get_context()
    settings = study.sft
    task = get_task(study.task.name, **study.task.options)
    base_directory = files.checkpoint(base)
    examples = training_examples(task, ChatFormat.of(base_directory), settings, trunk.seed)
    state = files.state(unit)
    log = _TrunkLog(study, files, trunk, unit, report, is_main=context.get_world_rank() == 0)
    if context.get_world_rank() == 0:
        record_received(files.received(unit), task, [example.problem for example in examples])
        if 0 in settings.steps:
            _publish(base_directory, files, trunk.checkpoint(0), unit)
    resume_point = log.resume_point()
    if resume_point is None and context.get_world_rank() == 0:
        # What is left there has higher steps than the first to come, and the trainer keeps the highest.
        shutil.rmtree(state, ignore_errors=True)
    prepare_process(settings.sharding)
    model = AutoModelForCausalLM.from_pretrained(base_directory, dtype=torch.float32)
    trainer = SFTTrainer(
        model=model,
        args=_arguments(
            study, trunk.seed, state, context.get_world_size(), trainer_arguments(settings.sharding, model)
        ),
        train_dataset=_dataset(examples),
        processing_class=ChatFormat.of(base_directory).tokenizer,
        callbacks=[log],
    )
    trainer.train(resume_from_checkpoint=resume_point)
    if context.get_world_rank() == 0:
        rows = log.rows(
            trainer.state.log_history,
            examples,
            wrapped_model=wrapped_name(trainer.model_wrapped),
            train_run=context.get_experiment_name(),
        )
        files.write_part("sft", unit, tables.table("sft", rows))
        files.mark_done(unit)
        shutil.rmtree(state, ignore_errors=True)


def _dataset(examples: list[Example]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"input_ids": [e.input_ids for e in examples], "labels": [e.labels for e in examples]}
    )


def _arguments(
    study: Study, seed: int, state: Path, world_size: int, sharding: Mapping[str, Any]
) -> SFTConfig:
    settings = study.sft
    schedule = "constant_with_warmup" if settings.lr_schedule == "constant" else settings.lr_schedule
    return SFTConfig(
        output_dir=str(state),
        max_steps=settings.steps[-1],
        per_device_train_batch_size=settings.batch_size // world_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_betas[0],
        adam_beta2=settings.adam_betas[1],
        max_grad_norm=settings.max_grad_norm,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        **sharding,
    )


class _TrunkLog(TrainerCallback):
    """Saves and publishes the trunk's checkpoints and keeps its log; the trainer calls it."""

    def __init__(
        self, study: Study, files: StudyFiles, trunk: Trunk, unit: Unit, report: Report, *, is_main: bool
    ) -> None:
        self._study, self._files, self._trunk = study, files, trunk
        self._unit, self._state = unit, files.state(unit)
        self._report, self._is_main = report, is_main
        self._start = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step in self._study.sft.steps:
            control.should_save = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs and self._is_main:
            # The trainer's own history survives a restart with the rest of its state.
            state.log_history[-1]["seconds"] = time.perf_counter() - self._start
            self._report({"step": state.global_step, "of": state.max_steps, "loss": float(logs["loss"])})

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if dist.is_initialized():
            dist.barrier()  # a state counts only when every worker has written its part
        if self._is_main:
            saved = self._state / f"checkpoint-{state.global_step}"
            _publish(saved, self._files, self._trunk.checkpoint(state.global_step), self._unit)
            (saved / _PUBLISHED).write_text(self._layout)

    @property
    def _layout(self) -> str:
        """DeepSpeed's states can be read by as many workers as wrote them, all others by any number."""
        workers = dist.get_world_size() if dist.is_initialized() else 1
        mode = effective(self._study.sft.sharding)
        return f"{mode} of {workers} workers" if mode in ("zero2", "zero3") else "any workers"

    def resume_point(self) -> str | None:
        """The newest saved state whose checkpoint was published, and that these workers can read."""
        saved = sorted(
            (p for p in self._state.glob(f"checkpoint-*/{_PUBLISHED}") if p.read_text() == self._layout),
            key=lambda p: int(p.parent.name.split("-")[1]),
        )
        return str(saved[-1].parent) if saved else None

    def rows(
        self,
        log: Sequence[Mapping[str, Any]],
        examples: Sequence[Example],
        wrapped_model: str,
        train_run: str,
    ) -> list[dict[str, Any]]:
        """One row per saved step; train_loss and grad_norm are means over the updates since the one before."""
        history: dict[int, Any] = {int(entry["step"]): entry for entry in log if "loss" in entry}
        rows, previous, batch = [], 0, self._study.sft.batch_size
        for step in self._study.sft.steps:
            updates = [history[s] for s in range(previous + 1, step + 1) if s in history]
            rows.append(
                {
                    "recipe": self._trunk.recipe,
                    "seed": self._trunk.seed,
                    "step": step,
                    "train_loss": _mean(updates, "loss"),
                    "id_loss": None,
                    "ood_loss": None,
                    "learning_rate": updates[-1]["learning_rate"] if updates else None,
                    "grad_norm": _mean(updates, "grad_norm"),
                    "tokens": sum(len(e.input_ids) for e in examples[previous * batch : step * batch]),
                    "seconds": sum(_durations(updates, history)),
                    "parameter_bytes": None,
                    "engine": "trl.SFTTrainer",
                    "wrapped_model": wrapped_model,
                    "train_run": train_run,
                }
            )
            previous = step
        return rows


def _mean(updates: list[Any], key: str) -> float | None:
    return sum(float(update[key]) for update in updates) / len(updates) if updates else None


def _durations(updates: list[Any], history: Mapping[int, Any]) -> list[float]:
    """Seconds of each update; a restarted clock counts from its own start."""
    out = []
    for update in updates:
        before = history.get(update["step"] - 1, {}).get("seconds", 0.0)
        elapsed = update["seconds"] - before
        out.append(elapsed if elapsed > 0 else update["seconds"])
    return out


def _publish(source: Path, files: StudyFiles, name: str, unit: Unit) -> None:
    """Copy the model's files of a saved state to where checkpoints live, as a whole."""
    with new_directory(files.checkpoint(name)) as directory:
        copy_model(source, directory)
        files.stamp(directory, unit)
