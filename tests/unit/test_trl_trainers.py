"""GRPO and RLOO by TRL on given episodes: the published formulas, TRL's own trainers, masks and workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import multiprocessing

from rlheals_ray import tables
from rlheals_ray.config import RLSettings
from rlheals_ray.models.nano import tokenizer
from rlheals_ray.rl.metrics import Diverged
from rlheals_ray.rl.trl_arguments import trl_arguments
from rlheals_ray.rl.trl_episodes import episode_return
from rlheals_ray.rollout.episode import Episode
from tests.learning import random_episodes, tiny_llama
from tests.trl_learning import GROUP, Steps, free_port, in_groups, learn, learn_in_a_group, with_logprobs

SETTINGS = RLSettings(
    algorithm="grpo", episodes=8, group_size=GROUP, budgets=(1,), max_attempts=3, temperature=0.7,
    clip=0.2, max_grad_norm=1e6,
)  # fmt: skip
TOKENS = tokenizer([18, 24])


def settings(**changes: Any) -> RLSettings:
    return RLSettings.model_validate({**SETTINGS.model_dump(), **changes})


def update(
    using: RLSettings, episodes: Sequence[Episode], model: Any = None, start: Any = None
) -> tuple[float, dict[str, torch.Tensor], Steps]:
    steps = learn(using, lambda _: episodes, TOKENS, model=model, start=start)
    return float(steps.logs[0]["loss"]), steps.gradients[0], steps


# --- the published formulas, derived again in float64, one unpadded episode at a time


def logprobs(model: Any, one: Episode, temperature: float) -> torch.Tensor:
    """Of the tokens that the model wrote, differentiable."""
    ids = [token for turn in one.turns for token in (*turn.prompt_ids, *turn.completion_ids)]
    own = [
        flag
        for turn in one.turns
        for flag in [False] * len(turn.prompt_ids) + [True] * len(turn.completion_ids)
    ]
    chosen = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, :-1] / temperature, -1)
    return chosen.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0][torch.tensor(own[1:])]


def sampled(one: Episode) -> torch.Tensor:
    return torch.tensor([p for turn in one.turns for p in turn.logprobs], dtype=torch.float64)


def returns(using: RLSettings, episodes: Sequence[Episode]) -> torch.Tensor:
    values = [sum(using.gamma**k * t.verdict.reward for k, t in enumerate(e.turns)) for e in episodes]
    return torch.tensor(values, dtype=torch.float64)


def grpo(using: RLSettings, episodes: Sequence[Episode], model: Any, start: Any = None) -> torch.Tensor:
    """Shao et al. 2024, eq. 3 and 4, on policy (the ratio is 1), times the importance weight of an episode."""
    grouped = returns(using, episodes).view(-1, GROUP)
    advantages = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
    loss = torch.zeros((), dtype=torch.float64)
    for one, advantage in zip(episodes, advantages.flatten(), strict=True):
        now = logprobs(model, one, using.temperature)
        weight = torch.exp((now.detach() - sampled(one)).sum())
        weight = torch.where(weight > 3.0, 0.0, weight)
        terms = -weight * torch.exp(now - now.detach()) * advantage
        if using.kl_coefficient:
            with torch.no_grad():
                reference = logprobs(start, one, using.temperature)
            terms = terms + using.kl_coefficient * (torch.exp(reference - now) - (reference - now) - 1)
        loss = loss + terms.mean() / len(episodes)
    return loss


def rloo(using: RLSettings, episodes: Sequence[Episode], model: Any, start: Any = None) -> torch.Tensor:
    """Ahmadian et al. 2024, eq. 8, with a clipped ratio of whole episodes and the KL in the reward."""
    rewards = returns(using, episodes)
    if using.kl_coefficient:
        with torch.no_grad():
            kl = [
                (logprobs(model, e, using.temperature) - logprobs(start, e, using.temperature)).sum()
                for e in episodes
            ]
        rewards = rewards - using.kl_coefficient * torch.stack(kl)
    loss = torch.zeros((), dtype=torch.float64)
    for place, one in enumerate(episodes):
        group = rewards[place - place % GROUP :][:GROUP]
        advantage = rewards[place] - (group.sum() - rewards[place]) / (GROUP - 1)
        ratio = torch.exp((logprobs(model, one, using.temperature) - sampled(one)).sum())
        clipped = ratio.clamp(1 - using.clip, 1 + using.clip)
        loss = loss - torch.minimum(ratio * advantage, clipped * advantage) / len(episodes)
    return loss


FORMULAS: dict[str, Callable[..., torch.Tensor]] = {"grpo": grpo, "rloo": rloo}


def assert_same(gradients: dict[str, torch.Tensor], expected: Any) -> None:
    largest = max(float(p.grad.abs().max()) for p in expected.parameters())
    assert largest > 1e-3, "there is nothing to learn"
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(
            gradients[name].double(), parameter.grad, atol=3e-5 * max(1.0, largest), rtol=0, msg=name
        )


@pytest.mark.parametrize("kl", [0.0, 0.3])
@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_loss_and_gradient_are_those_of_the_published_formula(
    algorithm: str, micro: int | None, kl: float
) -> None:
    """Multi-turn episodes of several lengths, a generator that is off by a little, and a reference."""
    using = settings(algorithm=algorithm, micro_batch=micro, kl_coefficient=kl)
    start, expected = tiny_llama(seed=5).double(), tiny_llama().double()
    episodes = with_logprobs(in_groups(), expected, using.temperature, lambda n: 0.03 * (n - 4))
    loss = FORMULAS[algorithm](using, episodes, expected, start)
    loss.backward()
    ours, gradients, _ = update(using, episodes, start=start.float())
    assert ours == pytest.approx(float(loss), abs=1e-5, rel=1e-5)
    assert_same(gradients, expected)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_generator_that_disagrees_changes_the_loss_as_the_formula_says(algorithm: str) -> None:
    """Without the bridge TRL would ignore what the generator says of its samples."""
    using = settings(algorithm=algorithm)
    model = tiny_llama().double()
    losses = []
    for shift in (0.0, 0.02, -0.5):
        episodes = with_logprobs(in_groups(), model, using.temperature, lambda n, by=shift: by * (n % 2))
        loss, _, steps = update(using, episodes)
        assert loss == pytest.approx(float(FORMULAS[algorithm](using, episodes, model)), abs=1e-5, rel=1e-5)
        assert steps.metrics[0]["logprob_mismatch_max"] == pytest.approx(abs(shift), abs=1e-4)
        losses.append(loss)
    assert len({round(loss, 4) for loss in losses}) == 3


# --- TRL's own trainers, without our bridge


def trls_own(using: RLSettings, episodes: Sequence[Episode], directory: Path) -> Steps:
    """TRL's trainer as it comes, given the same single-turn completions."""
    from trl import GRPOTrainer, RLOOTrainer

    prompts = [one.turns[0].prompt_ids for one in episodes]
    completions = [one.turns[0].completion_ids for one in episodes]
    common: dict[str, Any] = {
        "model": tiny_llama(),
        "args": trl_arguments(using, tiny_llama(), sharding="none", world_size=1, seed=0, state=directory),
        "reward_funcs": lambda prompts, **_: [episode_return(one, using.gamma) for one in episodes],
        "train_dataset": Dataset.from_dict({"prompt": ["a", "b"]}),
        "processing_class": TOKENS,
        "callbacks": [steps := Steps()],
    }
    if using.algorithm == "grpo":
        rollout = {"prompt_ids": prompts, "completion_ids": completions, "logprobs": None}
        trainer = GRPOTrainer(**common, rollout_func=lambda *_: rollout)
    else:
        trainer = RLOOTrainer(**common)
        trainer._tokenize_prompts = lambda _: (prompts, None, {})
        trainer._generate_single_turn = lambda *_: completions
    trainer.train()
    return steps


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_on_single_turns_of_an_exact_generator_it_is_trls_own_trainer(algorithm: str, tmp_path: Path) -> None:
    """Two steps on the same episodes: in the second the ratio is no longer 1, and is clipped here and there."""
    using = settings(algorithm=algorithm, epochs=2, learning_rate=2e-2)
    episodes = with_logprobs(in_groups(max_attempts=1), tiny_llama(), using.temperature)
    theirs, ours = trls_own(using, episodes, tmp_path), update(using, episodes)[2]
    for step, expected in enumerate(theirs.gradients):
        assert float(ours.logs[step]["loss"]) == pytest.approx(float(theirs.logs[step]["loss"]), abs=1e-4)
        for name, gradient in expected.items():
            torch.testing.assert_close(ours.gradients[step][name], gradient, atol=1e-3, rtol=1e-3, msg=name)
    assert ours.logs[1]["clip_ratio/region_mean"] == theirs.logs[1]["clip_ratio/region_mean"] > 0


# --- masks


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_no_token_of_the_environment_gets_a_gradient(algorithm: str) -> None:
    """The last hidden state at a place decides the next token alone: its gradient is that token's."""
    using = settings(algorithm=algorithm, kl_coefficient=0.1)
    episodes = with_logprobs(in_groups(), tiny_llama(), using.temperature)
    model, reached = tiny_llama(), []

    def watch(_module: Any, _inputs: Any, hidden: torch.Tensor) -> None:
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: reached.append(gradient.abs().sum(-1) > 0))

    model.model.norm.register_forward_hook(watch)
    update(using, episodes, model=model, start=tiny_llama(seed=5))
    (places,) = reached
    longest = max(len(one.turns[0].prompt_ids) for one in episodes)
    wrote = torch.zeros_like(places)
    for row, one in enumerate(episodes):
        at = longest - len(one.turns[0].prompt_ids)
        for turn in one.turns:
            at += len(turn.prompt_ids)
            wrote[row, at - 1 : at - 1 + len(turn.completion_ids)] = True
            at += len(turn.completion_ids)
    assert wrote.any() and any(len(one.turns) > 1 for one in episodes)
    assert torch.equal(places, wrote)


# --- updates of several steps


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_an_update_is_one_generation_and_epochs_times_minibatches_steps(algorithm: str) -> None:
    using = settings(
        algorithm=algorithm, budgets=(1, 2), epochs=2, minibatches=2, micro_batch=2, lr_schedule="linear"
    )
    asked: list[int] = []

    def source(number: int) -> list[Episode]:
        asked.append(number)
        return with_logprobs(in_groups(seed=number), tiny_llama(), using.temperature)

    steps = learn(using, source, TOKENS)
    assert asked == [1, 2]
    assert len(steps.gradients) == 8 and len(steps.metrics) == 2
    assert [row["learning_rate"] for row in steps.metrics] == [using.learning_rate, using.learning_rate / 2]
    assert [entry["learning_rate"] for entry in steps.logs[:4]] == [using.learning_rate] * 4


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_every_metric_is_a_column_of_the_table_and_finite(algorithm: str) -> None:
    using = settings(algorithm=algorithm, epochs=2, kl_coefficient=0.1)
    episodes = with_logprobs(in_groups(), tiny_llama(), using.temperature)
    metrics = update(using, episodes, start=tiny_llama(seed=5))[2].metrics[0]
    assert set(metrics) <= set(tables.RL.names)
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    assert metrics["logprob_mismatch_max"] < 1e-4 and metrics["logprob_mismatch_kl"] < 1e-6
    assert metrics["approx_kl"] > 0 and metrics["reference_kl"] > 0
    assert 0 < metrics["entropy"] <= math.log(17)
    assert metrics["learning_rate"] == using.learning_rate


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_entropy_is_that_of_the_distributions_the_model_wrote_from(algorithm: str) -> None:
    using = settings(algorithm=algorithm, micro_batch=2)
    model = tiny_llama().double()
    episodes = with_logprobs(in_groups(), model, using.temperature)
    metrics = update(using, episodes)[2].metrics[0]
    total, tokens = 0.0, 0
    with torch.no_grad():
        for one in episodes:
            context: list[int] = []
            for turn in one.turns:
                context += turn.prompt_ids
                for token in turn.completion_ids:
                    p = torch.softmax(
                        model(input_ids=torch.tensor([context])).logits[0, -1] / using.temperature, -1
                    )
                    total, tokens = total - float((p * p.log()).sum()), tokens + 1
                    context.append(token)
    assert metrics["entropy"] == pytest.approx(total / tokens, abs=1e-5)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_gradient_that_is_no_number_stops_the_branch_before_the_step(algorithm: str) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    healthy = model.model.embed_tokens.weight.detach().clone()
    episodes = with_logprobs(in_groups(), tiny_llama(), 0.7)
    with pytest.raises(Diverged):
        update(settings(algorithm=algorithm), episodes, model=model)
    assert torch.equal(model.model.embed_tokens.weight, healthy), "a NaN spread through the model"


@pytest.mark.slow
def test_two_workers_with_half_the_episodes_each_are_one_with_all(tmp_path: Path) -> None:
    """Groups are those of one problem, also where a group lies across two workers; minibatches too."""
    each = [
        settings(algorithm=algorithm, episodes=12, budgets=(2,), minibatches=2, epochs=2)
        for algorithm in ("grpo", "rloo")
    ]
    model = tiny_llama()
    episodes = {n: with_logprobs(random_episodes(12, 3, seed=n), model, SETTINGS.temperature) for n in (1, 2)}
    arguments = (free_port(), str(tmp_path / "half"), each, episodes)
    multiprocessing.spawn(learn_in_a_group, args=arguments, nprocs=2, join=True)
    for place, using in enumerate(each):
        whole = learn(using, episodes.__getitem__, TOKENS)
        for rank in (0, 1):
            half = torch.load(tmp_path / f"half-{rank}", weights_only=True)[place]
            for step, gradients in enumerate(whole.gradients):
                for name, gradient in gradients.items():
                    where = f"{using.algorithm}, {name}, step {step}"
                    torch.testing.assert_close(
                        half["gradients"][step][name], gradient, atol=1e-5, rtol=1e-3, msg=where
                    )
            for ours, expected in zip(half["metrics"], whole.metrics, strict=True):
                known = {name: value for name, value in expected.items() if value is not None}
                assert {name: ours[name] for name in known} == pytest.approx(known, rel=1e-3, abs=1e-5)
