"""journal_segments: the logs of a team's processes, in its store: what is acknowledged outlives the machine.

What a process syncs is one file, a segment, of its own name, which is never written again. It is whole or absent, so
that any process may read it, and move it into Parquet, while its writer goes on. A writer joins its small segments now
and then, since a reader asks for each by itself.

    journal/logs/<kind>/<log>-<number>.evl
"""

import io
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from tasks import log
from tasks.runtime.store import Store, StoreError
from tasks.serving import schema
from tasks.serving.journal_log import TORN, Log, make_log_name, pack_rows, split_frames, unpack_frames
from tasks.serving.plainrows import PlainRows

FOLDER = "journal/logs"
JOINED_SEGMENTS, JOINED_BYTES = 64, 8_000_000  # a writer joins its last segments when they are so many, or so large
READ_ATTEMPTS = 20  # of a reader whose segments are joined meanwhile
READERS = 16  # threads that read segments
MOVED_SEGMENTS = 64  # that become Parquet together


@dataclass(frozen=True)
class StoreLogs:
    """Logs in a store."""

    store: Store
    outlive_process: bool = False  # before a sync, rows are in the memory of this process

    def begin(self, kind: schema.Kind) -> Log:
        return _StoreLog(self.store, f"{FOLDER}/{kind}/{make_log_name()}")

    def read(self, kind: schema.Kind) -> list[pa.Table]:
        segments: dict[str, list[pa.Table]] = {}
        before: set[str] | None = None
        for _ in range(READ_ATTEMPTS):
            listed = set(self._list(kind))
            fresh = dict(self._read(sorted(listed - segments.keys())))
            lacks = listed - segments.keys() - fresh.keys()
            segments |= fresh
            # Where a name has gone, its rows were joined or moved, and the next listing shows what came of it. Also a
            # folder that is listed while it changes may show neither the old name nor the new one.
            if before is not None and not lacks and before <= listed:
                return [table for tables in segments.values() for table in tables]
            before = listed
        raise StoreError(f"the segments of {kind} changed in each of {READ_ATTEMPTS} readings: read again")

    def move(self, kind: schema.Kind, write: Callable[[str, list[pa.Table]], None]) -> int:
        names = self._list(kind)
        for begin in range(0, len(names), MOVED_SEGMENTS):
            segments = self._read(names[begin : begin + MOVED_SEGMENTS])
            if segments:
                write(
                    f"moved-{schema.make_entry(*(name for name, _ in segments))}", [t for _, ts in segments for t in ts]
                )
                self._remove([name for name, _ in segments])
        return len(names)

    def _list(self, kind: schema.Kind) -> list[str]:
        return [name for name in self.store.list_names(f"{FOLDER}/{kind}") if not name.endswith(TORN)]

    def _read(self, names: Sequence[str]) -> list[tuple[str, list[pa.Table]]]:
        """The segments that are there; the others have been moved or joined meanwhile."""

        def read(name: str) -> tuple[str, list[pa.Table]] | None:
            try:
                return name, self._unpack(name, self.store.read(name))
            except FileNotFoundError:
                return None

        with ThreadPoolExecutor(READERS, "segments") as threads:
            return [segment for segment in threads.map(read, names) if segment]

    def _unpack(self, name: str, content: bytes) -> list[pa.Table]:
        """The whole frames. A segment with others, which only damage makes, stays under another name too."""
        file = io.BytesIO(content)
        tables = [*unpack_frames(file, name)]
        whole = sum(len(frame) for frame in split_frames(content))
        if whole < len(content):
            log.warning("%s: the last %s bytes are damaged; it is kept as %s", name, len(content) - whole, name + TORN)
            self.store.add(name + TORN, content)
        return tables

    def _remove(self, names: Sequence[str]) -> None:
        with ThreadPoolExecutor(READERS, "segments") as threads:
            list(threads.map(self.store.remove, names))


@dataclass
class _StoreLog:
    """One process's log. `append` from one thread; the syncs that it prepares run one after another."""

    store: Store
    name: str
    schema: pa.Schema | None = None  # of the last frame of the segment that is being filled
    _frames: list[bytes] = field(default_factory=list)  # which no sync has taken yet
    _number: int = 0  # of the next segment
    _written: list[tuple[str, bytes]] = field(default_factory=list)  # the segments since the last that were joined

    def append(self, rows: pa.Table | PlainRows, *, sync: bool = True) -> int:
        frame = pack_rows(rows, self.schema)
        self._frames.append(frame)
        self.schema = rows.schema
        if sync:
            self.prepare_sync()()
        return len(frame)

    def prepare_sync(self) -> Callable[[], None]:
        segment, self._frames, self.schema = b"".join(self._frames), [], None
        name, self._number = self._name_segment(), self._number + bool(segment)

        def sync() -> None:
            if segment:
                self.store.add(name, segment)  # no other file has this name: one that is there is this one
                self._note(name, segment)

        return sync

    def close(self) -> None:
        self.prepare_sync()()

    def _name_segment(self) -> str:
        return f"{self.name}-{self._number:08}.evl"

    def _note(self, name: str, segment: bytes) -> None:
        """Join the segments that were written since the last time, in the background, when they are many."""
        self._written.append((name, segment))
        if len(self._written) >= JOINED_SEGMENTS or sum(len(data) for _, data in self._written) >= JOINED_BYTES:
            segments, self._written = self._written, []
            if len(segments) > 1:
                threading.Thread(target=self._join, args=[segments], name="join segments", daemon=True).start()

    def _join(self, segments: Sequence[tuple[str, bytes]]) -> None:
        """The joined one is there before the small ones go: a reader in between sees rows twice and counts them once.

        Where the small ones have been moved into Parquet, the joined one holds those rows once more.
        """
        try:
            name = segments[-1][0].removesuffix(".evl") + "-joined.evl"
            self.store.add(name, b"".join(data for _, data in segments))
            for name, _ in segments:
                self.store.remove(name)
        except StoreError as error:
            log.warning("segments of the journal stay as they are: %s", error)
