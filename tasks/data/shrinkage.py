"""shrinkage: has a table lost rows since the last ingest? A source that fails in half can look like a whole one.

The rows that a source delivered last are noted by table and address in the store of a team, else in the home. They do
not depend on `clock.as_of`.
"""

import json
import os
from pathlib import Path

from tasks import log
from tasks.data import periods
from tasks.params import Source, home
from tasks.params.source import scheme_of
from tasks.runtime import files, store

FOLDER = "deliveries"


def check_rows(table: str, source: Source, rows: int) -> None:
    """Compare what a source has delivered with what it delivered last.

    Raises:
        ValueError: it has lost more than `max_drop` of its rows.
    """
    last = _read(table, source)
    if last is None or rows >= last * (1 - source.max_drop):
        return
    lost = (last - rows) / last
    raise ValueError(
        f"{table} ({source.shown}) must not lose more than max_drop {source.max_drop:g} of its rows, but has lost "
        f"{lost:.1%}: {rows:,} rows came, {last:,} the last time. Bring the source back, or, where that is "
        f"how it should be, set sources.{table}.max_drop to {min(1.0, int(lost * 100 + 1) / 100):g} for one run."
    )


def note_rows(table: str, source: Source, rows: int) -> None:
    """Keep what a source has delivered for the next comparison."""
    if _read(table, source) != rows:
        content = {"address": source.shown, "rows": rows, "table": table}
        try:
            store.open_shared(home()).replace(_name_of(table, source), files.to_json(content).encode())
        except store.StoreError as error:
            log.warning("the rows of %s are not noted, and the next ingest compares with older ones: %s", table, error)


def _read(table: str, source: Source) -> int | None:
    try:
        return int(json.loads(store.open_shared(home()).read(_name_of(table, source)))["rows"])
    except FileNotFoundError:
        return None
    except store.StoreError as error:
        log.warning("%s is not compared with the last ingest: %s", table, error)
        return None


def _name_of(table: str, source: Source) -> str:
    """A path is that of its checkout; another address is a table with no past."""
    place = ""
    if scheme_of(source.address) in ("", "file"):
        place = str(Path(os.environ.get("EVERGREEN_CHECKOUT") or Path.cwd()).resolve())
    return f"{FOLDER}/{periods.hash_inputs(table, source.address, place)[:24]}.json"
