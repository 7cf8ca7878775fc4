"""tasks.data.leaks: a leak in one row of a hundred is found, whatever leaks; honest SQL is never refused."""

import json
import logging
import math
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import params
from tasks.data import features, leaks
from tasks.data.leaks import Times
from tasks.data.manifest import Probes, RawManifest
from tasks.params import Params
from tests.conftest import BEGIN, FEATURES_SQL, STORES, raw_params

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
US = timedelta(microseconds=1)


# --- made tables: 12,000 rows each, asked at other rates, long or shortly before, with outcomes that come soon or late


@dataclass(frozen=True)
class Kind:
    name: str
    per_hour: int
    lead: str
    outcome_after: tuple[int, int]  # minutes after the event, from and to
    lookback: str


KINDS = (
    Kind("trips", 60, "1h", (30, 90), "3d"),
    Kind("parcels", 20, "6h", (10, 120), "3d"),
    Kind("loans", 25, "1d", (2 * 1440, 6 * 1440), "9d"),
)


@dataclass(frozen=True)
class World:
    p: Params
    folder: Path

    def build(self, sql: str, **changes: Any) -> Probes:
        p = self.p.model_copy(update={"features": self.p.features.model_copy(update=changes)})
        return features.build(p, self.folder / "data/clean", self.folder / "data/features", sql)


def make_world(kind: Kind, folder: Path) -> World:
    """Clean tables as the clean stage leaves them, by month."""
    rng, rows = np.random.default_rng(len(kind.name)), 12_000
    raw = raw_params("binary", 60)
    raw["features"] = {"lead": kind.lead, "lookback": kind.lookback, "leak_probes": 6}
    raw["label"]["deadline"] = "7d"
    minutes = np.sort(rng.integers(0, rows * 60 // kind.per_hour, rows))
    event = np.datetime64(BEGIN, "us") + minutes * np.timedelta64(MINUTE)
    late = rng.integers(*kind.outcome_after, rows)
    never = rng.random(rows) < 0.03
    orders = {
        "number": pa.array(np.arange(rows), pa.int32()),
        "placed": event,
        "email": rng.choice([f"person{i}" for i in range(300)], rows),
        "store": rng.choice(STORES, rows),
        "amount": rng.lognormal(3, 0.6, rows),
        "distance": rng.uniform(0.5, 12, rows),
        "delay": pa.array(rng.integers(0, 60, rows), pa.int32(), mask=never),
        "event_time": event,
        "known_at": pa.array(event + late * np.timedelta64(MINUTE), mask=never),
    }
    hours = np.arange(event[0].astype("M8[h]"), event[-1] + np.timedelta64(1, "D"), np.timedelta64(1, "h"))
    measured = np.repeat(hours.astype("M8[us]"), len(STORES))
    jams = rng.uniform(0, 2, len(measured))
    traffic = {"store": np.tile(STORES, len(hours)), "measured_at": measured, "jam": jams}
    write_months(folder / "data/clean/orders", pa.table(orders))
    write_months(folder / "data/clean/traffic", pa.table({**traffic, "event_time": measured, "known_at": measured}))
    (folder / "data/clean/customers").mkdir()
    people = {"email": [f"person{i}" for i in range(300)], "segment": ["new"] * 300, "age": rng.integers(18, 90, 300)}
    pq.write_table(pa.table(people), folder / "data/clean/customers/all.parquet")
    return World(params.validate(raw), folder)


def write_months(folder: Path, table: pa.Table) -> None:
    folder.mkdir(parents=True)
    months = table["event_time"].to_numpy().astype("M8[M]")
    for month in np.unique(months):
        pq.write_table(table.filter(months == month), folder / f"{month}.parquet")


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(request.param, tmp_path_factory.mktemp(request.param.name))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_PERIODS", str(tmp_path / "periods"))


def plant(value: str, join: str, *, where: str = "hash(number) % 100 = 7") -> str:
    """The made world's features.sql, whose store_delay_1d is another in these rows: one in a hundred."""
    leak = (
        f"picked AS (SELECT * FROM asked WHERE {where}),\n"
        f"leak AS (SELECT picked.row_id, {value} AS value FROM picked LEFT JOIN {join} GROUP BY picked.row_id)\n"
        "SELECT asked.row_id,"
    )
    sql = FEATURES_SQL.replace("\nSELECT asked.row_id,", f",\n{leak}", 1)
    sql = sql.replace("recent.store_delay_1d,", "coalesce(leak.value, recent.store_delay_1d) AS store_delay_1d,")
    return sql.replace("LEFT JOIN customers", "LEFT JOIN leak ON leak.row_id = asked.row_id\nLEFT JOIN customers")


SAME_STORE = "orders o ON o.store = picked.store AND o.event_time"
LEAKS = {
    "known_at ignored": plant("avg(o.delay)", f"{SAME_STORE} BETWEEN asked_at - INTERVAL 1 DAY AND asked_at"),
    "own label": plant("max(o.delay)", "orders o ON o.number = picked.number"),
    "average of all rows": plant("avg(o.delay)", "orders o ON TRUE"),
    "next row of the same key": plant(
        "min_by(o.delay, o.event_time)", "orders o ON o.email = picked.email AND o.event_time > picked.event_time"
    ),
    "window that reaches ahead": plant(
        "avg(t.jam)",
        "traffic t ON t.store = picked.store AND t.known_at BETWEEN asked_at - INTERVAL 1 HOUR "
        "AND asked_at + INTERVAL 1 HOUR",
    ),
    "label of late rows": plant(
        "max(o.delay)",
        "orders o ON o.number = picked.number "
        "AND epoch(o.known_at - o.event_time) > 0.95 * (SELECT max(epoch(known_at - event_time)) FROM orders)",
        where="hash(number) % 5 = 2",
    ),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_in_one_row_of_a_hundred_is_found(world: World, leak: str) -> None:
    with pytest.raises(ValueError, match=r"features.sql leaks: `store_delay_1d` of the row at .* Compare known_at"):
        world.build(LEAKS[leak])


def test_honest_features_are_not_refused_and_hundreds_of_rows_are_probed(world: World) -> None:
    probed = world.build(FEATURES_SQL)
    assert probed.moments >= 6
    assert probed.rows >= 500


def test_a_feature_that_depends_on_which_rows_are_asked_together_is_refused(world: World) -> None:
    sql = FEATURES_SQL.replace(
        "customers.age,", "customers.age, count(*) OVER (ORDER BY asked.event_time, asked.number) AS turn,"
    )
    with pytest.raises(ValueError, match=r"leaks: `turn` .* must not depend on which other rows the spine holds"):
        world.build(sql)


def test_what_only_rows_of_the_same_minute_change_is_found_by_computing_a_row_alone(tmp_path: Path) -> None:
    together = "count(*) OVER (PARTITION BY asked.event_time) AS together"
    with pytest.raises(ValueError, match=r"leaks: `together` .* is [2-9].0, but 1.0 .* with only the 1 rows asked"):
        make_world(KINDS[0], tmp_path).build(FEATURES_SQL.replace("customers.age,", f"customers.age, {together},"))


# --- what is said, and what the cache keeps


@pytest.fixture
def parcels(tmp_path: Path) -> World:
    return make_world(KINDS[1], tmp_path / "parcels")


def test_a_leak_is_refused_again_although_the_features_are_cached(parcels: World) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match=r"features.sql leaks"):
            parcels.build(LEAKS["own label"])


def test_cached_periods_keep_their_numbers_and_nothing_is_probed_twice(
    parcels: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = parcels.build(FEATURES_SQL)
    monkeypatch.setattr(leaks, "refuse_leaks", lambda *_, **__: pytest.fail("probed again"))
    assert parcels.build(FEATURES_SQL) == first


def test_no_moment_is_probed_where_none_is_asked_for(parcels: World) -> None:
    assert parcels.build(LEAKS["own label"], leak_probes=0) == Probes(moments=0, rows=0, unseen=["customers"])


def test_the_build_says_what_it_probed_and_what_no_probe_sees(parcels: World, caplog: pytest.LogCaptureFixture) -> None:
    p, folder = parcels.p, parcels.folder
    (folder / p.paths.raw).mkdir()
    assert p.clock.as_of
    RawManifest(as_of=p.clock.as_of, limit=p.clock.as_of, pii_key_id=None, tables={}).write(folder / p.paths.raw)
    (folder / "tasks").mkdir()
    (folder / "tasks/features.sql").write_text(FEATURES_SQL)
    with caplog.at_level(logging.INFO):
        features.features(p, folder)
    probes = json.loads((folder / p.paths.features / "manifest.json").read_text())["probes"]
    assert probes["unseen"] == ["customers"]
    line = f"no leak in {probes['rows']:,} rows at {probes['moments']} moments; no probe sees into customers: "
    assert line in caplog.text


def test_a_sparse_table_is_said_to_be_one() -> None:
    assert "a leak in few of them may go unseen" in leaks.describe(Probes(moments=48, rows=60, unseen=[]))
    assert "unseen" not in leaks.describe(Probes(moments=9, rows=1080, unseen=[]))
    assert "no leak was looked for" in leaks.describe(Probes(moments=0, rows=0, unseen=["customers"]))


# --- which moments


def make_times(
    asked: list[int], *, news: list[int], delay: int = 60, unlabelled: frozenset[int] = frozenset()
) -> Times:
    """In minutes."""
    with_outcome = [place for place in range(len(asked)) if place not in unlabelled]
    scale = MINUTE // US
    return Times(
        np.array(sorted(asked), np.int64) * scale,
        np.array(with_outcome, np.int64),
        delay * scale,
        (np.array(news, np.int64) * scale,),
    )


MINUTES = st.lists(st.integers(0, 3000), min_size=1, max_size=300)


@given(asked=MINUTES, news=st.lists(st.integers(0, 4000), max_size=50).map(sorted), count=st.integers(1, 20))
def test_a_moments_rows_are_all_that_were_asked_in_the_hours_before_it(
    asked: list[int], news: list[int], count: int
) -> None:
    times = make_times(asked, news=news)
    moments = leaks.choose_moments(times, count, lead=2 * HOUR, seed="2024-01")
    assert 1 <= len(moments) <= count
    assert len({moment.at for moment in moments}) == len(moments)
    assert moments[:1] == leaks.choose_moments(times, 1, lead=2 * HOUR, seed="2024-01")
    for moment in moments:
        at = (moment.at - leaks.EPOCH) // MINUTE
        wanted = [minute for minute in sorted(asked) if at - 180 <= minute <= at]
        assert sorted(asked)[moment.first : moment.end] == wanted
        assert moment.near == sum(minute > at - 60 for minute in wanted)


def test_of_a_dense_hour_the_newest_rows_are_probed() -> None:
    (moment,) = leaks.choose_moments(make_times([5] * 2000, news=[]), 1, lead=HOUR, seed="x")
    assert (moment.first, moment.end, moment.near) == (1500, 2000, 500)


def test_time_is_cut_just_before_a_table_learns_something() -> None:
    """Whatever row is drawn, the rows since the last news are caught when they look ahead."""
    times = make_times(list(range(600)), news=list(range(0, 600, 60)))
    for seed in "abcdefgh":
        (moment,) = leaks.choose_moments(times, 1, lead=HOUR, seed=seed)
        assert moment.end % 60 == 0 or moment.end > 540


def test_moments_are_drawn_of_rows_with_an_outcome() -> None:
    times = make_times(list(range(100)), news=[], unlabelled=frozenset(range(10, 100)))
    moments = leaks.choose_moments(times, 30, lead=HOUR, seed="x")
    assert all(moment.end <= 10 for moment in moments)


def test_more_moments_are_probed_until_enough_rows_lie_next_to_them() -> None:
    def count(per_hour: int) -> int:
        times = make_times([minute for minute in range(60_000) for _ in range(per_hour) if minute % 60 == 30], news=[])
        return sum(map(len, leaks.plan_moments(lambda _: times, ["a", "b"], at_least=6, lead=HOUR)))

    assert count(200) == 6
    assert 45 <= count(10) <= 48
    assert 40 <= count(1) <= 48  # at most: so many rows are not to be had


def test_moments_are_spread_over_the_newest_periods_first() -> None:
    assert leaks.spread_evenly(6, 4) == [1, 1, 2, 2]
    assert leaks.spread_evenly(2, 4) == [0, 0, 1, 1]
    assert leaks.spread_evenly(3, 0) == []


# --- what differs

NUMBERS = st.none() | st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 1.0, 1.0 + 2e-7, 1e-10])


@given(pairs=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=30))
def test_numbers_differ_when_more_than_their_last_digits_do(pairs: list[tuple[float | None, float | None]]) -> None:
    one, other = (pa.table({"x": pa.array(column, pa.float32())}) for column in zip(*pairs, strict=True))
    values = zip(one["x"].to_pylist(), other["x"].to_pylist(), strict=True)
    expected = [i for i, (left, right) in enumerate(values) if not is_same(left, right)]
    differences = leaks.find_differences(one, other)
    assert (
        (differences["x"].count, differences["x"].place) == (len(expected), expected[-1])
        if expected
        else (not differences)
    )


def is_same(left: float | None, right: float | None) -> bool:
    if left is None or right is None:
        return left is right
    return math.isclose(left, right, rel_tol=1e-6, abs_tol=1e-9)


def test_texts_differ_when_they_are_not_equal_and_one_may_be_missing() -> None:
    one, other = pa.table({"x": ["a", None, "b", None]}), pa.table({"x": ["a", None, None, "c"]})
    assert leaks.find_differences(one, other)["x"].count == 2
    assert leaks.find_differences(one, one) == {}
