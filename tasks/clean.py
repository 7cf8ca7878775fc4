"""clean: the contract applied to data/raw → data/clean, typed; what breaks a rule → data/quarantine, with its reasons.

    python -m tasks.clean

No row is lost: rows in = rows clean + rows in quarantine. The quality report (reports/quality.json and .html) counts
every rule. A table with more bad rows than clean.max_bad_share fails the stage, after its report is written.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import contract, periods, stage
from tasks.contract import Rule, literal, quoted
from tasks.params import Params, Table

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger("evergreen")
CODE = periods.source_of(__file__, contract.__file__)
TIMES = ("event_time", "known_at")


def clean(p: Params, folder: Path = Path()) -> None:
    """Write <clean>, <quarantine> and the quality report. Raises ValueError when too many rows of a table are bad."""
    con = _connect(p)
    for output in (p.paths.clean, p.paths.quarantine):
        shutil.rmtree(folder / output, ignore_errors=True)
        (folder / output).mkdir(parents=True)
    found: dict[str, dict[str, Any]] = {}
    for name, table in p.contract.items():
        found[name] = _clean_table(con, name, table, p, folder)
        con.execute(f"CREATE VIEW {quoted(name)} AS FROM read_parquet({literal(str(folder / p.paths.clean / name))} || '/*')")
    _report(found, folder / p.paths.reports)
    _judge(found, p)


def _connect(p: Params) -> "DuckDBPyConnection":
    import duckdb

    con = duckdb.connect(config={"threads": p.stage.threads, "memory_limit": p.stage.memory})
    con.execute("SET TimeZone = 'UTC'")
    return con


def _clean_table(con: "DuckDBPyConnection", name: str, table: Table, p: Params, folder: Path) -> dict[str, Any]:
    pointed = _pointed_contents(table, name, folder / p.paths.clean)
    counts = []
    for file in sorted((folder / p.paths.raw / name).glob("*.parquet")):
        entry = periods.key("clean", periods.content(file), table.model_dump(), pointed, CODE)
        stats = folder / p.paths.clean / f".{name}.json"
        targets = {
            folder / p.paths.clean / name / file.name: "clean.parquet",
            folder / p.paths.quarantine / name / file.name: "quarantine.parquet",
            stats: "stats.json",
        }
        periods.cached(entry, targets, lambda into, file=file: _clean_file(con, table, file, into))  # type: ignore[misc]
        counts.append(json.loads(stats.read_text()))
        stats.unlink()
    return _total(counts)


def _pointed_contents(table: Table, name: str, clean: Path) -> list[str]:
    """The contents of the tables that this one refers to: when they change, so may its bad rows."""
    for other in contract.referenced(table):
        if not (clean / other).is_dir():
            raise ValueError(f"contract.{name} refers to {other}, which must stand above it in params.yaml")
    return [periods.content(file) for other in contract.referenced(table) for file in sorted((clean / other).iterdir())]


def _clean_file(con: "DuckDBPyConnection", table: Table, file: Path, into: Path) -> None:
    """One period: typed rows, bad rows with their reasons, and the counts."""
    import pyarrow.parquet as pq

    names = [name for name in table.columns if name not in TIMES]
    present = pq.read_schema(file).names
    times = [name for name in TIMES if name in present]
    rules = [rule for rule in contract.rules(table) if rule.name.split(":")[0] not in TIMES]
    if times:
        rules.append(Rule("event_time: required", "raw.event_time IS NULL", literal("event_time cannot be told")))
    if table.key:
        rules.append(Rule("key: duplicate", "copy > 1", literal(f"another row has this {', '.join(table.key)}")))
    con.execute(f"CREATE OR REPLACE TEMP TABLE checked AS {_checked_sql(table, names, times, rules, file)}")
    bad = " OR ".join(f"b{i}" for i, rule in enumerate(rules) if rule.counts) or "FALSE"
    typed = ", ".join(f"typed.{quoted(name)} AS {quoted(name)}" for name in names + times)
    raw = ", ".join(f"raw.{quoted(name)} AS {quoted(name)}" for name in names + times)
    reasons = ", ".join(f"CASE WHEN b{i} THEN {rule.reason} END" for i, rule in enumerate(rules) if rule.counts)
    kept = con.sql(f"SELECT {typed} FROM checked WHERE NOT ({bad}) ORDER BY place").to_arrow_table()
    held = con.sql(f"SELECT {raw}, concat_ws('; ', {reasons or 'NULL'}) AS reason FROM checked WHERE {bad} ORDER BY place").to_arrow_table()
    pq.write_table(kept, into / "clean.parquet", compression="zstd")
    pq.write_table(held, into / "quarantine.parquet", compression="zstd")
    (into / "stats.json").write_text(json.dumps(_stats(con, rules, names, len(kept), len(held))))


def _checked_sql(table: Table, names: list[str], times: list[str], rules: list[Rule], file: Path) -> str:
    """Each row as it came (raw), as the contract types it (typed), and a flag b0, b1, ... for every broken rule."""
    fields = [f"{quoted(name)} := {contract.typed(name, table.columns[name])}" for name in names]
    fields += [f"{name} := {name}" for name in times]
    key = ", ".join(f"typed.{quoted(name)}" for name in table.key)
    copies = f"row_number() OVER (PARTITION BY {key} ORDER BY place)" if key else "1"
    flags = ", ".join(f"coalesce({rule.broken}, FALSE) AS b{i}" for i, rule in enumerate(rules))
    return (
        f"WITH arrived AS (SELECT raw, struct_pack({', '.join(fields)}) AS typed, file_row_number AS place "
        f"FROM read_parquet({literal(str(file))}, file_row_number = TRUE) raw), "
        f"counted AS (SELECT *, {copies} AS copy FROM arrived) SELECT *, {flags} FROM counted"
    )


def _stats(con: "DuckDBPyConnection", rules: list[Rule], names: list[str], kept: int, held: int) -> dict[str, Any]:
    sums = [f"count(*) FILTER (b{i})" for i in range(len(rules))]
    nulls = [f"count(*) FILTER (typed.{quoted(name)} IS NULL)" for name in names]
    row = con.execute(f"SELECT {', '.join(sums + nulls)} FROM checked").fetchone() or ()
    broken = {rule.name: count for rule, count in zip(rules, row, strict=False) if count}
    return {
        "rows": kept + held,
        "bad": held,
        "by_rule": {name: count for name, count in broken.items() if _counts(rules, name)},
        "reported": {name: count for name, count in broken.items() if not _counts(rules, name)},
        "nulls": dict(zip(names, row[len(rules) :], strict=True)),
    }


def _counts(rules: list[Rule], name: str) -> bool:
    return next(rule.counts for rule in rules if rule.name == name)


def _total(counts: list[dict[str, Any]]) -> dict[str, Any]:
    """The periods' counts added up."""
    total: dict[str, Any] = {"rows": 0, "bad": 0, "by_rule": {}, "reported": {}, "nulls": {}}
    for each in counts:
        for field, value in each.items():
            if isinstance(value, dict):
                total[field] = {k: total[field].get(k, 0) + value.get(k, 0) for k in {**total[field], **value}}
            else:
                total[field] += value
    return total


def _report(found: dict[str, dict[str, Any]], reports: Path) -> None:
    for name, table in found.items():
        log.info("%s: %s rows, %s of them to quarantine", name, f"{table['rows']:,}", f"{table['bad']:,}")
    periods.publish_json(reports / "quality.json", {"tables": found})
    html = _html(found)
    periods.publish(reports / "quality.html", lambda path: path.write_text(html) and None)


def _judge(found: dict[str, dict[str, Any]], p: Params) -> None:
    for name, table in found.items():
        share = table["bad"] / max(table["rows"], 1)
        if share > p.clean.max_bad_share:
            worst = ", ".join(f"{rule} ({count})" for rule, count in _worst(table))
            raise ValueError(
                f"{name}: `bad rows <= clean.max_bad_share` must hold, but {table['bad']} of {table['rows']} are bad "
                f"({share:.1%} > {p.clean.max_bad_share:.1%}): {worst}. See {p.paths.quarantine / name}; mend the "
                f"source, contract.{name}, or the bound."
            )


def _worst(table: dict[str, Any]) -> list[tuple[str, int]]:
    return sorted(table["by_rule"].items(), key=lambda pair: (-pair[1], pair[0]))[:3]


def _html(found: dict[str, dict[str, Any]]) -> str:
    from jinja2 import Environment

    return Environment(autoescape=True, trim_blocks=True).from_string(PAGE).render(tables=found)


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>data quality</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; color: #222 }
  table { border-collapse: collapse; margin: .5rem 0 1.5rem; width: 100% }
  th, td { text-align: right; padding: .25rem .75rem; border-bottom: 1px solid #e4e4e4 }
  th:first-child, td:first-child { text-align: left } th { font-weight: 600; color: #555 }
  .bad { color: #b3261e } h2 { margin-top: 2rem } .quiet { color: #777 }
</style>
<h1>Data quality</h1>
<table><tr><th>table</th><th>rows</th><th>to quarantine</th><th>share</th></tr>
{% for name, t in tables.items() %}
<tr><td>{{ name }}</td><td>{{ '{:,}'.format(t.rows) }}</td>
<td{% if t.bad %} class="bad"{% endif %}>{{ '{:,}'.format(t.bad) }}</td>
<td>{{ '{:.3%}'.format(t.bad / t.rows if t.rows else 0) }}</td></tr>
{% endfor %}</table>
{% for name, t in tables.items() %}
<h2>{{ name }}</h2>
{% if t.by_rule or t.reported %}<table><tr><th>rule</th><th>rows that break it</th><th>what happens</th></tr>
{% for rule, count in t.by_rule.items() %}
<tr><td>{{ rule }}</td><td class="bad">{{ '{:,}'.format(count) }}</td><td>quarantine</td></tr>
{% endfor %}{% for rule, count in t.reported.items() %}
<tr><td>{{ rule }}</td><td>{{ '{:,}'.format(count) }}</td><td>kept, reported</td></tr>
{% endfor %}</table>{% else %}<p class="quiet">Every row keeps every rule.</p>{% endif %}
<table><tr><th>column</th><th>missing</th><th>share</th></tr>
{% for column, count in t.nulls.items() %}
<tr><td>{{ column }}</td><td>{{ '{:,}'.format(count) }}</td><td>{{ '{:.1%}'.format(count / t.rows if t.rows else 0) }}</td></tr>
{% endfor %}</table>
{% endfor %}</html>
"""


if __name__ == "__main__":
    stage.main("clean", clean)
