"""Recipe `lora` (arXiv 2106.09685): W = W₀ + (alpha / rank) · B A, of which A and B alone are trained.

Adapters and their optimiser state are what a resumable state holds; what is published is the whole model with the
adapters added to its matrices, float32, which anything that reads Hugging Face directories can read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlheals_ray.config import InputError
from rlheals_ray.models.checkpoint_writer import copy_companions
from rlheals_ray.sft.recipes.plain import Plain

# The last part of a matrix's name to the roles whose rows it holds; fused matrices (Phi-3, GLM) hold several.
_PROJECTION = re.compile(r".*\.(?P<roles>qkv|gate_up|q|k|v|o|gate|up|down)_proj")
_FUSED = {"qkv": {"q", "k", "v"}, "gate_up": {"gate", "up"}}


class Lora(Plain):
    """Low-rank adapters on the matrices of `sft.lora.roles`; a fused matrix is adapted if any of its roles is."""

    def wrap(self, model: nn.Module) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        settings = self.context.study.sft.lora
        targets = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and roles_of(name) & set(settings.roles)
        ]
        if not targets:
            raise InputError(
                f"sft.lora.roles (got {list(settings.roles)}): {type(model).__name__} has no matrices of these roles; "
                "choose others, or use sft.recipe=plain."
            )
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number does
            lora_dropout=settings.dropout,
            target_modules=targets,
        )
        with torch.random.fork_rng(devices=[]):
            # The same adapters on every worker.
            torch.manual_seed(self.context.seed)
            wrapped: nn.Module = get_peft_model(model, config)
        return wrapped

    def publish(self, model: nn.Module, saved: Path, target: Path) -> None:
        base: Any = model.get_base_model()  # type: ignore[operator]
        base.save_pretrained(target, state_dict=merged_state(base))
        copy_companions(self.context.start, target)


def roles_of(name: str) -> set[str]:
    """The roles whose rows a module's matrix holds; empty for any other module."""
    match = _PROJECTION.fullmatch(name)
    return _FUSED.get(match["roles"], {match["roles"]}) if match else set()


@torch.no_grad()
def merged_state(base: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a model with adapters under the names that it has without, the adapters added to the matrices.

    New tensors for the adapted matrices, the model's own for all others: merging in place and back would leave
    rounding in the matrices that are trained on.
    """
    from peft.tuners.lora import LoraLayer

    adapted: dict[str, Any] = {
        n: module for n, module in base.named_modules() if isinstance(module, LoraLayer)
    }
    state: dict[str, torch.Tensor] = {}
    for name, tensor in base.state_dict().items():
        module, _, rest = name.rpartition(".base_layer.")
        if module in adapted:
            delta = adapted[module].get_delta_weight("default") if rest == "weight" else 0.0
            state[f"{module}.{rest}"] = tensor + delta
        elif name.partition(".lora_")[0] not in adapted:
            state[name] = tensor
    return state
