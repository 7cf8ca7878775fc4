"""The contract as an Open Data Contract: by the standard's own schema, and the same section when it comes back."""

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from open_data_contract_standard.model import OpenDataContractStandard

from tasks import params
from tasks.drafting import odcs
from tasks.params import Params, Table
from tests.conftest import raw_params, write_params

ROOT = Path(__file__).parents[3]


def flights() -> Params:
    return params.load(ROOT / "params.yaml")


def made() -> Params:
    """A contract in which a column has each thing that a column can have."""
    raw = raw_params("binary", 30)
    columns = raw["contract"]["orders"]["columns"]
    columns["amount"] |= {"outside": "clip", "absent": "empty", "alias": ["price", "sum"]}
    columns["store"] |= {"text": ["trim", "lower"]}
    columns["placed"] |= {"format": "%d.%m.%Y %H:%M"}
    raw["contract"]["orders"]["key"] = ["event_time", "number"]
    raw["contract"]["orders"]["version"] = "amount"
    return params.validate(raw)


@pytest.mark.parametrize("p", [flights(), made()], ids=["flights", "made"])
def test_an_export_keeps_the_standards_schema(p: Params) -> None:
    jsonschema.validate(yaml.safe_load(odcs.to_odcs(p).to_yaml()), json.loads(OpenDataContractStandard.json_schema()))


@pytest.mark.parametrize("p", [flights(), made()], ids=["flights", "made"])
def test_an_export_that_is_imported_again_is_the_same_contract(p: Params) -> None:
    text = odcs.to_odcs(p).to_yaml()
    section = odcs.from_odcs(OpenDataContractStandard.from_string(text))
    assert {name: Table.model_validate(table) for name, table in section.items()} == p.contract


FOREIGN: dict[str, Any] = {
    "version": "2.1.0",
    "apiVersion": "v3.0.2",
    "kind": "DataContract",
    "id": "of-another-team",
    "schema": [
        {
            "name": "rides",
            "properties": [
                {"name": "ride", "logicalType": "string", "primaryKey": True, "required": True, "physicalType": "text"},
                {"name": "at", "logicalType": "timestamp", "physicalType": "timestamptz"},
                {"name": "fare", "logicalType": "number", "logicalTypeOptions": {"minimum": 0, "exclusiveMaximum": 9}},
                {"name": "city", "logicalType": "string", "relationships": [{"to": "cities.name"}]},
                {"name": "count", "logicalType": "integer", "customProperties": [{"property": "x", "value": 1}]},
            ],
        }
    ],
}


def test_a_contract_of_another_team_is_read_as_far_as_a_table_has_words_for_it() -> None:
    section = odcs.from_odcs(OpenDataContractStandard.from_string(yaml.safe_dump(FOREIGN)))
    assert section == {
        "rides": {
            "key": ["ride"],
            "columns": {
                "ride": {"type": "VARCHAR", "required": True},
                "at": {"type": "TIMESTAMP"},
                "fare": {"type": "DOUBLE", "min": 0},
                "city": {"type": "VARCHAR", "references": "cities.name"},
                "count": {"type": "BIGINT"},
            },
        }
    }


def test_a_type_that_a_table_cannot_have_is_refused_by_its_column() -> None:
    foreign = json.loads(json.dumps(FOREIGN))
    foreign["schema"][0]["properties"][1]["logicalType"] = "array"
    with pytest.raises(ValueError, match=r"rides\.at must have one of the logical types .* but has 'array'"):
        odcs.from_odcs(OpenDataContractStandard.from_string(yaml.safe_dump(foreign)))


def test_an_import_replaces_the_section_and_keeps_the_rest_and_what_git_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    write_params(raw_params("binary", 30), tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    odcs.export_contract()
    exported = capsys.readouterr().out.replace("maximum: 100.0", "maximum: 90.0")
    (tmp_path / "contract.yaml").write_text(exported)
    before = (tmp_path / "params.yaml").read_text()
    odcs.import_contract(Path("contract.yaml"))
    p = params.load(tmp_path / "params.yaml")
    assert p.contract["orders"].columns["distance"].max == 90
    assert p.model_copy(update={"contract": {}}) == params.validate(yaml.safe_load(before)).model_copy(
        update={"contract": {}}
    )
    assert (tmp_path / "params.yaml.before").read_text() == before


def test_an_import_that_does_not_fit_the_rest_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(raw_params("binary", 30), tmp_path)
    before = (tmp_path / "params.yaml").read_text()
    (tmp_path / "contract.yaml").write_text(yaml.safe_dump(FOREIGN))
    with pytest.raises(ValueError, match="sources and contract must name the same tables"):
        odcs.import_contract(Path("contract.yaml"))
    assert (tmp_path / "params.yaml").read_text() == before
