"""Settings of stage 2: the algorithm that learns (`rl`) and the generators that feed it (`rollout`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from rlheals_ray.config.fields import (
    Algorithm,
    Control,
    PositiveFloat,
    PositiveInt,
    Schedule,
    Settings,
    Steps,
    strictly_increasing,
)


class EarlyStopSettings(Settings):
    """When a branch counts as hopeless: it then ends, and its later budgets are recorded as not reached."""

    updates: PositiveInt = 10
    """How many updates in a row."""
    solved_at_k: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of training problems that is at most solved in each of them."""


class ControlSettings(Settings):
    """Controls of healing: what SFT does from the same checkpoints with the compute of the RL branch."""

    kinds: tuple[Control, ...] = ("continued_sft", "rejection_sft")
    from_steps: Steps | None = None
    """Of rl.from_steps; null: all of them."""

    @field_validator("kinds")
    @classmethod
    def _kinds(cls, kinds: tuple[Control, ...]) -> tuple[Control, ...]:
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"kinds must be distinct; write {list(dict.fromkeys(kinds))}")
        return kinds


class RLSettings(Settings):
    """Stage 2: one branch per (seed, from_step); its budgets are read off along the way."""

    algorithm: Algorithm = "ppo"
    level: Literal["turn", "token"] = "turn"
    """PPO: what one action is. A turn, as in the paper, or a token."""
    from_steps: Steps = (0, 4, 15, 30, 60, 120, 400)
    budgets: Steps = (0, 15, 30)
    """RL updates after which a checkpoint is kept and probed; 0 is the SFT checkpoint itself."""
    learning_rate: PositiveFloat = 3e-4
    lr_schedule: Schedule = "constant"
    """Over the updates of the largest budget."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Updates over which the learning rate rises from 0."""
    episodes: PositiveInt = 160
    """Episodes per update, over all workers."""
    group_size: PositiveInt = 8
    """GRPO and RLOO: episodes of each problem, whose mean reward is the baseline."""
    max_attempts: PositiveInt = 3
    temperature: PositiveFloat = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: PositiveInt = 40
    """Longest answer, in tokens, of one attempt."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Discount per turn (of turn-level PPO, and of the episode's return in GRPO and RLOO)."""
    token_gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount per token within a turn, token-level PPO."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.1
    value_learning_rate: PositiveFloat = 3e-3
    value_coefficient: Annotated[float, Field(ge=0)] = 0.5
    """Of the critic's loss. Without effect above 0: the critic has an Adam of its own, which undoes any factor."""
    value_epochs: PositiveInt = 1
    """The critic's passes over the episodes for each of the policy's."""
    critic_warmup: Annotated[int, Field(ge=0)] = 0
    """First updates in which only the critic learns, after its fit in closed form."""
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.0
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL divergence from the SFT checkpoint that the branch began from."""
    epochs: PositiveInt = 1
    """Passes over the episodes of one update."""
    minibatches: PositiveInt = 1
    """Optimiser steps per pass."""
    micro_batch: PositiveInt | None = None
    """Episodes that a worker holds in one forward pass (null: a whole minibatch); changes memory, not results."""
    max_grad_norm: PositiveFloat = 1.0
    advantage_floor: PositiveFloat = 1.5
    """Advantages are divided by max(their standard deviation, this): a nearly settled batch must not
    be blown up into a large update."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the learner's forward and backward passes; its weights and optimiser stay float32."""
    gradient_checkpointing: bool = False
    save_every: PositiveInt = 1
    """Updates between two saves of a branch's state; a branch that dies repeats at most this many."""
    early_stop: EarlyStopSettings | None = None
    workers: PositiveInt = 1

    @field_validator("top_p", "top_k", "repetition_penalty")
    @classmethod
    def _plain_sampling(cls, value: float, info: ValidationInfo) -> float:
        neutral = cls.model_fields[str(info.field_name)].default
        if value != neutral:
            raise ValueError(
                f"learning needs the log-probabilities of the sampling distribution itself, which this setting "
                f"changes; leave it at {neutral} (probes may use evaluation.{info.field_name})"
            )
        return value

    @model_validator(mode="after")
    def _groups(self) -> RLSettings:
        if self.algorithm == "ppo":
            return self
        if self.group_size < 2:
            raise ValueError(
                f"rl.group_size (got {self.group_size}): {self.algorithm} compares the episodes of one problem with "
                "each other; use at least 2"
            )
        if self.episodes % self.group_size:
            fitting = max(self.episodes - self.episodes % self.group_size, self.group_size)
            raise ValueError(
                f"rl.episodes (got {self.episodes}) does not divide into {self.algorithm}'s groups of rl.group_size="
                f"{self.group_size}; use rl.episodes={fitting}"
            )
        return self

    @model_validator(mode="after")
    def _of_ppo_alone(self) -> RLSettings:
        if self.algorithm == "ppo":
            return self
        for field, neutral, why in (
            ("level", "turn", "learns from whole episodes, whatever an action is"),
            ("entropy_coefficient", 0, "has no entropy bonus here"),
            ("critic_warmup", 0, "has no critic"),
            ("value_epochs", 1, "has no critic"),
        ):
            if (value := getattr(self, field)) != neutral:
                raise ValueError(
                    f"rl.{field} (got {value!r}) would be ignored: {self.algorithm} {why}; use rl.{field}={neutral} or "
                    "rl.algorithm=ppo"
                )
        return self

    @model_validator(mode="after")
    def _policy_learns(self) -> RLSettings:
        last = self.budgets[-1]
        if last and self.critic_warmup >= last:
            raise ValueError(
                f"rl.critic_warmup (got {self.critic_warmup}): the largest of rl.budgets is {last} updates, so the "
                f"policy would never learn; use at most {last - 1}"
            )
        return self

    @field_validator("from_steps")
    @classmethod
    def _from_steps(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        return strictly_increasing(steps, "the SFT steps RL starts from")

    @field_validator("budgets")
    @classmethod
    def _budgets(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        return strictly_increasing(steps, "RL budgets")


class RolloutSettings(Settings):
    """The pool of generators: warm inference engines that serve RL and every probe."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """transformers is the slow one, for platforms without vLLM and as a reference."""
    generators: PositiveInt = 1
    generators_per_branch: PositiveInt = 1
    """Generators that one consumer (a branch's update, a probe) is lent together."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_model_len: PositiveInt = 256
    max_num_seqs: PositiveInt = 256
    """Sequences that one engine decodes side by side."""
    kv_cache_mib: PositiveInt = 128
    """Of vLLM's keys and values: at the least one sequence of max_model_len tokens, better max_num_seqs of them."""
    weight_sync: Literal["auto", "object_store", "nccl"] = "auto"
    """How a learner's weights reach the engines; auto takes nccl where both sides have a GPU."""
    verify_weights: bool = False
    """Compare what the engines serve with what the learner holds, at every sync."""
    start_seconds: PositiveFloat = 900.0
    """Deadline of an engine's start, once it has a node."""
    sync_seconds: PositiveFloat = 300.0
    """Deadline of a weight sync."""
    stall_seconds: PositiveFloat = 180.0
    """A generator that makes no progress for this long counts as hung: it is killed and replaced."""
    max_failures: Annotated[int, Field(ge=0)] = 20
    """Generators that one team may lose in a row (killed, hung, out of memory, with their nodes), without finishing a
    run in between, before the study gives up, naming the causes."""

    @model_validator(mode="after")
    def _teams(self) -> RolloutSettings:
        if self.generators % self.generators_per_branch:
            fitting = [count for count in range(1, self.generators + 1) if self.generators % count == 0]
            raise ValueError(
                f"rollout.generators_per_branch (got {self.generators_per_branch}) does not divide "
                f"rollout.generators={self.generators}; use one of {fitting}"
            )
        return self

    @model_validator(mode="after")
    def _transport(self) -> RolloutSettings:
        if self.weight_sync == "nccl" and self.engine != "vllm":
            raise ValueError(
                f"rollout.weight_sync (got 'nccl') is vLLM's own transfer, but rollout.engine is {self.engine!r}; use "
                "rollout.weight_sync=object_store or rollout.engine=vllm"
            )
        return self
