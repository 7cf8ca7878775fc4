"""Periods tile time."""

from datetime import datetime, timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tasks.data import periods

UNITS = st.sampled_from(["day", "week", "month"])
MOMENTS = st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1))


@given(MOMENTS, UNITS)
def test_every_moment_lies_in_one_period_and_its_name_leads_back_to_it(moment: datetime, unit: str) -> None:
    period = periods.period_at(moment, unit)
    assert period.start <= moment < period.end
    assert periods.parse_name(period.name) == period


@given(MOMENTS, UNITS)
def test_the_next_period_begins_where_this_one_ends(moment: datetime, unit: str) -> None:
    period = periods.period_at(moment, unit)
    assert periods.period_at(period.end, unit).start == period.end
    assert periods.period_at(period.end - timedelta(microseconds=1), unit) == period


@given(st.lists(MOMENTS, min_size=2, max_size=8), UNITS)
def test_names_sort_as_time_does(moments: list[datetime], unit: str) -> None:
    names = [periods.period_at(moment, unit).name for moment in sorted(moments)]
    assert names == sorted(names)


def test_the_files_of_a_table_come_oldest_first_and_only_those_with_a_time(tmp_path: Path) -> None:
    for name in ("2024-02", "2024-01", periods.WHOLE, periods.UNKNOWN):
        (tmp_path / f"{name}.parquet").touch()
    (tmp_path / ".2024-03.parquet.new").touch()
    assert [period.name for period, _ in periods.list_files(tmp_path)] == ["2024-01", "2024-02"]
