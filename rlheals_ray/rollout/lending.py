"""Who gets which team: first come first served, and among those that are idle the one nearest to who asks.

Pure asyncio: neither Ray nor engines.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

Team = TypeVar("Team")


class Lending(Generic[Team]):
    """Teams of one or more generators, each lent to one at a time."""

    def __init__(self, teams: Iterable[Team], nodes_of: Callable[[Team], Sequence[str]]) -> None:
        """`nodes_of`: the nodes on which a team's members are, as far as they are known."""
        self._idle = list(teams)
        self._nodes_of = nodes_of
        self._waiting: deque[asyncio.Future[Team]] = deque()

    async def take(self, near: str | None = None) -> Team:
        """An idle team, with most members on node `near`, then idle for longest; waits only when none is idle.

        Whoever waits gets the first team that comes back, wherever it is: waiting for a near one while another
        idles would cost more than the way between two nodes.
        """
        if self._idle:
            best = max(self._idle, key=lambda team: sum(node == near for node in self._nodes_of(team)))
            self._idle.remove(best)
            return best
        turn: asyncio.Future[Team] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(turn.result())
            raise

    def give_back(self, team: Team) -> None:
        """Let the next one have it."""
        while self._waiting:
            if not (turn := self._waiting.popleft()).done():
                turn.set_result(team)
                return
        self._idle.append(team)
