"""init: look at a table, and write params.yaml and tasks/features.sql for it.

    evergreen init data.csv --time date --label "delay > 15"

What was guessed is listed with its reason, and stands beside each setting. What the table cannot tell is a question,
with the flag that answers it. Work that git does not hold is never replaced: without --force both files must be as they
were committed, or as init wrote them.
"""

import os
import re
import subprocess
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks import params
from tasks.data import feasibility, featuresql
from tasks.drafting.draft import Draft, make_draft
from tasks.drafting.sheet import open_sheet
from tasks.drafting.wishes import Guess, Kind, Wishes
from tasks.drafting.yamldraft import apply_draft
from tasks.params import Source, Task
from tasks.runtime import files

SETTINGS = Path("params.yaml")
WRITTEN = "drafted"  # the folder in the home that holds both files as init wrote them last
Names = Annotated[  # in a terminal: carrier,origin
    list[str] | None,
    Parameter(converter=lambda _type, tokens: ",".join(token.value for token in tokens).split(","), n_tokens=1),
]
Length = Annotated[
    timedelta | None, Parameter(converter=lambda _type, tokens: params.parse_duration(tokens[0].value), n_tokens=1)
]


def main(
    table: str,
    *,
    query: str | None = None,
    watermark: str | None = None,
    password: str | None = None,
    time: str | None = None,
    label: str | None = None,
    task: Task | None = None,
    known_at: str | None = None,
    delay: Length = None,
    lead: Length = None,
    kind: Kind | None = None,
    entity: Names = None,
    key: Names = None,
    known: Names = None,
    outcome: Names = None,
    model: str | None = None,
    change: bool = False,
    force: bool = False,
) -> None:
    """Look at a table, and write params.yaml and tasks/features.sql for it.

    Args:
        table: A CSV, Parquet or JSON lines file, a .zip or .gz of one, files by *, or an address as in params.yaml.
        query: Of a database, postgresql://user@host/name: a table's name, or a SELECT.
        watermark: A column of the query that grows, such as the time of a row's last change: later only newer rows are
            read. Empty: all, each time.
        password: The environment variable that holds the database's password. Empty: PGPASSWORD.
        time: When a row happened: a column, or SQL over the columns. Empty: the one column that holds times.
        label: What to predict: a column, or SQL over the columns, such as "delay > 15". Empty: the one likely column.
        task: binary, multiclass or regression. Empty: by the label's values.
        known_at: When the outcome became known: a column of times, or SQL. Empty: --delay after the event.
        delay: How long after a row's event its outcome is known, such as 2d. Empty: a step of a series, else a day.
        lead: How long before its event a prediction is asked, such as 2h. Empty: at the event's own time.
        kind: series: one row a step of time, all columns measured together. events: rows that come as they come.
            Empty: by how even the rows lie in time.
        entity: The columns over which lags are taken, such as store,product. Empty: what tells series apart.
        key: The columns that tell rows apart; event_time may be one. Empty: those that do.
        known: Columns that are known when a prediction is asked, though the guess is otherwise.
        outcome: Columns that become known only with the label, though the guess is otherwise.
        model: The registered model's name. Empty: the file's.
        change: Of a series of numbers, predict the change since the newest known value, in place of the value.
        force: Replace params.yaml and features.sql although git does not hold them; copies are left beside them.
    """
    wishes = Wishes(
        time=time,
        label=label,
        task=task,
        known_at=known_at,
        delay=delay,
        lead=lead or timedelta(0),
        kind=kind,
        key=tuple(key or ()),
        entity=tuple(entity or ()),
        known=tuple(known or ()),
        outcome=tuple(outcome or ()),
        model=model,
        change=change,
    )
    checkout = Path.cwd()
    p = params.load(checkout / SETTINGS)
    lost = find_unsaved(checkout)
    if lost and not force:
        raise ValueError(
            f"{' and '.join(map(str, lost))} hold work that git does not: commit it, or give --force, which leaves "
            "copies beside them"
        )
    source = describe_source(spell_address(table, checkout), query, watermark, password)
    with open_sheet(p, source) as sheet:
        draft = make_draft(sheet, wishes, source=source, stem=name_stem(query_name(query) or table))
    if watermark and not draft.has_key:
        raise ValueError("--watermark needs a key: of a changed row both versions come, and the newer wins. Give --key")
    text = apply_draft((checkout / SETTINGS).read_text(encoding="utf-8"), draft.sections, draft.values, draft.guesses)
    problems = try_draft(text, draft)
    copies = write_draft(checkout, text, draft.sql, keep=lost)
    show(draft, table, problems, copies)


def spell_address(table: str, checkout: Path) -> str:
    """The address of a source; a file below the checkout is relative to it, another absolute."""
    if "://" in table:
        return table
    path = Path(os.path.abspath(Path(table).expanduser()))  # not resolved: a link may be meant to be moved
    return str(path.relative_to(checkout)) if path.is_relative_to(checkout) else str(path)


def describe_source(address: str, query: str | None, watermark: str | None, password: str | None) -> Source:
    """Raises ValueError, in the words of params.yaml, where these do not go together."""
    try:
        return Source(address=address, query=query, watermark=watermark, password=password)
    except ValidationError as error:
        messages = [str(one["ctx"]["error"] if "ctx" in one else one["msg"]) for one in error.errors()]
        raise ValueError("; ".join(messages)) from None  # without the address: it may hold a password


def query_name(query: str | None) -> str | None:
    """The table that a query is the name of, without its schema."""
    return query.rpartition(".")[2] if query and re.fullmatch(r"[\w.]+", query) else None


def name_stem(table: str) -> str:
    """flights from data/flights.csv.zip and from data/flights*.csv."""
    packed = r"(\.(csv|tsv|txt|parquet|jsonl|ndjson|zip|gz))+$"
    stem = re.sub(packed, "", table.rstrip("/").rpartition("/")[2], flags=re.IGNORECASE)
    return stem.replace("*", " ").strip(" -_.") or "rows"


# --- what is there already -------------------------------------------------------------------------------------------


def find_unsaved(checkout: Path) -> list[Path]:
    """Which of the two files hold what neither git has committed nor init has written."""
    written = params.home(checkout) / WRITTEN
    return [
        path
        for path in (SETTINGS, featuresql.SQL)
        if (checkout / path).exists()
        and not _is_committed(checkout, path)
        and not _is_same(checkout / path, written / path.name)
    ]


def _is_committed(checkout: Path, path: Path) -> bool:
    command = ["git", "status", "--porcelain", "--ignored", "--", str(path)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    return done.returncode == 0 and not done.stdout.strip()


def _is_same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()


# --- what is written -------------------------------------------------------------------------------------------------


def try_draft(text: str, draft: Draft) -> list[feasibility.Problem]:
    """What a table has too few rows for. Raises ValueError where the draft does not fit itself: nothing is written."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / featuresql.SQL).parent.mkdir()
        (Path(folder) / featuresql.SQL).write_text(draft.sql, encoding="utf-8")
        (Path(folder) / SETTINGS).write_text(text, encoding="utf-8")
        p = params.load(Path(folder) / SETTINGS)
        feasibility.dry_run(p, Path(folder))
    return feasibility.find_problems(draft.times, draft.as_of, p)


def write_draft(checkout: Path, text: str, sql: str, *, keep: list[Path]) -> list[Path]:
    """Write both files, and what stands in their place to a copy for each in `keep`. Returns the copies."""
    copies = [keep_copy(checkout / path) for path in keep]
    written = params.home(checkout) / WRITTEN
    for path, content in ((featuresql.SQL, sql), (SETTINGS, text)):
        files.publish_text(written / path.name, content)
        files.publish_text(checkout / path, content)
    return copies


def keep_copy(path: Path) -> Path:
    number, target = 1, path.with_name(f"{path.name}.before")
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.before{number}")
    files.publish_text(target, path.read_text(encoding="utf-8"))
    return target


# --- what a person sees ----------------------------------------------------------------------------------------------


def show(draft: Draft, table: str, problems: list[feasibility.Problem], copies: list[Path]) -> None:
    console = Console(highlight=False)
    console.print(f"{escape(table)}: {draft.rows:,} rows. What was guessed, and why:\n", soft_wrap=True)
    console.print(_tabulate([guess for guess in draft.guesses if not guess.is_open]))
    if questions := [guess for guess in draft.guesses if guess.is_open]:
        console.print("\nWhat the table does not tell. Is it right?\n")
        console.print(_tabulate(questions))
    for problem in problems:
        console.print(f"\n[bold]{problem.setting}[/bold]  {escape(problem.message)}")
    for copy in copies:
        console.print(f"\nWhat stood there before is in {copy.name}.")
    console.print(
        f"\nWritten: {SETTINGS} and {featuresql.SQL}, with {len(draft.features)} features. Next:\n\n"
        "  evergreen check      reads them against the data\n"
        "  evergreen retrain    makes a first model, and judges it\n"
    )


def _tabulate(guesses: list[Guess]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold", max_width=40)
    table.add_column(overflow="fold")
    for guess in guesses:
        change: Any = f" [dim]({escape(guess.change)})[/dim]" if guess.change else ""
        table.add_row(escape(guess.setting), escape(guess.value), escape(guess.why) + change)
    return table
