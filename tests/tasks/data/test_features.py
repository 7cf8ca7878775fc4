"""Features know what was known when a prediction was asked, whatever the period they were made in, and nothing else."""

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import params
from tasks.data import clean, featurerows, features, featuresql, ingest, loading, periods, sqlcheck
from tasks.data.contract import columns_sql
from tasks.data.manifest import RawManifest
from tasks.data.sources import fetch
from tasks.params import Column, Params, Source
from tests.conftest import BEGIN, FEATURES_SQL, LABELS, Made, tree
from tests.tasks.data.cleaned import copy_cleaned, write_cleaned

World = Callable[..., Made]
ROOT = Path(__file__).parents[3]
SQL = (ROOT / "tasks/features.sql").read_text()
LEAD = timedelta(hours=2)


# The real features.sql, on a few made flights.


@pytest.fixture(scope="module")
def real() -> Params:
    return params.load(ROOT / "params.yaml")


@contextmanager
def real_tables(p: Params) -> Iterator[duckdb.DuckDBPyConnection]:
    """The real tables, empty, and an empty spine."""
    with featuresql.connect(p) as con:
        for name, table in p.contract.items():
            con.execute(f"CREATE TABLE {name} ({columns_sql(table)})")
        columns = ", ".join(["event_time", *p.spine.columns])
        con.execute(f"CREATE TABLE spine AS SELECT 0 AS row_id, {columns} FROM flights LIMIT 0")
        yield con


def fill(con: duckdb.DuckDBPyConnection, table: str, rows: list[dict[str, Any]]) -> None:
    con.execute(f"DELETE FROM {table}")
    for row in rows:
        names = ", ".join(row)
        con.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(row))})", list(row.values()))


MINUTES = st.integers(0, 3 * 1440)
FLIGHT = st.fixed_dictionaries(
    {
        "minute": MINUTES,
        "carrier": st.sampled_from(["AA", "UA"]),
        "flight": st.integers(1, 2),
        "tailnum": st.sampled_from(["N1", "N2", None]),
        "origin": st.sampled_from(["EWR", "JFK"]),
        "dest": st.sampled_from(["LAX", "ORD"]),
        "delay": st.none() | st.integers(-30, 400),
        "airborne": st.integers(30, 400),
    }
)
SKY = st.fixed_dictionaries(
    {"minute": MINUTES, "origin": st.sampled_from(["EWR", "JFK"]), "temp": st.floats(0, 100, width=32)}
)


def flight(drawn: dict[str, Any]) -> dict[str, Any]:
    """A row of the clean flights table; its outcome is known when it lands."""
    event_time = BEGIN + timedelta(minutes=drawn["minute"])
    arrives = event_time + timedelta(minutes=drawn["airborne"])
    delay = drawn["delay"]
    return {
        **{name: drawn[name] for name in ("carrier", "flight", "tailnum", "origin", "dest")},
        "event_time": event_time,
        "sched_arrival": arrives,
        "sched_dep_time": event_time.hour * 100 + event_time.minute,
        "distance": 500,
        "dep_delay": delay,
        "arr_delay": delay,
        "known_at": None if delay is None else arrives + timedelta(minutes=delay),
    }


def sky(drawn: dict[str, Any]) -> dict[str, Any]:
    moment = BEGIN + timedelta(minutes=drawn["minute"])
    return {"origin": drawn["origin"], "temp": drawn["temp"], "event_time": moment, "known_at": moment}


def ask(con: duckdb.DuckDBPyConnection, real: Params, flights: list[dict[str, Any]]) -> None:
    asked = ("event_time", *real.spine.columns)
    fill(con, "spine", [{"row_id": i, **{name: each[name] for name in asked}} for i, each in enumerate(flights)])


def is_known(row: dict[str, Any], moment: datetime) -> bool:
    return row["known_at"] is not None and row["known_at"] <= moment


def known(rows: list[dict[str, Any]], moment: datetime) -> list[dict[str, Any]]:
    return [row for row in rows if is_known(row, moment)]


def unknown(rows: list[dict[str, Any]], moment: datetime) -> list[dict[str, Any]]:
    return [row for row in rows if not is_known(row, moment)]


@settings(max_examples=20)
@given(
    flights=st.lists(FLIGHT, min_size=2, max_size=14),
    others=st.lists(FLIGHT, max_size=8),
    skies=st.lists(SKY, max_size=8),
    other_skies=st.lists(SKY, max_size=4),
    minute=MINUTES,
)
def test_no_row_that_was_not_yet_known_changes_a_feature(
    real: Params,
    flights: list[dict[str, Any]],
    others: list[dict[str, Any]],
    skies: list[dict[str, Any]],
    other_skies: list[dict[str, Any]],
    minute: int,
) -> None:
    """Everything that a moment did not know yet is thrown away and other such rows put in its place."""
    moment = BEGIN + timedelta(minutes=minute)
    one, other = [flight(each) for each in flights], [flight(each) for each in others]
    air, other_air = [sky(each) for each in skies], [sky(each) for each in other_skies]
    with real_tables(real) as con:
        ask(con, real, one)
        fill(con, "flights", one)
        fill(con, "weather", air)
        before = featuresql.compute_features(con, real, SQL)
        fill(con, "flights", known(one, moment) + unknown(other, moment))
        fill(con, "weather", known(air, moment) + unknown(other_air, moment))
        after = featuresql.compute_features(con, real, SQL)
    asked_by_then = [row["event_time"] - LEAD <= moment for row in one]
    assert before.filter(asked_by_then).equals(after.filter(asked_by_then))


@settings(max_examples=20)
@given(flights=st.lists(FLIGHT, min_size=2, max_size=20))
def test_recent_delays_are_what_a_plain_loop_says(real: Params, flights: list[dict[str, Any]]) -> None:
    rows = [flight(each) for each in flights]
    with real_tables(real) as con:
        ask(con, real, rows)
        fill(con, "flights", rows)
        found = featuresql.compute_features(con, real, SQL).to_pylist()
    for row, features_of in zip(rows, found, strict=True):
        asked = row["event_time"] - LEAD

        def seen(
            length: timedelta, *same: str, asked: datetime = asked, row: dict[str, Any] = row
        ) -> list[dict[str, Any]]:
            return [
                each
                for each in rows
                if is_known(each, asked)
                and each["known_at"] >= asked - length
                and all(each[name] == row[name] for name in same)
            ]

        hour, week, day = timedelta(hours=1), timedelta(days=7), timedelta(days=1)
        assert features_of["origin_arrivals_1h"] == len(seen(hour, "origin"))
        assert features_of["origin_delay_1h"] == mean(each["arr_delay"] for each in seen(hour, "origin"))
        assert features_of["carrier_late_1d"] == mean(each["arr_delay"] >= 15 for each in seen(day, "carrier"))
        assert features_of["dest_late_7d"] == mean(each["arr_delay"] >= 15 for each in seen(week, "dest"))
        assert features_of["flight_delay_7d"] == mean(each["arr_delay"] for each in seen(week, "carrier", "flight"))
        landed = [(each["known_at"], each["arr_delay"]) for each in seen(week, "tailnum") if row["tailnum"]]
        assert features_of["tail_last_delay"] == (max(landed)[1] if landed else None)


def mean(values: Iterator[Any]) -> float | None:
    found = list(values)
    return float(np.float32(sum(found) / len(found))) if found else None


# The real data: the same features by whatever periods.


@pytest.fixture(scope="module")
def slice_of_the_year(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The real params, pointed at a quarter of the real flights of 16 days around the turn of a month."""
    folder = tmp_path_factory.mktemp("slice")
    raw: dict[str, Any] = params.load(ROOT / "params.yaml").model_dump(mode="json")
    with duckdb.connect() as con:
        for name, where in (("flights", "CAST(flight AS INTEGER) % 4 = 0"), ("weather", "TRUE")):
            source, columns = Source(**raw["sources"][name]), raw["contract"][name]["columns"]
            wanted = {key: Column(**column) for key, column in columns.items() if key not in source.derive}
            loading.load_table(con, fetch.fetch_files(source.address), source, wanted, "delivered")
            named = ", ".join(f'v{i} AS "{key}"' for i, key in enumerate(wanted))
            con.execute(f"CREATE OR REPLACE TABLE arrived AS SELECT {named} FROM delivered")
            days = "CAST(time_hour AS TIMESTAMP) BETWEEN TIMESTAMP '2013-01-22' AND TIMESTAMP '2013-02-07'"
            raw["sources"][name]["address"] = str(folder / f"{name}.parquet")
            con.sql(f"FROM arrived WHERE {where} AND {days}").write_parquet(raw["sources"][name]["address"])
    raw["clock"]["as_of"] = "2013-02-07"
    raw["features"]["leak_probes"] = 0
    return raw


@pytest.fixture(scope="module")
def by_month(slice_of_the_year: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, Path]:
    """Params, and a folder whose data/ holds the slice, cleaned, and its features."""
    folder, p = tmp_path_factory.mktemp("by_month"), params.validate(slice_of_the_year)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERGREEN_PERIODS", str(folder / "periods"))
        patch.setenv("EVERGREEN_PII_KEY", "a key for the tests")
        ingest.ingest(p, folder)
        clean.clean(p, folder)
        features.build(p, folder / "data/clean", folder / "data/features", SQL)
    return p, folder


def whole(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for _, path in periods.list_files(folder)])


def split_by_day(cleaned: Path, into: Path, tables: tuple[str, ...]) -> None:
    shutil.copytree(cleaned, into)
    for name in tables:
        table = whole(into / name)
        shutil.rmtree(into / name)
        (into / name).mkdir()
        days = [str(moment.date()) for moment in table["event_time"].to_pylist()]
        for day in set(days):
            pq.write_table(table.filter([each == day for each in days]), into / name / f"{day}.parquet")


def test_features_by_day_by_month_and_in_one_go_are_the_same(by_month: tuple[Params, Path], tmp_path: Path) -> None:
    """Of the last four days: their look-back ends inside the slice, at other places by day and by month."""
    p, folder = by_month
    month = pq.read_table(folder / "data/features/2013-02.parquet")
    split_by_day(folder / "data/clean", tmp_path / "clean", ("flights", "weather"))
    tables = features.open_tables(p, tmp_path / "clean")
    for period, _ in tables.timed["flights"][-5:-1]:
        features.Job(p, tables, period, SQL).make(tmp_path)
        day = pq.read_table(tmp_path / "rows.parquet")
        inside = [period.start <= moment < period.end for moment in month["_event_time"].to_pylist()]
        assert len(day) > 100
        assert day.equals(month.filter(inside))
    assert in_one_go(p, folder / "data/clean").equals(featurerows.read_rows(folder / "data/features").table)


def in_one_go(p: Params, cleaned: Path) -> pa.Table:
    con = featuresql.connect(p)
    for name in p.sources:
        con.execute(f"CREATE TABLE {name} AS FROM read_parquet('{cleaned}/{name}/*.parquet')")
    key, columns = (", ".join(["event_time", *names]) for names in (p.contract["flights"].key[1:], p.spine.columns))
    con.execute(f"CREATE TABLE spine AS SELECT row_number() OVER (ORDER BY {key}) AS row_id, {columns} FROM flights")
    return featuresql.compute_features(con, p, SQL)


def test_the_number_of_threads_changes_no_byte(
    by_month: tuple[Params, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, folder = by_month
    monkeypatch.setenv("EVERGREEN_PERIODS", str(tmp_path / "periods"))
    one = p.model_copy(update={"stage": p.stage.model_copy(update={"threads": 1})})
    features.build(one, folder / "data/clean", tmp_path / "features", SQL)
    assert tree(tmp_path / "features") == tree(folder / "data/features")


def test_the_real_features_are_about_thirty_and_each_has_values(by_month: tuple[Params, Path]) -> None:
    p, folder = by_month
    manifest = features._describe(p, folder / "data/features", RawManifest.read(folder / p.paths.raw).as_of)
    assert 28 <= len(manifest.columns) <= 34
    assert manifest.warnings == []


# The made world: periods, labels, and SQL that will not do.


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cleaned(tmp_path_factory.mktemp("cleaned"), days=40, per_day=12)


@pytest.fixture
def made(make_world: World, cleaned: Path) -> Made:
    return copy_cleaned(make_world, cleaned, days=40, per_day=12)


def entries(made: Made) -> set[str]:
    """The cached periods, whatever the stage; what was probed of them (tasks/data/leaks.py) is not among them."""
    folders = (made.folder.parent / "periods").glob("??/*")
    return {path.name for path in folders if not (path / "probed.json").exists()}


def manifest(made: Made) -> dict[str, Any]:
    return dict(json.loads((made.folder / "data/features/manifest.json").read_text()))


def run(made: Made, sql: str = FEATURES_SQL, **overrides: Any) -> featurerows.Rows:
    (made.folder / "tasks/features.sql").write_text(sql)
    made.run("features", p=made.params(**overrides))
    return featurerows.read_rows(made.folder / "data/features")


def refusal(made: Made, sql: str, **overrides: Any) -> str:
    with pytest.raises(ValueError) as caught:
        run(made, sql, **overrides)
    assert not (made.folder / "data/features/manifest.json").exists()
    return str(caught.value)


def select(*columns: str, joins: str = "") -> str:
    return f"SELECT spine.row_id, {', '.join(columns)}\nFROM spine\n{joins}"


OWN = "LEFT JOIN orders ON orders.number = spine.number"


@pytest.mark.parametrize(
    "sql",
    [
        select("orders.delay + 1 AS size", joins=OWN),
        select("CASE WHEN orders.delay > 20 THEN 'far' ELSE 'near' END AS size", joins=OWN),
        select("orders.known_at > spine.event_time + INTERVAL 80 MINUTE AS size", joins=OWN),
        FEATURES_SQL.replace("event_time - getvariable('lead') AS asked_at", "event_time AS asked_at"),
        FEATURES_SQL.replace("asked_at >= traffic.known_at", "asked_at + INTERVAL 1 HOUR >= traffic.known_at"),
        select("(SELECT count(*) FROM orders) AS orders_ever"),
        select("(SELECT avg(delay) FROM orders o WHERE o.store = spine.store) AS usual"),
    ],
    ids=["own outcome", "own outcome in disguise", "own known_at", "no lead", "tomorrow's road", "count", "average"],
)
def test_sql_that_uses_what_was_not_yet_known_is_refused(made: Made, sql: str) -> None:
    assert "features.sql leaks: `" in refusal(made, sql)


@pytest.mark.parametrize(
    "outcome",
    [
        "(SELECT any_value(delay) FROM read_csv('source/orders.csv') o WHERE o.number = spine.number)",
        "(SELECT any_value(delay) FROM 'data/clean/orders/*.parquet' o WHERE o.number = spine.number)",
        "epoch(now())",
        "random()",
    ],
)
def test_what_is_not_in_the_tables_is_refused_before_anything_is_spent(made: Made, outcome: str) -> None:
    before = entries(made)
    assert refusal(made, select(f"{outcome} AS x")).startswith("features.sql, line 1, ")
    assert entries(made) == before


def test_the_sql_cannot_reach_files_by_what_the_check_has_missed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlcheck, "check_sql", lambda *_: None)
    assert "which is disabled: it may read only its tables" in refusal(
        made, select("1 AS x", joins="JOIN 'data/clean/orders/2024-01.parquet' ON TRUE")
    )
    assert "which is disabled: it may read only its tables" in refusal(
        made, select("1 AS x", joins="JOIN read_csv('source/orders.csv') ON TRUE")
    )


@pytest.mark.parametrize("name", ["delay", "known_at", "label"])
def test_the_outcome_by_its_own_name_is_refused_without_a_probe(made: Made, name: str) -> None:
    said = refusal(made, select(f"1 AS {name}"), **{"features.leak_probes": 0})
    assert f"features.sql gives back ['{name}'], which nobody knows when a prediction is asked" in said


def test_the_tables_of_the_stage_itself_are_not_to_be_had(made: Made) -> None:
    assert "reads `_rows`, but it may read only spine and the clean tables" in refusal(
        made, select("_label AS x", joins="JOIN _rows USING (row_id)")
    )


def test_sql_that_looks_further_back_than_it_says_is_refused(made: Made) -> None:
    long = FEATURES_SQL.replace("INTERVAL 1 DAY PRECEDING", "INTERVAL 12 DAY PRECEDING")
    said = refusal(made, long)
    assert "features.sql looks back further than features.lookback (3d): `store_" in said
    assert "lengthen features.lookback" in said
    assert len(run(made, long, **{"features.lookback": "14d"})) > 0


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        (
            "-- a comment\nSELECT row_id,\n  amuont\nFROM spine",
            r"line 3, column 3: there is no column `amuont` here. Did you mean `amount`\?",
        ),
        ("SELECT row_id,\nFROM WHERE", r"line 2, column 6: it is no SQL that can be read: `WHERE` is not"),
        ("SELECT row_id, amount\nFROM spin", r"line 2, reads `spin`, but it may read only.* Did you mean `spine`"),
        (
            "SELECT row_id,\n CAST('x' AS INTEGER) AS n FROM spine",
            r"line 2, column 2: it fails for a row at `CAST`.* TRY_CAST",
        ),
        ("", r"must be one SELECT, but it holds 0 statements \(nothing\)"),
        ("SELECT amount FROM spine", r"must give back row_id, but gives \['amount'\]"),
        ("SELECT row_id FROM spine", r"gives back no feature beside row_id"),
        (select("amount AS _amount"), r"must not start with an underscore, but \['_amount'\] do"),
        (select("event_time AS at"), r"`at` is a TIMESTAMP, but a feature is a number, true or false, or a text"),
        (select("[1, 2] AS list"), r"`list` is a INTEGER\[\], but a feature is"),
        (select("amount", joins="WHERE amount > 20"), r"of \d+ rows it loses [1-9]\d* and repeats 0"),
        (select("age", joins="JOIN customers ON age > 50"), r"it loses 0 and repeats [1-9]\d*: a LEFT JOIN keeps rows"),
    ],
)
def test_sql_that_will_not_do_is_refused_with_its_line_or_its_reason(made: Made, sql: str, said: str) -> None:
    assert re.search(said, refusal(made, sql))


def test_a_semicolon_at_the_end_does_no_harm(made: Made) -> None:
    assert run(made, FEATURES_SQL + ";\n").table.equals(run(made).table)


@pytest.mark.parametrize(
    ("column", "warning"),
    [
        ("CAST(NULL AS INTEGER) AS hollow", "hollow has no value in any row"),
        ("7 AS fixed", "fixed is the same in every row that has it"),
        ("CASE WHEN amount > 20 THEN 'dear' END AS fixed", "fixed is the same in every row that has it"),
    ],
)
def test_a_feature_without_a_value_or_with_one_only_is_warned_of(
    made: Made, caplog: pytest.LogCaptureFixture, column: str, warning: str
) -> None:
    with caplog.at_level(logging.WARNING):
        run(made, select("amount", column))
    assert manifest(made)["warnings"] == [warning]
    assert warning in caplog.text


def test_numbers_become_float32_text_stays_and_what_is_not_finite_is_missing(made: Made) -> None:
    sql = select(
        "amount > 20 AS dear", "amount / 0 AS far", "1e300 AS huge", "store", "CAST(1.5 AS DECIMAL(9, 2)) AS d"
    )
    table = run(made, sql).table
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {"dear": "float", "far": "float", "huge": "float", "store": "string", "d": "float"}
    assert table["far"].null_count == table["huge"].null_count == len(table)
    assert table["d"][0].as_py() == 1.5


@pytest.mark.parametrize("unit", ["week", "day"])
def test_the_period_changes_no_feature(make_world: World, unit: str) -> None:
    tables = []
    for each in ("month", unit):
        made = make_world(days=9, per_day=12, folder=each)
        made.run("ingest", "clean", p=made.params(**{"ingest.period": each}))
        run(made, **{"ingest.period": each, "features.leak_probes": 1})
        tables.append(whole(made.folder / "data/features"))
    assert tables[0].equals(tables[1])


def test_the_same_inputs_give_the_same_bytes_with_the_cache_and_without(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(made)
    first = tree(made.folder / "data/features")
    run(made)
    assert tree(made.folder / "data/features") == first
    monkeypatch.setenv("EVERGREEN_PERIODS", str(tmp_path / "empty"))
    run(made)
    assert tree(made.folder / "data/features") == first


@pytest.mark.parametrize("user", [0, 1000])
@pytest.mark.parametrize(
    "place", ["raw/orders/2024-01", "clean/orders/2024-01", "clean/customers/all", "features/2024-01"]
)
def test_an_output_that_a_notebook_overwrites_is_what_was_made_after_the_next_run(
    made: Made, monkeypatch: pytest.MonkeyPatch, user: int, place: str
) -> None:
    """Also after `rm -rf data`: the cache never gives back what the notebook wrote."""
    monkeypatch.setattr("os.geteuid", lambda: user)
    made.run("ingest", "clean", "features")
    before, path = tree(made.folder / "data"), made.folder / "data" / f"{place}.parquet"
    table = pq.read_table(path)
    for clear in (False, True):
        path.chmod(0o644)
        with path.open("wb") as stream:  # as pandas does: the file is emptied and filled, not replaced
            pq.write_table(table.slice(1), stream)
        if clear:
            shutil.rmtree(made.folder / "data")
        made.run("ingest", "clean", "features")
        assert tree(made.folder / "data") == before


def test_a_later_as_of_costs_the_open_periods_only_and_ends_where_a_full_build_does(
    make_world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = make_world(days=75, per_day=6)
    made.run("ingest", "clean", "features", p=made.params(**{"clock.as_of": "2024-02-25"}))
    p = made.params(**{"clock.as_of": "2024-03-10"})
    made.run("ingest", "clean", p=p)
    before = entries(made)
    made.run("features", p=p)
    assert len(entries(made) - before) == 2  # February, whose last labels came, and March; not January
    step_by_step = tree(made.folder / "data")
    monkeypatch.setenv("EVERGREEN_PERIODS", str(tmp_path / "empty"))
    made.run("ingest", "clean", "features", p=p)
    assert tree(made.folder / "data") == step_by_step


def test_a_changed_row_costs_its_period_and_those_that_look_back_at_it(make_world: World) -> None:
    made = make_world(days=35, per_day=6)
    p = made.params(**{"ingest.period": "week"})
    made.run("ingest", "clean", "features", p=p)
    orders = made.folder / "source/orders.csv"
    orders.write_text(orders.read_text() + "9999,2024-01-10 10:00:00,person1@example.org,north,9,1,20\n")
    made.run("ingest", "clean", p=p)
    before = entries(made)
    made.run("features", p=p)
    assert len(entries(made) - before) == 2  # the second week, and the third, whose first days look back at it


def test_a_label_that_is_not_known_yet_or_came_too_late_is_no_label(made: Made) -> None:
    found = run(made, **{"label.deadline": "85m"})
    late = found.known_at - found.event_time > np.timedelta64(85, "m")
    unknown = np.isnat(found.known_at)
    assert 0 < late.sum() < len(found)
    assert np.array_equal(np.isnan(found.label), late | unknown)
    mature = found.event_time < np.datetime64("2024-02-10") - np.timedelta64(85, "m")
    share = np.isnan(found.label)[mature].mean()
    assert manifest(made)["unlabelled_share"] == pytest.approx(share, abs=1e-6)
    assert manifest(made)["labelled"] == (~np.isnan(found.label)).sum()


def test_rows_are_read_in_the_order_of_time_with_labels_of_each_task(made: Made) -> None:
    binary = run(made)
    assert bool((np.diff(binary.event_time) >= np.timedelta64(0)).all())
    assert set(binary.label[~np.isnan(binary.label)]) == {0.0, 1.0}
    classes = run(made, **{"label.task": "multiclass", "label.expression": LABELS["multiclass"]})
    assert {*classes.label} == {"early", "fair", "late", None}
    numbers = run(made, **{"label.task": "regression", "label.expression": "delay", "gate.metric": "rmse"})
    assert np.array_equal(numbers.label >= 30, binary.label == 1)
    some = binary.take(binary.event_time < np.datetime64("2024-01-10"))
    assert len(some) == len(some.table) == len(some.label) < len(binary)


def test_keys_and_times_stand_beside_the_features(made: Made) -> None:
    run(made)
    names = pq.read_schema(made.folder / "data/features/2024-01.parquet").names
    assert names[:4] == ["_key_number", "_event_time", "_known_at", "_label"]
    assert [column["name"] for column in manifest(made)["columns"]] == names[4:]
    kinds = {column["name"]: column["kind"] for column in manifest(made)["columns"]}
    assert (kinds["store"], kinds["jam"]) == ("category", "number")


def test_a_table_without_a_key_has_a_fixed_order_too(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made.raw["contract"]["orders"]["key"] = []
    run(made)
    first = tree(made.folder / "data/features")
    monkeypatch.setenv("EVERGREEN_PERIODS", str(tmp_path / "empty"))
    run(made, **{"stage.threads": 2})
    assert tree(made.folder / "data/features") == first


def test_a_label_expression_that_fails_is_named(made: Made) -> None:
    assert "label.expression `dealy > 3`, column 1: there is no column `dealy` here. Did you mean `delay`?" in refusal(
        made, FEATURES_SQL, **{"label.expression": "dealy > 3"}
    )


def test_a_table_without_rows_is_empty_and_spoken_of(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(made.folder / "data/clean/traffic")
    with caplog.at_level(logging.WARNING):
        found = run(made)
    assert found.table["jam"].null_count == len(found)
    assert "traffic has no rows for 2024-01" in caplog.text


def test_reading_a_folder_without_features_tells_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no feature rows: run the stages before this one \(dvc repro\)"):
        featurerows.read_rows(tmp_path)
