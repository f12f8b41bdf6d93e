"""Small material for tests of rollouts and learning: models of a few hundred weights, invented episodes.

Only torch is imported at once: the worker processes of a test start faster without transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from rlheals_ray.config import RLSettings
from rlheals_ray.rl.actions import actions_of
from rlheals_ray.rl.batch import Batch, batch_of
from rlheals_ray.rl.critic import Critic
from rlheals_ray.rl.policy import Evaluation, evaluate
from rlheals_ray.rl.ppo import PPO
from rlheals_ray.rl.sharded_policy import ShardedPolicy
from rlheals_ray.rollout.episode import Episode, Turn, Weights
from rlheals_ray.tasks import Problem, Verdict

VOCABULARY, HIDDEN = 17, 16


def tiny_llama(*, tied: bool = False, seed: int = 0) -> Any:
    """A random Llama of one layer; float32, in evaluation mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float().eval()


class RunningMean(nn.Module):
    """The simplest causal language model: logits of the mean of the tokens so far."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
            self.head = nn.Linear(HIDDEN, VOCABULARY)

    def forward(
        self, input_ids: torch.Tensor, output_hidden_states: bool = False, use_cache: bool = True
    ) -> SimpleNamespace:
        length = torch.arange(1, input_ids.shape[1] + 1)[None, :, None]
        hidden = torch.tanh(self.embedding(input_ids).cumsum(1) / length)
        return SimpleNamespace(logits=self.head(hidden), hidden_states=(hidden,))


def episode(*turns: tuple[Sequence[int], Sequence[int], float]) -> Episode:
    """An episode of (environment's ids, model's ids, reward) turns; log-probabilities are made up."""
    made = [
        Turn(
            prompt_ids=list(prompt),
            completion_ids=list(completion),
            logprobs=[-0.1 * (i + 1) for i in range(len(completion))],
            ended=True,
            answer="",
            verdict=Verdict(reward, reward > 0, True, ""),
            weights=Weights("w"),
        )
        for prompt, completion, reward in turns
    ]
    return Episode(Problem("p", "id", "g"), Weights("w"), made)


def random_episodes(count: int, max_attempts: int, seed: int = 0) -> list[Episode]:
    """Episodes of different lengths and numbers of turns over the tiny vocabulary."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    def ids(low: int, high: int) -> list[int]:
        return torch.randint(0, VOCABULARY, (number(low, high),), generator=generator).tolist()

    return [
        episode(
            *((ids(2, 5), ids(1, 6), (-3.0, -2.0, -1.0, 5.0)[number(0, 4)])
              for _ in range(number(1, max_attempts + 1)))
        )
        for _ in range(count)
    ]  # fmt: skip


def scores(module: nn.Module, batch: Batch, settings: RLSettings) -> Evaluation:
    """The batch as the policy `module` sees it."""
    return evaluate(module, batch, actions_of(batch, settings), settings.temperature)


def on_policy(model: nn.Module, episodes: Sequence[Episode], settings: RLSettings) -> Batch:
    """The episodes as a batch whose log-probabilities are the model's own."""
    batch = batch_of(episodes, settings.max_attempts)
    with torch.no_grad():
        return replace(batch, logprobs=scores(model, batch, settings).token_logprobs)


def learner(model: nn.Module, settings: RLSettings, reference: nn.Module | None = None) -> PPO:
    """PPO with the optimisers that a branch has."""
    critic = Critic(HIDDEN)
    return PPO(
        ShardedPolicy(
            model,
            "ddp",
            learning_rate=settings.learning_rate,
            precision=settings.precision,
            gradient_checkpointing=settings.gradient_checkpointing,
            max_grad_norm=settings.max_grad_norm,
        ),
        critic,
        torch.optim.Adam(critic.parameters(), lr=settings.value_learning_rate),
        settings,
        reference=reference,
    )


def two_updates_in_a_group(rank: int, rendezvous: str, results: str, each: Sequence[RLSettings]) -> None:
    """`two_updates` of one of two gloo workers with each of some settings; saved as `<results>-<rank>`."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    try:
        done = [two_updates(settings, rank, world_size=2) for settings in each]
        torch.save([{"state": state, "rows": rows} for state, rows in done], f"{results}-{rank}")
    finally:
        torch.distributed.destroy_process_group()


def two_updates(
    settings: RLSettings, rank: int = 0, world_size: int = 1
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Weights of policy and critic, and the metrics, after two updates from a slice of fixed episodes."""
    model = RunningMean()
    ppo = learner(model, settings, RunningMean(seed=1) if settings.kl_coefficient else None)
    rows = []
    for update in (1, 2):
        mine = random_episodes(8, settings.max_attempts, seed=update)[rank::world_size]
        rows.append(ppo.update(on_policy(RunningMean(), mine, settings), update))
    state = {**model.state_dict(), **{f"critic.{k}": v for k, v in ppo.critic.state_dict().items()}}
    return state, rows
