"""A policy whose gradients and moments (ZeRO-2), and parameters too (ZeRO-3), DeepSpeed divides.

Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlheals_ray.config import Sharding
from rlheals_ray.rl.policy_state import Shards, world, write_shard
from rlheals_ray.rl.replicated import MOMENTS
from rlheals_ray.sharding import deepspeed_config, wrapped_name

GATHER_BYTES = 64 << 20
"""How much of a ZeRO-3 model is put together at once to be read."""


class Zero:
    """See `rlheals_ray.rl.sharded_policy.Mode`."""

    def __init__(
        self, model: nn.Module, sharding: Sharding, learning_rate: float, max_grad_norm: float, precision: str
    ) -> None:
        rank, self.workers = world()
        self.sharding, self.model = sharding, model
        # DeepSpeed takes its place in the group from the environment, even where a group exists.
        os.environ.setdefault("LOCAL_RANK", "0" if torch.cuda.is_available() else str(rank))
        import deepspeed

        config = deepspeed_config(sharding, model) | {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": max_grad_norm,
            "torch_autocast": {"enabled": precision == "bfloat16", "dtype": "bfloat16"},
        }
        adam = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=adam, config=config, dist_init_required=False
        )
        self.module: Any = engine
        self.wrapped = wrapped_name(engine)
        self.adam = adam

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.adam

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self.module.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over the workers; here they are summed.
        self.module.backward(loss * self.workers)

    def step(self) -> float:
        self.module.step()
        return float(self.module.get_global_grad_norm())

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        import deepspeed

        rank, _ = world()
        named = list(self.model.state_dict(keep_vars=True).items())
        while named:
            bucket = [named.pop(0)]
            size = _bytes(bucket[0][1])
            while named and (size := size + _bytes(named[0][1])) <= GATHER_BYTES:
                bucket.append(named.pop(0))
            parameters = {id(p): p for _, p in bucket if hasattr(p, "ds_id")}
            with deepspeed.zero.GatheredParameters(list(parameters.values())):
                # The whole tensors go with the context: a copy outlives it.
                whole = [(name, p.detach().to("cpu", copy=True)) for name, p in bucket] if rank == 0 else []
            yield from whole

    @property
    def _flat(self) -> list[torch.Tensor]:
        """This worker's share of the float32 parameters, one tensor for each group of them."""
        zero = self.module.optimizer
        flat: list[torch.Tensor] = (
            zero.fp32_partitioned_groups_flat
            if self.sharding == "zero3"
            else zero.single_partition_of_fp32_groups
        )
        return flat

    def write_state(self, version: Path) -> None:
        tensors = {}
        for index, flat in enumerate(self._flat):
            tensors[f"{index}/model"] = flat.detach().contiguous()
            for moment, value in self.adam.state.get(flat, {}).items():
                tensors[f"{index}/{moment}"] = value.contiguous()
        write_shard(version, tensors, {"divided": self.sharding})

    @torch.no_grad()
    def read_state(self, shards: Shards) -> None:
        own = shards.require(self.sharding, self.workers).files[world()[0]]
        names = set(own.keys())
        for index, flat in enumerate(self._flat):
            flat.copy_(own.get_tensor(f"{index}/model"))
            self.adam.state[flat] = {
                moment: own.get_tensor(key).to("cpu" if moment == "step" else flat.device)
                for moment in MOMENTS
                if (key := f"{index}/{moment}") in names
            }
        self._parameters_follow()

    def _parameters_follow(self) -> None:
        """Have the model's parameters take the values of the float32 shares, as DeepSpeed's step does."""
        zero = self.module.optimizer
        if self.sharding == "zero2":
            zero.update_lp_params()
            return
        whole = zero.persistent_parameters
        if whole:
            whole[0].partition(whole)
        for group in range(len(self._flat)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        if whole:
            whole[0].all_gather(whole)


def _bytes(parameter: torch.Tensor) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel())) * parameter.element_size()
