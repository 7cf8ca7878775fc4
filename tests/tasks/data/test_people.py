"""A person's rows are found by her pseudonym, in every table and period, and by nothing but the key."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from tasks.data import contract, people
from tests.conftest import Made

PERSON = "person17@example.org"


def count_orders(folder: Path, person: str) -> Counter[str]:
    """A person's orders by month, as the source has them."""
    with (folder / "source" / "orders.csv").open() as stream:
        return Counter(row["placed"][:7] for row in csv.DictReader(stream) if row["email"] == person)


def find(made: Made, value: str) -> dict[str, int]:
    places = people.find_places(made.params(), made.folder, value, contract.load_pii_key())
    return {f"{place.path.relative_to(made.folder)} {place.column}": place.rows for place in places}


def test_every_row_of_a_person_is_found_in_its_table_and_period(made: Made) -> None:
    made.run("ingest", "clean")
    orders = count_orders(made.folder, PERSON)
    assert len(orders) >= 2
    wanted = {
        f"data/{stage}/orders/{month}.parquet email": rows
        for stage in ("raw", "clean")
        for month, rows in orders.items()
    }
    wanted |= {f"data/{stage}/customers/all.parquet email": 1 for stage in ("raw", "clean")}
    assert find(made, PERSON) == wanted


def test_a_row_in_quarantine_is_found_too(made: Made) -> None:
    path = made.folder / "source" / "customers.csv"
    path.write_text(path.read_text().replace(f"{PERSON},", f"{PERSON},no-such-segment-", 1))
    made.run("ingest", "clean")
    assert find(made, PERSON)["data/quarantine/customers/all.parquet email"] == 1


def test_a_value_is_spelled_anew_as_the_contract_says(made: Made) -> None:
    made.raw["contract"]["customers"]["columns"]["email"]["text"] = ["trim", "lower"]
    made.run("ingest", "clean")
    assert "data/clean/customers/all.parquet email" in find(made, f" {PERSON.upper()} ")
    assert not find(made, "   ")


def test_the_command_shows_the_files_and_never_the_value(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.run("ingest", "clean")
    made.params()
    people.main(PERSON)
    shown = capsys.readouterr().out
    assert "data/raw/customers/all.parquet" in shown
    assert PERSON not in shown
    people.main("nobody@example.org")
    assert "No row" in capsys.readouterr().out
