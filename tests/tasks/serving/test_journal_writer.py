"""tasks.serving.journal_writer: what is acknowledged is kept, through the roll of a log and a disk that fails."""

import asyncio
import os
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from tasks import params
from tasks.runtime import store
from tasks.serving import journal, journal_writer
from tasks.serving.journal import Journal
from tasks.serving.journal_writer import JournalWriter
from tests.tasks import journalled

AT = datetime(2024, 3, 1)


@pytest.fixture
def kept(tmp_path: Path) -> Journal:
    return journal.open_journal(params.Journal(), home=tmp_path)


def row(name: str) -> pa.Table:
    return journalled.predictions([name], event_time=AT)


def test_every_byte_is_put_on_disk_when_a_log_is_rolled(
    kept: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[int, int] = {}
    fsync = os.fsync

    def told(file: int) -> None:
        size = os.fstat(file).st_size
        fsync(file)
        synced[os.fstat(file).st_ino] = max(size, synced.get(os.fstat(file).st_ino, 0))

    async def write() -> None:
        one = JournalWriter(kept, timedelta(0))
        for begin in range(0, 60, 20):
            await asyncio.gather(*(one.write("predictions", row(f"{begin + i:032x}")) for i in range(20)))
        await one.close()

    monkeypatch.setattr(journal_writer, "LOG_BYTES", 100)
    monkeypatch.setattr(os, "fsync", told)
    asyncio.run(write())
    logs = list(tmp_path.rglob("*.log"))
    assert len(logs) > 1
    assert all(synced[path.stat().st_ino] == path.stat().st_size for path in logs)
    assert kept.read("predictions").num_rows == 60


def test_a_sync_that_fails_is_told_to_all_that_wait_and_is_not_tried_again(
    kept: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux tells of a failure once: a second sync would succeed, though the bytes are lost."""

    def fails_once(_file: int) -> None:
        monkeypatch.setattr(os, "fsync", lambda _file: None)
        raise OSError("no such disk")

    async def write() -> list[BaseException | None]:
        one = JournalWriter(kept, timedelta(0))
        await one.write("predictions", row("a"))
        monkeypatch.setattr(os, "fsync", fails_once)
        found = await asyncio.gather(*(one.write("predictions", row(each)) for each in "bcd"), return_exceptions=True)
        assert one.error
        await one.write("predictions", row("e"))
        assert one.error is None
        await one.close()
        return found

    found = asyncio.run(write())
    assert all(isinstance(each, OSError) for each in found)


def test_a_team_acknowledges_what_is_in_its_store(shared: store.Store) -> None:
    async def write() -> None:
        one = JournalWriter(journal.open_journal(params.Journal()), timedelta(hours=1))
        await asyncio.gather(*(one.write("predictions", row(name)) for name in "abc"))
        assert journal.open_journal(params.Journal()).read("predictions").num_rows == 3  # as another machine reads it
        assert len(shared.list_names("journal/logs")) < 3  # who waits shares a write

    asyncio.run(write())


def test_a_team_hears_of_rows_that_its_store_did_not_take(shared: store.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bool:
        raise store.StoreError("the store is away")

    async def write() -> list[BaseException | None]:
        one = JournalWriter(journal.open_journal(params.Journal()), timedelta(0))
        await one.write("predictions", row("a"))
        with monkeypatch.context() as patch:
            patch.setattr(type(shared), "add", fail)
            results = await asyncio.gather(
                *(one.write("predictions", row(name)) for name in "bcd"), return_exceptions=True
            )
            assert one.error
        await one.write("predictions", row("e"))
        assert one.error is None
        await one.close()
        return results

    assert all(isinstance(result, OSError) for result in asyncio.run(write()))
    assert journal.open_journal(params.Journal()).read("predictions")["entry"].to_pylist() == ["a", "e"]
