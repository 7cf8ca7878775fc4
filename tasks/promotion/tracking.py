"""tracking: the connection to MLflow: address, environment, experiments, runs, and its errors in this project's words.

The only importer of mlflow beside pyfunc.py, which MLflow runs. mlflow takes seconds to import, so it is imported when
it is first used. Run ids are explicit: nothing depends on an active run or a global address.
"""

import base64
import contextlib
import functools
import importlib
import json
import os
import ssl
import threading
import urllib.error
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

from tasks import TELEMETRY_OFF, log, params
from tasks.promotion import database, tags
from tasks.runtime import locks

if TYPE_CHECKING:
    import mlflow.entities.model_registry

ENVIRONMENT = {  # before mlflow is imported: no telemetry, no four-minute waits, no chatter, nothing unpickled
    **TELEMETRY_OFF,
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
STORES = ("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store")
PROBE_TIMEOUT_S = 5.0  # for a server's first answer
MAX_POINTS, MAX_PARAMS, MAX_ROWS = 1000, 100, 1000  # the most that MLflow takes, or gives, in one call
MAX_CHARACTERS = 6000  # of a param
LIBRARIES = ("requests.", "urllib3.")
NETWORK_ERRORS = ("ConnectionError", "Timeout", "RetryError", "MaxRetryError")  # of those: nobody answered
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the codes of MLflow's error for what is not there
LOCAL_UI = "http://127.0.0.1:5000"  # mlflow's own default
KIND = {"mlflow.experimentKind": "custom_model_development"}  # or its UI asks what the experiment is for

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


VIEW = "mlflow.sharedViewState."  # and a name: MLflow's own tag of an experiment, for a view of its runs


class Point(NamedTuple):
    """A value of a metric."""

    name: str
    value: float
    step: int = 0
    at: datetime | None = None  # UTC; None: now


@dataclass(frozen=True)
class Tracking:
    """MLflow at one address.

    Attributes:
        lock: held by the processes of this machine, or of all machines of a team, while they write.
        experiments: the ids of the experiments, by name.
    """

    client: "mlflow.MlflowClient"
    uri: str
    lock: locks.Lock
    experiments: Mapping[str, str]

    def open_experiment(self, name: str, note: str) -> str:
        """The id of one more experiment; it is made if it is missing."""
        return str(_open_experiment(self.client, self.uri, name, note, before=None).experiment_id)

    def create_run(
        self, experiment_id: str, name: str, run_tags: Mapping[str, str], *, start: datetime | None = None
    ) -> str:
        start_ms = int(start.timestamp() * 1000) if start else None
        run = self.client.create_run(experiment_id, start_time=start_ms, tags=dict(run_tags), run_name=name)
        return str(run.info.run_id)

    def search_runs(self, experiment_id: str, query: str = "") -> "list[mlflow.entities.Run]":
        return _read_pages(
            lambda token: self.client.search_runs([experiment_id], query, max_results=MAX_ROWS, page_token=token)
        )

    def search_versions(self, query: str) -> "list[mlflow.entities.model_registry.ModelVersion]":
        return _read_pages(
            lambda token: self.client.search_model_versions(query, max_results=MAX_ROWS, page_token=token)
        )

    def log_params(self, run_id: str, values: Mapping[str, Any]) -> None:
        param = load_mlflow().entities.Param
        rows = [param(name, str(value)[:MAX_CHARACTERS]) for name, value in sorted(values.items())]
        for start in range(0, len(rows), MAX_PARAMS):
            self.client.log_batch(run_id, params=rows[start : start + MAX_PARAMS])

    def log_points(self, run_id: str, points: Sequence[Point], *, model_id: str | None = None) -> None:
        metric, now = load_mlflow().entities.Metric, datetime.now(UTC)
        rows = [
            metric(point.name, point.value, int((point.at or now).timestamp() * 1000), point.step, model_id)
            for point in points
        ]
        for start in range(0, len(rows), MAX_POINTS):
            self.client.log_batch(run_id, rows[start : start + MAX_POINTS])

    def find_link(self, run_id: str) -> str:
        """Where a person sees the run: on the server in use, else where `make ui-mlflow` shows this database."""
        experiment = self.client.get_run(run_id).info.experiment_id
        return f"{self._ui}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"

    def save_view(self, experiment_id: str, name: str, *, query: str, columns: Sequence[str]) -> str:
        """Save a view of an experiment's runs, as the button Share of MLflow's UI does; where a person sees it.

        Args:
            columns: such as tags.`evergreen.kind`.
        """
        view = {"searchFilter": query, "orderByKey": "attributes.start_time", "orderByAsc": False}
        content = json.dumps({**view, "selectedColumns": list(columns)}).encode()
        packed = f"deflate;{base64.b64encode(zlib.compress(content)).decode()}"
        self.client.set_experiment_tag(experiment_id, f"{VIEW}{name}", packed)
        return f"{self._ui}/#/experiments/{experiment_id}/runs?viewStateShareKey={name}&workflowType=machine_learning"

    @property
    def _ui(self) -> str:
        return hide_password(self.uri).rstrip("/") if is_server(self.uri) else LOCAL_UI


# --- the address ---------------------------------------------------------------------------------------------------


def find_address() -> str:
    """Where MLflow is: MLFLOW_TRACKING_URI, else a database in the checkout's home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or database.sqlite_uri(params.home() / database.DATABASE)


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def hide_password(uri: str) -> str:
    """The address without a user and a password in it."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def _find_place(uri: str) -> tuple[Path, str]:
    """The folder for the lock, the marker and, with no server, the artifacts; and the registry's name in the marker."""
    path = database.find_file(uri)
    return (path.parent, path.name) if path else (params.home(), hide_password(uri))


def _find_database(uri: str) -> Path | None:
    """The database of this address, also behind a server on this machine, as `make up` starts it."""
    if is_server(uri):
        is_local = urlsplit(uri).hostname in ("127.0.0.1", "localhost", "::1")
        return params.home() / database.DATABASE if is_local else None
    return database.find_file(uri)


# --- mlflow itself -------------------------------------------------------------------------------------------------


def load_mlflow() -> Any:
    """The module mlflow: who needs more of it than the client takes it from here."""
    import mlflow

    return mlflow


def find(ask: Callable[..., T], *args: Any) -> T | None:
    """What a method of MLflow's client returns; None where it says that there is no such thing."""
    try:
        return ask(*args)
    except load_mlflow().exceptions.MlflowException as error:
        if getattr(error, "error_code", "") not in ABSENT:
            raise
    return None


def preload() -> None:
    """Begin to import mlflow in the background: it takes seconds, while the caller waits for a program."""
    _set_environment()
    threading.Thread(target=load_stores, name="preload", daemon=True).start()


def load_stores() -> None:
    """Import mlflow, and what it needs for the address in use. Whoever opens the registry meets an error of it."""
    _set_environment()
    with contextlib.suppress(Exception):
        for name in ("mlflow", *(() if is_server(find_address()) else STORES)):
            importlib.import_module(name)


def _set_environment() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _read_pages(read: Callable[[str | None], Any]) -> list[Any]:
    page = read(None)
    rows = list(page)
    while page.token:
        page = read(page.token)
        rows += page
    return rows


# --- connecting ----------------------------------------------------------------------------------------------------


def connect(uri: str, *, experiments: Mapping[str, str], model: str) -> Tracking:
    """Connect to MLflow and make the experiments that are missing.

    Args:
        experiments: the experiments' names, and the note that MLflow shows with each.
        model: the registered model's name, for the marker.

    Raises:
        ConnectionError: a server does not answer; within seconds.
        ValueError: the registry was used from here before and is gone, or an experiment was deleted.
    """
    _set_environment()
    if is_server(uri):
        _probe_server(uri)
    folder, key = _find_place(uri)
    folder.mkdir(parents=True, exist_ok=True)
    name = database.LOCK.removesuffix(".lock")
    lock = locks.open_lock(folder, name, timeout=database.LOCK_WAIT_S, local=not is_server(uri), by_thread=True)
    quiet = warnings.catch_warnings(action="ignore")  # mlflow's imports warn of its own libraries
    with lock, explain_silence(uri), quiet:  # two processes that migrate a fresh database at once would break it
        check_database(uri)
        if path := database.find_file(uri):
            database.relocate_artifacts(path)
        client, before = load_mlflow().MlflowClient(uri), database.read_marker(folder, key)
        opened = [_open_experiment(client, uri, name, note, before=before) for name, note in experiments.items()]
        write_marker(uri, {experiment.name: experiment.creation_time or 0 for experiment in opened}, model)
    return Tracking(client, uri, lock, {experiment.name: str(experiment.experiment_id) for experiment in opened})


def _probe_server(uri: str) -> None:
    """Ask a server once, since mlflow's client waits for minutes. Any answer will do, also a refusal."""
    try:
        urllib.request.urlopen(f"{hide_password(uri).rstrip('/')}/health", timeout=PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except (OSError, HTTPException) as error:
        if not isinstance(getattr(error, "reason", None), ssl.SSLError):
            raise _explain_no_answer(uri, str(getattr(error, "reason", error))) from None


def _open_experiment(
    client: "mlflow.MlflowClient", uri: str, name: str, note: str, *, before: database.Marker | None
) -> "mlflow.entities.Experiment":
    """The experiment; it is made if it is missing and, by the marker, was never there."""
    folder, _ = _find_place(uri)
    experiment = client.get_experiment_by_name(name)
    if before:
        made = (experiment.creation_time or 0) if experiment else None
        if fault := database.compare_times(before.experiments.get(name), made):
            registry = f"the MLflow registry at {hide_password(uri)}"
            raise ValueError(database.explain_loss(registry, fault, folder, before))
    artifacts = None if is_server(uri) else (folder / database.ARTIFACTS / name).as_uri()
    if experiment is None:
        with contextlib.suppress(load_mlflow().exceptions.MlflowException):  # another machine was faster
            client.create_experiment(name, artifacts, tags={tags.NOTE: note, **KIND})
        experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "active":
        raise ValueError(f"the MLflow experiment {name!r} was deleted: restore it there, or change registry.experiment")
    if artifacts and experiment.artifact_location.startswith("mlflow-artifacts:"):
        raise ValueError(
            f"the MLflow experiment {name!r} keeps its files behind a server: start it and set MLFLOW_TRACKING_URI, "
            "or change registry.experiment"
        )
    return experiment


def check_database(uri: str) -> None:
    """Raises ValueError for a registry's file that is gone. One that was replaced is opened anew."""
    if path := _find_database(uri):
        database.check_whole(path)
    if (path := database.find_file(uri)) and database.is_replaced(path):
        log.warning("%s was replaced: it is opened anew", path)
        for name in STORES:  # mlflow keeps the file open that it opened first, even a deleted one
            engine = importlib.import_module(name).SqlAlchemyStore._engine_map.get(uri)
            if engine is not None:
                engine.dispose()


def write_marker(uri: str, experiments: database.Experiments, model: str) -> None:
    """Say in the marker what the registry holds; of a server's, what the database holds that is behind it."""
    path, (folder, key) = _find_database(uri), _find_place(uri)
    if path and database.find_fault(path, experiments) is None:
        key = path.name
    database.write_marker(folder, key, experiments, model)
    check_database(uri)


# --- errors --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def explain_silence(uri: str) -> Iterator[None]:
    """Raise ConnectionError where the network failed: mlflow raises one class for everything, with causes."""
    try:
        yield
    except ConnectionError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            parents = type(cause).__mro__
            if any(parent.__name__ in NETWORK_ERRORS and parent.__module__.startswith(LIBRARIES) for parent in parents):
                raise _explain_no_answer(uri, type(cause).__name__) from error
            cause = cause.__cause__ or cause.__context__
        raise


def _explain_no_answer(uri: str, reason: str) -> ConnectionError:
    return ConnectionError(
        f"the MLflow server at {hide_password(uri)} does not answer ({reason}). Start it, or correct "
        "MLFLOW_TRACKING_URI; without that variable the runs are kept in .evergreen/mlflow.db."
    )


def asks_mlflow(method: F) -> F:
    """For a method that calls MLflow, of an object with `tracking`: a registry that is gone, or a server that is away,
    is an error in our words."""

    @functools.wraps(method)
    def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        check_database(self.tracking.uri)
        with explain_silence(self.tracking.uri):
            return method(self, *args, **kwargs)

    return cast(F, call)
