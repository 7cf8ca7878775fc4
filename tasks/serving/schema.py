"""schema: the columns of the journal's rows, of each kind, and the version of that schema.

A column may be added: old rows have it as missing. To rename one, to drop one, or to give one another meaning raises
FORMAT's version, and a journal of another version is refused. `entry` names a row and is opaque: what a row is about,
who made it and for whom stands in columns.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa

from tasks.runtime import files

# Stands in the header of each frame of a log, and in the metadata of each Parquet file.
FORMAT = files.Format("journal", 1)
METADATA = {files.FORMAT_KEY: FORMAT.mark}
FEATURE, KEY = "x_", "key_"  # before a feature's name, and before the name of a column of the spine table's key
SHADOW = "shadow"  # the arm whose scores are journalled and never sent
SOURCE = "source"  # stream's rows have it: the topic, partition and offset of the message

Kind = Literal["predictions", "outcomes", "signals", "decisions", "alerts"]
By = Literal["batch", "api", "stream"]  # who predicted: the score flow, the API, the Kafka stream
Arm = Literal["champion", "challenger", "shadow"]

_ROW = {"entry": "string", "event_time": "timestamp[us]", "made_at": "timestamp[us]"}
COLUMNS: Mapping[Kind, Mapping[str, str]] = {
    "predictions": {
        **_ROW,  # event_time: of the predicted row; made_at: of the prediction, in UTC
        "subject": "string",  # the predicted row: several predictions of one row share it
        "by": "string",
        "arm": "string",
        "version": "int64",  # of the model
        "stale": "bool",  # the state was too old for this row, and `score` predicts it again
        "score": "any",  # a probability, a number, or a list of a probability for each class
    },
    "outcomes": {
        **_ROW,  # event_time: of the row, or when the outcome arrived, where only its prediction is known
        "prediction": "string",  # the entry of the prediction that this is the outcome of, or missing: then
        "subject": "string",  # it is the outcome of all predictions of this row
        "label": "any",
        "known_at": "timestamp[us]",
    },
    "signals": _ROW,  # tasks/monitoring names the other columns of these
    "decisions": _ROW,
    "alerts": _ROW,
}
KINDS = tuple(COLUMNS)


def check_rows(kind: Kind, schema: pa.Schema) -> None:
    """Raises ValueError for rows that lack a column of their kind, or have it in another type."""
    if missing := sorted(COLUMNS[kind].keys() - set(schema.names)):
        raise ValueError(f"a row of the journal's {kind} needs {missing}, but there are {schema.names}")
    for name, alias in COLUMNS[kind].items():
        if alias != "any" and (column_type := schema.field(name).type) != pa.type_for_alias(alias):
            raise ValueError(f"`{name}` of the journal's {kind} must be {alias}, but got {column_type}")


def make_empty(kind: Kind) -> pa.Table:
    """No rows, with the columns that every row of the kind has."""
    types = {name: pa.null() if alias == "any" else pa.type_for_alias(alias) for name, alias in COLUMNS[kind].items()}
    # Not by the schema's empty_table, which imports pandas: 0.2 s of a program that has nothing to do.
    return pa.table({name: pa.nulls(0, kind) for name, kind in types.items()})


def make_entry(*parts: Any) -> str:
    """The name of a row: a hash of what tells it from every other."""
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=16).hexdigest()
