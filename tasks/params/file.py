"""The whole of params.yaml as one model, and the rules across its sections."""

import re

from pydantic import model_validator

from tasks.params import sections
from tasks.params.sections import TAKEN, TIMES, Column
from tasks.params.values import suggest


class Params(sections.Section):
    clock: sections.Clock
    sources: dict[str, sections.Source]
    contract: dict[str, sections.Table]
    ingest: sections.Ingest
    clean: sections.Clean
    spine: sections.Spine
    label: sections.Label
    features: sections.Features
    split: sections.Split
    tune: sections.Tune
    train: sections.Train
    evaluate: sections.Evaluate
    gate: sections.Gate
    registry: sections.Registry
    journal: sections.Journal = sections.Journal()
    monitor: sections.Monitor = sections.Monitor()
    drift: sections.Drift = sections.Drift()
    policy: sections.Policy = sections.Policy()
    replay: sections.Replay = sections.Replay()
    serving: sections.Serving = sections.Serving()
    stage: sections.Stage
    paths: sections.Paths

    @model_validator(mode="after")
    def _agree(self) -> "Params":
        if missing := self.sources.keys() ^ self.contract.keys():
            raise ValueError(f"sources and contract must name the same tables, but only one has {sorted(missing)}")
        if len({name.lower() for name in self.contract}) < len(self.contract):
            raise ValueError(
                f"contract must not name tables that differ in case alone, but got {sorted(self.contract)}"
            )
        for name, table in self.contract.items():
            _check_table(name, table, self)
        _check_spine(self)
        if (self.label.task == "regression") != (self.gate.metric == "rmse"):
            raise ValueError(f"label.task {self.label.task} does not go with gate.metric {self.gate.metric}")
        if self.label.task == "binary" and self.evaluate.costs is None:
            raise ValueError(
                "label.task binary needs evaluate.costs, from which its decision threshold follows, but there are "
                "none. Set them, such as {false_positive: 1, false_negative: 3}, to what your mistakes cost."
            )
        return self


def _check_table(name: str, table: sections.Table, p: Params) -> None:
    timed = p.sources[name].event_time is not None
    if not re.fullmatch(r"[A-Za-z]\w*", name) or name == "spine":
        raise ValueError(f"a table's name is a letter, then letters, digits and _, and not spine, but got {name!r}")
    if taken := sorted(table.columns.keys() & {*TAKEN, *(() if timed else TIMES)}):
        raise ValueError(f"contract.{name}.columns must not be called {taken}: rename them by sources.{name}.derive")
    if outcomes := [field for field, column in table.columns.items() if column.outcome and not timed]:
        raise ValueError(f"contract.{name} has outcomes {outcomes}, so sources.{name}.event_time must be given")
    if unknown := [field for field in table.key if field not in {*table.columns, *(TIMES[:1] if timed else ())}]:
        near = suggest(unknown[0], table.columns)
        raise ValueError(f"contract.{name}.key must name its columns, but {unknown} are none{near}")
    if optional := [field for field in table.key if field in table.columns and not table.columns[field].required]:
        raise ValueError(
            f"contract.{name}.key: {optional} must be `required: true`, since two missing keys are not one key"
        )
    _check_names(name, table, p.sources[name])
    others = {other: table for other, table in p.contract.items() if other != name}
    for field, column in table.columns.items():
        _check_reference(f"contract.{name}.columns.{field}", column, others)


def _check_names(name: str, table: sections.Table, source: sections.Source) -> None:
    """SQL ignores case: names that differ in case alone are one column to it."""
    spelled: dict[str, str] = {}
    for column in [*table.columns, *source.derive]:
        other = spelled.setdefault(column.lower(), column)
        if other != column:
            raise ValueError(
                f"contract.{name} and its derive must not name both {other!r} and {column!r}, which differ in case "
                "alone: leave one out, or give the source's columns other names"
            )
        if not column.strip() or not column.isprintable():
            raise ValueError(f"contract.{name}.columns must have names that can be read, but got {column!r}")
    if taken := [column for column in table.columns if column not in TIMES and column.lower() in (*TAKEN, *TIMES)]:
        raise ValueError(f"contract.{name}.columns must not be called {taken}: rename them by sources.{name}.derive")
    if table.version is not None and table.version not in table.columns:
        near = suggest(table.version, table.columns)
        raise ValueError(f"contract.{name}.version must name one of its columns, but got {table.version!r}{near}")
    if table.version is not None and not table.key:
        raise ValueError(f"contract.{name}.version tells rows of one key apart, so contract.{name}.key must be given")
    if table.version is not None and table.columns[table.version].outcome:
        raise ValueError(f"contract.{name}.version must be known with its row, but {table.version!r} is an outcome")


def _check_reference(name: str, column: Column, others: dict[str, sections.Table]) -> None:
    if not column.references:
        return
    table, _, field = column.references.partition(".")
    if table not in others:
        raise ValueError(f"{name}.references must name another table, but got {table}{suggest(table, others)}")
    if field not in others[table].columns:
        raise ValueError(f"{name}.references: {table} has no column {field}{suggest(field, others[table].columns)}")
    if (other := others[table].columns[field]).type != column.type or other.pii != column.pii:
        raise ValueError(f"{name} and {column.references} must have the same type, and pii both or neither")


def _check_spine(p: Params) -> None:
    spine = p.spine
    if spine.table not in p.sources:
        raise ValueError(f"spine.table must be one of {sorted(p.sources)}, but got {spine.table!r}")
    if p.sources[spine.table].event_time is None:
        raise ValueError(f"spine.table {spine.table} must have event times: give sources.{spine.table}.event_time")
    columns = p.contract[spine.table].columns
    if unknown := [name for name in spine.columns if name not in columns]:
        near = suggest(unknown[0], columns)
        raise ValueError(f"spine.columns must be in contract.{spine.table}, but {unknown} are not{near}")
    if outcomes := [name for name in spine.columns if columns[name].outcome]:
        raise ValueError(f"spine.columns must be known when a prediction is asked, but {outcomes} are outcomes")
    asked = ["event_time", *p.contract[spine.table].key, *spine.columns]
    if unknown := [name for name in p.serving.challenger.sticky if name not in asked]:
        near = suggest(unknown[0], asked)
        raise ValueError(f"serving.challenger.sticky must name spine columns, but {unknown} are none{near}")
