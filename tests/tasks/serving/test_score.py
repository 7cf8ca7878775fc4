"""tasks.serving.score after a bent clock: what was stored of a time beyond the data neither hides nor ends anything."""

from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa

from tasks.data.featurerows import Rows
from tasks.promotion.registry import Version
from tasks.serving import score
from tests.tasks import journalled

BEGIN, BENT = datetime(2024, 5, 1), datetime(2031, 1, 1)
TIMES = np.datetime64(BEGIN, "us") + np.arange(300) * np.timedelta64(1, "h")
NONE = np.full(300, np.nan)
ROWS = Rows(pa.table({"x": NONE}), TIMES, TIMES, NONE, pa.table({"key": np.arange(300)}))
ENTRIES = score.subjects_of_keys(ROWS)
LAST = BEGIN + timedelta(days=13)


def made(entries: list[str], times: list[datetime]) -> pa.Table:
    return journalled.predictions(entries, event_time=times)


def champion(as_of: datetime, newest: datetime | None = None) -> Version:
    tags = {"evergreen.data.to": str(newest)} if newest else {}
    return Version(1, "run", "decision", "record", as_of, "commit", tags)


def arrived(journalled: pa.Table, by: Version) -> int:
    possible = score._possible(journalled, LAST)
    return int(score._arrived(ROWS, ENTRIES, possible, by, LAST, LAST).sum())


def test_a_champion_of_2031_predicts_every_row_after_the_mend() -> None:
    assert arrived(made([], []), champion(BENT)) == 300
    assert arrived(made([], []), champion(BENT, BENT)) == 300


def test_a_champion_that_was_forced_ahead_predicts_what_it_has_not_seen() -> None:
    newest = BEGIN + timedelta(hours=99)
    assert champion(BENT, newest).learnt_until == newest + timedelta(microseconds=1)
    assert arrived(made([], []), champion(BENT, newest)) == 200


def test_a_row_that_was_journalled_under_a_wrong_date_is_predicted_in_its_place_once() -> None:
    before = made([str(ENTRIES[5])], [BENT])
    assert arrived(before, champion(BEGIN)) == 300
    new = score._name_again(made([str(each) for each in ENTRIES], TIMES.tolist()), before)
    assert len(set(new["entry"].to_pylist()) | {str(ENTRIES[5])}) == 301  # the journal tells rows apart by their name
    assert set(new["subject"].to_pylist()) == set(ENTRIES)
    assert arrived(pa.concat_tables([before, new]), champion(BEGIN)) == 0
