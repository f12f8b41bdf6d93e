"""What a call leaves behind in its process and outside it: random state, environment, files, processes, network."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Hashable
from types import TracebackType
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_EVENTS = {
    **dict.fromkeys(("os.putenv", "os.unsetenv"), "the environment"),
    **dict.fromkeys(("os.chdir", "os.fchdir"), "the working directory"),
    **dict.fromkeys(
        (
            "os.remove",
            "os.rename",
            "os.mkdir",
            "os.rmdir",
            "os.link",
            "os.symlink",
            "os.truncate",
            "os.chmod",
        ),
        "files",
    ),
    **dict.fromkeys(
        ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"),
        "other processes",
    ),
    **dict.fromkeys(("socket.connect", "socket.bind", "socket.getaddrinfo"), "the network"),
}
"""Audit events (Python's table of them) and what they touch."""


class Effects:
    """`with effects:` around a call; `effects.take()` then says what the call touched.

    Only the calling thread is watched. An audit hook cannot be removed: one is installed for the life of the process,
    and asleep outside the block.
    """

    def __init__(self) -> None:
        self._seen: list[str] = []
        self._state: tuple[Hashable, ...] = ()
        self._bytecode = False

    def __enter__(self) -> None:
        _install()
        # A module that the call imports first must not look like a file that the call writes.
        self._bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        self._state = _state()
        _watching.seen = self._seen

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _watching.seen = None
        sys.dont_write_bytecode = self._bytecode
        names = ("random's global state", "the recursion limit", "numpy's global random state")
        for name, before, after in zip(names, self._state, _state(), strict=False):
            # numpy may have been imported in between.
            if before is not None and before != after:
                self._seen.append(name)

    def take(self) -> list[str]:
        """What was touched since the last take, each once."""
        seen = list(dict.fromkeys(self._seen))
        self._seen.clear()
        return seen


class _Watching(threading.local):
    seen: list[str] | None = None


_watching = _Watching()
_installed = False


def _install() -> None:
    global _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if (seen := _watching.seen) is None:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(flags, int) and flags & _WRITING and path != os.devnull:
            seen.append("files")
    elif event in _EVENTS:
        seen.append(_EVENTS[event])


def _state() -> tuple[Hashable, ...]:
    numpy = sys.modules.get("numpy")
    legacy = getattr(getattr(numpy, "random", None), "get_state", None)
    state = legacy() if legacy else None
    return random.getstate(), sys.getrecursionlimit(), state and (state[1].tobytes(), *state[2:])
