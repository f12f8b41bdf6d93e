"""Whole studies of a model that is not nano: every stage with a Qwen2, then its trunk mapped again as one's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM

from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.tasks import get_task
from tests.e2e.conftest import REPOSITORY, Run
from tests.tiny_qwen import write_tiny_qwen

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SIZES = [
    "task.wording=paper", "rl.max_new_tokens=16", "evaluation.max_new_tokens=16", "rollout.max_model_len=512",
    "evaluation.problems=24",
]  # fmt: skip


def study(storage: Path, name: str, model: Path, *more: str) -> Run:
    ended = subprocess.run(
        [
            sys.executable, "jobs/grid.py", "tiny", f"name={name}", f"base.model={model}", f"storage={storage}",
            *SIZES, *more,
        ],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    return Run(storage / name, ended.returncode, ended.stdout + ended.stderr)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    storage = tmp_path_factory.mktemp("own")
    task = get_task("general_points", cards=3, targets=[18, 24], wording="paper")
    model = write_tiny_qwen(storage / "qwen", task)
    # Relative: processes of Ray work in other directories.
    return study(storage, "trained", Path(os.path.relpath(model, REPOSITORY)))


@pytest.fixture(scope="module")
def mapped(trained: Run) -> Run:
    where = trained.root / "checkpoints" / "sft" / "seed={seed}"
    steps = ", ".join(f"{step}: '{where}/step={step:06d}'" for step in (0, 4, 12))
    model = trained.root.parent / "qwen"
    return study(trained.root.parent, "mapped", model, f"sft.checkpoints={{{steps}}}", "controls.kinds=[]")


def test_every_stage_runs_with_a_model_that_is_not_nano(trained: Run) -> None:
    assert trained.code == 0, trained.output
    for name in ("sft", "rl", "scores", "episodes", "boundary", "spectra", "updates", "hidden", "controls"):
        assert trained.table(name).num_rows > 0, name
    assert (trained.root / "report.html").exists()


def test_the_model_stays_what_it_is_in_every_checkpoint(trained: Run) -> None:
    directories = [path.parent for path in (trained.root / "checkpoints").rglob("config.json")]
    assert {path.parts[len(trained.root.parts) + 1] for path in directories} >= {
        "base",
        "sft",
        "rl",
        "control",
    }
    template = AutoTokenizer.from_pretrained(trained.root.parent / "qwen").chat_template
    names = Checkpoint(trained.root.parent / "qwen").names()
    for directory in directories:
        assert Checkpoint(directory).names() == names, directory
        assert AutoTokenizer.from_pretrained(directory).chat_template == template
    assert type(AutoModelForCausalLM.from_pretrained(directories[-1])) is Qwen2ForCausalLM


def test_learner_and_engine_agree_on_a_tied_head(trained: Run) -> None:
    rows = [row for row in trained.table("rl").to_pylist() if row["algorithm"] == "ppo"]
    assert {row["wrapped_model"] for row in rows} == {"Qwen2ForCausalLM"}
    assert all(row["logprob_mismatch_max"] < 1e-3 for row in rows)


def test_a_trunk_that_exists_already_gets_the_same_map_without_training(trained: Run, mapped: Run) -> None:
    assert mapped.code == 0, mapped.output
    assert {row["engine"] for row in mapped.table("sft").to_pylist()} == {"taken over"}
    for column in ("step", "id_loss", "ood_loss"):
        assert mapped.table("sft")[column].to_pylist() == trained.table("sft")[column].to_pylist()
    probed = [
        {
            (row["checkpoint"], row["rule"], row["problem_id"]): row["answers"]
            for row in run.table("episodes").to_pylist()
            if row["checkpoint"].startswith("sft/")
        }
        for run in (trained, mapped)
    ]
    assert probed[0] == probed[1]
    cells = [
        {
            (row["scope"], row["seed"], row["sft_step"], row["rl_step"], row["rule"], row["ood_rl"])
            for row in run.table("boundary").to_pylist()
            if row["algorithm"] == "ppo"  # the second study has no controls
        }
        for run in (trained, mapped)
    ]
    assert cells[0] == cells[1]
