"""batch: requests that come while others are worked on are worked on together, next."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


@dataclass
class Batches(Generic[A, B]):
    """For one event loop. `work` gives as many results as it gets items, in their order; or raises, and then each item
    is worked on alone, so that a bad one spoils nobody else's answer."""

    work: Callable[[list[A]], Awaitable[Sequence[B]]]
    most: int = 64
    _waiting: list[tuple[A, "asyncio.Future[B]"]] = field(default_factory=list)
    _task: "asyncio.Task[None] | None" = None

    async def ask(self, item: A) -> B:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[B] = loop.create_future()
        self._waiting.append((item, done))
        if self._task is None:
            self._task = loop.create_task(self._all())
        return await asyncio.shield(done)  # who has gone meanwhile does not undo the others' work

    async def close(self) -> None:
        """When what waits is done."""
        if self._task:
            await self._task

    async def _all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self.most], self._waiting[self.most :]
                await self._do(batch)
        finally:
            self._task = None

    async def _do(self, batch: list[tuple[A, "asyncio.Future[B]"]]) -> None:
        try:
            found = await self.work([item for item, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                _end(batch[0][1], error)
                return
            for each in batch:
                await self._do([each])
            return
        for (_, done), result in zip(batch, found, strict=True):
            if not done.done():
                done.set_result(result)


def _end(done: "asyncio.Future[B]", error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
        done.exception()  # whoever asked may have gone: nobody need hear of it then
