"""A branch's resumable state: policy, critic, both optimisers, the rows so far; one safetensors file.

One file, because it is replaced atomically; safetensors, because nothing here is ever unpickled.
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
    """Write the policy, small modules and their optimisers, and JSON-like `progress`; every worker calls it.

    All of it is replaced as a whole: every worker writes its share of the policy, rank 0 what all of
    them hold alike (critic, its optimiser, progress).
    """
    with new_version(directory) as version:
        policy.write_state(version)
        if world()[0] == 0:
            save_state(version / _PROGRESS, modules, optimizers, **progress)


def load_branch(
    directory: Path,
    policy: ShardedPolicy,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
) -> dict[str, Any] | None:
    """Restore what `save_branch` wrote; returns `progress`, or None when there is no state.

    Raises StateMismatch where the policy was divided in a way that this group of workers cannot read.
    """
    version = current_version(directory)
    if version is None:
        return None
    policy.read_state(version)
    return load_state(version / _PROGRESS, modules, optimizers)


def save_state(
    path: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer], **progress: Any
) -> None:
    """Write modules, optimisers and JSON-like `progress`, replacing the file at `path` as a whole."""
    tensors: dict[str, torch.Tensor] = {}
    stored: set[int] = set()
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            # The file holds tied weights once each: safetensors refuses shared memory.
            shared = value.data_ptr() in stored
            stored.add(value.data_ptr())
            tensors[f"{name}/{key}"] = value.clone() if shared else value.contiguous()
    for name, optimizer in optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}/{index}/{key}": torch.as_tensor(value) for key, value in moments.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"progress": json.dumps(progress)})
    temporary.replace(path)


def load_state(
    path: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]
) -> dict[str, Any] | None:
    """Restore what `save_state` wrote; returns `progress`, or None when there is no state."""
    if not path.exists():
        return None
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
