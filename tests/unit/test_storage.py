"""What is written is whole, what is done carries its fingerprint, and a table holds every row once."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlheals_ray import storage, tables
from rlheals_ray.config import InputError
from rlheals_ray.storage import StudyFiles, Unit, fingerprint, new_directory


def visible(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))


# --- fingerprints


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=6))
def test_the_order_of_inputs_does_not_matter(inputs: dict[str, object]) -> None:
    backwards = dict(reversed(inputs.items()))
    assert fingerprint(inputs=inputs) == fingerprint(inputs=backwards)


def test_any_change_of_an_input_shows() -> None:
    variants = [
        fingerprint(a=1, b=[1, 2]),
        fingerprint(a=1, b=[2, 1]),
        fingerprint(a=1, b=[1, 2], c=None),
        fingerprint(a="1", b=[1, 2]),
        fingerprint(a=1.5, b=[1, 2]),
        fingerprint(a=1, b={"x": [1, 2]}),
    ]
    assert len(set(variants)) == len(variants)


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    code = "from rlheals_ray.storage import fingerprint; print(fingerprint(rate=2e-4, names=('q', 'k'), z={'b': 1}))"
    here = fingerprint(rate=2e-4, names=["q", "k"], z={"b": 1})
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert there.stdout.strip() == here


# --- whole or not at all


@pytest.mark.parametrize("failing", ["write_text", "replace"])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "deep" / "x.json"
    storage.write_json(path, {"kept": True})
    before = path.read_bytes()

    def fail(self: Path, *arguments: object, **_: object) -> None:
        if failing == "write_text":
            self.write_bytes(b"half of i")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, failing, fail)
    with pytest.raises(OSError, match="No space"):
        storage.write_json(path, {"kept": False})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert visible(path.parent) == ["x.json"]


def test_a_failed_table_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    storage.write_parquet(path, pa.table({"x": [1]}))

    def fail(table: pa.Table, where: Path) -> None:
        where.write_bytes(b"PAR1 and no more")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="No space"):
        storage.write_parquet(path, pa.table({"x": [2]}))
    assert pq.read_table(path).to_pylist() == [{"x": 1}]
    assert visible(tmp_path) == ["t.parquet"]


def test_a_directory_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a" / "model"
    for content in ("first", "second"):
        with new_directory(target) as directory:
            (directory / content).write_text(content)
            assert not (target / content).exists()
        assert visible(target) == [content]
    assert list(target.parent.iterdir()) == [target]


def test_an_exception_within_leaves_no_directory_or_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(RuntimeError), new_directory(target) as directory:
        (directory / "half").write_text("")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_directory(target) as directory:
        (directory / "old").write_text("")
    with pytest.raises(KeyboardInterrupt), new_directory(target) as directory:
        (directory / "half").write_text("")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [target] and visible(target) == ["old"]


# --- where a study stands


def test_a_study_stands_below_its_storage(tmp_path: Path) -> None:
    assert StudyFiles.at(str(tmp_path), "mine").root == tmp_path / "mine"
    assert StudyFiles.at(f"file://{tmp_path}", "mine").root == tmp_path / "mine"
    assert StudyFiles.at("~/runs", "mine").root == Path.home() / "runs" / "mine"


def test_a_study_at_a_uri_is_worked_on_in_a_directory_of_that_uri(tmp_path: Path) -> None:
    uris = [
        "s3://bucket/runs",
        "gs://bucket/runs",
        "s3://bucket-runs/",
        "s3://bucket/runs/more",
        "s3://bucket/ruñs",
    ]
    roots = [StudyFiles.at(uri, "mine").root for uri in uris]
    assert len(set(roots)) == len(roots)
    assert {root.parent.parent for root in roots} == {Path.home() / ".cache" / "rlheals_ray"}
    assert StudyFiles.at("s3://bucket/runs/", "mine") == StudyFiles.at(uris[0], "mine")
    assert StudyFiles.at("s3://bucket/runs", "mine", str(tmp_path)).root == tmp_path / "mine"
    assert StudyFiles.at(str(tmp_path), "mine", "/ignored").root == tmp_path / "mine"


def test_asking_whether_storage_is_writable_writes_nothing(tmp_path: Path) -> None:
    StudyFiles.at(str(tmp_path / "a" / "b"), "mine").check_writable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("occupied", ["storage", "storage/mine"])
def test_a_file_where_a_directory_should_be_is_named(tmp_path: Path, occupied: str) -> None:
    path = tmp_path / occupied
    path.parent.mkdir(exist_ok=True)
    path.write_text("a file")
    with pytest.raises(InputError, match=rf"storage.*{path}' is not a writable directory.*--storage"):
        StudyFiles.at(str(tmp_path / "storage"), "mine").check_writable()
    assert path.read_text() == "a file"


def test_only_one_process_at_a_time_works_on_a_study(tmp_path: Path) -> None:
    one, other = StudyFiles.at(str(tmp_path), "mine"), StudyFiles.at(str(tmp_path), "mine")
    with one.lock(), pytest.raises(InputError, match="another process works on the study"), other.lock():
        pass
    with other.lock(), StudyFiles.at(str(tmp_path), "another").lock():
        pass


def test_a_filesystem_without_locks_is_told_from_a_study_that_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(storage.fcntl, "flock", no_locks)
    with (
        pytest.raises(InputError, match=r"storage.*takes no locks.*No locks available.*mount it with flock"),
        StudyFiles.at(str(tmp_path), "mine").lock(),
    ):
        pass


# --- what is done


def test_a_unit_is_done_when_its_marker_carries_its_fingerprint(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path)
    unit = Unit("sft/seed=0", "abc")
    assert not files.is_done(unit) and files.recorded(unit) is None
    files.mark_done(unit, seconds=3)
    assert files.is_done(unit) and files.details(unit) == {"fingerprint": "abc", "seconds": 3}


def test_a_changed_input_is_not_done_and_the_old_fingerprint_is_told(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path)
    files.mark_done(Unit("base", "old"))
    assert not files.is_done(Unit("base", "new"))
    assert files.recorded(Unit("base", "new")) == "old"


@pytest.mark.parametrize("content", ["", "{", "{}", '{"seconds": 3}'])
def test_a_damaged_marker_is_no_marker(tmp_path: Path, content: str) -> None:
    files = StudyFiles(tmp_path)
    files.mark_done(Unit("base", "abc"))
    next(tmp_path.rglob("base.json")).write_text(content)
    assert not files.is_done(Unit("base", "abc"))


def test_state_of_another_fingerprint_is_another_place(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path)
    assert files.state(Unit("rl/x", "a")) != files.state(Unit("rl/x", "b"))


# --- tables


def part(problem: str) -> pa.Table:
    row = {
        "checkpoint": "base", "rule": "id", "problem_id": problem, "attempts": 1, "solved_at": None,
        "well_formed": [False], "rewards": [-3.0], "answers": ["x"],
    }  # fmt: skip
    return tables.table("episodes", [row])


def ids(table: pa.Table) -> list[str]:
    return table.column("problem_id").to_pylist()


def test_a_table_holds_the_parts_of_done_units_in_the_order_given(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path)
    units = {name: Unit(f"probe/{name}", name) for name in ("a", "b", "c", "d")}
    for name in ("c", "a", "b"):
        files.write_part("episodes", units[name], part(name))
    for name in ("c", "a", "d"):  # b was interrupted before its marker; d is done and has no such rows
        files.mark_done(units[name])
    order = [units["a"], units["b"], units["c"], units["d"]]
    assert ids(files.compact("episodes", order)) == ["a", "c"]
    assert ids(files.compact("episodes", order[::-1])) == ["c", "a"]
    assert ids(files.read_table("episodes")) == ["c", "a"]


def test_a_rerun_replaces_rows_and_doubles_none(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path)
    unit = Unit("probe/a", "1")
    for problem in ("first", "second"):
        files.write_part("episodes", unit, part(problem))
        files.mark_done(unit)
        assert ids(files.compact("episodes", [unit])) == [problem]
        assert ids(files.compact("episodes", [unit])) == [problem]


def test_rows_of_an_old_fingerprint_leave_the_table(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path)
    files.write_part("episodes", Unit("probe/a", "old"), part("a"))
    files.mark_done(Unit("probe/a", "old"))
    assert ids(files.compact("episodes", [Unit("probe/a", "new")])) == []


@pytest.mark.parametrize("name", sorted(tables.SCHEMAS))
def test_a_table_without_rows_has_its_columns(tmp_path: Path, name: str) -> None:
    files = StudyFiles(tmp_path)
    assert files.read_table(name).schema == tables.SCHEMAS[name]
    files.compact(name, [])
    assert pq.read_table(files.table(name)).schema.equals(tables.SCHEMAS[name])


@pytest.mark.parametrize(
    "spoil", [lambda row: row.pop("rule"), lambda row: row.update(extra=1)], ids=["missing", "extra"]
)
def test_a_row_with_other_columns_is_refused(spoil: Callable[[dict[str, object]], object]) -> None:
    row = part("a").to_pylist()[0]
    spoil(row)
    with pytest.raises(KeyError, match="columns differ"):
        tables.table("episodes", [row])
