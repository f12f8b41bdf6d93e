"""The plan's numbers, each against an independent count, torch's own allocation or a file that is really there."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from rlheals_ray.config import InputError, Study, load_study
from rlheals_ray.grid.calibrate import miniature
from rlheals_ray.grid.command import main
from rlheals_ray.grid.model_size import model_size
from rlheals_ray.grid.plan import schedule_lines
from rlheals_ray.grid.plan_bytes import disk
from rlheals_ray.grid.plan_counts import counts, sharing
from rlheals_ray.grid.plan_memory import learner, training_bytes
from rlheals_ray.grid.plan_time import estimates, rl_wall
from rlheals_ray.grid.rates import FILE, conditions, measured, rates_for, store_rates
from rlheals_ray.grid.resources import Resources, check_cluster, resources_of
from rlheals_ray.models.nano import save, untrained
from rlheals_ray.storage import StudyFiles, Unit, write_json, write_parquet

GIB = 2**30

STUDIES: list[list[str]] = [
    ["tiny"],
    ["nano"],
    ["tiny", "sft.recipe=[plain, lora]", "seeds=[0,1,2]", "controls.kinds=[continued_sft]"],
    ["nano", "controls.from_steps=[4,60]", "hidden=null", "rl.budgets=[5,20]"],
    ["tiny", "rl.budgets=[0]", "edits=[]"],
]


def study_of(arguments: list[str]) -> Study:
    return load_study(arguments[0], arguments[1:])


@pytest.mark.parametrize("arguments", STUDIES, ids=" ".join)
def test_counts_are_those_of_every_cell_written_out(arguments: list[str]) -> None:
    study = study_of(arguments)
    trunks = list(itertools.product(study.sft.recipes, study.seeds))
    budgets = [b for b in study.rl.budgets if b > 0]
    cells = [(t, f, b) for t in trunks for f in study.rl.from_steps for b in budgets]
    branches = {(t, f) for t, f, _ in cells}
    wanted = study.controls.from_steps or study.rl.from_steps
    control_cells = [(kind, t, f, b) for kind in study.controls.kinds for t, f, b in cells if f in wanted]
    found, cost = counts(study), sharing(study)
    assert found.trunks == len(trunks)
    assert found.sft_updates == cost.sft_updates == sum(max(study.sft.steps) for _ in trunks)
    assert found.branches == len(branches)
    assert found.rl_updates == cost.rl_updates == sum(max(budgets) for _ in branches)
    assert found.controls == len({cell[:3] for cell in control_cells})
    assert found.probes == 1 + sum(len(study.sft.steps) for _ in trunks) + len(cells)
    assert found.control_probes == len(control_cells)
    assert found.hidden == (found.probes if study.hidden else 0)
    assert (cost.sft_apart, cost.rl_apart) == (sum(f for _, f, _ in cells), sum(b for _, _, b in cells))
    assert cost.control_apart == cost.rl_apart_controls == sum(b for *_, b in control_cells)
    assert cost.sft_apart_controls == sum(f for _, _, f, _ in control_cells)


def test_a_nano_checkpoint_is_as_large_as_one_that_is_written(tmp_path: Path) -> None:
    model = untrained([18, 24], seed=0)
    save(model, [18, 24], tmp_path)
    size = model_size(load_study("nano"))
    assert size.parameters == sum(p.numel() for p in model.parameters())
    written = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size.checkpoint_bytes == pytest.approx(written, rel=0.01)
    for role, shape in size.matrices.items():
        (matrix,) = [p for name, p in model.named_parameters() if f"layers.0.{_module(role)}.weight" in name]
        assert sorted(shape) == sorted(matrix.shape)


def _module(role: str) -> str:
    return f"mlp.{role}_proj" if role in ("gate", "up", "down") else f"self_attn.{role}_proj"


def test_a_model_of_one_s_own_is_counted_by_the_headers_of_its_shards(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(30, 7), "b": torch.zeros(4)}, tmp_path / "model-1.safetensors")
    save_file({"c": torch.zeros(2, 3, 5, dtype=torch.bfloat16)}, tmp_path / "model-2.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 30}))
    assert model_size(load_study("tiny", [f"base.model={tmp_path}"])).parameters == 30 * 7 + 4 + 30


def test_adamw_s_memory_is_that_of_torch() -> None:
    """The storages themselves, of a model after one step, its gradients still there."""
    config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False)  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.arange(5)[None], labels=torch.arange(5)[None]).loss.backward()
    optimizer.step()
    moments = [m for state in optimizer.state.values() for m in state.values() if m.ndim]
    tensors = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None), *moments]
    real = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    count = sum(p.numel() for p in model.parameters())
    assert sum(training_bytes(count, "ddp", 1).values()) == real == 16 * count


@pytest.mark.parametrize(
    ("sharding", "bytes_of_4"),
    [("ddp", 20), ("fsdp2", 16 / 4), ("zero2", 4 + 16 / 4), ("zero3", 20 / 4)],
)
def test_sharding_divides_what_it_says(sharding: Any, bytes_of_4: float) -> None:
    assert sum(training_bytes(1 << 20, sharding, 4).values()) == bytes_of_4 * (1 << 20)


def test_a_frozen_reference_counts_in_float32() -> None:
    """Whatever the precision of the passes, as rl/reference.py reads it."""
    study = load_study("nano", ["rl.kl_coefficient=0.1", "rl.precision=bfloat16"])
    size = model_size(study)
    assert learner(study, size)["reference"] == 4 * size.parameters


def test_small_studies_ask_for_no_more_than_they_did() -> None:
    for name, most in (("tiny", 5.0), ("nano", 8.0)):
        assert resources_of(load_study(name)).memory_gib < most


SEVEN = {
    "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def seven(tmp_path: Path) -> Path:
    """What the plan reads of a model of seven billion parameters."""
    (tmp_path / "config.json").write_text(json.dumps(SEVEN))
    return tmp_path


def asked(model: Path, *overrides: str) -> Resources:
    return resources_of(load_study("tiny", [f"base.model={model}", *overrides]))


def test_seven_billion_parameters_take_what_is_published(seven: Path) -> None:
    """Qwen2.5-7B: 7.62 billion parameters; 16 bytes each for a worker that holds everything."""
    size = model_size(load_study("tiny", [f"base.model={seven}"]))
    assert size.parameters == pytest.approx(7.62e9, rel=0.01)
    assert asked(seven).worker_gib == pytest.approx(16 * 7.62e9 / GIB + 1.2, rel=0.02)


def test_what_does_not_fit_is_refused_with_settings_that_fit_or_ask_for_less(seven: Path) -> None:
    needed = asked(seven, "rollout.generators=2")
    with pytest.raises(InputError) as refused:
        check_cluster(needed, cpus=100, memory_bytes=24 * GIB)
    text = str(refused.value)
    assert "24.0 GiB" in text and f"{needed.memory_gib:.1f} GiB" in text and "\n" not in text
    # Neither would fit here, and what they ask for is said; sharding's rank 0 still gathers what it saves.
    assert (
        "rollout.generators=1 asks for" in text
        and "sft.sharding=fsdp2 sft.workers=4 rl.workers=4 asks for" in text
    )
    check_cluster(needed, cpus=100, memory_bytes=(needed.memory_gib + 1) * GIB)


def test_settings_that_would_fit_are_named(seven: Path) -> None:
    with pytest.raises(InputError, match=r"use rollout\.generators=1, or more nodes"):
        check_cluster(asked(seven, "rollout.generators=2"), cpus=100, memory_bytes=200 * GIB)
    check_cluster(asked(seven), cpus=100, memory_bytes=200 * GIB)


def test_a_process_that_no_node_can_hold_is_refused_though_the_sum_would_fit(seven: Path) -> None:
    needed = asked(seven)
    with pytest.raises(InputError, match=r"largest node.*a node with \d+ GiB"):
        check_cluster(needed, 100, 20 * 64 * GIB, nodes=[64 * GIB] * 20)
    check_cluster(needed, 100, 512 * GIB, nodes=[256 * GIB] * 2)


def test_weights_in_gpus_are_no_matter_of_the_nodes_memory(seven: Path) -> None:
    needed = asked(seven)
    check_cluster(needed, 100, 24 * GIB, gpus=needed.generators + needed.groups * needed.workers)


def test_keeping_less_leaves_less() -> None:
    kept = disk(load_study("nano")).kept
    assert kept["best"] < kept["boundary"] < kept["all"]


@pytest.mark.parametrize("plan", [(), ("--plan",)], ids=["run", "plan"])
def test_a_disk_that_is_too_small_is_refused_with_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plan: tuple[str, ...]
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=3 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    assert main("grid", "", ["tiny", *plan, "--storage", str(tmp_path / "runs")]) == 2
    err = capsys.readouterr().err
    assert "storage" in err and "3.0 MiB are free" in err and "--storage" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_schedule_that_is_printed_is_the_one_that_trains() -> None:
    (line,) = schedule_lines(load_study("tiny", ["sft.lr_schedule=linear", "sft.learning_rate=1e-3"]))
    assert "linear decay to 0" in line and "1: 0.001" in line and f"12: {1e-3 / 12:.3g}" in line


# --- time


RATES = {
    "base": 0.5, "sft": 0.1, "sft_rest": 20.0, "rl": 2.0, "control": 1.0, "branch_rest": 3.0, "rl_rest": 9.0,
    "probe": 4.0, "spectra": 1.0, "hidden": 0.5, "edit": 0.25, "close": 7.0,
}  # fmt: skip


def test_time_is_counts_times_rates_over_what_runs_side_by_side() -> None:
    study = load_study("nano", ["controls.kinds=[]"])  # two generators, so two groups; three trunks
    found = {stage: one.seconds for stage, one in estimates(study, RATES).items()}
    assert found["base"] == 1200 * 0.5
    assert found["sft"] == pytest.approx(2 * 400 * 0.1 + 19 * 4.0 + 20.0)  # 37 probes by two engines
    # 21 branches in two lanes: eleven in a row, since half a branch is none; then 42 probes by two engines.
    assert found["rl"] == pytest.approx(11 * (30 * 2.0 + 3.0) + 21 * 4.0 + 9.0)
    assert rl_wall(load_study("tiny", ["rl.budgets=[0]"]), {}) == 0


@pytest.mark.parametrize("seeds", range(1, 6))
@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 7])
def test_branches_take_whole_rounds(seeds: int, lanes: int) -> None:
    """Alone: ceil(branches / lanes) of them in a row. With controls: never less than the work divided by the lanes."""
    wide = [f"seeds={list(range(seeds))}", f"rollout.generators={lanes}"]
    study = load_study("nano", [*wide, "controls.kinds=[]"])
    none = {**RATES, "probe": 0.0, "rl_rest": 0.0}
    branches, branch = 7 * seeds, 30 * 2.0 + 3.0
    assert rl_wall(study, none) == pytest.approx(math.ceil(branches / min(lanes, branches)) * branch)
    beside = load_study("nano", wide)
    control = 30 * 1.0 + 3.0
    least = (branches * branch + counts(beside).controls * control) / min(lanes, branches)
    assert least - 1e-6 <= rl_wall(beside, none) <= least + branch


def test_the_last_branches_of_a_map_are_made_with_lanes_idle() -> None:
    """27 branches in 8 lanes: four rounds, though 27 / 8 is less."""
    nine = "rl.from_steps=[0,2,4,6,8,10,15,30,60]"
    study = load_study("nano", [nine, "rollout.generators=8", "controls.kinds=[]"])
    assert counts(study).branches == 27
    assert rl_wall(study, {**RATES, "probe": 0.0, "rl_rest": 0.0}) == pytest.approx(4 * (30 * 2.0 + 3.0))


def test_a_branch_costs_what_a_warm_one_costs_and_the_sweep_s_start_is_paid_once(tmp_path: Path) -> None:
    """Rates of a study whose stages took what the model says, with the first branch slowed by ten seconds."""
    study = load_study("tiny", ["rl.from_steps=[0,4,12]", "controls.kinds=[]"])
    files = StudyFiles(tmp_path)
    probes, updates, start, branch, update, probe = 3 * 2, 2, 8.0, 1.5, 0.25, 2.0
    rows = []
    for place, step in enumerate(study.rl.from_steps):
        unit = Unit(f"rl/seed=0/sft_step={step:06d}", "any")
        files.mark_done(
            unit, updates=updates, seconds=branch + updates * update + (10.0 if place == 0 else 0.0)
        )
        os.utime(tmp_path / "markers" / f"{unit.name}.json", (place, place))
        spent = {"seconds_generate": update, "seconds_learn": 0.0, "seconds_sync": 0.0}
        rows += [{"rl_step": n + 1, **spent} for n in range(updates)]
    files.mark_done(Unit("probe/sft/seed=0/step=000000", "any"), seconds=probe)
    write_parquet(tmp_path / "tables" / "rl.parquet", pa.Table.from_pylist(rows))
    took = start + 10.0 + 3 * (branch + updates * update) + probes * probe
    write_json(tmp_path / "timings.json", {"sft": 1.0, "rl": took})
    found = measured(study, tmp_path)
    assert found["rl"] == pytest.approx(update)
    assert found["branch_rest"] == pytest.approx(branch)
    assert found["rl_rest"] == pytest.approx(start + 10.0)
    assert rl_wall(study, found) == pytest.approx(took)


def test_a_rate_that_is_not_known_is_said_to_be_so() -> None:
    without = {name: rate for name, rate in RATES.items() if name != "probe"}
    found = estimates(load_study("tiny"), without)
    assert found["sft"].seconds is None and found["sft"].missing == ("probe",)
    assert found["spectra"].seconds is not None


def test_calibrated_rates_serve_studies_of_the_same_sizes_only(tmp_path: Path) -> None:
    store_rates(load_study("tiny"), tmp_path, RATES, "calibrated here")
    longer = load_study("tiny", ["sft.steps=[0,100]", "rl.from_steps=[100]", "rl.budgets=[0,50]"])
    assert {name: rate.seconds for name, rate in rates_for(longer, tmp_path / "tiny").items()} == RATES
    other = rates_for(load_study("tiny", ["sft.batch_size=32"]), tmp_path / "tiny")
    assert RATES.keys() - other.keys() == {"sft", "control"}


def test_the_miniature_has_the_study_s_sizes(tmp_path: Path) -> None:
    for arguments in STUDIES[:4]:
        study = study_of(arguments)
        small = miniature(study, tmp_path)
        assert resources_of(small) == resources_of(study)
        if len(study.sft.recipes) == 1:
            for rate in RATES:
                assert conditions(small, rate) == conditions(study, rate), rate
        assert counts(small).rl_updates <= counts(study).rl_updates


def test_a_plan_writes_nothing_and_calibrating_needs_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store_rates(load_study("tiny"), tmp_path, RATES, "calibrated here")
    before = (tmp_path / FILE).read_bytes()
    assert main("grid", "", ["tiny", "--plan", "--storage", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "time from nothing" in out and "calibrated here" in out and "controls" in out
    assert [path.name for path in tmp_path.iterdir()] == [FILE] and (tmp_path / FILE).read_bytes() == before
    assert main("grid", "", ["tiny", "--calibrate", "--storage", str(tmp_path)]) == 2
    assert "add --plan" in capsys.readouterr().err
