"""A trunk on two workers, whatever divides the model: the losses and the weights of plain training."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import ray.train
import ray.train.collective
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from rlheals_ray.config import SFTSettings, Study, TaskSettings
from rlheals_ray.lineage import BASE, Trunk
from rlheals_ray.models import nano
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.need import Need
from rlheals_ray.sft import run, trainer
from rlheals_ray.sft.data import IGNORE, training_examples
from rlheals_ray.sft.run import train_run
from rlheals_ray.sft.stream_trainer import StreamTrainer
from rlheals_ray.sft.trainer import train_trunk
from rlheals_ray.storage import StudyFiles, Unit
from rlheals_ray.tasks import get_task
from rlheals_ray.training import Report, Training
from rlheals_ray.work_queue import Work
from tests.toy_lab import Lab

TARGETS = [18, 24]
TASK = TaskSettings.model_validate(
    {"name": "general_points", "cards": 3, "targets": TARGETS, "wording": "compact"}
)
STEPS = tuple(range(9))
HALF = 4
RATES = [1e-3 * (step / 4 if step < 4 else (1 + math.cos(math.pi * (step - 4) / 4)) / 2) for step in range(8)]
"""Four updates of warm-up, then half a cosine, as transformers has it."""
WRAPPED = {
    "ddp": "DistributedDataParallel",
    "fsdp2": "FSDPLlamaForCausalLM",
    "zero2": "DeepSpeedEngine (ZeRO-2)",
    "zero3": "DeepSpeedEngine (ZeRO-3)",
}


def trunk(watched: str, report: Report, **arguments: Any) -> None:
    """The trunk's training function, of which each worker leaves in directory `watched` what a test asks for."""
    with watching(Path(watched)) as trainers:
        train_trunk(**arguments, report=report)
        if not trainers:
            return  # a worker that was killed had done it
        held = {"rank": ray.train.get_context().get_world_rank(), "bytes": moment_bytes(trainers[-1])}
        (Path(watched) / f"moments-{os.getpid()}.json").write_text(json.dumps(held))
        ray.train.collective.barrier()  # the item is done when rank 0 says so, and the test reads what all wrote


def half_a_trunk(watched: str, report: Report, **arguments: Any) -> None:
    """The same, as it is when all workers are taken away after update HALF: its state stays."""
    study, files, trunk, base = (arguments[name] for name in ("study", "files", "trunk", "base"))
    whole = trainer.trunk_run(study, trunk, arguments["unit"], base)
    publish = {step: name for step, name in whole.publish.items() if step <= HALF}
    chat = ChatFormat.of(files.checkpoint(base))
    with watching(Path(watched)):
        task = get_task(study.task.name, **study.task.options)
        examples = trainer.open_examples(study, files, task, chat, trunk.seed)
        train_run(study, files, replace(whole, updates=HALF, publish=publish), examples, report)


@contextmanager
def watching(directory: Path) -> Iterator[list[StreamTrainer]]:
    """Note this worker's process id and the positions of the examples that it reads; the trainers that are made."""
    directory.mkdir(exist_ok=True)
    (directory / f"{os.getpid()}.pid").touch()
    trainers, make, open_examples = [], run._trainer, trainer.open_examples

    def kept(*arguments: Any) -> StreamTrainer:
        trainers.append(make(*arguments))
        return trainers[-1]

    def noted(*arguments: Any) -> Any:
        return Noted(open_examples(*arguments), directory / f"positions-{os.getpid()}")

    with patch.object(run, "_trainer", kept), patch.object(trainer, "open_examples", noted):
        yield trainers


@dataclass
class Noted:
    """Examples whose positions are noted as they are read."""

    examples: Any
    path: Path

    def stream(self, positions: Iterable[int]) -> Iterator[Any]:
        def noted() -> Iterator[int]:
            for position in positions:
                with self.path.open("a") as file:
                    file.write(f"{position}\n")
                yield position

        yield from self.examples.stream(noted())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.examples, name)


def moment_bytes(made: StreamTrainer) -> int:
    """Bytes of AdamW's moments on this worker: of the optimiser that steps, below accelerate's and DeepSpeed's."""
    optimizer: Any = made.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    assert type(optimizer) is torch.optim.AdamW
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    local = [moment.to_local() if hasattr(moment, "to_local") else moment for moment in moments]
    return sum(moment.numel() * moment.element_size() for moment in local)


def study_of(sharding: str, **more: Any) -> Study:
    # The rate rises over the first steps: AdamW's very first ones are of full size for rounding noise too.
    sft = {"steps": STEPS, "learning_rate": 1e-3, "warmup_steps": 4, "batch_size": 8, "workers": 2}
    settings = SFTSettings.model_validate({**sft, "lr_schedule": "cosine", "sharding": sharding, **more})
    return Study.model_validate(
        {"task": TASK.model_dump(), "sft": settings, "rl": {"from_steps": [0], "workers": 2}}
    )


@dataclass
class Laboratory:
    """A group of workers and an untrained base."""

    training: Training
    root: Path

    def place(self, name: str) -> StudyFiles:
        """Files in which the base is made."""
        files = StudyFiles(self.root / name)
        nano.save(nano.untrained(TARGETS, seed=0), TARGETS, _made(files.checkpoint(BASE)))
        return files

    def train(
        self,
        sharding: str,
        during: Callable[[Path], None] | None = None,
        trunk: Trunk | None = None,
        **more: Any,
    ) -> StudyFiles:
        files = self.place("-".join([sharding, *more]))
        disturber = threading.Thread(target=during, args=(files.root / "watched",)) if during else None
        if disturber:
            disturber.start()
        self.work(files, study_of(sharding, **more), trunk=trunk)
        if disturber:
            disturber.join()
        return files

    def work(
        self,
        files: StudyFiles,
        study: Study,
        function: str = "trunk",
        trunk: Trunk | None = None,
        watched: str = "watched",
    ) -> list[Mapping[str, Any]]:
        """Have one of the functions above done; the rows of progress that it told."""
        work = Work(
            f"{study.sft.sharding}-{time.monotonic_ns()}",
            f"tests.ray.test_sft_sharding:{function}",
            {"study": study, "files": files, "trunk": trunk or TRUNK, "unit": UNIT, "base": BASE}
            | {"watched": str(files.root / watched)},
        )
        return list(self.training.run(work))


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
def reference() -> Reference:
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


Reference = tuple[list[float], dict[str, torch.Tensor]]


def check(
    files: StudyFiles, sharding: str, reference: Reference, workers: int = 2, *, killed: bool = False
) -> None:
    losses, weights = reference
    rows: list[Mapping[str, Any]] = files.read_part("sft", UNIT).to_pylist()
    assert [row["step"] for row in rows] == list(STEPS)
    assert {row["wrapped_model"] for row in rows} == {WRAPPED[sharding if workers > 1 else "ddp"]}
    assert [row["train_loss"] for row in rows[1:]] == pytest.approx(losses, abs=1e-3)
    assert [row["learning_rate"] for row in rows[1:]] == pytest.approx(RATES)  # read from the optimiser
    whole = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    share = 1 / workers if sharding in ("fsdp2", "zero3") else 1.0
    assert [row["parameter_bytes"] / whole for row in rows] == pytest.approx([share] * len(rows), abs=0.03)
    if not killed:  # who was killed at the very end has left nothing, and nothing is done again
        check_moments(files, sharding, 2 * whole, workers)
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


def check_moments(files: StudyFiles, sharding: str, whole: int, workers: int) -> None:
    """What ZeRO-2 divides and ddp does not, though both hold all parameters: read from the optimiser itself."""
    held = [json.loads(file.read_text()) for file in (files.root / "watched").glob("moments-*.json")]
    assert sorted(each["rank"] for each in held) == list(range(workers))
    share = 1.0 if sharding == "ddp" else 1 / workers
    assert [each["bytes"] / whole for each in held] == pytest.approx([share] * workers, abs=0.03)


def test_fsdp2_trains_the_trunk_that_plain_training_does(
    laboratory: Laboratory, reference: Reference
) -> None:
    check(laboratory.train("fsdp2"), "fsdp2", reference)


@pytest.mark.parametrize("sharding", ["ddp", "zero3", pytest.param("zero2", marks=pytest.mark.slow)])
def test_so_do_the_other_modes_one_after_the_other_in_the_same_processes(
    laboratory: Laboratory, reference: Reference, sharding: str
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
    reference: Reference,
    sharding: str,
    how: str,
) -> None:
    check(laboratory.train(sharding, **HOW[how]), sharding, reference)


@pytest.mark.parametrize("sharding", [pytest.param(name, marks=pytest.mark.slow) for name in WRAPPED])
def test_bfloat16_is_near_and_leaves_float32_weights(
    laboratory: Laboratory, reference: Reference, sharding: str
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


BEGINS_AGAIN = {
    ("zero2", 2, 1): "of a model divided by zero2 among 2 workers, these workers read of a whole model",
    ("zero2", 1, 2): "of a whole model, these workers read of a model divided by zero2 among 2 workers",
    ("fsdp2", 1, 2): "of a whole model, these workers read of a model divided by fsdp2",
}
"""Sharding, workers before and after, of those changes after which a state cannot be read; what is said of it."""


@pytest.mark.parametrize(
    ("sharding", "before", "after"),
    [
        ("fsdp2", 2, 1),
        ("ddp", 2, 1),
        pytest.param("ddp", 1, 2, marks=pytest.mark.slow),
        *(pytest.param(*change, marks=pytest.mark.slow) for change in BEGINS_AGAIN),
    ],
)
def test_another_number_of_workers_goes_on_or_says_why_it_begins_again(
    laboratory: Laboratory, lab: Lab, reference: Reference, sharding: str, before: int, after: int
) -> None:
    """As is read after update HALF: the same losses, the same weights, the same examples in the same order."""
    groups = {1: lab.training, 2: laboratory.training}
    files = laboratory.place(f"{sharding}-{before}-{after}")
    first, second = (Laboratory(groups[workers], laboratory.root) for workers in (before, after))
    first.work(files, study_of(sharding, workers=before), "half_a_trunk", watched="before")
    for read, trained in zip(
        positions_read(files.root / "before", before), positions_of(0, HALF, before), strict=True
    ):
        assert read[: len(trained)] == trained  # a micro-batch is read ahead
    rows = second.work(files, study_of(sharding, workers=after))
    why, start = BEGINS_AGAIN.get((sharding, before, after)), rows[0]
    if why is None:
        assert start["step"] == HALF and f"goes on after update {HALF}" in start["note"]
    else:
        assert start["step"] == 0
        assert f"the saved state of update {HALF} is {why}: beginning again" in start["note"]
    assert [row["step"] for row in rows[1:]] == list(range(start["step"] + 1, STEPS[-1] + 1))
    assert positions_read(files.root / "watched", after) == positions_of(start["step"], STEPS[-1], after)
    check(files, sharding, reference, workers=after)


def positions_of(first: int, last: int, workers: int) -> list[list[int]]:
    """Of each worker, the positions of updates `first` + 1 to `last`, in their order: its part of every batch."""
    batch, part = study_of("ddp").sft.batch_size, study_of("ddp").sft.batch_size // workers
    return [
        [update * batch + rank * part + at for update in range(first, last) for at in range(part)]
        for rank in range(workers)
    ]


def positions_read(watched: Path, workers: int) -> list[list[int]]:
    files = list(watched.glob("positions-*"))
    assert len(files) == workers
    return sorted([int(line) for line in file.read_text().split()] for file in files)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp2", "zero2", "zero3"])
def test_a_worker_killed_on_the_way_changes_nothing(
    laboratory: Laboratory, reference: Reference, sharding: str
) -> None:
    """Resumed from the last step whose state all workers had written, with optimiser and schedule."""

    def kill(watched: Path) -> None:
        state = watched.parent / "state"
        while not any(state.rglob("COMPLETE")):
            time.sleep(0.01)
        delay = random.uniform(0, 0.5)
        time.sleep(delay)
        victim = int(random.choice(list(watched.glob("*.pid"))).stem)
        print(f"{sharding}: killing worker {victim} {delay:.2f} s after the first state")
        os.kill(victim, signal.SIGKILL)

    fresh = Laboratory(laboratory.training, laboratory.root / "killed")
    check(fresh.train(sharding, during=kill), sharding, reference, killed=True)
