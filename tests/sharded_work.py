"""What the workers of the tests of sharding do: a few steps of a small Llama, on one process or on two.

Two workers do all modes after each other, as the workers of a study do: starting them is what takes time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

STEPS = 4
KEPT = 2
"""The step after which the state is kept."""
VOCABULARY = 41


def small_llama(seed: int = 0, *, tied: bool = False) -> Any:
    """A random Llama of two layers; float32, in evaluation mode. Sizes that two workers divide unevenly."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=49, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float().eval()


def tokens(step: int) -> torch.Tensor:
    """(8, 6) int64: the batch of a step, over all workers."""
    return torch.randint(0, VOCABULARY, (8, 6), generator=torch.Generator().manual_seed(step))


@dataclass
class Trained:
    """What a run of some steps leaves; tensors on rank 0 only."""

    wrapped: str
    held: int = 0
    """Bytes of parameters that stay with this worker between two forward passes."""
    initial: dict[str, torch.Tensor] = field(default_factory=dict)
    final: dict[str, torch.Tensor] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)
    resumed: dict[str, torch.Tensor] = field(default_factory=dict)
    resumed_norms: list[float] = field(default_factory=list)
    gradient: int = 0
    """Bytes of the gradient that stays with this worker when more micro-batches are to come (fsdp2)."""
    unchanged_by_nan: bool = False
    first_moments: dict[str, torch.Tensor] = field(default_factory=dict)
    """AdamW's, after one step, by the parameters' names, where the state names them."""


def train(sharding: str, directory: Path, rank: int = 0, workers: int = 1, **options: Any) -> Trained:
    """Some steps, keeping the state at `KEPT`; then the steps after that once more, from the state."""
    from rlheals_ray.rl.sharded_policy import ShardedPolicy
    from rlheals_ray.sharding import held_bytes, prepare_process

    micro_batches = options.pop("micro_batches", 1)
    settings = {"learning_rate": 1e-2, "max_grad_norm": 0.5, **options}
    tied = settings.pop("tied", False)
    prepare_process(sharding)  # type: ignore[arg-type]
    policy = ShardedPolicy(small_llama(tied=tied), sharding, **settings)  # type: ignore[arg-type]
    out = Trained(policy.wrapped, initial=_copy(policy.named_tensors()))
    moments = directory / "after-one-step"
    for step in range(1, STEPS + 1):
        out.norms.append(update(policy, tokens(step)[rank::workers], micro_batches))
        if step == 1:
            policy.save_state(moments)
            out.first_moments = _first_moments(moments) if rank == 0 else {}
        if step == KEPT:
            policy.save_state(directory / "state")
    out.held = held_bytes(policy.module)
    out.final = _copy(policy.named_tensors())
    policy.save_model(directory / "model" if rank == 0 else None)

    again = ShardedPolicy(small_llama(seed=9, tied=tied), sharding, **settings)  # type: ignore[arg-type]
    assert not again.load_state(directory / "nothing")
    assert again.load_state(directory / "state")
    for step in range(KEPT + 1, STEPS + 1):
        out.resumed_norms.append(update(again, tokens(step)[rank::workers], micro_batches))
    out.resumed = _copy(again.named_tensors())

    if micro_batches > 1 and policy.wrapped.startswith("FSDP"):
        policy.backward(policy.module(input_ids=tokens(0)[:2]).logits.sum(), last=False)
        gradients = [parameter.grad for parameter in policy.module.parameters()]
        out.gradient = sum(4 * one.to_local().numel() for one in gradients if one is not None)
    loss = policy.module(input_ids=tokens(0)[:2]).logits.sum() * float("nan")
    policy.backward(loss)
    assert not policy.step() < float("inf")
    after = _copy(policy.named_tensors())
    out.unchanged_by_nan = all(torch.equal(value, out.final[name]) for name, value in after.items())
    return out


def update(policy: Any, mine: torch.Tensor, micro_batches: int) -> float:
    """One step on the mean loss of the whole batch; passes without gradients around it, as PPO has them."""
    with torch.no_grad():
        policy.module(input_ids=mine)
    parts = mine.chunk(micro_batches)
    for index, part in enumerate(parts):
        with policy.autocast():
            output = policy.module(input_ids=part, output_hidden_states=True)
        logprobs = torch.log_softmax(output.logits[:, :-1].float(), -1)
        chosen = logprobs.gather(-1, part[:, 1:, None])
        policy.backward(-chosen.sum() / tokens(0).numel(), last=index == len(parts) - 1)
    norm: float = policy.step()
    with torch.no_grad():
        policy.module(input_ids=mine)
    return norm


def _first_moments(directory: Path) -> dict[str, torch.Tensor]:
    from rlheals_ray.rl.policy_state import Shards, current_version

    version = current_version(directory)
    assert version is not None
    with Shards.open(version) as shards:
        return {name: shards.whole(name) for name in shards.names() if name.startswith("exp_avg/")}


def _copy(named: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in named}


def on_two_workers(directory: Path, jobs: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
    """Do `train` for each (name, sharding, options) on two gloo workers; `outcome` reads what it leaves."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_worker, args=(rank, directory, jobs)) for rank in (0, 1)]
    for other in others:
        other.start()
    for other in others:
        other.join(timeout=200)
    assert [other.exitcode for other in others] == [0, 0]


def outcome(directory: Path, name: str, rank: int = 0) -> Trained:
    return Trained(**torch.load(directory / f"{name}-{rank}.pt", weights_only=True))


def _worker(rank: int, directory: Path, jobs: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{directory}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    try:
        for name, sharding, options in jobs:
            trained = train(sharding, directory / name, rank, 2, **options)
            torch.save(vars(trained), directory / f"{name}-{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()
