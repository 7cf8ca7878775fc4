"""Late and corrected rows rewrite their periods; one that ended longer ago than ingest.lateness must not change.

Orders are of 61 days from 2024-01-01: January ended 30 days before the end of the data, February one.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import params
from tests.conftest import Made

BOUND = {"ingest.lateness": "30d"}
JANUARY, FEBRUARY = "2024-01-09 10:00:00", "2024-02-09 10:00:00"


def orders(made: Made) -> Path:
    return made.folder / "source" / "orders.csv"


def row(number: int, placed: str, *, delay: int = 20) -> str:
    return f"{number},{placed},person1@example.org,north,20.0,3.0,{delay}\n"


def ingest(made: Made, **changes: object) -> None:
    made.run("ingest", p=made.params(**{**BOUND, **changes}))


def test_late_rows_within_the_bound_change_their_period_and_the_log_names_it(
    made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ingest(made)
    before = {path.name: path.read_bytes() for path in (made.folder / "data/raw/orders").iterdir()}
    with orders(made).open("a") as stream:
        stream.write(row(90_001, FEBRUARY))
    ingest(made)
    after = {path.name: path.read_bytes() for path in (made.folder / "data/raw/orders").iterdir()}
    assert [name for name in sorted(after) if before[name] != after[name]] == ["2024-02.parquet"]
    assert "orders: late or corrected rows have changed 2024-02 (" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + row(90_001, JANUARY),  # a row that came late
        lambda text: text.replace(",person", ",other-person", 1),  # a corrected one: the first is of January
        lambda text: "".join(line for line in text.splitlines(keepends=True) if ",2024-01-05 " not in line),
    ],
)
def test_a_period_that_ended_before_the_bound_is_held_until_a_person_allows_its_change(
    made: Made, change: Callable[[str], str]
) -> None:
    ingest(made)
    whole = orders(made).read_text()
    orders(made).write_text(change(whole))
    message = (
        r"orders \(source/orders\.csv\) must not change a period that ended more than ingest\.lateness 30d before the "
        r"end of the data, which was 2024-03-\S+ \S+ at the last ingest, but has changed 2024-01 \([\d,]+ rows before, "
        r"[\d,]+ now\)\. .* set ingest\.lateness to 31d for one run"
    )
    for _ in range(2):  # it is no more right for having failed
        with pytest.raises(ValueError, match=message):
            ingest(made)
    ingest(made, **{"ingest.lateness": "31d"})
    ingest(made)  # it is the new measure
    orders(made).write_text(whole)
    with pytest.raises(ValueError, match=r"has changed 2024-01"):
        ingest(made)


def test_a_whole_period_that_comes_late_or_goes_is_a_change(made: Made) -> None:
    lines = orders(made).read_text().splitlines(keepends=True)
    later = [line for line in lines if ",2024-01-" not in line]
    ingest(made)
    orders(made).write_text("".join(later))
    with pytest.raises(ValueError, match=r"2024-01 \([\d,]+ rows before, 0 now\)"):
        ingest(made, **{"sources.orders.max_drop": 1})
    ingest(made, **{"sources.orders.max_drop": 1, "ingest.lateness": "90d"})
    orders(made).write_text("".join(lines))
    with pytest.raises(ValueError, match=r"2024-01 \(0 rows before, [\d,]+ now\)"):
        ingest(made)


def test_the_place_of_rows_in_their_files_is_no_change(made: Made) -> None:
    header, *rows = orders(made).read_text().splitlines(keepends=True)
    orders(made).write_text("".join([header, *rows, rows[3]]))  # whose places are stored, since clean decides by them
    ingest(made)
    newest = row(90_001, "2024-03-01 10:00:00")
    orders(made).write_text("".join([header, newest, *rows, rows[3]]))
    ingest(made)


def test_rows_of_the_future_and_another_as_of_are_no_change(made: Made) -> None:
    ingest(made, **{"clock.as_of": "2024-01-20"})
    ingest(made, **{"clock.as_of": "2024-02-20"})
    ingest(made)
    ingest(made, **{"clock.as_of": "2024-01-20"})
    with orders(made).open("a") as stream:
        stream.write(row(90_001, JANUARY))
    with pytest.raises(ValueError, match="has changed 2024-01"):
        ingest(made, **{"clock.as_of": "2024-01-20"})


def test_other_expressions_begin_anew(made: Made) -> None:
    ingest(made)
    ingest(made, **{"sources.orders.event_time": "placed + INTERVAL 1 MINUTE"})


def test_without_a_bound_rows_of_any_age_are_taken(made: Made) -> None:
    made.run("ingest")
    with orders(made).open("a") as stream:
        stream.write(row(90_001, JANUARY))
    made.run("ingest")
    assert not (params.home() / "settled").exists()


def test_a_bound_below_the_deadline_of_outcomes_is_refused(made: Made) -> None:
    with pytest.raises(ValueError, match=r"ingest\.lateness 12h must not be below label\.deadline 1d"):
        made.params(**{"ingest.lateness": "12h"})
