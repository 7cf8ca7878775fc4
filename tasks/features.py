"""features: features.sql over the clean tables → data/features, a period at a time.

    python -m tasks.features

The SQL gets a spine (row_id, event_time, spine.columns) and the clean tables no further back than features.lookback;
it gives back each row_id once, and the features. `compute` is that one call, for training, scoring and serving.
Every build proves on a few rows that nothing leaks: it hides what was not yet known and computes them again.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import periods, stage
from tasks.contract import literal, quoted
from tasks.params import Params
from tasks.periods import Period

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from numpy.typing import NDArray

log = logging.getLogger("evergreen")
CODE = periods.source_of(__file__)
SQL = Path("tasks/features.sql")  # of the project in whose folder the stage runs, like every other path
META = ("_event_time", "_known_at", "_label")
KEY = "_key_"


@dataclass(frozen=True)
class Tables:
    """The clean tables of a folder: static ones whole, the others by period."""

    folder: Path
    timed: dict[str, list[tuple[Period, Path]]]
    static: dict[str, list[Path]]


def features(p: Params, folder: Path = Path()) -> None:
    """Write <features>/<period>.parquet and <features>/manifest.json. Raises ValueError for SQL that fails or leaks."""
    out = folder / p.paths.features
    shutil.rmtree(out, ignore_errors=True)
    build(p, folder / p.paths.clean, out, (folder / SQL).read_text())
    manifest = _manifest(p, out, folder)
    for warning in manifest["warnings"]:
        log.warning(warning)
    log.info("%s rows, %s features", f"{manifest['rows']:,}", len(manifest["columns"]))
    periods.publish_json(out / "manifest.json", manifest)


def build(p: Params, clean: Path, out: Path, sql: str) -> None:
    """The features of every period of the spine's table, each made once: from the cache when nothing it reads changed."""
    tables = open_tables(p, clean)
    todo = tables.timed[p.spine.table]
    probes = _spread(p.features.leak_probes, len(todo))
    for (period, _), rows in zip(todo, probes, strict=True):
        files = list(_reads(tables, period, p.features.lookback))
        contents = [(name, [periods.content(path) for path in paths]) for name, paths in files]
        settings = [each.model_dump() for each in (p.spine, p.label, p.features)]
        entry = periods.key("features", period.name, contents, settings, p.contract[p.spine.table].key, sql, CODE)
        target = out / f"{period.name}.parquet"
        if periods.cached(entry, {target: "rows.parquet"}, _maker(p, dict(files), period, sql, rows)):
            log.info("%s computed", period.name)


def open_tables(p: Params, clean: Path) -> Tables:
    timed = {name: list(periods.files(clean / name)) for name, source in p.sources.items() if source.event_time}
    static = {name: sorted((clean / name).glob("*.parquet")) for name in p.sources if name not in timed}
    return Tables(clean, timed, static)


def _spread(total: int, places: int) -> list[int]:
    """`total` spread over `places` as evenly as whole numbers go, the newest first."""
    return [total // places + (places - 1 - i < total % places) for i in range(places)] if places else []


def _reads(tables: Tables, period: Period, lookback: timedelta) -> Iterator[tuple[str, list[Path]]]:
    """The files that a period's features may depend on."""
    yield from tables.static.items()
    for name, files in tables.timed.items():
        yield name, [path for each, path in files if each.end > period.start - lookback and each.start < period.end]


def _maker(p: Params, files: dict[str, list[Path]], period: Period, sql: str, probes: int) -> Any:
    def make(into: Path) -> None:
        import pyarrow.parquet as pq

        con = connect(p)
        for name, paths in files.items():
            _register(con, name, paths, period, p)
        rows = _spine_rows(con, p, period)
        con.execute(f"CREATE TEMP TABLE spine AS SELECT {_spine_columns(p)} FROM rows ORDER BY row_id")
        found = compute(con, p, sql)
        _refuse_leaks(con, p, sql, found, probes)
        pq.write_table(_with_meta(found, rows), into / "rows.parquet", compression="zstd")

    return make


def connect(p: Params) -> "DuckDBPyConnection":
    """A DuckDB connection in UTC, within stage.threads and stage.memory, that knows the lead."""
    import duckdb

    con = duckdb.connect(config={"threads": p.stage.threads, "memory_limit": p.stage.memory})
    con.execute("SET TimeZone = 'UTC'")
    con.execute(f"SET VARIABLE lead = INTERVAL {int(p.features.lead.total_seconds())} SECONDS")
    return con


def _register(con: "DuckDBPyConnection", name: str, paths: list[Path], period: Period, p: Params) -> None:
    """A clean table in memory, cut to what a period may look at."""
    if not paths:
        raise ValueError(f"there is no clean data of {name} for {period.name}: check sources.{name} and clock.as_of")
    listed = ", ".join(literal(str(path)) for path in paths)
    where = "TRUE"
    if p.sources[name].event_time:
        since = literal(str(period.start - p.features.lookback))
        where = f"event_time >= TIMESTAMP {since} AND event_time < TIMESTAMP {literal(str(period.end))}"
    con.execute(f"CREATE TEMP TABLE {quoted(name)} AS SELECT * FROM read_parquet([{listed}]) WHERE {where}")


def _spine_rows(con: "DuckDBPyConnection", p: Params, period: Period) -> "pa.Table":
    """The period's rows with their keys, times and label, numbered in a fixed order."""
    import duckdb

    key = p.contract[p.spine.table].key
    order = ", ".join(["event_time", *(quoted(name) for name in key)])
    keys = "".join(f", {quoted(name)} AS {quoted(KEY + name)}" for name in key)
    due = f"known_at <= event_time + INTERVAL {int(p.label.deadline.total_seconds())} SECONDS"
    try:
        con.execute(
            f"CREATE TEMP TABLE rows AS SELECT row_number() OVER (ORDER BY {order}) AS row_id, *{keys}, "
            f"event_time AS _event_time, known_at AS _known_at, CASE WHEN {due} THEN ({p.label.expression}) END AS _label "
            f"FROM {quoted(p.spine.table)} WHERE event_time >= TIMESTAMP {literal(str(period.start))}"
        )
    except duckdb.Error as error:
        raise ValueError(f"label.expression `{p.label.expression}` fails: {error}") from None
    meta = ", ".join(quoted(name) for name in [*(KEY + name for name in key), *META])
    return con.sql(f"SELECT {meta} FROM rows ORDER BY row_id").to_arrow_table()


def _spine_columns(p: Params) -> str:
    return ", ".join(["row_id", "event_time", *(quoted(name) for name in p.spine.columns)])


def compute(con: "DuckDBPyConnection", p: Params, sql: str) -> "pa.Table":
    """Run the SQL over the connection's spine and tables → one row of features per row of the spine, in its order.

    Raises ValueError when the SQL fails (with its line), loses or repeats rows, or gives back an outcome.
    """
    import duckdb

    try:
        found = con.sql(f"SELECT * FROM (\n{sql}\n) ORDER BY row_id").to_arrow_table()
    except duckdb.Error as error:
        raise ValueError(f"features.sql: {_own_lines(str(error))}") from None
    if "row_id" not in found.column_names:
        raise ValueError(f"features.sql must give back row_id, but gives {found.column_names}")
    wanted = con.sql("SELECT row_id FROM spine ORDER BY row_id").to_arrow_table()["row_id"]
    if not found["row_id"].combine_chunks().equals(wanted.combine_chunks()):
        raise ValueError(
            f"features.sql must give each row_id of the spine once, but gives {len(found)} rows for {len(wanted)}: "
            "check its joins"
        )
    _refuse_outcomes(p, found.column_names)
    return _plain(found.drop_columns(["row_id"]))


def _own_lines(message: str) -> str:
    """DuckDB counts the line that `compute` puts before the file; people count the file's."""
    import re

    return re.sub(r"LINE (\d+):", lambda found: f"LINE {int(found[1]) - 1}:", message)


def _refuse_outcomes(p: Params, names: list[str]) -> None:
    spine = p.contract[p.spine.table].columns
    later = [name for name in names if (name in spine and spine[name].outcome) or name in ("known_at", "label")]
    if later:
        raise ValueError(f"features.sql gives back {later}, which nobody knows when a prediction is asked")
    if hidden := [name for name in names if name.startswith("_")]:
        raise ValueError(f"a feature's name must not start with an underscore, but {hidden} do")


def _plain(table: "pa.Table") -> "pa.Table":
    """Text stays text; every other column becomes float32, as XGBoost reads it."""
    import pyarrow as pa

    def plain(column: Any) -> Any:
        kind = column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
            return column.cast(pa.string())
        if pa.types.is_decimal(kind) or pa.types.is_boolean(kind):
            column = column.cast(pa.float64() if pa.types.is_decimal(kind) else pa.int8())
        return column.cast(pa.float32(), safe=False)

    return pa.table({name: plain(table[name]) for name in table.column_names})


def _refuse_leaks(con: "DuckDBPyConnection", p: Params, sql: str, found: "pa.Table", probes: int) -> None:
    """Compute a few rows again with every row hidden that was not known when they were asked. Raises on a difference."""
    step = max(len(found) // max(probes, 1), 1)
    for place in list(range(step // 2, len(found), step))[:probes]:
        asked = _hide_later_rows(con, p, place + 1)
        again = compute(con, p, sql)
        for name in found.column_names:
            bulk, alone = found[name][place].as_py(), again[name][0].as_py()
            if bulk != alone:
                raise ValueError(
                    f"features.sql leaks: `{name}` of the row at {asked + p.features.lead} is {bulk}, but {alone} when "
                    f"all that was not known by {asked} is hidden. Compare known_at with event_time - lead."
                )
        _show_all(con, p)


def _hide_later_rows(con: "DuckDBPyConnection", p: Params, row_id: int) -> datetime:
    """Put views that show what was known when one row was asked over the tables; the spine shows that row alone."""
    asked: datetime = con.execute(
        "SELECT event_time - getvariable('lead') FROM spine WHERE row_id = ?", [row_id]
    ).fetchone()[0]  # type: ignore[index]
    con.execute("ALTER TABLE spine RENAME TO all_spine")
    con.execute(f"CREATE TEMP VIEW spine AS FROM all_spine WHERE row_id = {row_id}")
    for name in _timed(p):
        con.execute(f"ALTER TABLE {quoted(name)} RENAME TO {quoted('all_' + name)}")
        known = f"known_at <= TIMESTAMP {literal(str(asked))}"
        con.execute(f"CREATE TEMP VIEW {quoted(name)} AS FROM {quoted('all_' + name)} WHERE {known}")
    return asked


def _show_all(con: "DuckDBPyConnection", p: Params) -> None:
    for name in ["spine", *_timed(p)]:
        con.execute(f"DROP VIEW {quoted(name)}")
        con.execute(f"ALTER TABLE {quoted('all_' + name)} RENAME TO {quoted(name)}")


def _timed(p: Params) -> list[str]:
    return [name for name, source in p.sources.items() if source.event_time]


def _with_meta(found: "pa.Table", rows: "pa.Table") -> "pa.Table":
    import pyarrow as pa

    columns = {**{name: rows[name] for name in rows.column_names}, **{name: found[name] for name in found.column_names}}
    return pa.table(columns)


def _manifest(p: Params, out: Path, folder: Path) -> dict[str, Any]:
    """What the features hold, and what a person should look at: features without a value, or with only one."""
    raw = json.loads((folder / p.paths.raw / "manifest.json").read_text())
    as_of = datetime.fromisoformat(raw["as_of"])
    listed = literal(str(out / "*.parquet"))
    con = connect(p)
    mature = f"_event_time < TIMESTAMP {literal(str(as_of - p.label.deadline))}"
    total = con.execute(
        f"SELECT count(*), count(_label), count(*) FILTER ({mature}), count(_label) FILTER ({mature}), "
        f"min(_event_time), max(_event_time) FROM read_parquet({listed})"
    ).fetchone()
    assert total is not None  # an aggregate always gives a row
    kinds = {row[0]: row[1] for row in con.execute(f"DESCRIBE FROM read_parquet({listed})").fetchall()}
    names = [name for name in kinds if not name.startswith("_")]
    return {
        "as_of": raw["as_of"],
        "rows": total[0],
        "labelled": total[1],
        "unlabelled_share": round(1 - total[3] / total[2], 6) if total[2] else None,
        "from": str(total[4]),
        "to": str(total[5]),
        "columns": [{"name": name, "kind": "category" if kinds[name] == "VARCHAR" else "number"} for name in names],
        "warnings": _warnings(con, listed, names),
    }


def _warnings(con: "DuckDBPyConnection", listed: str, names: list[str]) -> list[str]:
    counts = ", ".join(f"count({quoted(name)}), min({quoted(name)}) = max({quoted(name)})" for name in names)
    row = con.execute(f"SELECT {counts} FROM read_parquet({listed})").fetchone() or ()
    found = []
    for i, name in enumerate(names):
        if row[2 * i] == 0:
            found.append(f"{name} has no value in any row")
        elif row[2 * i + 1]:
            found.append(f"{name} is the same in every row that has it")
    return found


@dataclass(frozen=True)
class Rows:
    """Feature rows in the order of time. `label` is NaN where a row has none; a class label keeps its own type."""

    table: "pa.Table"
    event_time: "NDArray[np.datetime64]"
    known_at: "NDArray[np.datetime64]"
    label: "NDArray[Any]"

    def __len__(self) -> int:
        return len(self.event_time)

    def take(self, mask: "NDArray[np.bool_]") -> "Rows":
        return Rows(self.table.filter(mask), self.event_time[mask], self.known_at[mask], self.label[mask])


def read(features: Path) -> Rows:
    """All the feature rows of a folder that this stage has written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.concat_tables([pq.read_table(path) for _, path in periods.files(features)])
    names = [name for name in table.column_names if not name.startswith("_")]
    event_time, known_at = (table[name].to_numpy() for name in META[:2])
    return Rows(table.select(names), event_time, known_at, _labels(table["_label"]))


def _labels(column: Any) -> "NDArray[Any]":
    """Numbers and booleans as float64 with NaN; text as objects with None."""
    import pyarrow as pa

    if pa.types.is_string(column.type):
        labels: NDArray[Any] = column.to_numpy()
        return labels
    return column.cast(pa.int8() if pa.types.is_boolean(column.type) else column.type).cast(pa.float64()).to_numpy()  # type: ignore[no-any-return]


if __name__ == "__main__":
    stage.main("features", features)
