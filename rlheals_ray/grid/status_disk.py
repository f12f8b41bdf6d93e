"""A study's directory as one walk finds it while others write there: markers, bytes, the last write, who holds it.

Nothing is written or locked, and nothing that is missing, damaged or gone by now raises: it counts as not there.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

LOCK = ".lock"
_LOCKS = Path("/proc/locks")
"""Linux: every lock, with its process (proc_locks(5))."""
_FLOCK = "hhqqi"
"""struct flock of fcntl(2) on 64-bit Linux: type, whence, start, length, process."""

Stamp = tuple[int, int]
"""(time of writing in ns, size): a file that was replaced has another."""


@dataclass(frozen=True)
class Written:
    """A file, by its path in the study, and when it was written, in seconds since the epoch."""

    path: str
    at: float


@dataclass(frozen=True)
class Holder:
    """Who works on a study; pid and command are unknown for a process of another machine."""

    since: float
    """Seconds since the epoch: the process began, or else the lock was last asked for."""
    pid: int | None = None
    command: str | None = None


@dataclass
class Disk:
    """The files of a study at one moment. Paths are relative to its root, `/` between their parts."""

    root: Path
    files: dict[str, Stamp] = field(default_factory=dict)
    folders: dict[str, list[str]] = field(default_factory=dict)
    """The names of the directories in each directory; "" is the root."""
    bytes: dict[str, int] = field(default_factory=dict)
    """By the directory (or file) directly in the root; a file with several names counts once."""
    _newest: dict[str, Written] = field(default_factory=dict)
    _read: dict[str, tuple[Stamp, Any]] = field(default_factory=dict)

    @classmethod
    def walk(cls, root: Path, before: Disk | None = None) -> Disk:
        """List every directory once. `before`: an earlier walk, whose unchanged files are not read again."""
        disk = cls(root, _read={} if before is None else before._read)
        linked: set[tuple[int, int]] = set()
        open_folders = [""]
        while open_folders:
            folder = open_folders.pop()
            try:
                with os.scandir(root / folder) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except OSError:  # removed, or replaced, since its parent was listed
                continue
            names = disk.folders.setdefault(folder, [])
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                try:
                    if entry.is_dir(follow_symlinks=False):
                        names.append(entry.name)
                        open_folders.append(path)
                        continue
                    found = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                disk._add(folder, path, found, linked)
        return disk

    def _add(self, folder: str, path: str, found: os.stat_result, linked: set[tuple[int, int]]) -> None:
        self.files[path] = (found.st_mtime_ns, found.st_size)
        top = path.partition("/")[0]
        inode = (found.st_dev, found.st_ino)
        if found.st_nlink == 1 or inode not in linked:
            self.bytes[top] = self.bytes.get(top, 0) + found.st_size
            if found.st_nlink > 1:
                linked.add(inode)
        if not path.startswith(".") and (
            folder not in self._newest or found.st_mtime > self._newest[folder].at
        ):
            self._newest[folder] = Written(path, found.st_mtime)

    def newest(self, *below: str) -> Written | None:
        """The file that was written last in these directories and below them; in the whole study without any."""
        found = (
            written
            for folder, written in self._newest.items()
            if not below or any(folder == name or folder.startswith(f"{name}/") for name in below)
        )
        return max(found, key=lambda written: written.at, default=None)

    def json(self, path: str) -> dict[str, Any]:
        """The JSON object in a file; {} where there is none."""
        value = self._once(path, _json)
        return value if isinstance(value, dict) else {}

    def text(self, path: str) -> str | None:
        """A small file's text; None where there is none."""
        value = self._once(path, _text)
        return value if isinstance(value, str) else None

    def metadata(self, path: str) -> dict[str, str]:
        """What a safetensors file says of itself; {} where there is none. Its tensors are not read."""
        value = self._once(path, _metadata)
        return value if isinstance(value, dict) else {}

    def _once(self, path: str, read: Any) -> Any:
        stamp = self.files.get(path)
        if stamp is None:
            return None
        known = self._read.get(path)
        if known is None or known[0] != stamp:
            known = self._read[path] = (stamp, read(self.root / path))
        return known[1]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (OSError, ValueError, SafetensorError):
        return {}


def holder_of(root: Path) -> Holder | None:
    """The process that holds a study's lock; None where this machine sees none.

    The lock itself is never asked for: for that moment a run that starts would be refused.
    """
    path = root / LOCK
    try:
        found = path.stat()
        for pid, device in _holding(found.st_ino):
            if device == (os.major(found.st_dev), os.minor(found.st_dev)) or _has_open(pid, path):
                return _process(pid, found.st_mtime)
        return Holder(found.st_mtime) if _is_locked_elsewhere(path) else None
    except OSError:
        return None


def _holding(inode: int) -> list[tuple[int, tuple[int, int]]]:
    """(process, device) of every whole-file lock on a file of this number."""
    found = []
    for line in (_text(_LOCKS) or "").splitlines():
        # `1: FLOCK ADVISORY WRITE 8195 fe:00:2449859 0 EOF`; those that wait have `->` behind the number
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK" and words[3] == "WRITE":
            major, minor, number = words[5].split(":")
            if int(number) == inode:
                found.append((int(words[4]), (int(major, 16), int(minor, 16))))
    return found


def _has_open(pid: int, path: Path) -> bool:
    # Some filesystems (overlay, btrfs) show files under another device than their locks.
    try:
        return str(path) in {file.path for file in psutil.Process(pid).open_files()}
    except psutil.Error:
        return False


def _process(pid: int, asked: float) -> Holder:
    try:
        process = psutil.Process(pid)
        return Holder(process.create_time(), pid, shlex.join(process.cmdline()))
    except psutil.Error:
        return Holder(asked, pid)


def _is_locked_elsewhere(path: Path) -> bool:
    """Whether another machine holds the lock: NFS keeps flock's locks as byte ranges, which can be asked about."""
    with path.open("rb") as file:
        wanted = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(file, fcntl.F_GETLK, wanted)
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
