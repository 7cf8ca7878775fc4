"""The whole of params.yaml as one model: the rules across its sections, and the file read and checked.

An error names the key, the rule, the value and the nearest key that exists.
"""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError, model_validator

from tasks.params import sections, yamltext
from tasks.params.card import Card
from tasks.params.contract import Column, Table
from tasks.params.source import Source
from tasks.params.values import spell, suggest


class Params(sections.Section):
    clock: sections.Clock
    sources: dict[str, Source]
    contract: dict[str, Table]
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
    card: Card = Card()
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
        if self.train.offset and self.label.task != "regression":
            raise ValueError(
                f"train.offset {self.train.offset!r} needs label.task regression, since it is taken from a number, but "
                f"got {self.label.task}. Set train.offset to null."
            )
        if self.train.undersample and self.label.task == "regression":
            raise ValueError(
                f"train.undersample {self.train.undersample:g} is for classes, but label.task is regression. Set it to "
                "null."
            )
        if self.train.warm and self.split.window:
            raise ValueError(
                f"train.warm {spell(self.train.warm)} needs split.window null, since the booster that a fit goes on "
                f"from forgets no row, but split.window is {spell(self.split.window)}. Set one of them to null."
            )
        if self.train.distributed:
            _check_distributed(self)
        if self.label.task == "binary" and self.evaluate.costs is None:
            raise ValueError(
                "label.task binary needs evaluate.costs, from which its decision threshold follows, but there are "
                "none. Set them, such as {false_positive: 1, false_negative: 3}, to what your mistakes cost."
            )
        return self


def _check_distributed(p: Params) -> None:
    cluster, workers = p.stage.cluster or "", p.train.workers
    if not cluster:
        raise ValueError(
            f"train.distributed needs stage.cluster, but that is null. Set it to local:{workers} or to a Dask "
            "scheduler's address, or set train.distributed to false."
        )
    if cluster.startswith("local:") and int(cluster.removeprefix("local:")) < workers:
        raise ValueError(
            f"train.workers must not be more than the processes of stage.cluster, but got {workers} for {cluster}. "
            f"Set stage.cluster to local:{workers}. To lower train.workers makes another recipe."
        )
    if p.train.warm:
        raise ValueError(
            f"train.warm {spell(p.train.warm)} does not go with train.distributed, since the boosters that it keeps "
            "are made by one process. Set train.warm to null, or train.distributed to false."
        )
    if p.train.device != "cpu":
        raise ValueError(
            f"train.device {p.train.device} does not go with train.distributed, whose workers learn on their CPUs. "
            "Set train.device to cpu, or train.distributed to false."
        )


def _check_table(name: str, table: Table, p: Params) -> None:
    timed = p.sources[name].event_time is not None
    if p.sources[name].watermark and not table.key:
        raise ValueError(
            f"sources.{name}.watermark needs contract.{name}.key, since a row that has changed is read again, and its "
            "key says which row it is. Give the key, or take the watermark out."
        )
    if not re.fullmatch(r"[A-Za-z]\w*", name) or name == "spine":
        raise ValueError(f"a table's name is a letter, then letters, digits and _, and not spine, but got {name!r}")
    allowed, reserved = sections.TIMES if timed else (), (*sections.TAKEN, *sections.TIMES)
    if taken := [field for field in table.columns if field not in allowed and field.lower() in reserved]:
        raise ValueError(f"contract.{name}.columns must not be called {taken}: rename them by sources.{name}.derive")
    if outcomes := [field for field, column in table.columns.items() if column.outcome and not timed]:
        raise ValueError(f"contract.{name} has outcomes {outcomes}, so sources.{name}.event_time must be given")
    if unknown := [field for field in table.key if field not in {*table.columns, *allowed[:1]}]:
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


def _check_names(name: str, table: Table, source: Source) -> None:
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
    if table.version is not None and table.version not in table.columns:
        near = suggest(table.version, table.columns)
        raise ValueError(f"contract.{name}.version must name one of its columns, but got {table.version!r}{near}")
    if table.version is not None and not table.key:
        raise ValueError(f"contract.{name}.version tells rows of one key apart, so contract.{name}.key must be given")
    coarse = [column for column, rule in table.columns.items() if rule.coarsen is not None]
    if wrong := [column for column in coarse if column in (*table.key, table.version)]:
        raise ValueError(f"contract.{name}: {', '.join(wrong)} tells rows apart, so it cannot be coarsened")
    if derived := [column for column in coarse if column in source.derive]:
        raise ValueError(
            f"contract.{name}: {', '.join(derived)} is derived: leave coarsen out, and let its expression in "
            f"sources.{name}.derive make it coarse"
        )
    if table.deleted is not None and not table.key:
        raise ValueError(f"contract.{name}.deleted says which key is gone, so contract.{name}.key must be given")
    if table.version is not None and table.columns[table.version].outcome:
        raise ValueError(f"contract.{name}.version must be known with its row, but {table.version!r} is an outcome")


def _check_reference(name: str, column: Column, others: dict[str, Table]) -> None:
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
    if p.ingest.lateness is not None and p.ingest.lateness < p.label.deadline:
        raise ValueError(
            f"ingest.lateness {spell(p.ingest.lateness)} must not be below label.deadline {spell(p.label.deadline)}, "
            "up to which outcomes change the rows. Set it higher, or to null for no limit."
        )
    asked = ["event_time", *p.contract[spine.table].key, *spine.columns]
    if unknown := [name for name in p.serving.challenger.sticky if name not in asked]:
        near = suggest(unknown[0], asked)
        raise ValueError(f"serving.challenger.sticky must name spine columns, but {unknown} are none{near}")


def load(path: Path | str = "params.yaml") -> Params:
    """Read and check the file. Raises ValueError that names file, key, rule and value, a line each."""
    raw, spelled = yamltext.read(Path(path))
    try:
        Params.model_validate(raw)
    except ValidationError as error:
        for problem in error.errors():
            _take_spelling(raw, spelled, dict(problem))
    return validate(raw, str(path))


def _take_spelling(raw: Any, spelled: Any, problem: dict[str, Any]) -> None:
    """Where a text is wanted, 2024, true or 1e3 is the text that stands there. Nothing is no text, but in a list."""
    if not problem["loc"] or problem["type"] not in ("string_type", "literal_error", "path_type"):
        return
    *path, last = problem["loc"]
    value = problem["input"]
    if not isinstance(value, bool | int | float) and not (value is None and isinstance(last, int)):
        return
    try:
        for part in path:
            raw, spelled = raw[part], spelled[part]
        text = spelled[last]
        raw[last] = text if text not in ("", "~") else None
    except (LookupError, TypeError):  # a place that is no plain path through the file
        return


def validate(raw: Any, name: str = "params.yaml") -> Params:
    """Check what a file of this name holds. Raises ValueError, a line for each problem."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(dict(problem)) for problem in error.errors()]
        raise ValueError("\n".join(f"{name}: {line}" for line in lines)) from None


def _explain(problem: dict[str, Any]) -> str:
    place, kind, value = problem["loc"], problem["type"], problem["input"]
    key = ".".join(map(str, place)) or "the file"
    if kind == "extra_forbidden":
        return f"`{key}` is no known key.{_suggest_key(place)}"
    if kind == "missing":
        return f"`{key}` is missing."
    rule = problem["msg"].removeprefix("Value error, ").replace("datetime.timedelta(0)", spell(timedelta(0)))
    names_value = kind == "value_error" or isinstance(value, dict)  # this project's own messages name their values
    return f"`{key}`: {rule}" if names_value else f"`{key}`: {rule}, but got {value!r}"


def _suggest_key(place: tuple[Any, ...]) -> str:
    model: Any = Params
    for part in place[:-1]:
        fields = getattr(model, "model_fields", {})
        model = _find_section(fields[part].annotation) if part in fields else model
    return suggest(str(place[-1]), getattr(model, "model_fields", {})).removeprefix(".")


def _find_section(annotation: Any) -> Any:
    """The section's class inside dict[str, Section] or Section | None."""
    classes = [_find_section(part) for part in get_args(annotation)] or [annotation]
    return next((kind for kind in classes if isinstance(kind, type) and issubclass(kind, sections.Section)), annotation)
