"""Trunks of recipes `flow` and `rotation`, and on the user's data: on two workers, against training written out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from rlheals_ray.config import Study
from rlheals_ray.lineage import BASE, Trunk
from rlheals_ray.models import nano
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.need import Need
from rlheals_ray.sft.data import IGNORE, Example, TaskExamples
from rlheals_ray.sft.user_data import UserExamples, prepare
from rlheals_ray.spectra import anchor_factors
from rlheals_ray.storage import StudyFiles, Unit
from rlheals_ray.tasks import get_task
from rlheals_ray.training import Training
from rlheals_ray.work_queue import Work

pytestmark = pytest.mark.slow

TARGETS = [18, 24]
TASK = {"name": "general_points", "cards": 3, "targets": TARGETS, "wording": "compact"}
UPDATES, BATCH = 8, 8
K, WEIGHT = 8, 3.0


def study_of(recipe: str, sharding: str, **sft: Any) -> Study:
    settings = {
        "steps": [0, UPDATES], "learning_rate": 1e-3, "warmup_steps": 4, "batch_size": BATCH, "workers": 2,
        "micro_batch": 2, "recipe": recipe, "sharding": sharding, "rotation": {"k": K, "weight": WEIGHT},
    }  # fmt: skip
    return Study.model_validate(
        {"task": TASK, "sft": settings | sft, "rl": {"from_steps": [0], "workers": 2}, "edits": []}
    )


def untrained() -> Any:
    model = nano.untrained(TARGETS, seed=0)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)  # so that the losses of samples differ
    return model


@dataclass
class Laboratory:
    """A group of two workers."""

    training: Training
    root: Path

    def train(self, study: Study) -> tuple[StudyFiles, list[float], dict[str, torch.Tensor]]:
        """Train a trunk; where its files are, its losses and its last weights."""
        recipe = study.sft.recipes[0]
        trunk = Trunk(recipe, 0)
        unit = Unit(trunk.name, "fingerprint")
        files = StudyFiles(self.root / f"{recipe}-{study.sft.sharding}-{time.monotonic_ns()}")
        files.checkpoint(BASE).mkdir(parents=True)
        nano.save(untrained(), TARGETS, files.checkpoint(BASE))
        if study.sft.data is not None:
            prepare(study, files)
        if recipe == "rotation":
            anchor_factors.prepare(study, files)
        arguments = {"study": study, "files": files, "trunk": trunk, "unit": unit, "base": BASE}
        rows = list(
            self.training.run(Work(files.root.name, "rlheals_ray.sft.trainer:train_trunk", arguments))
        )
        losses = [row["loss"] for row in rows if "loss" in row]
        end = AutoModelForCausalLM.from_pretrained(files.checkpoint(trunk.checkpoint(UPDATES)))
        return files, losses, end.state_dict()


@pytest.fixture(scope="module")
def laboratory(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    root = tmp_path_factory.mktemp("recipes")
    training = Training.start(
        groups=1, workers=2, need=Need(cpus=0.5), threads=1, storage=str(root / "train"), name="recipes"
    )
    yield Laboratory(training, root)
    training.close()


Loss = Callable[[Any, list[Example], list[torch.Tensor]], torch.Tensor]


def written_out(examples: list[Example], loss_of: Loss) -> tuple[list[float], dict[str, torch.Tensor]]:
    """AdamW on a loss of (model, examples, −log p of the response tokens of each): losses, final weights."""
    model = untrained()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    for step in range(UPDATES):
        batch = examples[step * BATCH : (step + 1) * BATCH]
        loss = loss_of(model, batch, [tokens_of(model, example) for example in batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, step / 4)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model.state_dict()


def tokens_of(model: Any, example: Example) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1]
    labels = torch.tensor(example.labels[1:])
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")[labels != IGNORE]


def plain(model: Any, batch: list[Example], tokens: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(tokens).mean()


def task_examples() -> list[Example]:
    examples = TaskExamples(get_task(**TASK), ChatFormat(nano.tokenizer(TARGETS)), seed=0)  # type: ignore[call-overload]
    return list(examples.stream(range(UPDATES * BATCH)))


def check(
    losses: list[float],
    state: Mapping[str, torch.Tensor],
    expected: tuple[list[float], Mapping[str, torch.Tensor]],
) -> None:
    assert losses == pytest.approx(expected[0], rel=1e-3, abs=1e-3)
    start, weights = untrained().state_dict(), expected[1]
    moved = sum(float((weights[name] - start[name]).square().sum()) for name in weights)
    apart = sum(float((weights[name] - state[name]).square().sum()) for name in weights)
    print(f"{apart / moved:.1e} of the squared way")
    assert apart < 1e-3 * moved


@pytest.mark.parametrize("sharding", ["ddp", "fsdp2", "zero2", "zero3"])
def test_flow_on_two_workers_is_the_weighted_mean_of_sequence_losses(
    laboratory: Laboratory, sharding: str
) -> None:
    examples = task_examples()
    with torch.no_grad():
        base = np.array([tokens_of(untrained(), example).mean() for example in examples])
    w = np.exp(-base / np.median(base))
    weights = {tuple(e.input_ids): v for e, v in zip(examples, w / w.mean(), strict=True)}
    assert max(weights.values()) / min(weights.values()) > 1.5

    def flow(model: Any, batch: list[Example], tokens: list[torch.Tensor]) -> torch.Tensor:
        each = [weights[tuple(e.input_ids)] * t.mean() for e, t in zip(batch, tokens, strict=True)]
        return torch.stack(each).mean()

    expected = written_out(examples, flow)
    _, losses, state = laboratory.train(study_of("flow", sharding))
    check(losses, state, expected)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp2", "zero2"])
def test_rotation_on_two_workers_pays_for_the_moved_block(laboratory: Laboratory, sharding: str) -> None:
    start = {
        name: parameter.detach().clone()
        for name, parameter in untrained().named_parameters()
        if name.endswith("_proj.weight")
    }
    factors = {name: np.linalg.svd(weight.double().numpy()) for name, weight in start.items()}
    leading = {
        name: (torch.from_numpy(U[:, :K].copy()).float(), torch.from_numpy(Vh[:K].copy()).float())
        for name, (U, _, Vh) in factors.items()
    }

    def rotation(model: Any, batch: list[Example], tokens: list[torch.Tensor]) -> torch.Tensor:
        parameters, total = dict(model.named_parameters()), plain(model, batch, tokens)
        for name, (U, Vh) in leading.items():
            total = total + WEIGHT * (U.mT @ (parameters[name] - start[name]) @ Vh.mT).square().sum()
        return total

    examples = task_examples()
    expected = written_out(examples, rotation)
    free = written_out(examples, plain)[1]
    assert any((expected[1][name] - free[name]).abs().max() > 1e-4 for name in start), "the price is felt"
    _, losses, state = laboratory.train(study_of("rotation", sharding))
    check(losses, state, expected)


def test_the_user_s_data_are_trained_on_in_the_seeded_order(laboratory: Laboratory, tmp_path: Path) -> None:
    task = get_task(**TASK)  # type: ignore[call-overload]
    problems = task.problems("id", "train", 50)
    rows = [{"prompt": task.prompt(p), "answer": task.demonstration(p)} for p in problems]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    study = study_of("plain", "ddp", data={"path": str(tmp_path / "d.jsonl")})
    files, losses, state = laboratory.train(study)
    chat = ChatFormat(nano.tokenizer(TARGETS))
    order = [int(i) for epoch in (0, 1) for i in np.random.default_rng((0, epoch)).permutation(len(rows))][
        : UPDATES * BATCH
    ]
    examples = []
    for i in order:
        prompt, answer = chat.first_turn(rows[i]["prompt"]), chat.completion(rows[i]["answer"])
        examples.append(Example(None, prompt + answer, [IGNORE] * len(prompt) + answer, i))
    check(losses, state, written_out(examples, plain))
    assert UserExamples.open(study, files, chat, 0).count == len(rows)
    received = pq.read_table(files.received(Unit(Trunk("plain", 0).name, "")))
    assert sum(received["count"].to_pylist()) == UPDATES * BATCH
    assert set(received["prompt"].to_pylist()) == {rows[i]["prompt"] for i in order}
