"""A trunk on two workers, whatever divides the model: the losses and the weights of plain training."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from rlheals_ray.config import SFTSettings, Study, TaskSettings
from rlheals_ray.lineage import BASE, Trunk
from rlheals_ray.models import nano
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.sft.data import IGNORE, training_examples
from rlheals_ray.sft.trainer import train_trunk
from rlheals_ray.storage import StudyFiles, Unit
from rlheals_ray.tasks import get_task
from rlheals_ray.training import Report, Training, Work

TARGETS = [18, 24]
TASK = TaskSettings.model_validate(
    {"name": "general_points", "cards": 3, "targets": TARGETS, "wording": "compact"}
)
STEPS = tuple(range(9))
WRAPPED = {
    "ddp": "DistributedDataParallel",
    "fsdp2": "FSDPLlamaForCausalLM",
    "zero2": "DeepSpeedEngine (ZeRO-2)",
    "zero3": "DeepSpeedEngine (ZeRO-3)",
}


def trunk(pids: str, report: Report, **arguments: Any) -> None:
    """The trunk's training function, whose workers leave their process ids in a file."""
    with Path(pids).open("a") as file:
        file.write(f"{os.getpid()}\n")
    train_trunk(**arguments, report=report)


def study_of(sharding: str) -> Study:
    # The rate rises over the first steps: AdamW's very first ones are of full size for rounding noise too.
    sft = {"steps": STEPS, "learning_rate": 1e-3, "warmup_steps": 4, "batch_size": 8, "workers": 2}
    settings = SFTSettings.model_validate({**sft, "sharding": sharding})
    return Study.model_validate(
        {"task": TASK.model_dump(), "sft": settings, "rl": {"from_steps": [0], "workers": 2}}
    )


@dataclass
class Laboratory:
    """A group of two workers and an untrained base."""

    training: Training
    root: Path

    def train(self, sharding: str, during: Callable[[Path], None] | None = None) -> StudyFiles:
        files = StudyFiles(self.root / sharding)
        nano.save(nano.untrained(TARGETS, seed=0), TARGETS, _made(files.checkpoint(BASE)))
        pids = files.root / "pids"
        work = Work(
            f"{sharding}-{time.monotonic_ns()}",
            "tests.ray.test_sft_sharding:trunk",
            {"study": study_of(sharding), "files": files, "trunk": TRUNK, "unit": UNIT, "base": BASE}
            | {"pids": str(pids)},
        )
        disturber = threading.Thread(target=during, args=(pids,)) if during else None
        if disturber:
            disturber.start()
        for _ in self.training.run(work):
            pass
        if disturber:
            disturber.join()
        return files


TRUNK = Trunk("plain", 0)
UNIT = Unit(TRUNK.name, "fingerprint")


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True)
    return directory


@pytest.fixture(scope="module")
def laboratory(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    root = tmp_path_factory.mktemp("laboratory")
    training = Training.start(
        groups=1, workers=2, cpus_per_worker=0.5, threads=1, storage=str(root / "train"), name="sharding"
    )
    yield Laboratory(training, root)
    training.close()


@pytest.fixture(scope="module")
def reference() -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final weights of the same training, written out: AdamW on the mean loss of the tokens."""
    settings = study_of("ddp").sft
    chat = ChatFormat(nano.tokenizer(TARGETS))
    task = get_task(TASK.name, **TASK.options)
    examples = training_examples(task, chat, settings, seed=0)
    model = nano.untrained(TARGETS, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    losses = []
    for step in range(STEPS[-1]):
        batch = examples[step * settings.batch_size : (step + 1) * settings.batch_size]
        count = sum(label != IGNORE for example in batch for label in example.labels[1:])
        loss = torch.zeros(())
        for example in batch:
            logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1]
            labels = torch.tensor(example.labels[1:])
            loss = loss + F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, step / settings.warmup_steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model.state_dict()


def check(files: StudyFiles, sharding: str, reference: tuple[list[float], dict[str, torch.Tensor]]) -> None:
    losses, weights = reference
    rows: list[Mapping[str, Any]] = files.read_part("sft", UNIT).to_pylist()
    assert [row["step"] for row in rows] == list(STEPS)
    assert {row["wrapped_model"] for row in rows} == {WRAPPED[sharding]}
    assert [row["train_loss"] for row in rows[1:]] == pytest.approx(losses, abs=1e-3)
    for step in STEPS:
        assert files.holds(TRUNK.checkpoint(step), UNIT.fingerprint)
        assert (files.checkpoint(TRUNK.checkpoint(step)) / "model.safetensors").exists()
    published = AutoModelForCausalLM.from_pretrained(files.checkpoint(TRUNK.checkpoint(STEPS[-1])))
    start = nano.untrained(TARGETS, seed=0).state_dict()
    state = published.state_dict()
    assert state.keys() == weights.keys()
    moved = sum(float((weights[name] - start[name]).square().sum()) for name in weights)
    apart = sum(float((weights[name] - state[name]).square().sum()) for name in weights)
    assert apart < 1e-4 * moved, f"{apart / moved:.1e} of the squared way"


def test_fsdp2_trains_the_trunk_that_plain_training_does(
    laboratory: Laboratory, reference: tuple[list[float], dict[str, torch.Tensor]]
) -> None:
    check(laboratory.train("fsdp2"), "fsdp2", reference)


@pytest.mark.parametrize("sharding", ["ddp", "zero3", pytest.param("zero2", marks=pytest.mark.slow)])
def test_so_do_the_other_modes_one_after_the_other_in_the_same_processes(
    laboratory: Laboratory, reference: tuple[list[float], dict[str, torch.Tensor]], sharding: str
) -> None:
    check(laboratory.train(sharding), sharding, reference)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp2", "zero2", "zero3"])
def test_a_worker_killed_on_the_way_changes_nothing(
    laboratory: Laboratory, reference: tuple[list[float], dict[str, torch.Tensor]], sharding: str
) -> None:
    """Resumed from the last step whose state all workers had written, with optimiser and schedule."""

    def kill(pids: Path) -> None:
        state = pids.parent / "state"
        while not any(state.rglob("PUBLISHED")):
            time.sleep(0.01)
        delay = random.uniform(0, 0.5)
        time.sleep(delay)
        victim = int(random.choice(pids.read_text().split()))
        print(f"{sharding}: killing worker {victim} {delay:.2f} s after the first state")
        os.kill(victim, signal.SIGKILL)

    fresh = Laboratory(laboratory.training, laboratory.root / "killed")
    check(fresh.train(sharding, during=kill), sharding, reference)
