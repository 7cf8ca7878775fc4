"""clean: the contract applied to data/raw → data/clean, typed; what breaks a rule → data/quarantine, with its reasons.

    python -m tasks.data.clean

No row is lost: rows read = clean + quarantined + superseded + empty + not known yet. The quality report says how many
rows of each table are bad, and why: reports/quality.json for programs, quality.html for people. A table with more bad
rows than clean.max_bad_share fails the stage, after its report is written.

Of two good rows with one key the newest delivery wins: the later file, then the later row; or, where the contract names
a `version`, the higher version. The other row goes to quarantine with the winner's place. It is bad when both stand in
one file; else it is superseded, which is no fault. Work goes by period: a key that comes back in another period is
reported, and its row is kept.
"""

import html
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from tasks import log
from tasks.data import contract, expressions, manifest, periods, timeline
from tasks.params import FAULT, PLACE, TIMES, Params, Source, Table
from tasks.runtime import engine, files, sql, stage
from tasks.runtime.sql import literal, parquet, quote

CODE = periods.hash_code(__file__, contract.__file__, expressions.__file__, sql.__file__, timeline.__file__)
Counts = dict[str, Any]  # rows, bad, superseded, and by rule or column: by_rule, reported, nulls


def clean(p: Params, folder: Path = Path()) -> None:
    """Write <clean>, <quarantine> and the quality report. Raises ValueError when too many rows of a table are bad."""
    for output in (p.paths.clean, p.paths.quarantine):
        shutil.rmtree(folder / output, ignore_errors=True)
        (folder / output).mkdir(parents=True)
    raw = manifest.RawManifest.read(folder / p.paths.raw).tables
    order = contract.sort_tables(p.contract)
    counts = {name: _clean_table(name, p, folder, raw[name], order[:place]) for place, name in enumerate(order)}
    write_report({name: counts[name] for name in p.contract}, p, folder / p.paths.reports)
    refuse_bad_tables(counts, p)


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

    def create_view(self, con: duckdb.DuckDBPyConnection, name: str) -> None:
        if paths := sorted((self.folder / self.p.paths.clean / name).glob("*.parquet")):
            con.execute(f"CREATE VIEW {quote(name)} AS FROM {parquet(paths)}")
        else:  # nothing of it was known by as_of
            con.execute(f"CREATE TABLE {quote(name)} ({contract.columns_sql(self.p.contract[name])})")


def _clean_table(name: str, p: Params, folder: Path, raw: manifest.RawTable, before: Sequence[str]) -> Counts:
    """Clean one table's periods. Returns their counts added up, with what its files held."""
    cleaned = folder / p.paths.clean
    others = [sorted((cleaned / other).glob("*")) for other in contract.find_references(p.contract[name])]
    references = [periods.hash_file(path) for paths in others for path in paths]
    job = Job(engine.divide(p), folder, name, tuple(raw.files), tuple(before), tuple(references))
    paths = sorted((folder / p.paths.raw / name).glob("*.parquet"))
    names = [f"the period {path.stem} of {name}" for path in paths]
    counts = engine.map_ordered(clean_period, job, paths, p, names=names, threads=1)
    job.create_view(job.con, name)
    total = add_counts([*counts, _count_across_periods(job.con, name, job.table)])
    return total | raw.model_dump(include={"read", "empty", "later", "lacking"})


def clean_period(job: Job, file: Path) -> Counts:
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
        _clean_file(job, file, into)

    periods.provide(entry, {good: "clean.parquet", bad: "held.parquet"}, make)
    return dict(periods.read_json(entry, "counts.json", make))


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
        name: contract.clean_sql(name, columns[name], text=name in texts, decimal=job.source.decimal) for name in names
    }
    typed |= {name: name for name in TIMES if name in schema.names}
    rules = list(_build_rules(job, texts, schema.names))
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
    reason = f"concat_ws('; ', {', '.join(reasons) or 'NULL'}) AS reason"
    pq.write_table(
        con.sql(f"SELECT {as_typed} FROM _checked WHERE NOT bad AND NOT loses ORDER BY place").to_arrow_table(),
        into / "clean.parquet",
        compression="zstd",
    )
    pq.write_table(
        con.sql(f"SELECT {as_raw}, {reason} FROM _checked WHERE bad OR loses ORDER BY place").to_arrow_table(),
        into / "held.parquet",
        compression="zstd",
    )
    files.publish_json(into / "counts.json", count_rows(con, rules, names))


def _build_rules(job: Job, texts: Collection[str], columns: Collection[str]) -> Iterator[contract.Rule]:
    """The contract's rules, then those that concern the whole row. `columns` are those of the raw file."""
    rules = contract.build_rules(job.table, texts=texts, decimal=job.source.decimal)
    yield from (rule for rule in rules if rule.name.split(":")[0] not in TIMES)
    for step in expressions.list_steps(job.source):
        setting = f"sources.{job.name}.{step.setting}"
        reason = literal(f"{setting} cannot be computed for this row")
        yield contract.Rule(f"{step.setting}: fails", _fault_sql(step.setting), reason)
        if step.is_time:
            reason = literal(f"{setting} gives a text that is no time{contract.ZONE_RULE}")
            yield contract.Rule(f"{step.setting}: type", _fault_sql(step.setting + expressions.NO_TIME), reason)
    if job.label is not None:
        yield contract.Rule(
            "label: fails", "place IN (FROM _unlabelled)", literal("label.expression cannot be computed")
        )
    if "event_time" in columns:
        yield contract.Rule("event_time: required", "raw.event_time IS NULL", literal("event_time cannot be told"))
    if timeline.OUTLIER in columns:
        yield contract.Rule("time: outlier", f"raw.{timeline.OUTLIER} IS NOT NULL", f"raw.{timeline.OUTLIER}")


def _fault_sql(fault: str) -> str:
    return f"coalesce(list_contains(raw.{FAULT}, {literal(fault)}), FALSE)"


def _unlabelled_sql(job: Job, typed: dict[str, str], file: Path) -> str:
    """The places of the rows for which label.expression fails. What it cannot compute here at all is for features."""
    none = "SELECT 0 AS place WHERE FALSE"
    if job.label is None:
        return none
    values = ", ".join(f"{value} AS {quote(name)}" for name, value in typed.items())
    rows = f"(SELECT {values}, file_row_number FROM {parquet([file], file_row_number='TRUE')})"
    query = f"SELECT file_row_number AS place FROM {rows} WHERE TRY(struct_pack(v := ({job.label}\n))) IS NULL"
    try:
        job.con.execute(f"DESCRIBE {query}")
    except duckdb.Error:
        return none
    return query


def _checked_sql(typed: dict[str, str], rules: list[contract.Rule], file: Path) -> str:
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
    count = con.execute(
        f"SELECT count(*) FROM (FROM {quote(name)} SELECT {key} GROUP BY ALL HAVING count(*) > 1)"
    ).fetchall()[0][0]
    return {"reported": {"key: again in another period": count}} if count else {}


# --- the quality report ----------------------------------------------------------------------------------------------


def count_rows(con: duckdb.DuckDBPyConnection, rules: list[contract.Rule], names: list[str]) -> Counts:
    """Of one period's table `_checked`, which clean has made."""
    whole = ("TRUE", "bad", "loses AND NOT bad", "loses AND bad")
    nulls = [f"typed.{quote(name)} IS NULL" for name in names]
    columns = ", ".join(
        f"count(*) FILTER ({where})" for where in (*whole, *[f"b{i}" for i in range(len(rules))], *nulls)
    )
    rows, bad, superseded, doubled, *others = con.execute(f"SELECT {columns} FROM _checked").fetchall()[0]
    broken = [(rule, count) for rule, count in zip(rules, others, strict=False) if count]
    return {
        "rows": rows,
        "bad": bad,
        "superseded": superseded,
        "by_rule": {rule.name: count for rule, count in broken if rule.is_bad}
        | ({"key: duplicate": doubled} if doubled else {}),
        "reported": {rule.name: count for rule, count in broken if not rule.is_bad},
        "nulls": dict(zip(names, others[len(rules) :], strict=True)),
    }


def add_counts(counts: Iterable[Counts]) -> Counts:
    total: Counts = {"rows": 0, "bad": 0, "superseded": 0, "by_rule": {}, "reported": {}, "nulls": {}}
    for part in counts:
        for field, value in part.items():
            if isinstance(value, dict):
                total[field] = {k: total[field].get(k, 0) + value.get(k, 0) for k in {**total[field], **value}}
            else:
                total[field] += value
    return total


def write_report(tables: dict[str, Counts], p: Params, reports: Path) -> None:
    for name, table in tables.items():
        numbers = (f"{table[field]:,}" for field in ("rows", "bad", "superseded"))
        log.info("%s: %s rows, %s of them to quarantine, %s superseded", name, *numbers)
    files.publish_json(reports / "quality.json", {"tables": tables})
    files.publish_text(reports / "quality.html", _render_page(tables, p.clean.max_bad_share))


def refuse_bad_tables(tables: dict[str, Counts], p: Params) -> None:
    """Raises ValueError when a table has more bad rows than clean.max_bad_share."""
    reasons = []
    for name, table in tables.items():
        if _bad_share(table) > p.clean.max_bad_share:
            worst = ", ".join(f"{rule} ({count})" for rule, count in _most_first(table["by_rule"])[:3])
            reasons.append(
                f"{name}: `bad rows <= clean.max_bad_share` must hold, but {table['bad']} of {table['rows']} are bad "
                f"({_bad_share(table):.1%} > {p.clean.max_bad_share:.1%}): {worst}. See {p.paths.quarantine / name}; "
                f"mend the source, contract.{name}, or the bound."
            )
    if reasons:
        raise ValueError("\n".join(reasons))


def _bad_share(table: Counts) -> float:
    return float(table["bad"] / max(table["rows"], 1))


def _most_first(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _render_page(tables: dict[str, Counts], max_bad_share: float) -> str:
    rows, bad = (sum(table[field] for table in tables.values()) for field in ("rows", "bad"))
    bound = f"A table with more than {max_bad_share:.1%} there fails the stage (clean.max_bad_share)."
    overview = []
    for name, table in tables.items():
        share = _bad_share(table)
        mark = f'<span class="{"bad" if share > max_bad_share else "some" if share else "none"}">'
        link = f'<a href="#{html.escape(name)}">{html.escape(name)}</a>'
        overview.append((link, f"{table['rows']:,}", f"{mark}{table['bad']:,}</span>", f"{mark}{share:.3%}</span>"))
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Data quality</title>',
            f"{STYLE}</head><body>",
            f'<h1>Data quality</h1><p class="soft">{rows:,} rows, {bad:,} of them in quarantine. {bound}</p>',
            _render_table(("table", "rows", "in quarantine", "share"), overview),
            *(_render_section(name, table) for name, table in tables.items()),
            "</body></html>\n",
        ]
    )


def _render_section(name: str, table: Counts) -> str:
    """What became of one table's rows: the rules that were broken, and how full its columns are."""
    good = table["rows"] - table["bad"] - table["superseded"]
    total = (
        f"{table['read']:,} rows read = {good:,} kept + {table['bad']:,} in quarantine + {table['superseded']:,} "
        f"superseded + {table['empty']:,} empty + {table['later']:,} not known yet."
    )
    lacking = "".join(f" {file} lacks {', '.join(columns)}." for file, columns in table["lacking"].items())
    broken = [
        (html.escape(rule), f"{count:,}", fate)
        for field, fate in (("by_rule", "quarantine"), ("reported", "kept"))
        for rule, count in _most_first(table[field])
    ]
    shares = {column: f"{count / max(table['rows'], 1):.1%}" for column, count in table["nulls"].items()}
    missing = [
        (html.escape(column), f"{count:,}", shares[column], f'<div class="bar" style="width: {shares[column]}"></div>')
        for column, count in _most_first(table["nulls"])
        if count
    ]
    full = len(table["nulls"]) - len(missing)
    return "\n".join(
        [
            f'<h2 id="{html.escape(name)}">{html.escape(name)}</h2>',
            f'<p class="soft">{html.escape(total + lacking)}</p>',
            _render_table(("rule", "rows that break it", "what happens"), broken)
            if broken
            else '<p class="soft">Every row keeps every rule.</p>',
            _render_table(("column", "missing", "share", ""), missing) if missing else "",
            f'<p class="soft">{full} of {len(table["nulls"])} columns have a value in every row.</p>',
        ]
    )


def _render_table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = ("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return "\n".join([f"<table><thead><tr>{head}</tr></thead><tbody>", *body, "</tbody></table>"])


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
