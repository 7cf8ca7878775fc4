"""download: one file of a remote source, whole, by as many tries as the network needs.

What has come stays, with a note of what is surely on disk, and the next try asks for the rest: in this process, or in
the next one after a kill. A server that has another file by then begins it anew. Waits between tries are random, so
that many machines that lost one server do not all come back at once.
"""

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, TypeVar

from tasks import log
from tasks.data.sources.scheme import DeliveryError, PassingError
from tasks.params import spell
from tasks.runtime import files

ATTEMPTS = 5  # in a row that bring nothing
WAIT_S, LONGEST_WAIT_S = 0.5, 30.0  # the first random wait at most, doubled from try to try up to the other
SYNC_BYTES = 16 << 20  # are on disk, and noted, after so many more
T = TypeVar("T")


@dataclass(frozen=True)
class Limit:
    """The end of a fetch, by the monotonic clock."""

    until: float
    length: timedelta
    address: str

    @classmethod
    def begin(cls, length: timedelta, address: str) -> "Limit":
        return cls(time.monotonic() + length.total_seconds(), length, address)

    @property
    def rest_s(self) -> float:
        return self.until - time.monotonic()

    def check(self) -> None:
        """Raises DeliveryError at the end."""
        if self.rest_s <= 0:
            raise DeliveryError(
                f"{self.address} did not arrive within its timeout of {spell(self.length)}. Raise the source's "
                "`timeout`, or run again: it goes on from what has come, where the server can."
            )


@dataclass(frozen=True)
class Answer:
    """What a server sends of a file.

    Args:
        chunks: its bytes from `start` on. Raises PassingError where the connection is lost.
        size: of the whole file in bytes; None: its end is marked in another way.
        mark: another for each content of the file; None: a rest cannot be asked for.
        notes: what else it says of the file.
    """

    chunks: Iterator[bytes]
    start: int
    size: int | None
    mark: str | None
    notes: Mapping[str, str] = field(default_factory=dict)


# (from which byte on, of the file with which mark) → the answer; None: the file is as it was at the last delivery.
Ask = Callable[[int, str | None], AbstractContextManager[Answer | None]]


def download(part: Path, ask: Ask, limit: Limit) -> Mapping[str, str] | None:
    """Bring a file to `part`. Returns the notes of the server; None where the file is as it was.

    Raises:
        DeliveryError: it did not come whole within the limit and after some tries.
    """
    progress = [0]

    def attempt() -> Mapping[str, str] | None:
        return _attempt(part, ask, limit, progress)

    return retry(attempt, limit, progress)


def retry(act: Callable[[], T], limit: Limit, progress: list[int] | None = None) -> T:
    """Act until no PassingError comes, the limit is reached, or ATTEMPTS in a row have failed without progress.

    Args:
        progress: a number that grows with what has been reached.

    Raises:
        DeliveryError: the last one.
    """
    import tenacity  # here: only some sources need it

    reached, fails = [0], [0]

    def choose_wait(state: tenacity.RetryCallState) -> float:
        now = progress[0] if progress else 0
        fails[0] = 1 if now > reached[0] else fails[0] + 1
        reached[0] = max(now, reached[0])
        error = state.outcome.exception() if state.outcome else None
        wait = random.uniform(0, min(WAIT_S * 2 ** (fails[0] - 1), LONGEST_WAIT_S))
        return max(wait, error.after if isinstance(error, PassingError) else 0.0)

    def must_stop(state: tenacity.RetryCallState) -> bool:
        return fails[0] >= ATTEMPTS or state.upcoming_sleep >= limit.rest_s

    def say(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning("%s. Asking again in %.1f s", error, state.upcoming_sleep)

    tries = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(PassingError),
        wait=choose_wait,
        stop=must_stop,
        before_sleep=say,
        reraise=True,
    )
    begun = time.monotonic()
    try:
        return tries(act)
    except PassingError as error:
        raise DeliveryError(
            f"{error}, after {tries.statistics['attempt_number']} tries in {time.monotonic() - begun:.0f} s. Try again "
            "later, or give the source a `fallback`"
        ) from None


def _attempt(part: Path, ask: Ask, limit: Limit, progress: list[int]) -> Mapping[str, str] | None:
    limit.check()
    done, mark = _read_note(part)
    with ask(done, mark) as answer:
        if answer is None:
            return None
        if answer.start not in (0, done) or (answer.start and answer.mark != mark):
            discard(part)
            raise PassingError(f"{limit.address} sent another part than was asked for")
        with part.open("r+b" if answer.start else "wb") as file:
            file.truncate(answer.start)
            file.seek(answer.start)
            length = _write(file, answer, part, limit, progress)
    if answer.size is not None and length < answer.size:
        raise PassingError(f"{limit.address} ended after {length:,} of {answer.size:,} bytes")
    if answer.size is not None and length > answer.size:
        discard(part)
        raise DeliveryError(f"{limit.address} sent {length:,} bytes, but had said that they are {answer.size:,}")
    return answer.notes


def _write(file: BinaryIO, answer: Answer, part: Path, limit: Limit, progress: list[int]) -> int:
    """Returns the length of the file."""
    length = synced = answer.start
    _note(part, length, answer.mark)
    try:
        for chunk in answer.chunks:
            file.write(chunk)
            length += len(chunk)
            progress[0] = max(progress[0], length)
            limit.check()
            if length - synced >= SYNC_BYTES:
                synced = _sync(file, part, length, answer.mark)
    except DeliveryError:
        _sync(file, part, length, answer.mark)
        raise
    except OSError:  # what has come would keep a full disk full, and can come again
        discard(part)
        raise
    return _sync(file, part, length, answer.mark)


def _sync(file: BinaryIO, part: Path, length: int, mark: str | None) -> int:
    file.flush()
    files.sync(part)
    _note(part, length, mark)
    return length


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _note(part: Path, length: int, mark: str | None) -> None:
    files.publish_json(_note_of(part), {"length": length, "mark": mark})


def _read_note(part: Path) -> tuple[int, str | None]:
    """How much of a file has come and is surely on disk, and of which. 0 where a rest cannot be asked for."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        note = json.loads(_note_of(part).read_text(encoding="utf-8"))
        if note["mark"] and 0 < note["length"] <= part.stat().st_size:
            return int(note["length"]), str(note["mark"])
    return 0, None


def discard(part: Path) -> None:
    """Forget what has come of a file."""
    _note_of(part).unlink(missing_ok=True)
    part.unlink(missing_ok=True)
