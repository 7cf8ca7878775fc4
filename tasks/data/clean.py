"""clean: the contract applied to data/raw → data/clean, typed; what breaks a rule → data/quarantine, with its reasons.

    python -m tasks.data.clean

No row is lost: rows read = clean + quarantined + superseded + empty + not known yet. The quality report
(reports/quality.json and .html) counts every rule. A table with more bad rows than clean.max_bad_share fails the stage,
after its report is written.

Of two good rows with one key the newest delivery wins: the later file, then the later row; or, where the contract names
a `version`, the higher version. The other goes to quarantine with the winner's place. It is bad when both stand in one
file; else it is superseded, which is no fault. Work goes by period: a key that comes back in another period is reported
and kept.
"""

import html
import json
import shutil
import tempfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import log
from tasks.data import cache, contract, expressions, timeline, timezones
from tasks.data.contract import Rule
from tasks.data.manifest import RawManifest, RawTable
from tasks.params import FAULT, PLACE, TIMES, Params, Source, Table
from tasks.runtime import files, sql, stage
from tasks.runtime.sql import literal, parquet, quote

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MODULES = (contract, expressions, sql, timeline, timezones)
CODE = cache.hash_code(*map(str, (__file__, *(module.__file__ for module in MODULES))))
Counts = dict[str, Any]  # rows, bad, and by rule or column: by_rule, reported, nulls


def clean(p: Params, folder: Path = Path()) -> None:
    """Write <clean>, <quarantine> and the quality report. Raises ValueError when too many rows of a table are bad."""
    con = stage.connect(p)
    for output in (p.paths.clean, p.paths.quarantine):
        shutil.rmtree(folder / output, ignore_errors=True)
        (folder / output).mkdir(parents=True)
    tables = RawManifest.read(folder / p.paths.raw).tables
    found = {name: _clean_table(con, name, p, folder, tables[name]) for name in contract.sort_tables(p.contract)}
    _report({name: found[name] for name in p.contract}, p, folder / p.paths.reports)
    _judge(found, p)


@dataclass(frozen=True)
class Job:
    """One table to clean: its settings, the names of its source's files, and the label where it is the spine's."""

    con: "DuckDBPyConnection"
    name: str
    table: Table
    source: Source
    files: tuple[str, ...]
    label: str | None


def _clean_table(con: "DuckDBPyConnection", name: str, p: Params, folder: Path, arrived: RawTable) -> Counts:
    """One table's periods in turn, and their counts added up with what its files held."""
    label = p.label.expression if name == p.spine.table else None
    job = Job(con, name, p.contract[name], p.sources[name], tuple(arrived.files), label)
    table, cleaned = p.contract[name], folder / p.paths.clean / name
    pointed = _pointed_contents(table, folder / p.paths.clean)
    counts = []
    for file in sorted((folder / p.paths.raw / name).glob("*.parquet")):
        targets = {cleaned / file.name: "clean.parquet", folder / p.paths.quarantine / name / file.name: "held.parquet"}
        counts.append(_clean_period(job, file, pointed, targets))
    if files := sorted(cleaned.glob("*.parquet")):
        con.execute(f"CREATE VIEW {quote(name)} AS FROM {parquet(files)}")
    else:  # nothing of it was known by as_of
        con.execute(f"CREATE TABLE {quote(name)} ({contract.columns_sql(table)})")
    total = _total([*counts, _across_periods(con, name, table)])
    return total | arrived.model_dump(include={"read", "empty", "later", "lacking"})


def _pointed_contents(table: Table, clean: Path) -> list[str]:
    """The contents of the tables that this one refers to: when they change, so may its bad rows."""
    return [
        cache.hash_file(file) for other in contract.find_references(table) for file in sorted((clean / other).glob("*"))
    ]


def _clean_period(job: Job, file: Path, pointed: list[str], targets: dict[Path, str]) -> Counts:
    settings = (job.name, job.table.model_dump(), job.source.model_dump(exclude={"address"}), job.label)
    entry = cache.hash_inputs("clean", cache.hash_file(file), settings, _files_named(job, file), pointed, CODE)
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts.json"
        cache.provide(entry, {**targets, counts: counts.name}, lambda into: _clean_file(job, file, into))
        return dict(json.loads(counts.read_text()))


def _files_named(job: Job, file: Path) -> list[tuple[int, str]]:
    """The source's files that the rows of a period may name as the place of a winner."""
    import pyarrow.parquet as pq

    if not job.table.key:
        return []
    indices = pq.read_table(file, columns=[PLACE[0]])[PLACE[0]].unique().to_pylist()
    return [(index, job.files[index]) for index in sorted(index for index in indices if index is not None)]


def _clean_file(job: Job, file: Path, into: Path) -> None:
    """One period: typed rows, bad and superseded rows with their reasons, and the counts."""
    import pyarrow.parquet as pq

    con, table, schema = job.con, job.table, pq.read_schema(file)
    times = [name for name in TIMES if name in schema.names]
    names = [name for name in table.columns if name not in TIMES]
    texts = {field.name for field in schema if str(field.type) in ("string", "large_string")}
    rules = _rules(job, texts, timed=bool(times), outliers=timeline.OUTLIER in schema.names)
    con.execute(f"CREATE OR REPLACE TEMP TABLE _unlabelled AS {_unlabelled_sql(job, names, times, texts, file)}")
    checked = _checked_sql(job, names, times, texts, rules, file)
    if _files_named(job, file):  # else no key comes twice
        checked = _decided_sql(job, checked)
    else:
        checked = f"SELECT *, FALSE AS loses, NULL AS winner FROM ({checked})"
    con.execute(f"CREATE OR REPLACE TEMP TABLE _checked AS {checked}")
    typed = ", ".join(f"typed.{quote(name)} AS {quote(name)}" for name in names + times)
    raw = ", ".join(f"raw.{quote(name)} AS {quote(name)}" for name in names + times)
    reasons = [f"CASE WHEN b{i} THEN {rule.reason} END" for i, rule in enumerate(rules) if rule.counts]
    reasons += [f"CASE WHEN loses THEN {_lost(job)} END"] if _files_named(job, file) else []
    kept = con.sql(f"SELECT {typed} FROM _checked WHERE NOT bad AND NOT loses ORDER BY place").to_arrow_table()
    reason = f"concat_ws('; ', {', '.join(reasons) or 'NULL'}) AS reason"
    held = f"SELECT {raw}, {reason} FROM _checked WHERE bad OR loses ORDER BY place"
    pq.write_table(kept, into / "clean.parquet", compression="zstd")
    pq.write_table(con.sql(held).to_arrow_table(), into / "held.parquet", compression="zstd")
    files.publish_json(into / "counts.json", _counts(con, rules, names))


def _rules(job: Job, texts: Collection[str], *, timed: bool, outliers: bool) -> list[Rule]:
    """The contract's, then those that concern the whole row."""
    found = [rule for rule in contract.build_rules(job.table, texts=texts) if rule.name.split(":")[0] not in TIMES]
    for step in expressions.list_steps(job.source):
        fails = f"coalesce(list_contains(raw.{FAULT}, {literal(step.setting)}), FALSE)"
        reason = f"sources.{job.name}.{step.setting} cannot be computed for this row"
        found.append(Rule(f"{step.setting}: fails", fails, literal(reason)))
        if step.is_time:
            text = f"coalesce(list_contains(raw.{FAULT}, {literal(step.setting + expressions.NO_TIME)}), FALSE)"
            reason = f"sources.{job.name}.{step.setting} gives a text that is no time{contract.ZONE_RULE}"
            found.append(Rule(f"{step.setting}: type", text, literal(reason)))
    if job.label is not None:
        found.append(
            Rule("label: fails", "place IN (FROM _unlabelled)", literal("label.expression cannot be computed"))
        )
    if timed:
        found.append(Rule("event_time: required", "raw.event_time IS NULL", literal("event_time cannot be told")))
    if outliers:
        found.append(Rule("time: outlier", f"raw.{timeline.OUTLIER} IS NOT NULL", f"raw.{timeline.OUTLIER}"))
    return found


def _typed(job: Job, names: list[str], times: list[str], texts: Collection[str]) -> dict[str, str]:
    """By name: the SQL of the typed value."""
    decimal, columns = job.source.decimal, job.table.columns
    typed = {name: contract.typed_sql(name, columns[name], text=name in texts, decimal=decimal) for name in names}
    return typed | {name: name for name in times}


def _unlabelled_sql(job: Job, names: list[str], times: list[str], texts: Collection[str], file: Path) -> str:
    """The places of the rows for which label.expression fails. What it cannot compute here at all is for features."""
    import duckdb

    none = "SELECT 0 AS place WHERE FALSE"
    if job.label is None:
        return none
    values = ", ".join(f"{sql} AS {quote(name)}" for name, sql in _typed(job, names, times, texts).items())
    rows = f"(SELECT {values}, file_row_number FROM {parquet([file], file_row_number='TRUE')})"
    try:
        job.con.execute(f"SELECT count(({job.label}\n)) FROM {rows}")
        return none
    except duckdb.Error:
        failing = f"TRY(struct_pack(v := ({job.label}\n))) IS NULL"
    sql = f"SELECT file_row_number AS place FROM {rows} WHERE {failing}"
    try:
        job.con.execute(f"DESCRIBE {sql}")
    except duckdb.Error:
        return none
    return sql


def _checked_sql(
    job: Job, names: list[str], times: list[str], texts: Collection[str], rules: list[Rule], file: Path
) -> str:
    """Each row as it came (raw), as the contract types it (typed), and a flag b0, b1, ... for every broken rule."""
    fields = [f"{quote(name)} := {value}" for name, value in _typed(job, names, times, texts).items()]
    sql = (
        f"SELECT raw, struct_pack({', '.join(fields)}) AS typed, file_row_number AS place "
        f"FROM {parquet([file], file_row_number='TRUE')} raw"
    )
    flags = "".join(f", coalesce({rule.broken}, FALSE) AS b{i}" for i, rule in enumerate(rules))
    return f"SELECT *, {_any(rules)} AS bad FROM (SELECT *{flags} FROM ({sql}))"


def _decided_sql(job: Job, sql: str) -> str:
    """Beside each row, whether another one of its key wins, and where that stands."""
    key = ", ".join(f"typed.{quote(name)}" for name in job.table.key)
    version = f"typed.{quote(job.table.version)} DESC NULLS LAST, " if job.table.version else ""
    order = f"bad, {version}raw.{PLACE[0]} DESC, raw.{PLACE[1]} DESC, place DESC"
    window = f"OVER (PARTITION BY {key} ORDER BY {order})"
    whole = " AND ".join(f"typed.{quote(name)} IS NOT NULL" for name in job.table.key)
    loses = f"row_number() {window} > 1 AND {whole}"
    winner = f"first_value(struct_pack(file := raw.{PLACE[0]}, row := raw.{PLACE[1]})) {window}"
    sql = f"SELECT *, {loses} AS loses, {winner} AS winner FROM ({sql})"
    if job.table.version:
        return sql
    return f"SELECT * REPLACE (bad OR (loses AND winner.file = raw.{PLACE[0]}) AS bad) FROM ({sql})"


def _lost(job: Job) -> str:
    """The reason of a row that another one supersedes, with the place of that."""
    names = ", ".join(map(literal, job.files))
    place = f"'row ', winner.row, ' of ', list_extract([{names}], CAST(winner.file + 1 AS BIGINT))"
    why = f"with a later {job.table.version}" if job.table.version else "and came later"
    key = ", ".join(job.table.key)
    return f"concat({place}, {literal(f' has the same {key} {why}')})"


def _any(rules: list[Rule]) -> str:
    return " OR ".join(f"b{i}" for i, rule in enumerate(rules) if rule.counts) or "FALSE"


def _counts(con: "DuckDBPyConnection", rules: list[Rule], names: list[str]) -> Counts:
    sums = [f"count(*) FILTER (b{i})" for i in range(len(rules))]
    nulls = [f"count(*) FILTER (typed.{quote(name)} IS NULL)" for name in names]
    whole = [
        "count(*)",
        "count(*) FILTER (bad)",
        "count(*) FILTER (loses AND NOT bad)",
        "count(*) FILTER (loses AND bad)",
    ]
    rows, bad, superseded, doubled, *found = con.execute(
        f"SELECT {', '.join([*whole, *sums, *nulls])} FROM _checked"
    ).fetchall()[0]
    broken = [(rule, count) for rule, count in zip(rules, found, strict=False) if count]
    by_rule = {rule.name: count for rule, count in broken if rule.counts}
    return {
        "rows": rows,
        "bad": bad,
        "superseded": superseded,
        "by_rule": by_rule | ({"key: duplicate": doubled} if doubled else {}),
        "reported": {rule.name: count for rule, count in broken if not rule.counts},
        "nulls": dict(zip(names, found[len(rules) :], strict=True)),
    }


def _across_periods(con: "DuckDBPyConnection", name: str, table: Table) -> Counts:
    """How many keys come back in another period; of one period's, `_clean_file` has seen to it."""
    if not table.key or "event_time" in table.key:
        return {}
    key = ", ".join(quote(each) for each in table.key)
    again = con.execute(f"SELECT count(*) FROM (FROM {quote(name)} SELECT {key} GROUP BY ALL HAVING count(*) > 1)")
    count = again.fetchall()[0][0]
    return {"reported": {"key: again in another period": count}} if count else {}


def _total(counts: list[Counts]) -> Counts:
    """The periods' counts added up."""
    total: Counts = {"rows": 0, "bad": 0, "superseded": 0, "by_rule": {}, "reported": {}, "nulls": {}}
    for each in counts:
        for field, value in each.items():
            if isinstance(value, dict):
                total[field] = {k: total[field].get(k, 0) + value.get(k, 0) for k in {**total[field], **value}}
            else:
                total[field] += value
    return total


def _report(found: dict[str, Counts], p: Params, reports: Path) -> None:
    for name, table in found.items():
        log.info(
            "%s: %s rows, %s of them to quarantine, %s superseded",
            *(name, *(f"{table[field]:,}" for field in ("rows", "bad", "superseded"))),
        )
    files.publish_json(reports / "quality.json", {"tables": found})
    files.publish_text(reports / "quality.html", _page(found, p))


def _judge(found: dict[str, Counts], p: Params) -> None:
    said = [_too_bad(name, table, p) for name, table in found.items() if _share(table) > p.clean.max_bad_share]
    if said:
        raise ValueError("\n".join(said))


def _too_bad(name: str, table: Counts, p: Params) -> str:
    worst = ", ".join(f"{rule} ({count})" for rule, count in _most(table["by_rule"])[:3])
    return (
        f"{name}: `bad rows <= clean.max_bad_share` must hold, but {table['bad']} of {table['rows']} are bad "
        f"({_share(table):.1%} > {p.clean.max_bad_share:.1%}): {worst}. See {p.paths.quarantine / name}; mend the "
        f"source, contract.{name}, or the bound."
    )


def _share(table: Counts) -> float:
    return float(table["bad"] / max(table["rows"], 1))


def _most(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _page(found: dict[str, Counts], p: Params) -> str:
    rows, bad = (sum(table[field] for table in found.values()) for field in ("rows", "bad"))
    bound = f"A table with more than {p.clean.max_bad_share:.1%} there fails the stage (clean.max_bad_share)."
    overview = [_overview(name, table, p.clean.max_bad_share) for name, table in found.items()]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Data quality</title>',
            f"{STYLE}</head><body>",
            f'<h1>Data quality</h1><p class="soft">{rows:,} rows, {bad:,} of them in quarantine. {bound}</p>',
            _table(("table", "rows", "in quarantine", "share"), overview),
            *(_section(name, table) for name, table in found.items()),
            "</body></html>\n",
        ]
    )


def _overview(name: str, table: Counts, bound: float) -> str:
    mood = "bad" if _share(table) > bound else "some" if table["bad"] else "none"
    link = f'<a href="#{html.escape(name)}">{html.escape(name)}</a>'
    return _row(link, f"{table['rows']:,}", _marked(f"{table['bad']:,}", mood), _marked(f"{_share(table):.3%}", mood))


def _section(name: str, table: Counts) -> str:
    """What became of one table: the rules that were broken, and how full its columns are."""
    broken = [_row(html.escape(rule), f"{count:,}", "quarantine") for rule, count in _most(table["by_rule"])]
    broken += [_row(html.escape(rule), f"{count:,}", "kept") for rule, count in _most(table["reported"])]
    rules = _table(("rule", "rows that break it", "what happens"), broken)
    missing = [_missing(column, count, table["rows"]) for column, count in _most(table["nulls"]) if count]
    full = len(table["nulls"]) - len(missing)
    return "\n".join(
        [
            f'<h2 id="{html.escape(name)}">{html.escape(name)}</h2>',
            f'<p class="soft">{html.escape(_summed(table))}</p>',
            rules if broken else '<p class="soft">Every row keeps every rule.</p>',
            _table(("column", "missing", "share", ""), missing) if missing else "",
            f'<p class="soft">{full} of {len(table["nulls"])} columns have a value in every row.</p>',
        ]
    )


def _summed(table: Counts) -> str:
    """What became of every row that was read, and what its files lack."""
    kept = table["rows"] - table["bad"] - table["superseded"]
    parts = [f"{table['read']:,} rows read = {kept:,} kept", f"{table['bad']:,} in quarantine"]
    parts += [f"{table['superseded']:,} superseded", f"{table['empty']:,} empty", f"{table['later']:,} not known yet"]
    lacking = [f" {file} lacks {', '.join(columns)}." for file, columns in table["lacking"].items()]
    return " + ".join(parts) + "." + "".join(lacking)


def _missing(column: str, count: int, rows: int) -> str:
    share = count / max(rows, 1)
    bar = f'<div class="bar" style="width: {share:.1%}"></div>'
    return _row(html.escape(column), f"{count:,}", f"{share:.1%}", bar)


def _marked(text: str, mood: str) -> str:
    return f'<span class="{mood}">{text}</span>'


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _table(heads: Iterable[str], rows: list[str]) -> str:
    head = "".join(f"<th>{each}</th>" for each in heads)
    return "\n".join([f"<table><thead><tr>{head}</tr></thead><tbody>", *rows, "</tbody></table>"])


STYLE = """
<style>
  :root { color-scheme: light dark; --ink: #1c2430; --soft: #667085; --line: #e4e7ec; --bad: #b42318; --bar: #b9c7de }
  @media (prefers-color-scheme: dark) {
    :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #344054; --bad: #f97066; --bar: #475467 }
  }
  body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 2.5rem auto; max-width: 54rem }
  h1 { margin: 0; font-size: 1.6rem } h2 { margin: 2.5rem 0 .5rem; font-size: 1.15rem } a { color: inherit }
  table { border-collapse: collapse; width: 100%; margin: .5rem 0; font-variant-numeric: tabular-nums }
  th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); width: 20% }
  th { color: var(--soft); font-weight: 500; font-size: .85rem } th:first-child, td:first-child { text-align: left }
  .soft, .none { color: var(--soft) } .bad { color: var(--bad); font-weight: 600 }
  .bar { height: .55rem; min-width: 1px; background: var(--bar); border-radius: .2rem }
</style>
"""


if __name__ == "__main__":
    stage.main("clean", clean)
