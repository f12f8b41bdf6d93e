"""Controls of healing: the compute of RL as it is really spent, and what SFT is given for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlheals_ray.config import RLSettings
from rlheals_ray.lineage import Branch, Trunk
from rlheals_ray.rl.compute import compute_by_update, flops_per_token
from rlheals_ray.rl.rejection import SolvedSamples, _cause, _example, _row
from rlheals_ray.sft.controls import control_rows, nearest_updates, tokens_of
from rlheals_ray.sft.data import IGNORE, Example
from rlheals_ray.sft.run import RunLog
from rlheals_ray.tasks import Problem
from tests.learning import RunningMean, episode, learner, on_policy, random_episodes

COMMON = {"episodes": 8, "budgets": (0, 2), "max_attempts": 2, "group_size": 4}


class Counted(RunningMean):
    """Counts the sequences that pass through, with and without gradients."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.trained = self.scored = 0

    def forward(self, input_ids: torch.Tensor, **options: Any) -> SimpleNamespace:
        if torch.is_grad_enabled():
            self.trained += len(input_ids)
        else:
            self.scored += len(input_ids)
        return super().forward(input_ids, **options)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"epochs": 3, "minibatches": 2},
        {"kl_coefficient": 0.1},
        {"critic_warmup": 1},
        {"critic_warmup": 1, "epochs": 2, "kl_coefficient": 0.1},
    ],
)
def test_flops_of_ppo_are_those_of_the_passes_it_makes(settings: dict[str, Any]) -> None:
    """Counted on the modules: the engine's pass, 2 for a scoring pass, 6 for one with gradients; without the last pass
    of an update, which only measures."""
    rl = RLSettings.model_validate({**COMMON, **settings})
    policy, reference = Counted(), Counted(seed=1)
    ppo = learner(policy, rl, reference if rl.kl_coefficient else None)
    for update in (1, 2):
        policy.trained = policy.scored = reference.scored = 0
        ppo.update(on_policy(RunningMean(), random_episodes(8, rl.max_attempts, seed=update), rl), update)
        passes = (policy.scored + reference.scored) / 8 - 1
        assert flops_per_token(rl, update) == 2 + 2 * passes + 6 * policy.trained / 8


@pytest.mark.parametrize("settings", [{}, {"epochs": 2}, {"minibatches": 2}, {"critic_warmup": 1}])
def test_micro_batches_which_save_memory_alone_change_no_control(settings: dict[str, Any]) -> None:
    """They are in no fingerprint; the pass that PPO makes apart for them is not counted."""
    whole, divided = (
        RLSettings.model_validate({**COMMON, **settings, "micro_batch": micro}) for micro in (None, 2)
    )
    assert compute_by_update(whole, [100, 10]) == compute_by_update(divided, [100, 10])


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize("settings", [{}, {"epochs": 2, "minibatches": 2}, {"kl_coefficient": 0.1}])
def test_flops_of_trl_are_those_of_the_passes_it_makes(
    algorithm: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlheals_ray.models.nano import tokenizer
    from tests.learning import tiny_llama
    from tests.trl_learning import learn, with_logprobs

    rl = RLSettings.model_validate({**COMMON, "budgets": (0, 1), "algorithm": algorithm, **settings})
    episodes = with_logprobs(random_episodes(8, rl.max_attempts), tiny_llama(), rl.temperature)
    counted, embed = {True: 0, False: 0}, torch.nn.Embedding.forward

    def counting(self: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        counted[torch.is_grad_enabled()] += len(ids)
        return embed(self, ids)

    # Every pass of every model, the reference's too, begins with its embeddings.
    monkeypatch.setattr(torch.nn.Embedding, "forward", counting)
    learn(rl, lambda _: episodes, tokenizer([18, 24]), start=tiny_llama(seed=1))
    assert flops_per_token(rl, 1) == 2 + 2 * (counted[False] / 8 - 1) + 6 * counted[True] / 8


def test_compute_adds_up_over_updates() -> None:
    rl = RLSettings.model_validate({**COMMON, "critic_warmup": 1})
    assert compute_by_update(rl, [100, 10]) == [400, 480]  # generated and scored; generated and learnt from
    assert compute_by_update(rl, []) == []


@pytest.mark.parametrize("target", [1, 59, 61, 200, 1000, 4321])
def test_the_number_of_updates_is_the_one_whose_cost_is_nearest(target: int) -> None:
    lengths = [0, *(7 + n % 5 for n in range(1, 400))]
    updates, cost = nearest_updates(lengths.__getitem__, target)
    costs = [6 * sum(lengths[: n + 1]) for n in range(400)]
    assert cost == costs[updates]
    assert abs(cost - target) == min(abs(c - target) for c in costs[1:])


def test_a_later_budget_has_at_least_one_more_update() -> None:
    updates, cost = nearest_updates(lambda _: 10, 60)
    assert nearest_updates(lambda _: 10, 60, updates=updates, cost=cost) == (2, 120)


def example(*ids: int) -> Example:
    return Example(Problem(f"p{ids[0]}", "id", "g"), list(ids), list(ids))


def samples(pools: list[list[Example]], starts: list[int]) -> SolvedSamples:
    no_task: Any = None
    return SolvedSamples(pools, starts, (0, 4), no_task)


def test_each_epoch_of_samples_has_every_sample_once_in_an_order_of_its_own() -> None:
    pool = [example(n) for n in range(10)]
    drawn = [e.input_ids[0] for e in samples([pool], [0]).stream(range(30))]
    epochs = [drawn[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    later = [e.input_ids[0] for e in samples([pool], [0]).stream(range(17, 23))]
    assert later == drawn[17:23], "a resumed run must be given what the whole one was"


def test_up_to_a_budget_only_its_own_samples_are_trained_on() -> None:
    early, late = [example(1), example(2)], [example(n) for n in range(1, 9)]
    both = samples([early, late], [0, 6])
    assert {e.input_ids[0] for e in both.stream(range(6))} == {1, 2}
    assert {e.input_ids[0] for e in both.stream(range(6, 14))} == set(range(1, 9))


def test_tokens_of_an_update_are_those_of_its_examples() -> None:
    tokens = tokens_of(_Growing(), 3, first_position=2)
    assert [tokens(1), tokens(2)] == [2 + 3 + 4, 5 + 6 + 7]


class _Growing:
    """Example number n has n tokens."""

    count = 100

    def stream(self, positions: Iterable[int]) -> Iterator[Example]:
        return (example(*range(100, 100 + n)) for n in positions)

    def record(self, path: Path, positions: Iterable[int]) -> None:
        raise NotImplementedError


def test_a_solved_episode_is_learnt_from_as_it_stands_and_only_its_solving_answer() -> None:
    solved = episode(([1, 2], [3, 4], -1.0), ([5], [6, 7, 8], 5.0))
    row = _row(3, solved)
    assert (row["update"], row["tokens"]) == (3, 8)
    made = _example(row, {"p": solved.problem})
    assert made.input_ids == [1, 2, 3, 4, 5, 6, 7, 8]
    assert made.labels == [IGNORE] * 5 + [6, 7, 8]
    assert _row(3, episode(([1], [2], -1.0)))["ids"] is None


def test_why_a_budget_has_no_checkpoint_is_said() -> None:
    assert _cause([2, 4], [2, 4], 10) is None
    assert "budget 2" in str(_cause([2, 4], [4], 10))
    assert "none of its 10 samples was solved" in str(_cause([2, 4], [], 10))


def test_rows_of_a_control_stand_at_the_budgets_of_rl() -> None:
    log = RunLog(
        [
            {"step": n, "loss": float(n), "grad_norm": 1.0, "learning_rate": 1e-3, "tokens": 10 * n, "seconds": 0.5}
            for n in range(1, 6)
        ],
        wrapped_model="M",
        parameter_bytes=1,
        train_run="t",
        is_main=True,
    )  # fmt: skip
    control = Branch(Trunk("plain", 1), 4, "continued_sft")
    first, second = control_rows(control, log, {15: 2, 30: 5})
    assert (first["rl_step"], first["policy_loss"], first["tokens"]) == (15, 1.5, 30)
    assert (second["rl_step"], second["policy_loss"], second["tokens"]) == (30, 4.0, 120)
    assert first["algorithm"] == "continued_sft" and first["reward_mean"] is None
