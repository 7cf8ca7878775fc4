"""distributed: one booster of rows that lie on several workers (train.distributed), an equal part of them on each.

    oldest |----- worker 1 -----|----- worker 2 -----| newest        each worker reads its own part of the files

The workers make common bins and add up each level's histograms by XGBoost's collective, which xgboost.dask is made of
too. Which rows a tree draws and where the sums are rounded follows
from the parts. So train.workers belongs to the recipe, and the model is another one than on one machine.

A part that does not fit into its worker's stage.memory stays in its files and is binned on disk.
A worker that dies ends the others' fit, which then begins anew (tasks/runtime/gang.py).
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks import log
from tasks.data import storedrows
from tasks.data.storedrows import StoredRows
from tasks.params import Params
from tasks.runtime import engine, gang
from tasks.runtime.gang import LinkLost, Part
from tasks.training import model
from tasks.training.matrices import Encoded
from tasks.training.model import Spec

MEET_S = 120  # for all workers to begin
EXCHANGE_S = 600  # for one exchange between workers: the first waits for the slowest reader
CONNECT_TRIES = 3


@dataclass(frozen=True)
class Job:
    """One fit, as each of its workers gets it: paths, parameters, and which of the files' rows it has.

    Attributes:
        settings: XGBoost's.
        drawn: a trial's parameters.
        class_weights: by class; none: all rows weigh the same.
        memory: of a worker, in bytes.
    """

    spec: Spec
    rows: StoredRows
    workers: int
    settings: dict[str, Any]
    drawn: dict[str, Any]
    rounds: int
    class_weights: tuple[float, ...]
    memory: float

    def take_part(self, place: int) -> StoredRows:
        """A worker's rows: the parts lie in the order of time, and their lengths differ by one row at most."""
        begin, end = (len(self.rows) * edge // self.workers for edge in (place, place + 1))
        return self.rows.slice(begin, end)

    @property
    def fits_memory(self) -> bool:
        """Whether a part does. All workers go the same way, so that their exchanges agree."""
        return self.rows.weigh() / self.workers <= self.memory


@dataclass(frozen=True)
class Fitted:
    """What a worker says of its part: the booster, which all have, comes from the first alone."""

    rows: int
    process: tuple[str, int]
    digest: str
    booster: bytes | None


def boost(
    seen: Encoded,
    settings: dict[str, Any],
    *,
    drawn: dict[str, Any],
    rounds: int,
    p: Params,
    stop: threading.Event,
) -> Any:
    """XGBoost's booster of encoded rows, by train.workers workers of stage.cluster.

    Raises:
        ValueError: there is no cluster, or less rows than workers.
        RuntimeError, ConnectionError, Stopped: as `gang.run_together` does.
    """
    count = p.train.workers
    if not engine.is_spread(p):
        raise ValueError(
            "train.distributed needs stage.cluster, such as local:2, in the process that trains, but there is none "
            "here. Set it, or set train.distributed to false."
        )
    if len(seen.rows) < count:
        raise ValueError(f"train.workers must not be more than the rows, but got {count} for {len(seen.rows)} rows")
    share = engine.divide(p).stage
    weights: tuple[float, ...] = ()
    if "class_weight" in drawn and seen.spec.classes:
        weights = tuple(model.weigh_classes(seen.label, seen.spec.classes, drawn["class_weight"]).tolist())
    with engine.open_scratch() as folder:
        rows = storedrows.write_rows(seen.rows, folder)
        settings = settings | {"nthread": share.threads}
        job = Job(seen.spec, rows, count, settings, drawn, rounds, weights, share.memory_bytes)
        parts = gang.run_together(open_meeting, fit_part, job, count, p, name="A distributed fit", stop=stop)
    _check_parts(parts, len(seen.rows))
    return model.import_xgboost().Booster(model_file=bytearray(parts[0].booster or b""))


def _check_parts(parts: list[Fitted], rows: int) -> None:
    """Raises RuntimeError where the parts did not lie on as many workers: the model would be another one."""
    if len({part.process for part in parts}) < len(parts) or sum(part.rows for part in parts) != rows:
        raise RuntimeError(f"each part of a distributed fit must lie on a worker of its own, but they lay on {parts}")
    if len({part.digest for part in parts}) > 1:
        raise RuntimeError("the workers of a distributed fit must end with one booster, but have several")
    log.debug("a distributed fit of %s rows on %s workers", rows, len(parts))


# --- on the workers ---------------------------------------------------------------------------------------------------

_TRACKERS: list[Any] = []  # the one of this worker's last meeting: it must outlive all parts


def open_meeting(job: Job, host: str) -> dict[str, Any]:
    """Start XGBoost's tracker on the first worker; what the parts find it by.

    Args:
        host: of this worker, as the others know it.
    """
    model.import_xgboost()
    from xgboost.tracker import RabitTracker

    class Tracker(RabitTracker):
        def __del__(self) -> None:
            with contextlib.suppress(Exception):  # it raises where a part has failed
                self.free()

    _TRACKERS.clear()
    tracker = Tracker(n_workers=job.workers, host_ip=host, sortby="task", timeout=MEET_S)
    tracker.start()
    _TRACKERS.append(tracker)
    return dict(tracker.worker_args())


def fit_part(job: Job, part: Part) -> Fitted:
    """Learn together with the other workers, from this one's rows."""
    xgb = model.import_xgboost()
    rows = job.take_part(part.place)
    encoded = Encoded(job.spec, rows.load() if job.fits_memory else rows)
    with _link(part):
        data = encoded.bin(job.drawn, threads=job.settings["nthread"], memory=job.memory)
        if job.class_weights:
            data.set_weight(np.asarray(job.class_weights, dtype=np.float32)[encoded.label.astype(int)])
        booster = xgb.train(job.settings, data, job.rounds)
    raw = bytes(booster.save_raw("ubj"))
    process = os.uname().nodename, os.getpid()
    return Fitted(len(rows), process, hashlib.sha256(raw).hexdigest(), raw if part.place == 0 else None)


@contextlib.contextmanager
def _link(part: Part) -> Iterator[None]:
    """XGBoost's exchange with the other parts. What it raises in it may come from another's death: LinkLost."""
    xgb = model.import_xgboost()
    from xgboost.collective import CommunicatorContext, get_rank

    limits = {"dmlc_timeout": EXCHANGE_S, "dmlc_retry": CONNECT_TRIES}
    try:
        with (
            xgb.config_context(verbosity=0),  # else each worker prints its rank, in each fit
            CommunicatorContext(**part.meeting, **limits, dmlc_task_id=f"{part.place:06d}"),
        ):
            assert get_rank() == part.place
            yield
    except xgb.core.XGBoostError as error:
        raise LinkLost(f"XGBoost: {str(error)[:500]}") from None
