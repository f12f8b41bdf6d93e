"""Recipe `rotation` (RPSFT, arXiv 2605.10973): the loss, and a price on moving the base's leading singular block.

    loss + λ Σ_W ‖U_kᵀ (W − W₀) V_k‖²_F

summed over the matrices of `sft.rotation.roles`. U_k, V_k: the k leading singular vectors of the base's W₀, frozen;
U_kᵀ W₀ V_k = diag(S_k), so that W₀ itself is not kept. They come from a file made by spectra/anchor_factors.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from rlheals_ray.sft.recipes import RecipeContext
from rlheals_ray.sft.recipes.plain import Plain

ANCHORS = "factors/rotation.safetensors"
"""Below the study's directory; spectra/anchor_factors.py says the same."""


@dataclass(frozen=True)
class Anchor:
    """The leading singular block of one matrix of the base: U (m, k), S (k,), V (n, k)."""

    U: torch.Tensor
    S: torch.Tensor
    V: torch.Tensor

    def penalty(self, weight: torch.Tensor) -> torch.Tensor:
        """‖Uᵀ W V − diag(S)‖²_F with its gradient, 2 U (Uᵀ W V − diag(S)) Vᵀ, for W (m, n), whole or a DTensor.

        Of a DTensor each worker multiplies the rows that it holds; what crosses is k × k numbers. The gradient
        goes to its own rows and is that of the whole penalty, not to be averaged.
        """
        # Autocast would multiply in bfloat16: near diag(S) its steps are wider than what training moves.
        with torch.autocast(weight.device.type, enabled=False):
            return self._in_float32(weight)

    def _in_float32(self, weight: torch.Tensor) -> torch.Tensor:
        from torch.distributed.tensor import DTensor

        if isinstance(weight, DTensor):
            local, rows = weight.to_local(), _rows(weight)
            block = self.U[rows].mT @ local.float() @ self.V
            whole = block.detach().clone()
            dist.all_reduce(whole, group=weight.device_mesh.get_group())
        else:
            block = self.U.mT @ weight.float() @ self.V
            whole = block.detach()
        moved = whole - torch.diag(self.S)
        # The value of the whole, and the gradient of this worker's part: no gradient crosses the all-reduce.
        slope = 2 * (moved * block).sum()
        return moved.square().sum() + (slope - slope.detach())

    def to(self, device: torch.device) -> Anchor:
        return Anchor(self.U.to(device), self.S.to(device), self.V.to(device))


def _rows(weight: torch.Tensor) -> slice:
    """Which rows of a DTensor, divided by rows, lie on this worker."""
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    placements, mesh = weight.placements, weight.device_mesh  # type: ignore[attr-defined]
    if placements != (Shard(0),):
        raise ValueError(f"recipe rotation knows matrices divided by rows, not {placements}")
    shape, offset = compute_local_shape_and_global_offset(weight.shape, mesh, placements)
    return slice(offset[0], offset[0] + shape[0])


def read_anchors(path: Path) -> dict[str, Anchor]:
    """Matrix name to its anchor; raises FileNotFoundError where the file was not made."""
    tensors = load_file(str(path))
    names = sorted(name.removesuffix(".S") for name in tensors if name.endswith(".S"))
    return {name: Anchor(*(tensors[f"{name}.{part}"] for part in ("U", "S", "V"))) for name in names}


class Rotation(Plain):
    """See the module."""

    def __init__(self, context: RecipeContext) -> None:
        super().__init__(context)
        self._weight = context.study.sft.rotation.weight
        self._path = context.files.root / ANCHORS

        self.anchors: Mapping[str, Anchor] = {}
        """Of the matrices, each where its matrix is; from the first penalty on."""

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        if not self.anchors:  # once: at every pass the copies would take longer than the products
            parameters = dict(model.named_parameters())
            read = read_anchors(self._path)
            self.anchors = {name: anchor.to(parameters[name].device) for name, anchor in read.items()}
        return self._weight * total_penalty(model, self.anchors)


def total_penalty(model: nn.Module, anchors: Mapping[str, Anchor]) -> torch.Tensor:
    """Σ_W ‖U_kᵀ (W − W₀) V_k‖²_F over the anchored matrices; raises KeyError for one that the model has not."""
    parameters = dict(model.named_parameters())
    total = torch.zeros((), device=next(iter(parameters.values())).device)
    for name, anchor in anchors.items():
        total = total + anchor.penalty(parameters[name])
    return total
