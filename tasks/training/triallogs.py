"""Logs of a search: files of JSON lines in <home>/studies, to which a line is added when something has ended.

A line is on disk before the search goes on. In a team the same lines go to its store, in parts that are named for the
byte that they begin at, so that another machine goes on where a killed one stopped.

    studies/<search>/<file>/<first byte>
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks import log
from tasks.runtime import files, store

FOLDER = "studies"
_lacking: dict[Path, int] = {}  # the first byte of each log that the store did not take


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line each, on disk before the next trial begins."""
    with path.open("a") as stream:
        begin = stream.tell()
        stream.write("".join(json.dumps(row) + "\n" for row in rows))
        stream.flush()
        os.fsync(stream.fileno())
    if shared := store.find_store():
        begin = _lacking.pop(path, begin)
        try:
            shared.add(_part(path, begin), path.read_bytes()[begin:])
        except store.StoreError as error:  # the search goes on: another machine would only have to do more of it again
            _lacking[path] = begin
            log.warning("this part of the search is on this machine alone: %s", error)


def read_lines(path: Path) -> list[str]:
    """The log's lines. A torn last one is cut off."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        write_lines(path, whole)
    return whole


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Replace a log's lines by others, here and in the store."""
    text = "".join(lines)
    files.publish_text(path, text)
    if shared := store.find_store():
        try:
            for name in _list_parts(shared, path):
                shared.remove(name)
            if text:
                shared.add(_part(path, 0), text.encode())
            _lacking.pop(path, None)
        except store.StoreError as error:
            log.warning("this part of the search is on this machine alone: %s", error)


def fetch_logs(folder: Path, search: str) -> None:
    """Bring a search's logs from the store into a folder, where they are longer there. Its lock must be held."""
    if (shared := store.find_store()) is None:
        return
    try:
        names = shared.list_names(f"{FOLDER}/{search}")
        for file in sorted({name.split("/")[2] for name in names}):
            _fetch_log(shared, folder / file)
    except store.StoreError as error:
        log.warning("the search goes on from what this machine has of it: %s", error)


def _fetch_log(shared: store.Store, path: Path) -> None:
    content = b""
    for name in _list_parts(shared, path):
        if int(name.rpartition("/")[2]) != len(content):
            break  # a part did not arrive, and what follows it is of no use
        content += shared.read(name)
    if len(content) > (path.stat().st_size if path.exists() else 0):
        files.publish_text(path, content.decode())


def _list_parts(shared: store.Store, path: Path) -> list[str]:
    return shared.list_names(_part(path, 0).rpartition("/")[0])


def _part(path: Path, begin: int) -> str:
    return f"{FOLDER}/{path.name.partition('.')[0]}/{path.name}/{begin:012}"
