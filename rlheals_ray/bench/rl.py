"""Episodes per second of a whole PPO update, beside one of TRL's GRPOTrainer with its own generation.

Both learn from as many single-turn episodes an update, on the same problems, model, reward and longest answer.
An update's clock runs from the end of the one before to its own end, as each trainer reports it: generation,
rewards, learning, weight sync, and here also the branch's saved state. Each run begins with an update that is
not counted.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from rlheals_ray.bench.command import positive
from rlheals_ray.bench.laboratory import POLICY, THREADS, Laboratory, add_model_options, laboratory
from rlheals_ray.bench.measure import Figure, Outcome, alternate, at_least
from rlheals_ray.config import RLSettings, TaskSettings
from rlheals_ray.connection import WORKER_ENVIRONMENT
from rlheals_ray.lineage import Branch, Trunk
from rlheals_ray.rl.spec import BranchSpec
from rlheals_ray.storage import Unit, fingerprint
from rlheals_ray.tasks import get_task
from rlheals_ray.work_queue import Work

TRAIN_BRANCH = "rlheals_ray.rl.learner:train_branch"


@dataclass(frozen=True)
class Updates:
    """The counted updates of one run."""

    seconds: float
    episodes: int
    parts: Mapping[str, float]
    """Mean seconds of an update's parts, where the trainer tells them apart, and the mean length of an answer."""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--episodes", type=positive, default=160, help="of an update")
    parser.add_argument(
        "--updates", type=positive, default=5, help="counted in each run, after one that is not"
    )
    parser.add_argument("--group-size", type=positive, default=8, help="GRPO's episodes of one problem")
    parser.add_argument("--max-new-tokens", type=positive, default=40)
    add_model_options(parser)


def run(options: Namespace) -> Outcome:
    overrides = [
        "rl.algorithm=ppo",
        "rl.max_attempts=1",
        f"rl.episodes={options.episodes}",
        f"rl.group_size={options.group_size}",
        f"rl.max_new_tokens={options.max_new_tokens}",
        f"rl.budgets=[0, {options.updates + 1}]",
        "rl.from_steps=[0]",
    ]
    with laboratory(options, overrides) as lab:
        environment = {**WORKER_ENVIRONMENT, "OMP_NUM_THREADS": str(THREADS)}
        actor = ray.remote(TrlUpdates).options(num_cpus=1, runtime_env={"env_vars": environment})
        trl = actor.remote(str(lab.policy), lab.study.task, lab.study.rl)
        training = lab.session.training  # starts beside the engines
        lab.session.pool.wait_ready()
        ray.get(trl.ready.remote())
        made = alternate(
            {
                "PPO": lambda repetition: _branch(lab, training, repetition),
                "TRL GRPO": lambda repetition: ray.get(trl.run.remote(options.updates, repetition)),
            },
            options.repetitions,
        )
        return _outcome(lab, options, made)


def _branch(lab: Laboratory, training: Any, repetition: int) -> Updates:
    """A branch by the real learner in the warm worker group, fed by the pool."""
    unit = Unit(f"bench/{repetition}", fingerprint(repetition=repetition))
    spec = BranchSpec(
        lab.study,
        lab.session.files,
        lab.session.pool,
        Branch(Trunk("plain", repetition), 0, "ppo"),
        unit,
        POLICY,
    )
    rows: list[Mapping[str, Any]] = []
    ends: list[float] = []
    for row in training.run(Work(unit.name, TRAIN_BRANCH, {"spec": spec})):
        rows.append(row)
        ends.append(time.perf_counter())
    counted = rows[1:]
    parts = {
        name: sum(row[f"seconds_{name}"] for row in counted) / len(counted)
        for name in ("generate", "judge", "learn", "sync")
    }
    tokens = sum(row["tokens"] for row in counted) / (len(counted) * lab.study.rl.episodes)
    return Updates(ends[-1] - ends[0], lab.study.rl.episodes * len(counted), {**parts, "tokens": tokens})


def _outcome(lab: Laboratory, options: Namespace, made: Mapping[str, Sequence[Updates]]) -> Outcome:
    rates = {
        arm: Figure(f"{arm}, whole updates", "episodes/s", tuple(run.episodes / run.seconds for run in runs))
        for arm, runs in made.items()
    }
    figures = list(rates.values())
    for arm, runs in made.items():
        seconds = tuple(run.seconds / options.updates for run in runs)
        figures.append(Figure(f"{arm}, one update", "s", seconds))
        for part in runs[0].parts:
            unit, label = ("tokens", "length of an answer") if part == "tokens" else ("s", part)
            figures.append(Figure(f"{arm}, {label}", unit, tuple(run.parts[part] for run in runs)))
    ratio = rates["PPO"].over(rates["TRL GRPO"], "PPO ÷ TRL's GRPO", target=at_least(2))
    return Outcome(lab.settings(options), [ratio], figures, _notes(options))


def _notes(options: Namespace) -> list[str]:
    return [
        f"Model: {options.model or 'nano base, then demonstrations'}; both start every run from the same weights.",
        f"PPO: one Ray Train worker and one vLLM engine, {THREADS} thread each, which take turns; the branch saves its "
        "state at every update, and its checkpoint at the last.",
        f"TRL: GRPOTrainer, use_vllm=False, float32, one process of {THREADS} thread; no gradient checkpointing, no "
        "logging, no saving; KL weight 0; each update is one batch and one optimiser step.",
        "Both reward an answer by the task's judge. PPO takes each problem once, GRPO in groups.",
    ]


class TrlUpdates:
    """TRL's trainer in a process of its own."""

    def __init__(self, directory: str, task: TaskSettings, settings: RLSettings) -> None:
        import torch
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer  # noqa: F401 (seconds of imports, before any clock)

        from rlheals_ray.models.chat import ChatFormat

        torch.set_num_threads(THREADS)
        self._directory, self._settings = Path(directory), settings
        self._task = get_task(task.name, **task.options)
        self._chat = ChatFormat.of(directory)
        self._problems = self._task.problems("id", "train", self._task.available("id", "train"), seed=0)
        self._dataset = Dataset.from_list(
            [
                {"prompt": [{"role": "user", "content": self._task.prompt(problem)}], "problem": index}
                for index, problem in enumerate(self._problems)
            ]
        )

    def ready(self) -> None:
        """Answers when everything is imported."""

    def _reward(
        self, completion_ids: Sequence[list[int]], problem: Sequence[int], **_: Any
    ) -> list[float | None]:
        answers = zip(problem, completion_ids, strict=True)
        return [
            self._task.judge(self._problems[index], self._chat.answer(list(ids))).reward
            for index, ids in answers
        ]

    def run(self, updates: int, seed: int) -> Updates:
        """`updates` counted updates after one that is not, from the policy's own weights."""
        import tempfile

        import torch
        from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
        from trl import GRPOConfig, GRPOTrainer

        ends: list[float] = []
        generating: list[float] = []
        logged: dict[str, float] = {}

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                ends.append(time.perf_counter())

            def on_log(self, *_: Any, **named: Any) -> None:
                logged.update(named["logs"])

        class Trainer(GRPOTrainer):
            def _generate_single_turn(self, *arguments: Any, **named: Any) -> Any:
                start = time.perf_counter()
                result = super()._generate_single_turn(*arguments, **named)
                generating.append(time.perf_counter() - start)
                return result

        settings = self._settings
        with tempfile.TemporaryDirectory(prefix="bench-trl-") as output:
            trainer = Trainer(
                model=AutoModelForCausalLM.from_pretrained(self._directory, dtype=torch.float32),
                reward_funcs=self._reward,
                args=GRPOConfig(
                    output_dir=output,
                    seed=seed,
                    use_cpu=True,
                    bf16=False,
                    gradient_checkpointing=False,
                    per_device_train_batch_size=settings.episodes,
                    gradient_accumulation_steps=1,
                    num_generations=settings.group_size,
                    max_completion_length=settings.max_new_tokens,
                    temperature=settings.temperature,
                    learning_rate=settings.learning_rate,
                    lr_scheduler_type="constant",
                    max_grad_norm=settings.max_grad_norm,
                    max_steps=updates + 1,
                    save_strategy="no",
                    logging_strategy="no",
                    report_to=[],
                    disable_tqdm=True,
                ),
                train_dataset=self._dataset,
                processing_class=self._chat.tokenizer,
                callbacks=[Clock()],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        if len(ends) != updates + 1:
            raise RuntimeError(f"TRL made {len(ends)} updates instead of {updates + 1}")
        parts = {
            "generate": sum(generating[1:]) / updates,
            "tokens": float(logged["completions/mean_length"]),
        }
        return Updates(ends[-1] - ends[0], settings.episodes * updates, parts)
