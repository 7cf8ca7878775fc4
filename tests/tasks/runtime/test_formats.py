"""tasks.runtime.formats: a file of another version is refused with the way out."""

import pytest

from tasks.runtime.formats import Format


def test_a_format_takes_its_own_mark_alone() -> None:
    journal = Format("journal", 2)
    journal.check("journal/2", "a.parquet")
    for mark in ("journal/1", "journal/3", "ledger/2", None):
        with pytest.raises(ValueError, match=r"^a\.parquet is in format .* reads journal/2.* EVERGREEN_HOME"):
            journal.check(mark, "a.parquet")
