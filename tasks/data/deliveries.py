"""deliveries: what a source had at the last ingest, noted by table and address for the next one to compare with.

Notes are in the store of a team, else in the home. They do not depend on `clock.as_of`.
"""

import json
import os
from pathlib import Path
from typing import Any

from tasks import log
from tasks.data import periods
from tasks.params import Source, home
from tasks.params.source import scheme_of
from tasks.runtime import files, store

ROWS, SETTLED = "deliveries", "settled"  # the folders of notes: of shrinkage.py, and of lateness.py


def read_note(folder: str, table: str, source: Source) -> dict[str, Any] | None:
    """What was noted of a source. None where nothing was, or where the store does not answer, with a warning."""
    try:
        note: dict[str, Any] = json.loads(store.open_shared(home()).read(_name_of(folder, table, source)))
        return note
    except FileNotFoundError:
        return None
    except store.StoreError as error:
        log.warning("%s is not compared with the last ingest: %s", table, error)
        return None


def write_note(folder: str, table: str, source: Source, note: dict[str, Any]) -> None:
    """Replace what is noted of a source. A store that does not answer costs a warning."""
    content = {**note, "address": source.shown, "table": table}
    try:
        store.open_shared(home()).replace(_name_of(folder, table, source), files.to_json(content).encode())
    except store.StoreError as error:
        log.warning("%s is not noted, and the next ingest compares with an older delivery: %s", table, error)


def _name_of(folder: str, table: str, source: Source) -> str:
    """A path is that of its checkout; another address is a table with no past."""
    place = ""
    if scheme_of(source.address) in ("", "file"):
        place = str(Path(os.environ.get("EVERGREEN_CHECKOUT") or Path.cwd()).resolve())
    return f"{folder}/{periods.hash_inputs(table, source.address, place)[:24]}.json"
