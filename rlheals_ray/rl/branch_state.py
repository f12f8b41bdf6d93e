"""A branch's resumable state: policy, critic, both optimisers, the rows so far; replaced as a whole.

The policy is written by all workers, each its share (`ShardedPolicy.write_state`); what they all hold
alike, critic and progress, stands in one small file beside it, of the same version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer

from rlheals_ray.rl.policy_state import current_version, new_version, world
from rlheals_ray.rl.sharded_policy import ShardedPolicy

_PROGRESS = "progress.safetensors"


def save_branch(
    directory: Path,
    policy: ShardedPolicy,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    **progress: Any,
) -> None:
    """Write the policy, small modules and their optimisers, and JSON-like `progress`; all workers call it."""
    with new_version(directory) as version:
        policy.write_state(version)
        if world()[0] == 0:
            _write(version / _PROGRESS, modules, optimizers, progress)


def load_branch(
    directory: Path,
    policy: ShardedPolicy,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
) -> dict[str, Any] | None:
    """Restore what `save_branch` wrote; returns `progress`, or None when there is no state.

    Raises StateMismatch where the policy was divided in a way that this group cannot read.
    """
    version = current_version(directory)
    if version is None:
        return None
    policy.read_state(version)
    return _read(version / _PROGRESS, modules, optimizers)


def _write(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    progress: Mapping[str, Any],
) -> None:
    tensors = {
        f"{name}/{key}": value.contiguous()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for name, optimizer in optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}/{index}/{key}": torch.as_tensor(value) for key, value in moments.items()}
    save_file(tensors, path, metadata={"progress": json.dumps(progress)})


def _read(
    path: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]
) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        progress: dict[str, Any] = json.loads(file.metadata()["progress"])
    for name, module in modules.items():
        module.load_state_dict(
            {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}
        )
    for name, optimizer in optimizers.items():
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"{name}/"):
                _, index, field = key.split("/")
                moments.setdefault(int(index), {})[field] = value
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress
