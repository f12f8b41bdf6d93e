"""A study that is worked on is refused a second time before nodes are asked for, which somebody pays. No Ray starts."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlheals_ray.folder import Folder
from rlheals_ray.grid.command import main
from rlheals_ray.grid.session import Session
from rlheals_ray.mirror_remote import FILE
from rlheals_ray.storage import StudyFiles


@pytest.fixture(autouse=True)
def no_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def asked(*_: object, **__: object) -> None:
        pytest.fail("nodes were asked for")

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Session, "check_resources", asked)
    yield
    signal.signal(signal.SIGTERM, handler)


def test_in_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with StudyFiles.at(str(tmp_path), "tiny").lock():
        assert main("report", "test", ["tiny", "--storage", str(tmp_path)]) == 2
    assert "another process works on the study" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == [".lock"]


def test_at_a_uri(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = f"memory://{tmp_path.name}/runs"
    there = Folder.of(f"{where}/tiny")
    state = {
        "generation": "g",
        "host": "elsewhere",
        "pid": 7,
        "began": 1.0,
        "at": time.time(),
        "ended": False,
    }
    there.write(FILE, json.dumps(state).encode())
    assert main("report", "test", ["tiny", "--storage", where, f"work={tmp_path / 'here'}"]) == 2
    assert "process 7 on elsewhere works on the study" in capsys.readouterr().err
    assert set(there.listing(hidden=True)) == {FILE} and not (tmp_path / "here").exists()
