"""TRL's GRPO and RLOO trainers, fed with finished episodes of the pool instead of their own generation.

Both learn from the generator's own log-probabilities, but each where its method has a place for them:

GRPO (Shao et al. 2024, eq. 3) takes them as TRL does for its own vLLM: the clipped ratio π/π_old
compares the policy with itself before the update, and the whole is multiplied by the importance weight
π_old/μ of the episode (sum over its tokens), which is 0 where it exceeds 3 (TRL's "sequence_mask").
RLOO (Ahmadian et al. 2024) has no such weight in TRL. Its one ratio, of whole episodes, is taken against
the generator, π/μ: with π_old = μ it is TRL's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import split_tensor_dict

from rlheals_ray.config import RLSettings
from rlheals_ray.rl.collectives import total
from rlheals_ray.rl.metrics import require_finite
from rlheals_ray.rl.schedule import learning_rate
from rlheals_ray.rl.trl_episodes import Completions, minibatch_order
from rlheals_ray.rollout.episode import Episode

EpisodeSource = Callable[[int], Sequence[Episode]]
"""All episodes of an update (counted from 1), groups side by side, the same on every rank; collective."""

Buffers = Sequence[dict[str, torch.Tensor]]
"""What a rank learns an update from: one dictionary a micro-batch, as TRL's trainers keep it."""


# What the two trainers have in common beyond transformers' no type of TRL's declares.
_Trainer: Any = Trainer


class _Fed(_Trainer):
    """What both trainers share: episodes from a source, minibatches, and what is measured meanwhile."""

    _buffered_inputs: Any
    lr_scheduler: Any
    _created_lr_scheduler: Any

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        args: GRPOConfig | RLOOConfig,
        source: EpisodeSource,
        tokenizer: Any,
        settings: RLSettings,
        seed: Sequence[int],
        callbacks: Sequence[TrainerCallback] = (),
        **more: Any,
    ) -> None:
        """`seed` decides, with the update's number, which episodes share a minibatch."""
        groups = cast(int, args.generation_batch_size) // cast(int, args.num_generations)
        self._source, self._settings, self._order_seed = source, settings, tuple(seed)
        self._entropy, self._tokens = 0.0, 0.0
        super().__init__(
            model=model,
            args=args,
            reward_funcs=self._returns,
            train_dataset=Dataset.from_dict({"prompt": [str(group) for group in range(groups)]}),
            processing_class=tokenizer,
            callbacks=list(callbacks),
            **more,
        )
        self.remove_callback(PrinterCallback)

    @property
    def steps_per_update(self) -> int:
        """Optimiser steps on the episodes of one update: epochs × minibatches."""
        steps = self.args.steps_per_generation * self.num_iterations
        return cast(int, steps // self.args.gradient_accumulation_steps)

    @property
    def buffers(self) -> Buffers:
        """This rank's micro-batches of the update under way, as scored before it."""
        return cast(Buffers, self._buffered_inputs)

    def _draw(self, prompts: Sequence[str]) -> Completions:
        """This rank's part of the next update's episodes, in the order that TRL gave the prompts out."""
        first = self.accelerator.process_index * len(prompts)
        expected = [str((first + i) // self.num_generations) for i in range(len(prompts))]
        if list(prompts) != expected:
            # The advantages are those of groups by place: another order would compare different problems.
            raise RuntimeError(f"TRL gave rank {self.accelerator.process_index} the groups {list(prompts)}")
        episodes = self._source(self.update)
        if len(episodes) != self.args.generation_batch_size:
            raise RuntimeError(f"{len(episodes)} episodes for {self.args.generation_batch_size} requests")
        self._drawn = Completions.of(episodes[first : first + len(prompts)], self._settings.gamma)
        self._entropy, self._tokens = 0.0, 0.0
        return self._drawn

    @property
    def update(self) -> int:
        """The update under way, counted from 1."""
        return cast(int, self.state.global_step // self.steps_per_update + 1)

    def _returns(self, **_: Any) -> list[float]:
        return self._drawn.returns

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, torch.Tensor]:
        """TRL's, but for the order: minibatches are the same whatever the number of workers."""
        args = self.args
        if self._step % (args.steps_per_generation * self.num_iterations) == 0:
            scored = self._generate_and_score_completions(generation_batch)
            count = len(scored["advantages"])
            order = minibatch_order(
                args.generation_batch_size,
                args.steps_per_generation // args.gradient_accumulation_steps,
                (*self._order_seed, self.update),
                first=self.accelerator.process_index * count,
                count=count,
            )
            ordered = {name: value[order] if value.ndim else value for name, value in scored.items()}
            self._buffered_inputs = split_tensor_dict(ordered, args.steps_per_generation)
        return cast(Buffers, self._buffered_inputs)[self._step % args.steps_per_generation]

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        self._own = inputs["tool_mask"] * inputs["completion_mask"]
        return cast(torch.Tensor, super()._compute_loss(model, inputs))

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        # Every pass goes through here, also those without gradients: what is compared is of one precision.
        casts = self._settings.precision == "bfloat16"
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=casts):
            logprobs, entropies, aux = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if entropies is not None:
            self._entropy += float((entropies.detach() * self._own).sum())
            self._tokens += float(self._own.sum())
        return logprobs, entropies, aux

    def mean_entropy(self) -> float:
        """Nats per token that the model wrote, over the update's passes and all workers."""
        return total(self._entropy) / total(self._tokens)

    @torch.no_grad()
    def logprobs_now(self) -> list[torch.Tensor]:
        """The present policy's log-probabilities of `buffers`, each (B, C); collective."""
        scored = []
        for batch in self.buffers:
            ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
            mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
            self._own = batch["tool_mask"] * batch["completion_mask"]
            logprobs, _, _ = self._get_per_token_logps_and_entropies(
                self.model, ids, mask, batch["completion_ids"].shape[1]
            )
            scored.append(logprobs)
        return scored

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        require_finite(self.update, grad_norm=float(norm))
        return norm

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The study's schedule: all steps of an update share its rate, as in PPO."""
        if self.lr_scheduler is None:
            settings = self._settings

            def share(step: int) -> float:
                update = min(step // self.steps_per_update + 1, settings.budgets[-1])
                return learning_rate(settings, update) / settings.learning_rate

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, share)
            self._created_lr_scheduler = True
        return cast(torch.optim.lr_scheduler.LRScheduler, self.lr_scheduler)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: a branch's state is nobody's model."""

    def _send_telemetry(self) -> None:
        """Nothing: a study reports to its owner alone."""


class Grpo(_Fed, GRPOTrainer):
    """GRPO on episodes; `Σ_k γᵏ r_k` is normalised within each group by TRL."""

    def __init__(self, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'rollout_func'")  # experimental: trl is pinned
            super().__init__(rollout_func=_rollout, **kwargs)
        # Without these, TRL ignores the log-probabilities that a rollout function returns.
        self.use_vllm = True
        self.vllm_generation: Any = _WeightsTravelWithRequests()
        self._last_loaded_step = -1


class _WeightsTravelWithRequests:
    """Stands where TRL keeps its own vLLM: the source hands the weights over with each update's requests."""

    def sync_weights(self) -> None:
        pass


def _rollout(prompts: list[str], trainer: Grpo) -> dict[str, Any]:
    drawn = trainer._draw(prompts)
    return {
        "prompt_ids": drawn.prompt_ids,
        "completion_ids": drawn.completion_ids,
        "logprobs": drawn.logprobs,
        "env_mask": drawn.env_mask,
    }


class Rloo(_Fed, RLOOTrainer):
    """RLOO on episodes: TRL's trainer with its generation replaced and the environment's tokens left out."""

    def _generate(self, prompts: list[str]) -> tuple[list[list[int]], list[list[int]], list[str]]:
        drawn = self._draw(prompts)
        self._own = drawn.own().to(self.accelerator.device)
        self._scored: list[torch.Tensor] = []
        return drawn.prompt_ids, drawn.completion_ids, [""] * len(prompts)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        # TRL sums whole completions; what the environment wrote has no part in an episode's probability.
        logprobs, entropies, aux = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        logprobs = logprobs * self._own
        if entropies is None:
            self._scored.append(logprobs)
        return logprobs, entropies, aux

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        scored = cast(dict[str, torch.Tensor], super()._generate_and_score_completions(inputs))
        sampled = self._drawn.sampled().to(self.accelerator.device)
        scored["old_logps"] = sampled.sum(1)
        scored["old_per_token_logps"] = self._scored[0]
        if self.beta != 0.0:
            scored["ref_per_token_logps"] = self._scored[1]
        return scored | {"sampling_per_token_logps": sampled, "tool_mask": self._own}
