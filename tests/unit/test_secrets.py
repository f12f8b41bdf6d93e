"""A unit fails with a secret in its error's text: the secret reaches no file, no terminal, no table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlheals_ray.config import load_study
from rlheals_ray.grid.branch_states import branch_rows
from rlheals_ray.grid.session import Session
from rlheals_ray.grid.study_run import _log_failures, _run
from rlheals_ray.grid.trial import branch_trial
from rlheals_ray.lineage import branches
from rlheals_ray.storage import StudyFiles
from rlheals_ray.training import WorkFailed

SECRET = "hf_5up3rs3cr3tt0k3n"
PASSWORD = "n0b0dysbus1n355"
TOLD = f"401 for token {SECRET} at https://me:{PASSWORD}@hub.example/models"


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    return Session(load_study("tiny"), StudyFiles(tmp_path / "tiny"))


def told_in(root: Path) -> list[Path]:
    """The files whose bytes hold what nobody is to read; there must be files."""
    files = [path for path in root.rglob("*") if path.is_file()]
    assert files
    return [path for path in files for what in (SECRET, PASSWORD) if what.encode() in path.read_bytes()]


def test_a_stage_s_error_is_kept_without_it(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    def spectra_stage(session: Session) -> None:
        try:
            raise OSError(TOLD)
        except OSError as error:  # a cause's cause is in a traceback as well
            raise RuntimeError(f"no factors: {error}") from error

    assert not _run(session, spectra_stage)
    logs = _log_failures(session)
    kept = logs["spectra"].read_text()
    assert "RuntimeError: no factors: 401 for token *** at https://***@hub.example/models" in kept
    assert "OSError" in kept and "Traceback" in kept, "all else is kept"
    assert (session.files.root / "failures.json").exists() and session.events.path.exists()
    assert told_in(session.files.root) == []
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err + str(session.failures)


def test_a_branch_s_error_is_noted_and_raised_without_it(session: Session) -> None:
    """What a trial raises Ray Tune writes into files of its own."""

    class Training:
        def has_ended(self) -> bool:
            return False

        def run(self, work: object) -> Any:
            raise WorkFailed(f"Traceback:\n  rank 0\nOSError: {TOLD}")

    branch = next(branches(session.study))
    training: Any = Training()
    with pytest.raises(WorkFailed) as raised:
        branch_trial(
            {"branch": branch.plain()},
            study=session.study,
            files=session.files,
            pool=training,
            training=training,
        )
    assert "OSError: 401 for token ***" in str(raised.value)
    assert (
        SECRET not in str(raised.value)
        and raised.value.__cause__ is None
        and raised.value.__suppress_context__
    )
    assert list((session.files.root / "state" / "failed").rglob("*.json"))
    assert told_in(session.files.root) == []
    row = next(row for row in branch_rows(session) if row["status"] == "failed")
    assert row["cause"].endswith("OSError: 401 for token *** at https://***@hub.example/models")
