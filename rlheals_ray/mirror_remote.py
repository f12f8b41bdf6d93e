"""The remote side of a mirrored study: its folder, who works on it, and how files come from there."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from rlheals_ray.config import InputError
from rlheals_ray.folder import Folder, Listed
from rlheals_ray.storage_uri import refuse_credentials

FILE = "mirror.json"
"""Whose copy it is, and whether that run has ended."""
INTERVAL = 60.0
"""Seconds between two pushes."""
ANSWER_SECONDS = 60.0
"""By then a filesystem has answered, or it cannot be used: some try for a quarter of an hour."""
_ANSWER_TRIES = 6
_FRESH = 3
"""Intervals after which a run that has left no sign is taken for dead."""
_CHUNK = 4 << 20
_T = TypeVar("_T")


def remote_folder(storage: str, name: str = "") -> Folder:
    """The folder of study `name` under a URI, or the URI's own. Raises InputError where it does not answer."""
    refuse_credentials(storage)  # before they could be told
    folder = answer(storage, lambda: Folder.of(storage))
    folder = folder.child(name) if name else folder
    answer(folder, folder.exists)
    return folder


def answer(where: Folder | str, work: Callable[[], _T]) -> _T:
    """What `work` returns; raises InputError where it fails or takes too long."""
    found: list[_T] = []
    failed: list[Exception] = []

    def ask() -> None:
        for after in range(_ANSWER_TRIES):
            try:
                found.append(work())
                return
            except Exception as error:
                failed.append(error)
                if isinstance(error, InputError):
                    return
            time.sleep(0.05 * 2**after)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if found:
        return found[0]
    if failed and isinstance(failed[-1], InputError):
        raise InputError(str(failed[-1]).replace("directory (got", "storage (got", 1))
    why = briefly(failed[-1]) if failed else f"no answer in {ANSWER_SECONDS:g} s"
    raise InputError(
        f"storage (got {str(where)!r}): it cannot be used ({why}); check the URI, the network and the credentials, or "
        "give a directory."
    )


def read_state(remote: Folder) -> dict[str, Any]:
    """What the last run left in `mirror.json`; {} where there is none."""
    if not remote.exists(FILE):
        return {}
    return dict(json.loads(remote.read(FILE)))


def is_fresh(state: dict[str, Any], interval: float = INTERVAL) -> bool:
    """Whether the run has not said that it ended, and has given a sign lately."""
    return bool(state) and not state.get("ended") and state.get("at", 0.0) + _FRESH * interval > time.time()


def fetch(remote: Folder, path: str, listed: Listed, into: Path) -> None:
    """Copy a remote file, with its time of writing, to its path below `into`. Raises OSError unless it is whole."""
    target = into / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with remote.open_input(path) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, _CHUNK)
    if target.stat().st_size != listed.size:
        raise OSError(f"{path} is not whole")
    if listed.mtime is not None:
        os.utime(target, (listed.mtime, listed.mtime))


def me() -> dict[str, Any]:
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": process.pid, "began": process.create_time()}


def refuse_other(remote: Folder, state: dict[str, Any], interval: float) -> None:
    """Raises InputError where another process works on the copy, or died so lately that it cannot be told."""
    mine = me()
    if not state or state.get("ended") or all(state.get(key) == mine[key] for key in mine):
        return
    if state.get("host") == mine["host"]:
        try:
            if psutil.Process(state["pid"]).create_time() != state["began"]:
                return
        except (psutil.Error, KeyError, TypeError):
            return
        remedy = "wait for it"
    else:
        if not is_fresh(state, interval):
            return
        left = state["at"] + _FRESH * interval - time.time()
        remedy = f"wait for it, or if it is dead for {left:.0f} s"
    raise InputError(
        f"storage (got {remote.uri!r}): process {state.get('pid')} on {state.get('host')} works on the study; "
        f"{remedy}, or use another name."
    )


def briefly(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
