"""tasks.params.yamltext reads what DVC reads, keeps texts as texts, and refuses a key that stands twice."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tasks import params
from tasks.params import yamltext
from tasks.runtime import overrides
from tests.conftest import raw_params, write_params

PROJECT = Path(__file__).parents[2]

LAW = settings(deadline=None, derandomize=True, max_examples=150)
WORDS = "2024 007 1e3 1e-3 on off yes No y true null ~ 2024-01-02 1:30 0x1f 1_000 .inf .nan = << é [1] {a} ' @x %x"
ODD = [*WORDS.split(" "), '"', "", "- a", "a: b", "a #b", " x "]


def read(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return yamltext.read(path)[0]


def made(tmp_path: Path, **changes: Any) -> Path:
    """A params.yaml of the made world; registry={"model": "x"} with other lines in a section."""
    raw = raw_params("binary", 60)
    for section, values in changes.items():
        raw[section] |= values
    write_params(raw, tmp_path)
    return tmp_path / "params.yaml"


@pytest.mark.parametrize(
    "text",
    ["on", "no", "yes", "1:30", "1e-3", "1e3", "-1.5", ".5", "+7", "017", "0x1f", "30_000", "~", "true", "False", "x"],
)
def test_a_value_is_what_dvc_reads(text: str, tmp_path: Path) -> None:
    there = YAML(typ="safe").load(f"a: {text}")["a"]
    found = read(tmp_path, f"a: {text}")["a"]
    assert (found, type(found)) == (there, type(there))


def test_keys_and_dates_are_texts(tmp_path: Path) -> None:
    assert read(tmp_path, "on: 1\n2024: {no: 2013-08-01}") == {"on": 1, "2024": {"no": "2013-08-01"}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "`a` stands twice, in line 1 and in line 3. Remove one of them"),
        ("tune:\n  space:\n    eta: 1\n    'eta': 2\n", "`tune.space.eta` stands twice, in line 3 and in line 4"),
        ("a: {b: 1, b: 2}", "`a.b` stands twice, in line 1 and in line 1"),
        ("a: [{b: 1, b: 2}]", "`a.0.b` stands twice"),
        ("a: 1\na: 1\nb: 1\nb: 1", "(?s)`a` stands twice.*`b` stands twice"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"params\.yaml: {said}" if not said.startswith("(?s)") else said):
        read(tmp_path, text)


def test_what_an_anchor_gives_may_be_given_again(tmp_path: Path) -> None:
    found = read(tmp_path, "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: *a\n")
    assert found["b"] == {"x": 3, "y": 2}


@pytest.mark.parametrize("bracket", ["[", "{"])
def test_brackets_that_would_end_libyaml_are_an_error_in_words(bracket: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"params\.yaml is not YAML\. Its values are nested too deeply: write them flat"
    ):
        read(tmp_path, f"a: {bracket * 100_000}")


@LAW
@given(st.text("ab10:-# \n'\"[]{},&*~", max_size=40))
def test_what_libyaml_takes_means_the_same_to_pyyaml(text: str) -> None:
    def load(loader: Any) -> Any:
        try:
            return repr(yaml.load(text, loader))
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            return type(error)

    slow, quick = load(yaml.SafeLoader), load(yaml.CSafeLoader)
    assert quick == slow or isinstance(quick, type), "what libyaml refuses is read again"
    if isinstance(slow, str):
        assert repr(yamltext.load_plain(text)) == slow


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"params\.yaml is not UTF-8, see byte 3: save it as UTF-8"):
        yamltext.read(tmp_path / "params.yaml")


def test_a_duplicate_stops_loading_and_overriding_alike(tmp_path: Path) -> None:
    path = made(tmp_path)
    path.write_text(path.read_text() + "registry:\n  model: another\n  experiment: e\n")
    for act in (lambda: params.load(path), lambda: overrides.override_params(path, {"tune.trials": 3})):
        with pytest.raises(ValueError, match=r"`registry` stands twice, in line \d+ and in line \d+"):
            act()


# --- a text setting keeps its type


@pytest.mark.parametrize("text", ["2024", "007", "1e3", "on", "true", "0x1f", "1_000", "2024-01-02"])
def test_a_text_setting_may_be_spelled_without_quotes(text: str, tmp_path: Path) -> None:
    """So does DVC write what `dvc exp run -S registry.model=2024` says."""
    path = made(tmp_path, registry={"model": "MODEL"})
    path.write_text(path.read_text().replace("MODEL", text))
    assert params.load(path).registry.model == text


@pytest.mark.parametrize("text", ["null", "~", ""])
def test_nothing_is_no_text(text: str, tmp_path: Path) -> None:
    path = made(tmp_path, registry={"model": "MODEL"})
    path.write_text(path.read_text().replace("MODEL", text))
    with pytest.raises(ValueError, match=r"`registry\.model`: Input should be a valid string, but got None"):
        params.load(path)


def test_a_list_of_texts_may_hold_what_yaml_takes_for_something_else(tmp_path: Path) -> None:
    path = made(tmp_path)
    path.write_text(path.read_text().replace("nulls: []", "nulls: [NA, null, NULL, no, -999, 1e3]"))
    raw = yamltext.read(path)[0]
    table = next(iter(raw["sources"]))
    raw["sources"][table]["nulls"] = "NULLS"
    write_params(raw, tmp_path)
    path.write_text(path.read_text().replace("nulls: NULLS", "nulls: [NA, null, NULL, no, -999, 1e3]"))
    assert params.load(path).sources[table].nulls == ["NA", "null", "NULL", "no", "-999", "1e3"]


@pytest.mark.parametrize("value", [*ODD, 2024, 1.5, True])
def test_an_override_of_a_text_setting_is_that_text(value: Any, tmp_path: Path) -> None:
    path = made(tmp_path)
    overrides.override_params(path, {"label.expression": value})
    found = params.load(path).label.expression
    assert found == (value if isinstance(value, str) else {2024: "2024", 1.5: "1.5", True: "true"}[value])
    if isinstance(value, str):
        assert YAML(typ="safe").load(path)["label"]["expression"] == value, "to DVC too"


@LAW
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12))
def test_any_text_survives_an_override(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("any") / "params.yaml"
    path.write_text("registry:\n  model: a\n")
    overrides.override_params(path, {"registry.model": text})
    assert yamltext.read(path)[0] == {"registry": {"model": text}}


def test_texts_inside_lists_and_sections_keep_their_type_too(tmp_path: Path) -> None:
    path = made(tmp_path)
    overrides.override_params(
        path, {"evaluate.slices": ["on", "2024"], "tune.space": {"booster": {"choice": ["null", "1e3"]}}}
    )
    raw = yamltext.read(path)[0]
    assert raw["evaluate"]["slices"] == ["on", "2024"]
    assert raw["tune"]["space"] == {"booster": {"choice": ["null", "1e3"]}}


def test_a_text_that_looks_like_a_moment_is_left_as_it_is(tmp_path: Path) -> None:
    path = made(tmp_path)
    overrides.override_params(path, {"label.expression": "2024-01-02T00:00:00"})
    assert params.load(path).label.expression == "2024-01-02T00:00:00"


def test_the_projects_file_is_the_same_to_dvc_and_to_us() -> None:
    found, _ = yamltext.read(PROJECT / "params.yaml")
    assert found == YAML(typ="safe").load(PROJECT / "params.yaml")
