"""A study of one's own: a task in the directory where the job is started, and a model in another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlheals_ray.config import InputError, Study
from rlheals_ray.grid.preflight import preflight
from tests.toy_lab import toy_study
from tests.toy_model import write_toy_model

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("own") / "model")


def at(storage: Path, study: Study) -> Study:
    return study.model_copy(update={"storage": str(storage)})


def test_preflight_accepts_ones_own_task_with_ones_own_model(model: Path, tmp_path: Path) -> None:
    files = preflight(at(tmp_path, toy_study("own", model)))
    assert files.root == tmp_path / "own"
    assert not files.root.exists(), "preflight wrote something"


def test_preflight_measures_the_context_in_the_models_own_tokens(model: Path, tmp_path: Path) -> None:
    study = at(tmp_path, toy_study("own", model, max_attempts=8, max_new_tokens=6))
    with pytest.raises(InputError, match=r"rl\.max_attempts \(got 8\): .*use rl\.max_attempts=\d"):
        preflight(study)


def test_the_nano_model_is_refused_for_a_task_whose_words_it_does_not_know(
    model: Path, tmp_path: Path
) -> None:
    study = at(tmp_path, toy_study("own", model))
    nano = study.model_copy(update={"base": study.base.model_copy(update={"model": "nano"})})
    with pytest.raises(InputError, match=r"base\.model .*nano.*task 'tests\.toy_task:ToyTask'"):
        preflight(nano)


@pytest.mark.parametrize(("task", "code"), [("own_task:OwnTask", 0), ("own_tusk:OwnTask", 2)])
def test_a_job_finds_the_task_in_the_directory_that_it_is_started_in(
    model: Path, tmp_path: Path, task: str, code: int
) -> None:
    source = (REPOSITORY / "tests" / "toy_task.py").read_text().replace("ToyTask", "OwnTask")
    (tmp_path / "own_task.py").write_text(source)
    study = toy_study("own", model).model_dump(mode="json") | {"task": {"name": task}, "storage": "runs"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(study))
    job = subprocess.run(
        [sys.executable, REPOSITORY / "jobs" / "grid.py", "own.yaml", "--plan"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert job.returncode == code, job.stderr
    assert "Traceback" not in job.stderr
    if code:
        assert "task.name (got 'own_tusk:OwnTask'): there is no module own_tusk" in job.stderr
    assert not (tmp_path / "runs").exists()
