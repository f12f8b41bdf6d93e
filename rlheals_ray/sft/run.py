"""One SFT run on a Ray Train worker group: from a checkpoint, over a stream, to checkpoints. Trunks are such runs,
and so are the controls of healing.

Restarted, it resumes from its newest complete state, with optimiser, schedule, log and data order.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM
from trl import SFTConfig

from rlheals_ray.config import InputError, SFTSettings, Study
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.models.checkpoint_writer import copy_model
from rlheals_ray.preemption import Notice
from rlheals_ray.sft.batches import Collator, Share, TooLong
from rlheals_ray.sft.packing import check_packing
from rlheals_ray.sft.recipes import Recipe, RecipeContext, make_recipe
from rlheals_ray.sft.run_state import KEPT, ResumePoint, RunState, durations, find_resume_point
from rlheals_ray.sft.schedule import Schedule
from rlheals_ray.sft.stream_trainer import StreamTrainer
from rlheals_ray.sharding import held_bytes, prepare_process, trainer_arguments, wrapped_name
from rlheals_ray.storage import StudyFiles, Unit, new_directory
from rlheals_ray.training import Hopeless, Report

if TYPE_CHECKING:
    from rlheals_ray.sft.data import Examples


@dataclass(frozen=True)
class SFTRun:
    """What to train. Batch, optimiser, precision and sharding are those of the study."""

    unit: Unit
    """Whose state it keeps, and whose name its checkpoints carry."""
    start: str
    """The checkpoint to begin from."""
    updates: int
    publish: Mapping[int, str]
    """Updates of this run after which a checkpoint is published, and its name; 0: a copy of `start`."""
    recipe: str
    seed: int
    schedule: Schedule
    first_position: int = 0
    """Of its first example in the stream."""


@dataclass(frozen=True)
class RunLog:
    """What a run leaves beside its checkpoints; the same on every worker but for `is_main`."""

    updates: list[dict[str, Any]]
    """step, loss, grad_norm, learning_rate, tokens and seconds of each update, also of those before a restart."""
    wrapped_model: str
    parameter_bytes: int
    train_run: str
    is_main: bool


def train_run(study: Study, files: StudyFiles, run: SFTRun, examples: Examples, report: Report) -> RunLog:
    """Train; called on every rank of a worker group. Publishes the run's checkpoints and leaves its state, which
    the caller removes once it has marked its unit as done.

    report is told of every update, {step, of, loss}, and once of what begins, {step, of, note}.
    Raises Hopeless for what another attempt would meet again: a loss that is not finite, an example that is
    too long, a model that packing is not exact for.
    """
    import ray.train

    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    settings, start = study.sft, files.checkpoint(run.start)
    if rank == 0 and 0 in run.publish:
        with new_directory(files.checkpoint(run.publish[0])) as directory:
            copy_model(start, directory)
            files.stamp(directory, run.unit)
    state = files.state(run.unit)
    prepare_process(settings.sharding)
    resume = find_resume_point(state, settings.sharding)
    report(
        {
            "step": resume.update,
            "of": run.updates,
            "note": "; ".join(filter(None, (resume.told, str(run.schedule)))),
        }
    )
    try:
        recipe = make_recipe(
            run.recipe,
            RecipeContext(
                study, files, start, examples, run.first_position, run.updates, run.seed, rank, workers
            ),
        )
        trainer = _trainer(study, files, run, examples, report, recipe, resume, rank, workers)
    except (InputError, TooLong) as error:
        raise Hopeless(str(error)) from error
    try:
        trainer.train(resume_from_checkpoint=resume.directory)
        return _log(trainer, context.get_experiment_name(), is_main=rank == 0)
    except (InputError, TooLong) as error:
        raise Hopeless(str(error)) from error
    finally:
        # The trainer and its callbacks refer to each other: a worker that goes on to its next item must not hold two
        # models until the collector happens to run.
        trainer.accelerator.free_memory()
        del trainer, recipe
        gc.collect()


def _log(trainer: StreamTrainer, train_run: str, is_main: bool) -> RunLog:
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    updates = [
        {
            "step": int(entry["step"]),
            "loss": float(entry["loss"]),
            "grad_norm": float(entry["grad_norm"]),
            "learning_rate": float(entry["learning_rate"]),
            "tokens": int(entry["tokens"]),
            "seconds": seconds,
        }
        for entry, seconds in zip(history, durations(history), strict=True)
    ]
    return RunLog(
        updates,
        wrapped_name(trainer.model_wrapped),
        held_bytes(trainer.model_wrapped),
        train_run,
        is_main,
    )


def _trainer(
    study: Study,
    files: StudyFiles,
    run: SFTRun,
    examples: Examples,
    report: Report,
    recipe: Recipe,
    resume: ResumePoint,
    rank: int,
    workers: int,
) -> StreamTrainer:
    settings, start, state = study.sft, files.checkpoint(run.start), files.state(run.unit)
    # Every worker reads the whole model before it is divided.
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    longest = settings.max_length or getattr(model.config, "max_position_embeddings", None)
    if settings.packing:
        first = run.first_position
        check_packing(model, list(examples.stream(range(first, first + min(settings.batch_size, 3)))))
    sharding = trainer_arguments(
        settings.sharding, model, offload=settings.offload, precision=settings.precision
    )
    wrapped = recipe.wrap(model)
    share = Share.of(settings.batch_size, settings.micro_batch, rank, workers)

    def publish(update: int, saved: Path) -> None:
        with new_directory(files.checkpoint(run.publish[update])) as directory:
            recipe.publish(trainer.accelerator.unwrap_model(trainer.model), saved, directory)
            files.stamp(directory, run.unit)

    run_state = RunState(
        report,
        settings.sharding,
        state,
        publish,
        frozenset(run.publish),
        settings.state_every,
        Notice(resume.update),
    )
    trainer = StreamTrainer(
        wrapped,
        _arguments(settings, run, state, share, sharding),
        examples=examples,
        first_position=run.first_position,
        recipe=recipe,
        schedule=run.schedule,
        share=share,
        collator=Collator(settings.packing, longest, recipe.weights),
        first_update=resume.update,
        autocast=settings.precision == "bfloat16",
        processing_class=ChatFormat.of(start).tokenizer,
        callbacks=[run_state],
    )
    run_state.tokens = lambda: trainer.update_tokens
    return trainer


def _arguments(
    settings: SFTSettings, run: SFTRun, state: Path, share: Share, sharding: Mapping[str, Any]
) -> SFTConfig:
    return SFTConfig(
        output_dir=str(state),
        max_steps=run.updates,
        per_device_train_batch_size=share.micro_batch,
        gradient_accumulation_steps=share.micro_batches,
        learning_rate=run.schedule.learning_rate,
        lr_scheduler_type="constant",  # StreamTrainer makes the schedule
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_betas[0],
        adam_beta2=settings.adam_betas[1],
        adam_epsilon=settings.adam_epsilon,
        max_grad_norm=settings.max_grad_norm,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        remove_unused_columns=False,
        ignore_data_skip=True,  # the stream begins where the run goes on
        bf16=False,
        gradient_checkpointing=settings.gradient_checkpointing,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not finite ends the run
        save_strategy="no",
        save_total_limit=KEPT,
        report_to=[],
        disable_tqdm=True,
        seed=run.seed,
        **sharding,
    )
