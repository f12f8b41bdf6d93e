"""`jobs/status.py`: which study is meant, by which settings, in which words, with which exit code."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from rlheals_ray.config import dump_study, load_study
from rlheals_ray.folder import Folder
from rlheals_ray.grid import status_command
from rlheals_ray.grid.status import Status, Watched
from rlheals_ray.grid.status_command import main
from rlheals_ray.lineage import Trunk
from rlheals_ray.mirror import Mirror
from rlheals_ray.storage import write_json, write_text
from tests.marked_study import MarkedStudy, tiny

HOLDS = """
import sys, time
from rlheals_ray.storage import StudyFiles
with StudyFiles.at(sys.argv[1], "tiny").lock():
    time.sleep(60)
"""
JOB = Path(__file__).parents[2] / "jobs" / "status.py"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    monkeypatch.setenv("COLUMNS", "150")
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        return Outcome(main([str(argument) for argument in arguments]), *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def study(tmp_path: Path) -> MarkedStudy:
    study = tiny(tmp_path / "runs")
    study.base()
    return study


def is_one_paragraph(err: str) -> bool:
    return err.startswith("status: ") and err.endswith(".\n") and err.count("\n") == 1


# --- which study


def test_a_study_is_named_by_preset_by_file_or_by_its_directory(
    study: MarkedStudy, command: Command, tmp_path: Path
) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(yaml.safe_dump({**dump_study(study.study), "storage": str(study.storage)}))
    ways = [
        command("tiny", "--storage", study.storage, "--json"),
        command("nano", "name=tiny", f"storage={study.storage}", "--json"),
        command(own, "--json"),
        command(study.root, "--json"),
    ]
    assert {outcome.code for outcome in ways} == {0}
    found = [json.loads(outcome.out) for outcome in ways]
    assert {one["root"] for one in found} == {str(study.root)}
    assert all(one["stages"][0]["done"] == 1 for one in found)


def test_a_study_at_a_uri_stands_as_it_stands_in_its_directory(tmp_path: Path, command: Command) -> None:
    study = tiny(tmp_path / "runs").everything()
    next((study.root / "markers" / "edit").rglob("*.json")).unlink()
    mirror = Mirror(Folder.of(f"memory://{tmp_path.name}/runs/tiny"), study.root)
    mirror.pull()
    mirror.push()
    here, there = (
        json.loads(command("tiny", "--storage", where, "--json").out)
        for where in (study.storage, f"memory://{tmp_path.name}/runs")
    )
    assert there["root"] == f"memory://{tmp_path.name}/runs/tiny" and there["holder"]["pid"] == os.getpid()

    def counted(status: dict[str, Any]) -> list[dict[str, Any]]:
        dropped = ("last_written", "seconds_left")
        return [{k: v for k, v in stage.items() if k not in dropped} for stage in status["stages"]]

    assert counted(there) == counted(here)
    assert (
        there["failures"] == here["failures"]
        and there["bytes"]["checkpoints"] == here["bytes"]["checkpoints"]
    )
    assert mirror.end() is None
    assert (
        json.loads(command("tiny", "--storage", f"memory://{tmp_path.name}/runs", "--json").out)["holder"]
        is None
    )
    assert not list(Path(tempfile.gettempdir()).glob("rlheals-*/tiny"))


@pytest.mark.parametrize("where", ["storage", "study", "elsewhere"])
def test_a_study_that_is_not_there_is_refused_and_those_that_are_there_are_named(
    study: MarkedStudy, command: Command, tmp_path: Path, where: str
) -> None:
    wrong: dict[str, list[str | Path]] = {
        "storage": [study.storage],
        "study": ["nano", "--storage", study.storage],
        "elsewhere": ["tiny", "--storage", tmp_path / "nowhere"],
    }
    code, out, err = command(*wrong[where])
    assert code == 2 and out == "" and is_one_paragraph(err)
    assert ("holds no study" if where == "elsewhere" else f"studies in '{study.storage}': tiny") in err
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nanno",), r"STUDY.*'nanno'"),
        (("tiny", "sft.lr=1"), r"sft\.lr: there is no such field"),
        (("{root}", "rl.budgets=[-1]"), r"rl\.budgets"),
        (("{root}", "--storage", "x"), r"--storage \(got 'x'\).*already"),
        (("{root}", "--watch", "--json"), r"--json \(got with --watch\)"),
        (("tiny", "--storage", "nosuch://bucket/x"), r"storage \(got 'nosuch://bucket/x'\)"),
        (("tiny", "--storage", "memory://nothing/x"), r"no study has run in 'memory://nothing/x/tiny'"),
    ],
)
def test_wrong_input_is_refused_in_one_paragraph(
    study: MarkedStudy, command: Command, arguments: tuple[str, ...], told: str
) -> None:
    code, _, err = command(*(argument.format(root=study.root) for argument in arguments))
    assert code == 2 and is_one_paragraph(err) and re.search(told, err)


# --- how long it is watched


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Status]:
    """Those of --watch, without its rest between two."""
    seen: list[Status] = []
    look = Watched.look

    def noted(watched: Watched) -> Status:
        seen.append(look(watched))
        return seen[-1]

    monkeypatch.setattr(Watched, "look", noted)
    monkeypatch.setattr(status_command, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(status_command, "REST", 0)
    return seen


def test_a_watch_ends_with_what_is_complete(tmp_path: Path, command: Command, looks: list[Status]) -> None:
    study = tiny(tmp_path).everything()
    assert command(study.root, "--watch").code == 0
    assert len(looks) == 1


def test_a_watch_ends_with_a_run_that_failed(
    study: MarkedStudy, command: Command, looks: list[Status]
) -> None:
    write_json(study.root / "failures.json", {"sft/plain/seed0": "NaN loss"})
    assert command(study.root, "--watch").code == 1
    assert len(looks) == 1


@pytest.mark.timeout(60)
def test_a_watch_waits_for_a_run_to_start_and_ends_where_it_is_killed(
    study: MarkedStudy, command: Command, looks: list[Status]
) -> None:
    def run_and_die() -> None:
        while len(looks) < 3:
            time.sleep(0.01)
        job = subprocess.Popen([sys.executable, "-c", HOLDS, study.storage])
        while looks[-1].holder is None and job.poll() is None:
            time.sleep(0.01)
        job.kill()
        job.wait()

    job = threading.Thread(target=run_and_die)
    job.start()
    code, out, _ = command(study.root, "--watch")
    job.join()
    assert code == 0 and "no process that this machine sees works on it" in out
    held = [status.holder is not None for status in looks]
    assert held[:3] == [False] * 3 and held[-2:] == [True, False]


# --- by which settings


def test_the_settings_of_the_last_run_count_and_what_differs_is_told(
    tmp_path: Path, command: Command
) -> None:
    study = tiny(tmp_path, "seeds=[3,4]", "sft.learning_rate=1e-5", "rl.budgets=[0,1]")
    study.base()
    code, out, _ = command("tiny", "--storage", tmp_path)
    assert code == 0 and "'tiny' differs in seeds, sft.learning_rate, rl.budgets" in out
    found = json.loads(command("tiny", "--storage", tmp_path, "--json").out)
    assert [run["seed"] for run in found["runs"] if run["stage"] == "sft"] == [3, 4]
    assert found["stages"][0]["done"] == 1


def test_overrides_ask_for_settings_as_a_run_would_take_them(study: MarkedStudy, command: Command) -> None:
    for where in (study.root, "tiny"):
        storage = [] if where == study.root else ["--storage", study.storage]
        found = json.loads(command(where, "base.steps=41", *storage, "--json").out)
        assert found["stages"][0]["outdated"] == 1
        assert any("does them again" in note for note in found["notes"])


def test_overrides_of_a_directory_change_its_own_settings(tmp_path: Path, command: Command) -> None:
    study = tiny(tmp_path, "seeds=[3,4]")
    found = json.loads(command(study.root, "evaluation.problems=39", "--json").out)
    assert {run["seed"] for run in found["runs"]} == {3, 4}


@pytest.mark.parametrize("record", ["", "- 1", "name: [", "name: tiny\nsft: {no_such: 1}", b"\xff\xfe\x00"])
def test_settings_that_cannot_be_read_are_those_of_the_preset_or_refused(
    study: MarkedStudy, command: Command, record: str | bytes
) -> None:
    content = record if isinstance(record, bytes) else record.encode()
    (study.root / "study.yaml").write_bytes(content)
    code, out, _ = command("tiny", "--storage", study.storage)
    assert code == 0 and "study.yaml cannot be read by this version" in out
    code, out, err = command(study.root)
    assert code == 2 and is_one_paragraph(err) and "give the preset or the YAML file" in err


def test_a_study_of_a_version_that_had_fewer_fields_is_read_with_their_defaults(
    study: MarkedStudy, command: Command
) -> None:
    record = yaml.safe_load((study.root / "study.yaml").read_text())
    for field in ("controls", "hidden", "recommendation", "keep"):
        del record[field]
    write_text(study.root / "study.yaml", yaml.safe_dump(record))
    found = json.loads(command(study.root, "--json").out)
    assert found["stages"][0]["done"] == 1
    controls = load_study("tiny", ["controls={}"]).controls.kinds
    assert sum(stage["name"] == "controls" for stage in found["stages"]) == bool(controls)


def test_fields_of_a_later_version_are_named_and_left_out(study: MarkedStudy, command: Command) -> None:
    record = yaml.safe_load((study.root / "study.yaml").read_text())
    write_text(study.root / "study.yaml", yaml.safe_dump(record | {"weather": {"wind": 3}, "tide": None}))
    found = json.loads(command(study.root, "--json").out)
    assert found["stages"][0]["done"] == 1
    assert any(
        "another version: weather, tide not known here" in n or "tide, weather not" in n
        for n in found["notes"]
    )


def test_where_the_model_is_not_at_hand_markers_count_as_they_stand(tmp_path: Path, command: Command) -> None:
    model = tmp_path / "model"
    write_text(model / "config.json", "{}")
    study = tiny(tmp_path / "runs", f"base.model={model}")
    study.base()
    study.trunk(Trunk("plain", 0))
    shutil.rmtree(model)
    code, out, _ = command(study.root)
    assert code == 0 and "fingerprints cannot be checked" in out and str(model) in out
    found = json.loads(command(study.root, "--json").out)
    done = {stage["name"]: stage["done"] for stage in found["stages"]}
    assert (done["base"], done["sft"], done["losses"], done["rl"]) == (1, 1, 1, 0)


def test_a_task_that_cannot_be_loaded_is_told(study: MarkedStudy, command: Command) -> None:
    record = yaml.safe_load((study.root / "study.yaml").read_text())
    record["task"] = {"name": "no_such_module_of_mine:Task"}
    write_text(study.root / "study.yaml", yaml.safe_dump(record))
    code, out, _ = command(study.root)
    assert code == 0 and "fingerprints cannot be checked" in out and "no_such_module_of_mine" in out
