"""One live line per stage, with rate and remaining time; and how long every stage took."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rlheals_ray.monitoring import STAGE_DONE, STAGE_UNITS

_EVERY_SECONDS = 10.0
"""How often a stage prints when its output is not a terminal."""


class StageProgress:
    """Counts a stage's units of work (updates, problems, matrices) and shows them; thread-safe."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._done = self._skipped = 0
        self._note = ""
        self._start = self._shown = time.monotonic()
        self._lock = threading.Lock()
        self._live = sys.stderr.isatty()
        self._export()

    def skip(self, count: int) -> None:
        """Work that was found done already: it counts, but not into the rate."""
        with self._lock:
            self._done += count
            self._skipped += count
            self._export()

    def advance(self, count: int = 1, note: str = "") -> None:
        with self._lock:
            self._done += count
            self._note = note or self._note
            self._export()
            if self._live or time.monotonic() - self._shown > _EVERY_SECONDS:
                self._show(end="\r" if self._live else "\n")

    def end(self) -> None:
        with self._lock:
            self._show(end="\n")

    def _export(self) -> None:
        STAGE_DONE.record(self._done, stage=self._name)
        STAGE_UNITS.record(self._total, stage=self._name)

    def _show(self, end: str) -> None:
        self._shown = time.monotonic()
        elapsed = self._shown - self._start
        fresh = self._done - self._skipped
        rate = fresh / elapsed if elapsed > 0 else 0.0
        left = (self._total - self._done) / rate if rate > 0 else float("inf")
        remaining = "" if self._done >= self._total or left == float("inf") else f", {_clock(left)} left"
        line = (
            f"{self._name:<12} {self._done}/{self._total} {self._unit}  {_clock(elapsed)}, "
            f"{rate:.1f} {self._unit}/s{remaining}  {self._note}"
        )
        clear = "\x1b[2K" if self._live else ""
        print(clear + line.rstrip(), end=end, file=sys.stderr, flush=True)


class Timings:
    """Seconds per stage, in order; overlapping stages each count their own."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
