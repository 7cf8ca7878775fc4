"""features: features.sql over the clean tables → data/features, a period at a time.

    python -m tasks.data.features

The SQL gets a spine (row_id, event_time, spine.columns) and the clean tables no further back than features.lookback;
it gives back each row_id once, and the features. `compute` is that one call, for training, scoring and serving.
Every build looks for leaks (tasks/data/leaks.py): at some moments it hides what was not yet known and computes the rows
before them again. And it proves that the look-back is long enough: a period's first rows must not change with twice of
it.
"""

import functools
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from duckdb import DuckDBPyConnection

from tasks import log
from tasks.data import cache, contract, featurerows, featuresql, leaks, periods, sandbox
from tasks.data.contract import columns_sql
from tasks.data.featurerows import _beside, _stored
from tasks.data.featuresql import SQL, _sql, _take_spine, check_sql, compute_features, connect, find_static_tables
from tasks.data.leaks import Moment, Probed
from tasks.data.manifest import FeatureColumn, FeaturesManifest, Probes, RawManifest
from tasks.data.periods import Period
from tasks.params import Params, spell
from tasks.runtime import files, stage
from tasks.runtime.sql import literal, parquet, quote

CODE = cache.hash_code(__file__, featuresql.__file__, featurerows.__file__, contract.__file__, sandbox.__file__)
PROBE_CODE = cache.hash_code(leaks.__file__)  # apart: another way to look for leaks changes no feature
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
    unseen = find_static_tables(p, sql)
    manifest = _describe(p, out, folder).model_copy(update={"probes": Probes(**asdict(probed), unseen=unseen)})
    for warning in manifest.warnings:
        log.warning(warning)
    log.info("%s rows, %s features", f"{manifest.rows:,}", len(manifest.columns))
    log.info(leaks.describe(probed, unseen))
    manifest.write(out)


def build(p: Params, clean: Path, out: Path, sql: str) -> Probed:
    """The features of every period of the spine's table, from the cache where nothing that they read has changed.

    Returns how much was probed for leaks. Raises ValueError for SQL that fails or leaks.
    """
    check_sql(p, sql)
    tables, at_least = open_tables(p, clean), p.features.leak_probes
    todo = [period for period, _ in tables.timed[p.spine.table]]

    def job_of(place: int) -> Job:
        return Job(p, tables, todo[place], sql, look_further=at_least > 0 and place >= len(todo) - 2)

    plan = leaks.plan_moments(
        functools.cache(lambda place: job_of(place).read_times()),
        [period.name for period in todo],
        at_least=at_least,
        lead=p.features.lead,
    )
    results = []
    for place, alone in enumerate(leaks.spread_evenly(at_least, len(todo))):
        job = job_of(place)
        target = out / f"{job.period.name}.parquet"
        if cache.provide(job.key, {target: "rows.parquet"}, job.make):
            log.info("%s computed", job.period.name)
        results.append(job.check(target, plan[place], alone=alone))
    return Probed(sum(result.moments for result in results), sum(result.rows for result in results))


def open_tables(p: Params, clean: Path) -> Tables:
    timed = {name: list(periods.list_files(clean / name)) for name, source in p.sources.items() if source.event_time}
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
        contents = [(name, [cache.hash_file(path) for path in paths]) for name, paths in files.items()]
        settings = [each.model_dump() for each in (p.spine, p.label, p.features)]
        return cache.hash_inputs(
            "features", self.period.name, contents, settings, p.contract[p.spine.table].key, self.sql, CODE
        )

    def make(self, into: Path) -> None:

        con, meta = self._world
        found = compute_features(con, self.p, self.sql)
        pq.write_table(_beside(meta, found), into / "rows.parquet", compression="zstd")

    def read_times(self) -> leaks.Times:
        """When the period's rows are asked, and when its tables learn something."""
        files = self._files(timedelta(0))
        (own,) = (path for period, path in self.tables.timed[self.p.spine.table] if period == self.period)
        return leaks.read_times(own, [files[name] for name in self.tables.timed], self.p.features.lead)

    def check(self, target: Path, moments: Sequence[Moment], *, alone: int) -> Probed:
        """Look for leaks and for a short look-back in the features at `target`, unless that was done before."""

        def make(into: Path) -> None:
            con, meta = self._world
            world = leaks.World(con, list(self.tables.timed), lambda: compute_features(con, self.p, self.sql))
            stored = _stored(target)
            leaks.refuse_leaks(world, stored, meta["_event_time"], moments, alone=alone)
            if self.look_further:
                self._refuse_short_lookback(stored.slice(0, EDGE), meta["_event_time"].to_pylist()[:EDGE])
            files.publish_json(into / "probed.json", asdict(leaks.count_rows(moments)))

        if not moments and not self.look_further:
            return Probed(0, 0)
        entry = cache.hash_inputs(
            "probed", self.key, [asdict(each) for each in moments], alone, self.look_further, PROBE_CODE
        )
        with tempfile.TemporaryDirectory() as scratch:
            result = Path(scratch, "probed.json")
            cache.provide(entry, {result: "probed.json"}, make)
            return Probed(**json.loads(result.read_text()))

    @cached_property
    def _world(self) -> tuple[DuckDBPyConnection, pa.Table]:
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

    def _connect(self, lookback: timedelta, until: datetime) -> DuckDBPyConnection:
        """The clean tables in memory, cut to what the period's rows before `until` may look at."""
        con = connect(self.p)
        cut = f"event_time >= {_sql(self.period.start - lookback)} AND event_time < {_sql(until)}"
        for name, paths in self._files(lookback).items():
            if not paths:
                log.warning("%s has no rows for %s", name, self.period.name)
                con.execute(f"CREATE TEMP TABLE {quote(name)} ({columns_sql(self.p.contract[name])})")
                continue
            where = cut if name in self.tables.timed else "TRUE"
            con.execute(f"CREATE TEMP TABLE {quote(name)} AS FROM {parquet(paths)} WHERE {where}")
        return con

    def _refuse_short_lookback(self, first: pa.Table, event_times: Sequence[datetime]) -> None:
        """The period's first rows look back furthest: with twice the look-back they must come out the same."""
        lookback = 2 * self.p.features.lookback
        wide = self._connect(lookback, event_times[-1] + timedelta(microseconds=1))
        _take_spine(wide, self.p, self.period)
        again = compute_features(wide, self.p, self.sql).slice(0, len(first))
        for name, found in leaks.find_differences(first, again).items():
            raise ValueError(
                f"features.sql looks back further than features.lookback ({spell(self.p.features.lookback)}): `{name}` "
                f"of the row at {event_times[found.place]} is {found.one}, but {found.other} with {spell(lookback)} of "
                "history. Bound its window, or lengthen features.lookback."
            )


def _describe(p: Params, out: Path, folder: Path) -> FeaturesManifest:
    """What the features hold, and what a person should look at: features without a value, or with only one."""
    as_of = RawManifest.read(folder / p.paths.raw).as_of
    listed = parquet(path for _, path in periods.list_files(out))
    con = connect(p)
    mature = f"_event_time < TIMESTAMP {literal(str(as_of - p.label.deadline))}"
    total = con.execute(
        f"SELECT count(*), count(_label), count(*) FILTER ({mature}), count(_label) FILTER ({mature}), "
        f"min(_event_time), max(_event_time) FROM {listed}"
    ).fetchall()[0]
    kinds = {row[0]: row[1] for row in con.execute(f"DESCRIBE FROM {listed}").fetchall()}
    names = [name for name in kinds if not name.startswith("_")]
    return FeaturesManifest(
        as_of=as_of,
        rows=total[0],
        labelled=total[1],
        unlabelled_share=round(1 - total[3] / total[2], 6) if total[2] else None,
        begin=str(total[4]),
        end=str(total[5]),
        columns=[FeatureColumn(name=name, kind="category" if kinds[name] == "VARCHAR" else "number") for name in names],
        warnings=[*_label_warnings(p, con, listed), *_warnings(con, listed, names)],
    )


def _label_warnings(p: Params, con: DuckDBPyConnection, listed: str) -> list[str]:
    """Raises ValueError for a label of too many classes; one that is always the same may yet change."""
    row = con.execute(f"SELECT count(DISTINCT _label), any_value(_label) FROM {listed}").fetchall()[0]
    if p.label.task == "multiclass":
        featuresql.check_class_count(row[0])
    return [f"the label is {row[1]} in every row that has one: nothing can be learnt of it"] if row[0] == 1 else []


def _warnings(con: DuckDBPyConnection, listed: str, names: list[str]) -> list[str]:
    counts = ", ".join(f"count({quote(name)}), min({quote(name)}) = max({quote(name)})" for name in names)
    row = con.execute(f"SELECT {counts} FROM {listed}").fetchall()[0]
    found = []
    for i, name in enumerate(names):
        if row[2 * i] == 0:
            found.append(f"{name} has no value in any row")
        elif row[2 * i + 1]:
            found.append(f"{name} is the same in every row that has it")
    return found


if __name__ == "__main__":
    stage.main("features", features)
