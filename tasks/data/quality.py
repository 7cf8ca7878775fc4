"""How many rows of each table are bad, and why: reports/quality.json for programs, quality.html for people."""

import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb

from tasks import log
from tasks.data.contract import Rule
from tasks.params import Params
from tasks.runtime import files
from tasks.runtime.sql import quote

Counts = dict[str, Any]  # rows, bad, superseded, and by rule or column: by_rule, reported, nulls


def count_rows(con: duckdb.DuckDBPyConnection, rules: list[Rule], names: list[str]) -> Counts:
    """Of one period's table `_checked`, which clean has made."""
    whole = ("TRUE", "bad", "loses AND NOT bad", "loses AND bad")
    flags = [f"b{i}" for i in range(len(rules))]
    nulls = [f"typed.{quote(name)} IS NULL" for name in names]
    columns = ", ".join(f"count(*) FILTER ({where})" for where in (*whole, *flags, *nulls))
    rows, bad, superseded, doubled, *others = con.execute(f"SELECT {columns} FROM _checked").fetchall()[0]
    broken = [(rule, count) for rule, count in zip(rules, others, strict=False) if count]
    by_rule = {rule.name: count for rule, count in broken if rule.is_bad}
    return {
        "rows": rows,
        "bad": bad,
        "superseded": superseded,
        "by_rule": by_rule | ({"key: duplicate": doubled} if doubled else {}),
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
        style = "bad" if _bad_share(table) > max_bad_share else "some" if table["bad"] else "none"
        link = f'<a href="#{html.escape(name)}">{html.escape(name)}</a>'
        marked = [f'<span class="{style}">{text}</span>' for text in (f"{table['bad']:,}", f"{_bad_share(table):.3%}")]
        overview.append((link, f"{table['rows']:,}", *marked))
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
    rules = _render_table(("rule", "rows that break it", "what happens"), broken)
    missing = []
    for column, count in _most_first(table["nulls"]):
        share = f"{count / max(table['rows'], 1):.1%}"
        if count:
            bar = f'<div class="bar" style="width: {share}"></div>'
            missing.append((html.escape(column), f"{count:,}", share, bar))
    full = len(table["nulls"]) - len(missing)
    return "\n".join(
        [
            f'<h2 id="{html.escape(name)}">{html.escape(name)}</h2>',
            f'<p class="soft">{html.escape(total + lacking)}</p>',
            rules if broken else '<p class="soft">Every row keeps every rule.</p>',
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
