"""How much of the CPU something takes: judges are given texts that are made to be slow."""

from __future__ import annotations

import time
from collections.abc import Callable


def cpu_seconds(work: Callable[[], object], enough: float) -> float:
    """CPU seconds of this thread that work() takes: the least of three runs, or the first below `enough`.

    Python may collect the garbage of all tests before it in any one of them.
    """
    least = float("inf")
    for _ in range(3):
        began = time.thread_time()
        work()
        least = min(least, time.thread_time() - began)
        if least < enough:
            break
    return least
