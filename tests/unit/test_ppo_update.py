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
    with pytest.raises(Diverged):
        learner(model, SETTINGS).update(batch, number)
    assert torch.equal(model.model.embed_tokens.weight, healthy), "a NaN spread through the model"


def test_two_workers_with_half_the_episodes_each_are_one_with_all(tmp_path: Path) -> None:
    """Advantages, the critic's first fit, the losses and the clipped gradient are those of the whole batch."""
    settings = SETTINGS.model_copy(update={"entropy_coefficient": 0.01, "epochs": 2})
    halves = str(tmp_path / "half")
    arguments = (str(tmp_path / "rendezvous"), halves, settings)
    other = multiprocessing.get_context("spawn").Process(target=two_updates_in_a_group, args=(1, *arguments))
    other.start()
    two_updates_in_a_group(0, *arguments)
    other.join(timeout=60)
    assert other.exitcode == 0
    whole, whole_rows = two_updates(settings)
    for rank in (0, 1):
        half = torch.load(f"{halves}-{rank}", weights_only=True)
        for name, value in whole.items():
            torch.testing.assert_close(half["state"][name], value, atol=1e-6, rtol=0, msg=name)
        for row, expected in zip(half["rows"], whole_rows, strict=True):
            assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)
