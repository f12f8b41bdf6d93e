"""The price of rotation on matrices that FSDP2 has divided: the gradient of the whole, on every worker's rows."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rlheals_ray.sft.recipes.rotation import Anchor, total_penalty

WORKERS, WEIGHT = 2, 3.0


def model_and_anchors() -> tuple[torch.nn.Module, dict[str, Anchor]]:
    torch.manual_seed(0)
    # 21 rows do not divide by two.
    net = torch.nn.Sequential(
        torch.nn.Linear(12, 21, bias=False), torch.nn.Tanh(), torch.nn.Linear(21, 7, bias=False)
    )
    anchors = {}
    for name, parameter in net.named_parameters():
        U, S, Vh = torch.linalg.svd(parameter.detach())
        anchors[name] = Anchor(U[:, :4].contiguous(), S[:4].contiguous(), Vh[:4].mT.contiguous())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net, anchors


def worker(rank: int, rendezvous: str) -> None:
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORKERS)
    net, anchors = model_and_anchors()
    inputs = torch.randn(8, 12)
    whole = copy.deepcopy(net)
    (whole(inputs).square().mean() + WEIGHT * total_penalty(whole, anchors)).backward()
    mesh = dist.device_mesh.init_device_mesh("cpu", (WORKERS,))
    for layer in (net[0], net[2], net):  # type: ignore[index]
        fully_shard(layer, mesh=mesh)
    for micro in range(2):
        start = rank * 4 + micro * 2
        loss = net(inputs[start : start + 2]).square().mean() + WEIGHT * total_penalty(net, anchors)
        (loss / 2).backward()
    for divided, full in zip(net.parameters(), whole.parameters(), strict=True):
        assert divided.grad is not None
        torch.testing.assert_close(divided.grad.full_tensor(), full.grad, rtol=1e-4, atol=1e-5)  # type: ignore[attr-defined]
    dist.destroy_process_group()


@pytest.mark.slow
def test_fsdp2_pays_the_same(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, args=(str(tmp_path / "meet"),), nprocs=WORKERS)
