"""Settings of SFT, of the controls and of what is kept: what is accepted, and what is refused with the remedy."""

import pytest

from rlheals_ray.config import InputError, Study, load_study
from rlheals_ray.lineage import branches, controls, trunks


def study(*overrides: str) -> Study:
    return load_study("nano", overrides)


def test_one_recipe_is_not_named_in_paths_and_several_are() -> None:
    assert [trunk.checkpoint(4) for trunk in trunks(study("seeds=[0]"))] == ["sft/seed=0/step=000004"]
    both = study("seeds=[1]", "sft.recipe=[plain, lora]")
    assert [trunk.checkpoint(4) for trunk in trunks(both)] == [
        "sft/recipe=plain/seed=1/step=000004",
        "sft/recipe=lora/seed=1/step=000004",
    ]
    first = next(branches(both))
    assert first.checkpoint(30) == "rl/recipe=plain/seed=1/sft_step=000000/rl_step=000030"


def test_a_control_stands_beside_its_branch_and_is_named_by_its_kind() -> None:
    few = study("seeds=[0]", "controls={kinds: [rejection_sft], from_steps: [15]}")
    assert [control.checkpoint(30) for control in controls(few)] == [
        "control/algorithm=rejection_sft/seed=0/sft_step=000015/rl_step=000030"
    ]
    assert not list(controls(study("controls.kinds=[]")))
    assert not list(controls(study("rl.budgets=[0]", "edits=[]"))), "without RL there is nothing to control"


def test_every_branch_has_both_controls_unless_told_otherwise() -> None:
    default = Study()
    beside = {(control.trunk, control.sft_step) for control in controls(default)}
    assert beside == {(branch.trunk, branch.sft_step) for branch in branches(default)}
    assert len(list(controls(default))) == 2 * len(beside)


def test_a_trunk_that_exists_already_says_which_steps_there_are() -> None:
    taken = study("sft.checkpoints={300: /models/b, 120: /models/a}", "rl.from_steps=[120]")
    assert taken.sft.steps == (120, 300)


@pytest.mark.parametrize(
    ("override", "field", "remedy"),
    [
        ("sft.recipe=dpo", "sft.recipe", "plain"),
        ("sft.recipe=[plain, plain]", "sft.recipe", "write ['plain']"),
        ("sft.checkpoints={}", "sft.checkpoints", "{120: /models/sft-120}"),
        ("sft.checkpoints={-1: /m}", "sft.checkpoints", "counted from 0"),
        ("sft={warmup_steps: 10, warmup_ratio: 0.1}", "sft.warmup_ratio", "set one of them to 0"),
        ("sft.warmup_ratio=1.0", "sft.warmup_ratio", "less than 1"),
        ("sft.steps=[0]", "sft.steps", "end with a step above 0"),
        ("controls.from_steps=[6]", "controls.from_steps", "[0, 4, 15, 30, 60, 120, 400]"),
        ("controls.kinds=[more_sft]", "controls.kinds", "continued_sft"),
        ("keep=some", "keep", "boundary"),
        ("recommendation.id_floor=1.5", "recommendation.id_floor", "less than or equal to 1"),
        ("rl.early_stop={updates: 0}", "rl.early_stop.updates", "greater than 0"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(override: str, field: str, remedy: str) -> None:
    with pytest.raises(InputError) as error:
        study(override)
    assert field in str(error.value)
    assert remedy in str(error.value)
