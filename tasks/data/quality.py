"""quality: what became of the rows of each table, for programs and as a page, and the bound on bad ones."""

import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tasks import log
from tasks.params import Params
from tasks.runtime import files

Counts = dict[str, Any]  # rows, bad, superseded, and by rule or column: by_rule, reported, nulls


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
    """Raises ValueError when a table has more bad rows than clean.max_bad_share, or a column has another unit."""
    reasons = []
    for name, table in tables.items():
        reasons += [f"{name}: {_describe_unit(name, column, change)}" for column, change in table["units"].items()]
        if _bad_share(table) > p.clean.max_bad_share:
            worst = ", ".join(f"{rule} ({count})" for rule, count in _most_first(table["by_rule"])[:3])
            reasons.append(
                f"{name}: `bad rows <= clean.max_bad_share` must hold, but {table['bad']} of {table['rows']} are bad "
                f"({_bad_share(table):.1%} > {p.clean.max_bad_share:.1%}): {worst}. See {p.paths.quarantine / name}; "
                f"mend the source, contract.{name}, or the bound."
            )
    if reasons:
        raise ValueError("\n".join(reasons))


def _describe_unit(table: str, column: str, change: dict[str, Any]) -> str:
    before, since = (", ".join(f"{value:.4g}" for value in change[side]) for side in ("before", "since"))
    return (
        f"{column} seems to have another unit since {change['period']}: its percentiles 10, 50 and 90 were {before} "
        f"and are {since}, as by {change['conversion']}. Bring the old unit back, where need be by an expression in "
        f"sources.{table}.derive; or, where that is right, set contract.{table}.columns.{column}.scale to free."
    )


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
    changes = [_describe_unit(name, column, change) for column, change in table["units"].items()]
    return "\n".join(
        [
            f'<h2 id="{html.escape(name)}">{html.escape(name)}</h2>',
            f'<p class="soft">{html.escape(total + lacking)}</p>',
            *(f'<p class="bad">{html.escape(change)}</p>' for change in changes),
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
