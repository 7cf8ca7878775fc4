"""tasks.data.state: what is published is whole, is what features.sql needs, and never goes back in time."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import params
from tasks.data import featuresql, state
from tasks.params import Params
from tasks.runtime.store import Store, StoreError
from tasks.serving.active import Active
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
    assert state.read_current() == found
    tables = state.load_tables(p, found)
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
    assert state.read_current() == first
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
        state.load_tables(p, made[0])


def test_a_table_without_rows_is_there_all_the_same(cleaned: Made) -> None:
    p = cleaned.params()
    for path in (cleaned.folder / p.paths.clean / "traffic").glob("*"):
        path.unlink()
    found = state.publish(p, cleaned.folder)
    assert found
    tables, con = state.load_tables(p, found), featuresql.connect(p)
    assert (tables["traffic"].num_rows, str(tables["traffic"].schema.field("jam").type)) == (0, "double")
    for name, rows in tables.items():
        con.register(name, rows)
    con.execute("CREATE TEMP TABLE spine AS SELECT 1::BIGINT AS row_id, * FROM orders LIMIT 1")
    assert featuresql.compute_features(con, p, (cleaned.folder / "tasks/features.sql").read_text()).num_rows == 1


# --- what is odd or torn

TOLD = {"folder": "one", "kind": "it", "as_of": "2024-01-01", "since": "2024-01-01", "published_at": "2024-01-01"}
ODD = [
    *("", "{", "{}", "null", "[]", '"text"', "\0"),
    *(json.dumps(TOLD | {name: None}) for name in TOLD if name != "kind"),
    json.dumps(TOLD | {"as_of": "2024-01-01T00:00:00+01:00"}),
]


def pointer() -> Path:
    return params.home() / "state" / state.POINTER


@pytest.mark.parametrize("text", ODD)
def test_an_odd_pointer_names_itself_and_the_way_out(make_world: Callable[..., Made], text: str) -> None:
    p = make_world(days=1).params()
    pointer().parent.mkdir(parents=True)
    pointer().write_text(text)
    with pytest.raises(ValueError, match=r"current\.json must tell .* Remove it"):
        state.read_current()
    assert list(Active(params.home()).renew(p)) == []


def test_an_odd_pointer_is_published_over(cleaned: Made) -> None:
    p = cleaned.params()
    state.publish(p, cleaned.folder)
    pointer().write_text("{}")
    found = state.publish(p, cleaned.folder)
    assert found
    assert state.read_current() == found


def torn(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:100])


def altered(path: Path) -> None:
    """A value of one row: DuckDB reads the file without a word."""
    table = pq.read_table(path)
    place = table.schema.get_field_index("amount")
    others = pa.array([99.0, *table["amount"].to_pylist()[1:]], table.schema.field(place).type)
    path.chmod(0o644)
    pq.write_table(table.set_column(place, table.schema.field(place), others), path)


@pytest.mark.parametrize("spoil", [torn, altered, Path.unlink])
def test_a_table_that_cannot_be_read_is_told_of_once_and_the_old_serves_on(
    cleaned: Made, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    p, one = cleaned.params(), Active(params.home())
    state.publish(p, cleaned.folder)
    assert len(list(one.renew(p))) == 1
    before, found = one.tables, state.publish(p, cleaned.folder)
    assert found
    spoil(found.folder / "orders.parquet")
    with pytest.raises((ValueError, FileNotFoundError), match=r"orders\.parquet"):
        state.load_tables(p, found)
    caplog.clear()
    assert [list(one.renew(p)) for _ in range(3)] == [[], [], []]
    assert one.tables is before
    assert len(caplog.records) == 1
    assert state.publish(p, cleaned.folder)
    assert len(list(one.renew(p))) == 1


def test_a_state_of_other_tables_is_not_loaded(cleaned: Made, caplog: pytest.LogCaptureFixture) -> None:
    p = cleaned.params()
    state.publish(p, cleaned.folder)
    one, other = Active(params.home()), of_model(p, "another")
    assert [list(one.renew(other)) for _ in range(3)] == [[], [], []]
    assert caplog.text.count(f"must be of these params, {state.identify_tables(other)}, but") == 1
    assert len(list(one.renew(p))) == 1


def of_model(p: Params, name: str) -> Params:
    return p.model_copy(update={"registry": p.registry.model_copy(update={"model": name})})


# --- of a team


def test_what_one_machine_publishes_another_fetches(cleaned: Made, team: Store, tmp_path: Path) -> None:
    p, other = cleaned.params(), tmp_path / "other"
    assert state.fetch(other) is None  # nothing is published yet
    published = state.publish(p, cleaned.folder)
    assert published
    assert state.read_current(other) is None
    fetched = state.fetch(other)
    assert fetched
    assert fetched.folder.parent == other / "state"
    assert state.read_current(other) == fetched == state.read_published(other)
    assert state.load_tables(p, fetched) == state.load_tables(p, published)
    assert state.fetch(other) is None  # it is there
    assert team.list_names("state")


def test_time_goes_back_on_no_machine_of_a_team(cleaned: Made, team: Store, tmp_path: Path) -> None:
    first = state.publish(cleaned.params(), cleaned.folder)
    assert first
    early = cleaned.params(**{"clock.as_of": (BEGIN + 10 * DAY).isoformat()})
    cleaned.run("ingest", "clean", p=early)
    assert state.publish(early, cleaned.folder, home=tmp_path / "other") is None
    assert state.read_event_now() == pytest.approx(first.event_now(), abs=timedelta(minutes=5))
    assert team


def test_the_store_keeps_the_newest_states(cleaned: Made, team: Store, tmp_path: Path) -> None:
    p = cleaned.params()
    made = [state.publish(p, cleaned.folder, home=tmp_path / f"home{number}") for number in range(3)]
    folders = {name.split("/")[1] for name in team.list_names("state") if name.count("/") > 1}
    assert folders == {one.folder.name for one in made[1:] if one}
    assert [(tmp_path / f"home{number}" / "state" / state.POINTER).exists() for number in range(3)] == [True] * 3


class Behind(datetime):
    """The clock of a machine that is an hour behind the others."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) - timedelta(hours=1)


def test_a_machine_whose_clock_is_behind_removes_nothing_that_is_named(
    cleaned: Made, team: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = cleaned.params()
    for number in range(2):
        state.publish(p, cleaned.folder, home=tmp_path / f"home{number}")
    with monkeypatch.context() as patch:
        patch.setattr(state, "datetime", Behind)
        published = state.publish(p, cleaned.folder, home=tmp_path / "behind")
    fetched = state.fetch(tmp_path / "other")
    assert published
    assert fetched
    assert fetched.folder.name == published.folder.name
    assert team.list_names("state")


def test_where_the_store_is_away_event_time_is_not_known_and_a_home_is_not_ahead(
    cleaned: Made, shared: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("away")

    monkeypatch.setenv("EVERGREEN_LOCKS", "")
    monkeypatch.setattr(state.locks, "take_turn", lambda *_, **__: nullcontext())
    with monkeypatch.context() as patch:
        patch.setattr(type(shared), "read", fail)
        assert state.read_event_now() is None
    with monkeypatch.context() as patch:
        patch.setattr(type(shared), "replace", fail)
        with pytest.raises(StoreError):
            state.publish(cleaned.params(), cleaned.folder)
    assert state.read_current() is None


def test_a_state_that_came_damaged_is_refused_and_the_old_stays(cleaned: Made, team: Store, tmp_path: Path) -> None:
    p, other = cleaned.params(), tmp_path / "other"
    state.publish(p, cleaned.folder)
    first, second = state.fetch(other), state.publish(p, cleaned.folder)
    assert second
    team.replace(f"state/{second.folder.name}/orders.parquet", b"spoiled")
    with pytest.raises(ValueError, match=r"orders\.parquet"):
        state.fetch(other)
    assert state.read_current(other) == first
    assert (
        [path.name for path in (other / "state").iterdir() if path.is_dir()] == [first.folder.name] if first else False
    )
