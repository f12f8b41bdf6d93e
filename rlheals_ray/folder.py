"""A directory on any pyarrow filesystem: a local path, or a URI such as s3://bucket/dir, gs://, hdfs:// or file://.

Schemes that pyarrow does not know are tried with fsspec. Tests cover local directories and fsspec's memory:// and
local://. s3:// has been run by hand against an emulator (moto), on AWS it is UNTESTED, as are gs:// and hdfs://.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.fs

from rlheals_ray.config import InputError

_ARROW = frozenset({"file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss"})
"""Schemes that pyarrow opens itself."""
_OBJECT_STORES = frozenset({"s3", "gcs", "abfs"})
"""An object appears there when its upload is completed, and renaming one means copying it."""
_LARGEST_COPY = 5 * 10**9
"""Bytes that S3 copies on its own side in one request; larger objects pass through this process."""
_CHUNK = 4 << 20
_DISCARD_SECONDS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Before each try to remove a file that is half-written."""


Attempt = Callable[[Callable[[], Any]], Any]


def _once(work: Callable[[], Any]) -> Any:
    return work()


@dataclass(frozen=True)
class Listed:
    """A file as a listing shows it."""

    size: int
    mtime: float | None = None
    """When it was written, in seconds since the epoch; None where the filesystem does not tell."""


@dataclass(frozen=True)
class Folder:
    """A directory by its URI; it need not exist. Make one by `Folder.of`.

    uri: the absolute path of a local directory, else the URI; `Folder.of(folder.uri)` is the same folder.
    Names are those of files in it, or of files below it: `a/b`. Files that begin with a dot are being written
    and are not listed. A missing file raises FileNotFoundError, another failure of the filesystem OSError.
    """

    uri: str

    @classmethod
    def of(cls, where: str | Path | Folder) -> Folder:
        """The folder at a local path (made absolute) or a URI. Raises InputError for one that cannot be used."""
        if isinstance(where, Folder):
            return where
        text = str(where)
        if isinstance(where, Path) or ("://" not in text and not text.startswith("file:")):
            if not text:
                raise InputError("directory (got ''): it has no name; give a local path or a URI.")
            return cls(os.path.normpath(Path(text).expanduser().absolute()))
        folder = cls(text.rstrip("/"))
        filesystem, path = folder._place
        if not path:
            raise InputError(f"directory (got {text!r}): the URI names no bucket or directory; add it.")
        if isinstance(filesystem, pa.fs.LocalFileSystem):
            return cls(os.path.normpath(path))
        return folder

    @property
    def local(self) -> Path | None:
        """The directory as a local path; None when it lies on another filesystem."""
        return Path(self.uri) if self.uri.startswith("/") else None

    def child(self, name: str) -> Folder:
        """The folder `name` (or `a/b`) in this one."""
        if self.local:
            return Folder(str(self.local / _relative(name)))
        parts = urlsplit(self.uri)
        # pyarrow decodes what a URI encodes; fsspec takes it as it stands.
        known = parts.scheme in _ARROW
        below = quote(_relative(name), safe="/=+,@:~") if known else _relative(name)
        rest = self.uri.partition("://")[2][len(parts.netloc) + len(parts.path) :]  # a query
        # Not by urlunsplit: of a scheme that it does not know, without a host, it drops the two slashes.
        return Folder(f"{parts.scheme}://{parts.netloc}{parts.path}/{below}{rest}")

    def exists(self, name: str = "") -> bool:
        """Whether the file or folder `name` is there; without a name, the folder itself."""
        if self.local:
            return (self.local / name).exists()
        info = self._filesystem.get_file_info(self._path(name))
        return bool(info.type != pa.fs.FileType.NotFound)

    def names(self) -> list[str]:
        """The names of the files directly in the folder, sorted; none where the folder is not there."""
        if self.local:
            found = [path.name for path in self.local.iterdir() if path.is_file()] if self.exists() else []
        else:
            selector = pa.fs.FileSelector(self._path(), allow_not_found=True)
            infos = self._filesystem.get_file_info(selector)
            found = [info.base_name for info in infos if info.type == pa.fs.FileType.File]
        return sorted(name for name in found if not name.startswith("."))

    def listing(self, hidden: bool = False, attempt: Attempt = _once) -> dict[str, Listed]:
        """Every file in the folder and below it, by name; none where the folder is not there.

        hidden: those too whose name, or a folder's on the way, begins with a dot. attempt: calls what it is given, as
        often as it likes: one request of many. A directory that cannot be listed raises OSError: a listing is never in
        part. One that is removed meanwhile has no files.
        """
        if self.local:
            found = _walk_local(self.local)
        elif not attempt(self.exists):
            return {}
        elif isinstance(self._filesystem, pa.fs.PyFileSystem):
            found = _walk_fsspec(self._filesystem.handler.fs, self._path(), attempt)
        else:
            selector = pa.fs.FileSelector(self._path(), recursive=True)
            infos = attempt(lambda: self._filesystem.get_file_info(selector))
            skipped = len(self._path()) + 1
            found = (
                (
                    info.path[skipped:],
                    Listed(int(info.size), None if info.mtime is None else info.mtime.timestamp()),
                )
                for info in infos
                if info.type == pa.fs.FileType.File
            )
        return {
            name: listed
            for name, listed in found
            if hidden or not any(part.startswith(".") for part in name.split("/"))
        }

    def size(self, name: str) -> int:
        """The size of a file in bytes."""
        if self.local:
            return (self.local / _relative(name)).stat().st_size
        info = self._filesystem.get_file_info(self._path(name))
        if info.type != pa.fs.FileType.File:
            raise FileNotFoundError(f"{self.uri}: there is no file {name!r}")
        return int(info.size)

    def read(self, name: str) -> bytes:
        """A whole file."""
        with self.open_input(name) as file:
            return bytes(file.read())

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer where the file ends before."""
        with self.open_input(name) as file:
            file.seek(offset)
            return bytes(file.read(length))

    @contextmanager
    def open_input(self, name: str) -> Iterator[IO[bytes]]:
        """A file to read, with seek: remote ones fetch the ranges that are read."""
        if self.local:
            with (self.local / _relative(name)).open("rb") as file:
                yield file
            return
        with self._filesystem.open_input_file(self._path(name)) as file:
            yield file

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a whole file or nothing, replacing what was there."""
        with self.open_output(name) as file:
            file.write(data)

    @contextmanager
    def open_output(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write in order; it appears under its name, whole, when the block ends without an exception.

        On an object store an exception of the block leaves no object either, but for a moment a reader could
        see a part: what readers look for first, such as an index, is to be written last and by `write`.
        """
        relative = _relative(name)
        temporary = (
            f"{PurePosixPath(relative).with_name(f'.{PurePosixPath(relative).name}.tmp-{uuid.uuid4().hex}')}"
        )
        if self.local:
            path = self.local / temporary
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with path.open("wb") as file:
                    yield file
                path.replace(self.local / relative)
            finally:
                path.unlink(missing_ok=True)
            return
        target = relative if self._filesystem.type_name in _OBJECT_STORES else temporary
        self._filesystem.create_dir(str(PurePosixPath(self._path(relative)).parent), recursive=True)
        try:
            with self._filesystem.open_output_stream(self._path(target)) as stream:
                yield stream
            if target == temporary:
                self._filesystem.move(self._path(temporary), self._path(relative))
        except BaseException:
            self._discard(target)
            raise

    def _discard(self, name: str) -> None:
        """Remove what was left half-written; a filesystem that failed once may well fail again."""
        for after in _DISCARD_SECONDS:
            time.sleep(after)
            with suppress(Exception):
                self.remove(name)
                return

    def copy(self, name: str, to: Folder, link: bool = False) -> None:
        """Copy a file into another folder under the same name, whole or not at all.

        link: a hard link instead, where both are on one local filesystem that has them. Safe for files that
        are only ever replaced, never changed in place.
        """
        if self.local and to.local:
            _copy_local(self.local / _relative(name), to.local / _relative(name), link)
            return
        here, there = self._filesystem, to._filesystem
        if here.type_name in _OBJECT_STORES and here.equals(there) and self.size(name) <= _LARGEST_COPY:
            here.copy_file(self._path(name), to._path(name))
            return
        with self.open_input(name) as source, to.open_output(name) as target:
            shutil.copyfileobj(source, target, _CHUNK)

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        if self.local:
            (self.local / _relative(name)).unlink(missing_ok=True)
        elif self.exists(name):
            self._filesystem.delete_file(self._path(name))

    def delete(self) -> None:
        """Delete the folder with all below it, if it is there."""
        if self.local:
            shutil.rmtree(self.local, ignore_errors=True)
        elif self.exists():
            self._filesystem.delete_dir(self._path())

    def __str__(self) -> str:
        return self.uri

    def __reduce__(self) -> tuple[Any, ...]:
        # The filesystem itself stays here: another process opens its own.
        return Folder, (self.uri,)

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """The filesystem, and the directory's path in it."""
        try:
            if urlsplit(self.uri).scheme not in _ARROW:
                return self._from_fsspec()
            filesystem, path = pa.fs.FileSystem.from_uri(self.uri)
        except (ValueError, OSError, NotImplementedError, ImportError) as error:
            raise self._unusable(error) from None
        return filesystem, path.rstrip("/")

    def _from_fsspec(self) -> tuple[Any, str]:
        import fsspec.core  # type: ignore[import-untyped]

        filesystem, path = fsspec.core.url_to_fs(self.uri)
        return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(filesystem)), str(path).rstrip("/")

    def _unusable(self, error: Exception) -> InputError:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return InputError(
            f"directory (got {self.uri!r}): the filesystem of this URI cannot be used ({reason}); give a local path, "
            "or a URI such as s3://bucket/directory, with special characters percent-encoded."
        )

    @property
    def _filesystem(self) -> Any:
        return pa.fs.LocalFileSystem() if self.local else self._place[0]

    def _path(self, name: str = "") -> str:
        root = self.uri if self.local else self._place[1]
        return f"{root}/{_relative(name)}" if name else root


def _walk_local(root: Path) -> Iterator[tuple[str, Listed]]:
    for folder, _, names in os.walk(root, onerror=_raise_unless_gone):
        for name in names:
            path = Path(folder) / name
            found = path.stat()
            yield path.relative_to(root).as_posix(), Listed(found.st_size, found.st_mtime)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _walk_fsspec(
    filesystem: Any, root: str, attempt: Attempt, path: str = "", below: str = ""
) -> Iterator[tuple[str, Listed]]:
    """By `ls` alone: fsspec's own `find` leaves out what it cannot list, and says nothing."""
    path = path or root

    def listed() -> list[dict[str, Any]]:
        filesystem.invalidate_cache()
        try:
            return list(filesystem.ls(path, detail=True))
        except FileNotFoundError:
            if _is_gone(filesystem, root, path):
                return []
            raise

    for info in attempt(listed):
        where = info["name"].rstrip("/")
        name = where.rpartition("/")[2]
        if where.strip("/") == path.strip("/"):
            continue  # some stores list a directory in itself
        if info["type"] == "directory":
            yield from _walk_fsspec(filesystem, root, attempt, where, f"{below}{name}/")
        else:
            yield f"{below}{name}", Listed(int(info["size"]), _moment(info))


def _is_gone(filesystem: Any, root: str, path: str) -> bool:
    """Whether a directory below `root`, which was listed, was removed since: what it was in lists it no more.

    That it is not found is not enough: a listing without what is there would be one in part.
    """
    if path.strip("/") == root.strip("/"):
        return False
    parent = path.rpartition("/")[0]
    try:
        beside = filesystem.ls(parent, detail=True)
    except FileNotFoundError:
        return _is_gone(filesystem, root, parent)
    return all(info["name"].strip("/") != path.strip("/") for info in beside)


def _moment(info: dict[str, Any]) -> float | None:
    """When a file was written; fsspec's filesystems have no one name for it."""
    for key in ("mtime", "LastModified", "updated", "last_modified", "created"):
        value = info.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None


def _relative(name: str) -> str:
    """The name, if it leads to something below the folder; else ValueError."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts:
        raise ValueError(f"{name!r} is no name below a folder")
    return str(path)


def _copy_local(source: Path, target: Path, link: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp-{uuid.uuid4().hex}")
    try:
        try:
            if not link:
                raise OSError
            # A link to a symbolic link would point elsewhere from another directory.
            os.link(source.resolve(), temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
