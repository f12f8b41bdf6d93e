"""`cluster/local`, which starts a Ray head: here something else stands for the head."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "local"


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module, with a head that runs until it is ended."""
    module, heads = ModuleType("cluster_local"), list[subprocess.Popen[bytes]]()
    module.__file__ = str(SCRIPT)
    exec(compile(SCRIPT.read_text(), str(SCRIPT), "exec"), module.__dict__)
    module.__dict__.update(ROOT=tmp_path, STATE=tmp_path / "state", TOKEN=tmp_path / "token", heads=heads)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "ray").touch()

    def launch(*_: object) -> subprocess.Popen[bytes]:
        heads.append(subprocess.Popen(["sleep", "600"], start_new_session=True))
        return heads[-1]

    monkeypatch.setitem(module.__dict__, "_launch", launch)
    monkeypatch.setattr(sys, "argv", ["local", "start"])
    handler = signal.getsignal(signal.SIGTERM)
    yield module
    signal.signal(signal.SIGTERM, handler)
    for head in heads:
        head.kill()
        head.wait()


def test_an_interrupted_start_leaves_no_head(local: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: str) -> bool:
        raise KeyboardInterrupt

    local.__dict__["_answers"] = interrupted
    assert local.main() == 130
    assert [head.poll() is not None for head in local.heads] == [True]
    assert capsys.readouterr().err == "cluster/local: interrupted.\n"
    assert not (local.STATE / "head.json").exists()


def test_a_start_that_is_told_to_end_leaves_none(local: ModuleType) -> None:
    local.__dict__["_answers"] = lambda _: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        local.main()
    assert end.value.code == 143
    assert [head.poll() is not None for head in local.heads] == [True]


def test_a_start_that_fails_otherwise_leaves_none_either(local: ModuleType) -> None:
    def failing(_: str) -> bool:
        raise PermissionError("the token cannot be read")

    local.__dict__["_answers"] = failing
    with pytest.raises(PermissionError):
        local.main()
    assert [head.poll() is not None for head in local.heads] == [True]


def test_a_head_that_answers_is_recorded_and_runs_on(local: ModuleType) -> None:
    local.__dict__["_answers"] = lambda _: True
    assert local.main() == 0
    assert (local.STATE / "head.json").exists() and [head.poll() for head in local.heads] == [None]
