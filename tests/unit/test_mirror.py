"""A study's copy at a URI is consistent at every moment that a push can be killed at, and ends as the study itself.

The filesystem is fsspec's memory; what forces the faults is a wrapper of it that stops at a chosen operation, as a kill
would, or fails at random, as object stores do.
"""

import hashlib
import io
import json
import os
import random
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import fsspec  # type: ignore[import-untyped]
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from rlheals_ray.config import InputError
from rlheals_ray.folder import Folder
from rlheals_ray.mirror import Mirror, mirrored
from rlheals_ray.mirror_local import hold, is_mirrored
from rlheals_ray.mirror_remote import FILE
from rlheals_ray.mirror_view import View, for_status
from rlheals_ray.storage import (
    StudyFiles,
    Unit,
    new_directory,
    write_json,
    write_parquet,
    write_text,
)


class Killed(BaseException):
    pass


class Faulty(MemoryFileSystem):
    """Memory that all instances share; stops for good at operation `stop`, or fails a share of them."""

    protocol = "faulty"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    stop: ClassVar[int | None] = None
    fails: ClassVar[float] = 0.0
    count: ClassVar[int] = 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return (
            _faulty(found) if name in ("ls", "info", "mkdir", "cp_file", "_rm", "rm_file", "_open") else found
        )


def _faulty(work: Any) -> Any:
    def perhaps(*arguments: Any, **options: Any) -> Any:
        Faulty.count += 1
        if Faulty.stop is not None and Faulty.count >= Faulty.stop:
            raise Killed
        if random.random() < Faulty.fails:
            raise OSError("503 Slow Down")
        return work(*arguments, **options)

    return perhaps


fsspec.register_implementation("faulty", Faulty, clobber=True)


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    yield
    Faulty.stop, Faulty.fails = None, 0.0
    Faulty.store.clear()
    Faulty.pseudo_dirs[:] = [""]


def remote() -> Folder:
    return Folder.of(f"faulty://{uuid.uuid4().hex}/study")


def mirror(where: Folder, root: Path, **options: Any) -> Mirror:
    root.mkdir(parents=True, exist_ok=True)
    return Mirror(where, root, **{"patience": 0.3, "workers": 1, **options})


def contents(folder: Folder) -> dict[str, bytes]:
    """What is mirrored of a folder, local or not."""
    return {path: folder.read(path) for path in folder.listing() if is_mirrored(path) and path != FILE}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Work:
    """A study under way, as the stages write it; every file's content is its own."""

    def __init__(self, root: Path, seed: int) -> None:
        self.files, self.random, self.count = StudyFiles(root), random.Random(seed), 0

    def content(self) -> str:
        self.count += 1
        # Equal sizes: only their times tell files apart.
        return f"{self.count:08d}" + "x" * self.random.choice((0, 0, 50))

    def step(self) -> None:
        self.random.choice(
            (self.unit, self.unit, self.unit, self.state, self.trunk, self.table, self.retain)
        )()

    def unit(self) -> None:
        """Do a unit, perhaps again from other inputs: checkpoint, part, and the marker, which tells their contents."""
        name = f"rl/seed={self.random.randrange(3)}"
        unit = Unit(name, f"{self.random.randrange(2)}")
        if self.files.is_done(unit):
            return
        self.files.begin(unit, name)
        self.checkpoint(name, unit)
        part = self.files.root / "parts" / "rl" / f"{name}.parquet"
        write_parquet(part, pa.table({"x": [self.content()]}))
        paths = [part, *(path for path in self.files.checkpoint(name).iterdir())]
        told = {str(path.relative_to(self.files.root)): sha(path.read_bytes()) for path in paths}
        self.files.mark_done(unit, told=told)

    def checkpoint(self, name: str, unit: Unit) -> None:
        with new_directory(self.files.checkpoint(name)) as directory:
            shards = [f"model-{index}.safetensors" for index in range(self.random.randint(1, 3))]
            for shard in shards:
                (directory / shard).write_text(self.content())
            told = {shard: sha((directory / shard).read_bytes()) for shard in shards}
            (directory / "config.json").write_text(json.dumps(told))
            self.files.stamp(directory, unit)

    def state(self) -> None:
        """A state of PPO, as `new_version` switches it; now and then it is over."""
        where = self.files.root / "state" / "rl" / f"branch-{self.random.randrange(2)}"
        if self.random.random() < 0.2:
            shutil.rmtree(where, ignore_errors=True)
            return
        current = where / "CURRENT"
        before = current.read_text() if current.exists() else None
        version = f"version-{int(before.rpartition('-')[2]) + 1 if before else 0:06d}"
        self.shards(where / version)
        write_text(current, version)
        if before:
            shutil.rmtree(where / before)

    def shards(self, where: Path) -> None:
        token = self.content()
        for shard in ("a.safetensors", "b.safetensors"):
            where.mkdir(parents=True, exist_ok=True)
            (where / shard).write_text(token)

    def trunk(self) -> None:
        """A state of the SFT trainer, whose checkpoint is published before the state is complete."""
        where = self.files.root / "state" / "sft" / "seed=0-f"
        where.mkdir(parents=True, exist_ok=True)
        steps = sorted(int(path.name.rpartition("-")[2]) for path in where.glob("checkpoint-*"))
        step = steps[-1] + 1 if steps else 1
        self.shards(where / f"checkpoint-{step}")
        self.checkpoint(f"sft/seed=0/step={step}", Unit("sft", "f"))
        (where / f"checkpoint-{step}" / "COMPLETE").write_text("whole")
        for old in steps[:-1]:
            shutil.rmtree(where / f"checkpoint-{old}")

    def table(self) -> None:
        write_parquet(self.files.table("rl"), pa.table({"x": [self.content()] * self.random.randint(1, 50)}))

    def retain(self) -> None:
        """The weights of a checkpoint go, as by `keep`: the note first."""
        for config in list(self.files.checkpoints.glob("rl/*/config.json"))[:1]:
            write_text(config.with_name("REMOVED.md"), "removed")
            for path in config.parent.iterdir():
                if path.name not in ("REMOVED.md", "provenance.json"):
                    path.unlink()


def check(found: Mapping[str, bytes]) -> None:
    """What a run that goes on from these files may rely on."""
    removed = {path.rpartition("/")[0] for path in found if path.endswith("REMOVED.md")}
    for path, data in found.items():
        folder, _, name = path.rpartition("/")
        if path.startswith("markers/"):
            for told, expected in json.loads(data)["told"].items():
                if told.rpartition("/")[0] not in removed:
                    assert told in found and sha(found[told]) == expected, (path, told)
        elif name == "config.json" and folder not in removed:
            for shard, expected in json.loads(data).items():
                assert sha(found.get(f"{folder}/{shard}", b"")) == expected, (path, shard)
        elif name == "provenance.json" and folder not in removed:
            shards = {p for p in found if p.startswith(f"{folder}/model-")}
            assert shards, path
        elif name in ("CURRENT", "COMPLETE"):
            version = f"{folder}/{data.decode()}" if name == "CURRENT" else folder
            tokens = [found.get(f"{version}/{shard}") for shard in ("a.safetensors", "b.safetensors")]
            assert tokens[0] is not None and tokens[0] == tokens[1], (path, tokens)
            if name == "COMPLETE":
                for step in range(1, int(folder.rpartition("-")[2]) + 1):
                    assert f"checkpoints/sft/seed=0/step={step}/provenance.json" in found, (path, step)
        elif name.endswith(".parquet"):
            pq.read_table(io.BytesIO(data))


@given(seed=st.integers(0, 2**32), workers=st.sampled_from([1, 1, 4]))
@settings(max_examples=25, deadline=None)
def test_a_push_that_is_killed_anywhere_leaves_a_consistent_copy(
    tmp_path_factory: pytest.TempPathFactory, seed: int, workers: int
) -> None:
    root, where, draw = tmp_path_factory.mktemp("work") / "study", remote(), random.Random(seed)
    work = Work(root, seed)
    for _ in range(6):
        for _ in range(draw.randint(1, 12)):
            work.step()
        Faulty.count, Faulty.stop = 0, draw.choice((draw.randint(1, 40), draw.randint(1, 400)))
        try:
            again = mirror(where, root, workers=workers, patience=0.0)
            again.pull()
            again.push()
        except BaseException:
            assert Faulty.count >= Faulty.stop  # fsspec makes other errors of some
        Faulty.stop = None
        check(contents(where))
    again = mirror(where, root)
    again.pull()
    again.push(ended=True)
    expected = contents(where)
    check(expected)
    here = {path: data for path, data in contents(Folder.of(root)).items() if _counts(path, root)}
    assert expected == here
    assert not [path for path in where.listing(hidden=True) if ".tmp-" in path]
    elsewhere = mirror(where, root.parent / "elsewhere" / "study")
    elsewhere.pull()
    assert contents(Folder.of(elsewhere.root)) == expected


def _counts(path: str, root: Path) -> bool:
    """Of a state only the version that counts is copied."""
    if not path.startswith("state/sft/"):
        return True
    newest = max(int(p.parent.name.rpartition("-")[2]) for p in (root / "state/sft").rglob("COMPLETE"))
    return path.split("/")[3] == f"checkpoint-{newest}"


def killed_at_every_operation(copy: Mirror, change: Callable[[], None]) -> Iterator[dict[str, bytes]]:
    """The copy after a push of `change` that was killed at its first operation, its second, and so on to the end."""
    copy.pull()
    copy.push()
    before = {path: file.getvalue() for path, file in Faulty.store.items()}
    known = dict(copy._there)
    change()
    while Faulty.stop is None or Faulty.count >= Faulty.stop:
        Faulty.store.clear()
        Faulty.store.update({path: MemoryFile(None, path, data) for path, data in before.items()})
        copy._there = dict(known)
        Faulty.count, Faulty.stop = 0, 1 if Faulty.stop is None else Faulty.stop + 1
        with suppress(BaseException):
            copy.push()
        reached, Faulty.count = Faulty.count, -(10**6)
        yield contents(copy.remote)
        Faulty.count = reached


@pytest.mark.parametrize("change", ["retain", "unit", "state", "trunk"])
def test_a_change_that_is_killed_at_any_operation(tmp_path: Path, change: str) -> None:
    work = Work(tmp_path / "study", 6)
    work.random = random.Random(1)
    while not list(work.files.checkpoints.rglob("rl/*/config.json")):
        work.unit()
    for _ in range(3):
        work.trunk()
    work.random.random = lambda: 1.0  # type: ignore[method-assign]  # states stay
    while len(list(work.files.root.rglob("CURRENT"))) < 2:
        work.state()
    moments, start = 0, contents(Folder.of(work.files.root))
    first: dict[str, bytes] = {}

    def go_on() -> None:
        while contents(Folder.of(work.files.root)) == start:
            getattr(work, change)()

    for found in killed_at_every_operation(mirror(remote(), tmp_path / "study", patience=0.0), go_on):
        check(found)
        # Whatever moment it is, there is a state to resume from.
        assert sum(path.endswith("/CURRENT") for path in found) == 2
        assert any(path.endswith("/COMPLETE") for path in found)
        moments += 1
        first = first or found
    assert moments > 10 and found != first
    check(found)


def test_a_directory_that_is_replaced_while_it_is_held_is_held_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, link = tmp_path / "study", os.link
    directory = root / "checkpoints" / "base"
    replaced: list[str] = []

    def replace() -> None:
        with new_directory(directory) as new:
            for name in ("a.safetensors", "b.safetensors", "config.json"):
                (new / name).write_text(f"version {len(replaced)}")

    def slow(source: str, target: Path) -> None:
        link(source, target)
        if len(replaced) < 2:
            replaced.append(source)
            replace()

    monkeypatch.setattr(os, "link", slow)
    replace()
    held = hold(root, tmp_path / "held", {})
    assert len(replaced) == 2
    assert set(held) == {f"checkpoints/base/{path.name}" for path in directory.iterdir()}
    for path in held:
        assert (tmp_path / "held" / path).read_bytes() == (root / path).read_bytes()


def test_a_study_that_goes_on_meanwhile_is_copied_as_it_was_at_some_moment(tmp_path: Path) -> None:
    work, done = Work(tmp_path / "study", 1), threading.Event()
    copy = mirror(remote(), tmp_path / "study", workers=4)
    copy.pull()

    def go_on() -> None:
        while not done.is_set():
            work.step()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        deadline = time.monotonic() + 8
        pushes = 0
        while time.monotonic() < deadline:
            copy.push()
            check(contents(copy.remote))
            pushes += 1
    finally:
        done.set()
        thread.join()
    assert pushes > 3 and work.count > 100


def test_failures_now_and_then_are_outlived(tmp_path: Path) -> None:
    work, where = Work(tmp_path / "study", 2), remote()
    for _ in range(30):
        work.step()
    random.seed(5)
    Faulty.fails = 0.05  # of each operation, of which a file takes a dozen
    copy = mirror(where, tmp_path / "study", patience=60.0, workers=8)
    copy.check()
    copy.pull()
    assert copy.end() is None
    assert not [path for path in Faulty.store if ".tmp-" in path], (
        "half-written, where removing it failed too"
    )
    there = mirror(where, tmp_path / "there" / "study", patience=60.0, workers=8)
    there.pull()
    Faulty.fails = 0.0
    assert contents(Folder.of(there.root)) == contents(where)
    check(contents(where))


def test_an_outage_at_the_end_is_told_and_the_rest_is_pushed_by_the_next_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where, root = remote(), tmp_path / "study"
    copy = mirror(where, root)
    work = Work(root, 3)
    with mirrored(copy):
        work.unit()
        Faulty.fails = 1.0
        cause = copy.end()
    assert cause is not None and "503 Slow Down" in cause and str(root) in cause
    assert capsys.readouterr().err.count("503 Slow Down") <= 1
    Faulty.fails = 0.0
    again = mirror(where, root)
    again.pull()
    assert again.end() is None
    assert contents(where) == contents(Folder.of(root)) != {}


def test_an_interrupt_pushes_and_goes_on(tmp_path: Path) -> None:
    copy = mirror(remote(), tmp_path / "study", interval=0.05)
    with pytest.raises(KeyboardInterrupt), mirrored(copy):
        Work(copy.root, 4).unit()
        raise KeyboardInterrupt
    assert contents(copy.remote) == contents(Folder.of(copy.root)) != {}
    assert json.loads(copy.remote.read(FILE))["ended"] is True


def test_it_pushes_in_the_background(tmp_path: Path) -> None:
    copy = mirror(remote(), tmp_path / "study", interval=0.05)
    with mirrored(copy):
        Work(copy.root, 4).unit()
        deadline = time.monotonic() + 10
        while not contents(copy.remote):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert copy.end() is None


def test_whoever_wrote_last_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = remote()
    a, b = mirror(where, tmp_path / "a" / "study"), mirror(where, tmp_path / "b" / "study")
    write_text(a.root / "tables" / "one", "1")
    a.pull()
    a.end()
    write_text(a.root / "tables" / "ahead", "not pushed")
    again = mirror(where, a.root)
    again.pull()  # nobody else was there: what is ahead stays
    assert (a.root / "tables" / "ahead").exists() and "fetched" not in capsys.readouterr().err
    b.pull()
    assert sorted(contents(Folder.of(b.root))) == ["tables/one"]
    assert "1 files" in capsys.readouterr().err
    write_text(b.root / "tables" / "two", "2")
    b.end()
    assert (cause := again.end()) is not None and "another run has taken this copy over" in cause
    mirror(where, a.root).pull()
    assert sorted(contents(Folder.of(a.root))) == ["tables/one", "tables/two"]
    assert not list(tmp_path.rglob(".study.mirror"))


def test_a_directory_that_was_emptied_is_fetched_and_empties_nothing(tmp_path: Path) -> None:
    copy = mirror(remote(), tmp_path / "study")
    write_text(copy.root / "tables" / "one", "1")
    copy.pull()
    copy.end()
    (copy.root / "tables" / "one").unlink()
    (copy.root / "tables").rmdir()
    mirror(copy.remote, copy.root).pull()
    assert (copy.root / "tables" / "one").read_text() == "1"


def test_a_study_that_is_no_copy_is_not_replaced(tmp_path: Path) -> None:
    copy = mirror(remote(), tmp_path / "a" / "study")
    write_text(copy.root / "tables" / "one", "1")
    copy.pull()
    copy.end()
    other = mirror(copy.remote, tmp_path / "b" / "study")
    write_text(other.root / "precious", "2")
    with pytest.raises(InputError, match=r"work \(got .*no copy of.*another directory"):
        other.pull()
    assert (other.root / "precious").read_text() == "2"


@pytest.mark.parametrize(
    ("holder", "refused"),
    [
        ({"host": "elsewhere", "at": 0}, True),
        ({"host": "elsewhere", "at": -1000}, False),
        ({"host": "elsewhere", "at": 0, "ended": True}, False),
        ({"at": 0, "pid": 2**22 + 1}, False),
        ({"at": 0, "pid": 1, "began": 1.0}, False),
        ({"at": 0, "pid": 1, "began": "real"}, True),
    ],
)
def test_a_copy_that_another_process_works_on_is_refused(
    tmp_path: Path, holder: dict[str, Any], refused: bool
) -> None:
    copy = mirror(remote(), tmp_path / "study", interval=60.0)
    state = {
        "generation": "g",
        "host": socket.gethostname(),
        "pid": 77,
        "began": 5.0,
        "ended": False,
        **holder,
    }
    if state["began"] == "real":
        state["began"] = psutil.Process(state["pid"]).create_time()
    copy.remote.write(FILE, json.dumps({**state, "at": time.time() + state["at"]}).encode())
    if refused:
        with pytest.raises(InputError, match=r"storage.*process \d+ on .* works on the study.*another name"):
            copy.pull()
    else:
        copy.pull()


def test_caches_and_hidden_files_stay_here(tmp_path: Path) -> None:
    copy = mirror(remote(), tmp_path / "study")
    for path in (
        "factors/f",
        "pieces/p",
        "train/t",
        "tune/nano-branches/b",
        ".lock",
        "logs/.x.tmp-1",
        "a/.b/c",
    ):
        write_text(copy.root / path, "x")
    for path in ("tune/tensorboard/run/events", "logs/events.jsonl", "hidden/a.safetensors", "study.yaml"):
        write_text(copy.root / path, "x")
    copy.pull()
    copy.end()
    assert sorted(contents(copy.remote)) == [
        "hidden/a.safetensors", "logs/events.jsonl", "study.yaml", "tune/tensorboard/run/events",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/x", "a//x", "", "a/", ".lock", "a/.b/c", "factors/f"]
)
def test_a_name_that_leads_elsewhere_is_no_file_of_the_study(name: str) -> None:
    assert not is_mirrored(name) and is_mirrored("tables/x.parquet")


def test_a_view_has_what_a_status_reads_and_of_weights_the_sizes(tmp_path: Path) -> None:
    copy = mirror(remote(), tmp_path / "study")
    weights = "checkpoints/base/model.safetensors"
    write_text(copy.root / weights, "weights" * 1000)
    write_json(copy.root / "markers" / "base.json", {"fingerprint": "f"})
    copy.pull()
    copy.push()
    view = View(copy.remote, for_status)
    assert (view.root / weights).read_bytes() == bytes(7000)
    assert json.loads((view.root / "markers" / "base.json").read_text()) == {"fingerprint": "f"}
    assert view.is_worked_on
    (copy.root / "markers" / "base.json").unlink()
    write_json(copy.root / "timings.json", {"rl": 1.0})
    copy.end()
    view.refresh()
    assert not (view.root / "markers" / "base.json").exists() and (view.root / "timings.json").exists()
    assert not view.is_worked_on
    view.close()
    assert not view.root.exists()


def test_a_listing_that_fails_is_no_empty_folder() -> None:
    where = remote()
    where.child("a").write("b", b"1")
    Faulty.fails = 1.0
    with pytest.raises(OSError, match=re.escape("503")):
        where.listing()
