"""What of a study's directory is mirrored, held still while it is copied though the study goes on.

Files that are only ever replaced are held by a hard link. Directories that count as a whole (a checkpoint, a state) are
held as a whole or not at all. What is taken first promises the least: markers before their data, states before the
checkpoints that a resumed run takes for published.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

Stamp = tuple[int, int, int]
"""(size, time of writing in ns, inode): a file that was replaced or changed has another."""

MARKERS, STATE, NOTE = "markers/", "state/", "REMOVED.md"
SEALS = frozenset({"provenance.json", "config.json", "CURRENT", "COMPLETE", "branch.json"})
"""Files by which a directory counts as whole: of a checkpoint, of a state."""
_COMPLETE = ("COMPLETE", "branch.json")
"""What makes a trainer's checkpoint a state (`sft/run_state.py`, `rl/trl_learner.py`); PPO's has CURRENT."""

_CACHES = ("factors/", "pieces/", "train/", "tune/")
_KEPT = "tune/tensorboard/"
_TRIES = 5


def is_mirrored(path: str) -> bool:
    """Whether a file of a study belongs to its copy: not what is hidden, nor caches that a run makes again.

    An object's name may be anything: one that leads out of the study's directory is no file of it.
    """
    if any(not part or part.startswith(".") for part in path.split("/")):
        return False
    return path.startswith(_KEPT) or not path.startswith(_CACHES)


def is_seal(path: str) -> bool:
    """Whether the file says that others beside and below it are whole."""
    return not path.startswith(MARKERS) and path.rpartition("/")[2] in SEALS


def parents(paths: Iterable[str]) -> set[str]:
    """Every directory that one of the files is in."""
    return {str(parent) for path in paths for parent in PurePosixPath(path).parents}


def stamp_of(path: Path) -> Stamp | None:
    """None where there is no such file."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def hold(root: Path, into: Path, known: Mapping[str, Stamp | None]) -> dict[str, Stamp | None]:
    """Every file of the study that is mirrored; those with another stamp than in `known` are held under `into`.

    A marker is among them only with all the data that it stands for. A state that is replaced faster than it can be
    held stays as it is known.
    """
    shutil.rmtree(into, ignore_errors=True)
    still = _Still(root, into, known)
    markers = still.below(MARKERS)
    states = still.below(STATE)
    rest = still.below("", but=(MARKERS, STATE))
    # Of a unit that was begun again meanwhile the marker went first, and then perhaps its data.
    kept = {path: stamp for path, stamp in markers.items() if stamp_of(root / path) == stamp}
    return {**rest, **states, **kept}


class _Still:
    def __init__(self, root: Path, into: Path, known: Mapping[str, Stamp | None]) -> None:
        self._root, self._into, self._known = root, into, known

    def below(self, folder: str, but: tuple[str, ...] = ()) -> dict[str, Stamp | None]:
        """All files below a directory, which is "" or ends with a slash."""
        files, folders = self._entries(folder)
        names = {path.rpartition("/")[2] for path in files}
        if (names & SEALS and not folder.startswith(MARKERS)) or _has_states(folder, folders):
            return self._whole(folder)
        found: dict[str, Stamp | None] = {}
        for path in files:
            stamp = stamp_of(self._root / path)
            if stamp is not None and self._hold(path, stamp):
                found[path] = stamp
        for path in folders:
            if path not in but:
                found |= self.below(path)
        return found

    def _whole(self, folder: str) -> dict[str, Stamp | None]:
        for _ in range(_TRIES):
            before = self._stamps(folder)
            # Both: a file may have gone before it was held, or the directory another way after.
            if all([self._hold(path, stamp) for path, stamp in before.items()]) and (
                before == self._stamps(folder)
            ):
                return dict(before)
        return {path: stamp for path, stamp in self._known.items() if path.startswith(folder)}

    def _stamps(self, folder: str) -> dict[str, Stamp]:
        """Of all files below; of a state's versions only the one that counts."""
        files, folders = self._entries(folder)
        found = {path: stamp for path in files if (stamp := stamp_of(self._root / path)) is not None}
        for path in self._counting(folder, folders) if folder.startswith(STATE) else folders:
            found |= self._stamps(path)
        return found

    def _counting(self, folder: str, folders: list[str]) -> list[str]:
        names = {path: path[len(folder) : -1] for path in folders}
        try:
            current = (self._root / folder / "CURRENT").read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            current = None
        complete = {
            int(name.rpartition("-")[2]): path
            for path, name in names.items()
            if name.startswith("checkpoint-")
            and any((self._root / path / seal).exists() for seal in _COMPLETE)
        }
        newest = complete[max(complete)] if complete else None
        return [
            path
            for path, name in names.items()
            if path == newest or name == current or not name.startswith(("checkpoint-", "version-"))
        ]

    def _entries(self, folder: str) -> tuple[list[str], list[str]]:
        """The mirrored files of a directory, and its directories with a slash at their ends."""
        files, folders = [], []
        try:
            with os.scandir(self._root / folder) as listing:
                for entry in sorted(listing, key=lambda entry: entry.name):
                    path = f"{folder}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{path}/")
                    elif is_mirrored(path):
                        files.append(path)
        except (FileNotFoundError, NotADirectoryError):
            return [], []
        # What stands for any file that a directory could have.
        return files, [path for path in folders if is_mirrored(f"{path}any") or _KEPT.startswith(path)]

    def _hold(self, path: str, stamp: Stamp) -> bool:
        """Link the file, unless it is known; whether it was there."""
        if self._known.get(path) == stamp:
            return True
        source, held = self._root / path, self._into / path
        held.parent.mkdir(parents=True, exist_ok=True)
        held.unlink(missing_ok=True)
        try:
            try:
                os.link(os.path.realpath(source), held)
            except FileNotFoundError:
                return False
            except OSError:  # a filesystem without hard links
                shutil.copyfile(source, held)
        except FileNotFoundError:
            return False
        return True


def _has_states(folder: str, folders: list[str]) -> bool:
    return folder.startswith(STATE) and any(
        path[len(folder) :].startswith(("checkpoint-", "version-")) for path in folders
    )
