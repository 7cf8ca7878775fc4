"""A draft goes into the text of params.yaml: what it does not name stays, letter for letter."""

from typing import Any

import pytest
import yaml

from tasks.drafting.wishes import Guess
from tasks.drafting.yamldraft import apply_draft, spell_value
from tasks.params import yamltext

TEXT = """\
# The file.

clock:                      # the clock's module
  # what now is
  as_of: "2013-08-01"
  step: null                # such as 7d

sources:                    # where they lie
  flights:
    address: x.csv          # '#' is no comment in "a # b"

card:
  purpose: To tell
    more than one line      # of a comment
  limits:
  - none
  - some
  owner: null               # whom to ask
"""


def test_a_setting_keeps_its_comment_and_gets_its_reason() -> None:
    guess = Guess("clock.step", "1d", "a row every day")
    text = apply_draft(TEXT, {}, {"clock.step": "1d"}, [guess])
    assert "  # guessed: a row every day\n  step: 1d                  # such as 7d\n" in text
    assert apply_draft(text, {}, {"clock.step": "1d"}, [guess]) == text
    assert text.replace("  # guessed: a row every day\n", "").replace("1d  ", "null", 1) == TEXT


def test_a_setting_of_several_lines_is_replaced_whole() -> None:
    text = apply_draft(TEXT, {}, {"card.purpose": "x", "card.limits": [], "clock.as_of": None}, [])
    assert yaml.safe_load(text) == {
        "clock": {"as_of": None, "step": None},
        "sources": {"flights": {"address": "x.csv"}},
        "card": {"purpose": "x", "limits": [], "owner": None},
    }
    assert "  # what now is\n  as_of: null\n" in text


def test_a_section_is_replaced_and_a_setting_or_section_that_is_not_there_is_added() -> None:
    sources = {
        "my table": {"address": "a: b.csv", "nulls": ["NA", "-200", "a, b"], "event_time": "day + INTERVAL 1 DAY"}
    }
    text = apply_draft(TEXT, {"sources": sources, "spine": {"columns": []}}, {"clock.zone": "x", "gate.rule": "y"}, [])
    content = yaml.safe_load(text)
    assert content["sources"] == sources
    assert content["spine"] == {"columns": []}
    assert content["clock"]["zone"] == "x"
    assert content["gate"] == {"rule": "y"}
    assert "sources:                    # where they lie\n" in text


def test_what_was_guessed_of_a_source_or_a_column_stands_above_it() -> None:
    guesses = [Guess("sources.nulls", "NA", "it is missing"), Guess("phone.pii", "true", "its name says so")]
    sections = {
        "sources": {"calls": {"address": "x.csv", "nulls": ["NA"]}},
        "contract": {"calls": {"columns": {"phone": {"type": "VARCHAR", "pii": True}}}},
    }
    text = apply_draft("sources:\n", sections, {}, guesses)
    assert "    # guessed: it is missing\n    nulls: [NA]\n" in text
    assert "      # guessed: its name says so\n      phone: {type: VARCHAR, pii: true}\n" in text


def test_a_long_list_is_wrapped() -> None:
    names = [f"column_{number}" for number in range(60)]
    text = apply_draft("spine:\n", {"spine": {"columns": names}}, {}, [])
    assert yaml.safe_load(text)["spine"]["columns"] == names
    assert max(map(len, text.splitlines())) <= 120


TEXTS = ["plain", "a = 'b'", "x > 3 AND y < 2", "'quoted'", '"Q"', "a: b", "a #b", "null", "2013", "1e3", "yes", "-200"]
ODD_TEXTS = [
    "",
    "%d.%m.%Y",
    "größe",
    "a\nb",
    "[1]",
    "{a}",
    "*",
    "&x",
    "!x",
    "@x",
    "~",
    " x ",
    "- x",
    "?",
    "x: ",
    "1:30",
    "a, b",
]


@pytest.mark.parametrize("value", [*TEXTS, *ODD_TEXTS])
def test_a_text_is_read_as_it_was(value: str, tmp_path: Any) -> None:
    content = {"a": value, "b": [value], "c": {"d": value}}
    (tmp_path / "x.yaml").write_text(
        f"a: {spell_value(value)}\nb: {spell_value([value])}\nc: {spell_value({'d': value})}\n"
    )
    assert yamltext.read(tmp_path / "x.yaml")[0] == content
    assert yaml.safe_load((tmp_path / "x.yaml").read_text()) == content
