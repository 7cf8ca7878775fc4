"""microbatch: requests that arrive while a batch is worked on become the next batch."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class MicroBatches(Generic[Item, Result]):
    """For one event loop.

    Args:
        work: returns one result for each item, in their order. Where it raises, it gets each item of the batch alone,
            so that a bad item spoils no other answer.
        most: a batch's size at most, as `size` counts it; one item may be larger.

    A caller that has gone before its batch begins is left out of it: an overloaded server does no work in vain.
    """

    work: Callable[[list[Item]], Awaitable[Sequence[Result]]]
    most: int
    size: Callable[[Item], int]
    _waiting: list[tuple[Item, "asyncio.Future[Result]"]] = field(default_factory=list)
    _task: "asyncio.Task[None] | None" = None

    async def ask(self, item: Item) -> Result:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, done))
        if self._task is None:
            self._task = loop.create_task(self._work_off())
        return await done

    async def close(self) -> None:
        """Returns when all that waits is done."""
        if self._task:
            await self._task

    async def _work_off(self) -> None:
        try:
            while batch := self._take_batch():
                await self._work_on(batch)
        finally:
            self._task = None

    def _take_batch(self) -> list[tuple[Item, "asyncio.Future[Result]"]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        self._waiting = [waiting for waiting in self._waiting if not waiting[1].done()]
        total = 0
        while self._waiting and (not batch or total + self.size(self._waiting[0][0]) <= self.most):
            batch.append(self._waiting.pop(0))
            total += self.size(batch[-1][0])
        return batch

    async def _work_on(self, batch: list[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        try:
            results = await self.work([item for item, _ in batch])
        except asyncio.CancelledError:
            for _, done in batch:
                done.cancel()
            raise
        except Exception as error:
            if len(batch) > 1:
                for single in batch:
                    if not single[1].done():
                        await self._work_on([single])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
                batch[0][1].exception()  # whoever asked may have gone: nobody need hear of it then
            return
        for (_, done), result in zip(batch, results, strict=True):
            if not done.done():
                done.set_result(result)
