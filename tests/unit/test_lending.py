"""Which team is lent to whom: in turn, the nearest of those that are idle, and never a wait while one idles."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from rlheals_ray.rollout.lending import Lending

T = TypeVar("T")

NODES = {"ab": ["a", "b"], "bb": ["b", "b"], "aa": ["a", "a"], "unknown": ["", ""]}


def lending(*teams: str) -> Lending[str]:
    return Lending(teams, NODES.__getitem__)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def test_of_the_idle_teams_the_one_with_most_members_near_is_lent() -> None:
    async def main() -> None:
        lent = lending("ab", "bb", "aa", "unknown")
        assert await lent.take(near="a") == "aa"
        assert await lent.take(near="a") == "ab"
        assert await lent.take(near="a") == "bb", "a far team that idles is better than a wait"

    run(main())


def test_without_a_node_or_on_one_node_the_longest_idle_is_lent() -> None:
    async def main() -> None:
        for near in (None, "elsewhere"):
            lent = lending("ab", "bb", "aa")
            first = await lent.take(near)
            lent.give_back(first)
            assert [first, *[await lent.take(near) for _ in range(3)]] == ["ab", "bb", "aa", "ab"]

    run(main())


def test_who_waits_is_served_in_turn_by_whatever_comes_back() -> None:
    async def main() -> None:
        lent = lending("aa", "bb")
        first, second = await lent.take("a"), await lent.take("b")
        waits = [asyncio.ensure_future(lent.take(near)) for near in ("a", "b", "a")]
        await asyncio.sleep(0)
        assert not any(wait.done() for wait in waits)
        lent.give_back(second)
        lent.give_back(first)
        assert (await waits[0], await waits[1]) == ("bb", "aa")
        assert not waits[2].done()
        lent.give_back("bb")
        assert await waits[2] == "bb"

    run(main())


def test_who_gives_up_waiting_keeps_no_team() -> None:
    async def main() -> None:
        lent = lending("aa")
        await lent.take()
        before, after = (asyncio.ensure_future(lent.take()) for _ in range(2))
        await asyncio.sleep(0)
        before.cancel()  # while it waits
        await asyncio.sleep(0)
        lent.give_back("aa")
        after.cancel()  # when a team is its already, but it has not run since
        await asyncio.gather(before, after, return_exceptions=True)
        assert await asyncio.wait_for(lent.take(), 1) == "aa"

    run(main())
