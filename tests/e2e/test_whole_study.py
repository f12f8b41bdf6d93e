"""One whole study on real Ray, vLLM, TRL and parquet, from an empty directory to the report."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlheals_ray.config import load_study
from rlheals_ray.evaluation.probe import probe_problems
from rlheals_ray.lineage import CONTROLS
from rlheals_ray.tables import SCHEMAS
from rlheals_ray.tasks import get_task
from tests.e2e.conftest import OVERRIDES, REPOSITORY, STUDY, Run, command, run

pytestmark = pytest.mark.timeout(400)


def test_it_ends_well_and_says_where_the_time_went_and_where_the_report_is(whole: Run) -> None:
    assert whole.code == 0, whole.output
    assert "Where the time went" in whole.output
    assert str(whole.root / "report.html") in whole.output.replace("\n", "")
    assert json.loads((whole.root / "failures.json").read_text()) == {}


def test_none_of_its_processes_accepts_connections_from_another_machine(whole: Run) -> None:
    """Ray's ports run code for whoever reaches them, and a private cluster asks for no token."""
    assert whole.listened, "none was seen, which cannot be: Ray's processes speak over sockets"
    reachable = {
        title.partition(".")[0]
        for address, title in whole.listened
        if not ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback
    }
    # torch's rendezvous of a worker group binds every interface, without a choice; it holds addresses, no code.
    assert reachable <= {"ray::RayTrainWorker"}


def test_every_table_is_there_with_its_columns_and_rows(whole: Run) -> None:
    study = load_study(STUDY, OVERRIDES)
    checkpoints = 1 + len(study.sft.steps) + 2 * len(study.rl.from_steps)
    edits = whole.table("edits").to_pylist()
    edited, groups = len({row["edit"] for row in edits}), len({row["group"] for row in edits})
    # Three edits (UV of all directions; two doses of a rotation), each with four controls, the swap in common.
    assert (groups, edited) in ((0, 0), (3, 13)), (
        "edits with their controls, or the peak was the latest checkpoint"
    )
    budgets = [budget for budget in study.rl.budgets if budget]
    states = whole.table("branches").to_pylist()
    # A control ends early where the checkpoint solves none of its own samples.
    controls = sum(
        budget <= row["rl_step"] for row in states if row["algorithm"] in CONTROLS for budget in budgets
    )
    assert len(states) == 3 * len(study.rl.from_steps)
    assert controls >= len(study.rl.from_steps) * len(budgets), "SFT can always go on"
    rows = {
        "sft": len(study.sft.steps),
        "rl": len(study.rl.from_steps) * study.rl.budgets[-1] + controls,
        "scores": 2 * (checkpoints + controls + edited),
        "episodes": 2 * study.evaluation.problems * (checkpoints + controls + edited),
        # per seed and pooled, both rules, every cell
        "boundary": 2 * 2 * (len(study.rl.from_steps) * len(study.rl.budgets) + controls),
        "controls": 2 * 2 * controls,
        "edges": 2 * len(budgets),
        "recommendation": len(study.sft.steps) + len(study.rl.from_steps) * len(budgets),
        "edits": 2 * groups * 5,
        "shift": 2 * checkpoints,
    }
    for name, schema in SCHEMAS.items():
        table = whole.table(name)
        assert table.schema.names == schema.names
        if name in rows:
            assert table.num_rows == rows[name], name
    for name in ("spectra", "updates", "hidden", "similarity", "predictors"):
        assert whole.table(name).num_rows > 0, name


def test_no_row_is_double(whole: Run) -> None:
    keys = {
        "sft": ["seed", "step"],
        "rl": ["algorithm", "seed", "sft_step", "rl_step"],
        "branches": ["algorithm", "seed", "sft_step"],
        "episodes": ["checkpoint", "rule", "problem_id"],
        "scores": ["checkpoint", "rule"],
        "spectra": ["a", "b", "matrix", "k"],
        "updates": ["a", "b", "c", "matrix", "k"],
        "edits": ["group", "kind", "rule"],
        "hidden": ["checkpoint", "rule", "layer"],
        "similarity": ["a", "b", "rule", "layer"],
        "shift": ["checkpoint", "rule"],
    }
    for name, key in keys.items():
        rows = [tuple(row[column] for column in key) for row in whole.table(name).to_pylist()]
        assert len(rows) == len(set(rows)), name


def test_the_rows_say_which_engine_model_and_ray_train_run_made_them(whole: Run) -> None:
    sft, rl, scores = (whole.table(name).to_pylist() for name in ("sft", "rl", "scores"))
    assert {row["engine"] for row in sft} == {"trl.SFTTrainer"}
    learnt = [row for row in rl if row["algorithm"] == "ppo"]
    assert {row["engine"] for row in learnt} == {"vllm"} == {row["engine"] for row in scores}
    assert {row["wrapped_model"] for row in sft} == {"DistributedDataParallel"}
    assert {row["wrapped_model"] for row in learnt} == {"LlamaForCausalLM"}
    controls = {(row["engine"], row["wrapped_model"]) for row in rl if row["algorithm"] in CONTROLS}
    assert controls == {("trl.SFTTrainer", "DistributedDataParallel")}
    # Both stages ran inside the same warm Ray Train run, whose storage is there.
    assert {row["train_run"] for row in sft + rl} == {f"{STUDY}-0"}
    assert (whole.root / "train" / f"{STUDY}-0").is_dir()


def test_the_learner_and_the_engine_agree_on_log_probabilities(whole: Run) -> None:
    for row in whole.table("rl").to_pylist():
        if row["algorithm"] == "ppo":
            assert row["logprob_mismatch_max"] < 1e-3
            assert row["weight_lag"] == 0


def test_a_control_had_the_compute_of_its_branch_to_half_an_update(whole: Run) -> None:
    rows = whole.table("branches").to_pylist()
    spent = {(row["algorithm"], row["sft_step"]): row for row in rows}
    for (algorithm, step), row in spent.items():
        if algorithm == "continued_sft":
            update = row["compute"] / row["sft_updates"]
            assert abs(row["compute"] - spent["ppo", step]["compute"]) <= 0.6 * update


def test_tensorboard_reads_one_run_per_branch_with_the_numbers_of_the_table(whole: Run) -> None:
    read = EventMultiplexer().AddRunsFromDirectory(str(whole.root / "tune")).Reload()
    every = whole.table("rl").to_pylist()
    rows = [row for row in every if row["algorithm"] == "ppo"]
    branches = {row["sft_step"]: f"tensorboard/ppo-seed=0-sft_step={row['sft_step']:06d}" for row in rows}
    runs = {f"tensorboard/{row['algorithm']}-seed=0-sft_step={row['sft_step']:06d}" for row in every}
    assert set(read.Runs()) == {*runs, "tensorboard/sft-seed=0"}
    for tag, column in (("outcome/reward_mean", "reward_mean"), ("policy/entropy", "entropy")):
        for step, branch in branches.items():
            shown = {event.step: event.value for event in read.Scalars(branch, tag)}
            known = {row["rl_step"]: row[column] for row in rows if row["sft_step"] == step}
            assert shown == pytest.approx(known, rel=1e-6)  # events hold float32


def test_neither_the_ood_rule_nor_a_probed_problem_ever_reached_a_training_worker(whole: Run) -> None:
    study = load_study(STUDY, OVERRIDES)
    task = get_task(study.task.name, **study.task.options)
    probed = {p.group for p in probe_problems(task, study.evaluation, "id")}
    records = sorted((whole.root / "received").rglob("*.parquet"))
    trained = [row for row in whole.table("branches").to_pylist() if row["rl_step"]]
    assert len(records) == len(study.seeds) + len(trained), "one record per trunk, branch and control"
    for record in records:
        rows = pq.read_table(record).to_pylist()
        assert rows
        for row in rows:
            assert row["rule"] == "id"
            assert "rule J 10 Q 10 K 10" in row["prompt"]
            assert row["group"] not in probed
    sft = pq.read_table(whole.root / "received" / "sft" / "seed=0.parquet")
    assert sum(sft["count"].to_pylist()) == study.sft.steps[-1] * study.sft.batch_size


def test_checkpoints_are_hugging_face_directories_of_safetensors(whole: Run) -> None:
    directories = sorted(path.parent for path in (whole.root / "checkpoints").rglob("config.json"))
    names = {str(d.relative_to(whole.root / "checkpoints")) for d in directories}
    assert {"base", "sft/seed=0/step=000080", "rl/seed=0/sft_step=000080/rl_step=000010"} <= names
    for directory in directories:
        assert not list(directory.glob("*.bin")) + list(directory.glob("*.pt"))
    AutoModelForCausalLM.from_pretrained(directories[-1])
    assert AutoTokenizer.from_pretrained(directories[-1]).chat_template


def test_running_it_again_repeats_nothing(whole: Run) -> None:
    tables = {path: path.read_bytes() for path in (whole.root / "tables").glob("*.parquet")}
    checkpoints = {p: p.stat().st_mtime_ns for p in (whole.root / "checkpoints").rglob("*.safetensors")}
    again = run(whole.root.parent)
    assert again.code == 0, again.output
    assert {path: path.read_bytes() for path in tables} == tables
    assert {path: path.stat().st_mtime_ns for path in checkpoints} == checkpoints


def test_the_plan_tells_what_is_done_and_writes_nothing(whole: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.root.rglob("*")}
    planned = run(whole.root.parent, "--plan")
    assert planned.code == 0, planned.output
    assert "stages of" in planned.output and "asks for" in planned.output
    assert {path: path.stat().st_mtime_ns for path in whole.root.rglob("*")} == before


def test_the_command_is_the_one_in_the_readme() -> None:
    assert command(Path("x"))[1:3] == ["jobs/grid.py", "tiny"]
    assert "python jobs/grid.py nano" in (REPOSITORY / "README.md").read_text()
