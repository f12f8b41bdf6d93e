"""The policy on two workers is the policy on one, whatever divides it; and it really is divided."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlheals_ray.rl.policy_state import Shards, StateMismatch, current_version, new_version
from rlheals_ray.rl.sharded_policy import ShardedPolicy
from tests.sharded_work import (
    KEPT,
    STEPS,
    Trained,
    on_two_workers,
    outcome,
    small_llama,
    tokens,
    train,
    update,
)

JOBS: list[tuple[str, str, dict[str, Any]]] = [
    ("ddp", "ddp", {}),
    ("ddp in micro-batches", "ddp", {"micro_batches": 2}),
    ("fsdp2", "fsdp2", {}),
    ("fsdp2 in micro-batches, tied", "fsdp2", {"micro_batches": 2, "tied": True}),
    ("zero2", "zero2", {}),
    ("zero2 in micro-batches", "zero2", {"micro_batches": 2}),
    ("zero3", "zero3", {}),
    ("zero3 in micro-batches, tied", "zero3", {"micro_batches": 2, "tied": True}),
]
HALF: list[tuple[str, str, dict[str, Any]]] = [
    (f"{sharding} in bfloat16", sharding, {"precision": "bfloat16", "gradient_checkpointing": True})
    for sharding in ("fsdp2", "zero3")
]
WRAPPED = {
    "ddp": "DistributedDataParallel",
    "fsdp2": "FSDPLlamaForCausalLM",
    "zero2": "DeepSpeedEngine (ZeRO-2)",
    "zero3": "DeepSpeedEngine (ZeRO-3)",
}
SHARE = {"ddp": 1.0, "fsdp2": 0.5, "zero2": 1.0, "zero3": 0.5}
"""Of the parameters, on each of two workers."""

every_job = pytest.mark.parametrize(
    ("name", "sharding", "options"), JOBS, ids=[name.replace(" ", "-") for name, *_ in JOBS]
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outcomes of all jobs on two workers."""
    directory = tmp_path_factory.mktemp("runs")
    on_two_workers(directory, [*JOBS, *HALF])
    return directory


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Trained]:
    """The same steps on one worker, with untied and with tied embeddings."""
    directory = tmp_path_factory.mktemp("alone")
    return {tied: train("none", directory / str(tied), tied=tied) for tied in (False, True)}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """2-norm over all tensors, in float64."""
    assert a.keys() == b.keys()
    return math.sqrt(sum(float((a[name].double() - b[name].double()).square().sum()) for name in a))


@every_job
def test_two_workers_learn_what_one_learns(
    runs: Path, alone: dict[bool, Trained], name: str, sharding: str, options: dict[str, Any]
) -> None:
    """Gradient norms are those of the whole batch, and the steps lead to the same weights.

    Weights are compared by norm: AdamW divides by the gradient's own size, so that a single weight whose
    gradient is at the level of rounding may move either way by the learning rate.
    """
    one, two = alone[options.get("tied", False)], outcome(runs, name)
    assert two.norms[0] == pytest.approx(one.norms[0], rel=1e-6)
    assert two.norms == pytest.approx(one.norms, rel=1e-4)
    assert outcome(runs, name, rank=1).norms == two.norms, "the workers disagree about the norm"
    moved = distance(one.final, one.initial)
    assert moved > 0.1
    assert distance(two.final, one.final) < 5e-4 * moved


@pytest.mark.parametrize(("name", "sharding", "options"), JOBS[:4])
def test_the_first_gradient_is_that_of_one_worker(
    runs: Path, alone: dict[bool, Trained], name: str, sharding: str, options: dict[str, Any]
) -> None:
    """AdamW's first moment after one step is a tenth of the clipped gradient, tensor by tensor.

    DeepSpeed's states do not tell tensors apart: its gradients are compared by their norm, above.
    """
    one, two = alone[options.get("tied", False)].first_moments, outcome(runs, name).first_moments
    assert one.keys() == two.keys() and one
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-6 * float(value.abs().max()), msg=key)


@every_job
def test_the_model_is_wrapped_and_divided_as_its_mode_says(
    runs: Path, alone: dict[bool, Trained], name: str, sharding: str, options: dict[str, Any]
) -> None:
    one = alone[options.get("tied", False)]
    assert one.wrapped == "LlamaForCausalLM"
    for rank in (0, 1):
        two = outcome(runs, name, rank)
        assert two.wrapped == WRAPPED[sharding]
        assert two.held == pytest.approx(SHARE[sharding] * one.held, rel=0.05)


def test_between_micro_batches_fsdp2_holds_its_share_of_the_gradient(runs: Path) -> None:
    for rank in (0, 1):
        two = outcome(runs, "fsdp2 in micro-batches, tied", rank)
        assert two.gradient == pytest.approx(two.held, rel=0.01)


@every_job
def test_whole_tensors_reach_rank_0_alone_and_bit_for_bit(
    runs: Path, alone: dict[bool, Trained], name: str, sharding: str, options: dict[str, Any]
) -> None:
    two, expected = outcome(runs, name), small_llama(tied=options.get("tied", False)).state_dict()
    assert list(two.initial) == list(expected)
    assert all(torch.equal(two.initial[key], value) for key, value in expected.items())
    other = outcome(runs, name, rank=1)
    assert other.initial == {} and other.final == {}


@every_job
def test_the_saved_model_is_the_model(
    runs: Path, alone: dict[bool, Trained], name: str, sharding: str, options: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM

    from rlheals_ray.models.checkpoint import Checkpoint

    directory = runs / name / "model"
    auto: Any = AutoModelForCausalLM
    loaded, info = auto.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert type(loaded).__name__ == "LlamaForCausalLM"
    final = outcome(runs, name).final
    assert all(torch.equal(value, final[key]) for key, value in loaded.state_dict().items())
    one = small_llama(tied=options.get("tied", False))
    one.save_pretrained(runs / name / "one")
    assert Checkpoint(directory).names() == Checkpoint(runs / name / "one").names()


@every_job
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(
    runs: Path, alone: dict[bool, Trained], name: str, sharding: str, options: dict[str, Any]
) -> None:
    for trained in (outcome(runs, name), alone[options.get("tied", False)]):
        assert trained.resumed_norms == trained.norms[KEPT:]
        assert all(torch.equal(trained.resumed[key], value) for key, value in trained.final.items())


@every_job
def test_a_gradient_that_is_no_number_leaves_the_weights(
    runs: Path, alone: dict[bool, Trained], name: str, sharding: str, options: dict[str, Any]
) -> None:
    assert outcome(runs, name).unchanged_by_nan and alone[False].unchanged_by_nan


@pytest.mark.parametrize("name", [name for name, *_ in HALF])
def test_mixed_precision_and_recomputation_work_in_every_mode(
    runs: Path, alone: dict[bool, Trained], name: str
) -> None:
    """bfloat16 has eight bits: the first norm agrees with float32's to some hundredths, not exactly."""
    half, whole = outcome(runs, name), alone[False]
    assert half.norms[0] == pytest.approx(whole.norms[0], rel=0.05)
    assert half.norms[0] != pytest.approx(whole.norms[0], rel=1e-5)
    assert {value.dtype for value in half.final.values()} == {torch.float32}
    assert half.resumed_norms == half.norms[KEPT:]


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_a_state_of_two_workers_goes_on_with_one(runs: Path, name: str) -> None:
    policy = ShardedPolicy(small_llama(seed=5), "none", learning_rate=1e-2, max_grad_norm=0.5)
    assert policy.load_state(runs / name / "state")
    norms = [update(policy, tokens(step), 1) for step in range(KEPT + 1, STEPS + 1)]
    assert norms == pytest.approx(outcome(runs, name).norms[KEPT:], rel=1e-3)


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_a_state_that_this_group_cannot_read_is_refused_with_the_cause(runs: Path, name: str) -> None:
    policy = ShardedPolicy(small_llama(), "none", learning_rate=1e-2)
    with pytest.raises(StateMismatch, match=f"divided as '{name}' by 2 workers.*begin the branch again"):
        policy.load_state(runs / name / "state")


def test_a_worker_that_dies_while_writing_leaves_the_former_state(tmp_path: Path) -> None:
    policy = ShardedPolicy(small_llama(), "none", learning_rate=1e-2)
    policy.save_state(tmp_path)
    kept = {name: value.clone() for name, value in policy.named_tensors()}
    update(policy, tokens(1), 1)
    with pytest.raises(KeyboardInterrupt), new_version(tmp_path) as version:
        policy.write_state(version)  # written, but not by everyone yet
        raise KeyboardInterrupt
    assert policy.load_state(tmp_path)
    assert all(torch.equal(value, kept[name]) for name, value in policy.named_tensors())
    policy.save_state(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CURRENT", "version-000001"]


def test_a_state_holds_tensors_only(runs: Path) -> None:
    """Safetensors and the name of the version: nothing that could be unpickled."""
    for name, *_ in [*JOBS, *HALF]:
        files = {path.suffix for path in (runs / name / "state").rglob("*") if path.is_file()}
        assert files == {".safetensors", ""}
        version = current_version(runs / name / "state")
        assert version is not None
        with Shards.open(version) as shards:
            assert shards.layout["workers"] == 2


def test_the_learning_rate_is_settable_and_not_the_state_s(tmp_path: Path) -> None:
    policy = ShardedPolicy(small_llama(), "ddp", learning_rate=1e-2)
    policy.save_state(tmp_path)
    other = ShardedPolicy(small_llama(), "ddp", learning_rate=1e-3)
    other.load_state(tmp_path)
    assert other.learning_rate == 1e-3
    other.learning_rate = 0.0
    before = {name: value.clone() for name, value in other.named_tensors()}
    update(other, tokens(1), 1)
    assert all(torch.equal(value, before[name]) for name, value in other.named_tensors())


def test_recomputed_activations_change_no_gradient_and_start_no_dropout() -> None:
    plain = ShardedPolicy(small_llama(), "none", learning_rate=1e-2)
    model = small_llama()
    checkpointed = ShardedPolicy(model, "none", learning_rate=1e-2, gradient_checkpointing=True)
    calls: list[int] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    assert update(plain, tokens(1), 1) == pytest.approx(update(checkpointed, tokens(1), 1), rel=1e-6)
    assert len(calls) == 4, "two passes without gradients, one with, and one to recompute"
    assert not model.model.layers[0].self_attn.training


def test_bfloat16_computes_in_halves_and_keeps_the_weights_whole() -> None:
    policy = ShardedPolicy(small_llama(), "none", learning_rate=1e-2, precision="bfloat16")
    with policy.autocast():
        assert policy.module(input_ids=tokens(1)).logits.dtype == torch.bfloat16
    update(policy, tokens(1), 1)
    assert {value.dtype for _, value in policy.named_tensors()} == {torch.float32}
