"""tasks.serving.feature_query: a kept plan gives what features.compute gives; one that cannot be kept is not."""

from collections.abc import Callable
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pytest

from tasks.data import featuresql, state
from tasks.params import Params
from tasks.serving import feature_query, tables
from tests.conftest import FEATURES_SQL, Made

# A join whose left side is known to be long is one that sorts, and of that DuckDB makes no second run.
SORTED = """
WITH hours AS (SELECT 'north' AS store, TIMESTAMP '2024-01-01' + INTERVAL 1 HOUR * range AS moment FROM range(1000)),
jams AS (
    SELECT moment, jam
    FROM hours ASOF JOIN traffic ON hours.store = traffic.store AND moment >= traffic.known_at
)
SELECT row_id, (SELECT max(jam) FROM jams WHERE moment < event_time) AS jam FROM spine
"""
KINDS = """
SELECT row_id, store, amount, amount * 1e39 AS much, amount > 50 AS big, CAST(amount AS DECIMAL(18, 3)) AS exact,
    CAST(amount AS BIGINT) + 16777217 AS whole, NULLIF(distance, distance) AS none, amount / 0 AS endless, 'é' AS text
FROM spine
"""


@dataclass(frozen=True)
class World:
    p: Params
    tables: dict[str, pa.Table]

    def spine(self, places: range) -> pa.Table:
        rows = self.tables["orders"].sort_by("event_time").to_pylist()
        return tables.spine_of(self.p, [rows[i] for i in places])

    def wanted(self, sql: str, spine: pa.Table) -> pa.Table:
        """What training would have."""
        con = featuresql.connect(self.p)
        for name, rows in {**self.tables, "spine": spine}.items():
            con.register(name, rows)
        return featuresql.compute_features(con, self.p, sql)


@pytest.fixture
def world(make_world: Callable[..., Made]) -> World:
    made = make_world(days=20)
    p = made.run("ingest", "clean")
    found = state.publish(p, made.folder)
    assert found
    return World(p, state.load_tables(p, found))


LOUD = FEATURES_SQL.replace("getvariable('lead')", "getvariable('LEAD')")  # DuckDB's variables know no case


@pytest.mark.parametrize("sql", [FEATURES_SQL, KINDS, LOUD], ids=["joins and windows", "every kind", "in capitals"])
def test_a_kept_plan_gives_each_time_what_training_has(world: World, sql: str) -> None:
    tried = [world.spine(range(1)), world.spine(range(40))]
    kept = feature_query.prepare_query(world.tables, world.p, sql, tried=tried)
    assert kept.statement.startswith("EXECUTE")
    for places in (range(7, 8), range(0, 90, 3), range(200, 20, -1), range(7, 8), range(0)):
        spine = world.spine(places)
        assert kept.table(kept.run(spine)).equals(world.wanted(sql, spine))


def test_a_plan_that_cannot_be_run_again_is_not_kept(world: World, caplog: pytest.LogCaptureFixture) -> None:
    spine = world.spine(range(100, 110))
    found = feature_query.prepare_query(world.tables, world.p, SORTED, tried=[spine])
    assert "cannot be kept" in caplog.text
    for _ in range(2):
        assert found.table(found.run(spine)).equals(world.wanted(SORTED, spine))


def test_what_could_not_be_tried_is_not_kept(world: World, caplog: pytest.LogCaptureFixture) -> None:
    found = feature_query.prepare_query(world.tables, world.p, FEATURES_SQL, tried=[world.spine(range(0))])
    assert "no row to try it on" in caplog.text
    spine = world.spine(range(3))
    assert found.table(found.run(spine)).equals(world.wanted(FEATURES_SQL, spine))


def test_a_row_whose_features_fail_spoils_no_other(world: World) -> None:
    bad = world.spine(range(1))["distance"].to_pylist()[0]
    sql = f"SELECT row_id, CASE WHEN distance = {bad} THEN error('no') ELSE distance END AS distance FROM spine"
    found = feature_query.prepare_query(world.tables, world.p, sql, tried=[world.spine(range(1, 9))])
    for _ in range(2):
        with pytest.raises(duckdb.Error, match="no"):
            found.run(world.spine(range(1)))
        assert len(found.run(world.spine(range(1, 4)))) == 3


def test_lost_and_repeated_rows_are_refused(world: World) -> None:
    tried = [world.spine(range(3))]
    with pytest.raises(ValueError, match="of 3 rows it loses 0 and repeats 3"):
        feature_query.prepare_query(
            world.tables, world.p, "FROM (SELECT row_id, amount FROM spine), range(2)", tried=tried
        )


@pytest.mark.parametrize(
    "value", ["random()", "epoch(now())", "(SELECT max(delay) FROM read_csv('source/orders.csv'))"]
)
def test_what_training_refuses_is_refused_here_too(world: World, value: str) -> None:
    spine = world.spine(range(1))
    with pytest.raises(ValueError, match=r"features\.sql, line 1, (calls|reads)"):
        feature_query.prepare_query(world.tables, world.p, f"SELECT row_id, {value} AS x FROM spine", tried=[spine])


@pytest.mark.parametrize("keeps_plan", [False, True])
def test_a_plan_reaches_no_file(world: World, keeps_plan: bool) -> None:
    made = feature_query.open_query(world.tables, world.p, FEATURES_SQL, world.spine(range(1)), keeps_plan=keeps_plan)
    with pytest.raises(duckdb.Error, match="disabled by configuration"):
        made.con.execute("FROM read_csv('source/orders.csv')")
    assert len(made.run(world.spine(range(3)))) == 3
