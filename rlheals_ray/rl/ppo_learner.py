"""Trains a branch by PPO: generate, judge, learn, sync, until its last budget."""

from __future__ import annotations

import time

import torch
from transformers import AutoModelForCausalLM

from rlheals_ray.rl.batch import batch_of
from rlheals_ray.rl.branch import Branch
from rlheals_ray.rl.branch_state import load_state, save_state
from rlheals_ray.rl.critic import Critic
from rlheals_ray.rl.ppo import PPO
from rlheals_ray.rollout.weight_sync import named_tensors, weight_sync


def learn_ppo(branch: Branch) -> None:
    """Train `branch` to its last budget, from its saved state where there is one."""
    settings = branch.settings
    torch.manual_seed(branch.spec.seed)
    model = AutoModelForCausalLM.from_pretrained(branch.start_directory, dtype=torch.float32)
    model.eval()  # no dropout: the ratio compares distributions, not noise
    critic = Critic(model.config.hidden_size)
    ppo = PPO(
        model,
        critic,
        torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0),
        torch.optim.Adam(critic.parameters(), lr=settings.value_learning_rate),
        settings,
    )
    modules = {"policy": model, "critic": critic}
    optimizers = {"policy_optimizer": ppo.policy_optimizer, "value_optimizer": ppo.value_optimizer}
    state_file = branch.state_directory / "branch.safetensors"
    if progress := load_state(state_file, modules, optimizers):
        branch.resume(progress["rows"], progress["received"])
    sync = weight_sync(branch.study.rollout)
    for update in range(len(branch.rows) + 1, settings.budgets[-1] + 1):
        start = time.perf_counter()
        rollout = branch.generate(branch.requests(update), update, lambda: sync.publish(named_tensors(model)))
        generated = time.perf_counter()
        batch = batch_of(rollout.episodes[branch.rank :: branch.world_size], settings.max_attempts)
        metrics = ppo.update(batch, first=update == 1)
        now = time.perf_counter()
        branch.completed(
            update,
            rollout,
            metrics,
            seconds_learn=now - generated,
            seconds=now - start,
            wrapped_model=type(model).__name__,
        )
        if branch.is_main:
            # Published first: an update that counts as completed has its checkpoint.
            if update in settings.budgets:
                branch.publish(update, model.save_pretrained)
            save_state(state_file, modules, optimizers, rows=branch.rows, received=branch.received)
        branch.report()
