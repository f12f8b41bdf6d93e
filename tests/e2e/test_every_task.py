"""The whole pipeline on every task: a model that knows nothing learns nothing, and the report says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlheals_ray.tasks import _TASKS, get_task, ood_rules
from tests.e2e.conftest import REPOSITORY, Run
from tests.tiny_qwen import write_tiny_qwen

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TASKS: dict[str, dict[str, Any]] = {
    "general_points": {
        "name": "general_points", "cards": 3, "targets": [18, 24], "wording": "paper",
        "ood": ["faces", "target", "wording"], "ood_targets": [12],
    },
    "matrix_rank": {"name": "matrix_rank"},
    "determinant": {"name": "determinant"},
    "navigation": {"name": "navigation", "turns": [2, 3]},
    "chain_sum": {
        "name": "reasoning_gym", "dataset": "chain_sum", "id": {"max_terms": 3},
        "ood": {"min_terms": 4, "max_terms": 6},
    },
    "word_sorting": {
        "name": "reasoning_gym", "dataset": "word_sorting", "id": {"min_words": 2, "max_words": 3},
        "ood": {"min_words": 5, "max_words": 6},
    },
}  # fmt: skip
SIZES = [
    "rl.max_new_tokens=24", "evaluation.max_new_tokens=24", "rollout.max_model_len=1024", "evaluation.problems=24",
    "controls.kinds=[rejection_sft]",
]  # fmt: skip
MORE = {"navigation": ["rollout.max_model_len=1536", "rl.max_attempts=2", "evaluation.max_attempts=2"]}
"""Step by step, as published: of up to 13 answers, two tries at each."""
POSITIONS = 2048


def test_every_registered_task_is_studied_here() -> None:
    assert {options["name"] for options in TASKS.values()} == set(_TASKS)


@pytest.fixture(params=list(TASKS))
def studied(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Run]:
    declared = TASKS[request.param]
    task = get_task(**declared)
    model = write_tiny_qwen(tmp_path / "model", task, POSITIONS)
    ended = subprocess.run(
        [
            sys.executable, "jobs/grid.py", "tiny", f"task={json.dumps(declared)}", f"base.model={model}",
            f"storage={tmp_path}", *SIZES, *MORE.get(request.param, []),
        ],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    return request.param, Run(tmp_path / "tiny", ended.returncode, ended.stdout + ended.stderr)


def test_a_study_of_the_task_runs_to_its_end_and_draws_no_boundary_where_nothing_was_learnt(
    studied: tuple[str, Run],
) -> None:
    name, run = studied
    assert run.code == 0, run.output
    rules = set(ood_rules(get_task(**TASKS[name])))
    assert set(run.table("scores")["rule"].to_pylist()) == {"id", *rules}
    assert {row["engine"] for row in run.table("sft").to_pylist()} == {"trl.SFTTrainer"}
    assert {row["wrapped_model"] for row in run.table("rl").to_pylist()} == {"Qwen2ForCausalLM"}
    boundary = [row for row in run.table("boundary").to_pylist() if row["rl_step"] > 0]
    assert {row["rule"] for row in boundary} == {"id", *rules}
    # By the tables alone, for a task so easy that guesses solve some of it: nothing heals where nothing is solved.
    for row in boundary:
        if row["ood_sft"] == row["ood_rl"] == 0:
            assert row["verdict"] == "unclear"
    edges = run.table("edges").to_pylist()
    assert {row["rule"] for row in edges} <= rules
    if name == "navigation":
        episodes = run.table("episodes").to_pylist()
        assert {reward for episode in episodes for reward in episode["rewards"]} <= {1.0, -1.0, -1.5}
        assert all(episode["attempts"] >= 2 or episode["solved_at"] for episode in episodes)
    page = (run.root / "report.html").read_text()
    if len(rules) > 1:
        assert "Does it depend on the OOD rule?" in page
    solved = any(run.table("scores")["acc_1"].to_pylist())
    assert ("Nothing was learnt" in page) == (not solved)
    if not any(row["verdict"] == "heals" for row in boundary):
        assert "no recovery boundary" in page.lower()
