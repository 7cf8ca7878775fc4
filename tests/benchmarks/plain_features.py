"""The features of tasks/features.sql once more, as a data scientist would write them in pandas.

    python -m tests.benchmarks.plain_features data/clean out.parquet

All the clean tables in memory, the whole span at once: no periods, no look-back, no cache, no check for leaks. Prints
the seconds that reading, computing and writing took. tests/benchmarks/features.py checks that the values are equal.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

LEAD = pd.Timedelta("2h")
WEEK, DAY = pd.Timedelta("7D"), pd.Timedelta("1D")
WINDOWS = [  # group, window, and the mean of which columns is which feature
    (["origin"], "1h", {"late": "origin_late_1h", "arr_delay": "origin_delay_1h", "dep_delay": "origin_dep_delay_1h"}),
    (["origin"], "4h", {"arr_delay": "origin_delay_4h"}),
    (["carrier"], "4h", {"arr_delay": "carrier_delay_4h"}),
    (["carrier"], "1D", {"late": "carrier_late_1d"}),
    (["dest"], "6h", {"arr_delay": "dest_delay_6h"}),
    (["dest"], "7D", {"late": "dest_late_7d"}),
    (["carrier", "flight"], "7D", {"late": "flight_late_7d", "arr_delay": "flight_delay_7d"}),
    (["tailnum"], "1D", {"arr_delay": "tail_delay_1d"}),
]
SKY = ["temp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
SHOWN = ["origin", "carrier", "dest", "distance"]


def compute(flights: pd.DataFrame, weather: pd.DataFrame, planes: pd.DataFrame) -> pd.DataFrame:
    """A row of features for every flight, in the order of time and key."""
    spine = flights.sort_values(["event_time", "carrier", "flight", "origin"], ignore_index=True)
    spine["asked_at"] = spine["event_time"] - LEAD
    spine["row_id"] = spine.index
    parts = [schedule(spine), of_plane(spine, planes), sky(spine, weather), recent(spine), last_arrival(spine)]
    return pd.concat(parts, axis=1)


def schedule(spine: pd.DataFrame) -> pd.DataFrame:
    local = spine["event_time"].dt.tz_localize("UTC").dt.tz_convert("America/New_York")
    return spine[SHOWN].assign(
        sched_minute=spine["sched_dep_time"] // 100 * 60 + spine["sched_dep_time"] % 100,
        weekday=local.dt.dayofweek + 1,
        sched_duration=(spine["sched_arrival"] - spine["event_time"]).dt.total_seconds() / 60,
    )


def of_plane(spine: pd.DataFrame, planes: pd.DataFrame) -> pd.DataFrame:
    plane = spine[["tailnum"]].merge(planes, on="tailnum", how="left")
    age = spine["event_time"].dt.year - plane["year"]
    return pd.DataFrame({"plane_age": age, "seats": plane["seats"], "manufacturer": plane["manufacturer"]})


def sky(spine: pd.DataFrame, weather: pd.DataFrame) -> pd.DataFrame:
    """The last observation that was known, if it is not older than a day."""
    right = weather[["origin", "known_at", *SKY]].sort_values("known_at")
    left = spine[["row_id", "origin", "asked_at"]].sort_values("asked_at")
    joined = pd.merge_asof(left, right, left_on="asked_at", right_on="known_at", by="origin", tolerance=DAY)
    return joined.set_index("row_id")[SKY].sort_index()


def last_arrival(spine: pd.DataFrame) -> pd.DataFrame:
    """Where the aircraft came from: of two arrivals in one minute the later one counts."""
    right = spine.dropna(subset=["known_at", "tailnum"]).sort_values(["known_at", "arr_delay"])
    left = spine[["row_id", "tailnum", "asked_at"]].sort_values("asked_at")
    right = right[["tailnum", "known_at", "arr_delay"]]
    joined = pd.merge_asof(left, right, left_on="asked_at", right_on="known_at", by="tailnum", tolerance=WEEK)
    joined = joined.set_index("row_id").sort_index()
    idle = (joined["asked_at"] - joined["known_at"]).dt.total_seconds() / 3600
    return pd.DataFrame({"tail_last_delay": joined["arr_delay"], "tail_idle_hours": idle})


def recent(spine: pd.DataFrame) -> pd.DataFrame:
    """What was known of other flights: arrivals and questions on one line of time, and windows that look back on it."""
    line = timeline(spine)
    means = [
        look_back(line, group, window, list(columns)).rename(columns=columns) for group, window, columns in WINDOWS
    ]
    arrivals = look_back(line, ["origin"], "1h", ["late"], how="count").rename(columns={"late": "origin_arrivals_1h"})
    together = pd.concat([*means, arrivals], axis=1).assign(row_id=line["row_id"])
    return together[together["row_id"] >= 0].set_index("row_id").sort_index()


def timeline(spine: pd.DataFrame) -> pd.DataFrame:
    """Arrivals before questions of the same moment, so that a window that ends with a question holds them."""
    keys = ["origin", "carrier", "dest", "flight", "tailnum"]
    known = spine.dropna(subset=["known_at"])
    arrivals = known[[*keys, "arr_delay", "dep_delay"]].assign(
        moment=known["known_at"], late=(known["arr_delay"] >= 15).astype(float), row_id=-1
    )
    questions = spine[[*keys, "row_id"]].assign(moment=spine["asked_at"])
    return pd.concat([arrivals, questions]).sort_values(["moment", "row_id"], ignore_index=True)


def look_back(line: pd.DataFrame, group: list[str], window: str, columns: list[str], how: str = "mean") -> pd.DataFrame:
    """The columns over the window that ends with each row; rolling gives a group's rows together, in their order."""
    grouped = line.groupby(group)
    values = grouped[[*columns, "moment"]].rolling(window, on="moment", closed="both", min_periods=0).agg(how)
    place = np.concatenate(list(grouped.indices.values()))
    return values[columns].set_index(line.index[place])


def main(clean: Path, out: Path) -> None:
    began = time.perf_counter()
    tables = {name: pd.read_parquet(clean / name) for name in ("flights", "weather", "planes")}
    read = time.perf_counter()
    features = compute(tables["flights"], tables["weather"], tables["planes"])
    done = time.perf_counter()
    features.to_parquet(out, index=False)
    print(json.dumps({"seconds": time.perf_counter() - began, "compute": done - read}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
