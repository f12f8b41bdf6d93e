"""What the pool has lost so far, and when that is too much."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from rlheals_ray.training import Hopeless


class Failure(NamedTuple):
    """One generator lost."""

    time: float
    """Seconds since the epoch."""
    generator: int
    cause: str


class PoolFailed(Hopeless):
    """The pool gave up; the message names every cause, one a line, and ends with the reason."""


class Failures:
    """The losses of a study's pool, at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.all: list[Failure] = []
        self.fatal = asyncio.Event()
        """Set when the pool has given up."""
        self._reason: PoolFailed | None = None

    def add(self, generator: int, cause: str) -> None:
        """Count a loss; raises PoolFailed, now and at every `check`, once there are more than the limit."""
        self.all.append(Failure(time.time(), generator, cause))
        if len(self.all) > self._limit:
            self.give_up(
                PoolFailed(
                    f"{self.causes()}the study lost {len(self.all)} generators, more than "
                    f"rollout.max_failures={self._limit} allows"
                )
            )
        self.check()

    def give_up(self, reason: PoolFailed) -> None:
        """Let every run fail from now on."""
        self._reason = self._reason or reason
        self.fatal.set()

    def check(self) -> None:
        """Raises PoolFailed when the pool has given up."""
        if self._reason is not None:
            raise self._reason

    def causes(self) -> str:
        """One line per loss."""
        return "".join(
            f"{time.strftime('%H:%M:%S', time.localtime(failure.time))} generator {failure.generator}: "
            f"{failure.cause}\n"
            for failure in self.all
        )
