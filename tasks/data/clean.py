"""clean: the contract applied to data/raw → data/clean, typed; what breaks a rule → data/quarantine, with its reasons.

    python -m tasks.data.clean

No row is lost: rows read = clean + quarantined + superseded + empty + not known yet. The quality report counts every
rule (tasks/data/quality.py). A table with more bad rows than clean.max_bad_share fails the stage, after its report is
written.

Of two good rows with one key the newest delivery wins: the later file, then the later row; or, where the contract names
a `version`, the higher version. The other row goes to quarantine with the winner's place. It is bad when both stand in
one file; else it is superseded, which is no fault. Work goes by period: a key that comes back in another period is
reported, and its row is kept.
"""

import json
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from tasks.data import cache, contract, expressions, quality, timeline, timezones
from tasks.data.contract import Rule
from tasks.data.manifest import RawManifest, RawTable
from tasks.data.quality import Counts
from tasks.params import FAULT, PLACE, TIMES, Params, Source, Table
from tasks.runtime import files, sql, stage
from tasks.runtime.sql import literal, parquet, quote

MODULES = (contract, expressions, sql, timeline, timezones)
CODE = cache.hash_code(*map(str, (__file__, *(module.__file__ for module in MODULES))))


def clean(p: Params, folder: Path = Path()) -> None:
    """Write <clean>, <quarantine> and the quality report. Raises ValueError when too many rows of a table are bad."""
    con = stage.connect(p)
    for output in (p.paths.clean, p.paths.quarantine):
        shutil.rmtree(folder / output, ignore_errors=True)
        (folder / output).mkdir(parents=True)
    raw = RawManifest.read(folder / p.paths.raw).tables
    counts = {name: _clean_table(con, name, p, folder, raw[name]) for name in contract.sort_tables(p.contract)}
    quality.write_report({name: counts[name] for name in p.contract}, p, folder / p.paths.reports)
    quality.refuse_bad_tables(counts, p)


@dataclass(frozen=True)
class Job:
    """One table to clean: its settings, the names of its source's files, and the label where it is the spine's."""

    con: duckdb.DuckDBPyConnection
    name: str
    table: Table
    source: Source
    files: tuple[str, ...]
    label: str | None


def _clean_table(con: duckdb.DuckDBPyConnection, name: str, p: Params, folder: Path, raw: RawTable) -> Counts:
    """Clean one table's periods in turn. Returns their counts added up, with what its files held."""
    label = p.label.expression if name == p.spine.table else None
    table, cleaned = p.contract[name], folder / p.paths.clean / name
    job = Job(con, name, table, p.sources[name], tuple(raw.files), label)
    # The contents of the tables that this one refers to: when they change, so may its bad rows.
    others = [path for other in contract.find_references(table) for path in sorted(cleaned.with_name(other).glob("*"))]
    references = [cache.hash_file(path) for path in others]
    counts = []
    for file in sorted((folder / p.paths.raw / name).glob("*.parquet")):
        targets = {cleaned / file.name: "clean.parquet", folder / p.paths.quarantine / name / file.name: "held.parquet"}
        counts.append(_clean_period(job, file, references, targets))
    if paths := sorted(cleaned.glob("*.parquet")):
        con.execute(f"CREATE VIEW {quote(name)} AS FROM {parquet(paths)}")
    else:  # nothing of it was known by as_of
        con.execute(f"CREATE TABLE {quote(name)} ({contract.columns_sql(table)})")
    total = quality.add_counts([*counts, _count_across_periods(con, name, table)])
    return total | raw.model_dump(include={"read", "empty", "later", "lacking"})


def _clean_period(job: Job, file: Path, references: list[str], targets: dict[Path, str]) -> Counts:
    settings = (job.name, job.table.model_dump(), job.source.model_dump(exclude={"address"}), job.label)
    entry = cache.hash_inputs("clean", cache.hash_file(file), settings, _name_winners(job, file), references, CODE)
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts.json"
        cache.provide(entry, {**targets, counts: counts.name}, lambda into: _clean_file(job, file, into))
        return dict(json.loads(counts.read_text()))


def _name_winners(job: Job, file: Path) -> list[tuple[int, str]]:
    """The source's files that the rows of a period may name as the place of a winner. None where no key comes twice."""
    if not job.table.key:
        return []
    indices = pq.read_table(file, columns=[PLACE[0]])[PLACE[0]].unique().to_pylist()
    return [(index, job.files[index]) for index in sorted(index for index in indices if index is not None)]


def _clean_file(job: Job, file: Path, into: Path) -> None:
    """One period: typed rows, bad and superseded rows with their reasons, and the counts."""
    con, columns, schema = job.con, job.table.columns, pq.read_schema(file)
    names = [name for name in columns if name not in TIMES]
    texts = {field.name for field in schema if str(field.type) in ("string", "large_string")}
    typed = {
        name: contract.typed_sql(name, columns[name], text=name in texts, decimal=job.source.decimal) for name in names
    }
    typed |= {name: name for name in TIMES if name in schema.names}
    rules = _build_rules(job, texts, schema.names)
    con.execute(f"CREATE OR REPLACE TEMP TABLE _unlabelled AS {_unlabelled_sql(job, typed, file)}")
    checked = _checked_sql(typed, rules, file)
    reasons = [f"CASE WHEN b{i} THEN {rule.reason} END" for i, rule in enumerate(rules) if rule.is_bad]
    if _name_winners(job, file):
        checked = _decided_sql(job, checked)
        reasons.append(f"CASE WHEN loses THEN {_superseded_sql(job)} END")
    else:
        checked = f"SELECT *, FALSE AS loses, NULL AS winner FROM ({checked})"
    con.execute(f"CREATE OR REPLACE TEMP TABLE _checked AS {checked}")
    as_typed, as_raw = (
        ", ".join(f"{form}.{quote(name)} AS {quote(name)}" for name in typed) for form in ("typed", "raw")
    )
    good = f"SELECT {as_typed} FROM _checked WHERE NOT bad AND NOT loses ORDER BY place"
    reason = f"concat_ws('; ', {', '.join(reasons) or 'NULL'}) AS reason"
    held = f"SELECT {as_raw}, {reason} FROM _checked WHERE bad OR loses ORDER BY place"
    pq.write_table(con.sql(good).to_arrow_table(), into / "clean.parquet", compression="zstd")
    pq.write_table(con.sql(held).to_arrow_table(), into / "held.parquet", compression="zstd")
    files.publish_json(into / "counts.json", quality.count_rows(con, rules, names))


def _build_rules(job: Job, texts: Collection[str], columns: Collection[str]) -> list[Rule]:
    """The contract's rules, then those that concern the whole row. `columns` are those of the raw file."""
    rules = [rule for rule in contract.build_rules(job.table, texts=texts) if rule.name.split(":")[0] not in TIMES]
    for step in expressions.list_steps(job.source):
        setting = f"sources.{job.name}.{step.setting}"
        reason = f"{setting} cannot be computed for this row"
        rules.append(Rule(f"{step.setting}: fails", _fault_sql(step.setting), literal(reason)))
        if step.is_time:
            reason = f"{setting} gives a text that is no time{contract.ZONE_RULE}"
            no_time = _fault_sql(step.setting + expressions.NO_TIME)
            rules.append(Rule(f"{step.setting}: type", no_time, literal(reason)))
    if job.label is not None:
        reason = literal("label.expression cannot be computed")
        rules.append(Rule("label: fails", "place IN (FROM _unlabelled)", reason))
    if "event_time" in columns:
        rules.append(Rule("event_time: required", "raw.event_time IS NULL", literal("event_time cannot be told")))
    if timeline.OUTLIER in columns:
        rules.append(Rule("time: outlier", f"raw.{timeline.OUTLIER} IS NOT NULL", f"raw.{timeline.OUTLIER}"))
    return rules


def _fault_sql(fault: str) -> str:
    return f"coalesce(list_contains(raw.{FAULT}, {literal(fault)}), FALSE)"


def _unlabelled_sql(job: Job, typed: dict[str, str], file: Path) -> str:
    """The places of the rows for which label.expression fails. What it cannot compute here at all is for features."""
    none = "SELECT 0 AS place WHERE FALSE"
    if job.label is None:
        return none
    values = ", ".join(f"{value} AS {quote(name)}" for name, value in typed.items())
    rows = f"(SELECT {values}, file_row_number FROM {parquet([file], file_row_number='TRUE')})"
    try:
        job.con.execute(f"SELECT count(({job.label}\n)) FROM {rows}")
        return none
    except duckdb.Error:
        failing = f"TRY(struct_pack(v := ({job.label}\n))) IS NULL"
    query = f"SELECT file_row_number AS place FROM {rows} WHERE {failing}"
    try:
        job.con.execute(f"DESCRIBE {query}")
    except duckdb.Error:
        return none
    return query


def _checked_sql(typed: dict[str, str], rules: list[Rule], file: Path) -> str:
    """Each row as it came (raw), as the contract types it (typed), and a flag b0, b1, ... for every broken rule."""
    fields = ", ".join(f"{quote(name)} := {value}" for name, value in typed.items())
    rows = (
        f"SELECT raw, struct_pack({fields}) AS typed, file_row_number AS place "
        f"FROM {parquet([file], file_row_number='TRUE')} raw"
    )
    flags = "".join(f", coalesce({rule.broken}, FALSE) AS b{i}" for i, rule in enumerate(rules))
    bad = " OR ".join(f"b{i}" for i, rule in enumerate(rules) if rule.is_bad) or "FALSE"
    return f"SELECT *, {bad} AS bad FROM (SELECT *{flags} FROM ({rows}))"


def _decided_sql(job: Job, checked: str) -> str:
    """Beside each row, whether another one of its key wins, and where that stands."""
    key = ", ".join(f"typed.{quote(name)}" for name in job.table.key)
    version = f"typed.{quote(job.table.version)} DESC NULLS LAST, " if job.table.version else ""
    order = f"bad, {version}raw.{PLACE[0]} DESC, raw.{PLACE[1]} DESC, place DESC"
    window = f"OVER (PARTITION BY {key} ORDER BY {order})"
    whole = " AND ".join(f"typed.{quote(name)} IS NOT NULL" for name in job.table.key)
    loses = f"row_number() {window} > 1 AND {whole}"
    winner = f"first_value(struct_pack(file := raw.{PLACE[0]}, row := raw.{PLACE[1]})) {window}"
    decided = f"SELECT *, {loses} AS loses, {winner} AS winner FROM ({checked})"
    if job.table.version:
        return decided
    return f"SELECT * REPLACE (bad OR (loses AND winner.file = raw.{PLACE[0]}) AS bad) FROM ({decided})"


def _superseded_sql(job: Job) -> str:
    """The reason of a row that another one supersedes, with the place of that."""
    names = ", ".join(map(literal, job.files))
    place = f"'row ', winner.row, ' of ', list_extract([{names}], CAST(winner.file + 1 AS BIGINT))"
    why = f"with a later {job.table.version}" if job.table.version else "and came later"
    key = ", ".join(job.table.key)
    return f"concat({place}, {literal(f' has the same {key} {why}')})"


def _count_across_periods(con: duckdb.DuckDBPyConnection, name: str, table: Table) -> Counts:
    """How many keys come back in another period. `_clean_file` has seen to those that come back in one period."""
    if not table.key or "event_time" in table.key:
        return {}
    key = ", ".join(map(quote, table.key))
    again = con.execute(f"SELECT count(*) FROM (FROM {quote(name)} SELECT {key} GROUP BY ALL HAVING count(*) > 1)")
    count = again.fetchall()[0][0]
    return {"reported": {"key: again in another period": count}} if count else {}


if __name__ == "__main__":
    stage.main("clean", clean)
