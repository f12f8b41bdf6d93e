"""A trunk on two workers, whatever divides the model: the losses and the weights of plain training."""

from __future__ import annotations

import math
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
from rlheals_ray.need import Need
from rlheals_ray.sft.data import IGNORE, training_examples
from rlheals_ray.sft.trainer import train_trunk
from rlheals_ray.storage import StudyFiles, Unit
from rlheals_ray.tasks import get_task
from rlheals_ray.training import Report, Training
from rlheals_ray.work_queue import Work

TARGETS = [18, 24]
TASK = TaskSettings.model_validate(
    {"name": "general_points", "cards": 3, "targets": TARGETS, "wording": "compact"}
)
STEPS = tuple(range(9))
RATES = [1e-3 * (step / 4 if step < 4 else (1 + math.cos(math.pi * (step - 4) / 4)) / 2) for step in range(8)]
"""Four updates of warm-up, then half a cosine, as transformers has it."""
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


def study_of(sharding: str, **more: Any) -> Study:
    # The rate rises over the first steps: AdamW's very first ones are of full size for rounding noise too.
    sft = {"steps": STEPS, "learning_rate": 1e-3, "warmup_steps": 4, "batch_size": 8, "workers": 2}
    settings = SFTSettings.model_validate({**sft, "lr_schedule": "cosine", "sharding": sharding, **more})
    return Study.model_validate(
        {"task": TASK.model_dump(), "sft": settings, "rl": {"from_steps": [0], "workers": 2}}
    )


@dataclass
class Laboratory:
    """A group of two workers and an untrained base."""

    training: Training
    root: Path

    def train(
        self,
        sharding: str,
        during: Callable[[Path], None] | None = None,
        trunk: Trunk | None = None,
        **more: Any,
    ) -> StudyFiles:
        files = StudyFiles(self.root / "-".join([sharding, *more]))
        nano.save(nano.untrained(TARGETS, seed=0), TARGETS, _made(files.checkpoint(BASE)))
        pids = files.root / "pids"
        work = Work(
            f"{sharding}-{time.monotonic_ns()}",
            "tests.ray.test_sft_sharding:trunk",
            {"study": study_of(sharding, **more), "files": files, "trunk": trunk or TRUNK, "unit": UNIT}
            | {"base": BASE}
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
        groups=1, workers=2, need=Need(cpus=0.5), threads=1, storage=str(root / "train"), name="sharding"
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
            group["lr"] = RATES[step]
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
    assert [row["learning_rate"] for row in rows[1:]] == pytest.approx(RATES)  # read from the optimiser
    whole = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    share = 0.5 if sharding in ("fsdp2", "zero3") else 1.0
    assert [row["parameter_bytes"] / whole for row in rows] == pytest.approx([share] * len(rows), abs=0.03)
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


HOW: Mapping[str, Mapping[str, Any]] = {
    "micro-batches": {"micro_batch": 2},
    "packed": {"packing": True, "micro_batch": 2},
    "activations computed again": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize(
    ("sharding", "how"),
    [
        pytest.param(sharding, how, marks=() if (sharding, how) == ("zero3", "packed") else pytest.mark.slow)
        for sharding in WRAPPED
        for how in HOW
    ],
)
def test_what_saves_memory_changes_nothing(
    laboratory: Laboratory,
    reference: tuple[list[float], dict[str, torch.Tensor]],
    sharding: str,
    how: str,
) -> None:
    check(laboratory.train(sharding, **HOW[how]), sharding, reference)


@pytest.mark.parametrize("sharding", [pytest.param(name, marks=pytest.mark.slow) for name in WRAPPED])
def test_bfloat16_is_near_and_leaves_float32_weights(
    laboratory: Laboratory, reference: tuple[list[float], dict[str, torch.Tensor]], sharding: str
) -> None:
    files = laboratory.train(sharding, precision="bfloat16")
    rows = files.read_part("sft", UNIT).to_pylist()
    found = [row["train_loss"] for row in rows[1:]]
    assert found == pytest.approx(reference[0], abs=0.02)  # bfloat16 rounds to 2^-8 relative
    assert found != pytest.approx(reference[0], abs=1e-6)
    last = AutoModelForCausalLM.from_pretrained(files.checkpoint(TRUNK.checkpoint(STEPS[-1])))
    assert {parameter.dtype for parameter in last.parameters()} == {torch.float32}


def test_lora_publishes_whole_models_that_have_learned(laboratory: Laboratory) -> None:
    trunk = Trunk("lora", 0)
    files = laboratory.train("ddp", trunk=trunk, recipe="lora", learning_rate=1e-2, state_every=3)
    rows = files.read_part("sft", UNIT).to_pylist()
    assert rows[-1]["train_loss"] < rows[1]["train_loss"] - 0.1
    start = nano.untrained(TARGETS, seed=0).state_dict()
    last = AutoModelForCausalLM.from_pretrained(files.checkpoint(trunk.checkpoint(STEPS[-1]))).state_dict()
    assert last.keys() == start.keys()
    moved = {name.split(".")[-2] for name, tensor in last.items() if not torch.equal(tensor, start[name])}
    assert moved == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp2", "zero2", "zero3"])
def test_a_worker_killed_on_the_way_changes_nothing(
    laboratory: Laboratory, reference: tuple[list[float], dict[str, torch.Tensor]], sharding: str
) -> None:
    """Resumed from the last step whose state all workers had written, with optimiser and schedule."""

    def kill(pids: Path) -> None:
        state = pids.parent / "state"
        while not any(state.rglob("COMPLETE")):
            time.sleep(0.01)
        delay = random.uniform(0, 0.5)
        time.sleep(delay)
        victim = int(random.choice(pids.read_text().split()))
        print(f"{sharding}: killing worker {victim} {delay:.2f} s after the first state")
        os.kill(victim, signal.SIGKILL)

    fresh = Laboratory(laboratory.training, laboratory.root / "killed")
    check(fresh.train(sharding, during=kill), sharding, reference)
