"""`params.yaml` as frozen, strict models, one a section; the only reader of that file.

An unknown or mistyped key is an error that names the key, the rule and the nearest key that exists.
"""

import codecs
import contextlib
import difflib
import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from tasks import yamltext

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
Task = Literal["binary", "multiclass", "regression"]


def parse_duration(text: Any) -> Any:
    """'28d' → timedelta(days=28); anything that is no such text is left to pydantic."""
    if isinstance(text, str) and (found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())):
        with contextlib.suppress(OverflowError):
            return timedelta(**{UNITS[found[2]]: float(found[1])})
        raise ValueError(f"a length of time is at most {timedelta.max.days} days, but got {text!r}")
    if isinstance(text, timedelta):
        return text
    raise ValueError(f"a length of time is a number and one of {'/'.join(UNITS)}, such as 28d, but got {text!r}")


def to_utc(moment: datetime) -> datetime:
    """The same moment as a naive UTC timestamp, which is what every table holds."""
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def parse_moment(value: Any) -> Any:
    """Dates and their texts are left to pydantic; a number, which it would take for seconds since 1970, is refused."""
    if isinstance(value, int | float) or (isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+", value.strip())):
        raise ValueError(f"a moment is a date such as 2013-09-01 or 2013-09-01T06:00:00Z, but got {value!r}")
    return value


def normalize_encoding(name: str) -> str:
    """The usual spelling of an encoding that Python knows."""
    try:
        "".encode(name)
        return codecs.lookup(name).name
    except (LookupError, ValueError):
        raise ValueError(f"an encoding is a name such as utf-8, cp1252 or latin-1, but got {name!r}") from None


def spell(length: timedelta) -> str:
    """timedelta(days=28) → '28d': the way back into params.yaml, in the largest unit that fits."""
    seconds = length.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


def _spelled_as(pattern: str, rule: str) -> AfterValidator:
    """A text that has a form; `rule` says it in words."""

    def check_form(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{rule}, but got {text!r}")
        return text

    return AfterValidator(check_form)


Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(spell)]
Moment = Annotated[datetime, BeforeValidator(parse_moment), PlainSerializer(datetime.isoformat)]
SEED = 2**31 - 1  # the largest seed that each library takes
STAGES = ("ingest", "clean", "features", "tune", "train", "evaluate", "record")  # of dvc.yaml; a test compares
TIMES = ("event_time", "known_at")  # every timed table has them, made from sources.<table>
PLACE = ("_file", "_row")  # where a row of a doubled key came from: which of the source's files, which of its rows
FAULT = "_fault"  # the expressions of the source that fail for a row
TAKEN = ("row_id", "reason", "raw", "file_row_number", *PLACE, FAULT)  # columns that the stages add, or read it by


class Section(BaseModel):
    # NaN compares as false with everything: a bound that is NaN would never hold, or always, in silence.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Clock(Section):
    as_of: Moment | None = None
    step: Annotated[Duration, Field(gt=timedelta(0))] | None = None

    @model_validator(mode="after")
    def _begins(self) -> "Clock":
        if self.step and self.as_of is None:
            raise ValueError(
                f"step {spell(self.step)} needs an as_of to begin at: the newest event has nothing after it"
            )
        return self


class Source(Section):
    """Where a table comes from. A table without event_time is small and static: always read whole, always known.

    `nulls` are the texts that stand for a missing value, `decimal` and `encoding` how its CSV files are written.
    """

    address: str
    nulls: list[str] = []
    decimal: Literal[".", ","] = "."
    encoding: Annotated[str, AfterValidator(normalize_encoding)] = "utf-8"
    event_time: str | None = None
    known_at: str | None = None
    derive: dict[str, str] = {}


class Column(Section):
    type: Literal["VARCHAR", "INTEGER", "BIGINT", "DOUBLE", "BOOLEAN", "DATE", "TIMESTAMP"]
    required: bool = False
    min: float | None = None
    max: float | None = None
    allowed: Annotated[list[str], Field(min_length=1)] | None = None
    references: Annotated[str, _spelled_as(r"\w+\.\w+", "a reference is <table>.<column>")] | None = None
    unmatched: Literal["quarantine", "report"] = "quarantine"
    outcome: bool = False
    pii: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "Column":
        if (self.min is not None or self.max is not None) and self.type not in ("INTEGER", "BIGINT", "DOUBLE"):
            raise ValueError(f"min and max need a number's type, but got {self.type}; write sources.<table>.derive")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min must not be above max, but got min {self.min:g} and max {self.max:g}")
        if self.pii and (self.type != "VARCHAR" or self.allowed):
            raise ValueError("pii: true makes a pseudonym, a text: it needs type VARCHAR and no allowed")
        return self


class Table(Section):
    key: list[str] = []
    version: str | None = None
    columns: dict[str, Column]


class Ingest(Section):
    period: Literal["day", "week", "month"] = "month"
    pii_key_id: str | None = None


class Clean(Section):
    max_bad_share: float = Field(0.02, ge=0, le=1)


class Spine(Section):
    table: str
    columns: list[str]


class Label(Section):
    task: Task
    expression: str
    deadline: Duration


class Features(Section):
    lead: Duration
    lookback: Duration
    leak_probes: int = Field(6, ge=0)


class Split(Section):
    holdout: Annotated[Duration, Field(gt=timedelta(0))]
    folds: int = Field(2, ge=1)
    fold: Annotated[Duration, Field(gt=timedelta(0))]
    window: Duration | None = None


class Range(Section):
    """One dimension of the search: a choice, or low to high."""

    choice: list[Any] | None = None
    low: float | None = None
    high: float | None = None
    log: bool = False
    integer: bool = False

    @model_validator(mode="after")
    def _whole(self) -> "Range":
        if self.choice:
            return self
        if self.low is None or self.high is None or not self.low <= self.high:
            raise ValueError("a range needs a choice: [...], or low and high with low <= high")
        if self.log and self.low <= 0:
            raise ValueError(f"log: true needs low > 0, but got low={self.low:g}")
        return self


class Tune(Section):
    trials: int = Field(24, ge=1)
    budget: Duration
    parallel: int = Field(2, ge=1)
    rows: int | None = Field(None, ge=100)
    finalists: int = Field(5, ge=0)
    rounds: int = Field(500, ge=1)
    patience: int = Field(25, ge=1)
    seed: int = Field(0, ge=0, le=SEED)
    space: dict[str, Range]


class Train(Section):
    refit: bool = True
    seeds: int = Field(3, ge=1)
    calibration: Literal["sigmoid", "none"] = "sigmoid"
    categories: Literal["coded", "native"] = "coded"
    device: Annotated[str, _spelled_as(r"cpu|cuda(:\d+)?", "a device is cpu, cuda or cuda:<number>")] = "cpu"


class Costs(Section):
    """What the two mistakes of a binary decision cost, in any unit. No default: equal costs are a choice too."""

    false_positive: float = Field(gt=0)
    false_negative: float = Field(gt=0)


class Evaluate(Section):
    costs: Costs | None = None  # a binary label needs them
    slices: list[str] = []
    slice_rows: int = Field(500, ge=1)
    baselines: list[Literal["constant", "linear", "forest"]] = ["constant", "linear", "forest"]
    shap_rows: int = Field(2000, ge=1)


class Gate(Section):
    metric: Literal["log_loss", "rmse"]
    rule: Literal["superior", "non_inferior"] = "superior"
    min_gain: float = 0
    margin: float = Field(0.001, ge=0)
    level: float = Field(0.95, gt=0.5, lt=1)
    block: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(days=1)
    min_rows: int = Field(2000, ge=1)
    min_blocks: int = Field(14, ge=2)
    slice_tolerance: float = Field(0.02, ge=0)
    max_calibration_error: float = Field(0.1, gt=0)
    max_megabytes: float = Field(50, gt=0)
    max_milliseconds: float = Field(1.0, gt=0)
    backoff: Duration = timedelta(0)
    approval: Literal["none", "required"] = "none"
    approval_within: Duration = timedelta(days=1)


Name = Annotated[
    str, _spelled_as(r"[^\W_][^/:\x00-\x1f]{0,199}", "a name begins with a letter or digit and holds no / and no :")
]


class Registry(Section):
    model: Name
    experiment: Name
    top_trials: int = Field(5, ge=0)


class Stage(Section):
    threads: int = Field(2, ge=1)
    memory: Annotated[
        str, _spelled_as(r"\d+(\.\d+)? ?([kKMGT]i?B|%)", "an amount of memory is such as 4GB or 500MB")
    ] = "4GB"
    limits: dict[str, Duration]

    @model_validator(mode="after")
    def _known(self) -> "Stage":
        for name in self.limits.keys() - set(STAGES):
            raise ValueError(f"limits has no stage called {name}{_near(name, STAGES)}")
        return self


class Paths(Section):
    raw: Path
    clean: Path
    quarantine: Path
    features: Path
    models: Path
    reports: Path

    @model_validator(mode="after")
    def _apart(self) -> "Paths":
        folders = {name: getattr(self, name) for name in type(self).model_fields}
        for name, folder in folders.items():
            if folder.is_absolute() or ".." in folder.parts or not folder.parts:
                raise ValueError(f"{name} must be a folder inside the checkout, such as data/{name}, but got {folder}")
            for other, around in folders.items():
                if other != name and folder.is_relative_to(around):
                    raise ValueError(f"{name} and {other} must be folders apart, but got {folder} and {around}")
        return self


class Journal(Section):
    address: str | None = None


SignalKind = Literal["performance", "drift", "prediction", "quality", "estimate", "predecessor", "challenger"]


class Monitor(Section):
    window: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(days=7)
    tolerance: float = Field(0.0, ge=0)
    alerts: Annotated[str, _spelled_as(r"[a-z0-9-]+/[a-z0-9-]+", "a block is <type>/<name>")] | None = None


class Drift(Section):
    false_alarms: float = Field(0.25, gt=0)
    bins: int = Field(16, ge=4, le=200)
    levels: int = Field(20, ge=2, le=500)
    sample: int = Field(4000, ge=100)


class Policy(Section):
    signals: list[SignalKind] = ["performance", "drift"]
    windows: int = Field(2, ge=1)
    min_rows: int = Field(500, ge=1)
    cool_down: Duration = timedelta(days=14)
    budget: int = Field(4, ge=1)
    attempts: int = Field(2, ge=0)


REPLAYED = "never, drift, performance, both, every:<length> such as every:7d, or spaced:<number>"
ReplayPolicy = Annotated[
    str,
    _spelled_as(r"never|drift|performance|both|every:\d+[hdw]|spaced:\d+", f"a policy to replay is {REPLAYED}"),
]


class Replay(Section):
    policies: Annotated[list[ReplayPolicy], Field(min_length=1)] = ["never", "every:7d", "drift", "performance", "both"]
    step: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(days=7)
    trials: int | None = Field(None, ge=1)
    price: float = Field(0.05, ge=0)


class Challenger(Section):
    mode: Literal["none", "shadow", "share"] = "none"  # "off" would be read by YAML as false
    share: float = Field(0.1, gt=0, le=1)
    sticky: list[str] = []


Topic = Annotated[str, _spelled_as(r"[A-Za-z0-9._-]{1,249}", "a topic's name is letters, digits and . _ -")]
OURS = ("bootstrap.servers", "group.id", "enable.auto.commit", "enable.auto.offset.store", "message.timeout.ms")


class Stream(Section):
    bootstrap: str | None = None
    rows: Topic = "evergreen.rows"
    predictions: Topic = "evergreen.predictions"
    dead: Topic = "evergreen.dead"
    group: str = Field("evergreen", min_length=1)
    batch: int = Field(500, ge=1, le=10_000)
    wait: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(milliseconds=50)
    port: int = Field(9108, ge=0, le=65535)
    client: dict[str, str | bool | int | float] = {}

    @model_validator(mode="after")
    def _sound(self) -> "Stream":
        topics = [self.rows, self.predictions, self.dead]
        if len(set(topics)) < len(topics):
            raise ValueError(f"rows, predictions and dead must be three topics, but got {topics}")
        if secret := [name for name in self.client if re.search(r"password|secret|\.pem$|jaas", name)]:
            raise ValueError(
                f"client must hold no secrets, but has {secret}: EVERGREEN_KAFKA_PASSWORD is sasl.password"
            )
        if taken := [name for name in self.client if name in OURS]:
            raise ValueError(f"client must leave {taken} to the stream, which sets them itself")
        return self


class Serving(Section):
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    workers: int = Field(1, ge=1)
    behind: Duration = timedelta(days=1)
    ahead: Duration = timedelta(hours=2)
    beyond: Literal["refuse", "stale"] = "refuse"
    stale: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(days=2)
    watch: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(seconds=2)
    rows: int = Field(1000, ge=1)
    megabytes: float = Field(4, gt=0)
    busy: int = Field(64, ge=1)
    within: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(seconds=10)
    sync: Duration = timedelta(milliseconds=200)
    challenger: Challenger = Challenger()
    key_file: str | None = None
    stream: Stream = Stream()


class Params(Section):
    clock: Clock
    sources: dict[str, Source]
    contract: dict[str, Table]
    ingest: Ingest
    clean: Clean
    spine: Spine
    label: Label
    features: Features
    split: Split
    tune: Tune
    train: Train
    evaluate: Evaluate
    gate: Gate
    registry: Registry
    journal: Journal = Journal()
    monitor: Monitor = Monitor()
    drift: Drift = Drift()
    policy: Policy = Policy()
    replay: Replay = Replay()
    serving: Serving = Serving()
    stage: Stage
    paths: Paths

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


def _check_table(name: str, table: Table, p: Params) -> None:
    timed = p.sources[name].event_time is not None
    if not re.fullmatch(r"[A-Za-z]\w*", name) or name == "spine":
        raise ValueError(f"a table's name is a letter, then letters, digits and _, and not spine, but got {name!r}")
    if taken := sorted(table.columns.keys() & {*TAKEN, *(() if timed else TIMES)}):
        raise ValueError(f"contract.{name}.columns must not be called {taken}: rename them by sources.{name}.derive")
    if later := [each for each, column in table.columns.items() if column.outcome and not timed]:
        raise ValueError(f"contract.{name} has outcomes {later}, so sources.{name}.event_time must be given")
    if odd := [each for each in table.key if each not in {*table.columns, *(TIMES[:1] if timed else ())}]:
        raise ValueError(f"contract.{name}.key must name its columns, but {odd} are none{_near(odd[0], table.columns)}")
    if loose := [each for each in table.key if each in table.columns and not table.columns[each].required]:
        raise ValueError(
            f"contract.{name}.key: {loose} must be `required: true`, since two missing keys are not one key"
        )
    _check_names(name, table, p.sources[name])
    for each, column in table.columns.items():
        others = {other: table for other, table in p.contract.items() if other != name}
        _check_reference(f"contract.{name}.columns.{each}", column, others)


def _check_names(name: str, table: Table, source: Source) -> None:
    """SQL knows no upper and lower case: names that differ in that alone are one column to it."""
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
    if odd := [column for column in table.columns if column not in TIMES and column.lower() in (*TAKEN, *TIMES)]:
        raise ValueError(f"contract.{name}.columns must not be called {odd}: rename them by sources.{name}.derive")
    if table.version is not None and table.version not in table.columns:
        near = _near(table.version, table.columns)
        raise ValueError(f"contract.{name}.version must name one of its columns, but got {table.version!r}{near}")
    if table.version is not None and not table.key:
        raise ValueError(f"contract.{name}.version tells rows of one key apart, so contract.{name}.key must be given")
    if table.version is not None and table.columns[table.version].outcome:
        raise ValueError(f"contract.{name}.version must be known with its row, but {table.version!r} is an outcome")


def _check_reference(name: str, column: Column, others: dict[str, Table]) -> None:
    if not column.references:
        return
    table, _, field = column.references.partition(".")
    if table not in others:
        raise ValueError(f"{name}.references must name another table, but got {table}{_near(table, others)}")
    if field not in others[table].columns:
        raise ValueError(f"{name}.references: {table} has no column {field}{_near(field, others[table].columns)}")
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
        near = _near(unknown[0], columns)
        raise ValueError(f"spine.columns must be in contract.{spine.table}, but {unknown} are not{near}")
    if later := [name for name in spine.columns if columns[name].outcome]:
        raise ValueError(f"spine.columns must be known when a prediction is asked, but {later} are outcomes")
    asked = ["event_time", *p.contract[spine.table].key, *spine.columns]
    if odd := [name for name in p.serving.challenger.sticky if name not in asked]:
        raise ValueError(f"serving.challenger.sticky must name spine columns, but {odd} are none{_near(odd[0], asked)}")


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f". Did you mean `{near[0]}`?" if near else ""


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
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(dict(found)) for found in error.errors()]
        raise ValueError("\n".join(f"{name}: {line}" for line in lines)) from None


def _explain(found: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in found["loc"]) or "the file"
    if found["type"] == "extra_forbidden":
        return f"`{key}` is no known key.{_suggest(found['loc'])}"
    if found["type"] == "missing":
        return f"`{key}` is missing."
    told = found["type"] == "value_error" or isinstance(found["input"], dict)  # our own messages name their values
    given = "" if told else f", but got {found['input']!r}"
    rule = found["msg"].removeprefix("Value error, ").replace("datetime.timedelta(0)", spell(timedelta(0)))
    return f"`{key}`: {rule}{given}"


def _suggest(loc: tuple[Any, ...]) -> str:
    model: Any = Params
    for part in loc[:-1]:
        model = _inner(model.model_fields[part].annotation) if part in getattr(model, "model_fields", {}) else model
    return _near(str(loc[-1]), getattr(model, "model_fields", {})).removeprefix(".")


def _inner(annotation: Any) -> Any:
    """The section's class inside dict[str, Section] or Section | None."""
    classes = [_inner(part) for part in get_args(annotation)] or [annotation]
    return next((each for each in classes if isinstance(each, type) and issubclass(each, Section)), annotation)


def home(checkout: Path | None = None) -> Path:
    """The one folder of a checkout's shared state: EVERGREEN_HOME, else .evergreen in the checkout (the cwd)."""
    named = os.environ.get("EVERGREEN_HOME")
    return Path(named).absolute() if named else (checkout or Path.cwd()).resolve() / ".evergreen"
