"""The preset smollm2-135m for a few real steps of every stage: a pretrained model, bfloat16, vLLM."""

from __future__ import annotations

import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM

from rlheals_ray.config import InputError
from rlheals_ray.models.smollm2 import gguf_file
from tests.e2e.conftest import REPOSITORY, Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

FEW = [
    "seeds=[0]", "name=few", "sft.steps=[0,2]", "sft.batch_size=4", "sft.micro_batch=2", "rl.from_steps=[2]",
    "rl.budgets=[0,1]", "rl.episodes=4", "rl.minibatches=1", "rl.micro_batch=2", "rl.max_attempts=2",
    "rl.max_new_tokens=64", "evaluation.problems=4", "evaluation.max_attempts=1", "evaluation.max_new_tokens=64",
    "rollout.max_model_len=640", "rollout.kv_cache_mib=256", "rollout.max_num_seqs=8",
    "spectra={roles: [q, down], k: [8]}", "edits=[]", "hidden=null", "controls.kinds=[]",
]  # fmt: skip


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Run:
    try:
        gguf_file()
    except InputError as absent:
        pytest.skip(str(absent))
    storage = tmp_path_factory.mktemp("smollm2")
    ended = subprocess.run(
        [sys.executable, "jobs/grid.py", "smollm2-135m", *FEW, f"storage={storage}"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=1000,
    )  # fmt: skip
    return Run(storage / "few", ended.returncode, ended.stdout + ended.stderr)


def test_every_stage_of_the_preset_runs(few: Run) -> None:
    assert few.code == 0, few.output
    assert {row["stage"] for row in few.table("scores").to_pylist()} == {"base", "sft", "rl"}
    for name in ("sft", "rl", "episodes", "boundary", "spectra"):
        assert few.table(name).num_rows > 0, name


def test_it_is_pretrained_and_a_few_updates_teach_it_the_answers_form(few: Run) -> None:
    losses = {row["step"]: row["id_loss"] for row in few.table("sft").to_pylist()}
    assert losses[2] < losses[0] < 3, "an untrained model of 49152 tokens would have log(49152) = 10.8"


def test_what_it_leaves_loads_as_a_llama(few: Run) -> None:
    directory = few.root / "checkpoints" / "rl" / "seed=0" / "sft_step=000002" / "rl_step=000001"
    assert AutoModelForCausalLM.from_pretrained(directory).config.num_hidden_layers == 30
