"""Tokens per second of a trunk's updates, beside a bare TRL SFTTrainer on the same examples; two workers beside one.

All arms run in warm Ray Train workers: the trunk and TRL on one worker by turns, in the same process, the trunk
on two workers in a second group. An update's clock runs from the end of the one before to its own end; the first
of every run is not counted, and neither is the checkpoint after the last. TRL is given a list of examples that
were tokenised before its clock starts; the trunk makes its demonstrations as it goes.
"""

from __future__ import annotations

import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlheals_ray.bench.command import positive
from rlheals_ray.bench.laboratory import THREADS, copy_policy
from rlheals_ray.bench.measure import Figure, Outcome, alternate, at_least
from rlheals_ray.config import Study, dump_study, load_study
from rlheals_ray.lineage import BASE, Trunk
from rlheals_ray.need import Need
from rlheals_ray.storage import StudyFiles, Unit, fingerprint
from rlheals_ray.training import Report, Training
from rlheals_ray.work_queue import Work


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--updates", type=positive, default=40, help="counted in each run, after one that is not"
    )
    parser.add_argument("--batch-size", type=positive, default=48, help="examples of an update")
    parser.add_argument("--hidden", type=positive, default=64, help="width of the random model; 64 is nano's")
    parser.add_argument("--layers", type=positive, default=3, help="layers of the random model; 3 are nano's")
    parser.add_argument("--model", metavar="DIR", help="a Hugging Face directory to use instead")


def run(options: Namespace) -> Outcome:
    import ray

    from rlheals_ray.connection import WORKER_ENVIRONMENT

    overrides = ["seeds=[0]", f"sft.steps=[{options.updates + 1}]", f"sft.batch_size={options.batch_size}"]
    study = load_study("nano", [*overrides, "rl.from_steps=[" + str(options.updates + 1) + "]", "edits=[]"])
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        files = StudyFiles(Path(directory))
        _make_base(files.checkpoint(BASE), study, options)
        environment = {**WORKER_ENVIRONMENT, "OMP_NUM_THREADS": str(THREADS)}
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            logging_level="ERROR",
            runtime_env={"env_vars": environment},
        )
        try:
            groups = {workers: _group(directory, workers) for workers in (1, 2)}
            arms = {
                "a trunk": lambda repetition: _rate(groups[1], study, files, "trunk", repetition),
                "bare SFTTrainer": lambda repetition: _rate(groups[1], study, files, "bare", repetition),
                "a trunk on 2 workers": lambda repetition: _rate(
                    groups[2], study, files, "trunk", repetition
                ),
            }
            alternate(arms, 1)  # imports and first passes
            found = alternate(arms, options.repetitions)
            for training in groups.values():
                training.close()
        finally:
            ray.shutdown()
    rates = {name: Figure(name, "tokens/s", tuple(values)) for name, values in found.items()}
    trunk, bare, two = rates.values()
    ratios = [
        trunk.over(bare, "a trunk ÷ bare SFTTrainer", target=at_least(0.97)),
        two.over(trunk, "2 workers ÷ 1 (ddp)"),
    ]
    notes = [
        f"Model: {options.model or 'random weights'}; every process has {THREADS} thread; tokens with their prompts, "
        "without padding.",
        "The bare trainer: SFTTrainer with SFTConfig of the same values, its own loader and optimiser, a callback that "
        "reads the clock.",
    ]
    return Outcome({**vars(options), "sft": dump_study(study)["sft"]}, ratios, list(rates.values()), notes)


def _make_base(directory: Path, study: Study, options: Namespace) -> None:
    from transformers import LlamaForCausalLM

    from rlheals_ray.models import nano

    if options.model is not None:
        copy_policy(Path(options.model), directory)
        return
    targets = study.task.options["targets"]
    model = nano.untrained(targets, seed=0)
    config = model.config
    if (options.hidden, options.layers) != (config.hidden_size, config.num_hidden_layers):
        config.hidden_size, config.num_hidden_layers = options.hidden, options.layers
        config.intermediate_size, config.head_dim = 3 * options.hidden, None
        config.num_attention_heads = config.num_key_value_heads = max(options.hidden // 64, 1)
        config.head_dim = options.hidden // config.num_attention_heads
        model = LlamaForCausalLM(config)
    directory.mkdir(parents=True)
    nano.save(model, targets, directory)


def _group(directory: str, workers: int) -> Training:
    return Training.start(
        groups=1,
        workers=workers,
        need=Need(cpus=0.5),
        threads=THREADS,
        storage=str(Path(directory) / "train"),
        name=f"bench-{workers}",
    )


def _rate(training: Training, study: Study, files: StudyFiles, arm: str, repetition: int) -> float:
    name = f"{arm}-{repetition}-{time.monotonic_ns()}"
    arguments = {"study": study, "files": files, "name": name}
    rows = list(training.run(Work(name, f"rlheals_ray.bench.sft:{arm}", arguments)))
    return float(rows[-1]["rate"])


def trunk(study: Study, files: StudyFiles, name: str, report: Report) -> None:
    """A trunk's run in a worker group; reports its rate, tokens/s."""
    from rlheals_ray.models.chat import ChatFormat
    from rlheals_ray.sft.data import open_examples
    from rlheals_ray.sft.run import train_run
    from rlheals_ray.sft.trainer import trunk_run
    from rlheals_ray.tasks import get_task

    unit = Unit(name, fingerprint(name=name))
    task = get_task(study.task.name, **study.task.options)
    examples = open_examples(study, files, task, ChatFormat.of(files.checkpoint(BASE)), 0)
    log = train_run(study, files, trunk_run(study, Trunk("plain", 0), unit, BASE), examples, report)
    report({"rate": rate(log.updates)})


def rate(updates: list[dict[str, Any]]) -> float:
    """Tokens per second after the first update."""
    counted = updates[1:]
    return sum(update["tokens"] for update in counted) / sum(update["seconds"] for update in counted)


def bare(study: Study, files: StudyFiles, name: str, report: Report) -> None:
    """TRL's trainer as its documentation has it, on a list of tokenised examples; reports its rate, tokens/s."""
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from rlheals_ray.models.chat import ChatFormat
    from rlheals_ray.sft.data import training_examples
    from rlheals_ray.sharding import prepare_process
    from rlheals_ray.tasks import get_task

    settings, base = study.sft, files.checkpoint(BASE)
    task, chat = get_task(study.task.name, **study.task.options), ChatFormat.of(base)
    examples = training_examples(task, chat, settings, 0)
    lengths = [len(example.input_ids) for example in examples]
    columns = {"input_ids": [e.input_ids for e in examples], "labels": [e.labels for e in examples]}
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_log(self, *_: Any, logs: Mapping[str, Any] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                ends.append(time.perf_counter())

    prepare_process("none")
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(files.root / "bare"),
            max_steps=settings.steps[-1],
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=settings.max_grad_norm,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=chat.tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()
    report({"rate": sum(lengths[settings.batch_size :]) / (ends[-1] - ends[0])})
