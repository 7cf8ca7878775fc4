"""features: features.sql over the clean tables → data/features, a period at a time.

    python -m tasks.data.features

The SQL gets a spine (row_id, event_time, spine.columns) and the clean tables no further back than features.lookback;
it gives back each row_id once, and the features. `compute` is that one call, for training, scoring and serving.
Every build looks for leaks (tasks/data/probe.py): at some moments it hides what was not yet known and computes the rows
before them again. And it proves that the look-back is long enough: a period's first rows must not change with twice of
it.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import log
from tasks.data import checks, contract, periods, probe, sandbox, sqlfault
from tasks.data.checks import NUMBERS, is_text
from tasks.data.contract import columns_sql, literal, quoted
from tasks.data.periods import Period
from tasks.data.probe import Moment, Probed
from tasks.params import TIMES, Params, spell
from tasks.runtime import files, stage
from tasks.runtime.sql import parquet

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from numpy.typing import NDArray

CODE = periods.source_of(__file__, checks.__file__, contract.__file__, sandbox.__file__)
PROBE_CODE = periods.source_of(probe.__file__)  # apart: another way to look for leaks changes no feature
SQL = Path("tasks/features.sql")  # of the project in whose folder the stage runs, like every other path
META = ("_event_time", "_known_at", "_label")
KEY = "_key_"
EDGE = 20  # the first rows of a period, which are computed again with twice the look-back


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
    sql = (folder / SQL).read_text(encoding="utf-8")
    probed = build(p, folder / p.paths.clean, out, sql)
    unseen = static_tables(p, sql)
    manifest = _manifest(p, out, folder) | {"probes": {**asdict(probed), "unseen": unseen}}
    for warning in manifest["warnings"]:
        log.warning(warning)
    log.info("%s rows, %s features", f"{manifest['rows']:,}", len(manifest["columns"]))
    log.info(probe.describe(probed, unseen))
    files.publish_json(out / "manifest.json", manifest)


def build(p: Params, clean: Path, out: Path, sql: str) -> Probed:
    """The features of every period of the spine's table, from the cache where nothing that they read has changed.

    Returns how much was probed for leaks. Raises ValueError for SQL that fails or leaks.
    """
    check_sql(p, sql)
    tables, at_least = open_tables(p, clean), p.features.leak_probes
    todo = [period for period, _ in tables.timed[p.spine.table]]

    def job_of(place: int) -> Job:
        return Job(p, tables, todo[place], sql, look_further=at_least > 0 and place >= len(todo) - 2)

    plan = probe.plan_moments(
        cache(lambda place: job_of(place).read_times()),
        [period.name for period in todo],
        at_least=at_least,
        lead=p.features.lead,
    )
    results = []
    for place, alone in enumerate(probe.spread_evenly(at_least, len(todo))):
        job = job_of(place)
        target = out / f"{job.period.name}.parquet"
        if periods.cached(job.key, {target: "rows.parquet"}, job.make):
            log.info("%s computed", job.period.name)
        results.append(job.check(target, plan[place], alone=alone))
    return Probed(sum(result.moments for result in results), sum(result.rows for result in results))


def check_sql(p: Params, sql: str) -> None:
    """Raises ValueError for SQL that uses more than the spine, the clean tables and the lead."""
    columns = {name for table in p.contract.values() for name in table.columns}
    sandbox.check_sql(sql, p.sources, columns)


def static_tables(p: Params, sql: str) -> list[str]:
    """The tables without times that the SQL reads: when their rows became known nobody can say."""
    read = sandbox.tables_read(sql)
    return [name for name, source in p.sources.items() if source.event_time is None and name.lower() in read]


def open_tables(p: Params, clean: Path) -> Tables:
    timed = {name: list(periods.files(clean / name)) for name, source in p.sources.items() if source.event_time}
    static = {name: sorted((clean / name).glob("*.parquet")) for name in p.sources if name not in timed}
    return Tables(clean, timed, static)


@dataclass(frozen=True)
class Job:
    """The features of one period: what they are made of, and the making."""

    p: Params
    tables: Tables
    period: Period
    sql: str
    look_further: bool = False

    @cached_property
    def key(self) -> str:
        p, files = self.p, self._files(self.p.features.lookback)
        contents = [(name, [periods.content(path) for path in paths]) for name, paths in files.items()]
        settings = [each.model_dump() for each in (p.spine, p.label, p.features)]
        return periods.key(
            "features", self.period.name, contents, settings, p.contract[p.spine.table].key, self.sql, CODE
        )

    def make(self, into: Path) -> None:
        import pyarrow.parquet as pq

        con, meta = self._world
        found = compute(con, self.p, self.sql)
        pq.write_table(_beside(meta, found), into / "rows.parquet", compression="zstd")

    def read_times(self) -> probe.Times:
        """When the period's rows are asked, and when its tables learn something."""
        files = self._files(timedelta(0))
        (own,) = (path for period, path in self.tables.timed[self.p.spine.table] if period == self.period)
        return probe.read_times(own, [files[name] for name in self.tables.timed], self.p.features.lead)

    def check(self, target: Path, moments: Sequence[Moment], *, alone: int) -> Probed:
        """Look for leaks and for a short look-back in the features at `target`, unless that was done before."""

        def make(into: Path) -> None:
            con, meta = self._world
            world = probe.World(con, list(self.tables.timed), lambda: compute(con, self.p, self.sql))
            stored = _stored(target)
            probe.refuse_leaks(world, stored, meta["_event_time"], moments, alone=alone)
            if self.look_further:
                self._refuse_short_lookback(stored.slice(0, EDGE), meta["_event_time"].to_pylist()[:EDGE])
            files.publish_json(into / "probed.json", asdict(probe.count_rows(moments)))

        if not moments and not self.look_further:
            return Probed(0, 0)
        entry = periods.key(
            "probed", self.key, [asdict(each) for each in moments], alone, self.look_further, PROBE_CODE
        )
        with tempfile.TemporaryDirectory() as scratch:
            result = Path(scratch, "probed.json")
            periods.cached(entry, {result: "probed.json"}, make)
            return Probed(**json.loads(result.read_text()))

    @cached_property
    def _world(self) -> "tuple[DuckDBPyConnection, pa.Table]":
        """The period's tables and spine in DuckDB; and its rows' keys, times and labels."""
        con = self._connect(self.p.features.lookback, self.period.end)
        return con, _take_spine(con, self.p, self.period)

    def _files(self, lookback: timedelta) -> dict[str, list[Path]]:
        """The files that the period's features may depend on."""
        since, until = self.period.start - lookback, self.period.end
        near = {
            name: [path for each, path in files if each.end > since and each.start < until]
            for name, files in self.tables.timed.items()
        }
        return {**self.tables.static, **near}

    def _connect(self, lookback: timedelta, until: datetime) -> "DuckDBPyConnection":
        """The clean tables in memory, cut to what the period's rows before `until` may look at."""
        con = connect(self.p)
        cut = f"event_time >= {_sql(self.period.start - lookback)} AND event_time < {_sql(until)}"
        for name, paths in self._files(lookback).items():
            if not paths:
                log.warning("%s has no rows for %s", name, self.period.name)
                con.execute(f"CREATE TEMP TABLE {quoted(name)} ({columns_sql(self.p.contract[name])})")
                continue
            where = cut if name in self.tables.timed else "TRUE"
            con.execute(f"CREATE TEMP TABLE {quoted(name)} AS FROM {parquet(paths)} WHERE {where}")
        return con

    def _refuse_short_lookback(self, first: "pa.Table", event_times: Sequence[datetime]) -> None:
        """The period's first rows look back furthest: with twice the look-back they must come out the same."""
        lookback = 2 * self.p.features.lookback
        wide = self._connect(lookback, event_times[-1] + timedelta(microseconds=1))
        _take_spine(wide, self.p, self.period)
        again = compute(wide, self.p, self.sql).slice(0, len(first))
        for name, found in probe.find_differences(first, again).items():
            raise ValueError(
                f"features.sql looks back further than features.lookback ({spell(self.p.features.lookback)}): `{name}` "
                f"of the row at {event_times[found.place]} is {found.one}, but {found.other} with {spell(lookback)} of "
                "history. Bound its window, or lengthen features.lookback."
            )


def connect(p: Params) -> "DuckDBPyConnection":
    """A DuckDB connection in UTC, within stage.threads and stage.memory, that knows the lead."""
    con = stage.connect(p)
    con.execute(f"SET VARIABLE lead = INTERVAL {int(p.features.lead.total_seconds())} SECONDS")
    return con


def _sql(moment: datetime) -> str:
    return f"TIMESTAMP {literal(str(moment))}"


def _take_spine(con: "DuckDBPyConnection", p: Params, period: Period) -> "pa.Table":
    """Make the table `spine` of the period's rows, numbered in a fixed order; returns their keys, times and labels."""
    import duckdb

    table = p.contract[p.spine.table]
    key = table.key
    # Without a key outcomes come last: the number of a row must not tell more of them than it has to.
    early_first = sorted(table.columns, key=lambda name: table.columns[name].outcome)
    order = ", ".join(quoted(name) for name in ["event_time", *(key or early_first)])
    keys = "".join(f", {quoted(name)} AS {quoted(KEY + name)}" for name in key)
    due = f"known_at <= event_time + INTERVAL {int(p.label.deadline.total_seconds())} SECONDS"
    before = (
        f"CREATE TEMP TABLE _rows AS SELECT row_number() OVER (ORDER BY {order}) AS row_id, *{keys}, "
        f"event_time AS _event_time, known_at AS _known_at, CASE WHEN {due} THEN ("
    )
    after = f"\n) END AS _label FROM {quoted(p.spine.table)} WHERE event_time >= {_sql(period.start)}"
    try:
        con.execute(f"{before}{p.label.expression}{after}")
    except duckdb.Error as error:
        sqlfault.raise_unless_of_a_row(error)
        setting, names = f"label.expression `{p.label.expression}`", [*table.columns, *TIMES]
        told = sqlfault.explain(error, p.label.expression, setting=setting, before=before, columns=names)
        raise ValueError(told) from None
    kind = str(con.execute("DESCRIBE SELECT _label FROM _rows").fetchall()[0][1])
    label = checks.label_sql(kind, p.label.task, p.label.expression)
    meta = ", ".join(quoted(name) for name in [*(KEY + name for name in key), *META[:2]])
    taken = con.sql(f"SELECT {meta}, {label} AS _label FROM _rows ORDER BY row_id").to_arrow_table()
    checks.check_labels(taken["_label"], taken["_event_time"], p.label.task, p.label.expression)
    columns = ", ".join(["row_id", "event_time", *(quoted(name) for name in p.spine.columns)])
    con.execute(f"CREATE TEMP TABLE spine AS SELECT {columns} FROM _rows ORDER BY row_id")
    con.execute("DROP TABLE _rows")  # it holds the labels: features.sql must not find it
    return taken


def compute(con: "DuckDBPyConnection", p: Params, sql: str) -> "pa.Table":
    """Run the SQL over the connection's spine and tables → one row of features per row of the spine, in its order.

    The connection is closed to everything else from now on. Raises ValueError when the SQL uses more than that, fails
    (with its line), loses or repeats rows, or gives back an outcome.
    """
    import duckdb

    check_sql(p, sql)
    sandbox.close(con)
    before = "CREATE OR REPLACE TEMP TABLE _found AS "
    try:
        con.execute(before + sql)
    except duckdb.Error as error:
        sqlfault.raise_unless_of_a_row(error)
        raise ValueError(
            sqlfault.explain(error, sql, setting="features.sql", before=before, columns=_readable_columns(p))
        ) from None
    kinds = kinds_of(con, p, "_found")
    if any(re.search(r"_\d+$", name) for name in kinds):  # DuckDB calls the second of two columns `x` x_1
        checks.check_same_names([row[0] for row in con.execute(f"DESCRIBE {sql}").fetchall()])
    told = ", ".join(_plain(name, kind) for name, kind in kinds.items())
    found = con.sql(f"SELECT row_id, {told} FROM _found ORDER BY row_id").to_arrow_table()
    wanted = con.sql("SELECT row_id FROM spine ORDER BY row_id").to_arrow_table()
    con.execute("DROP TABLE _found")
    if not found["row_id"].combine_chunks().equals(wanted["row_id"].combine_chunks()):
        refuse_miscounted(found["row_id"].to_pylist(), wanted["row_id"].to_pylist())
    return found.drop_columns(["row_id"])


def rehearse(con: "DuckDBPyConnection", p: Params, sql: str) -> None:
    """Raises ValueError for a label or SQL that cannot run over these tables, which may be empty."""
    _take_spine(con, p, Period("all", datetime(1970, 1, 1), datetime(2200, 1, 1)))
    compute(con, p, sql)


def _readable_columns(p: Params) -> list[str]:
    """Of all tables: which of them are in reach at one place of the SQL only DuckDB knows."""
    return sorted({"row_id", *TIMES, *(name for table in p.contract.values() for name in table.columns)})


def kinds_of(con: "DuckDBPyConnection", p: Params, given: str) -> dict[str, str]:
    """The features in what features.sql gave, a table or a view, and DuckDB's type of each."""
    found = {row[0]: str(row[1]) for row in con.execute(f"DESCRIBE FROM {given}").fetchall()}
    _check_names(p, list(found))
    for name, kind in found.items():
        if not is_text(kind) and kind.partition("(")[0] not in NUMBERS:
            raise ValueError(f"features.sql: `{name}` is a {kind}, but a feature is a number, true or false, or a text")
    return {name: kind for name, kind in found.items() if name != "row_id"}


def refuse_miscounted(given: list[Any], wanted: list[Any]) -> None:
    """Raises ValueError when these row_ids are not those of the spine."""
    if given == wanted:
        return
    lost, repeated = len(set(wanted) - set(given)), len(given) - len(set(given))
    raise ValueError(
        f"features.sql must give each row_id of the spine once, but of {len(wanted)} rows it loses {lost} and repeats "
        f"{repeated}: a LEFT JOIN keeps rows, and the table it joins needs one row per key"
    )


def _check_names(p: Params, names: list[str]) -> None:
    if "row_id" not in names:
        raise ValueError(f"features.sql must give back row_id, but gives {names}")
    if names == ["row_id"]:
        raise ValueError("features.sql gives back no feature beside row_id")
    spine = p.contract[p.spine.table].columns
    later = [name for name in names if (name in spine and spine[name].outcome) or name in ("known_at", "label")]
    if later:
        raise ValueError(f"features.sql gives back {later}, which nobody knows when a prediction is asked")
    if hidden := [name for name in names if name.startswith("_")]:
        raise ValueError(f"a feature's name must not start with an underscore, but {hidden} do")
    checks.check_feature_names(names)


def _plain(name: str, kind: str) -> str:
    """Text stays text; every other column becomes float32, as XGBoost reads it. What is not finite is missing."""
    if is_text(kind):
        return cast(name, kind)
    value = f"TRY_CAST({quoted(name)} AS FLOAT)"
    return f"CASE WHEN isfinite({value}) THEN {value} END AS {quoted(name)}"


def cast(name: str, kind: str) -> str:
    """Text as VARCHAR, a number as FLOAT; or as DOUBLE, where that rounding is left to whoever asks."""
    column = quoted(name)
    if is_text(kind):
        return f"CAST({column} AS VARCHAR) AS {column}"
    return column if kind in ("FLOAT", "DOUBLE") else f"TRY_CAST({column} AS FLOAT) AS {column}"


def _stored(path: Path) -> "pa.Table":
    """The features of a period's file, without the columns that stand beside them."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return table.select([name for name in table.column_names if not name.startswith("_")])


def _beside(meta: "pa.Table", found: "pa.Table") -> "pa.Table":
    import pyarrow as pa

    return pa.table({name: table[name] for table in (meta, found) for name in table.column_names})


def _manifest(p: Params, out: Path, folder: Path) -> dict[str, Any]:
    """What the features hold, and what a person should look at: features without a value, or with only one."""
    raw = json.loads((folder / p.paths.raw / "manifest.json").read_text())
    as_of = datetime.fromisoformat(raw["as_of"])
    listed = parquet(path for _, path in periods.files(out))
    con = connect(p)
    mature = f"_event_time < TIMESTAMP {literal(str(as_of - p.label.deadline))}"
    total = con.execute(
        f"SELECT count(*), count(_label), count(*) FILTER ({mature}), count(_label) FILTER ({mature}), "
        f"min(_event_time), max(_event_time) FROM {listed}"
    ).fetchall()[0]
    kinds = {row[0]: row[1] for row in con.execute(f"DESCRIBE FROM {listed}").fetchall()}
    names = [name for name in kinds if not name.startswith("_")]
    return {
        "as_of": raw["as_of"],
        "rows": total[0],
        "labelled": total[1],
        "unlabelled_share": round(1 - total[3] / total[2], 6) if total[2] else None,
        "from": str(total[4]),
        "to": str(total[5]),
        "columns": [{"name": name, "kind": "category" if kinds[name] == "VARCHAR" else "number"} for name in names],
        "warnings": [*_label_warnings(p, con, listed), *_warnings(con, listed, names)],
    }


def _label_warnings(p: Params, con: "DuckDBPyConnection", listed: str) -> list[str]:
    """Raises ValueError for a label of too many classes; one that is always the same may yet change."""
    row = con.execute(f"SELECT count(DISTINCT _label), any_value(_label) FROM {listed}").fetchall()[0]
    if p.label.task == "multiclass":
        checks.check_class_count(row[0])
    return [f"the label is {row[1]} in every row that has one: nothing can be learnt of it"] if row[0] == 1 else []


def _warnings(con: "DuckDBPyConnection", listed: str, names: list[str]) -> list[str]:
    counts = ", ".join(f"count({quoted(name)}), min({quoted(name)}) = max({quoted(name)})" for name in names)
    row = con.execute(f"SELECT {counts} FROM {listed}").fetchall()[0]
    found = []
    for i, name in enumerate(names):
        if row[2 * i] == 0:
            found.append(f"{name} has no value in any row")
        elif row[2 * i + 1]:
            found.append(f"{name} is the same in every row that has it")
    return found


@dataclass(frozen=True)
class Rows:
    """Feature rows in the order of time. `label` is NaN where a row has none; a class label keeps its own type.

    `keys` are the spine's key columns, for those who must name a row.
    """

    table: "pa.Table"
    event_time: "NDArray[np.datetime64]"
    known_at: "NDArray[np.datetime64]"
    label: "NDArray[Any]"
    keys: "pa.Table | None" = None

    def __len__(self) -> int:
        return len(self.event_time)

    def take(self, mask: "NDArray[np.bool_]") -> "Rows":
        keys = None if self.keys is None else self.keys.filter(mask)
        return Rows(self.table.filter(mask), self.event_time[mask], self.known_at[mask], self.label[mask], keys)


def read(features: Path) -> Rows:
    """All the feature rows of a folder that this stage has written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = [pq.read_table(path) for _, path in periods.files(features)]
    if not parts:
        raise ValueError(f"{features} holds no feature rows: run the stages before this one (dvc repro)")
    table = pa.concat_tables(parts)
    names = [name for name in table.column_names if not name.startswith("_")]
    event_time, known_at = (table[name].to_numpy() for name in META[:2])
    keys = table.select([name for name in table.column_names if name.startswith(KEY)])
    keys = keys.rename_columns([name.removeprefix(KEY) for name in keys.column_names])
    return Rows(table.select(names), event_time, known_at, _labels(table["_label"]), keys)


def _labels(column: Any) -> "NDArray[Any]":
    """Numbers and booleans as float64 with NaN; text as objects with None."""
    import pyarrow as pa

    if pa.types.is_string(column.type):
        labels: NDArray[Any] = column.to_numpy()
        return labels
    return column.cast(pa.int8() if pa.types.is_boolean(column.type) else column.type).cast(pa.float64()).to_numpy()  # type: ignore[no-any-return]


if __name__ == "__main__":
    stage.main("features", features)
