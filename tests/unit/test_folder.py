"""A folder reads and writes the same on every filesystem, whole files only, and refuses what it cannot use."""

import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

from rlheals_ray.config import InputError
from rlheals_ray.folder import Folder


@pytest.fixture(params=["path", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    """An empty folder: a local path, a file:// URI, and a filesystem that is not local."""
    where = {
        "path": str(tmp_path / "f"),
        "file": f"file://{tmp_path}/f",
        "memory": f"memory://{uuid.uuid4().hex}/f",
    }
    folder = Folder.of(where[request.param])
    yield folder
    folder.delete()


def test_what_is_written_is_read_whole_and_in_ranges(folder: Folder) -> None:
    assert not folder.exists() and folder.names() == []
    folder.write("b", b"0123456789")
    folder.write("a", b"")
    folder.child("below").write("c", b"c")
    assert folder.exists() and folder.exists("a") and folder.exists("below") and not folder.exists("c")
    assert folder.names() == ["a", "b"]
    assert folder.read("b") == b"0123456789" and folder.size("b") == 10 and folder.size("a") == 0
    assert folder.read_range("b", 3, 4) == b"3456"
    assert folder.read_range("b", 8, 5) == b"89"
    assert folder.read("below/c") == b"c"
    folder.write("b", b"new")
    assert folder.read("b") == b"new"


def test_a_file_appears_when_it_is_whole(folder: Folder) -> None:
    folder.write("kept", b"old")
    for name in ("new", "kept"):
        with pytest.raises(RuntimeError, match="stop"), folder.open_output(name) as file:
            file.write(b"half")
            assert folder.names() == ["kept"] and folder.read("kept") == b"old"
            raise RuntimeError("stop")
    assert folder.names() == ["kept"] and folder.read("kept") == b"old"
    if folder.local:
        assert [path.name for path in folder.local.iterdir()] == ["kept"]


def test_missing_files_are_told_and_deletion_forgives(folder: Folder) -> None:
    for missing in (folder.read, folder.size, lambda name: folder.read_range(name, 0, 1)):
        with pytest.raises(FileNotFoundError):
            missing("nothing")
    folder.remove("nothing")
    folder.delete()
    folder.write("a", b"a")
    folder.child("d").write("b", b"b")
    folder.remove("a")
    assert folder.names() == [] and folder.exists()
    folder.delete()
    assert not folder.exists()


def test_a_folder_travels_between_processes_by_its_uri(folder: Folder) -> None:
    folder.child("seed=0/step 1").write("a", b"a")
    for same in (pickle.loads(pickle.dumps(folder)), Folder.of(folder.uri), Folder.of(folder)):
        assert same == folder
        assert same.child("seed=0").child("step 1").read("a") == b"a"
    assert Folder.of(folder.child("seed=0/step 1").uri).read("a") == b"a"


def test_files_are_copied_between_filesystems(folder: Folder, tmp_path: Path) -> None:
    folder.write("a", b"content")
    for where in (str(tmp_path / "to"), f"memory://{uuid.uuid4().hex}/to"):
        to = Folder.of(where)
        folder.copy("a", to, link=True)
        assert to.names() == ["a"] and to.read("a") == b"content"
        to.delete()


def test_links_are_made_only_where_asked_and_survive_replacement(tmp_path: Path) -> None:
    source, linked, copied = (Folder.of(tmp_path / name) for name in ("source", "linked", "copied"))
    source.write("a", b"old")
    source.copy("a", linked, link=True)
    source.copy("a", copied)
    assert (tmp_path / "linked" / "a").samefile(tmp_path / "source" / "a")
    assert not (tmp_path / "copied" / "a").samefile(tmp_path / "source" / "a")
    source.write("a", b"new")
    assert linked.read("a") == copied.read("a") == b"old"


def test_local_paths_are_plain_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for where in ("x/y", Path("x/y"), "./x/../x/y/", f"file://{tmp_path}/x/y", tmp_path / "x" / "y"):
        assert Folder.of(where).local == tmp_path / "x" / "y"
        assert Folder.of(where).uri == str(tmp_path / "x" / "y")
    assert Folder.of("memory://x/y").local is None


def test_uris_that_cannot_be_used_are_refused_with_a_remedy() -> None:
    for wrong in ("nonsense://a/b", "s3://bucket/a b", "s3://", "gs://", "s3://[x", ""):
        with pytest.raises(InputError, match="directory") as refusal:
            Folder.of(wrong)
        assert repr(wrong.rstrip("/")) in str(refusal.value) or repr(wrong) in str(refusal.value)


def test_names_do_not_lead_out_of_a_folder(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    for name in ("../x", "/etc/passwd", "a/../../b", "."):
        with pytest.raises(ValueError, match="no name below"):
            folder.read(name)
        with pytest.raises(ValueError, match="no name below"):
            folder.child(name)


def test_uris_of_object_stores_keep_their_options() -> None:
    """Parsed only: no bucket is at hand (UNTESTED beyond this)."""
    folder = Folder.of("s3://bucket/runs?region=eu-west-1").child("seed=0").child("a b")
    assert folder.uri == "s3://bucket/runs/seed=0/a%20b?region=eu-west-1"
    assert folder._path("x") == "bucket/runs/seed=0/a b/x"


def test_a_listing_has_all_files_below_and_hides_what_is_being_written(folder: Folder) -> None:
    assert folder.listing() == {}
    folder.write("b", b"12")
    folder.child("a a/c=d").write("e", b"3")
    folder.child("a a").write(".x.tmp-1", b"")
    assert {name: one.size for name, one in folder.listing().items()} == {"b": 2, "a a/c=d/e": 1}
    assert set(folder.listing(hidden=True)) == {"b", "a a/c=d/e", "a a/.x.tmp-1"}
    times = [one.mtime for one in folder.listing().values()]
    assert all(time is not None for time in times)
    assert set(folder.child("a a").listing()) == {"c=d/e"}


def test_a_child_of_a_uri_without_a_host_keeps_its_slashes() -> None:
    assert Folder("nosuch:///a/b").child("c d") == Folder("nosuch:///a/b/c d")


@pytest.mark.parametrize("removed", ["/f/a", "/f/a/b"])
def test_a_directory_that_is_removed_while_it_is_listed_has_no_files(
    monkeypatch: pytest.MonkeyPatch, removed: str
) -> None:
    folder = Folder.of(f"memory://{uuid.uuid4().hex}/f")
    folder.write("kept", b"1")
    folder.child("a/b").write("c", b"2")
    whole = MemoryFileSystem.ls

    def ls(self: MemoryFileSystem, path: str, *arguments: Any, **options: Any) -> Any:
        if path.endswith("/f/a/b"):
            for name in [name for name in self.store if removed in name]:
                del self.store[name]
            self.pseudo_dirs[:] = [name for name in self.pseudo_dirs if removed not in name]
        return whole(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    assert set(folder.listing()) == {"kept"}


def test_a_directory_that_is_there_and_not_found_fails_the_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder.of(f"memory://{uuid.uuid4().hex}/f")
    folder.child("a").write("b", b"1")
    whole = MemoryFileSystem.ls

    def ls(self: MemoryFileSystem, path: str, *arguments: Any, **options: Any) -> Any:
        if path.endswith("/f/a"):
            raise FileNotFoundError(path)
        return whole(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    with pytest.raises(FileNotFoundError):
        folder.listing()
