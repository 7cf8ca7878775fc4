"""holdout.parquet: the labelled rows of a holdout, with each model's prediction of each row; evaluate writes it.

The gate, the monitor and the replay read it. Its columns:

    event_time    the time of the row's event
    label         its outcome
    by_<model>    a model's prediction: a probability, a value, or a list of probabilities, one a class
    in_<slice>    the row's value of a feature that evaluate.slices names

Models are the candidate's twin, its twins with other seeds (candidate_1, ...), and the baselines. A column may be
added; one that goes, or means something else, raises the format's version.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.data.storedrows import AnyRows
from tasks.runtime import files
from tasks.training.model import Floats
from tasks.training.windows import Times

FORMAT = files.Format("holdout", 1)
TIME, LABEL = "event_time", "label"
MODEL_PREFIX, SLICE_PREFIX = "by_", "in_"
CANDIDATE = "candidate"


@dataclass(frozen=True)
class Holdout:
    """The rows of a holdout (n), in the order of time."""

    times: Times
    label: NDArray[Any]
    predictions: dict[str, Floats]
    slices: dict[str, NDArray[Any]]

    @property
    def candidates(self) -> list[Floats]:
        """The predictions of the candidate's twin, and of its twins with other seeds."""
        return [values for name, values in self.predictions.items() if name.split("_")[0] == CANDIDATE]

    @staticmethod
    def load(path: Path) -> "Holdout":
        """Raises ValueError for a file in another format."""
        table = pq.read_table(path)
        mark = (table.schema.metadata or {}).get(files.FORMAT_KEY.encode())
        FORMAT.check(mark.decode() if mark else None, path)
        predictions, slices = (
            {name.removeprefix(prefix): _read(table[name]) for name in table.column_names if name.startswith(prefix)}
            for prefix in (MODEL_PREFIX, SLICE_PREFIX)
        )
        return Holdout(table[TIME].to_numpy(), table[LABEL].to_numpy(), predictions, slices)


def write_holdout(path: Path, rows: AnyRows, predictions: Mapping[str, Floats], slices: Sequence[str]) -> None:
    """Writes the file.

    Args:
        predictions: by model: (n,), or (n, classes).
        slices: names of features.
    """
    columns: dict[str, Any] = {TIME: pa.array(rows.event_time), LABEL: pa.array(rows.label)}
    columns |= {MODEL_PREFIX + name: pa.array(list(values)) for name, values in predictions.items()}
    columns |= {SLICE_PREFIX + name: rows.read_column(name) for name in slices}
    table = pa.table(columns).replace_schema_metadata({files.FORMAT_KEY: FORMAT.mark})
    files.publish(path, lambda new: pq.write_table(table, new, compression="zstd"))


def _read(column: Any) -> NDArray[Any]:
    """A column as numbers or text; a list column of class probabilities as (n, classes)."""
    if pa.types.is_list(column.type):
        return np.stack(column.to_numpy())
    values: NDArray[Any] = column.to_numpy()
    return values.astype(str) if values.dtype == object else values
