"""Which commit a result was made with: git's word, else that of who submitted or built the code; never lost again."""

import subprocess
from pathlib import Path

import pytest
import yaml

from rlheals_ray import provenance
from rlheals_ray.config import load_study
from rlheals_ray.grid import study_run
from rlheals_ray.provenance import COMMIT_VARIABLE, git_commit
from rlheals_ray.storage import StudyFiles, write_text


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the code runs from: a directory in no repository."""
    monkeypatch.setattr(provenance, "_CODE", tmp_path / "rlheals_ray")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    (tmp_path / "rlheals_ray").mkdir()
    return tmp_path / "rlheals_ray"


def test_outside_a_repository_a_submission_says_it_before_an_image_does(
    code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert git_commit() is None
    (code / "COMMIT").write_text("\n")  # an image that was built without being told
    assert git_commit() is None
    (code / "COMMIT").write_text("of the image\n")
    assert git_commit() == "of the image"
    monkeypatch.setenv(COMMIT_VARIABLE, "of the job")
    assert git_commit() == "of the job"


def test_a_repository_knows_better(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, "of some shell")
    for line in ("init -q", "-c user.name=a -c user.email=a@b commit -q --allow-empty -m a"):
        subprocess.run(["git", "-C", str(code), *line.split()], check=True)
    assert git_commit() not in (None, "of some shell")


def test_a_commit_that_is_recorded_is_never_replaced_by_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, files = load_study("tiny"), StudyFiles(tmp_path)

    def recorded(commit: str | None) -> object:
        monkeypatch.setattr(study_run, "git_commit", lambda: commit)
        study_run._record_study(study, files)
        return yaml.safe_load((tmp_path / "study.yaml").read_text())["git_commit"]

    assert [recorded(commit) for commit in (None, "a", None, "b")] == [None, "a", "a", "b"]
    write_text(tmp_path / "study.yaml", "name: [")
    assert recorded(None) is None
