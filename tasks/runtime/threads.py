"""Work side by side in threads of this process: results in order, the first item's error, and the rest stopped."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import ContextVar
from typing import Any, TypeVar

Result = TypeVar("Result")
_NEVER = threading.Event()
_STOP: ContextVar[threading.Event] = ContextVar("stop", default=_NEVER)


class Stopped(RuntimeError):  # noqa: N818 (it says what happened)
    """Work beside this one failed, or somebody pressed Ctrl-C."""


def stop_event() -> threading.Event:
    """Set when the item that this thread works on is no longer wanted. A function that takes long looks at it."""
    return _STOP.get()


def run_threads(
    works: Sequence[Callable[[], Result]], workers: int, *, report: Callable[[int], None] = lambda _: None
) -> list[Result]:
    """Does these works in threads; their results in order. After an error, or Ctrl-C, those behind it are stopped."""
    if workers == 1 or len(works) == 1:
        return [_run_here(work, place, report) for place, work in enumerate(works)]
    stops, first = [threading.Event() for _ in works], len(works)
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_with_stop, work, stop) for work, stop in zip(works, stops, strict=True)]
        places, running = {future: place for place, future in enumerate(futures)}, set(futures)
        try:
            while running := {future for future in running if places[future] < first}:
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                running -= ended
                for future in ended:
                    if future.exception():
                        first = min(first, places[future])
                    else:
                        report(places[future])
                _stop(futures[first + 1 :], stops[first + 1 :])
        except BaseException:
            _stop(futures, stops)
            raise
    return [future.result() for future in futures[: first + 1]]


def _run_here(work: Callable[[], Result], place: int, report: Callable[[int], None]) -> Result:
    result = work()
    report(place)
    return result


def _with_stop(work: Callable[[], Result], stop: threading.Event) -> Result:
    if stop.is_set():
        raise Stopped
    token = _STOP.set(stop)
    try:
        return work()
    finally:
        _STOP.reset(token)


def _stop(futures: Sequence["Future[Any]"], stops: Sequence[threading.Event]) -> None:
    for future, stop in zip(futures, stops, strict=True):
        stop.set()
        future.cancel()
