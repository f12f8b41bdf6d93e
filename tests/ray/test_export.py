"""The exported checkpoint: a Hugging Face directory that vLLM loads and that answers as the checkpoint does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rlheals_ray import tables
from rlheals_ray.grid.export import export_stage
from rlheals_ray.grid.retention import NOTE
from rlheals_ray.grid.session import Session
from rlheals_ray.rollout.episode import EpisodeRequest, Sampling, Weights
from rlheals_ray.rollout.load import CheckpointLoad
from rlheals_ray.storage import StudyFiles, Unit
from rlheals_ray.tasks import get_task

if TYPE_CHECKING:
    from tests.toy_lab import Lab

CHECKPOINT = "rl/seed=0/sft_step=000000/rl_step=000064"


def recommend(files: StudyFiles, checkpoint: str | None, chosen: bool = True) -> None:
    row = {
        **dict.fromkeys(tables.RECOMMENDATION.names), "rule": "ood", "recipe": "plain", "algorithm": "ppo",
        "sft_step": 0, "rl_step": 64, "seeds": 1, "chosen": chosen, "eligible": True, "p_best": 0.83, "ood": 0.5,
        "ood_low": 0.4, "ood_high": 0.6, "id": 0.9, "id_low": 0.85, "id_high": 0.95, "id_floor": 0.8,
        "checkpoint": checkpoint,
    }  # fmt: skip
    files.write_table("recommendation", tables.table("recommendation", [row]))


def answers(lab: Lab, directory: Path, name: str) -> Sequence[str]:
    from tests.toy_lab import toy_study

    task = get_task(toy_study("export", lab.model).task.name)
    requests = [
        EpisodeRequest(p, ("export", i)) for i, p in enumerate(task.problems("id", "train", 8, seed=0))
    ]
    rollout = lab.pool.run(CheckpointLoad(str(directory)), requests, Sampling(1.0, 2, 2), Weights(name))
    return [turn.answer for episode in rollout.episodes for turn in episode.turns]


@pytest.fixture
def session(lab: Lab, tmp_path: Path) -> Session:
    from tests.toy_lab import toy_study

    files = StudyFiles(tmp_path / "export")
    shutil.copytree(lab.model, files.checkpoint(CHECKPOINT))
    files.stamp(files.checkpoint(CHECKPOINT), Unit("rl/seed=0/sft_step=000000", "f"))
    recommend(files, CHECKPOINT)
    return Session(toy_study("export", lab.model), files)


def test_vllm_answers_from_the_exported_directory_as_from_the_checkpoint(lab: Lab, session: Session) -> None:
    export_stage(session)
    out = session.files.root / "recommended"
    made = answers(lab, out, "exported")
    assert made == answers(lab, session.files.checkpoint(CHECKPOINT), "checkpoint") and len(made) >= 8
    weights = next(out.glob("*.safetensors"))
    assert os.stat(weights).st_nlink > 1, "no second copy of the weights"
    card = (out / "README.md").read_text()
    for told in (
        CHECKPOINT,
        "0.500",
        "0.400 to 0.600",
        "0.900",
        "83 %",
        "64 updates of ppo",
        "no SFT",
        "`export`",
    ):
        assert told in card, told


def test_an_export_follows_the_table(session: Session) -> None:
    out = session.files.root / "recommended"
    export_stage(session)
    recommend(session.files, None, chosen=False)
    export_stage(session)
    assert not out.exists(), "nothing is recommended any more"


def test_what_was_exported_stays_when_the_checkpoint_is_removed_and_another_is_not_invented(
    session: Session,
) -> None:
    out, source = session.files.root / "recommended", session.files.checkpoint(CHECKPOINT)
    export_stage(session)
    (source / NOTE).write_text("removed; delete the marker")
    for weights in source.glob("*.safetensors"):
        weights.unlink()
    export_stage(session)
    assert list(out.glob("*.safetensors"))
    shutil.rmtree(out)
    with pytest.raises(RuntimeError, match="delete the marker"):
        export_stage(session)
