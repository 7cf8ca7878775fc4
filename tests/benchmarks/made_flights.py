"""Made clean tables with the real schema: as many months of flights as asked for, the same number of rows in each.

They are what the clean stage would leave, types and all, so that only the features' work is measured. Delays come and
go by the airport and the hour, so that no window is empty and none is constant.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks import params
from tasks.data import periods
from tasks.params import Params

BEGIN = datetime(2013, 1, 1)
ORIGINS, DESTS, CARRIERS, PLANES, FLIGHTS = ["EWR", "JFK", "LGA"], 100, 16, 3500, 400
ARROW = {"VARCHAR": pa.string(), "INTEGER": pa.int32(), "DOUBLE": pa.float64(), "TIMESTAMP": pa.timestamp("us")}
TIMES = {"event_time": pa.timestamp("us"), "known_at": pa.timestamp("us")}


def write(p: Params, clean: Path, *, months: int, rows: int) -> None:
    """<clean>/<table>/<period>.parquet for every table of the contract."""
    rng = np.random.default_rng(months)
    for name, table in {"airlines": airlines(), "airports": airports(), "planes": planes(rng)}.items():
        _save(p, clean, name, periods.WHOLE, table)
    start = BEGIN
    for _ in range(months):
        period = periods.period_at(start, "month")
        _save(p, clean, "weather", period.name, weather(rng, period.start, period.end))
        _save(p, clean, "flights", period.name, flights(rng, period.start, period.end, rows))
        start = period.end


def names(prefix: str, count: int) -> NDArray[np.str_]:
    return np.array([f"{prefix}{i}" for i in range(count)])


def airlines() -> dict[str, Any]:
    return {"carrier": names("C", CARRIERS), "name": names("Carrier ", CARRIERS)}


def airports() -> dict[str, Any]:
    spots = np.linspace(-60, 60, DESTS)
    zones = np.full(DESTS, "America/Chicago")
    return {"faa": names("D", DESTS), "lat": spots, "lon": spots, "alt": np.arange(DESTS), "tzone": zones}


def planes(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "tailnum": names("N", PLANES),
        "year": rng.integers(1985, 2013, PLANES),
        "manufacturer": rng.choice(names("Maker ", 20), PLANES),
        "engines": np.full(PLANES, 2),
        "seats": rng.integers(50, 400, PLANES),
        "engine": np.full(PLANES, "Turbo-fan"),
    }


def weather(rng: np.random.Generator, start: datetime, end: datetime) -> dict[str, Any]:
    hours = np.arange(np.datetime64(start, "us"), np.datetime64(end, "us"), np.timedelta64(1, "h"))
    moments, count = np.tile(hours, len(ORIGINS)), len(hours) * len(ORIGINS)
    scales = {"temp": 90, "dewp": 50, "humid": 100, "wind_speed": 30, "wind_gust": 40, "precip": 1, "visib": 10}
    readings = {name: rng.uniform(0, scale, count) for name, scale in scales.items()}
    times = {"time_hour": moments, "event_time": moments, "known_at": moments}
    origins, directions = np.repeat(ORIGINS, len(hours)), rng.integers(0, 360, count)
    return {"origin": origins, "wind_dir": directions, "pressure": rng.uniform(980, 1040, count), **readings, **times}


def flights(rng: np.random.Generator, start: datetime, end: datetime, rows: int) -> dict[str, Any]:
    minutes = np.sort(rng.integers(0, int((end - start).total_seconds() // 60), rows))
    event = np.datetime64(start, "us") + minutes * np.timedelta64(1, "m")
    tens, origin = np.timedelta64(10, "m"), rng.integers(0, 3, rows)
    mood = 15 * np.sin(minutes / 1440 * (1 + origin))  # an airport has good and bad days
    delay, flown = rng.normal(mood, 20, rows).astype(int), rng.integers(6, 36, rows)
    clock = minutes % 1440 // 60 * 100 + minutes % 60
    return {
        "time_hour": event.astype("datetime64[h]").astype("datetime64[us]"),
        "minute": minutes % 60,
        "sched_dep_time": clock,
        "sched_arr_time": clock,
        "dep_delay": delay // 2,
        "arr_time": clock,
        "arr_delay": delay,
        "air_time": flown * 10,
        "carrier": rng.choice(names("C", CARRIERS), rows),
        "flight": rng.integers(1, FLIGHTS, rows),
        "tailnum": rng.choice(names("N", PLANES), rows),
        "origin": np.array(ORIGINS)[origin],
        "dest": rng.choice(names("D", DESTS), rows),
        "distance": flown * 80,
        "sched_arrival": event + flown * tens,
        "event_time": event,
        "known_at": event + flown * tens + np.maximum(delay, -30) * np.timedelta64(1, "m"),
    }


def _save(p: Params, clean: Path, name: str, period: str, columns: dict[str, Any]) -> None:
    """In the contract's order and types; what is not made of the contract is NULL."""
    kinds = {field: ARROW[column.type] for field, column in p.contract[name].columns.items()}
    kinds |= TIMES if p.sources[name].event_time else {}
    count = len(next(iter(columns.values())))
    arrays = {
        field: pa.array(columns[field]).cast(kind) if field in columns else pa.nulls(count, kind)
        for field, kind in kinds.items()
    }
    (clean / name).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays), clean / name / f"{period}.parquet", compression="zstd")


def of(checkout: Path, *, months: int, rows: int) -> None:
    p = params.load(checkout / "params.yaml")
    write(p, checkout / p.paths.clean, months=months, rows=rows)
