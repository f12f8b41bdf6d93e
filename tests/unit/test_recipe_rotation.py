"""Recipe rotation against its published formula (arXiv 2605.10973), with numpy's SVD."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlheals_ray.config import load_study
from rlheals_ray.sft.recipes import RecipeContext
from rlheals_ray.sft.recipes.rotation import ANCHORS, Anchor, Rotation, total_penalty
from rlheals_ray.spectra import anchor_factors
from rlheals_ray.storage import StudyFiles
from tests.toy_model import write_toy_model

K, ROLES = 5, ("q", "o", "down")


def numpy_anchor(weight: torch.Tensor, k: int) -> Anchor:
    U, S, Vh = np.linalg.svd(weight.detach().double().numpy())
    return Anchor(*(torch.from_numpy(np.ascontiguousarray(x)).float() for x in (U[:, :k], S[:k], Vh[:k].T)))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("toy") / "model", layers=2)


@pytest.fixture
def model(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def held(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    names = ("q_proj", "o_proj", "down_proj")
    return {name: p for name, p in model.named_parameters() if any(role in name for role in names)}


def moved(model: PreTrainedModel, seed: int = 0) -> dict[str, np.ndarray]:
    """Change every matrix; what they were before, float64."""
    generator = torch.Generator().manual_seed(seed)
    before = {name: p.detach().double().numpy().copy() for name, p in held(model).items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    return before


def formula(before: dict[str, np.ndarray], after: dict[str, np.ndarray], k: int) -> float:
    total = 0.0
    for name, W0 in before.items():
        U, _, Vh = np.linalg.svd(W0)
        total += np.linalg.norm(U[:, :k].T @ (after[name] - W0) @ Vh[:k].T, "fro") ** 2
    return total


def test_autocast_does_not_round_it(model: PreTrainedModel) -> None:
    """In bfloat16 the block's own rounding would be hundreds of times a movement of this size."""
    anchors = {name: numpy_anchor(p, K) for name, p in held(model).items()}
    with torch.autocast("cpu", torch.bfloat16):
        assert total_penalty(model, anchors).item() < 1e-8
        moved(model)
        within = total_penalty(model, anchors)
    assert within.item() == total_penalty(model, anchors).item()


def test_value_and_gradient_are_those_of_the_formula(model: PreTrainedModel) -> None:
    """The gradient by torch's autograd of the formula as it is written, in float64."""
    anchors = {name: numpy_anchor(p, K) for name, p in held(model).items()}
    before = moved(model)
    value = total_penalty(model, anchors)
    after = {name: p.detach().double().numpy() for name, p in held(model).items()}
    assert value.item() == pytest.approx(formula(before, after, K), rel=1e-4)
    value.backward()
    for name, parameter in model.named_parameters():
        if name not in anchors:
            assert parameter.grad is None
            continue
        U, _, Vh = np.linalg.svd(before[name])
        W = torch.from_numpy(after[name]).requires_grad_()
        block = (
            torch.from_numpy(U[:, :K].T.copy())
            @ (W - torch.from_numpy(before[name]))
            @ torch.from_numpy(Vh[:K].T.copy())
        )
        block.square().sum().backward()
        assert parameter.grad is not None and W.grad is not None
        scale = float(W.grad.abs().max())
        torch.testing.assert_close(parameter.grad.double(), W.grad, rtol=1e-4, atol=1e-4 * scale)


def test_all_directions_hold_the_whole_matrix(model: PreTrainedModel) -> None:
    """k of a square matrix's full rank: ‖W − W₀‖²_F."""
    name = "model.layers.0.self_attn.q_proj.weight"
    anchors = {name: numpy_anchor(held(model)[name], 64)}
    before = moved(model)
    difference = held(model)[name].detach().double().numpy() - before[name]
    assert total_penalty(model, anchors).item() == pytest.approx(np.linalg.norm(difference) ** 2, rel=1e-3)


def test_at_the_base_nothing_is_to_pay(model: PreTrainedModel) -> None:
    anchors = {name: numpy_anchor(p, K) for name, p in held(model).items()}
    value = total_penalty(model, anchors)
    assert value.item() < 1e-9


@pytest.mark.parametrize("weight", [0.0, 50.0])
def test_training_keeps_the_block_where_its_price_is_high(model: PreTrainedModel, weight: float) -> None:
    """And with the price 0 it goes where plain training goes."""
    name = "model.layers.0.self_attn.q_proj.weight"
    start = held(model)[name].detach().clone()
    anchor = numpy_anchor(start, K)
    target = start + 0.3 * torch.randn(start.shape, generator=torch.Generator().manual_seed(1))

    def train(price: float | None) -> torch.Tensor:
        W = start.clone().requires_grad_()
        optimizer = torch.optim.SGD([W], lr=0.005)
        for _ in range(500):
            optimizer.zero_grad()
            loss = (W - target).square().sum()
            if price is not None:
                loss = loss + price * anchor.penalty(W)
            loss.backward()
            optimizer.step()
        return W.detach()

    def block(W: torch.Tensor) -> float:
        return float(torch.linalg.matrix_norm(anchor.U.mT @ (W - start) @ anchor.V))

    plain, priced = train(None), train(weight)
    if weight == 0:
        assert torch.equal(plain, priced)
    else:
        assert block(priced) < 0.05 * block(plain)
        # What is not held goes its way: D / (1 + λ) inside the block, D outside.
        outside = (priced - start) - anchor.U @ (anchor.U.mT @ (priced - start) @ anchor.V) @ anchor.V.mT
        wanted = (target - start) - anchor.U @ (anchor.U.mT @ (target - start) @ anchor.V) @ anchor.V.mT
        torch.testing.assert_close(outside, wanted, rtol=0.02, atol=0.02)


def test_the_factors_of_spectra_are_the_anchors_that_are_read(
    directory: Path, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file, made from the store of factors (on this process instead of Ray Data), against numpy's SVD."""
    from rlheals_ray.spectra import stock

    def here(self: object, rows: object, function: object, seconds: float, **more: object) -> object:
        import pyarrow as pa

        return function(pa.Table.from_pylist(rows), device="cpu", threads=1, **more)  # type: ignore[operator, arg-type]

    monkeypatch.setattr(stock.Workers, "map", here)
    study = load_study(
        "tiny",
        [
            f"storage={tmp_path}",
            f"sft.rotation.k={K}",
            "sft.rotation.roles=[q,o,down]",
            "sft.rotation.weight=3",
        ],
    )
    files = StudyFiles.at(study.storage, study.name)
    anchor_factors.write(directory, ROLES, K, files.root / "factors", files.root / ANCHORS)
    written = (files.root / ANCHORS).stat().st_mtime_ns
    anchor_factors.write(directory, ROLES, K, files.root / "factors", files.root / ANCHORS)
    assert (files.root / ANCHORS).stat().st_mtime_ns == written, "it was there"
    context = RecipeContext(study, files, directory, None, 0, 1, 0, 0, 1)  # type: ignore[arg-type]
    recipe = Rotation(context)
    before = moved(model)
    after = {name: p.detach().double().numpy() for name, p in held(model).items()}
    value = recipe.penalty(model)
    assert value is not None
    assert set(recipe.anchors) == set(held(model))
    assert value.item() == pytest.approx(3 * formula(before, after, K), rel=1e-4)
    assert anchor_factors.ANCHORS == ANCHORS
