"""check: read params.yaml and features.sql against the data, before anything runs.

    evergreen check

Every source is fetched and read, each row is held against the contract, all SQL is tried on empty tables, and lengths
and counts are compared with when the rows come. Nothing is written. Every fault is named with the way out; the exit
status is 1 where there is one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import duckdb
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks import params
from tasks.data import contract, expressions, feasibility, featurerows, featuresql, feeds, ingest, sqlcheck, timeline
from tasks.params import FAULT, TIMES, Params, to_utc
from tasks.runtime import stage
from tasks.runtime.sql import literal, quote, time_sql

Kind = Literal["fault", "note", "fine"]
FEW_LABELS = 0.5  # of the rows that are old enough: with fewer a label is most likely read wrongly
MOST_RULES = 5  # of a table that are shown


@dataclass(frozen=True)
class Finding:
    """One line of the report. A fault stops a retrain; a note may be what is meant."""

    kind: Kind
    place: str
    message: str


def main() -> int:
    """Read params.yaml and features.sql against the data, before anything runs."""
    console = Console(highlight=False)
    findings = []
    for finding in check(params.load()):
        findings.append(finding)
        console.print(_tabulate(finding))
    faults = sum(finding.kind == "fault" for finding in findings)
    console.print(f"\n{faults} fault{'s' * (faults != 1)}." if faults else "\nNo fault. Next: evergreen retrain")
    return 1 if faults else 0


def _tabulate(finding: Finding) -> Table:
    colour = {"fault": "bold red", "note": "yellow", "fine": "green"}[finding.kind]
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(width=6, style=colour)
    table.add_column(min_width=16, no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    table.add_row(finding.kind, finding.place, escape(finding.message))
    return table


def check(p: Params) -> Iterator[Finding]:
    """Each finding as soon as it is made."""
    try:
        stage.check_settings(p)
    except ValueError as error:
        yield Finding("fault", "params.yaml", str(error))
    try:
        features = feasibility.dry_run(p)
    except (ValueError, OSError) as error:
        yield Finding("fault", "SQL", str(error))
    else:
        yield Finding("fine", "SQL", f"runs on empty tables: {len(features)} features")
        yield from _check_names(p, features)
    yield from _check_tables(p)


def _check_names(p: Params, features: list[str]) -> Iterator[Finding]:
    """Settings that name features."""
    try:
        featuresql.check_slices(p.evaluate.slices, features)
    except ValueError as error:
        yield Finding("fault", "evaluate.slices", str(error))
    try:
        featurerows.check_offset(p.train.offset or features[0], features)
    except ValueError as error:
        yield Finding("fault", "train.offset", str(error))


def _check_tables(p: Params) -> Iterator[Finding]:
    has_pii = any(column.pii for table in p.contract.values() for column in table.columns.values())
    try:
        key = contract.load_pii_key() if has_pii else b""
        reader = feeds.Reader(p, ingest.fetch_feeds(p, contract.identify_key(key) if key else None), key)
    except (ValueError, OSError) as error:
        yield Finding("fault", "sources", str(error))
        return
    for name, feed in reader.feeds.items():
        try:
            with reader.open_table(feed):
                pass
        except (ValueError, OSError) as error:
            yield Finding("fault", name, f"{error} The tables below it were not read.")
            return
    for feed in reader.feeds.values():
        yield from _check_rows(p, reader, feed)
    yield from _check_spine(p, reader)


def _check_rows(p: Params, reader: feeds.Reader, feed: feeds.Feed) -> Iterator[Finding]:
    """How many rows break the contract, by rule."""
    con, name = reader.con, feed.name
    rules = list(_list_rules(reader, feed))
    broken = [f"({rule.broken})" for rule in rules]
    either = " OR ".join(f"coalesce(b{i}, FALSE)" for i, rule in enumerate(rules) if rule.is_bad) or "FALSE"
    flags = "".join(f", {sql} AS b{i}" for i, sql in enumerate(broken))
    counts = "".join(f", count(*) FILTER (b{i})" for i in range(len(rules)))
    span = ", min(event_time), max(event_time)" if feed.has_times else ", NULL, NULL"
    times = ", event_time" if feed.has_times else ""
    checked = f"(SELECT TRUE AS one{times}{flags} FROM {quote(name)})"
    rows, all_bad, first, last, *counted = con.execute(
        f"SELECT count(*), count(*) FILTER ({either}){span}{counts} FROM {checked}"
    ).fetchall()[0]
    if not rows:
        yield Finding("fault", name, f"{feed.source.address} has no rows")
        return
    when = f", {first:%Y-%m-%d} to {last:%Y-%m-%d}" if first else ""
    yield Finding("fine", name, f"{rows:,} rows{when}, {len(feed.columns)} columns")
    share = all_bad / rows
    shown = sorted(((n, rule.name) for n, rule in zip(counted, rules, strict=True) if n and rule.is_bad), reverse=True)
    reasons = "; ".join(f"{rule} {n:,}" for n, rule in shown[:MOST_RULES])
    if share > p.clean.max_bad_share:
        yield Finding(
            "fault",
            name,
            f"{share:.1%} of the rows break the contract ({reasons}), more than clean.max_bad_share "
            f"({p.clean.max_bad_share:.1%}). Mend contract.{name} or the source.",
        )
    elif all_bad:
        yield Finding("note", name, f"to quarantine go {all_bad:,} rows ({reasons})")


def _list_rules(reader: feeds.Reader, feed: feeds.Feed) -> Iterator[contract.Rule]:
    """The contract's rules, and those of a source's expressions."""
    kinds = dict(reader.con.execute(f"SELECT column_name, column_type FROM (DESCRIBE {quote(feed.name)})").fetchall())
    texts = {column for column in feed.columns if kinds[contract.raw_name(column)[1:-1]] == "VARCHAR"}
    yield from (rule for rule in contract.build_rules(feed.table, texts=texts) if rule.name.split(":")[0] not in TIMES)
    for step in expressions.list_steps(feed.source):
        yield contract.Rule(f"{step.setting}: fails", f"list_contains({FAULT}, {literal(step.setting)})", "''")
        if step.name == "event_time":
            yield contract.Rule(f"{step.setting}: missing", "event_time IS NULL", "''")


def _check_spine(p: Params, reader: feeds.Reader) -> Iterator[Finding]:
    """What a retrain would find: rows enough as of now, and labels that can be learnt."""
    feed, con = reader.feeds[p.spine.table], reader.con
    if not feed.table.key:
        yield Finding(
            "note",
            feed.name,
            f"contract.{feed.name}.key is empty: a model can be trained, but score cannot tell its predictions apart. "
            "Name the columns that tell rows apart.",
        )
    known = timeline.known_sql(feed.outcomes)
    reach = timeline.measure_reach(con, quote(feed.name), known)
    if reach is None:
        yield Finding("fault", feed.name, f"no row has an event time: mend sources.{feed.name}.event_time")
        return
    now = reach.now(deadline=p.label.deadline, today=datetime.now(UTC).replace(tzinfo=None))
    as_of = to_utc(p.clock.as_of) if p.clock.as_of else now
    usual = f"({timeline.outlier_sql(reach, known)}) IS NULL"
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE _mature AS SELECT *, known_at <= least({time_sql(as_of)}, event_time + INTERVAL "
        f"{int(p.label.deadline.total_seconds())} SECOND) AS _is_known FROM {quote(feed.name)} "
        f"WHERE event_time <= {time_sql(as_of)} AND {usual}"
    )
    rows = con.sql("SELECT event_time FROM _mature ORDER BY 1").fetchnumpy()["event_time"]
    yield Finding("fine", "as_of", f"{as_of}: {len(rows):,} rows by then")
    for problem in feasibility.find_problems(np.asarray(rows, "datetime64[us]"), as_of, p):
        yield Finding("fault" if problem.stops else "note", problem.setting, problem.message)
    yield from _check_label(p, reader, as_of)


def _check_label(p: Params, reader: feeds.Reader, as_of: datetime) -> Iterator[Finding]:
    end = as_of - p.label.deadline
    before = "SELECT count(*), count(v), count(DISTINCT v) FROM (SELECT CASE WHEN _is_known THEN ("
    expression = p.label.expression
    try:
        rows, labelled, distinct = reader.con.execute(
            f"{before}{expression}\n) END AS v FROM _mature WHERE event_time <= {time_sql(end)})"
        ).fetchall()[0]
    except duckdb.Error as error:
        yield Finding("fault", "label", sqlcheck.explain(error, expression, setting="label.expression", before=before))
        return
    if not rows:
        return
    share = labelled / rows
    words = f"{share:.1%} of {rows:,} rows older than label.deadline have one, of {distinct:,} values"
    if distinct < 2:
        yield Finding("fault", "label", f"{words}: nothing can be learnt. Mend label.expression or label.deadline.")
    elif share < FEW_LABELS:
        yield Finding("note", "label", f"{words}: is label.deadline long enough, and known_at right?")
    else:
        yield Finding("fine", "label", words)
