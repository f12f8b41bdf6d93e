"""A job on a study whose storage is a URI: fetched before it is read, pushed at the end, and a push that fails fails
the job. The job is `report`, which starts no Ray."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlheals_ray.folder import Folder
from rlheals_ray.grid import study_run
from rlheals_ray.grid.command import main
from rlheals_ray.mirror import Mirror


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def of(study: object, files: object) -> Mirror | None:
        made = whole(study, files)  # type: ignore[arg-type]
        if made is not None:
            made.patience = 0.2
        return made

    whole, handler = Mirror.of, signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(study_run.Mirror, "of", of)
    yield
    signal.signal(signal.SIGTERM, handler)


def report(where: str, work: Path) -> int:
    return main("report", "test", ["tiny", "--storage", where, f"work={work}"])


def test_a_job_leaves_its_files_at_the_uri_and_another_machine_s_goes_on_from_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"memory://{tmp_path.name}/runs"
    assert report(where, tmp_path / "here") == 0
    there = Folder.of(f"{where}/tiny")
    assert {"study.yaml", "report.html", "tables/scores.parquet", "failures.json"} <= set(there.listing())
    assert json.loads(there.read("logs/events.jsonl").splitlines()[-1])["event"] == "done"
    capsys.readouterr()
    assert report(where, tmp_path / "there") == 0
    assert "of an earlier run are fetched to" in capsys.readouterr().err
    events = (tmp_path / "there" / "tiny" / "logs" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in events if '"stage": "study"' in line] == [
        "started", "done", "resumed", "done",
    ]  # fmt: skip


def test_what_could_not_be_pushed_fails_the_job_and_the_next_one_pushes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where, kept = f"memory://{tmp_path.name}/runs", Folder.open_output

    def refuse(self: Folder, name: str) -> object:
        if name.startswith("tables/"):
            raise OSError("503 Slow Down")
        return kept(self, name)

    monkeypatch.setattr(Folder, "open_output", refuse)
    assert report(where, tmp_path / "here") == 1
    out = capsys.readouterr().out
    assert (
        "failed mirror: OSError" in out
        and "503 Slow Down" in out
        and "the same command pushes the rest" in out
    )
    failures = json.loads((tmp_path / "here" / "tiny" / "failures.json").read_text())
    assert list(failures) == ["mirror"]
    there = Folder.of(f"{where}/tiny")
    assert "tables/scores.parquet" not in there.listing()
    monkeypatch.setattr(Folder, "open_output", kept)
    assert report(where, tmp_path / "here") == 0
    assert "tables/scores.parquet" in there.listing() and there.read("failures.json") == b"{}\n"
