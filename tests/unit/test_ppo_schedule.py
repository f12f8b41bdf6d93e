"""The learning rate of each update: that of transformers' schedulers."""

import pytest
import torch
import transformers

from rlheals_ray.config import RLSettings
from rlheals_ray.rl.schedule import learning_rate
from tests.learning import learner, on_policy, random_episodes, tiny_llama


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 4])
def test_every_update_has_the_rate_of_transformers_scheduler(name: str, warmup: int) -> None:
    settings = RLSettings.model_validate(
        {"learning_rate": 2e-4, "lr_schedule": name, "warmup_steps": warmup, "budgets": [0, 10, 20]}
    )
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=2e-4)
    theirs = "constant_with_warmup" if name == "constant" else name
    scheduler = transformers.get_scheduler(theirs, optimizer, warmup, num_training_steps=20)
    for update in range(1, 21):
        assert learning_rate(settings, update) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12, abs=0)
        optimizer.step()
        scheduler.step()


def test_without_a_schedule_the_rate_is_the_setting_itself() -> None:
    assert [learning_rate(RLSettings(learning_rate=3e-4), update) for update in (1, 2, 30)] == [3e-4] * 3


def test_the_policy_steps_at_the_rate_of_its_update_wherever_it_begins() -> None:
    """A resumed branch needs nothing but the number of its update."""
    settings = RLSettings(episodes=4, lr_schedule="linear", learning_rate=1e-2, budgets=(0, 4))
    model = tiny_llama()
    metrics = learner(model, settings).update(on_policy(model, random_episodes(4, 2), settings), 3)
    assert metrics["learning_rate"] == pytest.approx(0.5e-2)
    # Adam's first step moves a weight by the learning rate.
    moved = (model.lm_head.weight - tiny_llama().lm_head.weight).abs().max().item()
    assert moved == pytest.approx(0.5e-2, rel=1e-2)
