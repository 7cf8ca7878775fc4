"""clean: the contract applied to data/raw → data/clean, typed; what breaks a rule → data/quarantine, with its reasons.

    python -m tasks.clean

No row is lost: rows in = rows clean + rows in quarantine. The quality report (reports/quality.json and .html) counts
every rule. A table with more bad rows than clean.max_bad_share fails the stage, after its report is written. Work goes
by period: a key that comes back in another period is reported, and kept.
"""

import html
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import contract, periods, stage, survey
from tasks.contract import Rule, literal, quoted
from tasks.params import TIMES, Params, Table

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger("evergreen")
CODE = periods.source_of(__file__, contract.__file__, str(survey.__file__))
Counts = dict[str, Any]  # rows, bad, and by rule or column: by_rule, reported, nulls


def clean(p: Params, folder: Path = Path()) -> None:
    """Write <clean>, <quarantine> and the quality report. Raises ValueError when too many rows of a table are bad."""
    con = stage.connect(p)
    for output in (p.paths.clean, p.paths.quarantine):
        shutil.rmtree(folder / output, ignore_errors=True)
        (folder / output).mkdir(parents=True)
    found = {name: _clean_table(con, name, p, folder) for name in contract.in_order(p.contract)}
    _report({name: found[name] for name in p.contract}, p, folder / p.paths.reports)
    _judge(found, p)


def _clean_table(con: "DuckDBPyConnection", name: str, p: Params, folder: Path) -> Counts:
    table, cleaned = p.contract[name], folder / p.paths.clean / name
    pointed = _pointed_contents(table, folder / p.paths.clean)
    counts = []
    for file in sorted((folder / p.paths.raw / name).glob("*.parquet")):
        targets = {cleaned / file.name: "clean.parquet", folder / p.paths.quarantine / name / file.name: "held.parquet"}
        counts.append(_clean_period(con, table, file, pointed, targets))
    files = [literal(str(file)) for file in sorted(cleaned.glob("*.parquet"))]
    if files:
        con.execute(f"CREATE VIEW {quoted(name)} AS FROM read_parquet([{', '.join(files)}])")
    else:  # nothing of it was known by as_of
        con.execute(f"CREATE TABLE {quoted(name)} ({contract.columns_sql(table)})")
    return _total([*counts, _across_periods(con, name, table)])


def _pointed_contents(table: Table, clean: Path) -> list[str]:
    """The contents of the tables that this one refers to: when they change, so may its bad rows."""
    return [periods.content(file) for other in contract.referenced(table) for file in sorted((clean / other).glob("*"))]


def _clean_period(
    con: "DuckDBPyConnection", table: Table, file: Path, pointed: list[str], targets: dict[Path, str]
) -> Counts:
    entry = periods.key("clean", periods.content(file), table.model_dump(), pointed, CODE)
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts.json"
        periods.cached(entry, {**targets, counts: counts.name}, lambda into: _clean_file(con, table, file, into))
        return dict(json.loads(counts.read_text()))


def _clean_file(con: "DuckDBPyConnection", table: Table, file: Path, into: Path) -> None:
    """One period: typed rows, bad rows with their reasons, and the counts."""
    import pyarrow.parquet as pq

    columns = pq.read_schema(file).names
    times = [name for name in TIMES if name in columns]
    names = [name for name in table.columns if name not in TIMES]
    rules = _rules(table, timed=bool(times), outliers=survey.OUTLIER in columns)
    con.execute(f"CREATE OR REPLACE TEMP TABLE _checked AS {_checked_sql(table, names, times, rules, file)}")
    typed = ", ".join(f"typed.{quoted(name)} AS {quoted(name)}" for name in names + times)
    raw = ", ".join(f"raw.{quoted(name)} AS {quoted(name)}" for name in names + times)
    reasons = ", ".join(f"CASE WHEN b{i} THEN {rule.reason} END" for i, rule in enumerate(rules) if rule.counts)
    kept = con.sql(f"SELECT {typed} FROM _checked WHERE NOT bad ORDER BY place").to_arrow_table()
    held = f"SELECT {raw}, concat_ws('; ', {reasons or 'NULL'}) AS reason FROM _checked WHERE bad ORDER BY place"
    pq.write_table(kept, into / "clean.parquet", compression="zstd")
    pq.write_table(con.sql(held).to_arrow_table(), into / "held.parquet", compression="zstd")
    periods.publish_json(into / "counts.json", _counts(con, rules, names))


def _rules(table: Table, *, timed: bool, outliers: bool) -> list[Rule]:
    """The contract's, then those that concern the whole row. Of two rows with one key the first good one is kept."""
    found = [rule for rule in contract.rules(table) if rule.name.split(":")[0] not in TIMES]
    if timed:
        found.append(Rule("event_time: required", "raw.event_time IS NULL", literal("event_time cannot be told")))
    if outliers:
        found.append(Rule("time: outlier", f"raw.{survey.OUTLIER} IS NOT NULL", f"raw.{survey.OUTLIER}"))
    if table.key:
        key = ", ".join(f"typed.{quoted(name)}" for name in table.key)
        copy = f"row_number() OVER (PARTITION BY {key} ORDER BY bad, place) > 1"
        found.append(Rule("key: duplicate", copy, literal(f"another row has this {', '.join(table.key)}")))
    return found


def _checked_sql(table: Table, names: list[str], times: list[str], rules: list[Rule], file: Path) -> str:
    """Each row as it came (raw), as the contract types it (typed), and a flag b0, b1, ... for every broken rule."""
    fields = [f"{quoted(name)} := {contract.typed(name, table.columns[name])}" for name in names]
    fields += [f"{name} := {name}" for name in times]
    alone = rules[: -1 if table.key else None]
    sql = (
        f"SELECT raw, struct_pack({', '.join(fields)}) AS typed, file_row_number AS place "
        f"FROM read_parquet({literal(str(file))}, file_row_number = TRUE) raw"
    )
    flags = "".join(f", coalesce({rule.broken}, FALSE) AS b{i}" for i, rule in enumerate(alone))
    sql = f"SELECT *, {_any(alone)} AS bad FROM (SELECT *{flags} FROM ({sql}))"
    if table.key:
        copy = f"b{len(alone)}"
        return f"SELECT * REPLACE (bad OR {copy} AS bad) FROM (SELECT *, {rules[-1].broken} AS {copy} FROM ({sql}))"
    return sql


def _any(rules: list[Rule]) -> str:
    return " OR ".join(f"b{i}" for i, rule in enumerate(rules) if rule.counts) or "FALSE"


def _counts(con: "DuckDBPyConnection", rules: list[Rule], names: list[str]) -> Counts:
    sums = [f"count(*) FILTER (b{i})" for i in range(len(rules))]
    nulls = [f"count(*) FILTER (typed.{quoted(name)} IS NULL)" for name in names]
    rows, bad, *found = con.execute(
        f"SELECT {', '.join(['count(*)', 'count(*) FILTER (bad)', *sums, *nulls])} FROM _checked"
    ).fetchall()[0]
    broken = [(rule, count) for rule, count in zip(rules, found, strict=False) if count]
    return {
        "rows": rows,
        "bad": bad,
        "by_rule": {rule.name: count for rule, count in broken if rule.counts},
        "reported": {rule.name: count for rule, count in broken if not rule.counts},
        "nulls": dict(zip(names, found[len(rules) :], strict=True)),
    }


def _across_periods(con: "DuckDBPyConnection", name: str, table: Table) -> Counts:
    """How many keys come back in another period; of one period's, `_clean_file` has seen to it."""
    if not table.key or "event_time" in table.key:
        return {}
    key = ", ".join(quoted(each) for each in table.key)
    again = con.execute(f"SELECT count(*) FROM (FROM {quoted(name)} SELECT {key} GROUP BY ALL HAVING count(*) > 1)")
    count = again.fetchall()[0][0]
    return {"reported": {"key: again in another period": count}} if count else {}


def _total(counts: list[Counts]) -> Counts:
    """The periods' counts added up."""
    total: Counts = {"rows": 0, "bad": 0, "by_rule": {}, "reported": {}, "nulls": {}}
    for each in counts:
        for field, value in each.items():
            if isinstance(value, dict):
                total[field] = {k: total[field].get(k, 0) + value.get(k, 0) for k in {**total[field], **value}}
            else:
                total[field] += value
    return total


def _report(found: dict[str, Counts], p: Params, reports: Path) -> None:
    for name, table in found.items():
        log.info("%s: %s rows, %s of them to quarantine", name, f"{table['rows']:,}", f"{table['bad']:,}")
    periods.publish_json(reports / "quality.json", {"tables": found})
    periods.publish_text(reports / "quality.html", _page(found, p))


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
            rules if broken else '<p class="soft">Every row keeps every rule.</p>',
            _table(("column", "missing", "share", ""), missing) if missing else "",
            f'<p class="soft">{full} of {len(table["nulls"])} columns have a value in every row.</p>',
        ]
    )


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
