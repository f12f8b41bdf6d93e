"""What is collected of checkpoints: files that know what they were made from, pairs, and rows of the shift table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rlheals_ray.config import load_study
from rlheals_ray.evaluation.asked import Asked
from rlheals_ray.evaluation.collected import (
    Order,
    collect,
    fingerprint_of,
    layer_count,
    layer_states,
    numbers,
)
from rlheals_ray.grid.hidden_tables import Places, compared_pairs, shift_columns
from rlheals_ray.grid.units import StudyUnits
from rlheals_ray.lineage import Trunk
from tests.toy_model import write_toy_model

ASKED = [
    Asked("id", "p0", "g0", [1, 3, 7, 4], [[10, 2], [11, 12, 2]]),
    Asked("id", "p1", "g1", [1, 3, 8, 4], [[12], [2]]),
    Asked("ood", "p2", "g1", [1, 3, 9, 9, 4], [[9, 8, 7], [7, 2]]),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [str(write_toy_model(folder / str(seed), seed=seed, layers=2)) for seed in range(2)]


def run(orders: list[Order], base: str) -> list[str]:
    return list(collect(orders, base, ASKED, last_tokens=2))


# --- files


def test_a_file_holds_states_distributions_and_kl_of_every_prompt(models: list[str], tmp_path: Path) -> None:
    base, other = (tmp_path / "sft" / f"{name}.safetensors" for name in ("base", "other"))
    orders = [Order(models[0], str(base), "a"), Order(models[1], str(other), "b")]
    assert run(orders, models[0]) == ["", ""]
    assert (fingerprint_of(base), fingerprint_of(other)) == ("a", "b")
    assert layer_count(base) == 3
    states = load_file(other)["states"]
    assert states.shape == (3, 3, 64)
    np.testing.assert_array_equal(layer_states([base, other], 1, slice(1, 3))[1], states[1, 1:3])
    assert numbers(base, "kl").shape == (3, 2)
    assert (numbers(base, "kl") == 0).all(), "the base is at no distance from itself"
    assert (numbers(other, "kl") > 0).all()
    assert len(list(tmp_path.rglob("*.*"))) == 2, "no temporary file is left"


def test_what_is_there_is_not_made_again_and_what_is_damaged_is(models: list[str], tmp_path: Path) -> None:
    orders = [Order(model, str(tmp_path / f"{i}.safetensors"), f"{i}") for i, model in enumerate(models)]
    run(orders, models[0])
    first, second = (Path(order.out) for order in orders)
    before, good = first.stat().st_mtime_ns, second.read_bytes()
    second.write_bytes(good[: len(good) // 2])
    assert fingerprint_of(second) is None
    assert run(orders, models[0]) == ["", ""]
    assert first.stat().st_mtime_ns == before
    assert second.read_bytes() == good
    assert run([orders[0]._replace(fingerprint="changed")], models[0]) == [""]
    assert fingerprint_of(first) == "changed"


def test_one_checkpoint_s_failure_is_its_own(models: list[str], tmp_path: Path) -> None:
    diverged = write_toy_model(tmp_path / "diverged", seed=3)
    tensors = load_file(diverged / "model.safetensors")
    tensors["model.norm.weight"][5] = torch.nan
    save_file(tensors, diverged / "model.safetensors", {"format": "pt"})
    directories = [str(tmp_path / "absent"), str(diverged), models[1]]
    orders = [Order(d, str(tmp_path / f"{i}.safetensors"), "x") for i, d in enumerate(directories)]
    absent, not_finite, good = run(orders, models[0])
    assert str(tmp_path / "absent") in absent
    assert "not finite" in not_finite and str(diverged) in not_finite
    assert good == ""
    assert [Path(order.out).exists() for order in orders] == [False, False, True]


# --- rows


def test_shift_is_of_whole_answers_over_problems_and_of_all_their_tokens(tmp_path: Path) -> None:
    file = tmp_path / "made.safetensors"
    tensors = {
        "kl": torch.tensor([[1.0, 3.0], [0.0, 4.0], [9.0, 9.0]], dtype=torch.float64),
        "entropy": torch.tensor([0.5, 1.5, 7.0], dtype=torch.float64),
        "margin": torch.tensor([2.0, 4.0, 7.0], dtype=torch.float64),
    }
    save_file(tensors, file)
    row = shift_columns(file, slice(0, 2), ASKED)
    assert (row["n"], row["tokens"], row["entropy"], row["margin"]) == (2, 7, 1.0, 3.0)
    assert row["forward_kl"] == 2.0
    assert row["forward_kl_token"] == pytest.approx(8 / 7)
    assert row["forward_kl_low"] == row["forward_kl_high"] == 2.0, "both problems have the mean of the two"


def test_the_interval_of_shift_resamples_clusters(tmp_path: Path) -> None:
    problems = [Asked("id", f"p{i}", f"g{i // 10}", [1], [[2]]) for i in range(100)]
    values = np.repeat(np.random.default_rng(0).normal(10, 2, 10), 10)  # ten problems of a cluster are one
    column = torch.tensor(values)
    tensors = {"kl": column[:, None], "entropy": column.clone(), "margin": column.clone()}
    save_file(tensors, tmp_path / "x.safetensors")
    row = shift_columns(tmp_path / "x.safetensors", slice(0, 100), problems)
    half = (row["forward_kl_high"] - row["forward_kl_low"]) / 2
    assert half == pytest.approx(1.96 * values[::10].std() / np.sqrt(10), rel=0.15)
    assert row["forward_kl_low"] < row["forward_kl"] < row["forward_kl_high"]


# --- which checkpoints


def test_pairs_are_from_the_base_from_the_peak_and_along_branches() -> None:
    study = load_study("nano", ["seeds=[0,1]", "rl.from_steps=[0,8]", "rl.budgets=[0,15,30]", "edits=[]"])
    probes = [p for p in StudyUnits(study).probes() if p.checkpoint != "sft/seed=1/step=000010"]
    pairs = compared_pairs(study, Places(probes, [], {Trunk("plain", 0): 8}))
    named = [(trunk.seed, probes[a].checkpoint, probes[b].checkpoint) for trunk, a, b in pairs]
    assert len(set(named)) == len(named)
    members = [p.checkpoint for p in probes if p.seed == 0]
    assert len(members) == 12 + 2 * 2
    peak = "sft/seed=0/step=000008"
    expected = {(0, "base", other) for other in members}
    expected |= {(0, peak, other) for other in members if other != peak}
    expected |= {(0, "sft/seed=0/step=000000", "rl/seed=0/sft_step=000000/rl_step=000030")}
    assert {pair for pair in named if pair[0] == 0} == expected
    ones = [p.checkpoint for p in probes if p.seed == 1]
    assert len(ones) == 15, "the one that was not collected is left out"
    expected = {(1, "base", other) for other in ones}
    expected |= {
        (1, f"sft/seed=1/step={s:06d}", f"rl/seed=1/sft_step={s:06d}/rl_step=000030") for s in (0, 8)
    }
    assert {pair for pair in named if pair[0] == 1} == expected, "no peak is known of this seed"


def test_fingerprints_follow_what_the_states_depend_on() -> None:
    def units(*overrides: str, peaks: dict[int, int] | None = None) -> tuple[str, str, str]:
        units = StudyUnits(load_study("nano", ["seeds=[0]", "edits=[]", *overrides]))
        states = [units.hidden_states(probe) for probe in units.probes()]
        assert (
            len({unit.fingerprint for unit in states}) == len({unit.name for unit in states}) == len(states)
        )
        whole = units.hidden(states, {Trunk("plain", seed): step for seed, step in (peaks or {0: 8}).items()})
        return units.hidden_answers().fingerprint, states[-1].fingerprint, whole.fingerprint

    before = units()

    def changed(*overrides: str, peaks: dict[int, int] | None = None) -> list[bool]:
        after = units(*overrides, peaks=peaks)
        return [a != b for a, b in zip(before, after, strict=True)]

    assert changed() == [False] * 3
    assert changed(peaks={0: 10}) == [False, False, True]
    assert changed("rl.learning_rate=1e-5") == [False, True, True]
    assert changed("hidden.last_tokens=3") == [False, True, True]
    for override in ("hidden.problems=64", "hidden.samples=2", "evaluation.seed=1", "base.seed=1"):
        assert changed(override) == [True] * 3, override
    assert changed("evaluation.problems=400", "rollout.generators=1") == [False] * 3
