"""microbatch: requests that come while others are worked on are worked on together, next."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class MicroBatches(Generic[Item, Result]):
    """For one event loop. `work` gives as many results as it gets items, in their order; or raises, and then each item
    is worked on alone, so that a bad one spoils nobody else's answer. Who has gone before a batch begins is left out of
    it: under overload nothing is done in vain. A batch has `most` of what `size` counts, or one item."""

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
            self._task = loop.create_task(self._all())
        return await done

    async def close(self) -> None:
        """When what waits is done."""
        if self._task:
            await self._task

    async def _all(self) -> None:
        try:
            while batch := self._next():
                await self._do(batch)
        finally:
            self._task = None

    def _next(self) -> list[tuple[Item, "asyncio.Future[Result]"]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        self._waiting = [waiting for waiting in self._waiting if not waiting[1].done()]
        total = 0
        while self._waiting and (not batch or total + self.size(self._waiting[0][0]) <= self.most):
            batch.append(self._waiting.pop(0))
            total += self.size(batch[-1][0])
        return batch

    async def _do(self, batch: list[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        try:
            results = await self.work([item for item, _ in batch])
        except asyncio.CancelledError:
            for _, done in batch:
                done.cancel()
            raise
        except Exception as error:
            if len(batch) > 1:
                for single in batch:
                    await self._do([single])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
                batch[0][1].exception()  # whoever asked may have gone: nobody need hear of it then
            return
        for (_, done), result in zip(batch, results, strict=True):
            if not done.done():
                done.set_result(result)
