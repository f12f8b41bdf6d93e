"""GRPO and RLOO in bfloat16: the passes are cast, the weights are not, whatever divides them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from rlheals_ray.config import RLSettings, Sharding
from rlheals_ray.models.nano import tokenizer
from rlheals_ray.rl.trl_arguments import trl_arguments
from tests.learning import tiny_llama
from tests.trl_learning import GROUP, free_port, in_groups, learn, weights_of_a_group, with_logprobs

TEMPERATURE = 0.7
TOKENS = tokenizer([18, 24])


def settings(**changes: Any) -> RLSettings:
    return RLSettings(
        episodes=8, group_size=GROUP, budgets=(1,), temperature=TEMPERATURE, clip=0.2, learning_rate=1e-3,
        precision="bfloat16", **changes,
    )  # fmt: skip


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_in_bfloat16_every_pass_is_cast_and_no_weight(algorithm: str) -> None:
    """Also the passes without gradients: a ratio of unlike precisions would be noise."""
    model, passes = tiny_llama(), set()

    def watch(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        passes.add((output.dtype, torch.is_grad_enabled()))

    model.model.layers[0].self_attn.q_proj.register_forward_hook(watch)
    episodes = with_logprobs(in_groups(), tiny_llama(), TEMPERATURE)
    learn(settings(algorithm=algorithm), lambda _: episodes, TOKENS, model=model)
    assert passes == {(torch.bfloat16, True), (torch.bfloat16, False)}
    assert kept_in_float32(model.state_dict())


def test_no_weight_is_left_to_a_library_to_cast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate's own bfloat16 is of the weights where DeepSpeed or FSDP2 divides them."""
    told: dict[str, Any] = {}

    def arguments(sharding: str, model: Any, **how: Any) -> dict[str, Any]:
        told.update(how)
        return {"use_cpu": True}

    monkeypatch.setattr("rlheals_ray.rl.trl_arguments.trainer_arguments", arguments)
    using = settings(algorithm="grpo")
    made = trl_arguments(using, tiny_llama(), sharding="none", world_size=1, seed=0, state=tmp_path)
    assert not made.bf16 and told == {"precision": "bfloat16"}


@pytest.mark.slow
def test_in_bfloat16_divided_weights_stay_float32(tmp_path: Path) -> None:
    """Two micro-batches and a reference, in every mode that divides; the step is that of one worker."""
    using = settings(algorithm="grpo", kl_coefficient=0.1, micro_batch=2)
    episodes = with_logprobs(in_groups(), tiny_llama(), TEMPERATURE)
    model, start = tiny_llama(), tmp_path / "start"
    tiny_llama(seed=5).save_pretrained(start)
    learn(using, lambda _: episodes, TOKENS, model=model, start=start)
    began, alone = tiny_llama().state_dict(), model.state_dict()
    modes: tuple[Sharding, ...] = ("fsdp2", "zero2", "zero3")
    results = tmp_path / "weights"
    arguments = (free_port(), str(results), using, episodes, start, modes)
    multiprocessing.spawn(weights_of_a_group, args=arguments, nprocs=2, join=True)
    for mode, (weights, meanwhile) in torch.load(results, weights_only=True).items():
        assert kept_in_float32(weights), mode
        # AdamW's first step is of one size for every weight: most go the same way.
        same = [
            ((weights[name] - began[name]).sign() == (alone[name] - began[name]).sign()) for name in began
        ]
        assert torch.cat([one.flatten() for one in same]).float().mean() > 0.9, mode
        # FSDP2 has divided the first micro-batch's gradient already: no worker holds all of it.
        assert mode != "fsdp2" or meanwhile == [len(began)]


def kept_in_float32(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether they are float32, and no bfloat16 in between has rounded them."""
    return all(
        tensor.dtype == torch.float32 and not tensor.equal(tensor.bfloat16().float())
        for tensor in weights.values()
    )
