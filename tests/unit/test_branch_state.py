"""A branch's state: resumed, it goes on bit for bit; a crash while writing leaves the former state."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from rlheals_ray.config import RLSettings
from rlheals_ray.rl import branch_state
from rlheals_ray.rl.branch_state import load_state, save_state
from rlheals_ray.rl.ppo import PPO
from tests.learning import learner, on_policy, random_episodes, tiny_llama

SETTINGS = RLSettings(episodes=8, max_attempts=3, learning_rate=1e-2)


def parts(ppo: PPO) -> tuple[dict[str, nn.Module], dict[str, torch.optim.Optimizer]]:
    modules = {"policy": ppo.policy.module, "critic": ppo.critic}
    return modules, {"policy_optimizer": optimizer(ppo), "value_optimizer": ppo.value_optimizer}


def optimizer(ppo: PPO) -> torch.optim.Optimizer:
    return ppo.policy._mode.optimizer


def update(ppo: PPO, number: int) -> dict[str, Any]:
    batch = on_policy(ppo.policy.module, random_episodes(8, 3, seed=number), SETTINGS)
    return ppo.update(batch, number)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_resumed_branch_is_bit_for_bit_the_uninterrupted_one(tmp_path: Path, tied: bool) -> None:
    path = tmp_path / "state" / "branch.safetensors"
    whole = learner(tiny_llama(tied=tied), SETTINGS)
    rows = [update(whole, 1), update(whole, 2)]
    save_state(path, *parts(whole), rows=rows, received={"24:id:A-4-6": 3})
    rows.append(update(whole, 3))

    resumed = learner(tiny_llama(tied=tied, seed=99), SETTINGS)
    progress = load_state(path, *parts(resumed))
    assert progress == {"rows": rows[:2], "received": {"24:id:A-4-6": 3}}
    assert update(resumed, 3) == rows[2]
    for one, other in zip(parts(whole)[0].values(), parts(resumed)[0].values(), strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name
    for one_optimizer, other_optimizer in zip(
        parts(whole)[1].values(), parts(resumed)[1].values(), strict=True
    ):
        a, b = one_optimizer.state_dict(), other_optimizer.state_dict()
        assert a["param_groups"] == b["param_groups"]
        for index, moments in a["state"].items():
            assert all(torch.equal(value, b["state"][index][key]) for key, value in moments.items())


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    path = tmp_path / "branch.safetensors"
    save_state(path, *parts(learner(tiny_llama(tied=True), SETTINGS)))
    model = tiny_llama(tied=True, seed=1)
    load_state(path, *parts(learner(model, SETTINGS)))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_branch_that_was_never_saved_starts_afresh(tmp_path: Path) -> None:
    ppo = learner(tiny_llama(), SETTINGS)
    before = {name: value.clone() for name, value in ppo.policy.module.state_dict().items()}
    assert load_state(tmp_path / "branch.safetensors", *parts(ppo)) is None
    assert all(torch.equal(value, before[name]) for name, value in ppo.policy.module.state_dict().items())


def test_a_state_before_the_first_step_can_be_kept_too(tmp_path: Path) -> None:
    path = tmp_path / "branch.safetensors"
    save_state(path, *parts(learner(tiny_llama(), SETTINGS)), rows=[])
    model = tiny_llama(seed=1)
    resumed = learner(model, SETTINGS)
    assert load_state(path, *parts(resumed)) == {"rows": []}
    assert torch.equal(model.lm_head.weight, tiny_llama().lm_head.weight)
    update(resumed, 1)


def test_the_learning_rate_is_the_study_s_and_not_the_file_s(tmp_path: Path) -> None:
    path = tmp_path / "branch.safetensors"
    ppo = learner(tiny_llama(), SETTINGS)
    update(ppo, 1)
    save_state(path, *parts(ppo))
    other = learner(tiny_llama(), SETTINGS.model_copy(update={"learning_rate": 5e-3}))
    load_state(path, *parts(other))
    assert optimizer(other).param_groups[0]["lr"] == 5e-3


def test_a_crash_while_writing_leaves_the_former_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "branch.safetensors"
    ppo = learner(tiny_llama(), SETTINGS)
    save_state(path, *parts(ppo), rows=[1])
    before = path.read_bytes()

    def half(tensors: Any, file: Path, metadata: Any) -> None:
        file.write_bytes(before[: len(before) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(branch_state, "save_file", half)
    with pytest.raises(OSError, match="No space"):
        save_state(path, *parts(ppo), rows=[1, 2])
    assert path.read_bytes() == before
    assert load_state(path, *parts(ppo)) == {"rows": [1]}


def test_a_damaged_state_is_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    path = tmp_path / "branch.safetensors"
    ppo = learner(tiny_llama(), SETTINGS)
    save_state(path, *parts(ppo))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SafetensorError):
        load_state(path, *parts(ppo))
