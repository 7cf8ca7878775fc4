"""tasks.serving.microbatch: what comes together is done together, and nobody waits for ever."""

import asyncio
from collections.abc import Sequence

import pytest

from tasks.serving.microbatch import MicroBatches


def doubling(done: list[list[int]], begun: asyncio.Event | None = None) -> MicroBatches[int, int]:
    """Each batch takes a few turns of the loop, in which others may come."""

    async def work(items: list[int]) -> Sequence[int]:
        done.append(items)
        if begun:
            begun.set()
        for _ in range(20):
            await asyncio.sleep(0)
        if 13 in items:
            raise ValueError("thirteen")
        return [2 * each for each in items]

    return MicroBatches(work, most=10, size=lambda item: item if item < 10 else 1)


def test_what_comes_while_others_are_worked_on_is_done_together_next() -> None:
    async def ask() -> list[int]:
        batches = doubling(done)
        return list(await asyncio.gather(*(batches.ask(each) for each in (1, 4, 5, 6, 9, 20, 21))))

    done: list[list[int]] = []
    assert asyncio.run(ask()) == [2, 8, 10, 12, 18, 40, 42]
    assert done == [[1, 4, 5], [6], [9, 20], [21]]  # ten at most


def test_a_bad_one_spoils_nobody_elses_answer() -> None:
    async def ask() -> list[int | BaseException]:
        batches = doubling([])
        return await asyncio.gather(*(batches.ask(each) for each in (1, 11, 13, 12)), return_exceptions=True)

    one, two, bad, four = asyncio.run(ask())
    assert (one, two, four) == (2, 22, 24)
    assert isinstance(bad, ValueError)


def test_nothing_is_done_for_who_has_gone_and_the_rest_is_answered() -> None:
    async def ask() -> list[int]:
        begun = asyncio.Event()
        batches = doubling(done, begun)
        first = asyncio.create_task(batches.ask(11))
        await begun.wait()
        gone, stays = asyncio.create_task(batches.ask(1)), asyncio.create_task(batches.ask(2))
        await asyncio.sleep(0)
        gone.cancel()
        return [await first, await stays]

    done: list[list[int]] = []
    assert asyncio.run(ask()) == [22, 4]
    assert done == [[11], [2]]


def test_work_that_is_cancelled_leaves_nobody_waiting() -> None:
    async def work(_items: list[int]) -> Sequence[int]:
        raise asyncio.CancelledError

    async def ask() -> None:
        batches = MicroBatches(work, most=10, size=int)
        await asyncio.wait_for(batches.ask(1), 5)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(ask())
