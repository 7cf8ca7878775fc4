"""clean: the contract applied to data/raw → data/clean, typed; what breaks a rule → data/quarantine, with its reasons.

    python -m tasks.data.clean

No row is lost: rows read = clean + quarantined + superseded + empty + not known yet. The quality report says how many
rows of each table are bad, and why: reports/quality.json for programs, quality.html for people. A table with more bad
rows than clean.max_bad_share fails the stage, after its report is written.

Of two good rows with one key the newest delivery wins: the later file, then the later row; or, where the contract names
a `version`, the higher version. The other row goes to quarantine with the winner's place. It is bad when both stand in
one file; else it is superseded, which is no fault. So is a row whose key a later row says is gone (`deleted`). Work
goes by period: a key that comes back in another period is reported, and its row is kept.
"""

import shutil
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from tasks.data import cleanrows, contract, expressions, manifest, periods, quality, sqlcheck, timeline, units
from tasks.params import FAULT, PLACE, TIMES, Params, Source, Table
from tasks.runtime import engine, files, sql, stage
from tasks.runtime.sql import literal, parquet, quote

CODE = periods.hash_inputs(
    cleanrows.CODE,
    periods.hash_code(__file__, contract.__file__, expressions.__file__, sql.__file__, timeline.__file__),
)
CONNECTING = threading.Lock()


def clean(p: Params, folder: Path = Path()) -> None:
    """Write <clean>, <quarantine> and the quality report. Raises ValueError when too many rows of a table are bad."""
    for output in (p.paths.clean, p.paths.quarantine):
        shutil.rmtree(folder / output, ignore_errors=True)
        (folder / output).mkdir(parents=True)
    raw = manifest.RawManifest.read(folder / p.paths.raw).tables
    order = contract.sort_tables(p.contract)
    counts = {name: _clean_table(name, p, folder, raw[name], order[:place]) for place, name in enumerate(order)}
    quality.write_report({name: counts[name] for name in p.contract}, p, folder / p.paths.reports)
    quality.refuse_bad_tables(counts, p)


@dataclass(frozen=True)
class Job:
    """One table to clean: its settings, the names of its source's files, and the tables that are clean already.

    Attributes:
        references: the hashes of the tables that this one refers to: when they change, so may its bad rows.
    """

    p: Params
    folder: Path
    name: str
    files: tuple[str, ...]
    before: tuple[str, ...]
    references: tuple[str, ...]

    @property
    def table(self) -> Table:
        return contract.hide_texts(self.p.contract[self.name])

    @property
    def source(self) -> Source:
        return self.p.sources[self.name]

    @property
    def label(self) -> str | None:
        """The label's expression, where the table is the spine's."""
        return self.p.label.expression if self.name == self.p.spine.table else None

    @cached_property
    def con(self) -> duckdb.DuckDBPyConnection:
        """A connection that has the clean tables."""
        con = stage.connect(self.p)
        for name in self.before:
            self.create_view(con, name)
        return con

    def open_cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of a thread's own to the same tables."""
        with CONNECTING:
            return self.con.cursor()

    def create_view(self, con: duckdb.DuckDBPyConnection, name: str) -> None:
        if paths := sorted((self.folder / self.p.paths.clean / name).glob("*.parquet")):
            con.execute(f"CREATE VIEW {quote(name)} AS FROM {parquet(paths)}")
        else:  # nothing of it was known by as_of
            con.execute(f"CREATE TABLE {quote(name)} ({contract.columns_sql(self.p.contract[name])})")


def _clean_table(name: str, p: Params, folder: Path, raw: manifest.RawTable, before: Sequence[str]) -> quality.Counts:
    """Clean one table's periods. Returns their counts added up, with what its files held."""
    cleaned = folder / p.paths.clean
    others = [sorted((cleaned / other).glob("*")) for other in contract.find_references(p.contract[name])]
    references = [periods.hash_file(path) for paths in others for path in paths]
    job = Job(engine.divide(p), folder, name, tuple(raw.files), tuple(before), tuple(references))
    paths = sorted((folder / p.paths.raw / name).glob("*.parquet"))
    names = [f"the period {path.stem} of {name}" for path in paths]
    counts = engine.map_ordered(clean_period, job, paths, p, names=names)
    spreads = {path.stem: count.pop("spreads") for path, count in zip(paths, counts, strict=True)}
    total = quality.add_counts([*counts, _count_across_periods(job, sorted((cleaned / name).glob("*.parquet")))])
    total |= raw.model_dump(include={"read", "empty", "later", "lacking"})
    return total | {"units": {column: asdict(change) for column, change in _find_changes(job, spreads)}}


def _find_changes(job: Job, spreads: Mapping[str, Any]) -> Iterator[tuple[str, units.Change]]:
    """The columns of which a period seems to bring another unit."""
    usual = [period.name for period, _ in periods.list_files(job.folder / job.p.paths.raw / job.name)]
    for column in {column: None for name in usual for column in spreads[name]}:
        measured = [(name, spreads[name][column]) for name in usual if spreads[name][column]]
        if change := units.find_change(measured):
            yield column, change


def clean_period(job: Job, file: Path) -> quality.Counts:
    """Put a period's good and bad rows in place, made now or linked from the cache. Returns their counts."""
    entry = periods.hash_inputs(
        "clean",
        periods.hash_file(file),
        (job.name, job.table.model_dump(), job.source.model_dump(exclude={"address"}), job.label),
        _name_winners(job, file),
        list(job.references),
        CODE,
    )
    good, bad = (job.folder / folder / job.name / file.name for folder in (job.p.paths.clean, job.p.paths.quarantine))

    def make(into: Path) -> None:
        with job.open_cursor() as con:
            counts = cleanrows.split_rows(con, _describe_file(con, job, file), into)
        files.publish_json(into / "counts.json", counts)

    periods.provide(entry, {good: "clean.parquet", bad: "held.parquet"}, make)
    return dict(periods.read_json(entry, "counts.json", make))


def _name_winners(job: Job, file: Path) -> list[tuple[int, str]]:
    """The source's files that the rows of a period may name as the place of a winner. None where no key comes twice."""
    if not job.table.key:
        return []
    with pq.ParquetFile(file) as parquet_file:  # not read_table, which imports pandas
        metadata, place = parquet_file.metadata, parquet_file.schema_arrow.names.index(PLACE[0])
        groups = [metadata.row_group(i).column(place).statistics for i in range(metadata.num_row_groups)]
        if all(groups) and sum(group.null_count for group in groups) == metadata.num_rows:
            return []
        indices = parquet_file.read([PLACE[0]])[PLACE[0]].unique().to_pylist()
    return [(index, job.files[index]) for index in sorted(index for index in indices if index is not None)]


def _describe_file(con: duckdb.DuckDBPyConnection, job: Job, file: Path) -> cleanrows.PeriodFile:
    """A period's file, its columns as the contract types them, and its rules."""
    columns, schema = job.table.columns, pq.read_schema(file)
    texts = {field.name for field in schema if str(field.type) in ("string", "large_string")}
    typed = {
        name: contract.clean_sql(name, rule, kind="VARCHAR" if name in texts else rule.type, decimal=job.source.decimal)
        for name, rule in columns.items()
        if name not in TIMES
    }
    typed |= {name: name for name in TIMES if name in schema.names}
    superseded = _superseded_sql(job) if _name_winners(job, file) else None
    period = cleanrows.PeriodFile(file, job.table, typed, (), superseded)
    period = replace(period, rules=tuple(_build_rules(con, job, period, texts)))
    return replace(period, deleted=_read_deletion(con, job, period)) if job.table.deleted else period


def _read_deletion(con: duckdb.DuckDBPyConnection, job: Job, period: cleanrows.PeriodFile) -> str:
    """contract.<table>.deleted as a condition. Raises ValueError for what is no condition over the columns."""
    sql, setting, before = str(job.table.deleted), f"contract.{job.name}.deleted", "DESCRIBE SELECT ("
    try:
        kind = con.execute(f"{before}{sql}\n) AS v FROM {period.rows_sql()}").fetchall()[0][1]
    except duckdb.Error as error:
        cause = sqlcheck.explain(error, sql, setting=f"{setting} `{sql}`", before=before, columns=list(period.typed))
        raise ValueError(f"{cause} It must be SQL over the contract's columns.") from None
    if kind != "BOOLEAN":
        raise ValueError(f"{setting} must be true or false for each row, but `{sql}` is a {kind}: write op = 'D'")
    return f"coalesce(({sql}\n), FALSE)"


def _build_rules(
    con: duckdb.DuckDBPyConnection, job: Job, period: cleanrows.PeriodFile, texts: Collection[str]
) -> Iterator[contract.Rule]:
    """The contract's rules, then those that concern the whole row."""
    rules = contract.build_rules(job.table, texts=texts, decimal=job.source.decimal)
    yield from (rule for rule in rules if rule.name.split(":")[0] not in TIMES)
    for step in expressions.list_steps(job.source):
        setting = f"sources.{job.name}.{step.setting}"
        reason = literal(f"{setting} cannot be computed for this row")
        yield contract.Rule(f"{step.setting}: fails", _fault_sql(step.setting), reason)
        if step.is_time:
            reason = literal(f"{setting} gives a text that is no time{contract.ZONE_RULE}")
            yield contract.Rule(f"{step.setting}: type", _fault_sql(step.setting + expressions.NO_TIME), reason)
    if job.label is not None and _can_guard(con, period, fails := f"TRY(struct_pack(v := ({job.label}\n))) IS NULL"):
        yield contract.Rule("label: fails", fails, literal("label.expression cannot be computed"))
    if "event_time" in period.columns:
        yield contract.Rule("event_time: required", "event_time IS NULL", literal("event_time cannot be told"))
    if timeline.OUTLIER in period.columns:
        yield contract.Rule("time: outlier", f"{timeline.OUTLIER} IS NOT NULL", timeline.OUTLIER)


def _fault_sql(fault: str) -> str:
    return f"coalesce(list_contains({FAULT}, {literal(fault)}), FALSE)"


def _can_guard(con: duckdb.DuckDBPyConnection, period: cleanrows.PeriodFile, fails: str) -> bool:
    """Whether label.expression can be computed here, row by row. What cannot is for features."""
    try:
        con.execute(f"DESCRIBE SELECT {fails} FROM {period.rows_sql()}").fetchall()
    except duckdb.Error:
        return False
    return True


def _superseded_sql(job: Job) -> str:
    """The reason of a row that another one supersedes, with the place of that."""
    names, winner = ", ".join(map(literal, job.files)), cleanrows.WINNER
    place = f"'row ', {winner}.row, ' of ', list_extract([{names}], CAST({winner}.file + 1 AS BIGINT))"
    why = f"with a later {job.table.version}" if job.table.version else "and came later"
    key = ", ".join(job.table.key)
    return f"concat({place}, {literal(f' has the same {key} {why}')})"


def _count_across_periods(job: Job, paths: Sequence[Path]) -> quality.Counts:
    """How many keys come back in another period. `cleanrows` has seen to those that come back in one period."""
    if not job.table.key or "event_time" in job.table.key or len(paths) < 2:
        return {}

    def measure() -> int:
        job.create_view(job.con, job.name)
        key = ", ".join(map(quote, job.table.key))
        query = f"SELECT count(*) FROM (FROM {quote(job.name)} SELECT {key} GROUP BY ALL HAVING count(*) > 1)"
        return int(job.con.execute(query).fetchall()[0][0])

    entry = periods.hash_inputs("across", [periods.hash_file(path) for path in paths], job.table.key, CODE)
    count = periods.remember(entry, "count.json", measure)
    return {"reported": {"key: again in another period": count}} if count else {}


if __name__ == "__main__":
    stage.main("clean", clean)
