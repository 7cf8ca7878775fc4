"""ingest gives what was known at as_of and nothing more, in the same bytes by whatever way, and no person's name."""

import csv
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tasks.data import contract
from tests.conftest import BEGIN, KEY, Made, tree

World = Callable[..., Made]


@pytest.fixture
def made(make_world: World) -> Made:
    """Forty days, January and a part of February, few rows."""
    return make_world(days=40, per_day=12)


def rows(made: Made, table: str) -> pa.Table:
    files = sorted((made.folder / "data/raw" / table).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files])


def data(made: Made) -> dict[str, bytes]:
    """The tables' files. The manifest tells of the source's bytes, too."""
    return {name: found for name, found in tree(made.folder / "data/raw").items() if name.endswith("parquet")}


def entries(made: Made) -> set[str]:
    """What the period cache holds."""
    return {path.name for path in (made.folder.parent / "periods").glob("??/*")}


def cached_rows(made: Made) -> list[Path]:
    return sorted((made.folder.parent / "periods").glob("??/*/rows.parquet"))


def orders(made: Made) -> list[dict[str, str]]:
    with (made.folder / "source/orders.csv").open() as stream:
        return list(csv.DictReader(stream))


def write_orders(made: Made, found: list[dict[str, str]]) -> None:
    with (made.folder / "source/orders.csv").open("w") as stream:
        writer = csv.DictWriter(stream, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


def known(order: dict[str, str]) -> datetime | None:
    if order["delay"] == "NA":
        return None
    return datetime.fromisoformat(order["placed"]) + timedelta(minutes=60 + int(order["delay"]))


def truncate(made: Made, as_of: datetime) -> None:
    """The sources as they would have been at as_of: later rows absent, later outcomes empty."""
    found = [order for order in orders(made) if datetime.fromisoformat(order["placed"]) <= as_of]
    for order in found:
        moment = known(order)
        order["delay"] = order["delay"] if moment and moment <= as_of else "NA"
    write_orders(made, found)
    traffic = pq.read_table(made.folder / "source/traffic.parquet")
    pq.write_table(traffic.filter(pc.less_equal(traffic["measured_at"], as_of)), made.folder / "source/traffic.parquet")


@pytest.mark.parametrize("unit", ["month", "week", "day"])
@pytest.mark.parametrize("as_of", [BEGIN + timedelta(days=33, hours=7), BEGIN + timedelta(days=31)])
def test_an_earlier_as_of_gives_what_the_source_would_have_given_then(
    make_world: World, unit: str, as_of: datetime
) -> None:
    whole, then = make_world(days=40, per_day=12, folder="whole"), make_world(days=40, per_day=12, folder="then")
    truncate(then, as_of)
    for made in (whole, then):
        made.run("ingest", p=made.params(**{"clock.as_of": as_of.isoformat(), "ingest.period": unit}))
    assert data(whole) == data(then)


def test_the_place_of_a_row_does_not_tell_of_an_outcome_that_is_not_known_yet(make_world: World) -> None:
    """Many orders share their time, and the contract names the outcome first."""
    as_of, found = BEGIN + timedelta(days=33, hours=6, minutes=59), []
    for made in (make_world(days=40, per_day=60, folder=each) for each in ("whole", "then")):
        made.raw["sources"]["orders"]["event_time"] = "date_trunc('hour', placed)"
        columns = made.raw["contract"]["orders"]["columns"]
        made.raw["contract"]["orders"]["columns"] = {"delay": columns.pop("delay"), **columns}
        if made.folder.name == "then":
            truncate(made, as_of)
        made.run("ingest", p=made.params(**{"clock.as_of": as_of.isoformat()}))
        found.append(data(made))
    assert found[0] == found[1]


def test_nothing_is_there_that_was_not_known_at_as_of(made: Made) -> None:
    as_of = BEGIN + timedelta(days=20, hours=12)
    made.run("ingest", p=made.params(**{"clock.as_of": as_of.isoformat()}))
    found = rows(made, "orders")
    truth = {order["number"]: order for order in orders(made)}
    assert max(found["event_time"].to_pylist()) <= as_of
    for number, delay, known_at in zip(
        *(found[name].to_pylist() for name in ("number", "delay", "known_at")), strict=True
    ):
        later = known(truth[number])
        expected = (truth[number]["delay"], later) if later and later <= as_of else (None, None)
        assert (delay, known_at) == expected


def test_rows_of_a_table_without_outcomes_are_there_once_they_are_known(made: Made) -> None:
    made.raw["sources"]["traffic"]["known_at"] = "measured_at + INTERVAL 6 HOUR"
    made.run("ingest", p=made.params(**{"clock.as_of": "2024-01-10T12:00:00"}))
    assert max(rows(made, "traffic")["event_time"].to_pylist()) == datetime(2024, 1, 10, 6)


def test_without_an_as_of_now_is_the_newest_moment_that_the_source_tells_of(made: Made) -> None:
    made.run("ingest", p=made.params(**{"clock.as_of": None}))
    newest = max(
        moment for order in orders(made) for moment in (known(order), datetime.fromisoformat(order["placed"])) if moment
    )
    assert json.loads((made.folder / "data/raw/manifest.json").read_text())["as_of"] == newest.isoformat()
    assert len(rows(made, "orders")) == len(orders(made))


def test_the_manifest_counts_what_the_files_hold(made: Made) -> None:
    made.run("ingest")
    manifest = json.loads((made.folder / "data/raw/manifest.json").read_text())
    for name, table in manifest["tables"].items():
        counted = {path.stem: len(pq.read_table(path)) for path in (made.folder / "data/raw" / name).glob("*")}
        assert table["periods"] == counted
        assert table["rows"] == sum(counted.values())
    assert list(manifest["tables"]["orders"]["periods"]) == ["2024-01", "2024-02"]
    assert manifest["pii_key_id"] == contract.identify_key(KEY.encode())


def test_the_same_inputs_give_the_same_bytes_with_the_cache_and_without(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made.run("ingest")
    first = tree(made.folder / "data/raw")
    made.run("ingest")
    assert tree(made.folder / "data/raw") == first
    monkeypatch.setenv("EVERGREEN_PERIODS", str(tmp_path / "empty"))
    made.run("ingest")
    assert tree(made.folder / "data/raw") == first


def test_a_later_as_of_works_on_the_open_periods_only_and_ends_where_a_full_build_does(
    make_world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = make_world(days=75, per_day=8)
    made.run("ingest", p=made.params(**{"clock.as_of": "2024-02-20"}))
    before = entries(made)
    p = made.run("ingest", p=made.params(**{"clock.as_of": "2024-03-05"}))
    new = [pq.read_table(path) for path in cached_rows(made) if path.parent.name not in before]
    assert len(new) == 4  # of two tables the rest of February, and the part of March that is known
    assert sorted(min(table["event_time"].to_pylist()).month for table in new) == [2, 2, 3, 3]
    step_by_step = tree(made.folder / "data/raw")
    monkeypatch.setenv("EVERGREEN_PERIODS", str(tmp_path / "empty"))
    made.run("ingest", p=p)
    assert tree(made.folder / "data/raw") == step_by_step


def test_bytes_that_were_seen_before_are_not_read_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    made.run("ingest")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("tasks.data.loading.SourceFiles.load", refuse)
    made.run("ingest", p=made.params(**{"clock.as_of": "2024-01-20T06:00:00"}))
    assert len(rows(made, "orders")) > 0


def test_a_source_that_moved_is_the_same_source(made: Made) -> None:
    made.run("ingest")
    before = entries(made)
    (made.folder / "source/orders.csv").rename(made.folder / "source/sales.csv")
    made.run("ingest", p=made.params(**{"sources.orders.address": "source/sales.csv"}))
    assert entries(made) == before


def test_a_bound_that_ingest_does_not_use_costs_it_nothing(made: Made) -> None:
    made.run("ingest")
    before = entries(made)
    made.run("ingest", p=made.params(**{"contract.orders.columns.amount.max": 1000}))
    assert entries(made) == before


@pytest.mark.parametrize(
    ("column", "rule"), [("delay", {"max": 30, "outside": "clip"}), ("email", {"text": ["upper"]})]
)
def test_a_way_to_mend_that_expressions_or_pseudonyms_see_is_not_taken_from_the_cache(
    made: Made, column: str, rule: dict[str, Any]
) -> None:
    made.run("ingest")
    before = data(made)
    mended = {**made.raw["contract"]["orders"]["columns"][column], **rule}
    made.run("ingest", p=made.params(**{f"contract.orders.columns.{column}": mended}))
    assert data(made) != before


def test_a_growing_source_changes_no_period_that_got_no_row(made: Made) -> None:
    made.run("ingest")
    before = data(made)
    last = orders(made)[-1]
    write_orders(made, [*orders(made), {**last, "number": "99999"}])
    made.run("ingest")
    changed = {name for name, found in data(made).items() if found != before[name]}
    assert changed == {"orders/2024-02.parquet"}


def test_rows_without_a_time_or_with_a_mad_one_are_kept_apart(made: Made) -> None:
    found = orders(made)
    for order, placed in zip(found, ("", "soon", "0001-01-01", "9999-12-31 23:59:59"), strict=False):
        order["placed"] = placed
    write_orders(made, found)
    made.run("ingest", p=made.params(**{"clock.as_of": "2024-01-20"}))
    unknown = pq.read_table(made.folder / "data/raw/orders/unknown.parquet")
    assert sorted(unknown["placed"].to_pylist(), key=str) == ["0001-01-01", "9999-12-31 23:59:59", None, "soon"]


def test_a_source_may_call_its_columns_by_the_names_of_the_two_times(made: Made) -> None:
    found = [{**order, "event_time": order["placed"], "known_at": order["placed"]} for order in orders(made)]
    write_orders(made, found)
    time = {"type": "TIMESTAMP", "required": True}
    made.raw["contract"]["orders"]["columns"] |= {"event_time": time, "known_at": time}
    made.raw["sources"]["orders"] |= {"event_time": "event_time", "known_at": "known_at + INTERVAL 1 HOUR"}
    made.run("ingest", p=made.params(**{"clock.as_of": None}))
    table = rows(made, "orders")
    assert table.column_names[-2:] == ["event_time", "known_at"]
    placed = [datetime.fromisoformat(each) for each in table["placed"].to_pylist()]
    assert table["event_time"].to_pylist() == placed
    assert table["known_at"].to_pylist() == [each + timedelta(hours=1) for each in placed]


def test_derived_columns_may_use_those_above_and_the_tables_above(made: Made) -> None:
    who = "CASE WHEN dear THEN (SELECT min(segment) FROM customers) END"
    made.raw["sources"]["orders"]["derive"] = {"dear": "amount > 20", "who": who}
    made.raw["contract"]["orders"]["columns"]["who"] = {"type": "VARCHAR"}
    made.run("ingest", p=made.params())
    found = rows(made, "orders")
    for amount, who in zip(found["amount"].to_pylist(), found["who"].to_pylist(), strict=True):
        assert who == ("loyal" if float(amount) > 20 else None)


def everything(folder: Path) -> str:
    """All text below a folder, in file names, in plain files and in the columns of Parquet."""
    found = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":
            found.append(str(pq.read_table(path).to_pylist()) + str(pq.read_schema(path)))
        if path.is_file():
            found.append(path.read_bytes().decode("latin-1"))
    return "\n".join(found)


def test_no_persons_name_is_in_any_file_that_was_written(made: Made) -> None:
    found = orders(made)
    found[5]["email"], found[6]["amount"] = "stranger@example.org", "-1"  # quarantined, with a reason
    write_orders(made, found)
    p = made.params(**{"clock.as_of": "2024-02-03T05:00:00", "clean.max_bad_share": 0.5})
    made.run("ingest", "clean", "features", p=p)
    written = "".join(
        everything(folder) for folder in (made.folder / "data", made.folder / "reports", made.folder.parent / "periods")
    )
    assert len(written) > 100_000
    assert contract.make_pseudonym("stranger@example.org", KEY.encode()) in written
    assert "example.org" not in written
    assert KEY not in written


def test_a_person_has_the_same_pseudonym_in_every_table(made: Made) -> None:
    made.run("ingest")
    people = set(rows(made, "customers")["email"].to_pylist())
    assert set(rows(made, "orders")["email"].to_pylist()) <= people
    assert contract.make_pseudonym("person7@example.org", KEY.encode()) in people


def test_another_key_gives_other_pseudonyms_and_nothing_of_the_old_ones(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.run("ingest")
    before = set(rows(made, "customers")["email"].to_pylist())
    monkeypatch.setenv("EVERGREEN_PII_KEY", "another key, as long")
    made.run("ingest")
    assert not before & set(rows(made, "customers")["email"].to_pylist())


def test_the_key_of_another_id_is_refused(made: Made) -> None:
    made.run("ingest", p=made.params(**{"ingest.pii_key_id": contract.identify_key(KEY.encode())}))
    with pytest.raises(
        ValueError, match=r"pii_key_id is 12345678, but the key at hand has the id \w{8}: pseudonyms would"
    ):
        made.run("ingest", p=made.params(**{"ingest.pii_key_id": "12345678"}))


def test_without_personal_data_no_key_is_needed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERGREEN_PII_KEY")
    with pytest.raises(ValueError, match="which needs a key: set EVERGREEN_PII_KEY, or run `make key`"):
        made.run("ingest")
    for table in ("customers", "orders"):
        made.raw["contract"][table]["columns"]["email"]["pii"] = False
    made.run("ingest", p=made.params(**{"ingest.pii_key_id": "12345678"}))
    assert json.loads((made.folder / "data/raw/manifest.json").read_text())["pii_key_id"] is None
    assert "person7@example.org" in rows(made, "customers")["email"].to_pylist()


def test_an_as_of_before_any_data_is_refused_with_the_day_on_which_the_data_begins(made: Made) -> None:
    with pytest.raises(
        ValueError, match=r"clock\.as_of 2023-12-31 00:00:00 lies before any data: orders begins at 2024-01-01"
    ):
        made.run("ingest", p=made.params(**{"clock.as_of": "2023-12-31"}))
    first = datetime.fromisoformat(orders(made)[0]["placed"])
    with pytest.raises(ValueError, match="lies before any data"):
        made.run("ingest", p=made.params(**{"clock.as_of": (first - timedelta(seconds=1)).isoformat()}))
    made.run("ingest", p=made.params(**{"clock.as_of": first.isoformat()}))
    assert len(rows(made, "orders")) == 1


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("sources.orders.address", "source/nowhere.csv", r"source/nowhere\.csv does not exist"),
        (
            "sources.orders.event_time",
            "plcaed",
            r"orders \(source/orders.csv\) does not fit its params: .*no column `plcaed` here. Did you mean `placed`",
        ),
        (
            "sources.orders.known_at",
            "amount",
            r"orders \(source/orders.csv\) does not fit its params: .*must be a TIMESTAMP.* is a DOUBLE",
        ),
        (
            "sources.orders.derive",
            {"x": "1 +"},
            r"orders \(source/orders.csv\) does not fit its params: .*no SQL that can be read",
        ),
        (
            "contract.orders.columns.sotre",
            {"type": "VARCHAR"},
            r"orders: source/orders\.csv lacks the column `sotre` \(did you mean `store`\?\)",
        ),
        (
            "contract.traffic.columns.jma",
            {"type": "DOUBLE"},
            r"traffic: source/traffic\.parquet lacks the column `jma` \(did you mean `jam`\?\)",
        ),
        ("sources.orders.event_time", "NULL", "no row of orders has an event time: check sources.orders.event_time"),
    ],
)
def test_a_source_that_does_not_fit_its_params_is_named(made: Made, name: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){said}"):
        made.run("ingest", p=made.params(**{name: value}))


@pytest.mark.parametrize(
    ("table", "content", "said"),
    [
        ("orders", "", r"source/orders\.csv: orders\.csv is empty"),
        ("orders", "number,placed,email,store,amount,distance,delay\n", r"orders \(source/orders\.csv\) has no rows"),
        ("customers", "email,segment,age\n", r"customers \(source/customers\.csv\) has no rows"),
        (
            "customers",
            "email,segment,age\na@b,new,1\nc@d,ne",
            r"customers\.csv cannot be read as a table: line 3 has 2 fields",
        ),
    ],
)
def test_a_source_without_rows_or_cut_off_is_refused(made: Made, table: str, content: str, said: str) -> None:
    (made.folder / f"source/{table}.csv").write_text(content)
    with pytest.raises(ValueError, match=said):
        made.run("ingest")
