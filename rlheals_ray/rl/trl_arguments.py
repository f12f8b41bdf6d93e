"""The study's settings as TRL's: what an update, a minibatch and a group are to its trainers."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from trl import GRPOConfig, RLOOConfig

from rlheals_ray.config import RLSettings, Sharding
from rlheals_ray.sharding import prepare_process, trainer_arguments


def trl_arguments(
    settings: RLSettings,
    model: nn.Module,
    *,
    sharding: Sharding,
    world_size: int,
    seed: int,
    state: Path,
) -> GRPOConfig | RLOOConfig:
    """The configuration of the trainer that `settings.algorithm` names, "grpo" or "rloo".

    One generation is an update: `episodes` completions, from which `epochs` × `minibatches` optimiser
    steps are made; a minibatch that does not fit is accumulated over micro-batches. `state` is where the
    trainer keeps its own checkpoints. The process is made ready for `sharding`, whatever it did before.
    Precision is that of the passes (trl_trainers.py); the weights stay float32.

    GRPO is the published one (Shao et al. 2024, eq. 3): advantages (R - mean) / (std + 1e-4) of a group,
    a clipped ratio per token, the mean over an episode's tokens and then over episodes, and the k3
    estimate of KL(π || π_ref) per token in the loss. RLOO is TRL's: R minus the mean of the other
    episodes of the group, a clipped ratio per episode, and the KL in the reward.
    """
    prepare_process(sharding)
    share = settings.episodes // world_size // settings.minibatches
    micro = settings.micro_batch or share
    accumulated = share // micro
    common = dict(
        output_dir=str(state),
        seed=seed,
        max_steps=settings.budgets[-1] * settings.epochs * settings.minibatches,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulated,
        steps_per_generation=settings.minibatches * accumulated,
        num_iterations=settings.epochs,
        num_generations=settings.group_size,
        shuffle_dataset=False,
        temperature=settings.temperature,
        beta=settings.kl_coefficient,
        epsilon=settings.clip,
        learning_rate=settings.learning_rate,
        weight_decay=0.0,
        optim="adamw_torch",
        max_grad_norm=settings.max_grad_norm,
        disable_dropout=True,
        ddp_find_unused_parameters=False,
        gradient_checkpointing=settings.gradient_checkpointing,
        # Accelerate would have DeepSpeed and FSDP2 cast the weights themselves.
        bf16=False,
        # Kept by the callback, when an update is complete.
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        **trainer_arguments(sharding, model, precision=settings.precision),
    )
    if settings.algorithm == "rloo":
        return RLOOConfig(**common)
    return GRPOConfig(
        **common,
        loss_type="grpo",
        scale_rewards="group",
        # TRL's default multiplies the KL by the ratio; the published loss does not.
        use_bias_correction_kl=False,
    )
