"""The policy as a learner trains it, whatever `sft.sharding` spreads it over its group of workers.

    none    one worker                                   rl/replicated.py
    ddp     a copy on every worker                       rl/replicated.py
    fsdp2   parameters, gradients and moments divided    rl/fully_sharded.py
    zero2   gradients and moments divided                rl/zero.py
    zero3   parameters too                               rl/zero.py

One worker holds its model whole and unwrapped in every mode: there is nobody to share with. Every
method but the properties is collective: all workers call it, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from rlheals_ray.config import Sharding
from rlheals_ray.rl.policy_state import Shards, StateMismatch, current_version, new_version, world
from rlheals_ray.rl.replicated import Replicated
from rlheals_ray.sharding import effective, local_device


class Mode(Protocol):
    """One way of spreading a model; AdamW without weight decay in all of them."""

    module: nn.Module
    wrapped: str

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    def backward(self, loss: torch.Tensor, last: bool) -> None: ...

    def step(self) -> float: ...

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]: ...

    def write_state(self, version: Path) -> None: ...

    def read_state(self, shards: Shards) -> None: ...


class ShardedPolicy:
    """A causal language model, its AdamW and its gradient clipping on one or many workers.

    `model` is a transformers model with float32 weights, the same on every worker. Its training flag is
    left as it is: a model in evaluation mode keeps its dropout off, with gradient checkpointing too.
    """

    module: nn.Module
    """What is called in the forward pass, by all workers together, with or without gradients."""
    wrapped: str
    """What `module` is: DistributedDataParallel, FSDPLlamaForCausalLM, DeepSpeedEngine (ZeRO-3), or, on
    one worker, the model's own class."""

    def __init__(
        self,
        model: nn.Module,
        sharding: Sharding,
        *,
        learning_rate: float,
        precision: str = "float32",
        gradient_checkpointing: bool = False,
        max_grad_norm: float = 1.0,
    ) -> None:
        if gradient_checkpointing:
            _checkpoint_activations(model)
        # A worker that was given a GPU trains on it (untested: no GPU was at hand).
        self._model: Any = model.to(local_device())
        self._precision = precision
        self._mode = _mode(model, sharding, learning_rate, max_grad_norm, precision)
        self.module, self.wrapped = self._mode.module, self._mode.wrapped

    @property
    def device(self) -> torch.device:
        """Where the inputs of `module` must be."""
        return next(self._model.parameters()).device

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._mode.optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        for group in self._mode.optimizer.param_groups:
            group["lr"] = value

    def autocast(self) -> AbstractContextManager[object]:
        """The context of every forward pass: bfloat16 mixed precision where the policy has that precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bfloat16")

    def backward(self, loss: torch.Tensor, last: bool = True) -> None:
        """Add the gradient of `loss`: this worker's share of a sum over all workers, never of a mean.

        With several micro-batches all but the last are passed `last=False`; only the last one has the
        workers exchange their gradients, with fsdp2 each of them: no worker holds a whole gradient there.
        All workers have the same number of micro-batches.
        """
        self._mode.backward(loss, last)

    def step(self) -> float:
        """Clip the gradient of the whole model to max_grad_norm, step, and forget the gradient.

        Returns the gradient's 2-norm over all shards before clipping, the same on every worker. One
        that is not finite is returned without a step: the weights stay what they were.
        """
        return self._mode.step()

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole tensors under the names of `state_dict()`, on the CPU, one at a time: for weight sync.

        Every worker must exhaust the iterator; rank 0 is given the tensors, the others nothing.
        A tensor is good until the next one is asked for or the policy steps.
        """
        yield from self._mode.tensors()

    def save_model(self, directory: Path | None) -> None:
        """Write a Hugging Face model (safetensors and config.json) into `directory`.

        Every worker calls it; rank 0 writes, and only its `directory` is looked at: `branch.publish(update,
        policy.save_model)` on rank 0 beside `policy.save_model(None)` on the others.
        """
        tensors = dict(self.named_tensors())
        if world()[0] == 0:
            if directory is None:
                raise ValueError("rank 0 writes the model and needs a directory")
            # Tied weights stand in a checkpoint once; gathered, they are no longer seen to be the same.
            own = {name for name, _ in (*self._model.named_parameters(), *self._model.named_buffers())}
            kept = {name: tensor for name, tensor in tensors.items() if name in own}
            self._model.save_pretrained(directory, state_dict=kept)

    def save_state(self, directory: Path) -> None:
        """Write policy and optimiser, replacing the state in `directory` as a whole on all workers.

        A learner with more to keep (critic, progress) calls `branch_state.save_branch` instead, which
        replaces everything together.
        """
        with new_version(directory) as version:
            self.write_state(version)

    def load_state(self, directory: Path) -> bool:
        """Take up what `save_state` left in `directory`, but for the learning rate; False where nothing is.

        Raises StateMismatch where it was divided in a way that this group cannot read.
        """
        version = current_version(directory)
        if version is None:
            return False
        self.read_state(version)
        return True

    def write_state(self, version: Path) -> None:
        """Write this worker's part of the state into a version that all workers share."""
        self._mode.write_state(version)

    def read_state(self, version: Path) -> None:
        """Take up a complete version; raises StateMismatch."""
        with Shards.open(version) as shards:
            self._mode.read_state(shards)


def _mode(
    model: nn.Module, sharding: Sharding, learning_rate: float, max_grad_norm: float, precision: str
) -> Mode:
    # Imported where they are used: DeepSpeed alone takes seconds.
    mode = effective(sharding)
    if mode == "fsdp2":
        from rlheals_ray.rl.fully_sharded import FullySharded

        return FullySharded(model, learning_rate, max_grad_norm)
    if mode in ("zero2", "zero3"):
        from rlheals_ray.rl.zero import Zero

        return Zero(model, mode, learning_rate, max_grad_norm, precision)
    return Replicated(model, learning_rate, max_grad_norm)


def _checkpoint_activations(model: nn.Module) -> None:
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            # transformers recomputes layers in training mode only. The flag of the layer alone is set: its
            # parts, and with them their dropout, stay as they are.
            module.training = True


__all__ = ["Mode", "ShardedPolicy", "StateMismatch"]
