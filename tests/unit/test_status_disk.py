"""A study's directory is read as it stands, whatever stands there, and nothing in it changes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlheals_ray.config import InputError
from rlheals_ray.grid.branch_states import note_failure
from rlheals_ray.grid.status_disk import Disk, holder_of
from rlheals_ray.grid.status_runs import Evidence, KnownUnits
from rlheals_ray.grid.status_units import Inventory
from rlheals_ray.lineage import Branch, Trunk
from rlheals_ray.storage import StudyFiles, write_json, write_text
from tests.marked_study import MarkedStudy, tiny

BRANCH = Branch(Trunk("plain", 0), 12, "ppo")


def everything_in(root: Path) -> dict[str, tuple[int, int, int]]:
    """Every path with its size, the time of its writing, and its number of names."""
    found = {}
    for path in sorted(root.rglob("*")):
        stat = path.lstat()
        found[str(path.relative_to(root))] = (stat.st_size, stat.st_mtime_ns, stat.st_nlink)
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> MarkedStudy:
    """A study with something of everything that a status reads."""
    study = tiny(tmp_path_factory.mktemp("storage")).everything()
    unit = study.units.branch(BRANCH)
    (study.root / "markers" / f"{unit.name}.json").unlink()
    write_text(study.files.state(unit) / "CURRENT", "version-000001")
    write_text(study.files.state(unit) / "version-000001" / "progress.safetensors", "half of i")
    write_json(study.files.state(unit) / "checkpoint-4" / "branch.json", {"rows": [{}]})
    note_failure(study.files, unit, "RuntimeError: gone", update=1)
    write_json(study.root / "failures.json", {unit.name: "RuntimeError: gone", "spectra": "x"})
    return study


def test_looking_writes_nothing(study: MarkedStudy) -> None:
    before = everything_in(study.storage)
    for overrides in ((), ("rl.learning_rate=1e-5",)):
        study.status(*overrides)
    holder_of(study.root)
    assert everything_in(study.storage) == before


# --- bytes and times


def test_bytes_are_those_of_the_files_each_counted_once(tmp_path: Path) -> None:
    write_text(tmp_path / "checkpoints" / "a" / "weights", "x" * 1000)
    write_text(tmp_path / "tables" / "t", "x" * 10)
    write_text(tmp_path / "report.html", "x")
    (tmp_path / "recommended").mkdir()
    os.link(tmp_path / "checkpoints" / "a" / "weights", tmp_path / "recommended" / "weights")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = Disk.walk(tmp_path).bytes
    assert found.pop("loop") == (tmp_path / "loop").lstat().st_size
    assert found.pop("checkpoints", 0) + found.pop("recommended", 0) == 1000
    assert found == {"tables": 10, "report.html": 1}


def test_the_file_that_was_written_last_is_found_below_a_directory(tmp_path: Path) -> None:
    for number, name in enumerate(["state/rl/a/x", "state/rl/b/y", "state/sft/z", "state/rlx/w", ".lock"]):
        write_text(tmp_path / name, "")
        os.utime(tmp_path / name, (100.0 + number, 100.0 + number))
    disk = Disk.walk(tmp_path)
    newest = [disk.newest(*below) for below in ((), ("state/rl",), ("state/sft", "state/rl/a"), ("nowhere",))]
    found = [None if written is None else (written.path, written.at) for written in newest]
    assert found == [("state/rlx/w", 103.0), ("state/rl/b/y", 101.0), ("state/sft/z", 102.0), None]


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"n": 1})
    before = Disk.walk(tmp_path)
    assert before.json("a.json") == {"n": 1}
    write_json(tmp_path / "a.json", {"n": 2, "more": True})
    assert Disk.walk(tmp_path, before).json("a.json") == {"n": 2, "more": True}


# --- who holds it


@contextmanager
def another_process_holds(root: Path) -> Iterator[int]:
    code = (
        "import sys; from pathlib import Path; from rlheals_ray.storage import StudyFiles\n"
        "with StudyFiles(Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process.pid
    finally:
        process.stdin.close()
        process.wait()


def test_the_process_that_holds_a_study_is_named_until_it_ends(tmp_path: Path) -> None:
    assert holder_of(tmp_path / "absent") is None
    with another_process_holds(tmp_path) as pid:
        found = holder_of(tmp_path)
        assert found is not None and found.pid == pid
        assert found.command is not None and found.command.startswith(sys.executable)
        assert found.since <= (tmp_path / ".lock").stat().st_mtime + 1
    assert holder_of(tmp_path) is None


def test_a_run_that_is_refused_does_not_pass_for_the_holder(tmp_path: Path) -> None:
    with another_process_holds(tmp_path) as pid:
        with pytest.raises(InputError), StudyFiles(tmp_path).lock():
            pass
        found = holder_of(tmp_path)
        assert found is not None and found.pid == pid


def test_the_lock_of_another_study_is_not_this_one_s(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_text(tmp_path / name / ".lock", "")
    with StudyFiles(tmp_path / "a").lock():
        assert holder_of(tmp_path / "b") is None


# --- faults

RUBBISH = st.sampled_from([b"", b"{", b"[]", b"[1, 2]", b"null", b"7", b'{"fingerprint": 7}', b"[" * 100_000, b"{}",
                           b'{"rows": 3, "updates": "x", "sft_updates": {"x": 1}, "cause": {}}', b"\xff\xfe",
                           b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "]) | st.binary(max_size=40)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damaged_file_keeps_a_status_from_being_told(study: MarkedStudy, data: st.DataObject) -> None:
    paths = sorted(p for p in study.root.rglob("*") if p.is_file() and p.name != "study.yaml")
    damaged = data.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=6, unique=True))
    before = {path: path.read_bytes() for path in damaged}
    try:
        for path in damaged:
            path.write_bytes(data.draw(RUBBISH))
        status = study.status()
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    assert all(0 <= stage.done <= stage.units for stage in status.stages)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_vanishes_between_listing_and_reading_is_not_done(
    study: MarkedStudy, data: st.DataObject
) -> None:
    units, away = KnownUnits(study.study), study.storage / "away"
    tops = sorted(path for path in study.root.rglob("*") if path.is_dir())
    gone = data.draw(st.sampled_from(tops))
    whole = sum(one.state == "done" for one in Inventory(Evidence(units, Disk.walk(study.root), {})).found)
    listed = Disk.walk(study.root)
    gone.rename(away)
    try:
        found = Inventory(Evidence(units, listed, {})).found
    finally:
        away.rename(gone)
    assert sum(one.state == "done" for one in found) <= whole


def test_a_walk_goes_on_where_a_directory_vanishes_beneath_it(
    study: MarkedStudy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(study.root, root)
    scan, scanned = os.scandir, []

    def vanishing(path: Path) -> object:
        scanned.append(path)
        if len(scanned) % 3 == 0:
            Path(path).rename(tmp_path / f"gone-{len(scanned)}")
        return scan(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    disk = Disk.walk(root)
    monkeypatch.undo()
    assert len(scanned) == len(set(scanned)) > 10, "a directory is listed once"
    assert Inventory(Evidence(KnownUnits(study.study), disk, {})).found


@pytest.mark.parametrize("name", ["markers", "state", "hidden", "failures.json", "timings.json", ".lock"])
def test_a_directory_in_a_file_s_place_and_the_reverse_are_borne(
    study: MarkedStudy, tmp_path: Path, name: str
) -> None:
    root = tmp_path / "tiny"
    shutil.copytree(study.root, root)
    path = root / name
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("")
    else:
        path.unlink(missing_ok=True)
        path.mkdir()
    assert MarkedStudy(tmp_path, study.study).status().stages
