"""clean keeps every row, in one of two places, says why, and stops when too many are bad, after it has said so."""

import csv
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.params import Params
from tests.conftest import Made, tree

World = Callable[..., Made]
HEAD = ["number", "placed", "email", "store", "amount", "distance", "delay"]
GOOD = ["1", "2024-01-05 10:00:00", "person1@example.org", "north", "10.5", "3", "25"]


@pytest.fixture
def made(make_world: World) -> Made:
    made = make_world(days=40, per_day=4)
    made.raw["clean"]["max_bad_share"] = 1
    return made


@pytest.fixture
def cleaned(made: Made) -> Callable[..., dict[str, Any]]:
    """Orders, each as the values in which it differs from a good one → what quality.json says of them."""

    def cleaned(*orders: dict[str, str]) -> dict[str, Any]:
        rows = [{**dict(zip(HEAD, GOOD, strict=True)), "number": str(i), **order} for i, order in enumerate(orders)]
        with (made.folder / "source/orders.csv").open("w") as stream:
            writer = csv.DictWriter(stream, HEAD)
            writer.writeheader()
            writer.writerows(rows)
        made.run("ingest", "clean", p=made.params())
        return quality(made)["orders"]

    return cleaned


def quality(made: Made) -> dict[str, Any]:
    return dict(json.loads((made.folder / "reports/quality.json").read_text())["tables"])


def rows(made: Made, place: str, table: str = "orders") -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in sorted((made.folder / "data" / place / table).glob("*"))])


def reasons(made: Made) -> dict[str, str]:
    held = rows(made, "quarantine")
    return dict(zip(held["number"].to_pylist(), held["reason"].to_pylist(), strict=True))


def entries(made: Made) -> set[str]:
    """Those of the cache that hold a period's clean rows."""
    return {path.parent.name for path in (made.folder.parent / "periods").glob("??/*/clean.parquet")}


@pytest.mark.parametrize(
    ("order", "rule", "reason"),
    [
        ({"amount": "a lot"}, "amount: type", "amount a lot is no DOUBLE"),
        ({"delay": "2.5"}, "delay: type", "delay 2.5 is no INTEGER"),
        ({"store": ""}, "store: required", "store is missing"),
        ({"amount": "-1"}, "amount: min", "amount -1.0 is below 0"),
        ({"distance": "100.5"}, "distance: max", "distance 100.5 is above 100"),
        ({"store": "east"}, "store: allowed", "store east is not allowed"),
        ({"placed": "soon"}, "placed: type", "placed soon is no TIMESTAMP; event_time cannot be told"),
        ({"placed": ""}, "event_time: required", "placed is missing; event_time cannot be told"),
    ],
)
def test_each_rule_puts_its_row_aside_and_says_why(
    cleaned: Callable[..., dict[str, Any]], made: Made, order: dict[str, str], rule: str, reason: str
) -> None:
    found = cleaned({}, order, {})
    assert (found["rows"], found["bad"], found["by_rule"][rule]) == (3, 1, 1)
    assert reasons(made) == {order.get("number", "1"): reason}
    assert rows(made, "clean")["number"].to_pylist() == [0, 2]


def test_of_two_rows_with_one_key_in_a_file_the_later_is_kept_and_the_other_names_its_place(
    cleaned: Callable[..., dict[str, Any]], made: Made
) -> None:
    found = cleaned({"amount": "20"}, {"number": "0", "amount": "10"}, {})
    assert (found["rows"], found["bad"], found["by_rule"]) == (3, 1, {"key: duplicate": 1})
    assert rows(made, "clean").select(["number", "amount"]).to_pylist()[0] == {"number": 0, "amount": 10}
    assert reasons(made) == {"0": "row 2 of orders.csv has the same number and came later"}


def test_a_person_whom_nobody_knows_is_put_aside_under_a_pseudonym(
    cleaned: Callable[..., dict[str, Any]], made: Made
) -> None:
    found = cleaned({}, {"email": "stranger@example.org"})
    assert found["by_rule"] == {"email: references": 1}
    (reason,) = reasons(made).values()
    assert reason.startswith("email ")
    assert reason.endswith(" is not in customers.email")
    assert "stranger" not in reason


def test_a_reference_that_is_only_reported_keeps_its_row(cleaned: Callable[..., dict[str, Any]], made: Made) -> None:
    made.raw["contract"]["orders"]["columns"]["email"]["unmatched"] = "report"
    found = cleaned({}, {"email": "stranger@example.org"})
    assert (found["bad"], found["by_rule"], found["reported"]) == (0, {}, {"email: references": 1})


def test_a_row_with_many_faults_is_counted_by_each_and_put_aside_once(
    cleaned: Callable[..., dict[str, Any]], made: Made
) -> None:
    found = cleaned({"store": "east", "amount": "-1"}, {})
    assert (found["bad"], found["by_rule"]) == (1, {"store: allowed": 1, "amount: min": 1})
    assert reasons(made) == {"0": "store east is not allowed; amount -1.0 is below 0"}


def test_of_two_rows_with_one_key_the_good_one_stays_wherever_it_stands(
    cleaned: Callable[..., dict[str, Any]], made: Made
) -> None:
    cleaned({"number": "7", "amount": "-1"}, {"number": "7"}, {"number": "7", "placed": "2024-01-06 10:00:00"})
    kept = rows(made, "clean")
    assert (kept["number"].to_pylist(), kept["amount"].to_pylist()) == ([7], [10.5])
    assert rows(made, "quarantine")["reason"].to_pylist()[0] == (
        "amount -1.0 is below 0; row 3 of orders.csv has the same number and came later"
    )


def test_a_key_that_comes_back_in_another_period_is_reported_and_kept(
    cleaned: Callable[..., dict[str, Any]], made: Made
) -> None:
    found = cleaned({"number": "7"}, {"number": "7", "placed": "2024-02-02"})
    assert (found["bad"], found["reported"]) == (0, {"key: again in another period": 1})
    assert rows(made, "clean")["number"].to_pylist() == [7, 7]


def test_no_row_is_lost(made: Made) -> None:
    text = (made.folder / "source/orders.csv").read_text().splitlines()
    text[5], text[9] = text[9], text[5].replace("north", "east").replace("south", "east").replace("west", "east")
    (made.folder / "source/orders.csv").write_text("\n".join([*text, text[3]]) + "\n")
    made.run("ingest", "clean", p=made.params())
    for name, found in quality(made).items():
        kept, held = len(rows(made, "clean", name)), len(rows(made, "quarantine", name))
        assert (kept + held, held) == (found["rows"], found["bad"])
        assert len(rows(made, "raw", name)) == found["rows"]
    assert quality(made)["orders"]["bad"] == 2


def test_clean_rows_have_the_contracts_types_and_raw_ones_stay_as_they_came(
    cleaned: Callable[..., dict[str, Any]], made: Made
) -> None:
    cleaned({}, {"amount": "12,50"})
    types = {field.name: str(field.type) for field in rows(made, "clean").schema}
    assert types == {
        "number": "int32",
        "placed": "timestamp[us]",
        "email": "string",
        "store": "string",
        "amount": "double",
        "distance": "double",
        "delay": "int32",
        "event_time": "timestamp[us]",
        "known_at": "timestamp[us]",
    }
    assert rows(made, "quarantine")["amount"].to_pylist() == ["12,50"]


def test_too_many_bad_rows_fail_the_stage_by_the_tables_name_after_all_is_written(made: Made) -> None:
    made.raw["clean"]["max_bad_share"] = 0.1
    made.raw["contract"]["orders"]["columns"]["store"]["allowed"] = ["north", "south"]
    made.raw["contract"]["traffic"]["columns"]["jam"]["max"] = 0.1
    made.run("ingest", p=made.params())
    with pytest.raises(ValueError) as caught:
        made.run("clean")
    traffic, orders = str(caught.value).splitlines()
    assert traffic.startswith("traffic: `bad rows <= clean.max_bad_share` must hold, but ")
    assert orders.startswith("orders: `bad rows")
    assert "store: allowed (" in orders
    assert "See data/quarantine/orders; mend the source, contract.orders, or the bound." in orders
    assert quality(made)["orders"]["bad"] == len(rows(made, "quarantine"))
    assert (made.folder / "reports/quality.html").read_text().count('class="bad"') == 4


def test_the_same_inputs_give_the_same_bytes_with_the_cache_and_without(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def outputs() -> dict[str, bytes]:
        return {**tree(made.folder / "data"), **tree(made.folder / "reports")}

    made.run("ingest", "clean", p=made.params())
    first = outputs()
    assert not [name for name in first if Path(name).name.startswith(".")]
    made.run("clean")
    assert outputs() == first
    monkeypatch.setenv("EVERGREEN_PERIODS", str(tmp_path / "empty"))
    made.run("clean")
    assert outputs() == first


def test_only_periods_with_other_rows_are_worked_on(made: Made) -> None:
    made.run("ingest", "clean", p=made.params())
    orders = made.folder / "source/orders.csv"
    orders.write_text(orders.read_text() + ",".join([*GOOD[:1], "2024-02-07 10:00:00", *GOOD[2:]]) + "\n")
    made.run("ingest")
    before = entries(made)
    made.run("clean")
    assert len(entries(made) - before) == 1


def test_a_changed_reference_is_checked_again(made: Made) -> None:
    made.run("ingest", "clean", p=made.params())
    assert quality(made)["orders"]["bad"] == 0
    customers = made.folder / "source/customers.csv"
    customers.write_text("\n".join(customers.read_text().splitlines()[:-50]) + "\n")
    made.run("ingest", "clean", p=made.params(**{"sources.customers.max_drop": 0.5}))
    assert quality(made)["orders"]["by_rule"]["email: references"] > 0


def test_tables_may_stand_in_any_order(made: Made) -> None:
    made.run("ingest", "clean", p=made.params())
    first = tree(made.folder / "data")
    made.raw["contract"] = dict(reversed(made.raw["contract"].items()))
    made.run("clean", p=made.params())
    assert tree(made.folder / "data") == first


def test_a_table_of_which_nothing_was_known_yet_is_empty_and_may_be_referred_to(made: Made) -> None:
    made.raw["sources"]["traffic"]["known_at"] = "measured_at + INTERVAL 90 DAY"
    made.run("ingest", "clean", p=made.params())
    assert quality(made)["traffic"]["rows"] == 0


class Strict(HTMLParser):
    """Every tag is closed, in turn; what is shown is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.shown = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown += data


def page(made: Made) -> str:
    parser = Strict()
    parser.feed((made.folder / "reports/quality.html").read_text())
    assert parser.open == []
    return parser.shown


def test_the_report_is_well_formed_and_names_every_table_and_broken_rule(
    cleaned: Callable[..., dict[str, Any]], made: Made
) -> None:
    cleaned({}, {"store": "east"}, {"distance": ""})
    shown = page(made)
    for text in ("customers", "traffic", "orders", "store: allowed", "distance", "Every row keeps every rule."):
        assert text in shown


def test_a_name_that_looks_like_html_is_shown_and_not_run(made: Made) -> None:
    evil = "<script>alert('&')</script>"
    text = (made.folder / "source/orders.csv").read_text().replace("distance", evil, 1)
    (made.folder / "source/orders.csv").write_text(text)
    columns = made.raw["contract"]["orders"]["columns"]
    columns[evil] = {**columns.pop("distance"), "max": 5}
    made.raw["spine"]["columns"].remove("distance")
    made.run("ingest", "clean", p=made.params())
    assert "<script" not in (made.folder / "reports/quality.html").read_text()
    assert f"{evil}: max" in page(made)


def test_the_bound_is_told_in_the_report(made: Made) -> None:
    p: Params = made.params(**{"clean.max_bad_share": 0.025})
    made.run("ingest", "clean", p=p)
    assert "more than 2.5% there fails the stage" in page(made)


def deliver(made: Made, **files: str) -> None:
    """Orders in several files: by name, the rows as `number,amount` and what else differs from a good one."""
    (made.folder / "source/orders.csv").unlink()
    for name, text in files.items():
        (made.folder / f"source/orders-{name}.csv").write_text(text)
    made.raw["sources"]["orders"]["address"] = "source/orders-*.csv"


def file_of(*orders: dict[str, str], names: list[str] | None = None) -> str:
    names = names or HEAD
    rows = [{**dict(zip(HEAD, GOOD, strict=True)), **order} for order in orders]
    return "\n".join([",".join(names), *(",".join(row.get(name, "") for name in names) for row in rows)]) + "\n"


@pytest.mark.parametrize("amounts", [("10", "20"), ("20", "10")])
def test_of_two_rows_with_one_key_in_two_files_the_later_file_wins_and_the_other_is_no_fault(
    made: Made, amounts: tuple[str, str]
) -> None:
    first, second = (file_of({"number": "7", "amount": amount}) for amount in amounts)
    deliver(made, **{"9": first, "10": second})
    made.raw["clean"]["max_bad_share"] = 0
    made.run("ingest", "clean", p=made.params())
    found = quality(made)["orders"]
    assert (found["rows"], found["bad"], found["superseded"]) == (2, 0, 1)
    assert rows(made, "clean")["amount"].to_pylist() == [float(amounts[1])]
    assert reasons(made) == {"7": "row 1 of orders-10.csv has the same number and came later"}


def test_the_row_of_the_higher_version_wins_wherever_it_stands(made: Made) -> None:
    made.raw["contract"]["orders"]["version"] = "distance"
    deliver(made, a=file_of({"distance": "9", "amount": "1"}), b=file_of({"distance": "10", "amount": "2"}, {}))
    made.run("ingest", "clean", p=made.params())
    assert rows(made, "clean")["amount"].to_pylist() == [2.0]
    assert (
        rows(made, "quarantine")["reason"].to_pylist()
        == ["row 1 of orders-b.csv has the same number with a later distance"] * 2
    )
    assert (quality(made)["orders"]["bad"], quality(made)["orders"]["superseded"]) == (0, 2)


def test_what_the_contract_mends_is_kept_and_counted_and_a_person_has_one_pseudonym_however_it_is_spelled(
    cleaned: Callable[..., dict[str, Any]], made: Made
) -> None:
    columns = made.raw["contract"]["orders"]["columns"]
    columns["store"]["text"] = ["trim", "lower"]
    columns["email"] |= {"text": ["trim", "upper"]}
    columns["distance"]["outside"] = "clip"
    columns["amount"]["outside"] = "empty"
    made.raw["contract"]["customers"]["columns"]["email"] |= {"text": ["trim", "upper"]}
    counts = cleaned(
        {"store": " North"}, {"email": " Person1@example.ORG "}, {"distance": "100.5"}, {"amount": "-1"}, {"store": "x"}
    )
    good = rows(made, "clean")
    assert good["store"].to_pylist() == ["north"] * 4
    assert len(set(good["email"].to_pylist())) == 1
    assert good["distance"].to_pylist() == [3, 3, 100, 3]
    assert good["amount"].to_pylist() == [10.5, 10.5, 10.5, None]
    assert counts["reported"] == {"store: spelled anew": 1, "distance: max, clipped": 1, "amount: min, emptied": 1}
    assert (counts["rows"], counts["bad"], counts["by_rule"]) == (5, 1, {"store: allowed": 1})


def test_rows_without_a_key_are_not_copies_of_each_other(cleaned: Callable[..., dict[str, Any]]) -> None:
    found = cleaned({}, {"number": ""}, {"number": ""})
    assert found["by_rule"] == {"number: required": 2}


def test_every_row_that_was_read_is_somewhere(made: Made) -> None:
    lacking = [name for name in HEAD if name != "amount"]
    last = {"number": "4", "placed": "2024-02-09 12:00:00"}
    texts = [
        file_of({"number": "1"}, {"number": "2", "store": "east"}) + ",,,,,,\n\n",
        file_of({"number": "1"}, {"number": "3"}, last, names=lacking),
    ]
    deliver(made, **{"1": texts[0], "2": texts[1]})
    made.run("ingest", "clean", p=made.params(**{"clock.as_of": "2024-02-01"}))
    found = quality(made)["orders"]
    kept = len(rows(made, "clean"))
    assert (found["read"], found["empty"], found["later"], found["bad"], found["superseded"], kept) == (
        7,
        2,
        1,
        1,
        1,
        2,
    )
    assert found["read"] == found["empty"] + found["later"] + found["bad"] + found["superseded"] + kept
    assert found["lacking"] == {"orders-2.csv": ["amount"]}
    assert "orders-2.csv lacks amount." in page(made)


def test_a_time_that_a_change_of_clocks_makes_unsure_is_counted_and_read_by_the_rule(
    cleaned: Callable[..., dict[str, Any]], made: Made
) -> None:
    times = ["2024-01-05 10:00:00", "2023-11-05 01:30:00 America/New_York", "2023-03-12 02:30:00 America/New_York"]
    made.raw["clock"]["as_of"] = None
    found = cleaned(*({"placed": time} for time in times))
    assert found["reported"] == {"placed: skipped by the clock": 1, "placed: shown twice by the clock": 1}
    raw = {row["number"]: row["placed"] for row in rows(made, "raw").to_pylist()}
    assert set(raw.values()) == set(times)


def test_a_row_for_which_an_expression_fails_is_put_aside_and_no_other(
    cleaned: Callable[..., dict[str, Any]], made: Made
) -> None:
    made.raw["sources"]["orders"]["derive"] = {"code": "CAST(replace(store, 'north', '1') AS INTEGER)"}
    made.raw["contract"]["orders"]["columns"]["code"] = {"type": "INTEGER"}
    found = cleaned({}, {"store": "south"}, {})
    assert (found["bad"], found["by_rule"]) == (1, {"derive.code: fails": 1})
    assert reasons(made) == {"1": "sources.orders.derive.code cannot be computed for this row"}
    assert rows(made, "clean")["code"].to_pylist() == [1, 1]


def test_a_row_whose_event_time_cannot_be_computed_is_put_aside(
    cleaned: Callable[..., dict[str, Any]], made: Made
) -> None:
    made.raw["contract"]["orders"]["columns"]["placed"]["type"] = "VARCHAR"
    made.raw["sources"]["orders"]["event_time"] = "strptime(placed, '%d/%m/%Y')"
    made.raw["sources"]["orders"]["known_at"] = "strptime(placed, '%d/%m/%Y')"
    found = cleaned({"placed": "30/01/2024"}, {"placed": "31/02/2024"}, {"placed": "01/02/2024"})
    assert (found["bad"], found["by_rule"]["event_time: fails"]) == (1, 1)
    assert list(reasons(made)) == ["1"]


def test_a_row_for_which_the_label_fails_is_put_aside(cleaned: Callable[..., dict[str, Any]], made: Made) -> None:
    fails = "CASE WHEN amount = 13 THEN CAST(concat('x', store) AS INTEGER) ELSE delay END"
    made.raw["label"]["expression"] = f"{fails} >= 30"
    found = cleaned({}, {"amount": "13"}, {})
    assert (found["bad"], found["by_rule"]) == (1, {"label: fails": 1})
    assert reasons(made) == {"1": "label.expression cannot be computed"}


def test_a_table_of_times_in_zones_that_mean_several_things_goes_to_quarantine_whole(
    cleaned: Callable[..., dict[str, Any]], made: Made
) -> None:
    found = cleaned({"placed": "2024-01-05 10:00:00 PST"}, {"placed": "2024-01-05 10:00:00 XYZ"})
    assert (found["bad"], found["by_rule"]["placed: zone"]) == (2, 2)
    assert "has the zone XYZ, but only an offset such as +02:00" in reasons(made)["1"]


def test_a_failing_subquery_is_refused_with_the_way_out_and_without_a_value(made: Made) -> None:
    made.raw["sources"]["orders"]["derive"] = {"x": "CAST(store AS INTEGER) + (SELECT count(*) FROM traffic)"}
    with pytest.raises(ValueError, match=r"sources\.orders\.derive\.x fails .* TRY\(\.\.\.\)") as caught:
        made.run("ingest", p=made.params())
    assert "north" not in str(caught.value)


def test_a_checkout_whose_folder_looks_like_a_pattern_cleans_its_own_rows(make_world: World) -> None:
    for name in ("w1", "w[1]", "a=1"):
        made = make_world(days=3, per_day=4, folder=name)
        made.run("ingest", "clean", p=made.params())
        assert rows(made, "clean").column_names[-2:] == ["event_time", "known_at"]
        assert len(rows(made, "clean")) == 12


CDC = [*HEAD, "op"]


@pytest.fixture
def changing(made: Made) -> Made:
    """Orders with a column op, which is D for a row that says that its key is gone."""
    made.raw["contract"]["orders"]["columns"]["op"] = {"type": "VARCHAR"}
    made.raw["contract"]["orders"]["deleted"] = "op = 'D'"
    made.raw["clean"]["max_bad_share"] = 0
    return made


def change(op: str, number: str, **more: str) -> dict[str, str]:
    return {"number": number, "op": op, **more}


def test_a_deletion_takes_the_row_of_its_key_along_and_neither_is_a_fault(changing: Made) -> None:
    first = file_of(change("I", "1"), change("I", "2"), change("I", "3"), names=CDC)
    empty = {"email": "", "store": "", "amount": "", "distance": ""}  # a deletion knows no more than its key and time
    deliver(changing, a=first, b=file_of(change("D", "2", **empty), names=CDC))
    changing.run("ingest", "clean", p=changing.params())
    assert rows(changing, "clean")["number"].to_pylist() == [1, 3]
    found = quality(changing)["orders"]
    assert (found["rows"], found["bad"], found["superseded"], found["by_rule"]) == (4, 0, 2, {})
    held = rows(changing, "quarantine").select(["op", "reason"]).to_pylist()
    assert {row["op"]: row["reason"] for row in held} == {
        "I": "row 1 of orders-b.csv has the same number and came later",
        "D": "it says that the row of its key is gone",
    }


def test_a_key_that_comes_back_after_its_deletion_is_there_again(changing: Made) -> None:
    text = file_of(change("I", "1", amount="1"), change("D", "1"), change("I", "1", amount="3"), names=CDC)
    deliver(changing, a=text)
    changing.run("ingest", "clean", p=changing.params())
    assert rows(changing, "clean")["amount"].to_pylist() == [3.0]
    assert (quality(changing)["orders"]["bad"], quality(changing)["orders"]["superseded"]) == (0, 2)


def test_a_deletion_of_what_never_came_is_no_row(changing: Made) -> None:
    deliver(changing, a=file_of(change("D", "1"), change("I", "2"), names=CDC))
    changing.run("ingest", "clean", p=changing.params())
    assert rows(changing, "clean")["number"].to_pylist() == [2]


def test_a_deletion_without_its_key_is_a_fault(changing: Made) -> None:
    changing.raw["clean"]["max_bad_share"] = 1
    deliver(changing, a=file_of(change("D", "x"), change("I", "2"), names=CDC))
    changing.run("ingest", "clean", p=changing.params())
    assert quality(changing)["orders"]["bad"] == 1


@pytest.mark.parametrize(
    ("rule", "words"),
    [("opp = 'D'", "contract.orders.deleted .*`opp`.*op"), ("op", "contract.orders.deleted must be true or false")],
)
def test_a_rule_of_deletion_that_is_none_is_refused(changing: Made, rule: str, words: str) -> None:
    changing.raw["contract"]["orders"]["deleted"] = rule
    deliver(changing, a=file_of(change("I", "2"), names=CDC))
    with pytest.raises(ValueError, match=words):
        changing.run("ingest", "clean", p=changing.params())


def test_a_table_may_use_the_names_that_the_queries_of_the_stages_use(made: Made) -> None:
    names = ["usual", "place", "file", "row", "winner", "loses", "bad", "b0", "known", "value", "clear", "pseudonym"]
    made.raw["sources"]["orders"]["derive"] = {name: f"number + {i}" for i, name in enumerate(names)}
    made.raw["contract"]["orders"]["columns"] |= {name: {"type": "BIGINT", "min": 0} for name in names}
    deliver(made, a=file_of({"number": "7"}, {"number": "8"}), b=file_of({"number": "7", "amount": "5"}))
    made.run("ingest", "clean", p=made.params())
    assert rows(made, "clean").select(["number", *names]).to_pylist() == [
        {"number": number, **{name: number + i for i, name in enumerate(names)}} for number in (7, 8)
    ]
    assert reasons(made) == {"7": "row 1 of orders-b.csv has the same number and came later"}


def test_a_name_that_rows_are_read_by_is_refused(made: Made) -> None:
    made.raw["contract"]["orders"]["columns"]["file_index"] = {"type": "BIGINT"}
    with pytest.raises(ValueError, match=r"must not be called .*file_index.*: rename them by sources\.orders\.derive"):
        made.params()
