"""How much of the CPU something takes: judges are given texts that are made to be slow."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable


def cpu_seconds(work: Callable[[], object], enough: float, runs: int = 3) -> float:
    """CPU seconds of this thread that work() takes: the least of some runs, or the first below `enough`.

    No garbage is collected meanwhile: that of all tests before would be counted. runs: 1 where work() remembers.
    """
    least = float("inf")
    collects = gc.isenabled()
    gc.disable()
    try:
        while runs and least >= enough:
            began = time.thread_time()
            work()
            least, runs = min(least, time.thread_time() - began), runs - 1
    finally:
        if collects:
            gc.enable()
    return least
