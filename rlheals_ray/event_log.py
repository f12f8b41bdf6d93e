"""The structured log of a study: what started, ended, failed or was begun again, one JSON object a line.

`logs/events.jsonl` is written by the driver alone, which holds the study's lock. Lines are only ever added:
one write each, at the end of the file, so that a killed process costs at most its last line. What worker processes
have to tell goes to Ray's log of them, in lines of the same kind; the driver's terminal shows progress instead.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from rlheals_ray.monitoring import place_of

Event = Literal["started", "done", "failed", "resumed", "restarted"]
EVENTS: tuple[Event, ...] = get_args(Event)
CAUSE_CHARACTERS = 1000
"""A cause is cut here; logs/ has a failed unit's whole traceback."""

# Below "ray": Ray sends that to a worker's log at level INFO.
_logger = logging.getLogger("ray.rlheals_ray.events")

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_PASSWORD_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@]+@")
_SHORTEST_SECRET = 8
"""A shorter value of such a variable is rather a switch than a secret, and stands in many words."""


def without_secrets(text: str) -> str:
    """`text` without passwords in addresses and without the values of environment variables that name a secret."""
    text = _PASSWORD_IN_ADDRESS.sub("***@", text)
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text


def event_line(
    study: str,
    stage: str,
    cell: str,
    event: Event,
    seconds: float | None = None,
    cause: str | None = None,
    at: float | None = None,
) -> str:
    """One event as JSON, without a line break. seconds: since its start; at: seconds since the epoch, now if None.

    Of a cause of several lines, such as a traceback, the last one that says something is kept.
    """
    if cause is not None:
        lines = [line.strip() for line in cause.splitlines() if line.strip()]
        cause = without_secrets(lines[-1] if lines else "")[:CAUSE_CHARACTERS]
    moment = datetime.fromtimestamp(time.time() if at is None else at, UTC)
    return json.dumps(
        {
            "time": moment.isoformat(timespec="milliseconds"),
            "study": study,
            "stage": stage,
            "cell": cell,
            "event": event,
            "seconds": None if seconds is None else round(seconds, 3),
            "cause": cause,
        },
        ensure_ascii=False,
    )


def tell(study: str, stage: str, cell: str, event: Event, cause: str | None = None) -> None:
    """Leave an event in Ray's log of this worker process; the study's own log is the driver's."""
    _logger.info(event_line(study, stage, cell, event, cause=cause))


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a log, in the order of their lines; none without a log. A line cut off by a kill is skipped."""
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event


@dataclass
class EventLog:
    """The log of the study whose directory is `root`; thread-safe, and never raises: a full disk stops no training."""

    study: str
    root: Path
    _began: dict[tuple[str, str], float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _file: int | None = None
    _broken: bool = False

    @property
    def path(self) -> Path:
        return self.root / "logs" / "events.jsonl"

    def add(
        self, stage: str, event: Event, cell: str = "", *, cause: str | None = None, at: float | None = None
    ) -> None:
        """Add an event; what ends gets the seconds since its start in this run, where that was told."""
        with self._lock:
            now, seconds = time.monotonic(), None
            if event in ("started", "resumed"):
                self._began[stage, cell] = now
            elif event in ("done", "failed") and (began := self._began.pop((stage, cell), None)) is not None:
                seconds = now - began
            line = event_line(self.study, stage, cell, event, seconds, cause, at)
            self._append(line)

    def unit(self, name: str, event: Event, *, cause: str | None = None, at: float | None = None) -> None:
        """Add an event of the unit `name`, which says stage and cell."""
        stage, cell = place_of(name)
        self.add(stage, event, cell, cause=cause, at=at)

    def close(self) -> None:
        """Close the file; the next event opens it again."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
            self._file = None

    def _append(self, line: str) -> None:
        if self._broken:
            return
        try:
            if self._file is None:
                self._file = self._open()
            os.write(self._file, line.encode(errors="replace") + b"\n")
        except OSError as error:
            self._broken = True
            print(f"events: {self.path} gets nothing more ({error}); the study goes on", file=sys.stderr)

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            os.write(file, b"\n")  # what a killed process left half-written stays a line of its own
        return file
