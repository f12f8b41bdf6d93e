"""TRL's SFTTrainer fed from a stream: its data, its schedule, its precision and a recipe's loss.

The loss is TRL's own: the sum of −log p over the response tokens of an update, divided by their number over all
workers and micro-batches.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import datasets
import torch
import torch.distributed as dist
from safetensors.torch import load_model
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
from torch.optim.lr_scheduler import LambdaLR
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN
from transformers.utils import SAFE_WEIGHTS_NAME
from trl import SFTConfig, SFTTrainer

from rlheals_ray.sft.batches import Collator, Share, loader
from rlheals_ray.sft.data import IGNORE
from rlheals_ray.sft.recipes import Recipe
from rlheals_ray.sft.schedule import Schedule

if TYPE_CHECKING:
    from rlheals_ray.sft.data import Examples


class StreamTrainer(SFTTrainer):
    """An SFTTrainer that takes its micro-batches from a stream, from whichever update it starts at."""

    def __init__(
        self,
        model: Any,
        args: SFTConfig,
        *,
        examples: Examples,
        first_position: int,
        recipe: Recipe,
        schedule: Schedule,
        share: Share,
        collator: Collator,
        first_update: int,
        autocast: bool,
        **others: Any,
    ) -> None:
        self._examples, self._first_position = examples, first_position
        self._recipe, self._schedule = recipe, schedule
        self._share, self._collator, self._first_update = share, collator, first_update
        self._autocast = autocast
        self.update_tokens = 0
        """Tokens of the last update's examples, prompts too, over all workers."""
        # TRL wants to see a data set before it trains; `get_train_dataloader` gives the real one.
        stand_in = datasets.Dataset.from_dict({"input_ids": [[0, 0]], "labels": [[IGNORE, 0]]})
        super().__init__(model=model, args=args, train_dataset=stand_in, **others)
        # `compute_loss` divides by the number of tokens, whatever arguments the model's own loss takes.
        self.model_accepts_loss_kwargs = True

    def get_train_dataloader(self) -> Any:
        # Not prepared by accelerate: that would divide among the workers what is already this worker's.
        updates = range(self._first_update, self._schedule.updates)
        return loader(self._examples, self._share, self._first_position, updates, self._collator)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(
                optimizer or self.optimizer,  # type: ignore[arg-type]
                self._schedule.factor,
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_learning_rate(self) -> float:
        # The optimiser's own, not what a scheduler says that it set.
        return float(cast(Any, self.optimizer).param_groups[0]["lr"])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or not _divided(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_model(cast(nn.Module, self.model), Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        model, optimizer = cast(Any, self.model), cast(Any, self.optimizer)
        if checkpoint and not self.is_fsdp_enabled and _divided(checkpoint):
            # Its parameters go by their names, those of a whole model's state by their numbers.
            state = torch.load(Path(checkpoint) / OPTIMIZER_NAME_BIN, map_location="cpu", weights_only=True)
            options = StateDictOptions(full_state_dict=True)
            set_optimizer_state_dict(model, optimizer.optimizer, state, options=options)
            torch.save(optimizer.state_dict(), Path(checkpoint) / OPTIMIZER_NAME)
        super()._load_optimizer_and_scheduler(checkpoint)

    def compute_loss_context_manager(self) -> Any:
        # Not left to accelerate, which has DeepSpeed keep the weights themselves in bfloat16.
        if self._autocast:
            return torch.autocast(self.args.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | None:
        if not batch_samples:
            return None
        labels = sum(int((batch["labels"][:, 1:] != IGNORE).sum()) for batch in batch_samples)
        tokens = sum(
            int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()
            for batch in batch_samples
        )
        counts = torch.tensor([labels, tokens], device=device)
        if dist.is_initialized():
            dist.all_reduce(counts)
        self.update_tokens = int(counts[1])
        return counts[0]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        weights = inputs.pop("weights", None)
        if weights is None:
            loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        else:
            log_probs = model(**inputs, use_cache=False, fused_lm_head=True).log_probs
            items = self._share.batch_size if self._recipe.per_sequence else num_items_in_batch.clamp(min=1)
            # Summed over the workers, while data parallelism takes the mean of their gradients.
            loss = -(weights * log_probs).sum() / items * self._share.workers
        penalty = self._recipe.penalty(self.accelerator.unwrap_model(self.model))
        return loss if penalty is None else loss + penalty / self._share.micro_batches


def _divided(state: str) -> bool:
    """Whether a saved state is one of FSDP2."""
    return (Path(state) / OPTIMIZER_NAME_BIN).exists()
