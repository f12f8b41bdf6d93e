"""What `sft.sharding` means to the libraries that carry it out: accelerate, transformers, DeepSpeed, torch.

The one place that knows. A group of one worker has nobody to share with: there every mode is a whole,
unwrapped model, and plain data parallelism to the trainers.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rlheals_ray.config import InputError, Sharding

ACCELERATE_VARIABLES = ("ACCELERATE_", "FSDP_")
"""Prefixes of the environment variables by which accelerate and transformers talk to themselves."""


def effective(sharding: Sharding) -> Sharding:
    """The mode that this process's group is really in: `ddp` for a group of one."""
    workers = dist.get_world_size() if dist.is_initialized() else 1
    if workers > 1 and sharding == "none":
        raise ValueError(f"sharding 'none' is for one worker, not for {workers}")
    return sharding if workers > 1 else "ddp"


def local_device() -> torch.device:
    """The GPU that this worker was given, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def layer_classes(model: nn.Module) -> set[str]:
    """Names of the classes that are wrapped one by one: what the model itself says must not be split."""
    return set(getattr(model, "_no_split_modules", None) or ())


def prepare_process(sharding: Sharding) -> None:
    """Make this process ready to build a transformers Trainer, or a policy, in mode `sharding`.

    To be called before TrainingArguments are made, on every worker. A worker does one piece of work after
    the other, of several modes: whatever the last one left in accelerate's singletons, in transformers'
    or in the environment is forgotten first.
    """
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    for name in [name for name in os.environ if name.startswith(ACCELERATE_VARIABLES)]:
        del os.environ[name]
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    unset_hf_deepspeed_config()
    PartialState._prepare_backend = _PREPARE_BACKEND.setdefault("original", PartialState._prepare_backend)
    if torch.cuda.is_available():
        os.environ.pop("DS_ACCELERATOR", None)  # every worker begins with that of a CPU
        return
    if effective(sharding) == "ddp":
        return
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    os.environ["DS_ACCELERATOR"] = "cpu"
    # On a CPU accelerate knows plain data parallelism only, and would silently fall back to it (1.15.0).
    PartialState._prepare_backend = _gloo_as_if_gpus
    if sharding in ("zero2", "zero3"):
        _let_gloo_reduce()


def _let_gloo_reduce() -> None:
    """Keep DeepSpeed from compiling a reduction of its own for CPUs (0.19.8).

    It would need a compiler and some 20 s at first use; worse, a process killed meanwhile leaves torch's lock
    file behind, for which every later run of this user would wait for ever.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


_PREPARE_BACKEND: dict[str, Any] = {}


def _gloo_as_if_gpus(
    self: Any, cpu: bool = False, sagemaker_dp: bool = False, backend: str | None = None
) -> tuple[str, Any]:
    from accelerate.utils import DistributedType

    return "gloo", DistributedType.MULTI_GPU


def check_offload(sharding: Sharding, *, has_gpu: bool) -> None:
    """Raises InputError where `sft.offload` has nothing to offload from."""
    if sharding not in ("fsdp2", "zero2", "zero3"):
        raise InputError(
            f"sft.offload (got true): sharding {sharding!r} divides nothing that could be kept in the CPU's memory; "
            "use sft.sharding=fsdp2, zero2 or zero3, or sft.offload=false."
        )
    if not has_gpu:
        raise InputError(
            "sft.offload (got true): it moves parameters and optimiser state from GPUs to the CPU's memory, and the "
            "workers have no GPU; use sft.offload=false."
        )


def trainer_arguments(
    sharding: Sharding, model: nn.Module, *, offload: bool = False, precision: str = "float32"
) -> dict[str, Any]:
    """Arguments of SFTConfig or GRPOConfig that train `model` in this mode; after `prepare_process`.

    offload: keep what is divided in the CPU's memory (untested: no GPU was at hand); raises InputError without
    a GPU. precision: of passes in modes zero2 and zero3, where DeepSpeed overrides an autocast around it.
    """
    mode = effective(sharding)
    if offload:
        check_offload(sharding, has_gpu=torch.cuda.is_available())
    if mode == "ddp":
        return {"use_cpu": not torch.cuda.is_available()}
    if mode == "fsdp2":
        offloaded = {"cpu_offload": True} if offload else {}
        return {
            "use_cpu": False,
            "fsdp": True,
            "fsdp_config": _fsdp_config(model) | offloaded,
            # Else a worker held the whole gradient until the last micro-batch.
            "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
        }
    autocast = {"torch_autocast": {"enabled": precision == "bfloat16", "dtype": "bfloat16"}}
    return {
        "use_cpu": False,
        "deepspeed": deepspeed_config(mode, model, offload=offload) | _BY_TRAINER | autocast,
    }


def _fsdp_config(model: nn.Module) -> dict[str, Any]:
    return {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": sorted(layer_classes(model)),
        "reshard_after_forward": True,
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_ram_efficient_loading": False,
    }


_BY_TRAINER = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}
"""What the trainer fills in from its own arguments."""


def _hidden_size(model: nn.Module) -> int:
    return int(model.config.get_text_config().hidden_size)  # type: ignore[operator, union-attr]


def deepspeed_config(sharding: Sharding, model: nn.Module, *, offload: bool = False) -> dict[str, Any]:
    """The parts of a DeepSpeed configuration that follow from mode and model; float32 throughout."""
    stage = {"zero2": 2, "zero3": 3}[sharding]
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": torch.cuda.is_available()}
    if stage == 3:
        zero |= {
            # Biases and norms stay whole: gathering each by itself would cost more than it saves.
            "stage3_param_persistence_threshold": 10 * _hidden_size(model),
            # A layer is divided again after each pass. By default DeepSpeed keeps up to 1e9 parameters whole.
            "stage3_max_reuse_distance": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "zero_optimization": zero,
        # torch's AdamW: DeepSpeed's own is compiled at first use, and is not the one of the other modes.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def wrapped_name(module: object) -> str:
    """What a model is wrapped in, for tables: DistributedDataParallel, or DeepSpeedEngine (ZeRO-3)."""
    name, stage = type(module).__name__, getattr(module, "zero_optimization_stage", None)
    return f"{name} (ZeRO-{stage()})" if callable(stage) else name


def held_bytes(module: nn.Module) -> int:
    """Bytes of the parameters' storage on this worker, each storage once; between updates, not during a pass."""
    storages: dict[int, int] = {}
    for parameter in module.parameters():
        local: torch.Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        # Under ZeRO-3 a parameter that is divided is empty, and this worker's part of it stands beside it.
        local = getattr(parameter, "ds_tensor", local) if local.numel() == 0 else local
        storages[local.data_ptr()] = local.numel() * local.element_size()
    return sum(storages.values())
