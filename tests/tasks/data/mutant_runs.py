"""Ingest and clean on a mutant, and what is wrong with what came out."""

import json
import os
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq

from tasks import params
from tasks.data import clean, ingest
from tests.conftest import raw_params
from tests.tasks.data import mutants
from tests.tasks.data.mutants import AS_OF, REQUIRED, TYPES, Mutant


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: a refusal with its message, and the faults that were found."""

    mutant: Mutant
    refusal: str | None
    faults: tuple[str, ...]


def settings(mutant: Mutant) -> params.Params:
    raw = raw_params("binary", 30)
    columns = {name: {"type": kind} for name, kind in TYPES.items()}
    for name in REQUIRED:
        columns[name]["required"] = True  # type: ignore[assignment]
    raw["clock"] = {"as_of": AS_OF.isoformat()}
    source = {"address": "source/part*.csv", "event_time": "moment", "known_at": "moment", **mutant.settings}
    raw["sources"], raw["contract"] = {"rows": source}, {"rows": {"key": ["id"], "columns": columns}}
    raw["spine"] = {"table": "rows", "columns": ["name"]}
    raw["label"]["expression"] = "amount > 500"
    raw["clean"]["max_bad_share"] = 1
    raw["evaluate"]["slices"] = []
    return params.validate(raw)


def run(seed: int, folder: Path) -> Outcome:
    """Ingest and clean the mutant of this number in a new folder, and compare."""
    mutant = mutants.make_mutant(seed)
    paths = mutant.write(folder / "source")
    try:
        expected: mutants.Expected | None = mutants.read_expected(mutant, paths)
    except mutants.Malformed:
        expected = None
    try:
        with inside(folder):
            p = settings(mutant)
            ingest.ingest(p)
            clean.clean(p)
    except ValueError as error:
        return Outcome(mutant, str(error), tuple(judge_refusal(mutant, expected, str(error))))
    except Exception as error:
        return Outcome(mutant, None, (f"a crash: {type(error).__name__}: {error}",))
    return Outcome(mutant, None, tuple(judge_rows(folder, expected)))


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    with chdir(folder), patch.dict(os.environ, {"EVERGREEN_HOME": str(folder / "home")}):
        yield


def judge_refusal(mutant: Mutant, expected: mutants.Expected | None, message: str) -> Iterator[str]:
    if expected is not None and not mutant.is_damaged:
        yield f"refused, though it is only written in another way: {message}"
    if "source/part" not in message and "rows" not in message:
        yield f"a refusal that names no file: {message}"


def judge_rows(folder: Path, expected: mutants.Expected | None) -> Iterator[str]:
    if expected is None:
        yield "taken, though it is no table"
        return
    counts = json.loads((folder / "reports/quality.json").read_text())["tables"]["rows"]
    rows, held = (read_rows(folder / "data" / place / "rows") for place in ("clean", "quarantine"))
    total = counts["rows"] + counts["empty"] + counts["later"]
    if counts["read"] != total or counts["rows"] != len(rows) + len(held):
        yield f"rows are unaccounted for: {counts['read']} read, {total} told, {len(rows)} + {len(held)} written"
    if counts["read"] - counts["empty"] != expected.rows:
        yield f"{counts['read'] - counts['empty']} rows were read, but there are {expected.rows}"
    outlying = {str(row["id"]) for row in held if "far" in row["reason"] or "outlier" in row["reason"]}
    read = {f"{row['id']} {row['moment']:%Y-%m}": tuple(row[name] for name in TYPES) for row in rows}
    if len(read) != len(rows):
        yield "a key came twice"
    for name in sorted(read.keys() | expected.good_rows.keys()):
        if read.get(name) != expected.good_rows.get(name) and name.split(" ")[0] not in outlying:
            yield f"{name}: {_shorten(read.get(name))} instead of {_shorten(expected.good_rows.get(name))}"


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*")) for row in pq.read_table(path).to_pylist()]


def _shorten(values: Any) -> str:
    return "nothing" if values is None else str(values)[:160]
