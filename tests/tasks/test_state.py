"""tasks.state: what is published is whole, is what features.sql needs, and never goes back in time."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from tasks import features, state
from tests.conftest import BEGIN, Made

DAY = timedelta(days=1)


@pytest.fixture
def cleaned(make_world: Callable[..., Made]) -> Made:
    made = make_world(days=20)
    made.run("ingest", "clean")
    return made


def test_the_tables_reach_back_as_far_as_any_row_may_look(cleaned: Made) -> None:
    p = cleaned.params()
    found = state.publish(p, cleaned.folder)
    assert found
    assert state.current() == found
    tables = state.load(p, found)
    times = tables["orders"]["event_time"].to_pylist()
    first, last, count = min(times), max(times), len(times)
    edge = found.as_of - p.serving.behind - p.features.lookback
    assert edge <= first < edge + DAY
    assert last > found.as_of - DAY
    assert count > 100
    assert tables["customers"].num_rows == 200


def test_time_never_goes_back_unless_the_tables_are_others(cleaned: Made) -> None:
    p = cleaned.params()
    first = state.publish(p, cleaned.folder)
    assert first
    early = cleaned.params(**{"clock.as_of": (BEGIN + 10 * DAY).isoformat()})
    cleaned.run("ingest", "clean", p=early)
    assert state.publish(early, cleaned.folder) is None
    assert state.current() == first
    other = early.model_copy(update={"registry": early.registry.model_copy(update={"model": "another"})})
    found = state.publish(other, cleaned.folder)
    assert found
    assert found.as_of < first.as_of


def test_only_the_newest_stay_and_what_is_gone_says_so(cleaned: Made) -> None:
    p = cleaned.params()
    made = [state.publish(p, cleaned.folder) for _ in range(3)]
    assert made[0]
    assert made[2]
    assert sorted(path.name for path in made[2].folder.parent.glob("2*")) == [
        each.folder.name for each in made[1:] if each
    ]
    with pytest.raises(FileNotFoundError, match="newer state has been published"):
        state.load(p, made[0])


def test_a_table_without_rows_is_there_all_the_same(cleaned: Made) -> None:
    p = cleaned.params()
    for path in (cleaned.folder / p.paths.clean / "traffic").glob("*"):
        path.unlink()
    found = state.publish(p, cleaned.folder)
    assert found
    tables, con = state.load(p, found), features.connect(p)
    assert (tables["traffic"].num_rows, str(tables["traffic"].schema.field("jam").type)) == (0, "double")
    for name, rows in tables.items():
        con.register(name, rows)
    con.execute("CREATE TEMP TABLE spine AS SELECT 1::BIGINT AS row_id, * FROM orders LIMIT 1")
    assert features.compute(con, p, (cleaned.folder / "tasks/features.sql").read_text()).num_rows == 1
