"""PPO on two workers that a mode of sharding divides is PPO on one, the reference divided alike."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from rlheals_ray.config import RLSettings, Sharding
from tests.learning import HIDDEN, on_policy, random_episodes, tiny_llama

MODES: tuple[Sharding, ...] = ("ddp", "fsdp2", "zero2", "zero3")
BASE = RLSettings(episodes=8, max_attempts=3, learning_rate=1e-3, kl_coefficient=0.1)
SETTINGS = {
    "one step": BASE,
    "tokens in micro-batches": BASE.model_copy(
        update={"level": "token", "micro_batch": 2, "epochs": 2, "entropy_coefficient": 0.01}
    ),
}
Outcome = tuple[dict[str, torch.Tensor], list[dict[str, Any]]]


def learn(mode: Sharding, settings: RLSettings, start: Path, rank: int = 0, workers: int = 1) -> Outcome:
    """Two updates; the policy's weights (on rank 0) and the metrics."""
    from rlheals_ray.rl.critic import Critic
    from rlheals_ray.rl.ppo import PPO
    from rlheals_ray.rl.reference import frozen_reference
    from rlheals_ray.rl.sharded_policy import ShardedPolicy
    from rlheals_ray.sharding import prepare_process

    prepare_process(mode)
    policy = ShardedPolicy(tiny_llama(), mode, learning_rate=settings.learning_rate, max_grad_norm=0.5)
    critic = Critic(HIDDEN)
    ppo = PPO(
        policy,
        critic,
        torch.optim.Adam(critic.parameters(), lr=settings.value_learning_rate),
        settings,
        reference=frozen_reference(start, mode, settings.precision, policy.device),
    )
    rows = []
    for update in (1, 2):
        mine = random_episodes(8, settings.max_attempts, seed=update)[rank::workers]
        rows.append(ppo.update(on_policy(tiny_llama(), mine, settings), update))
    return {name: value.clone() for name, value in policy.named_tensors()}, rows


def work(rank: int, directory: Path) -> None:
    """One of two gloo workers, which does all modes one after the other."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{directory / 'rendezvous'}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    try:
        done = {
            f"{mode}, {name}": learn(mode, settings, directory / "start", rank, workers=2)
            for mode in MODES
            for name, settings in SETTINGS.items()
        }
        torch.save(done, directory / f"rank-{rank}")
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both workers left."""
    directory = tmp_path_factory.mktemp("together")
    tiny_llama(seed=1).save_pretrained(directory / "start")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(rank, directory)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=240)
        assert worker.exitcode == 0
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SETTINGS)
def test_two_workers_learn_what_one_learns(mode: Sharding, name: str, together: Path) -> None:
    weights, rows = learn("ddp", SETTINGS[name], together / "start")
    for rank in (0, 1):
        shared, told = torch.load(together / f"rank-{rank}", weights_only=True)[f"{mode}, {name}"]
        for row, expected in zip(told, rows, strict=True):
            assert row == pytest.approx(expected, rel=1e-3, abs=1e-5)
        if rank == 0:
            for key, value in weights.items():
                torch.testing.assert_close(shared[key], value, atol=1e-5, rtol=0, msg=key)
