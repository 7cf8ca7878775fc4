"""What a card shows of a column, of personal data, and of the software."""

import re
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pytest

from tasks.params import Column
from tasks.promotion import bill, card, datacard
from tests.tasks import small


def test_numbers_are_shown_by_their_range_and_what_is_missing() -> None:
    column = pa.chunked_array([[1, 2], [None, 9]])
    assert datacard.summarize_numbers(column) == {"missing": "25.0%", "from": "1", "median": "2", "to": "9"}
    assert datacard.summarize_numbers(pa.chunked_array([[None, None]], pa.float64())) == {"missing": "100.0%"}


@pytest.mark.parametrize(
    ("value", "words"),
    [(71220.4, "71,220"), (2013, "2013"), (9999.7, "10,000"), (0.015754, "0.01575"), (0, "0"), (-1e20, "-1e+20")],
)
def test_a_number_is_shown_as_people_read_it(value: float, words: str) -> None:
    assert datacard.spell_number(value) == words


@pytest.mark.parametrize(("lead", "words"), [("0s", "at the event's own time"), ("2h", "2h before the event")])
def test_a_lead_of_nothing_is_the_event_itself(lead: str, words: str) -> None:
    assert datacard.spell_lead(small.settings(**{"features.lead": lead})) == words


def test_the_model_and_the_gate_s_metric_lead_the_table() -> None:
    rows = [
        {"auc": 0.7, "brier": 0.1, "log_loss": 0.4, "model": "candidate"},
        {"auc": 0.5, "log_loss": 0.6, "model": "constant"},
    ]
    assert [list(row) for row in card._align(rows, "log_loss")] == [["model", "log_loss", "auc"]] * 2


def test_no_value_of_a_category_is_shown() -> None:
    summary = datacard.summarize_categories(pa.chunked_array([["Ann", "Bob", None, "Ann"]]))
    assert summary == {"missing": "25.0%", "values": "2"}


def test_each_rule_of_a_column_is_in_words() -> None:
    number = Column(type="DOUBLE", required=True, min=0, max=2.5)
    assert list(datacard.list_rules(number)) == ["required", "at least 0", "at most 2.5"]
    clipped = Column(type="DOUBLE", max=1, outside="clip")
    assert list(datacard.list_rules(clipped)) == ["at most 1", "beyond a bound: clip"]
    spelled = Column(type="VARCHAR", text=("trim", "lower"))
    assert list(datacard.list_rules(spelled)) == ["spelled anew: trim, lower"]
    text = Column(type="VARCHAR", pii=True, references="planes.tailnum", outcome=True)
    assert list(datacard.list_rules(text)) == [
        "is in planes.tailnum",
        "an outcome: unknown until known_at",
        "personal: a keyed hash",
    ]


def test_the_bill_names_what_the_lock_has_and_this_environment_runs(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "prefect==0.0.1 \\\n    --hash=sha256:00\nno-such-package==1.0\nscikit-learn==1.0 ; python_version > '3'\n"
    )
    made = bill.list_software(lock)
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    assert {part["name"]: part["version"] for part in made["components"]} == {
        "prefect": metadata.version("prefect"),
        "scikit-learn": metadata.version("scikit-learn"),
    }
    assert all(re.fullmatch(r"pkg:pypi/[a-z0-9-]+@\S+", part["purl"]) for part in made["components"])


def test_without_a_lock_it_names_all_that_is_installed(tmp_path: Path) -> None:
    names = {part["name"] for part in bill.list_software(tmp_path / "none")["components"]}
    assert {"prefect", "pytest"} <= names
