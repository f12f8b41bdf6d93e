"""Updates by our GRPO and RLOO trainers on given episodes: their losses and gradients, step by step."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from rlheals_ray.config import RLSettings, Sharding
from rlheals_ray.rl.trl_arguments import trl_arguments
from rlheals_ray.rl.trl_metrics import update_metrics
from rlheals_ray.rl.trl_trainers import Grpo, Rloo
from rlheals_ray.rollout.episode import Episode
from tests.learning import random_episodes, tiny_llama

TRAINERS = {"grpo": Grpo, "rloo": Rloo}
GROUP = 4


def in_groups(max_attempts: int = 3, seed: int = 0) -> list[Episode]:
    """Two groups of four; the episodes of a group share the first prompt."""
    made = random_episodes(8, max_attempts, seed=seed)
    for place, one in enumerate(made):
        turn = one.turns[0]
        first = made[place - place % GROUP].turns[0].prompt_ids
        one.turns[0] = type(turn)(**{**vars(turn), "prompt_ids": first})
    return made


def with_logprobs(
    episodes: Sequence[Episode], model: Any, temperature: float, shift: Callable[[int], float] = lambda n: 0.0
) -> list[Episode]:
    """The episodes with log-probabilities as `model` gives them, in float64; `shift(n)` is added to the n-th."""
    return [_scored(episode, model.double(), temperature, shift(n)) for n, episode in enumerate(episodes)]


@torch.no_grad()
def _scored(episode: Episode, model: Any, temperature: float, shift: float) -> Episode:
    ids = [token for turn in episode.turns for token in (*turn.prompt_ids, *turn.completion_ids)]
    logits = model(input_ids=torch.tensor([ids])).logits[0] / temperature
    logprobs = torch.log_softmax(logits, -1)
    turns, at = [], 0
    for turn in episode.turns:
        at += len(turn.prompt_ids)
        own = [float(logprobs[at + i - 1, token]) + shift for i, token in enumerate(turn.completion_ids)]
        at += len(turn.completion_ids)
        turns.append(replace(turn, logprobs=own))
    return replace(episode, turns=turns)


@dataclass
class Steps(TrainerCallback):
    """What a trainer did: the gradient before each step, the logs after it, the weights at the end."""

    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)
    logs: list[Mapping[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, float | None]] = field(default_factory=list)
    meanwhile: list[int] = field(default_factory=list)
    """How many parameters had their gradient after each micro-batch but a step's last."""
    trainer: Any = None
    """Ours; TRL's own measures nothing."""

    def on_substep_end(self, *_: Any, model: Any, **__: Any) -> None:
        self.meanwhile.append(sum(p.grad is not None for p in model.parameters()))

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        module = getattr(model, "module", model)
        self.gradients.append(
            {name: p.grad.detach().clone() for name, p in module.named_parameters() if p.grad is not None}
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" not in logs:
            return
        self.logs.append(dict(logs))
        if self.trainer is not None and state.global_step % self.trainer.steps_per_update == 0:
            self.metrics.append(update_metrics(self.trainer, self.logs[-self.trainer.steps_per_update :]))


def learn(
    settings: RLSettings,
    episodes: Callable[[int], Sequence[Episode]],
    tokenizer: Any,
    *,
    world_size: int = 1,
    sharding: Sharding = "none",
    model: Any = None,
    start: Any = None,
) -> Steps:
    """Train a tiny Llama for budgets[-1] updates; gradients are not clipped below a norm of max_grad_norm.

    With a KL coefficient `start` is the reference, saved as the checkpoint that the branch left from, or where it is
    saved already.
    """
    steps = Steps()
    with tempfile.TemporaryDirectory() as directory:
        model = tiny_llama() if model is None else model
        if settings.kl_coefficient:
            if not isinstance(start, Path):
                start.save_pretrained(directory)
            model.config._name_or_path = str(start if isinstance(start, Path) else directory)
        trainer = TRAINERS[settings.algorithm](
            model=model.float(),
            args=trl_arguments(
                settings,
                model,
                sharding=sharding,
                world_size=world_size,
                seed=0,
                state=Path(directory),
            ),
            source=episodes,
            tokenizer=tokenizer,
            settings=settings,
            seed=(0, 0),
            callbacks=[steps],
        )
        steps.trainer = trainer
        trainer.train()
    return steps


def learn_in_a_group(
    rank: int, port: int, results: str, each: Sequence[RLSettings], episodes: Mapping[int, Sequence[Episode]]
) -> None:
    """`learn` of one of two gloo workers with each of some settings; saved as `<results>-<rank>`."""
    from rlheals_ray.models.nano import tokenizer

    with _group(rank, port):
        done = [
            learn(settings, episodes.__getitem__, tokenizer([18, 24]), world_size=2, sharding="ddp")
            for settings in each
        ]
        torch.save([{"gradients": s.gradients, "metrics": s.metrics} for s in done], f"{results}-{rank}")


def weights_of_a_group(
    rank: int,
    port: int,
    results: str,
    settings: RLSettings,
    episodes: Sequence[Episode],
    start: Path,
    each: Sequence[Sharding],
) -> None:
    """The weights after `learn` of two gloo workers in each of some modes, and what there was of gradients meanwhile;
    rank 0 saves them as `results`."""
    from rlheals_ray.models.nano import tokenizer

    found = {}
    with _group(rank, port):
        for mode in each:
            divided: dict[str, Any] = {"world_size": 2, "sharding": mode}
            steps = learn(settings, lambda _: episodes, tokenizer([18, 24]), start=start, **divided)
            # As the learner gathers what it hands to the engines.
            weights = steps.trainer.accelerator.get_state_dict(steps.trainer.model_wrapped)
            found[mode] = (weights, steps.meanwhile)
            steps.trainer.accelerator.free_memory()
        if rank == 0:
            torch.save(found, results)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def _group(rank: int, port: int) -> Iterator[None]:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
