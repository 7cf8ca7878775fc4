"""monitoring.signal: what the journal holds of a signal is read as it was measured."""

from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from tasks.monitoring import signal
from tasks.monitoring.signal import Signal, append_signals, read_signals
from tasks.params import Journal
from tasks.serving.journal import open_journal

END = datetime(2024, 6, 1)


@pytest.mark.parametrize("newer", [[], [Signal("drift", END, END + timedelta(days=7), 1, 900, False, "No.", 0.1, 0.0)]])
def test_a_row_that_lacks_a_newer_column_takes_its_default(
    newer: list[Signal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = Signal("drift", END - timedelta(days=7), END, 1, 900, True, "Drift.", value=0.5, reference=0.2)
    whole = signal.SCHEMA
    with closing(open_journal(Journal(), home=tmp_path)) as journal:
        monkeypatch.setattr(signal, "SCHEMA", pa.schema([one for one in whole if one.name != "low"]))
        append_signals(journal, [older])
    monkeypatch.setattr(signal, "SCHEMA", whole)
    with closing(open_journal(Journal(), home=tmp_path)) as journal:
        append_signals(journal, newer)
        assert read_signals(journal) == [older, *newer]
