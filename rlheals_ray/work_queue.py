"""The queue between those who want work done and the worker groups that do it; see training.py."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MAX_FAILURES = 2
"""How often in a row one work item may lose its worker group, without getting further than before, before it counts
as failed."""

COUNTERS = ("step", "update", "sampled")
"""What progress rows count: an item gets further when one of these is more than it has ever been."""


class Restart(NamedTuple):
    """A worker group lost in the midst of an item, which it was then handed again."""

    time: float
    """Seconds since the epoch."""
    key: str
    """The item's."""
    cause: str


@dataclass(frozen=True)
class Work:
    """A training function by its importable name, `package.module:function`, and its arguments."""

    key: str
    function: str
    arguments: Mapping[str, Any]


@dataclass
class _Item:
    work: Work
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    error: str | None = None
    finished: bool = False
    losses: int = 0
    """Since it last got further."""
    furthest: dict[str, int] = field(default_factory=dict)
    causes: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def advance(self, row: Mapping[str, Any]) -> None:
        """Take note of how far it is."""
        further = {name: row[name] for name in COUNTERS if row.get(name, -1) > self.furthest.get(name, -1)}
        if further:
            self.furthest |= further
            self.losses = 0
            self.causes.clear()


class WorkQueue:
    """An asynchronous Ray actor between those who want work done and the groups that do it."""

    def __init__(self) -> None:
        self._items: dict[str, _Item] = {}
        self._waiting: deque[str] = deque()
        self._at: dict[str, str] = {}
        self._incarnation: dict[str, str] = {}
        self._node: dict[str, str] = {}
        self._taken: Counter[str] = Counter()
        self._restarts: list[Restart] = []
        self._lost: set[str] = set()
        self._arrived = asyncio.Condition()
        self._closed = False

    async def submit(self, work: Work) -> None:
        """Have it done; work that is under way already is joined, and not done twice.

        So whoever asked and died may ask again from another process.
        """
        async with self._arrived:
            if (item := self._items.get(work.key)) is not None and not item.finished:
                return
            self._items[work.key] = _Item(work)
            self._waiting.append(work.key)
            self._arrived.notify_all()

    async def close(self) -> None:
        """Let every idle group end."""
        async with self._arrived:
            self._closed = True
            self._arrived.notify_all()

    async def is_closed(self) -> bool:
        return self._closed

    async def host(self, group: str) -> str | None:
        """The node that holds the group's first worker, once that is up; None when it never will be."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: group in self._node or group in self._lost or self._closed)
        return self._node.get(group)

    async def take(self, group: str, incarnation: str, node: str) -> Work | None:
        """The group's next item; the one it was at, when it was restarted; None when the queue is closed.

        `node` is that of the group's first worker.
        Every start of a group is an incarnation of it: a call that a dead one left waiting is let go,
        or it would swallow the next item.
        """
        async with self._arrived:
            self._incarnation[group] = incarnation
            before = self._node.get(group, "")
            self._node[group] = node
            self._taken[group] += 1
            self._arrived.notify_all()
        if group in self._at:
            item = self._items[self._at[group]]
            item.losses += 1
            if item.losses <= MAX_FAILURES:
                cause = item.causes[-1] if item.causes else f"its workers were lost (node {before})"
                self._restarts.append(Restart(time.time(), item.work.key, cause))
                return item.work
            causes = "\n".join(item.causes) or "no worker left a traceback"
            await self.finish(
                group, f"{causes}\nits worker group died {item.losses} times without getting any further"
            )
        async with self._arrived:
            await self._arrived.wait_for(
                lambda: self._incarnation[group] != incarnation or self._waiting or self._closed
            )
            if self._incarnation[group] != incarnation or not self._waiting:
                return None
            key = self._waiting.popleft()
            self._at[group] = key
        return self._items[key].work

    async def lose(self, group: str, cause: str) -> None:
        """The group will never take anything again: what it was at is for the others, before all else."""
        async with self._arrived:
            self._lost.add(group)
            key = self._at.pop(group, None)
            if key is not None:
                self._restarts.append(Restart(time.time(), key, cause))
                self._waiting.appendleft(key)
            self._arrived.notify_all()

    async def taken(self, group: str) -> int:
        """How often the group has asked for work."""
        return self._taken[group]

    async def restarts(self) -> list[Restart]:
        """Every loss of a worker group after which its item was begun again."""
        return self._restarts

    async def note(self, group: str, rank: int, cause: str) -> None:
        """Remember why a rank left the item that its group is at."""
        if group in self._at:
            self._items[self._at[group]].causes.append(f"rank {rank}: {cause}")

    async def report(self, group: str, rows: Sequence[Mapping[str, Any]]) -> None:
        item = self._items[self._at[group]]
        item.rows.extend(rows)
        for row in rows:
            item.advance(row)
        item.notify()

    async def finish(self, group: str, error: str | None = None) -> None:
        item = self._items[self._at.pop(group)]
        item.error, item.finished = error, True
        item.notify()

    async def follow(self, key: str, after: int) -> tuple[list[Mapping[str, Any]], bool, str | None]:
        """Rows beyond the first `after`, whether the item has finished, and its error; waits for news."""
        item = self._items[key]
        while len(item.rows) <= after and not item.finished:
            await item.changed.wait()
        return item.rows[after:], item.finished, item.error
