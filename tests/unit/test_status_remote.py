"""A study at a URI that is looked at while its filesystem fails, or while the job at work on it removes files."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec  # type: ignore[import-untyped]
import pytest
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

from rlheals_ray import mirror_view
from rlheals_ray.config import InputError
from rlheals_ray.folder import Folder
from rlheals_ray.grid import status_command
from rlheals_ray.grid.status import Status, Watched
from rlheals_ray.grid.status_command import main
from rlheals_ray.mirror import Mirror
from rlheals_ray.mirror_view import View, for_status
from tests.marked_study import tiny


class SlowDown(Exception):
    """As the clients of object stores have them: no OSError."""


class Outage(MemoryFileSystem):
    """Memory whose listings, or whose reads, fail while `broken` says so; `vanishing` goes once it was listed."""

    protocol = "outage"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    broken: ClassVar[str] = ""
    vanishing: ClassVar[str] = ""

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        if Outage.broken == "ls":
            raise SlowDown("503 Slow Down")
        found = super().ls(path, detail, **options)
        for info in found if Outage.vanishing else ():
            if info["name"].endswith(Outage.vanishing):
                del self.store[info["name"]]
        return found

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if Outage.broken == "open":
            raise SlowDown("503 Slow Down")
        return super()._open(path, mode, **options)


fsspec.register_implementation("outage", Outage, clobber=True)


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(mirror_view, "_DELAY", 0.0)
    monkeypatch.setattr(status_command, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(status_command, "REST", 0)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    Outage.broken = Outage.vanishing = ""
    Outage.store.clear()
    Outage.pseudo_dirs[:] = [""]


@pytest.fixture
def copy(tmp_path: Path) -> Mirror:
    """Of a study whose base is done, and that is worked on."""
    study = tiny(tmp_path / "runs")
    study.base()
    copy = Mirror(Folder.of("outage://bucket/runs/tiny"), study.root)
    copy.pull()
    copy.push()
    return copy


def test_a_watch_outlives_an_outage_and_shows_what_it_saw_last(
    copy: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Status] = []
    look = Watched.look_again

    def noted(watched: Watched) -> Status:
        seen.append(look(watched))
        Outage.broken = "ls" if len(seen) < 3 else ""
        if len(seen) == 4:
            copy.end()
        return seen[-1]

    monkeypatch.setattr(Watched, "look_again", noted)
    assert main(["tiny", "--storage", "outage://bucket/runs", "--watch"]) == 0
    before, broken, still, after, ended = seen
    for status in (broken, still):
        assert (status.stages, status.holder) == (before.stages, before.holder)
        assert "503 Slow Down" in status.notes[-1] and "s ago" in status.notes[-1]
        assert len(status.notes) == len(before.notes) + 1
    assert after.notes == before.notes and after.holder is not None and ended.holder is None


@pytest.mark.parametrize("broken", ["ls", "open"])
def test_one_look_during_an_outage_is_refused_in_words(
    copy: Mirror, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    Outage.broken = broken
    assert main(["tiny", "--storage", "outage://bucket/runs"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("status: storage (got 'outage://bucket/runs/tiny')") and err.count("\n") == 1
    assert "503 Slow Down" in err


def test_a_file_that_cannot_be_read_is_no_file_that_is_not_there(copy: Mirror) -> None:
    view = View(copy.remote, for_status)
    (copy.root / "markers" / "base.json").write_text(json.dumps({"fingerprint": "another"}))
    copy.push()
    Outage.broken = "open"
    with pytest.raises(InputError, match="cannot be read now"):
        view.refresh()
    Outage.broken = ""
    view.refresh()
    assert json.loads((view.root / "markers" / "base.json").read_text()) == {"fingerprint": "another"}
    view.close()


def test_a_file_that_goes_once_it_is_listed_is_not_there(copy: Mirror) -> None:
    Outage.vanishing = "markers/base.json"
    view = View(copy.remote, for_status)
    assert (view.root / "study.yaml").exists() and not (view.root / "markers" / "base.json").exists()
    view.close()
