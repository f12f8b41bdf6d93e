"""A branch's state: resumed, it goes on bit for bit; a crash while writing leaves the former state."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from rlheals_ray.config import RLSettings
from rlheals_ray.rl import branch_state
from rlheals_ray.rl.branch_state import load_branch, save_branch
from rlheals_ray.rl.policy_state import current_version
from rlheals_ray.rl.ppo import PPO
from tests.learning import learner, on_policy, random_episodes, tiny_llama

SETTINGS = RLSettings(episodes=8, max_attempts=3, learning_rate=1e-2)


def update(ppo: PPO, number: int) -> dict[str, Any]:
    batch = on_policy(ppo.policy.module, random_episodes(8, 3, seed=number), SETTINGS)
    return ppo.update(batch, number)


def save(directory: Path, ppo: PPO, **progress: Any) -> None:
    modules, optimizers = {"critic": ppo.critic}, {"value_optimizer": ppo.value_optimizer}
    save_branch(directory, ppo.policy, modules, optimizers, **progress)


def load(directory: Path, ppo: PPO) -> dict[str, Any] | None:
    modules, optimizers = {"critic": ppo.critic}, {"value_optimizer": ppo.value_optimizer}
    return load_branch(directory, ppo.policy, modules, optimizers)


def weights(ppo: PPO) -> dict[str, torch.Tensor]:
    policy = {name: value.clone() for name, value in ppo.policy.named_tensors()}
    return policy | {f"critic.{name}": value.clone() for name, value in ppo.critic.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_resumed_branch_is_bit_for_bit_the_uninterrupted_one(tmp_path: Path, tied: bool) -> None:
    whole = learner(tiny_llama(tied=tied), SETTINGS)
    rows = [update(whole, 1), update(whole, 2)]
    save(tmp_path, whole, rows=rows, received={"24:id:A-4-6": 3})
    rows += [update(whole, 3), update(whole, 4)]

    resumed = learner(tiny_llama(tied=tied, seed=99), SETTINGS)
    assert load(tmp_path, resumed) == {"rows": rows[:2], "received": {"24:id:A-4-6": 3}}
    # The second update after the state tells whether the optimisers went on, too.
    assert [update(resumed, 3), update(resumed, 4)] == rows[2:]
    assert same(weights(whole), weights(resumed))


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    save(tmp_path, learner(tiny_llama(tied=True), SETTINGS))
    model = tiny_llama(tied=True, seed=1)
    load(tmp_path, learner(model, SETTINGS))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_branch_that_was_never_saved_starts_afresh(tmp_path: Path) -> None:
    ppo = learner(tiny_llama(), SETTINGS)
    before = weights(ppo)
    assert load(tmp_path / "state", ppo) is None
    assert same(weights(ppo), before)


def test_a_state_before_the_first_step_can_be_kept_too(tmp_path: Path) -> None:
    save(tmp_path, learner(tiny_llama(), SETTINGS), rows=[])
    resumed = learner(tiny_llama(seed=1), SETTINGS)
    assert load(tmp_path, resumed) == {"rows": []}
    assert same(weights(resumed), weights(learner(tiny_llama(), SETTINGS)))
    update(resumed, 1)


def test_a_crash_while_writing_leaves_the_former_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Policy, critic and progress are of one update, also when the disk fills up between their files."""
    ppo = learner(tiny_llama(), SETTINGS)
    update(ppo, 1)
    save(tmp_path, ppo, rows=[1])
    before = weights(ppo)
    update(ppo, 2)

    def half(tensors: Any, file: Path, metadata: Any) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(branch_state, "save_file", half)
        save(tmp_path, ppo, rows=[1, 2])
    assert load(tmp_path, ppo) == {"rows": [1]}
    assert same(weights(ppo), before)
    save(tmp_path, ppo, rows=[1, 3])
    assert load(tmp_path, ppo) == {"rows": [1, 3]}
    assert len(list(tmp_path.glob("version-*"))) == 1, "what the crash left was not removed"


@pytest.mark.parametrize("file", ["progress.safetensors", "rank-00000.safetensors"])
def test_a_damaged_state_is_an_error_and_not_a_fresh_start(tmp_path: Path, file: str) -> None:
    ppo = learner(tiny_llama(), SETTINGS)
    save(tmp_path, ppo)
    version = current_version(tmp_path)
    assert version is not None
    (version / file).write_bytes((version / file).read_bytes()[:100])
    with pytest.raises(SafetensorError):
        load(tmp_path, ppo)
