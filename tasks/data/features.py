"""features: features.sql over the clean tables → data/features, a period at a time.

    python -m tasks.data.features

The SQL gets a spine (row_id, event_time, spine.columns) and the clean tables no further back than features.lookback.
It gives back each row_id once, and the features (tasks/data/featuresql.py).

Every build looks for leaks (tasks/data/leaks.py): at some moments it hides what was not yet known and computes the rows
before them again. It also proves that the look-back is long enough: a period's first rows must not change with twice
of it.
"""

import functools
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import log
from tasks.data import contract, featurerows, featuresql, leaks, manifest, periods, sqlcheck
from tasks.params import Params, spell
from tasks.runtime import engine, stage
from tasks.runtime.sql import parquet, quote, time_sql

CODE = periods.hash_code(__file__, featuresql.__file__, featurerows.__file__, contract.__file__, sqlcheck.__file__)
LEAKS_CODE = periods.hash_code(leaks.__file__)  # apart: another way to look for leaks changes no feature
MOST_CLASSES = 1000
EDGE_ROWS = 20  # at the beginning of a period, which are computed again with twice the look-back


def features(p: Params, folder: Path = Path()) -> None:
    """Write <features>/<period>.parquet and <features>/manifest.json. Raises ValueError for SQL that fails or leaks."""
    out = folder / p.paths.features
    shutil.rmtree(out, ignore_errors=True)
    probes = build(p, folder / p.paths.clean, out, (folder / featuresql.SQL).read_text(encoding="utf-8"))
    described = _describe(p, out, manifest.RawManifest.read(folder / p.paths.raw).as_of, probes)
    for warning in described.warnings:
        log.warning(warning)
    log.info("%s rows, %s features", f"{described.rows:,}", len(described.columns))
    log.info(leaks.describe(probes))
    described.write(out)


def build(p: Params, clean: Path, out: Path, sql: str) -> manifest.Probes:
    """The features of every period of the spine's table, from the cache where nothing that they read has changed.

    Returns how much was probed for leaks. Raises ValueError for SQL that fails or leaks.
    """
    featuresql.check_sql(p, sql)
    tables, at_least = open_tables(p, clean), p.features.leak_probes
    spans = [period for period, _ in tables.timed[p.spine.table]]
    names, task = [period.name for period in spans], Build(engine.divide(p), tables, sql, out)
    read_times = functools.cache(lambda place: task.open_job(spans[place]).read_times())
    plan = leaks.plan_moments(read_times, names, at_least=at_least, lead=p.features.lead)
    works = [
        Work(spans[place], tuple(plan[place]), alone, look_further=at_least > 0 and place >= len(spans) - 2)
        for place, alone in enumerate(leaks.spread_evenly(at_least, len(spans)))
    ]
    rows = engine.map_ordered(
        build_period,
        task,
        works,
        p,
        names=[f"the period {name}" for name in names],
        costs=[float(work.count_passes()) for work in works],
        threads=1,
    )
    read = sqlcheck.find_tables(sql)
    return manifest.Probes(
        moments=sum(map(len, plan)), rows=sum(rows), unseen=[name for name in tables.static if name.lower() in read]
    )


@dataclass(frozen=True)
class Work:
    """A period to build, and where to look for leaks in it: at some moments, and at so many rows alone."""

    period: periods.Period
    moments: Sequence[leaks.Moment]
    alone: int
    look_further: bool

    def count_passes(self) -> int:
        """How often features.sql is computed, whole or in part."""
        return 1 + len(self.moments) + self.alone + self.look_further


def build_period(task: "Build", work: Work) -> int:
    """The features of a period, and the look for leaks in them. Returns how many rows were computed again."""
    job, target = task.open_job(work.period, look_further=work.look_further), task.out / f"{work.period.name}.parquet"
    if periods.provide(job.key, {target: "rows.parquet"}, job.make):
        log.info("%s computed", job.period.name)
    return job.check(target, work.moments, alone=work.alone)


@dataclass(frozen=True)
class Tables:
    """The files of the clean tables: static ones whole, the others by period."""

    timed: dict[str, list[tuple[periods.Period, Path]]]
    static: dict[str, list[Path]]

    def files_between(self, since: datetime, until: datetime = datetime.max) -> dict[str, list[Path]]:
        """By table, the files that may hold rows of since <= event_time < until."""
        near = {
            name: [path for period, path in files if period.end > since and period.start < until]
            for name, files in self.timed.items()
        }
        return {**self.static, **near}


def open_tables(p: Params, clean: Path) -> Tables:
    timed = {name: list(periods.list_files(clean / name)) for name, source in p.sources.items() if source.event_time}
    return Tables(timed, {name: sorted((clean / name).glob("*.parquet")) for name in p.sources if name not in timed})


@dataclass(frozen=True)
class Build:
    """What all periods are made of, and where they go."""

    p: Params
    tables: Tables
    sql: str
    out: Path

    def open_job(self, period: periods.Period, *, look_further: bool = False) -> "Job":
        """A new one each time, since it holds the period's tables."""
        return Job(self.p, self.tables, period, self.sql, look_further)


@dataclass(frozen=True)
class Job:
    """The features of one period: what they are made of, and the making."""

    p: Params
    tables: Tables
    period: periods.Period
    sql: str
    look_further: bool = False

    @cached_property
    def key(self) -> str:
        files = self.tables.files_between(self.period.start - self.p.features.lookback, self.period.end)
        contents = [(name, [periods.hash_file(path) for path in paths]) for name, paths in files.items()]
        settings = [section.model_dump() for section in (self.p.spine, self.p.label, self.p.features)]
        return periods.hash_inputs(
            "features", self.period.name, contents, settings, self.p.contract[self.p.spine.table].key, self.sql, CODE
        )

    def make(self, into: Path) -> None:
        con, meta = self._world
        computed = featuresql.compute_features(con, self.p, self.sql)
        rows = pa.table({name: table[name] for table in (meta, computed) for name in table.column_names})
        pq.write_table(rows, into / "rows.parquet", compression="zstd")

    def read_times(self) -> leaks.Times:
        """When the period's rows are asked, and when its tables learn something."""
        files = self.tables.files_between(self.period.start, self.period.end)
        return leaks.read_times(
            dict(self.tables.timed[self.p.spine.table])[self.period],
            [files[name] for name in self.tables.timed],
            self.p.features.lead,
        )

    def check(self, target: Path, moments: Sequence[leaks.Moment], *, alone: int) -> int:
        """Look for leaks and for a short look-back in the features at `target`, unless that was done before.

        Returns how many rows were computed again.
        """

        def probe() -> Any:
            con, meta = self._world
            world = leaks.World(
                con, list(self.tables.timed), lambda: featuresql.compute_features(con, self.p, self.sql)
            )
            rows = pq.read_table(target)
            stored = rows.select([name for name in rows.column_names if not name.startswith("_")])
            leaks.refuse_leaks(world, stored, meta["_event_time"], moments, alone=alone)
            if self.look_further:
                self._refuse_short_lookback(stored.slice(0, EDGE_ROWS), meta["_event_time"].to_pylist()[:EDGE_ROWS])
            return leaks.count_rows(moments)

        if not moments and not self.look_further:
            return 0
        entry = periods.hash_inputs(
            "probed", self.key, [asdict(moment) for moment in moments], alone, self.look_further, LEAKS_CODE
        )
        return int(periods.remember(entry, "probed.json", probe))

    @cached_property
    def _world(self) -> tuple[duckdb.DuckDBPyConnection, pa.Table]:
        """The period's tables and spine in DuckDB; and its rows' keys, times and labels."""
        con = self._connect(self.p.features.lookback, self.period.end)
        return con, featuresql.create_spine(con, self.p, self.period)

    def _connect(self, lookback: timedelta, until: datetime) -> duckdb.DuckDBPyConnection:
        """The clean tables in memory, cut to what the period's rows before `until` may look at."""
        con, since = featuresql.connect(self.p), self.period.start - lookback
        cut = f"event_time >= {time_sql(since)} AND event_time < {time_sql(until)}"
        for name, paths in self.tables.files_between(since, self.period.end).items():
            if not paths:
                log.warning("%s has no rows for %s", name, self.period.name)
            featuresql.create_table(con, self.p, name, paths, where=cut if name in self.tables.timed else "TRUE")
        return con

    def _refuse_short_lookback(self, first: pa.Table, event_times: Sequence[datetime]) -> None:
        """The period's first rows look back furthest: with twice the look-back they must come out the same."""
        lookback = 2 * self.p.features.lookback
        con = self._connect(lookback, event_times[-1] + timedelta(microseconds=1))
        featuresql.create_spine(con, self.p, self.period)
        again = featuresql.compute_features(con, self.p, self.sql).slice(0, len(first))
        for name, difference in leaks.find_differences(first, again).items():
            raise ValueError(
                f"features.sql looks back further than features.lookback ({spell(self.p.features.lookback)}): `{name}` "
                f"of the row at {event_times[difference.place]} is {difference.one}, but {difference.other} with "
                f"{spell(lookback)} of history. Bound its window, or lengthen features.lookback."
            )


def _describe(
    p: Params, out: Path, as_of: datetime, probes: manifest.Probes | None = None
) -> manifest.FeaturesManifest:
    """What the features hold. Its warnings name features without a value, or with only one."""
    rows = parquet(path for _, path in periods.list_files(out))
    con = featuresql.connect(p)
    mature = f"_event_time < {time_sql(as_of - p.label.deadline)}"
    count, labelled, mature_count, mature_labelled, begin, end, classes, label = con.execute(
        f"SELECT count(*), count(_label), count(*) FILTER ({mature}), count(_label) FILTER ({mature}), "
        f"min(_event_time), max(_event_time), count(DISTINCT _label), any_value(_label) FROM {rows}"
    ).fetchall()[0]
    if p.label.task == "multiclass" and classes > MOST_CLASSES:
        raise ValueError(
            f"label.task multiclass takes up to {MOST_CLASSES:,} classes, but label.expression gives {classes:,}. "
            "Merge rare classes, or set label.task to regression for a number."
        )
    warnings = [f"the label is {label} in every row that has one: nothing can be learnt of it"] if classes == 1 else []
    kinds = {name: kind for name, kind, *_ in con.execute(f"DESCRIBE FROM {rows}").fetchall() if name[0] != "_"}
    tests = ", ".join(f"count({name}) = 0, min({name}) = max({name})" for name in map(quote, kinds))
    summary = con.execute(f"SELECT {tests} FROM {rows}").fetchall()[0]
    for name, is_empty, is_constant in zip(kinds, summary[::2], summary[1::2], strict=True):
        if is_empty or is_constant:
            warnings.append(
                f"{name} {'has no value in any row' if is_empty else 'is the same in every row that has it'}"
            )
    return manifest.FeaturesManifest(
        as_of=as_of,
        rows=count,
        labelled=labelled,
        unlabelled_share=round(1 - mature_labelled / mature_count, 6) if mature_count else None,
        begin=str(begin),
        end=str(end),
        columns=[
            manifest.FeatureColumn(name=name, kind="category" if kinds[name] == "VARCHAR" else "number")
            for name in kinds
        ],
        warnings=warnings,
        probes=probes,
    )


if __name__ == "__main__":
    stage.main("features", features)
