"""One update of PPO: what it reports, which way it moves the policy, and that workers change nothing."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from rlheals_ray import tables
from rlheals_ray.config import RLSettings
from rlheals_ray.rl.actions import actions_of
from rlheals_ray.rl.advantage import gae
from rlheals_ray.rl.ppo import Diverged
from tests.learning import (
    episode,
    learner,
    on_policy,
    random_episodes,
    scores,
    tiny_llama,
    two_updates,
    two_updates_in_a_group,
)

SETTINGS = RLSettings(episodes=8, max_attempts=3, learning_rate=1e-3)


def updated(settings: RLSettings = SETTINGS, *, number: int = 1) -> dict[str, Any]:
    model = tiny_llama()
    return learner(model, settings).update(on_policy(model, random_episodes(8, 3), settings), number)


def test_every_metric_is_a_column_of_the_table_and_finite() -> None:
    metrics = updated()
    assert set(metrics) <= set(tables.RL.names)
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    assert {"entropy", "approx_kl", "clip_fraction", "grad_norm", "explained_variance"} <= set(metrics)
    assert 0 <= metrics["clip_fraction"] <= 1 and metrics["grad_norm"] > 0
    assert 0 < metrics["entropy"] <= math.log(17)
    quantiles = [metrics[f"advantage_q{q}"] for q in ("05", "25", "50", "75", "95")]
    assert quantiles == sorted(quantiles)


def test_on_its_own_samples_nothing_differs_and_nothing_is_clipped() -> None:
    metrics = updated()
    assert metrics["logprob_mismatch_mean"] == metrics["logprob_mismatch_max"] == 0.0
    assert metrics["clip_fraction"] == 0.0


def test_a_generator_that_disagrees_is_told() -> None:
    model = tiny_llama()
    batch = on_policy(model, random_episodes(8, 3), SETTINGS)
    own = batch.turn_of >= 0
    shifted = replace(batch, logprobs=torch.where(own, batch.logprobs - 0.02, 0.0))
    shifted.logprobs[torch.nonzero(own)[0].tolist()[0], torch.nonzero(own)[0].tolist()[1]] -= 0.5
    metrics = learner(model, SETTINGS).update(shifted, 1)
    tokens = int(own.sum())
    assert metrics["logprob_mismatch_max"] == pytest.approx(0.52, abs=1e-4)
    assert metrics["logprob_mismatch_mean"] == pytest.approx(0.02 + 0.5 / tokens, abs=1e-4)


def test_approx_kl_is_how_far_the_update_moved_the_policy_from_the_samples() -> None:
    model = tiny_llama()
    batch = on_policy(model, random_episodes(8, 3), SETTINGS)
    metrics = learner(model, SETTINGS).update(batch, 1)
    with torch.no_grad():
        logits = model(input_ids=batch.ids).logits.double() / SETTINGS.temperature
    moved = torch.log_softmax(logits, -1)[:, :-1].gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    own = batch.turn_of[:, 1:] >= 0
    log_ratio = (moved - batch.logprobs[:, 1:])[own]
    assert metrics["approx_kl"] == pytest.approx(float((torch.expm1(log_ratio) - log_ratio).mean()), rel=1e-3)
    assert metrics["approx_kl"] > 0


def test_what_was_rewarded_becomes_likelier_and_what_was_punished_less_likely() -> None:
    model = tiny_llama()
    episodes = [episode(([1, 2], [3, 4], 5.0)), episode(([1, 2], [5, 6], -3.0))]
    batch = on_policy(model, episodes, SETTINGS)
    learner(model, SETTINGS).update(batch, 1)
    with torch.no_grad():
        now = scores(model, batch, SETTINGS).logprobs[:, 0]
    before = torch.where(batch.turn_of >= 0, batch.logprobs, 0.0).sum(1)
    assert now[0] > before[0] and now[1] < before[1]


def test_equal_rewards_teach_the_policy_nothing() -> None:
    model = tiny_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = on_policy(model, [episode(([1, n], [3, 4], -3.0)) for n in range(6)], SETTINGS)
    metrics = learner(model, SETTINGS).update(batch, 1)
    assert metrics["grad_norm"] == pytest.approx(0.0, abs=1e-5)
    # Adam scales even rounding noise up to the learning rate, but not beyond it.
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=2 * SETTINGS.learning_rate, rtol=0)


def test_the_first_update_begins_with_a_critic_that_knows_the_returns() -> None:
    assert updated(number=1)["explained_variance"] > 0.1
    assert updated(number=2)["explained_variance"] == 0.0


def test_several_epochs_move_away_from_the_samples() -> None:
    settings = SETTINGS.model_copy(update={"epochs": 4, "learning_rate": 1e-2})
    metrics = updated(settings)
    assert metrics["approx_kl"] > 0 and metrics["clip_fraction"] > 0
    assert metrics["logprob_mismatch_max"] == 0.0, "it compares the weights before the update"


def test_log_probabilities_are_those_of_the_sampling_temperature() -> None:
    settings = SETTINGS.model_copy(update={"temperature": 0.5})
    model = tiny_llama()
    batch = on_policy(model, random_episodes(8, 3), settings)
    assert learner(model, settings).update(batch, 1)["logprob_mismatch_max"] == 0.0
    model = tiny_llama()
    assert learner(model, SETTINGS).update(batch, 1)["logprob_mismatch_max"] > 0.01


@pytest.mark.parametrize("number", [1, 2])
def test_weights_that_are_no_numbers_stop_the_branch(number: int) -> None:
    model = tiny_llama()
    batch = on_policy(model, random_episodes(8, 3), SETTINGS)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    healthy = model.model.embed_tokens.weight.clone()
    with pytest.raises(Diverged, match=f"update {number}: the policy's log-probability is nan"):
        learner(model, SETTINGS).update(batch, number)
    assert torch.equal(model.model.embed_tokens.weight, healthy), "a NaN spread through the model"


def test_a_gradient_that_is_no_number_is_named_and_not_stepped_with() -> None:
    model = tiny_llama()
    batch = on_policy(model, random_episodes(8, 3), SETTINGS)
    # The generator calls a token impossible that the learner would draw: their ratio is infinite.
    logprobs = torch.where(batch.own & (batch.rewards[:, :1] < 0), -1e4, batch.logprobs)
    before = model.lm_head.weight.clone()
    with pytest.raises(Diverged, match="update 7: the norm of the policy's gradient is nan"):
        learner(model, SETTINGS).update(replace(batch, logprobs=logprobs), 7)
    assert torch.equal(model.lm_head.weight, before)


def test_a_reward_that_is_no_number_is_named() -> None:
    batch = on_policy(tiny_llama(), random_episodes(8, 3), SETTINGS)
    batch.rewards[0, 0] = math.inf
    with pytest.raises(Diverged, match="update 3: an advantage is inf"):
        learner(tiny_llama(), SETTINGS).update(batch, 3)


def test_more_passes_of_the_critic_are_the_critic_s_alone() -> None:
    """The update's advantages come from the critic before it learns, so its passes leave the policy be."""
    policies, critics = [], []
    for passes in (1, 1, 4):
        model, settings = tiny_llama(), SETTINGS.model_copy(update={"value_epochs": passes})
        ppo = learner(model, settings)
        ppo.update(on_policy(model, random_episodes(8, 3), settings), 2)
        policies.append(model.lm_head.weight)
        critics.append(ppo.critic.linear.weight)
        assert ppo.value_optimizer.state[ppo.critic.linear.weight]["step"] == passes
    assert torch.equal(policies[0], policies[2])
    assert torch.equal(critics[0], critics[1]) and not torch.equal(critics[0], critics[2])


@pytest.mark.parametrize("warmup", [1, 2])
def test_while_the_critic_warms_up_the_policy_stays_as_it_is(warmup: int) -> None:
    settings = SETTINGS.model_copy(update={"critic_warmup": warmup})
    model = tiny_llama()
    ppo = learner(model, settings)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for number in (1, 2, 3):
        fitted = ppo.critic.linear.weight.clone()
        metrics = ppo.update(on_policy(model, random_episodes(8, 3, seed=number), settings), number)
        same = all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
        assert same is (number <= warmup)
        assert not torch.equal(ppo.critic.linear.weight, fitted), "the critic did not learn"
        # What the policy's step would tell is unknown, not 0.
        assert ("grad_norm" in metrics) is (number > warmup)
        assert metrics["learning_rate"] == (0.0 if same else settings.learning_rate)
        assert (metrics["approx_kl"] == 0.0) is same


def test_how_far_the_policy_is_from_the_start_of_its_branch_is_told() -> None:
    settings = SETTINGS.model_copy(update={"kl_coefficient": 0.1})
    batch = on_policy(tiny_llama(), random_episodes(8, 3), settings)
    assert learner(tiny_llama(), settings, tiny_llama()).update(batch, 1)["reference_kl"] == 0.0
    told = learner(tiny_llama(), settings, tiny_llama(seed=1)).update(batch, 1)["reference_kl"]
    reference = scores(tiny_llama(seed=1).double(), batch, settings).token_logprobs.detach()
    log_ratio = (reference - batch.logprobs)[batch.own].double()
    assert told == pytest.approx(float((log_ratio.exp() - 1 - log_ratio).mean()), rel=1e-4)
    assert "reference_kl" not in updated()


def test_the_penalty_holds_the_policy_to_its_start() -> None:
    """From far away and with nothing to win, it returns."""
    settings = SETTINGS.model_copy(update={"kl_coefficient": 1.0, "learning_rate": 3e-2})
    model = tiny_llama(seed=1)
    ppo = learner(model, settings, tiny_llama())
    far = []
    for number in range(1, 9):
        batch = on_policy(model, random_episodes(32, 3), settings)
        batch.rewards[:] = 0
        far.append(ppo.update(batch, number)["reference_kl"])
    assert far[-1] < 0.5 * far[0]


def test_the_mismatch_s_divergence_is_the_estimate_k3_over_the_generator_s_tokens() -> None:
    model = tiny_llama()
    batch = on_policy(model, random_episodes(8, 3), SETTINGS)
    shifted = replace(batch, logprobs=torch.where(batch.own, batch.logprobs - 0.02, 0.0))
    metrics = learner(model, SETTINGS).update(shifted, 1)
    assert metrics["logprob_mismatch_kl"] == pytest.approx(math.exp(0.02) - 1 - 0.02, rel=1e-2)


@pytest.mark.parametrize("level", ["turn", "token"])
def test_losses_are_means_over_actions(level: str) -> None:
    settings = SETTINGS.model_copy(update={"level": level, "advantage_floor": 1e-6})
    metrics = updated(settings, number=2)
    # At ratio 1 the surrogate is the mean normalised advantage; against values of 0 the critic's
    # loss is half the mean squared return, and advantages are returns.
    assert metrics["policy_loss"] == pytest.approx(0.0, abs=1e-5)
    batch = on_policy(tiny_llama(), random_episodes(8, 3), settings)
    actions = actions_of(batch, settings)
    zeros = torch.zeros_like(actions.rewards)
    returns, _ = gae(actions.rewards, zeros, actions.exists, actions.discount, settings.gae_lambda)
    expected = 0.5 * float((returns[actions.exists].double() ** 2).mean())
    assert metrics["value_loss"] == pytest.approx(expected, rel=1e-5)


def test_minibatches_are_equal_shares_in_an_order_of_their_own() -> None:
    settings = SETTINGS.model_copy(update={"minibatches": 4, "epochs": 2})
    ppo = replace(learner(tiny_llama(), settings), seed=(3, 120))
    orders = {}
    for update, epoch in ((1, 0), (1, 1), (2, 0)):
        parts = ppo._minibatches(8, update, epoch)
        assert [len(part) for part in parts] == [2, 2, 2, 2]
        orders[update, epoch] = torch.cat(parts).tolist()
        assert sorted(orders[update, epoch]) == list(range(8))
        assert orders[update, epoch] == torch.cat(ppo._minibatches(8, update, epoch)).tolist()
    other = replace(ppo, seed=(3, 60))
    assert len({tuple(order) for order in orders.values()}) == 3
    assert torch.cat(other._minibatches(8, 1, 0)).tolist() != orders[1, 0]


@pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {"gradient_checkpointing": True}], ids=str)
def test_cheaper_arithmetic_learns_the_same_up_to_its_precision(changes: dict[str, Any]) -> None:
    plain, cheap = updated(), updated(SETTINGS.model_copy(update=changes))
    exact = "gradient_checkpointing" in changes
    for name in ("grad_norm", "entropy", "value_loss"):
        assert cheap[name] == pytest.approx(plain[name], rel=1e-5 if exact else 0.05)
    # bfloat16 rounds the learner's log-probabilities and not those that it was given.
    assert (cheap["logprob_mismatch_max"] == 0.0) is exact


GROUP_SETTINGS = [
    SETTINGS,
    SETTINGS.model_copy(update={"entropy_coefficient": 0.01, "epochs": 2}),
    SETTINGS.model_copy(update={"level": "token", "kl_coefficient": 0.1, "micro_batch": 2}),
]


def test_two_workers_with_half_the_episodes_each_are_one_with_all(tmp_path: Path) -> None:
    """Advantages, the critic's first fit, the losses and the clipped gradient are those of the whole batch."""
    halves = str(tmp_path / "half")
    arguments = (str(tmp_path / "rendezvous"), halves, GROUP_SETTINGS)
    other = multiprocessing.get_context("spawn").Process(target=two_updates_in_a_group, args=(1, *arguments))
    other.start()
    two_updates_in_a_group(0, *arguments)
    other.join(timeout=60)
    assert other.exitcode == 0
    for index, settings in enumerate(GROUP_SETTINGS):
        whole, whole_rows = two_updates(settings)
        for rank in (0, 1):
            half = torch.load(f"{halves}-{rank}", weights_only=True)[index]
            for name, value in whole.items():
                torch.testing.assert_close(half["state"][name], value, atol=2e-6, rtol=0, msg=name)
            for row, expected in zip(half["rows"], whole_rows, strict=True):
                assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)
