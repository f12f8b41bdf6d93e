"""The queue between those who want work done and the worker groups, without Ray."""

from __future__ import annotations

import asyncio

from rlheals_ray.work_queue import Work, WorkQueue

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
