"""A table that has lost rows is held, whatever its as_of, and nobody has to ask for it."""

from pathlib import Path

import pytest

from tasks.data.manifest import RawManifest
from tasks.runtime.store import Store
from tests.conftest import Made


def keep(made: Made, share: float, table: str = "orders") -> None:
    """Leave the first rows of a source."""
    path = made.folder / "source" / f"{table}.csv"
    header, *rows = path.read_text().splitlines(keepends=True)
    path.write_text(header + "".join(rows[: round(len(rows) * share)]))


def test_a_table_that_has_lost_rows_is_held_until_they_are_back_or_that_is_right(made: Made) -> None:
    path = made.folder / "source" / "orders.csv"
    whole = path.read_bytes()
    made.run("ingest")
    keep(made, 0.8)
    said = (
        r"orders \(source/orders\.csv\) must not lose more than max_drop 0\.1 of its rows, but has lost 20\.0%: 3,840 "
        r"rows came, 4,800 the last time\. .* set sources\.orders\.max_drop to 0\.21 for one run"
    )
    for _ in range(2):  # it is no more right for having failed
        with pytest.raises(ValueError, match=said):
            made.run("ingest")
    path.write_bytes(whole)
    made.run("ingest")
    keep(made, 0.8)
    made.run("ingest", p=made.params(**{"sources.orders.max_drop": 0.21}))
    made.run("ingest", p=made.params())  # it is the new measure
    keep(made, 0.95)
    made.run("ingest")


def test_what_is_known_at_an_earlier_moment_is_no_loss(made: Made) -> None:
    made.run("ingest")
    made.run("ingest", p=made.params(**{"clock.as_of": "2024-01-10"}))
    made.run("ingest", p=made.params())


def test_empty_lines_are_no_rows(made: Made) -> None:
    path = made.folder / "source" / "customers.csv"
    made.run("ingest")
    keep(made, 0.5, "customers")
    path.write_text(path.read_text() + "\n" * 200)
    with pytest.raises(ValueError, match=r"customers .* has lost 50\.0%"):
        made.run("ingest")


def test_another_address_is_another_table(made: Made) -> None:
    made.run("ingest")
    keep(made, 0.5)
    (made.folder / "source" / "orders.csv").rename(made.folder / "source" / "sample.csv")
    made.run("ingest", p=made.params(**{"sources.orders.address": "source/sample.csv"}))


def test_a_fallback_is_compared_with_what_it_stands_for(made: Made) -> None:
    made.run("ingest")
    keep(made, 0.5)
    (made.folder / "source" / "orders.csv").rename(made.folder / "second.csv")
    with pytest.raises(ValueError, match=r"orders \(source/orders\.csv\) must not lose more than max_drop"):
        made.run("ingest", p=made.params(**{"sources.orders.fallback": "second.csv"}))


def test_a_machine_with_an_empty_disk_knows_what_the_team_had(
    made: Made, team: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.run("ingest")
    assert len(team.list_names("deliveries")) == 3
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "another machine"))
    keep(made, 0.5)
    with pytest.raises(ValueError, match=r"but has lost 50\.0%"):
        made.run("ingest")
    made.run("ingest", p=made.params(**{"sources.orders.max_drop": 1}))
    assert RawManifest.read(made.folder / "data" / "raw").tables["orders"].read == 2400
