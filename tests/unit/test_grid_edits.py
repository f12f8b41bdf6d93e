"""A study's edits are made together, and a checkpoint that cannot be edited costs its own edits alone."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlheals_ray.grid.edits import by_pair
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.spectra.ablation import Order, run_edits
from rlheals_ray.spectra.edit import Edit, EditReport

Q = "model.layers.0.self_attn.q_proj.weight"


def model(directory: Path, seed: int, poison: float | None = None) -> str:
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed))
    if poison is not None:
        weight[1, 2] = poison
    directory.mkdir()
    save_file({Q: weight}, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text("{}")
    return str(directory)


def test_a_diverged_checkpoint_costs_the_edits_that_need_it_alone(tmp_path: Path) -> None:
    late, peak = model(tmp_path / "late", 0), model(tmp_path / "peak", 1)
    diverged = model(tmp_path / "diverged", 2, poison=float("nan"))
    calls: list[int] = []

    def run(orders: Sequence[Order]) -> list[EditReport | str]:
        calls.append(len(orders))
        return run_edits(orders, str(tmp_path / "factors"), str(tmp_path / "pieces"), concurrency=0)

    def order(donor: str, k: int, name: str) -> Order:
        return Order(Edit(donor, late, k=k, roles=("q",)), str(tmp_path / name))

    orders = [order(peak, 2, "a"), order(diverged, 2, "b"), order(peak, 3, "c"), order(diverged, 3, "d")]
    a, b, c, d = by_pair(orders, run)
    assert isinstance(a, EditReport) and isinstance(c, EditReport)
    assert isinstance(b, str) and Q in b and "NaN" in b and b == d
    assert calls == [4, 2, 2], "together, then each pair of checkpoints apart"
    for name in ("a", "c"):
        Checkpoint(tmp_path / name).check()
    assert not (tmp_path / "b").exists() and not (tmp_path / "d").exists()


def test_orders_that_can_be_carried_out_are_made_at_once(tmp_path: Path) -> None:
    late, peak = model(tmp_path / "late", 0), model(tmp_path / "peak", 1)
    orders = [Order(Edit(peak, late, k=k, roles=("q",)), str(tmp_path / str(k))) for k in (1, 2)]
    calls: list[int] = []

    def run(some: Sequence[Order]) -> list[EditReport | str]:
        calls.append(len(some))
        return run_edits(some, str(tmp_path / "factors"), str(tmp_path / "pieces"), concurrency=0)

    reports = by_pair(orders, run)
    assert calls == [2]
    assert [type(report) for report in reports] == [EditReport, EditReport]


def test_an_unforeseen_error_is_not_taken_for_wrong_input(tmp_path: Path) -> None:
    def run(orders: Sequence[Order]) -> list[EditReport | str]:
        raise RuntimeError("no such luck")

    with pytest.raises(RuntimeError, match="no such luck"):
        by_pair([Order(Edit("a", "b"), "c")], run)
