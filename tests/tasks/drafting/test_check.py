"""`evergreen check` says before a run what would stop it, and the way out."""

from pathlib import Path
from typing import Any

import pytest

from tasks import params
from tasks.drafting import check, init
from tests.conftest import Made, write_params
from tests.tasks.drafting.tables import read_draft, write_orders, write_weather


def find_faults(folder: Path, **changes: Any) -> dict[str, str]:
    """What check says is a fault, by its place, after these changes of params.yaml."""
    raw = read_draft(folder)
    for name, value in changes.items():
        section, key = name.split("__")
        raw[section][key] = value
    write_params(raw, folder)
    return {one.place: one.message for one in check.check(params.load()) if one.kind == "fault"}


@pytest.fixture
def drafted(checkout: Made, tmp_path: Path) -> Path:
    init.main(str(write_weather(tmp_path / "weather.csv")), label="temperature")
    return checkout.folder


@pytest.mark.usefixtures("drafted")
def test_what_init_has_drafted_has_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main() == 0
    assert "No fault" in capsys.readouterr().out


def test_a_draft_of_events_has_no_fault(checkout: Made, tmp_path: Path) -> None:
    init.main(str(write_orders(tmp_path / "orders.csv")), label="returned")
    assert find_faults(checkout.folder) == {}


@pytest.mark.parametrize(
    ("changes", "place", "message"),
    [
        ({"split__holdout": "900d"}, "split.holdout", "nothing is left to train on"),
        ({"gate__min_rows": 5000}, "gate.min_rows", "holds 80 rows"),
        ({"evaluate__slices": ["sky"]}, "evaluate.slices", "are not among"),
        ({"label__expression": "temprature"}, "SQL", "Did you mean `temperature`"),
        ({"label__expression": "7"}, "label", "nothing can be learnt"),
    ],
)
def test_a_setting_that_does_not_fit_is_a_fault(
    drafted: Path, changes: dict[str, Any], place: str, message: str
) -> None:
    assert message in find_faults(drafted, **changes)[place]


def test_a_file_that_is_gone_and_a_column_that_is_not_there_are_faults(drafted: Path, tmp_path: Path) -> None:
    table = tmp_path / "weather.csv"
    table.write_text(table.read_text().replace("temperature", "warmth", 1))
    assert "lacks the column" in find_faults(drafted)["weather"]
    table.unlink()
    assert "does not exist" in find_faults(drafted)["sources"]


def test_rows_that_break_the_contract_are_counted_by_rule(drafted: Path, tmp_path: Path) -> None:
    table = tmp_path / "weather.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:300] + [line.replace(",", ",x", 1) for line in lines[300:]]))
    assert "temperature: type 101" in find_faults(drafted)["weather"]


def test_the_exit_status_tells_of_a_fault(drafted: Path) -> None:
    (drafted / "tasks" / "features.sql").write_text("SELECT row_id FROM spine")
    assert check.main() == 1
