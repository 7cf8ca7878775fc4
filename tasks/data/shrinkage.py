"""shrinkage: has a table lost rows since the last ingest? A source that fails in half can look like a whole one."""

from tasks.data import deliveries
from tasks.params import Source


def check_rows(table: str, source: Source, rows: int) -> None:
    """Compare what a source has delivered with what it delivered last.

    Raises:
        ValueError: it has lost more than `max_drop` of its rows.
    """
    last = _read(table, source)
    if last is None or rows >= last * (1 - source.max_drop):
        return
    lost = (last - rows) / last
    raise ValueError(
        f"{table} ({source.shown}) must not lose more than max_drop {source.max_drop:g} of its rows, but has lost "
        f"{lost:.1%}: {rows:,} rows came, {last:,} the last time. Bring the source back, or, where that is "
        f"how it should be, set sources.{table}.max_drop to {min(1.0, int(lost * 100 + 1) / 100):g} for one run."
    )


def note_rows(table: str, source: Source, rows: int) -> None:
    """Keep what a source has delivered for the next comparison."""
    if _read(table, source) != rows:
        deliveries.write_note(deliveries.ROWS, table, source, {"rows": rows})


def _read(table: str, source: Source) -> int | None:
    note = deliveries.read_note(deliveries.ROWS, table, source)
    return int(note["rows"]) if note else None
