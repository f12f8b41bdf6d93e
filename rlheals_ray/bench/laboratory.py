"""The laboratory of the benchmarks that need a model: a nano policy with realistic answers, engines, workers.

An untrained model never ends its turn, so every answer would have the maximal length. The policy is therefore
the nano base, trained for a while, then shown the task's demonstrations for a while: it answers in the
study's form, in the study's lengths, and is often wrong, as a policy that RL starts from is.
"""

from __future__ import annotations

import shutil
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlheals_ray.bench.command import positive
from rlheals_ray.config import InputError, Study, TaskSettings, dump_study, load_study
from rlheals_ray.grid.session import Session
from rlheals_ray.rollout.episode import EpisodeRequest
from rlheals_ray.rollout.load import CheckpointLoad
from rlheals_ray.storage import StudyFiles
from rlheals_ray.tasks import get_task

THREADS = 1
"""Of every process that takes part, this system's (see `Session`) and the baselines' alike."""

POLICY = "bench"
"""The policy's name among the study's checkpoints."""


def add_model_options(parser: ArgumentParser) -> None:
    """Options of the policy."""
    parser.add_argument("--base-steps", type=positive, default=150, help="updates that train the nano base")
    parser.add_argument("--sft-steps", type=positive, default=80, help="updates on demonstrations after that")
    parser.add_argument(
        "--model", metavar="DIR", help="a Hugging Face directory to use instead, which knows the nano prompts"
    )


@dataclass(frozen=True)
class Laboratory:
    """A session whose study holds one policy."""

    session: Session

    @property
    def study(self) -> Study:
        return self.session.study

    @property
    def policy(self) -> Path:
        """The policy's Hugging Face directory."""
        return self.session.files.checkpoint(POLICY)

    @property
    def load(self) -> CheckpointLoad:
        return CheckpointLoad(str(self.policy))

    def settings(self, options: Namespace) -> dict[str, Any]:
        """Every option, and the parts of the study that the benchmark runs on."""
        resolved = dump_study(self.study)
        return {
            **{key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
            "threads_per_process": THREADS,
            **{part: resolved[part] for part in ("task", "rl", "rollout")},
        }

    def requests(self, count: int, seed: Sequence[int | str]) -> list[EpisodeRequest]:
        """Episodes on the training problems, in their order and over again where there are too few."""
        return requests_of(self.study.task, count, seed)


def requests_of(settings: TaskSettings, count: int, seed: Sequence[int | str]) -> list[EpisodeRequest]:
    """`count` episodes on the ID training problems, each with its own seed."""
    task = get_task(settings.name, **settings.options)
    problems = task.problems("id", "train", min(count, task.available("id", "train")), seed=0)
    return [EpisodeRequest(problems[i % len(problems)], (*seed, i)) for i in range(count)]


@contextmanager
def laboratory(options: Namespace, overrides: Sequence[str]) -> Iterator[Laboratory]:
    """The nano study with `overrides` and one engine, in a directory of its own; Ray ends with the block."""
    study = load_study("nano", ["seeds=[0]", "rollout.generators=1", *overrides])
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        session = Session(study, StudyFiles(Path(directory)))
        try:
            made = Laboratory(session)
            if options.model is None:
                train_policy(made.policy, study.task, options.base_steps, options.sft_steps)
            else:
                copy_policy(Path(options.model), made.policy)
            session.connect()
            yield made
        finally:
            session.close()


def copy_policy(source: Path, target: Path) -> None:
    """Take over a model; raises InputError where there is none."""
    if not (source / "config.json").is_file():
        raise InputError(f"--model (got {str(source)!r}): there is no config.json; give a model's directory.")
    shutil.copytree(source, target)


def train_policy(directory: Path, settings: TaskSettings, base_steps: int, sft_steps: int) -> None:
    """Train the policy in this process, seeded; leaves a Hugging Face directory."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlheals_ray.config import SFTSettings
    from rlheals_ray.models.chat import ChatFormat
    from rlheals_ray.models.nano_base import train_nano_base
    from rlheals_ray.sft.data import training_examples

    # One thread: the same weights whatever the number of cores, and no slower for so small a model.
    torch.set_num_threads(1)
    task = get_task(settings.name, **settings.options)
    game: Mapping[str, Any] = settings.options
    for _ in train_nano_base(
        directory, cards=game["cards"], targets=game["targets"], seed=0, steps=base_steps
    ):
        pass
    chat = ChatFormat.of(directory)
    sft = SFTSettings(steps=(sft_steps,))
    examples = training_examples(task, chat, sft, seed=0)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=sft.learning_rate, weight_decay=0.0)
    for start in range(0, len(examples), sft.batch_size):
        batch = examples[start : start + sft.batch_size]
        ids, labels = (
            torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)
            for rows, pad in (([e.input_ids for e in batch], 0), ([e.labels for e in batch], -100))
        )  # fmt: skip
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.save_pretrained(directory)
