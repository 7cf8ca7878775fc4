"""tasks.data.timeline: rows are dense where their gaps are usual, and a lone row far off is neither now nor history."""

from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data import timeline
from tasks.data.timeline import Times

BEGIN = np.datetime64("2024-01-01", "us")
HOUR, DAY, WEEK = (np.timedelta64(number, "h").astype("timedelta64[us]") for number in (1, 24, 168))
FAR = np.array(["2031-06-01"], "datetime64[us]")
OLD = np.array(["1970-01-01"], "datetime64[us]")
TODAY = datetime(2026, 11, 1)
DEADLINE = timedelta(days=2)


def drawn(days: float, per_day: float, *, seed: int = 0, begin: np.datetime64 = BEGIN) -> Times:
    seconds = np.random.default_rng(seed).integers(0, int(days * 86_400), max(int(days * per_day), 1))
    return begin + np.sort(seconds).astype("timedelta64[s]").astype("timedelta64[us]")


def steps(count: int, step: np.timedelta64) -> Times:
    return BEGIN + np.arange(count) * step


OFFICE = np.array([BEGIN + day * DAY + hour * HOUR for day in range(120) if day % 7 < 5 for hour in range(8, 18)])
RUSH = np.concatenate([drawn(5, 200, seed=year, begin=BEGIN + year * 365 * DAY) for year in range(3)])
SPARSE_BEGIN = np.concatenate([BEGIN - np.array([90, 55, 30, 12]) * DAY, drawn(200, 50)])
TABLES = {
    "3 rows a day": drawn(120, 3),
    "3 rows a day, ten days": drawn(10, 3),
    "10,000 rows a day": drawn(30, 10_000),
    "20 rows a day for ten years": drawn(3650, 20),
    "300 rows in an hour": drawn(1 / 24, 7200),
    "300 rows of one moment": np.repeat(BEGIN, 300),
    "office hours": OFFICE,
    "once a week": steps(52, WEEK),
    "once a week, eight weeks": steps(8, WEEK),
    "once a month, many rows": np.repeat(steps(6, 30 * DAY), 500),
    "a week a year": RUSH,
    "a gap of six weeks": np.concatenate([drawn(60, 40), drawn(60, 40, seed=1, begin=BEGIN + 102 * DAY)]),
    "few rows at first": SPARSE_BEGIN,
}


@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_a_plain_table_belongs_to_it_and_the_newest_is_its_end(name: str) -> None:
    times = TABLES[name]
    line = timeline.draw_timeline(times)
    assert (line.begin, line.dense_end, line.end) == (times.min().item(), times.max().item(), times.max().item())


@pytest.mark.parametrize("name", TABLES)
def test_a_lone_row_far_off_belongs_to_no_table(name: str) -> None:
    times = TABLES[name]
    plain, ahead = timeline.draw_timeline(times), timeline.draw_timeline(np.append(times, FAR + 4 * 365 * DAY))
    behind, both = (
        timeline.draw_timeline(np.append(times, OLD)),
        timeline.draw_timeline(np.concatenate([times, OLD, FAR])),
    )
    assert (ahead.begin, ahead.dense_end, ahead.end) == (plain.begin, plain.dense_end, plain.end)
    assert (behind.begin, behind.dense_end, behind.end) == (plain.begin, plain.dense_end, plain.end)
    assert both.end == plain.end or name == "20 rows a day for ten years"  # which has rows in 2031


def test_several_lone_rows_are_as_much_outliers_as_one() -> None:
    times = drawn(120, 100)
    plain = timeline.draw_timeline(times)
    typed_wrong = times[::2500] + 366 * DAY  # another year by mistake
    for extra in (FAR + np.arange(5) * 200 * DAY, typed_wrong, np.repeat(OLD, 700)):
        line = timeline.draw_timeline(np.concatenate([times, extra]))
        assert (line.begin, line.dense_end, line.end) == (plain.begin, plain.dense_end, plain.end)


def test_rows_after_a_long_pause_are_kept_and_are_now_when_they_are_more_than_a_lone_one() -> None:
    first, pause = drawn(120, 50), 35 * DAY
    again = first[-1] + pause + np.arange(1, 200) * HOUR / 2
    one, more = (timeline.draw_timeline(np.concatenate([first, again[:count]])) for count in (1, len(again)))
    assert (one.dense_end, one.end) == (first[-1].item(), again[0].item())
    assert (more.dense_end, more.end) == (again[-1].item(), again[-1].item())


@given(st.integers(0, 10_000), st.integers(40, 400), st.integers(-400, 400), st.integers(1, 1000))
def test_the_rule_knows_neither_scale_nor_epoch_nor_order(seed: int, count: int, years: int, scale: int) -> None:
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(600, count).astype(np.int64) + 1
    times = BEGIN + np.cumsum(gaps).astype("timedelta64[ms]").astype("timedelta64[us]")
    line = timeline.draw_timeline(times)
    shift = years * 365 * DAY
    moved = timeline.draw_timeline(rng.permutation(times) + shift // 10)
    assert moved.dense_end == line.dense_end + (shift // 10).item()
    wide = timeline.draw_timeline(BEGIN + (times - BEGIN) * scale)
    assert wide.dense_end - BEGIN.item() == (line.dense_end - BEGIN.item()) * scale


@given(st.integers(0, 10_000), st.integers(0, 3), st.sampled_from([40, 150, 6000]))
def test_a_row_of_a_steady_stream_is_hardly_ever_an_outlier(seed: int, lone: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    times = BEGIN + np.cumsum(rng.exponential(3600, count)).astype("timedelta64[s]").astype("timedelta64[us]")
    stray = times[-1] + (1 + np.arange(lone)) * (times[-1] - times[0] + 400 * DAY)
    line = timeline.draw_timeline(np.concatenate([times, stray]))
    assert line.end == times[-1].item()
    assert line.begin == times[0].item()
    assert times[-1].item() - line.dense_end <= (times[-1] - times[-4]).item()


# --- now -----------------------------------------------------------------------------------------------------------


def reach_of(event_time: Times, known_at: Times) -> timeline.Reach:
    reach = timeline.join_reach([timeline.see_times(event_time, known_at)])
    assert reach
    return reach


def told(event_time: Times, known_at: Times, *, today: datetime = TODAY) -> datetime:
    return reach_of(event_time, known_at).now(deadline=DEADLINE, today=today)


def late_by(event_time: Times, hours: int, *, today: np.datetime64) -> Times:
    known_at = event_time + hours * HOUR
    return np.where(known_at <= today, known_at, np.datetime64("NaT"))


LIVE = drawn(60, 40)
END = LIVE[-1]


def test_now_is_the_newest_moment_of_which_something_is_known() -> None:
    assert told(LIVE, LIVE + HOUR) == (END + HOUR).item()
    assert told(LIVE, late_by(LIVE, 30, today=END)) == END.item()  # the newest rows wait for their outcome
    assert told(LIVE, np.full(len(LIVE), np.datetime64("NaT"))) == END.item()  # no outcome yet at all


@pytest.mark.parametrize("hours", [1, 30])
@pytest.mark.parametrize("days", [1, 20, 300])
def test_scheduled_rows_are_not_now(hours: int, days: int) -> None:
    scheduled = drawn(days, 40, seed=1, begin=END + HOUR)
    known_at = late_by(LIVE, hours, today=END)
    nothing = np.full(len(scheduled), np.datetime64("NaT"))
    with_schedule = told(np.append(LIVE, scheduled), np.append(known_at, nothing))
    newest_outcome = known_at[~np.isnat(known_at)].max().item()
    assert with_schedule == newest_outcome
    assert told(LIVE, known_at) - with_schedule <= timedelta(hours=3)


def test_an_outcome_without_a_time_of_its_own_may_come_as_late_as_the_deadline() -> None:
    mature = END - (DAY + HOUR)
    known_at = np.where(mature >= LIVE, LIVE, np.datetime64("NaT"))  # known_at: null, so the event's own time
    assert told(LIVE, known_at) == END.item()


def test_outcomes_that_come_once_a_month_leave_the_rows_between_in_the_present() -> None:
    month = BEGIN + ((LIVE - BEGIN) // (20 * DAY) + 1) * (20 * DAY)
    today = BEGIN + 55 * DAY
    rows = LIVE[today >= LIVE]
    known_at = np.where(month[: len(rows)] <= today, month[: len(rows)], np.datetime64("NaT"))
    assert told(rows, known_at) == rows[-1].item()


def test_where_the_outcomes_have_stopped_the_clock_on_the_wall_tells_rows_from_a_schedule() -> None:
    stopped = late_by(LIVE, 1, today=END - 20 * DAY)
    assert told(LIVE, stopped, today=TODAY) < (END - 19 * DAY).item()
    assert told(LIVE, stopped, today=(END + HOUR).item()) == END.item()  # they end today: they have happened


def test_an_outcome_that_was_known_in_another_century_is_not_now() -> None:
    known_at = LIVE + HOUR
    known_at[7] = FAR[0]
    assert told(LIVE, known_at) == (END + HOUR).item()
    reach = reach_of(LIVE, known_at)
    assert reach.known
    assert reach.known.end < FAR[0].item()


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("parts", [1, 2, 7])
def test_the_parts_of_a_table_tell_its_reach_in_any_order(name: str, parts: int) -> None:
    rng = np.random.default_rng(parts)
    times = np.concatenate([TABLES[name], FAR])
    known_at = np.where(rng.random(len(times)) < 0.3, np.datetime64("NaT", "us"), times + DAY)
    part = rng.integers(0, parts, len(times))
    seen = [timeline.see_times(times[part == i], known_at[part == i]) for i in range(parts)]
    known = known_at[~np.isnat(known_at)]
    whole = timeline.Reach(timeline.draw_timeline(times), timeline.draw_timeline(known), late=False)
    assert timeline.join_reach(seen) == whole
    assert timeline.join_reach([timeline.Seen.unpack(part.pack()) for part in seen]) == whole


@pytest.mark.parametrize("name", TABLES)
def test_the_limit_leaves_room_for_a_day_the_deadline_and_the_tables_own_gap(name: str) -> None:
    times = TABLES[name]
    reach = reach_of(times, times)
    limit = reach.limit(deadline=DEADLINE, today=TODAY)
    assert limit - times.max().item() == max(timedelta(days=1), DEADLINE, reach.events.gap)
