"""The queue between those who want work done and the worker groups, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from unittest.mock import ANY

from rlheals_ray.work_queue import MAX_FAILURES, Restart, Work, WorkQueue

WORK = Work("rl/seed=0", "package.module:function", {})


def test_work_that_is_asked_for_again_while_it_is_under_way_is_joined() -> None:
    async def main() -> None:
        queue = WorkQueue()
        await queue.submit(WORK)
        assert await queue.take("g", "first", "node") == WORK
        await queue.report("g", [{"update": 1}])
        await queue.submit(WORK)  # another process, since the one that asked is dead
        waiting = asyncio.ensure_future(queue.take("other", "first", "node"))
        await asyncio.sleep(0)
        assert not waiting.done(), "it would be done twice"
        assert await queue.follow(WORK.key, 0) == ([{"update": 1}], False, None)
        await queue.finish("g")
        assert await queue.follow(WORK.key, 1) == ([], True, None)
        await queue.submit(WORK)
        assert await waiting == WORK, "finished work that is asked for again is new work"

    asyncio.run(main())


def test_two_groups_work_at_two_items_at_once() -> None:
    async def main() -> None:
        queue = WorkQueue()
        for key in ("a", "b"):
            await queue.submit(Work(key, WORK.function, {}))
        taken = [await queue.take(group, "first", "node") for group in ("g", "h")]
        assert [work.key for work in taken if work] == ["a", "b"]

    asyncio.run(main())


def test_the_node_of_a_group_is_that_of_its_present_workers() -> None:
    async def main() -> None:
        queue = WorkQueue()
        asked = asyncio.ensure_future(queue.host("g"))
        await asyncio.sleep(0)
        assert not asked.done()
        took = asyncio.ensure_future(queue.take("g", "first", "n1"))
        assert await asked == "n1"
        again = asyncio.ensure_future(queue.take("g", "second", "n2"))
        assert await took is None, "what a dead worker left waiting must not swallow the next item"
        assert await queue.host("g") == "n2"
        await queue.close()
        assert await again is None
        assert await queue.host("never started") is None

    asyncio.run(main())


def test_what_a_group_that_ended_for_good_was_at_is_the_next_thing_for_the_others() -> None:
    async def main() -> None:
        queue = WorkQueue()
        for key in ("a", "b"):
            await queue.submit(Work(key, WORK.function, {}))
        await queue.take("g", "first", "node")
        await queue.lose("g", "no workers could be started")
        assert await queue.restarts() == [Restart(ANY, "a", "no workers could be started")]
        taken = [await queue.take("h", "first", "node")]
        await queue.finish("h")
        taken.append(await queue.take("h", "first", "node"))
        assert [work.key for work in taken if work] == ["a", "b"]
        await queue.lose("never started", "no workers could be started")
        assert await queue.host("never started") is None, "nobody waits for its node"

    asyncio.run(main())


async def lose(queue: WorkQueue, rows: Sequence[dict[str, int]], times: int) -> bool:
    """Have a group start the item, report `rows` and be lost, `times` times; returns whether it is still at work."""
    for _ in range(times):
        await queue.report("g", rows)
        again = asyncio.ensure_future(queue.take("g", "again", "node"))
        await asyncio.sleep(0)
        if not again.done():
            again.cancel()
            return False
        assert again.result() == WORK
    return True


def test_an_item_that_gets_on_outlives_any_number_of_losses() -> None:
    async def main() -> list[Restart]:
        queue = WorkQueue()
        await queue.submit(WORK)
        await queue.take("g", "first", "node")
        for step in range(0, 100, 10):
            # Each time it begins again where it was saved last, a little before, and is lost a little further on.
            rows = [{"step": at} for at in range(max(0, step - 5), step + 10)]
            assert await lose(queue, rows, times=MAX_FAILURES)
        return await queue.restarts()

    restarts = asyncio.run(main())
    assert len(restarts) == 10 * MAX_FAILURES
    assert {restart.key for restart in restarts} == {WORK.key}
    assert restarts[0].cause == "its workers were lost (node node)"


def test_an_item_that_is_lost_at_the_same_place_again_and_again_fails() -> None:
    async def main() -> tuple[bool, list[Restart], str | None]:
        queue = WorkQueue()
        await queue.submit(WORK)
        await queue.take("g", "first", "node")
        rows = [{"update": 6}, {"update": 7}]
        assert await lose(queue, rows, times=MAX_FAILURES)
        await queue.report("g", rows)
        await queue.note("g", 0, "Traceback\nOSError: no memory")
        still = await lose(queue, [], times=1)
        return still, await queue.restarts(), (await queue.follow(WORK.key, 99))[2]

    still, restarts, error = asyncio.run(main())
    assert not still and len(restarts) == MAX_FAILURES, "the last loss is a failure, no restart"
    assert error is not None and "OSError: no memory" in error and f"died {MAX_FAILURES + 1} times" in error
