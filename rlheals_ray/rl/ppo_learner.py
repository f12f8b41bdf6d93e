"""Trains a branch by PPO: generate, judge, learn, sync, until its last budget.

Every rank runs this alike: weights may be spread over them, and what gathers them is collective.
"""

from __future__ import annotations

import time
from collections import deque

import torch
from transformers import AutoModelForCausalLM

from rlheals_ray.rl.batch import batch_of
from rlheals_ray.rl.branch import Branch
from rlheals_ray.rl.branch_state import load_branch, save_branch
from rlheals_ray.rl.critic import Critic
from rlheals_ray.rl.policy_state import world
from rlheals_ray.rl.ppo import PPO
from rlheals_ray.rl.reference import frozen_reference
from rlheals_ray.rl.sharded_policy import ShardedPolicy
from rlheals_ray.rollout.load import Load
from rlheals_ray.rollout.verification import expected_of
from rlheals_ray.rollout.weight_sync import WeightSync, weight_sync
from rlheals_ray.sharding import prepare_process


def learn_ppo(branch: Branch) -> None:
    """Train `branch` to its last budget, from its saved state where there is one."""
    settings = branch.settings
    ppo = _learner(branch)
    modules, optimizers = {"critic": ppo.critic}, {"value_optimizer": ppo.value_optimizer}
    if progress := load_branch(branch.state_directory, ppo.policy, modules, optimizers):
        branch.resume(progress["rows"], progress["received"])
    sync = weight_sync(branch.study.rollout)
    for update in range(len(branch.rows) + 1, settings.budgets[-1] + 1):
        if branch.hopeless:
            break
        start = time.perf_counter()
        rollout = branch.generate(branch.requests(update), update, lambda: _publish(branch, ppo.policy, sync))
        generated = time.perf_counter()
        batch = batch_of(rollout.episodes[branch.rank :: branch.world_size], settings.max_attempts)
        metrics = ppo.update(batch, update)
        now = time.perf_counter()
        branch.completed(
            update,
            rollout,
            metrics,
            seconds_learn=now - generated,
            seconds=now - start,
            wrapped_model=ppo.policy.wrapped,
        )
        # Published first: an update that counts as completed has its checkpoint.
        if update in settings.budgets:
            if branch.is_main:
                branch.publish(update, ppo.policy.save_model)
            else:
                ppo.policy.save_model(None)
        if branch.is_saved_after(update):
            progress = {"rows": branch.rows, "received": branch.received}
            save_branch(branch.state_directory, ppo.policy, modules, optimizers, **progress)
            branch.saved(update)
        branch.report()


def _learner(branch: Branch) -> PPO:
    """The learner at the branch's start; collective."""
    settings, sharding = branch.settings, branch.study.sft.sharding
    prepare_process(sharding)
    torch.manual_seed(branch.spec.branch.seed)
    model = AutoModelForCausalLM.from_pretrained(branch.start_directory, dtype=torch.float32)
    model.eval()  # no dropout: the ratio compares distributions, not noise
    policy = ShardedPolicy(
        model,
        sharding,
        learning_rate=settings.learning_rate,
        precision=settings.precision,
        gradient_checkpointing=settings.gradient_checkpointing,
        max_grad_norm=settings.max_grad_norm,
    )
    critic = Critic(model.config.get_text_config().hidden_size).to(policy.device)
    reference = None
    if settings.kl_coefficient > 0:
        reference = frozen_reference(branch.start_directory, sharding, settings.precision, policy.device)
    return PPO(
        policy,
        critic,
        torch.optim.Adam(critic.parameters(), lr=settings.value_learning_rate),
        settings,
        seed=(branch.spec.branch.seed, branch.spec.branch.sft_step),
        reference=reference,
    )


def _publish(branch: Branch, policy: ShardedPolicy, sync: WeightSync) -> Load | None:
    """Hand the policy's weights over from rank 0; the other ranks take part in gathering them."""
    rollout, expected = branch.study.rollout, None
    if rollout.verify_weights:
        expected = expected_of(policy.module, rollout, branch.settings.precision)
    tensors = policy.named_tensors()
    if world()[0] == 0:
        return sync.publish(tensors, expected)
    deque(tensors, maxlen=0)
    return None
