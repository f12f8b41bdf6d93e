"""Weights & Biases and MLflow as Ray's own callbacks write them, on real Ray Tune, where they are installed."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from rlheals_ray import tables
from rlheals_ray.config import load_study
from rlheals_ray.grid.tracking import trackers
from rlheals_ray.lineage import Branch, Trunk
from rlheals_ray.storage import StudyFiles

pytestmark = pytest.mark.slow


def branch(config: dict[str, Any]) -> None:
    """A trial that reports two updates as the sweep's do, nulls and texts included, and its end."""
    for update in (1, 2):
        row = {**dict.fromkeys(tables.RL.names), **config["branch"], "rl_step": update, "algorithm": "grpo"}
        tune.report(
            {**row, "engine": "vllm", "entropy": config["branch"]["sft_step"] + update / 4, "updates": 1}
        )
    tune.report({"updates": 0})


def swept(study_overrides: list[str], where: Path) -> None:
    study = load_study("tiny", ["tracking.tensorboard=false", *study_overrides])
    tune.Tuner(
        tune.with_resources(branch, {"CPU": 0.01}),
        param_space={"branch": tune.grid_search([{"seed": 0, "sft_step": step} for step in (4, 12)])},
        tune_config=tune.TuneConfig(
            trial_name_creator=lambda trial: (
                Branch(Trunk("plain", 0), trial.config["branch"]["sft_step"], "grpo").run
            )
        ),
        run_config=tune.RunConfig(
            name="branches", storage_path=str(where / "tune"), verbose=0,
            callbacks=list(trackers(study, StudyFiles(where))),
        ),
    ).fit()  # fmt: skip


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_has_one_run_per_branch(tmp_path: Path) -> None:
    import mlflow

    swept([f"tracking.mlflow={{tracking_uri: {tmp_path / 'mlflow'}, experiment: healing}}"], tmp_path)
    client = mlflow.MlflowClient(tracking_uri=str(tmp_path / "mlflow"))
    experiment = client.get_experiment_by_name("healing")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"grpo-seed=0-sft_step=000004", "grpo-seed=0-sft_step=000012"}
    for run in runs.values():
        step = int(run.data.params["branch/sft_step"])
        history = client.get_metric_history(run.info.run_id, "policy/entropy")
        assert [(point.step, point.value) for point in history] == [(1, step + 0.25), (2, step + 0.5)]
        assert run.data.tags["study"] == "tiny"


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline_has_one_run_per_branch_and_needs_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", os.environ.get("WANDB_MODE", ""))  # the tracker sets it: put it back
    swept(["tracking.wandb={project: healing, mode: offline}"], tmp_path)
    stored = [path.read_bytes() for path in (tmp_path / "wandb").rglob("*.wandb")]
    assert len(stored) == 2
    for step in ("000004", "000012"):
        [run] = [content for content in stored if f"grpo-seed=0-sft_step={step}".encode() in content]
        for value in (int(step) + 0.25, int(step) + 0.5):
            assert b"policy/entropy" in run and str(value).encode() in run
