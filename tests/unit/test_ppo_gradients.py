"""What the policy's gradient is: that of the published objective, by autograd on a float64 copy of the model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from rlheals_ray.config import RLSettings
from rlheals_ray.rl.batch import Batch
from rlheals_ray.rl.losses import reference_penalty
from rlheals_ray.rl.sharded_policy import ShardedPolicy
from rlheals_ray.rollout.episode import Episode
from tests.learning import episode, learner, on_policy, random_episodes, tiny_llama

Gradients = dict[str, torch.Tensor]
EPISODES = random_episodes(8, 3)
SETTINGS = RLSettings(episodes=8, max_attempts=3, gamma=0.9, token_gamma=0.95, max_grad_norm=1e9)
TOKENS = SETTINGS.model_copy(update={"level": "token"})


class Recorded(ShardedPolicy):
    """A policy that keeps the gradient of each step."""

    gradients: list[Gradients]

    def step(self) -> float:
        named = self.module.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})
        return super().step()


def gradients_of(settings: RLSettings, batch: Batch | None = None, reference: Any = None) -> list[Gradients]:
    """The gradients of an update's steps, from `tiny_llama()` and an unfitted critic, whose values are 0."""
    model = tiny_llama()
    batch = batch or on_policy(model, EPISODES, settings)
    ppo = learner(model, settings, reference)
    ppo.policy = Recorded(
        model, "ddp", learning_rate=settings.learning_rate, max_grad_norm=settings.max_grad_norm
    )
    ppo.policy.gradients = []
    ppo.update(batch, 2)
    return ppo.policy.gradients


def by_autograd(loss_of: Callable[[Any], torch.Tensor], model: Any = None) -> Gradients:
    """The gradient of a loss of the float64 model."""
    model = (model or tiny_llama()).double()
    loss_of(model).backward()
    return {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(gradients: Gradients, expected: Gradients) -> None:
    assert gradients.keys() == expected.keys()
    scale = max(float(value.abs().max()) for value in expected.values())
    assert scale > 1e-4, "there is nothing to compare"
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-3, atol=1e-5 * scale, msg=name)


def distributions(model: Any, made: Episode, temperature: float = 1.0) -> list[list[tuple[Categorical, int]]]:
    """For each turn, the distribution of every token that the model wrote, and the token."""
    ids: list[int] = []
    places: list[list[int]] = []
    for turn in made.turns:
        ids += turn.prompt_ids
        places.append(list(range(len(ids), len(ids) + len(turn.completion_ids))))
        ids += turn.completion_ids
    logits = model(input_ids=torch.tensor([ids])).logits[0] / temperature
    return [[(Categorical(logits=logits[t - 1]), ids[t]) for t in turn] for turn in places]


def log_prob(drawn: tuple[Categorical, int]) -> torch.Tensor:
    return drawn[0].log_prob(torch.tensor(drawn[1]))


def advantages_of_turns(settings: RLSettings) -> list[list[float]]:
    """With values of 0, A_k = Σ_j (γλ)^(j-k) r_j; normalised over all turns."""
    decay, raw = settings.gamma * settings.gae_lambda, []
    for made in EPISODES:
        rewards = [turn.verdict.reward for turn in made.turns]
        raw.append(
            [sum(decay ** (j - k) * rewards[j] for j in range(k, len(rewards))) for k in range(len(rewards))]
        )
    return normalised(raw, settings)


def advantages_of_tokens(settings: RLSettings) -> list[list[float]]:
    """With values of 0: rewards reach back through λ, γ at each end of a turn and token_gamma within it."""
    raw = []
    for made in EPISODES:
        running, out = 0.0, []
        for turn in reversed(made.turns):
            running = turn.verdict.reward + settings.gamma * settings.gae_lambda * running
            out.append(running)
            for _ in turn.completion_ids[1:]:
                running *= settings.token_gamma * settings.gae_lambda
                out.append(running)
        raw.append(out[::-1])
    return normalised(raw, settings)


def normalised(raw: list[list[float]], settings: RLSettings) -> list[list[float]]:
    everyone = np.concatenate(raw)
    scale = max(everyone.std(), settings.advantage_floor)
    return [[float((value - everyone.mean()) / scale) for value in row] for row in raw]


def test_a_turn_s_gradient_is_that_of_the_log_probability_of_its_whole_sequence() -> None:
    advantages = advantages_of_turns(SETTINGS)

    def loss(model: Any) -> torch.Tensor:
        terms = [
            -advantage * torch.stack([log_prob(drawn) for drawn in turn]).sum()
            for made, row in zip(EPISODES, advantages, strict=True)
            for turn, advantage in zip(distributions(model, made), row, strict=True)
        ]
        return torch.stack(terms).mean()

    assert_same(gradients_of(SETTINGS)[0], by_autograd(loss))


def test_over_tokens_one_epoch_is_the_policy_gradient() -> None:
    """REINFORCE with advantages: the gradient of -mean A_t log π(token t)."""
    advantages = advantages_of_tokens(TOKENS)

    def loss(model: Any) -> torch.Tensor:
        terms = [
            -advantage * log_prob(drawn)
            for made, row in zip(EPISODES, advantages, strict=True)
            for drawn, advantage in zip(
                (drawn for turn in distributions(model, made) for drawn in turn), row, strict=True
            )
        ]
        return torch.stack(terms).mean()

    assert_same(gradients_of(TOKENS)[0], by_autograd(loss))


def unrewarded(model: Any, settings: RLSettings) -> Batch:
    """A batch from which the surrogate learns nothing."""
    batch = on_policy(model, EPISODES, settings)
    return replace(batch, rewards=torch.zeros_like(batch.rewards))


@pytest.mark.parametrize("level", ["turn", "token"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_entropy_bonus_is_really_in_the_loss(level: str, temperature: float) -> None:
    settings = SETTINGS.model_copy(
        update={"level": level, "temperature": temperature, "entropy_coefficient": 0.3}
    )

    def loss(model: Any) -> torch.Tensor:
        entropies = [
            drawn.entropy()
            for made in EPISODES
            for turn in distributions(model, made, temperature)
            for drawn, _ in turn
        ]
        return -0.3 * torch.stack(entropies).mean()

    assert_same(gradients_of(settings, unrewarded(tiny_llama(), settings))[0], by_autograd(loss))


@pytest.mark.parametrize("level", ["turn", "token"])
def test_the_penalty_pulls_towards_the_reference(level: str) -> None:
    """On the policy's own samples: the gradient of the mean of log(π / π_ref) · log π, its factor held fixed."""
    settings = SETTINGS.model_copy(update={"level": level, "kl_coefficient": 0.2})

    def loss(model: Any) -> torch.Tensor:
        other = tiny_llama(seed=1).double()
        terms = []
        for made in EPISODES:
            mine, theirs = distributions(model, made), distributions(other, made)
            for turn, same in zip(mine, theirs, strict=True):
                for drawn, reference in zip(turn, same, strict=True):
                    terms.append((log_prob(drawn) - log_prob(reference)).detach() * log_prob(drawn))
        return 0.2 * torch.stack(terms).mean()

    batch = unrewarded(tiny_llama(), settings)
    assert_same(gradients_of(settings, batch, tiny_llama(seed=1))[0], by_autograd(loss))


@pytest.mark.parametrize("moved", [0.0, 0.5], ids=["on policy", "off policy"])
def test_the_penalty_is_the_divergence_itself_in_mean_value_and_in_mean_gradient(moved: float) -> None:
    """Over every token a generator could have drawn, weighted by its probability of being drawn."""
    torch.manual_seed(0)
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    generator = (logits + moved * torch.randn(7, dtype=torch.float64)).detach().log_softmax(0)
    reference = torch.randn(7, dtype=torch.float64).log_softmax(0)
    own = torch.ones(1, 1, dtype=torch.bool)
    terms = [
        generator[token].exp()
        * reference_penalty(
            logits.log_softmax(0)[token].view(1, 1),
            generator[token].view(1, 1),
            reference[token].view(1, 1),
            own,
        )
        for token in range(7)
    ]
    mean = torch.stack(terms).sum()
    divergence = kl_divergence(Categorical(logits=logits), Categorical(logits=reference))
    torch.testing.assert_close(mean, divergence)
    torch.testing.assert_close(torch.autograd.grad(mean, logits), torch.autograd.grad(divergence, logits))


@pytest.mark.parametrize("level", ["turn", "token"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_change_memory_and_not_the_gradient(level: str, size: int) -> None:
    settings = SETTINGS.model_copy(
        update={"level": level, "minibatches": 2, "entropy_coefficient": 0.1, "kl_coefficient": 0.1}
    )
    parts = settings.model_copy(update={"micro_batch": size})
    whole, split = (gradients_of(how, reference=tiny_llama(seed=1)) for how in (settings, parts))
    assert len(whole) == len(split) == 2
    # The second step starts where Adam's first one led, which turns rounding into steps of its own size.
    assert_same(split[0], whole[0])


@pytest.mark.parametrize("level", ["turn", "token"])
def test_minibatches_of_a_pass_share_its_episodes_out(level: str) -> None:
    """Without movement in between, the minibatches' gradients, weighted by their actions, are the whole's."""
    still = {"level": level, "learning_rate": 1e-30}
    whole = gradients_of(SETTINGS.model_copy(update=still))
    halves = gradients_of(SETTINGS.model_copy(update=still | {"minibatches": 2}))
    assert len(whole) == 1 and len(halves) == 2
    counts = actions_of_minibatches(SETTINGS.model_copy(update=still | {"minibatches": 2}))
    mean = {
        name: torch.stack([n * half[name] for n, half in zip(counts, halves, strict=True)]).sum(0)
        / sum(counts)
        for name in whole[0]
    }
    assert_same(mean, whole[0])


def actions_of_minibatches(settings: RLSettings) -> list[int]:
    ppo = learner(tiny_llama(), settings)
    return [
        sum(EPISODES[row].tokens if settings.level == "token" else len(EPISODES[row].turns) for row in rows)
        for rows in ppo._minibatches(len(EPISODES), 2, 0)
    ]


def test_the_environment_s_log_probabilities_change_nothing() -> None:
    for settings in (SETTINGS, TOKENS):
        how = settings.model_copy(update={"kl_coefficient": 0.1, "entropy_coefficient": 0.1})
        batch = on_policy(tiny_llama(), EPISODES, how)
        noise = torch.where(batch.own, batch.logprobs, torch.randn(batch.ids.shape))
        clean, noisy = (
            gradients_of(how, replace(batch, logprobs=logprobs), tiny_llama(seed=1))[0]
            for logprobs in (batch.logprobs, noise)
        )
        assert all(torch.equal(noisy[name], value) for name, value in clean.items())


def test_the_ratio_is_against_the_generator_s_own_log_probabilities() -> None:
    """A generator that disagrees with the learner weights each turn by their ratio."""
    made = [episode(([1, 2], [3, 4], 5.0)), episode(([1, 5], [6], -3.0))]
    settings = SETTINGS.model_copy(update={"clip": 0.9})
    batch = on_policy(tiny_llama(), made, settings)
    shifted = replace(batch, logprobs=torch.where(batch.own, batch.logprobs - 0.1, 0.0))

    def loss(model: Any) -> torch.Tensor:
        # Returns 5 and -3: mean 1, spread 4. The ratio is e^0.1 per token.
        terms = []
        for m, advantage in zip(made, (1.0, -1.0), strict=True):
            (turn,) = distributions(model, m)
            total = torch.stack([log_prob(drawn) for drawn in turn]).sum()
            terms.append(-advantage * torch.exp(total - total.detach() + 0.1 * len(turn)))
        return torch.stack(terms).mean()

    assert_same(gradients_of(settings, shifted)[0], by_autograd(loss))
