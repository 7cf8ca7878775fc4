"""odcs: the section `contract` of params.yaml as an Open Data Contract (ODCS 3.2, bitol.io), and back.

    evergreen contract export > contract.odcs.yaml
    evergreen contract import contract.odcs.yaml

What ODCS has no word for stands under customProperties with names that begin with `evergreen.`: an export that is
imported again is the same section. This module alone imports open_data_contract_standard.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cyclopts import App, Parameter
from open_data_contract_standard.model import (
    CustomProperty,
    Description,
    EnumValue,
    OpenDataContractStandard,
    Relationship,
    SchemaObject,
    SchemaProperty,
)

from tasks import params
from tasks.drafting import init
from tasks.drafting.yamldraft import apply_draft
from tasks.params import Column, Params, Table, yamltext
from tasks.runtime import files

API_VERSION = "v3.2.0"
SETTINGS = Path("params.yaml")
OWN = "evergreen."
LOGICAL = {  # by the contract's type
    "VARCHAR": "string",
    "INTEGER": "integer",
    "BIGINT": "integer",
    "DOUBLE": "number",
    "BOOLEAN": "boolean",
    "DATE": "date",
    "TIMESTAMP": "timestamp",
}
TYPES = {"string": "VARCHAR", "integer": "BIGINT", "number": "DOUBLE", "boolean": "BOOLEAN", "date": "DATE"}
TYPES |= {"timestamp": "TIMESTAMP"}
PERSONAL = "personal"  # the classification of a column with pii: true
EXTRA = (
    "format",
    "absent",
    "outside",
    "text",
    "unmatched",
    "outcome",
    "alias",
    "scale",
    "coarsen",
)  # what ODCS has no word for

app = App(
    name="contract", help="The contract of params.yaml as an Open Data Contract (ODCS), and back.", version_flags=()
)
app.default_parameter = Parameter(negative="")


# --- export ----------------------------------------------------------------------------------------------------------


def to_odcs(p: Params) -> OpenDataContractStandard:
    """The contract of all tables, with what the card says of the data."""
    card = p.card
    description = Description(purpose=card.purpose, limitations=" ".join(card.limits) or None)
    return OpenDataContractStandard(
        version="1.0.0",
        apiVersion=API_VERSION,
        kind="DataContract",
        id=p.registry.model,
        name=p.registry.model,
        status="active",
        description=description if card.purpose or card.limits else None,
        schema=[_write_table(name, table) for name, table in p.contract.items()],
    )


def _write_table(name: str, table: Table) -> SchemaObject:
    own = {field: value for field, value in (("version", table.version), ("deleted", table.deleted)) if value}
    if not set(table.key) <= table.columns.keys():  # event_time is no column of the file
        own["key"] = ", ".join(table.key)
    return SchemaObject(
        name=name,
        logicalType="object",
        physicalType="table",
        customProperties=_write_own(own),
        properties=[_write_column(column, rule, table.key) for column, rule in table.columns.items()],
    )


def _write_column(name: str, column: Column, key: list[str]) -> SchemaProperty:
    own = {
        field: value for field, value in column.model_dump(mode="json", exclude_defaults=True).items() if field in EXTRA
    }
    bounds = {"minimum": column.min, "maximum": column.max}
    options = {field: value for field, value in bounds.items() if value is not None}
    return SchemaProperty(
        name=name,
        logicalType=LOGICAL[column.type],
        physicalType=column.type,
        logicalTypeOptions=options or None,
        required=column.required or None,
        primaryKey=True if name in key else None,
        primaryKeyPosition=key.index(name) + 1 if name in key else None,
        classification=PERSONAL if column.pii else None,
        enum=[EnumValue(value=value) for value in column.allowed] if column.allowed else None,
        relationships=[Relationship(type="foreignKey", to=column.references)] if column.references else None,
        customProperties=_write_own(own),
    )


def _write_own(values: Mapping[str, Any]) -> list[CustomProperty] | None:
    return [CustomProperty(property=OWN + name, value=value) for name, value in values.items()] or None


# --- import ----------------------------------------------------------------------------------------------------------


def from_odcs(contract: OpenDataContractStandard) -> dict[str, Any]:
    """The section `contract`, as plain data. Raises ValueError for a type that a table of ours cannot have."""
    return {str(table.name): _read_table(table) for table in contract.schema_ or []}


def _read_table(table: SchemaObject) -> dict[str, Any]:
    own, columns = _read_own(table.customProperties), table.properties or []
    keyed = sorted((column for column in columns if column.primaryKey), key=lambda one: one.primaryKeyPosition or 0)
    key = own["key"].split(", ") if "key" in own else [str(column.name) for column in keyed]
    read = {str(column.name): dict(_read_column(str(table.name), column)) for column in columns}
    return {
        **({"key": key} if key else {}),
        **{field: own[field] for field in ("version", "deleted") if field in own},
        "columns": read,
    }


def _read_column(table: str, column: SchemaProperty) -> Iterator[tuple[str, Any]]:
    place, options = f"{table}.{column.name}", column.logicalTypeOptions or {}
    kind = column.physicalType if column.physicalType in LOGICAL else TYPES.get(column.logicalType or "")
    if kind is None:
        raise ValueError(
            f"{place} must have one of the logical types {', '.join(TYPES)}, but has {column.logicalType!r}. Take the "
            "column out of the file, or give it the type that its text stands for."
        )
    yield "type", kind
    if column.required:
        yield "required", True
    if kind in ("INTEGER", "BIGINT", "DOUBLE"):
        yield from ((ours, options[name]) for ours, name in (("min", "minimum"), ("max", "maximum")) if name in options)
    if column.enum:
        yield "allowed", [str(value.value) for value in column.enum]
    for relation in column.relationships or []:
        if isinstance(relation.to, str):
            yield "references", relation.to
    if column.classification == PERSONAL:
        yield "pii", True
    yield from _read_own(column.customProperties).items()


def _read_own(properties: list[CustomProperty] | None) -> dict[str, Any]:
    return {
        str(one.property).removeprefix(OWN): one.value for one in properties or [] if str(one.property).startswith(OWN)
    }


# --- the command -----------------------------------------------------------------------------------------------------


@app.command(name="export")
def export_contract() -> None:
    """Print the contract of params.yaml as an Open Data Contract, in YAML."""
    print(to_odcs(params.load()).to_yaml(), end="")


@app.command(name="import")
def import_contract(file: Path) -> None:
    """Replace the section `contract` of params.yaml by what an Open Data Contract says. The rest stays as it is.

    Args:
        file: The Open Data Contract, in YAML.
    """
    section = from_odcs(OpenDataContractStandard.from_string(file.read_text(encoding="utf-8")))
    text = apply_draft(SETTINGS.read_text(encoding="utf-8"), {"contract": section}, {}, [])
    params.validate(yamltext.load_plain(text))
    checkout = Path.cwd()
    if SETTINGS in init.find_unsaved(checkout):
        print(f"what params.yaml was before: {init.keep_copy(checkout / SETTINGS).name}")
    files.publish_text(SETTINGS, text)
    print(f"contract: {', '.join(section)}, as {file} says. `evergreen check` reads it against the data.")
