"""The sections of params.yaml as frozen, strict models, one class a section, in the order of the file."""

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks import LOOPBACK
from tasks.params.values import Duration, Moment, spell, spelled_as, suggest

Task = Literal["binary", "multiclass", "regression"]
SEED = 2**31 - 1  # the largest seed that each library takes
STAGES = ("ingest", "clean", "features", "tune", "train", "evaluate", "record")  # of dvc.yaml; a test compares
TIMES = ("event_time", "known_at")  # every timed table has them, made from sources.<table>
PLACE = ("_file", "_row")  # where a row of a doubled key came from: which of the source's files, which of its rows
FAULT = "_fault"  # the expressions of the source that fail for a row
# Columns that the stages add, or read rows by.
TAKEN = ("row_id", "reason", "raw", "file_row_number", "file_index", *PLACE, FAULT)


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


class Ingest(Section):
    period: Literal["day", "week", "month"] = "month"
    pii_key_id: str | None = None
    lateness: Duration | None = None


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


class Recipe(Section):
    """What a search found: XGBoost's parameters, class_weight among them, how many rounds, which features go."""

    params: dict[str, int | float | str]
    rounds: int = Field(ge=1)
    dropped: list[str] = []


class Tune(Section):
    recipe: Recipe | None = None
    trials: int = Field(24, ge=1)
    budget: Duration
    cpu: Annotated[Duration, Field(gt=timedelta(0))] | None = None
    parallel: int = Field(2, ge=1)
    rows: int | None = Field(None, ge=100)
    finalists: int = Field(5, ge=0)
    halvings: int = Field(0, ge=0)
    drop: bool = False
    small: bool = False
    rounds: int = Field(400, ge=1)
    patience: int = Field(20, ge=1)
    seed: int = Field(0, ge=0, le=SEED)
    space: dict[str, Range]


class Train(Section):
    offset: str | None = None
    undersample: float | None = Field(None, gt=0, lt=1)
    refit: bool = True
    seeds: int = Field(3, ge=1)
    calibration: Literal["sigmoid", "none"] = "sigmoid"
    categories: Literal["coded", "native"] = "coded"
    bag: int = Field(1, ge=1)
    warm: Annotated[Duration, Field(gt=timedelta(0))] | None = None
    distributed: bool = False
    workers: int = Field(2, ge=2)
    device: Annotated[str, spelled_as(r"cpu|cuda(:\d+)?", "a device is cpu, cuda or cuda:<number>")] = "cpu"


class Costs(Section):
    """What the two mistakes of a binary decision cost, in any unit. No default: equal costs are a choice too."""

    false_positive: float = Field(gt=0)
    false_negative: float = Field(gt=0)


class Evaluate(Section):
    costs: Costs | None = None  # a binary label needs them
    slices: list[str] = []
    slice_rows: int = Field(500, ge=1)
    baselines: list[Literal["constant", "linear", "forest"]] = ["constant", "linear", "forest"]


class Gate(Section):
    metric: Literal["log_loss", "rmse"]
    rule: Literal["superior", "non_inferior"] = "superior"
    min_gain: float = 0
    margin: float = Field(0.01, ge=0)
    level: float = Field(0.95, gt=0.5, lt=1)
    block: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(days=1)
    min_rows: int = Field(2000, ge=1)
    min_blocks: int = Field(14, ge=2)
    slice_tolerance: float = Field(0.1, ge=0)
    max_calibration_error: float = Field(0.1, gt=0)
    max_megabytes: float = Field(50, gt=0)
    max_milliseconds: float = Field(1.0, gt=0)
    backoff: Duration = timedelta(0)
    approval: Literal["none", "required"] = "none"
    approval_within: Duration = timedelta(days=1)


Name = Annotated[
    str, spelled_as(r"[^\W_][^/:\x00-\x1f]{0,199}", "a name begins with a letter or digit and holds no / and no :")
]


class Registry(Section):
    model: Name
    experiment: Name
    top_trials: int = Field(5, ge=0)


class Stage(Section):
    threads: int = Field(2, ge=1)
    memory: Annotated[
        str, spelled_as(r"\d+(\.\d+)? ?([kKMGT]i?B|%)", "an amount of memory is such as 4GB or 500MB")
    ] = "4GB"
    cluster: (
        Annotated[
            str,
            spelled_as(
                r"local:[1-9]\d{0,2}|(tcp|tls)://[^\s/@]+:\d{1,5}",
                "a cluster is local:<processes>, or the address of a Dask scheduler, tls://<host>:<port>",
            ),
        ]
        | None
    ) = None
    limits: dict[str, Duration]

    def split_memory(self) -> tuple[float, str]:
        """The number of `memory`, and its unit."""
        number = re.match(r"[\d.]+", self.memory)
        assert number  # its spelling is checked
        return float(number[0]), self.memory[number.end() :].strip()

    @property
    def memory_bytes(self) -> float:
        """`memory` as bytes; a share is of this machine's."""
        number, unit = self.split_memory()
        if unit == "%":
            return number / 100 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return number * float((1024 if "i" in unit else 1000) ** (1 + "KMGT".index(unit[0].upper())))

    @model_validator(mode="after")
    def _safe(self) -> "Stage":
        scheme, _, place = (self.cluster or "").partition("://")
        if scheme == "tcp" and place.rpartition(":")[0].strip("[]") not in LOOPBACK:
            raise ValueError(
                f"cluster must be tls:// beyond this machine, since Dask runs what it is sent; got {self.cluster!r}: "
                "write tls://, with Dask's distributed.comm.tls settings on both sides; or reach it by a tunnel, as "
                f"tcp://{LOOPBACK[0]}:<port>."
            )
        return self

    @model_validator(mode="after")
    def _known(self) -> "Stage":
        for name in self.limits.keys() - set(STAGES):
            raise ValueError(f"limits has no stage called {name}{suggest(name, STAGES)}")
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


SignalKind = Literal[
    "performance", "freshness", "drift", "prediction", "quality", "estimate", "predecessor", "challenger"
]
RetrainKind = Literal["search", "refresh", "contender"]


class Monitor(Section):
    window: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(days=7)
    tolerance: float = Field(0.0, ge=0)
    alerts: Annotated[str, spelled_as(r"[a-z0-9-]+/[a-z0-9-]+", "a block is <type>/<name>")] | None = None


class Drift(Section):
    false_alarms: float = Field(0.25, gt=0)


class Policy(Section):
    signals: list[SignalKind] = ["freshness", "performance", "drift"]
    refresh_every: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(days=7)
    search_every: Annotated[Duration, Field(gt=timedelta(0))] | None = timedelta(days=90)
    price: float | None = Field(None, gt=0)
    money: float | None = Field(None, gt=0)
    windows: int = Field(2, ge=1)
    min_rows: int = Field(500, ge=1)
    cool_down: Duration = timedelta(days=14)
    budget: int = Field(4, ge=1)
    attempts: int = Field(2, ge=0)
    cpu_price: float = Field(0.05, ge=0)


REPLAYED = (
    "never, default, drift, performance, both, every:<length> such as every:7d, refresh:<length>, ungated:<length>, or "
    "spaced:<number>"
)
ReplayPolicy = Annotated[
    str,
    spelled_as(
        r"never|default|drift|performance|both|(every|refresh|ungated):\d+[hdw]|spaced:\d+",
        f"a policy to replay is {REPLAYED}",
    ),
]


class Replay(Section):
    policies: Annotated[list[ReplayPolicy], Field(min_length=1)] = [
        "never",
        "default",
        "refresh:7d",
        "every:28d",
        "ungated:7d",
    ]
    step: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(days=7)
    dates: int = Field(12, ge=1)
    trials: int | None = Field(None, ge=1)


class Challenger(Section):
    mode: Literal["none", "shadow", "share"] = "none"  # "off" would be read by YAML as false
    share: float = Field(0.1, gt=0, le=1)
    sticky: list[str] = []


Topic = Annotated[str, spelled_as(r"[A-Za-z0-9._-]{1,249}", "a topic's name is letters, digits and . _ -")]
OURS = ("bootstrap.servers", "group.id", "enable.auto.commit", "enable.auto.offset.store", "message.timeout.ms")


class Stream(Section):
    bootstrap: str | None = None
    rows: Topic = "evergreen.rows"
    predictions: Topic = "evergreen.predictions"
    dead: Topic = "evergreen.dead"
    group: str = Field("evergreen", min_length=1)
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


Host = Annotated[
    str, spelled_as(r"[A-Za-z0-9._-]+|[0-9a-fA-F:]+", "a host is a name or an address, without scheme and port")
]


class Serving(Section):
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    grpc_port: int | None = Field(None, ge=0, le=65535)
    workers: int = Field(1, ge=1)
    behind: Duration = timedelta(days=1)
    ahead: Duration = timedelta(hours=2)
    beyond: Literal["refuse", "stale"] = "refuse"
    stale: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(days=2)
    rows: int = Field(1000, ge=1)
    reasons: int = Field(100, ge=1)
    busy: int = Field(64, ge=1)
    within: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(seconds=10)
    arriving: int = Field(256, ge=4)
    arrival: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(seconds=10)
    sync: Duration = timedelta(milliseconds=200)
    challenger: Challenger = Challenger()
    key_file: str | None = None
    guarded: bool = False
    hosts: list[Host] = []
    certificate: str | None = None
    certificate_key: str | None = None
    stream: Stream = Stream()

    @model_validator(mode="after")
    def _whole(self) -> "Serving":
        if (self.certificate is None) != (self.certificate_key is None):
            raise ValueError(
                "certificate and certificate_key must be set together, but got "
                f"{self.certificate!r} and {self.certificate_key!r}: name both files, or neither"
            )
        return self
