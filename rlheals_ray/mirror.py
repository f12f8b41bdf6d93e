"""A study whose storage is a URI: worked on in a directory, and mirrored to the URI while it runs.

Whatever moment a push is killed at, the copy is consistent: a marker there has its data there, a checkpoint or a state
that counts as whole is whole. What stands for others is therefore written last and deleted first. Which side goes on at
a start is decided by `mirror.json`: every run leaves its own generation there and in the directory that it works in.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rlheals_ray.config import InputError, Study
from rlheals_ray.folder import Folder, Listed
from rlheals_ray.mirror_local import (
    MARKERS,
    NOTE,
    STATE,
    Stamp,
    hold,
    is_mirrored,
    is_seal,
    parents,
    stamp_of,
)
from rlheals_ray.mirror_remote import (
    FILE,
    INTERVAL,
    answer,
    briefly,
    fetch,
    me,
    read_state,
    refuse_other,
    remote_folder,
)
from rlheals_ray.storage import StudyFiles, is_uri, write_text

PATIENCE = 300.0
"""Seconds for which one operation that fails is tried again."""
PATIENCE_AT_INTERRUPT = 20.0
_RECORD = ".mirror.json"
"""In the study's directory: of which generation it is, and what of it is known to be on the remote side."""
_CHUNK = 4 << 20
_T = TypeVar("_T")


class Lost(Exception):
    """The copy is no longer this run's."""


class _GivenUp(Exception):
    pass


@dataclass
class Mirror:
    """The copy at `remote` of the study in `root`. One process at a time: pull, then push as often as it likes."""

    remote: Folder
    root: Path
    interval: float = INTERVAL
    patience: float = PATIENCE
    workers: int = 8
    """Files on their way at a time."""
    _generation: str = ""
    _there: dict[str, Stamp | None] = field(default_factory=dict)
    """The remote files, by the stamp of what they are copies of; None: of what is not known."""
    _signed: float = 0.0
    _told: bool = False
    _given_up: threading.Event = field(default_factory=threading.Event)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @classmethod
    def of(cls, study: Study, files: StudyFiles) -> Mirror | None:
        """None for a study whose storage is a directory. Raises InputError where the URI cannot be used."""
        return cls(remote_folder(study.storage, study.name), files.root) if is_uri(study.storage) else None

    @property
    def _aside(self) -> Path:
        # Not in the study's own directory, whose bytes are counted.
        return self.root.with_name(f".{self.root.name}.mirror")

    def check(self) -> None:
        """Raises InputError where another process works on the copy, or the URI cannot be written.

        What it writes to find that out it removes. The copy is not this run's yet: `pull` asks again.
        """
        probe = f".probe.tmp-{uuid.uuid4().hex}"

        def work() -> None:
            self.remote.write(probe, b"probe")
            self.remote.remove(probe)

        answer(self.remote, lambda: refuse_other(self.remote, read_state(self.remote), self.interval))
        answer(self.remote, work)

    # --- which side goes on

    def pull(self) -> None:
        """Make the directory what a run goes on from, and the copy this run's; the study's lock is held.

        Where another run has written to the copy since, the directory is replaced by it.

        Raises InputError where another process works on the copy, where the directory holds another study, or where
        the copy cannot be read.
        """
        try:
            self._pull()
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"storage (got {self.remote.uri!r}): the study's copy cannot be read or written ({briefly(error)}); "
                "try again, or mend that."
            ) from error

    def _pull(self) -> None:
        state = self._try(lambda: read_state(self.remote))
        refuse_other(self.remote, state, self.interval)
        every = self.remote.listing(hidden=True, attempt=self._try)
        found = {path: listed for path, listed in every.items() if path != FILE and is_mirrored(path)}
        record, generation = self._record(), state.get("generation")
        is_empty = all(path.name.startswith(".") for path in self.root.iterdir())
        if found and record is None and not is_empty:
            raise InputError(
                f"work (got {str(self.root.parent)!r}): it holds a study {self.root.name!r} that is no copy of "
                f"{self.remote.uri!r}, which would replace it; give another directory, or another name."
            )
        if found and (is_empty or record is None or generation not in record["generations"]):
            self._fetch(found)
            stamps = {path: stamp_of(self.root / path) for path in found}
            record = {"generations": [generation], "files": stamps}
            write_text(self.root / _RECORD, json.dumps(record))
        known = (record or {}).get("files", {})
        self._there = {
            path: tuple(known[path]) if known.get(path) and known[path][0] == listed.size else None
            for path, listed in found.items()
        }
        self._claim()
        # What killed uploads left half-written.
        self._each(self._remove, (path for path in every if ".tmp-" in path and not is_mirrored(path)))

    def _remove(self, path: str) -> None:
        self._try(lambda: self.remote.remove(path))

    def _fetch(self, found: dict[str, Listed]) -> None:
        """Replace the directory's files by the remote ones."""
        size = sum(listed.size for listed in found.values())
        _say(
            f"{self.remote}: {len(found)} files ({size / 2**20:.1f} MiB) of an earlier run are fetched to {self.root}"
        )
        new, old = self._aside / "new", self._aside / "old"
        shutil.rmtree(self._aside, ignore_errors=True)
        new.mkdir(parents=True)
        old.mkdir()
        self._each(lambda path: self._try(lambda: fetch(self.remote, path, found[path], new)), found)
        # Until all is moved the directory counts as of no generation: a start after a kill here fetches again.
        write_text(self.root / _RECORD, json.dumps({"generations": [], "files": {}}))
        for path in list(self.root.iterdir()):
            if not path.name.startswith("."):
                path.rename(old / path.name)
        for path in new.iterdir():
            path.rename(self.root / path.name)
        shutil.rmtree(self._aside)

    def _record(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads((self.root / _RECORD).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):
            return None

    def _keep(self, generations: Iterable[str | None] = ()) -> None:
        known = {path: stamp for path, stamp in self._there.items() if stamp is not None}
        record = {"generations": [*generations, self._generation], "files": known}
        write_text(self.root / _RECORD, json.dumps(record))

    def _claim(self) -> None:
        """From now on the copy is this run's."""
        before = self._record() or {"generations": []}
        self._generation = uuid.uuid4().hex
        self._keep(before["generations"])  # whichever of them is there if this is where it ends
        self._try(self._sign)
        self._keep()

    def _sign(self, ended: bool = False) -> None:
        state = {"generation": self._generation, **me(), "at": time.time(), "ended": ended}
        self.remote.write(FILE, json.dumps(state, indent=2).encode() + b"\n")
        self._signed = time.monotonic()

    def _check_ours(self) -> None:
        if read_state(self.remote).get("generation") != self._generation:
            raise Lost(f"{self.remote}: another run has taken this copy over, or {FILE} was removed")

    def _sign_again(self, ended: bool = False) -> None:
        self._check_ours()
        self._sign(ended)

    def _sign_if_due(self) -> None:
        """While a file is on its way, which may take longer than another machine waits for a sign."""
        if time.monotonic() - self._signed < self.interval:
            return
        self._signed = time.monotonic()
        try:
            self._sign_again()
        except Lost:
            self._given_up.set()
        except Exception:  # the next one may arrive: no reason to send the file again
            return

    # --- from here to there

    def push(self, ended: bool = False) -> None:
        """Make the copy what the directory is now. Raises the filesystem's error once patience is over, and Lost."""
        self._given_up = threading.Event()
        self._try(self._check_ours)
        held = self._aside / "held"
        try:
            self._carry(hold(self.root, held, self._there), held)
        finally:
            shutil.rmtree(self._aside, ignore_errors=True)
            self._keep()
        self._try(lambda: self._sign_again(ended))
        self._told = False

    def _carry(self, here: dict[str, Stamp | None], held: Path) -> None:
        there = self._there
        gone = there.keys() - here.keys()
        changed = {path for path in there.keys() & here.keys() if there[path] != here[path]}
        wanted = changed | (here.keys() - there.keys())
        markers = {path for path in (*here, *there) if path.startswith(MARKERS)}
        seals = {path for path in (*here, *there) if is_seal(path)}
        # A state that is over goes after the next one has come; all else before.
        late = {path for path in gone if path.startswith(STATE)}
        altered = parents(changed - seals - markers)
        broken = {path for path in seals & there.keys() if path.rpartition("/")[0] in altered}

        def send(paths: Iterable[str]) -> None:
            self._each(lambda path: self._send(path, here[path], held), paths)

        def drop(paths: Iterable[str]) -> None:
            self._each(self._drop, paths)

        notes = {path for path in wanted if path.rpartition("/")[2] == NOTE}
        send(notes)  # says that weights are gone: before they go
        drop(markers & (gone | changed))
        drop(broken | (seals & gone - late))
        send(wanted - notes - seals - markers)
        drop(gone - late - seals - markers)
        sealing = seals & (wanted | broken & here.keys())
        send({path for path in sealing if not path.startswith(STATE)})
        send({path for path in sealing if path.startswith(STATE)})
        drop(late & seals)
        drop(late - seals)
        send(markers & wanted)

    def _send(self, path: str, stamp: Stamp | None, held: Path) -> None:
        source = held / path if (held / path).exists() else self.root / path

        def work() -> None:
            sent = 0
            with source.open("rb") as file, self.remote.open_output(path) as out:
                while chunk := file.read(_CHUNK):
                    out.write(chunk)
                    sent += len(chunk)
                    self._sign_if_due()
            if self.remote.size(path) != sent:
                raise OSError(f"{path} did not arrive whole")

        self._there[path] = None  # until it is known to be there
        self._try(work)
        self._there[path] = stamp

    def _drop(self, path: str) -> None:
        if path in self._there:
            self._there[path] = None
            self._remove(path)
            del self._there[path]

    def _each(self, work: Callable[[str], None], paths: Iterable[str]) -> None:
        """Do it for all paths, several at a time; after the first error no more are begun."""

        def unless_given_up(path: str) -> None:
            if self._stop.is_set() or self._given_up.is_set():
                raise _GivenUp
            work(path)

        pool = ThreadPoolExecutor(self.workers)
        try:
            for done in [pool.submit(unless_given_up, path) for path in sorted(paths)]:
                done.result()
        except BaseException:
            self._given_up.set()
            raise
        finally:
            # Nothing of this push may arrive in the middle of the next.
            pool.shutdown(cancel_futures=True)

    def _try(self, work: Callable[[], _T]) -> _T:
        """What `work` returns, tried again for a while: object stores fail now and then."""
        delay, deadline, tries = 0.1, 0.0, 0
        while True:
            try:
                return work()
            except (InputError, Lost):
                raise
            except Exception as error:  # each filesystem of fsspec has errors of its own
                tries += 1
                if tries == 1:
                    deadline = time.monotonic() + self.patience
                if tries == 4 and not self._told:
                    self._told = True
                    _say(f"{self.remote}: {briefly(error)}; trying again")
                if time.monotonic() + delay > deadline or self._given_up.wait(delay) or self._stop.is_set():
                    raise
                delay = min(2 * delay, 30.0)

    # --- while the study runs

    def start(self) -> None:
        """Push again and again, in the background."""
        self._thread = threading.Thread(target=self._keep_pushing, name="mirror", daemon=True)
        self._thread.start()

    def _keep_pushing(self) -> None:
        while not self._stop.wait(self.interval):
            try:
                self.push()
            except Exception as error:
                if not self._told and not self._stop.is_set():
                    self._told = True
                    _say(f"{self.remote}: {briefly(error)}; trying again, the study goes on")

    def end(self) -> str | None:
        """Push what is left and sign off; returns why that failed, or None."""
        if self._thread is not None:
            self._stop.set()
            self._given_up.set()
            self._thread.join()
            self._thread = None
            self._stop.clear()
        try:
            self.push(ended=True)
        except Exception as error:
            return (
                f"{type(error).__name__}: {self.remote}: {briefly(error)}; the study is whole in {self.root}, and the "
                "same command pushes the rest"
            )
        return None


@contextmanager
def mirrored(mirror: Mirror | None) -> Iterator[None]:
    """Pull, and push in the background; where the block is broken off also at its end. Else `end` is the caller's."""
    if mirror is None:
        yield
        return
    mirror.pull()
    mirror.start()
    try:
        yield
    except BaseException as error:
        mirror.patience = PATIENCE_AT_INTERRUPT
        if not isinstance(error, InputError):
            _say(f"{mirror.remote}: bringing it up to date; interrupt again to leave it")
        if cause := mirror.end():
            _say(cause)
        raise


def _say(text: str) -> None:
    print(f"mirror: {text}", file=sys.stderr, flush=True)
