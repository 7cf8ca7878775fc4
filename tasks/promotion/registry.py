"""Runs, versions, the aliases and the ledger, kept in MLflow; the only importer of mlflow.

A run is whole or absent: `log` ends it last, and `run_of` sees ended runs only. A promotion or a rollback writes its
intent into the ledger before it acts, and every step of it can be repeated, so `finish_open` completes one that was cut
off. A challenger is put up and taken away by one line each, before its alias moves: where a process was killed between
the two, the ledger is right and `only_challenger` puts the alias right. What to do is not decided here. mlflow costs
seconds to import: it is imported when a registry is opened, not before.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import json
import os
import shutil
import ssl
import tempfile
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock

from tasks import log
from tasks import params as parameters
from tasks.promotion import ledger, marker, relocate
from tasks.promotion.ledger import Entry

if TYPE_CHECKING:
    import pyarrow as pa
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run
    from mlflow.entities.model_registry import ModelVersion

ENVIRONMENT = {  # before mlflow is imported: no telemetry, no four-minute waits, no chatter, nothing unpickled
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
STORES = ("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store")
CHAMPION, CHALLENGER = "champion", "challenger"
MODEL_FILES = ("model.ubj", "twin.ubj")  # of a run's artifacts, these are the logged model's
SHIPPED = ("mlflow", "numpy", "pandas", "pyarrow", "xgboost", "xgboost-cpu")  # what serving a model needs
KNOCK = 5.0  # seconds for a server's first answer
BATCH = {"metrics": 1000, "params": 100, "tags": 100}  # the most that MLflow takes in one call
RUNS_NOTE = "One run for each result of the pipeline, with its trials under it."
LEDGER_NOTE = "What was decided: verdicts, promotions, rollbacks, canaries, one small run each, never rewritten."
MONITOR_NOTE = "How each champion fares: a point a window, at its event time."
NETWORK = ("requests.", "urllib3.")
LOST = ("ConnectionError", "Timeout", "RetryError", "MaxRetryError")  # of requests and urllib3: nobody answered
TABLE = "trials.json"
LOCAL_UI = "http://127.0.0.1:5000"  # mlflow's own default
KIND = {"mlflow.experimentKind": "custom_model_development"}  # or its UI asks what the experiment is for

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Version:
    """A registered model version, and what it was made of."""

    number: int
    run_id: str
    decision: str
    record: str
    as_of: datetime | None
    commit: str
    tags: Mapping[str, str]

    @property
    def learnt_until(self) -> datetime | None:
        """From when on it has seen no row: its as_of, or the newest row that it was made of, where as_of was ahead."""
        newest = self.tags.get("evergreen.data.to")
        if self.as_of is None or newest is None:
            return self.as_of
        return min(self.as_of, datetime.fromisoformat(newest) + timedelta(microseconds=1))


@dataclass(frozen=True)
class Dataset:
    """Data by address and hash: MLflow gets no rows."""

    name: str
    context: str
    address: str
    hash: str
    rows: int | None = None
    columns: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True)
class Trial:
    number: int
    state: str
    value: float | None
    params: Mapping[str, Any]
    rounds: int | None = None
    final: float | None = None  # on all rows, where the search had fewer


@dataclass(frozen=True)
class Bundle:
    """The model to serve: the files, the features it wants ({name, kind}), and some rows to show how to ask it."""

    model: Path
    twin: Path
    features: Sequence[Mapping[str, str]]
    example: "pa.Table"
    per_class: bool = False


# --- reaching MLflow -----------------------------------------------------------------------------------------------


def address() -> str:
    """Where MLflow is: MLFLOW_TRACKING_URI, else a database in the checkout's home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or relocate.sqlite_uri(parameters.home() / relocate.DATABASE)


def preload() -> None:
    """Begin to import mlflow in the background: seconds, which cost nothing while the caller waits for a program."""
    _set_environment()
    wanted = ["mlflow"] if _served(address()) else ["mlflow", *STORES]
    threading.Thread(target=_import, args=[wanted], name="preload", daemon=True).start()


def _import(names: Sequence[str]) -> None:
    with contextlib.suppress(Exception):  # whoever opens the registry meets the error
        for name in names:
            importlib.import_module(name)


def _set_environment() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def open_registry(settings: parameters.Registry, *, uri: str | None = None) -> "Registry":
    """Raises ConnectionError, within seconds, when a server does not answer; ValueError for a registry that was used
    from here before and is gone."""
    uri = uri or address()
    _set_environment()
    if _served(uri):
        _knock(uri)
    home = _beside(uri)
    home.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home / relocate.LOCK, timeout=relocate.LOCK_WAIT_S)
    with lock, _reached(uri), _hushed():  # two processes that migrate a fresh database at once would break it
        _check_there(uri)
        if database := relocate.database_of(uri):
            relocate.relocate_artifacts(database)
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        store = None if _served(uri) else home / relocate.ARTIFACTS
        runs, ledger = (
            _experiment(client, name, note, store, held=marker.read(home, _key(uri)))
            for name, note in ((settings.experiment, RUNS_NOTE), (f"{settings.experiment}-ledger", LEDGER_NOTE))
        )
        _mark(uri, home, {each.name: each.creation_time or 0 for each in (runs, ledger)}, settings.model)
    ids = str(runs.experiment_id), str(ledger.experiment_id)
    return Registry(client, uri, settings.model, *ids, settings.top_trials, lock)


def _served(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _beside(uri: str) -> Path:
    """The folder for the lock and, with no server, the artifacts: where the database is, else the home."""
    database = relocate.database_of(uri)
    return database.parent if database else parameters.home()


def _behind(uri: str) -> Path | None:
    """The database of a server on this machine, as `make up` starts it."""
    local = _served(uri) and urlsplit(uri).hostname in ("127.0.0.1", "localhost", "::1")
    return parameters.home() / relocate.DATABASE if local else None


def _check_there(uri: str) -> None:
    """Raises ValueError for a registry's file that is gone."""
    if database := relocate.database_of(uri) or _behind(uri):
        marker.check(database)
    if (database := relocate.database_of(uri)) and marker.is_replaced(database):
        log.warning("%s was replaced: it is opened anew", database)
        for name in STORES:  # mlflow keeps the file open that it opened first, be it deleted
            engine = importlib.import_module(name).SqlAlchemyStore._engine_map.get(uri)
            if engine is not None:
                engine.dispose()


def _key(uri: str) -> str:
    database = relocate.database_of(uri)
    return database.name if database else public(uri)


def _mark(uri: str, home: Path, made: marker.Experiments, model: str) -> None:
    behind = _behind(uri)
    key = behind.name if behind and marker.holds(behind, made) else _key(uri)
    marker.write(home, key, made, model)
    _check_there(uri)


def public(uri: str) -> str:
    """The address without a password in it."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _knock(uri: str) -> None:
    """mlflow's own client waits for minutes; this asks once. Any answer will do: permission is not asked here."""
    try:
        urllib.request.urlopen(f"{public(uri).rstrip('/')}/health", timeout=KNOCK).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except (OSError, HTTPException) as error:
        if not isinstance(getattr(error, "reason", None), ssl.SSLError):
            raise _silent(uri, str(getattr(error, "reason", error))) from None


def _silent(uri: str, why: str) -> ConnectionError:
    return ConnectionError(
        f"the MLflow server at {public(uri)} does not answer ({why}). Start it, or correct "
        "MLFLOW_TRACKING_URI; without that variable the runs are kept in .evergreen/mlflow.db."
    )


@contextlib.contextmanager
def _reached(uri: str) -> Iterator[None]:
    """mlflow raises one class for everything: what the network did is found in the chain of its causes."""
    try:
        yield
    except ConnectionError:
        raise
    except Exception as error:
        link: BaseException | None = error
        while link is not None:
            if any(each.__name__ in LOST and each.__module__.startswith(NETWORK) for each in type(link).__mro__):
                raise _silent(uri, type(link).__name__) from error
            link = link.__cause__ or link.__context__
        raise


def _answered(method: "Callable[Concatenate[Registry, P], T]") -> "Callable[Concatenate[Registry, P], T]":
    @functools.wraps(method)
    def asked(self: "Registry", /, *args: P.args, **kwargs: P.kwargs) -> T:
        _check_there(self.uri)
        with _reached(self.uri):
            return method(self, *args, **kwargs)

    return asked


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """What mlflow's imports warn of is between it and its own libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _experiment(
    client: "MlflowClient", name: str, note: str, store: Path | None, *, held: marker.Entry | None = None
) -> "Experiment":
    """The experiment; made if it is missing and was never there. `store`: where its artifacts go when no server decides
    that."""
    found = client.get_experiment_by_name(name)
    wanted = held.experiments.get(name) if held else None
    if held and (fault := marker.fault_of(wanted, (found.creation_time or 0) if found else None)):
        uri = client.tracking_uri
        raise ValueError(marker.lost(f"the MLflow registry at {public(uri)}", fault, _beside(uri), held))
    if found is None:
        place = (store / name).as_uri() if store else None
        with contextlib.suppress(_refusal()):  # another machine was faster
            client.create_experiment(name, place, tags={"mlflow.note.content": note, **KIND})
        found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise ValueError(f"the MLflow experiment {name!r} was deleted: restore it there, or change registry.experiment")
    if store and found.artifact_location.startswith("mlflow-artifacts:"):
        raise ValueError(
            f"the MLflow experiment {name!r} keeps its files behind a server: start it and set MLFLOW_TRACKING_URI, "
            "or change registry.experiment"
        )
    return found


def _refusal() -> type[Exception]:
    from mlflow.exceptions import MlflowException

    return MlflowException


# --- the registry --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Registry:
    """MLflow as this project uses it: run ids are explicit, nothing depends on an active run."""

    client: "MlflowClient"
    uri: str
    model: str
    experiment: str
    ledger_experiment: str
    top_trials: int
    lock: FileLock

    # --- runs

    @_answered
    def run_of(self, record: str) -> str | None:
        """The ended run of a record: of two that raced, the one that ended first, so that everybody names the same."""
        runs = self._of_record(record, "FINISHED")
        runs.sort(key=lambda run: (run.info.end_time, run.info.run_id))
        return str(runs[0].info.run_id) if runs else None

    @_answered
    def log(
        self,
        record: str,
        *,
        name: str,
        note: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        counts: Mapping[str, float],
        tags: Mapping[str, str],
        datasets: Sequence[Dataset],
        trials: Sequence[Trial],
        files: Path,
        bundle: Bundle,
    ) -> str:
        """One run with everything that a record holds; its id. A record that is there already is left as it is.

        `metrics` are the model's own, `counts` everybody else's. What lies in the folder `files` becomes its artifacts.
        """
        with self.lock:
            if found := self.run_of(record):
                return found
            self._bury(record)
            marks = {**tags, "evergreen.record": record, "mlflow.note.content": note}
            run_id = self._create(self.experiment, name, marks)
            try:
                model_id = self._log_model(run_id, bundle, params)
                self._describe(run_id, model_id, params=params, metrics=metrics, counts=counts, datasets=datasets)
                self._log_search(run_id, trials)
                self.client.log_artifacts(run_id, str(files))
            except Exception:
                with contextlib.suppress(Exception):  # the first error is the one to be told
                    self.client.set_terminated(run_id, "FAILED")
                raise
            self.client.set_terminated(run_id, "FINISHED")
        return self.run_of(record) or run_id

    def _bury(self, record: str) -> None:
        """What a killed process left is no run of anybody: say so in the UI."""
        for run in self._of_record(record, "RUNNING"):
            self.client.set_terminated(run.info.run_id, "KILLED")

    def _of_record(self, record: str, status: str) -> "list[Run]":
        query = f"tags.`evergreen.record` = '{record}' AND attributes.status = '{status}'"
        return self._search(self.experiment, query)

    def _describe(
        self,
        run_id: str,
        model_id: str,
        *,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        counts: Mapping[str, float],
        datasets: Sequence[Dataset],
    ) -> None:
        self.client.set_tag(run_id, "evergreen.model", model_id)
        self.client.log_inputs(run_id, datasets=[_input(each) for each in datasets])
        self._batch(
            run_id, params=params, metrics=[(key, value, 0) for key, value in metrics.items()], model_id=model_id
        )
        self._batch(run_id, metrics=[(key, value, 0) for key, value in counts.items()])

    def _log_search(self, run_id: str, trials: Sequence[Trial]) -> None:
        """All trials as two curves and a table, the best as runs of their own."""
        self._batch(run_id, metrics=list(_history(trials)))
        self.client.log_dict(run_id, _table(trials), TABLE)
        self.client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": TABLE, "type": "table"}]))
        for trial in best(trials)[: self.top_trials]:
            self._log_trial(run_id, trial)

    def _log_model(self, run_id: str, bundle: Bundle, params: Mapping[str, Any]) -> str:
        """Without the fluent log_model: that needs the process's one active run and global address."""
        from mlflow.entities import LoggedModelOutput

        flat = {key: str(value) for key, value in params.items()}
        model = self.client.create_logged_model(self.experiment, self.model, run_id, params=flat, model_type="xgboost")
        with tempfile.TemporaryDirectory() as scratch, _hushed():
            folder = Path(scratch) / "model"
            _save(folder, bundle, run_id=run_id, model_id=model.model_id, location=model.artifact_location)
            self.client.log_model_artifacts(model.model_id, str(folder))
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        return str(model.model_id)

    def _log_trial(self, parent: str, trial: Trial) -> None:
        tags = {"mlflow.parentRunId": parent, "mlflow.note.content": f"Trial {trial.number} of the search."}
        run_id = self._create(self.experiment, f"trial {trial.number}", tags)
        scores = [("trial_value", trial.value), ("trial_final", trial.final), ("rounds", trial.rounds)]
        self._batch(
            run_id,
            params=trial.params,
            metrics=[(key, float(value), trial.number) for key, value in scores if value is not None],
        )
        self.client.set_terminated(run_id, "FINISHED")

    def _create(self, experiment: str, name: str, tags: Mapping[str, str], *, start: datetime | None = None) -> str:
        began = int(start.timestamp() * 1000) if start else None
        run = self.client.create_run(experiment, start_time=began, tags=dict(tags), run_name=name)
        return str(run.info.run_id)

    def _batch(
        self,
        run_id: str,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Sequence[tuple[str, float, int]] = (),
        model_id: str | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param

        now = int(datetime.now(UTC).timestamp() * 1000)
        for part in _parts(sorted((params or {}).items()), BATCH["params"]):
            self.client.log_batch(run_id, params=[Param(key, str(value)[:6000]) for key, value in part])
        for points in _parts(metrics, BATCH["metrics"]):
            self.client.log_batch(run_id, [Metric(key, value, now, step, model_id) for key, value, step in points])

    def _search(self, experiment: str, query: str) -> "list[Run]":
        found: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs([experiment], query, max_results=1000, page_token=token)
            found += page
            if not (token := page.token):
                return found

    def link(self, run_id: str) -> str:
        """Where a person sees the run: on the server in use, else where `make ui-mlflow` shows this database."""
        at = public(self.uri).rstrip("/") if _served(self.uri) else LOCAL_UI
        experiment = self.client.get_run(run_id).info.experiment_id
        return f"{at}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"

    @_answered
    def log_files(
        self,
        name: str,
        *,
        note: str,
        metrics: Mapping[str, Sequence[tuple[int, float]]],
        files: Path,
        tags: Mapping[str, str],
    ) -> str:
        """A run beside those of records, for what has no model of its own; its id. `metrics`: points (step, value)."""
        points = [(key, value, step) for key, each in metrics.items() for step, value in each]
        with self.lock:
            run_id = self._create(self.experiment, name, {**tags, "mlflow.note.content": note})
            self._batch(run_id, metrics=points)
            self.client.log_artifacts(run_id, str(files))
            self.client.set_terminated(run_id, "FINISHED")
        return run_id

    @_answered
    def chart(
        self, name: str, points: Mapping[datetime, Mapping[str, float]], *, since: datetime, note: str, files: Path
    ) -> str:
        """Points of figures at event times, on the run of that name beside the experiment: over time they are charts,
        whose steps are hours since `since`. `files` become its artifacts, in place of those of the same names."""
        from mlflow.entities import Metric

        at = {moment: int(moment.replace(tzinfo=UTC).timestamp()) * 1000 for moment in points}
        steps = {moment: int((moment - since) / timedelta(hours=1)) for moment in points}
        metrics = [
            Metric(key, value, at[moment], steps[moment])
            for moment, figures in sorted(points.items())
            for key, value in figures.items()
        ]
        with self.lock:
            experiment = self._watching()
            found = self._search(experiment, f"attributes.run_name = '{name}'")
            run_id = found[0].info.run_id if found else self._create(experiment, name, {"mlflow.note.content": note})
            for part in _parts(metrics, BATCH["metrics"]):
                self.client.log_batch(run_id, part)
            self.client.log_artifacts(run_id, str(files))
            self.client.set_terminated(run_id, "FINISHED")
        return str(run_id)

    def _watching(self) -> str:
        """The experiment of what monitoring finds."""
        name = f"{self.client.get_experiment(self.experiment).name}-monitor"
        store = None if _served(self.uri) else _beside(self.uri) / relocate.ARTIFACTS
        return str(_experiment(self.client, name, MONITOR_NOTE, store).experiment_id)

    # --- versions

    @_answered
    def champion(self) -> Version | None:
        """The version that serves, by its alias; None before the first promotion."""
        return self._named(CHAMPION)

    @_answered
    def challenger(self) -> Version | None:
        """The version that is tried beside the champion, by its alias."""
        return self._named(CHALLENGER)

    def _named(self, alias: str) -> Version | None:
        try:
            return _version(self.client.get_model_version_by_alias(self.model, alias))
        except _refusal() as error:
            if getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    @_answered
    def version(self, number: int) -> Version:
        """Raises ValueError, with the versions that there are, when there is no such version."""
        try:
            return _version(self.client.get_model_version(self.model, str(number)))
        except _refusal() as error:
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
        known = [each.number for each in self.versions()]
        raise ValueError(f"{self.model} has no version {number}: choose one of {known}, or promote one first")

    @_answered
    def versions(self) -> list[Version]:
        """All of them, oldest first."""
        return sorted(map(_version, self._versions("")), key=lambda each: each.number)

    def _versions(self, query: str) -> "list[ModelVersion]":
        found: list[ModelVersion] = []
        token = None
        named = f"name = '{self.model}'{query}"
        while True:
            page = self.client.search_model_versions(named, max_results=1000, page_token=token)
            found += page
            if not (token := page.token):
                return found

    @_answered
    def fetch(self, of: Version | str, name: str, folder: Path) -> Path:
        """Download one artifact, a file or a folder, of a version or a run into `folder`: whole, or not at all."""
        from mlflow.artifacts import download_artifacts

        run_id = of if isinstance(of, str) else of.run_id
        folder.mkdir(parents=True, exist_ok=True)
        source = f"runs:/{run_id}/{name}"
        if name in MODEL_FILES:
            source = f"{self.client.get_logged_model(self._model_of(run_id)).artifact_location}/artifacts/{name}"
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            try:
                got = Path(download_artifacts(artifact_uri=source, dst_path=scratch, tracking_uri=self.uri))
            except (OSError, _refusal()) as error:
                raise ValueError(f"run {run_id} has no artifact {name!r}") from error
            target = folder / Path(name).name
            if target.is_dir():
                shutil.rmtree(target)
            return got.replace(target)

    @_answered
    def card(self, version: Version) -> dict[str, Any]:
        """What its run tells of a version: the metrics of its twin, and its description."""
        data = self.client.get_run(version.run_id).data
        return {"metrics": dict(data.metrics), "card": data.tags.get("mlflow.note.content", "")}

    def _model_of(self, run_id: str) -> str:
        model_id = self.client.get_run(run_id).data.tags.get("evergreen.model")
        if model_id is None:
            raise ValueError(
                f"run {run_id} holds no model: only runs that tasks.promotion.record made can be registered"
            )
        return str(model_id)

    @_answered
    def register(self, run_id: str, *, decision: str, description: str, tags: Mapping[str, str]) -> Version:
        """A version of the run's model. The same decision gives the same version, however often it is asked."""
        if found := self._registered(decision):
            return found
        run = self.client.get_run(run_id)
        model = self.client.get_logged_model(self._model_of(run_id))
        with contextlib.suppress(_refusal()):  # it exists
            self.client.create_registered_model(self.model, description="Made and promoted by evergreen.")
        lineage = {key: value for key, value in run.data.tags.items() if key.startswith("evergreen.")}
        made = self.client.create_model_version(
            self.model,
            model.artifact_location,
            run_id,
            tags={**lineage, **tags, "evergreen.decision": decision},
            description=description,
            model_id=model.model_id,
        )
        listed = json.dumps([{"name": self.model, "version": str(made.version)}])
        self.client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": listed})
        return self._first(decision, int(made.version))

    def _registered(self, decision: str) -> Version | None:
        found = self._versions(f" AND tags.`evergreen.decision` = '{decision}'")
        return min(map(_version, found), key=lambda each: each.number, default=None)

    def _first(self, decision: str, made: int) -> Version:
        """Two machines may register one decision at once: the lower number stays, on both."""
        first = self._registered(decision) or self.version(made)
        if first.number != made:
            self.client.delete_model_version(self.model, str(made))
        return first

    # --- the ledger

    @_answered
    def ledger(self) -> list[Entry]:
        """Everything that was ever decided, oldest first. One mark of a decision is one entry."""
        runs = self._search(self.ledger_experiment, "")
        for run in runs:
            ledger.check_format(run.data.tags, model=self.model)
        entries = [(ledger.from_tags(run.data.tags), run.info.run_id) for run in runs]
        entries.sort(key=lambda pair: (pair[0].made_at, pair[1]))
        return ledger.drop_repeated(entry for entry, _ in entries)

    @_answered
    def append(self, entry: Entry) -> Entry:
        """Write one line. A mark that its decision has already is left as it was, and returned."""
        with self.lock:
            lines = self.ledger()
            for line in lines:
                if (line.mark, line.decision) == (entry.mark, entry.decision):
                    return line
            return self._write(replace(entry, made_at=ledger.next_moment(lines)))

    def _write(self, entry: Entry) -> Entry:
        """One request makes the line, whole. Ending the run after it is for the eye."""
        assert entry.made_at
        name = f"{entry.mark} · {entry.decision[:12]}"
        run_id = self._create(self.ledger_experiment, name, ledger.to_tags(entry), start=entry.made_at)
        self.client.set_terminated(run_id, "FINISHED")
        if entry.run and entry.outcome:
            self.client.set_tag(entry.run, "evergreen.verdict", entry.outcome)
        return entry

    # --- promotion

    @_answered
    def promote(
        self,
        run_id: str,
        *,
        decision: str,
        verdict: Mapping[str, Any],
        as_of: datetime,
        tags: Mapping[str, str],
        version: int | None = None,
    ) -> Version:
        """Register the run's model, where it is not a `version` already, and make it the champion: intent, version,
        alias, done. Cut off, it can be asked again with the same decision, or be finished by `finish_open`. A decision
        that is done is never done twice.

        Raises ValueError for a run that a version was made of which was rolled back, or lost as a challenger.
        """
        with self.lock:
            if begun := ledger.find_entry(self.ledger(), "intent", decision):
                return self._finish(begun)
            self._settle()
            if (down := self._find_barred_run(run_id)) is not None:
                why = ledger.explain_bar(self.ledger(), down)
                raise ValueError(f"{why}: run {run_id} cannot be promoted. Train another candidate.")
            serving = self.champion()
            intent = Entry(
                "intent",
                decision,
                as_of,
                run=run_id,
                version=version,
                champion=serving.number if serving else None,
                outcome=str(verdict.get("outcome", "PROMOTE")),
                reasons=tuple(str(reason) for reason in verdict.get("reasons", ())),
                verdict=dict(verdict),
                lineage=dict(tags),
            )
            return self._finish(self.append(intent))

    @_answered
    def finish_open(self) -> list[Version]:
        """Complete the promotion or rollback that was cut off; the versions that serve by it. One that something newer
        overtook is marked superseded instead."""
        with self.lock:
            for run in self._search(self.ledger_experiment, "attributes.status = 'RUNNING'"):  # whole, but not ended
                self.client.set_terminated(run.info.run_id, "FINISHED")
            lines = self.ledger()
            for line in ledger.find_unfinished(lines):
                if why := self._void(line, lines):
                    log.warning("decision %s %s", line.decision, why)
                    self._supersede(line)
            return [self._complete(line) for line in ledger.find_unfinished(self.ledger())]

    def _complete(self, begun: Entry) -> Version:
        return self._finish(begun) if begun.mark == "intent" else self._finish_rollback(begun)

    def _finish(self, intent: Entry) -> Version:
        """Every step may have been done before: each is repeated only where its mark is missing."""
        lines = self.ledger()
        marks = {line.mark: line for line in lines if line.decision == intent.decision}
        if (done := marks.get("done")) and done.version is not None:
            return self.version(done.version)
        self._still_stands(intent, lines)
        version = self._promoted(intent)
        if "alias moved" not in marks:
            self.client.set_registered_model_alias(self.model, CHAMPION, str(version.number))
        self.append(intent.next_mark("alias moved", version.number))
        self.append(intent.next_mark("done", version.number))
        return version

    def _promoted(self, intent: Entry) -> Version:
        """The version of a promotion: a new one, or the challenger that won, whose lineage stays what it was."""
        assert intent.run is not None
        told, tags = _sentence(intent), _lineage(intent)
        if intent.version is None:
            return self.register(intent.run, decision=intent.decision, description=told, tags=tags)
        number = str(intent.version)
        self.client.update_model_version(self.model, number, description=told)
        for name in ("evergreen.verdict", "evergreen.verdict.figures"):
            self.client.set_model_version_tag(self.model, number, name, tags[name])
        return self.version(intent.version)

    def _settle(self) -> list[Entry]:
        """What had moved the alias when it was cut off is finished before anything newer begins: else the ledger would
        not know that its version served. What had not moved it is overtaken by the newer."""
        lines, serving = self.ledger(), self.champion()
        moved = [
            line
            for line in ledger.find_unfinished(lines)
            if serving and _moved_to(serving, line) and not self._void(line, lines)
        ]
        for line in moved:
            self._complete(line)
        return moved

    def _still_stands(self, begun: Entry, lines: Sequence[Entry]) -> None:
        if why := self._void(begun, lines):
            self._supersede(begun)
            raise ValueError(f"decision {begun.decision} {why}")

    def _void(self, begun: Entry, lines: Sequence[Entry]) -> str | None:
        """Why a decision that was begun must not be finished."""
        if ledger.is_overtaken(begun, lines):
            way_out = "judge the candidate again" if begun.mark == "intent" else "see what serves now, and ask again"
            return f"was overtaken by a later one: {way_out}"
        if begun.mark == "intent" and (down := self._find_barred_run(str(begun.run))) is not None:
            return f"would promote run {begun.run} again. {ledger.explain_bar(self.ledger(), down)}"
        return None

    def _supersede(self, begun: Entry) -> None:
        self.append(begun.next_mark("superseded", None))

    # --- rollback

    @_answered
    def rollback(
        self,
        *,
        decision: str,
        as_of: datetime,
        reasons: Sequence[str],
        to: int | None = None,
        champion: int | None = None,
    ) -> Version:
        """Give the alias back to the version that served before the champion, or to `to`: intent, alias, done. Cut off,
        it can be asked again with the same decision, or be finished by `finish_open`. What was taken down is never
        promoted again.

        `champion`: the version that is to be taken down; when another serves by now, nothing is done. Raises ValueError
        for that, when there is no version that may serve, and when an earlier rollback had to be finished instead.
        """
        with self.lock:
            if begun := ledger.find_entry(self.ledger(), "rollback", decision):
                return self._finish_rollback(begun)
            settled = self._settle()
            if to is None and champion is None and any(line.mark == "rollback" for line in settled):
                raise ValueError(
                    f"a rollback to version {settled[-1].version} had been cut off and is finished now: that version "
                    "serves. Ask again to go further back."
                )
            serving = self._serving(champion)
            target = self._may_serve(to, serving) if to is not None else self._before(serving)
            intent = Entry(
                "rollback",
                decision,
                as_of,
                run=target.run_id,
                version=target.number,
                champion=serving.number,
                reasons=tuple(reasons),
            )
            return self._finish_rollback(self.append(intent))

    def _finish_rollback(self, begun: Entry) -> Version:
        assert begun.version is not None
        lines = self.ledger()
        if not ledger.find_entry(lines, "rolled back", begun.decision):
            self._still_stands(begun, lines)
            self.client.set_registered_model_alias(self.model, CHAMPION, str(begun.version))
            self.append(begun.next_mark("rolled back", begun.version))
        return self.version(begun.version)

    def _serving(self, wanted: int | None) -> Version:
        if (serving := self.champion()) is None:
            raise ValueError(f"no version of {self.model} serves: there is nothing to roll back. Promote one first.")
        if wanted not in (None, serving.number):
            raise ValueError(f"version {wanted} was to be taken down, but version {serving.number} serves by now")
        return serving

    def _before(self, serving: Version) -> Version:
        if found := self.predecessor(serving):
            return found
        raise ValueError(
            f"no version that may serve was champion before version {serving.number}: name one that served later, "
            "or retrain."
        )

    def _may_serve(self, number: int, serving: Version) -> Version:
        entries = self.ledger()
        found, served, down = self.version(number), ledger.find_champions(entries), ledger.find_rolled_back(entries)
        if number == serving.number:
            raise ValueError(f"version {number} serves already: name an earlier champion")
        if number not in served:
            raise ValueError(
                f"version {number} was never champion, so nobody knows how it serves: choose one of "
                f"{sorted(set(served) - down - {serving.number})}, or let the gate judge it"
            )
        if number in down:
            raise ValueError(f"{ledger.explain_bar(entries, number)}: choose another")
        return found

    def predecessor(self, version: Version) -> Version | None:
        """The version that served last before this one first did, of those that were not rolled back themselves."""
        versions = {other.number: other for other in self.versions()}
        number = ledger.find_predecessor(self.ledger(), version.number, versions.keys())
        return None if number is None else versions[number]

    def find_barred(self, record: str) -> int | None:
        """The barred version of this record, if there is one: the same recipe and data give the same model."""
        if not (barred := ledger.find_barred(self.ledger())):
            return None
        numbers = (version.number for version in self.versions() if version.record == record)
        return next((number for number in numbers if number in barred), None)

    def _find_barred_run(self, run_id: str) -> int | None:
        if not ledger.find_barred(self.ledger()):
            return None
        return self.find_barred(self.client.get_run(run_id).data.tags.get("evergreen.record", ""))

    # --- canary

    @_answered
    def put_up(self, wanted: int | str, *, decision: str, as_of: datetime, reasons: Sequence[str]) -> Version:
        """Make a version the challenger; of a run that nobody promoted, a version is made. Asked again, also after it
        was cut off, it is the same canary.

        Raises ValueError for the champion, also under another number, for what was rolled back or lost before, and
        while another is up.
        """
        with self.lock:
            if (serving := self.champion()) is None:
                raise ValueError(
                    f"no version of {self.model} serves: there is nothing to challenge. Promote one first."
                )
            found = self._may_challenge(self.version(wanted) if isinstance(wanted, int) else wanted, serving)
            up = ledger.find_canary(self.ledger())
            if up and up.version != found.number:
                raise ValueError(f"version {up.version} is up already: take it away first (flows.canary --end)")
            if up is None:
                line = Entry("canary", decision, as_of, run=found.run_id, version=found.number, champion=serving.number)
                self.append(replace(line, reasons=tuple(reasons)))
            self.client.set_registered_model_alias(self.model, CHALLENGER, str(found.number))
            return found

    def _may_challenge(self, wanted: Version | str, serving: Version) -> Version:
        run_id = wanted if isinstance(wanted, str) else wanted.run_id
        if (down := self._find_barred_run(self._known(run_id))) is not None:
            raise ValueError(f"{ledger.explain_bar(self.ledger(), down)}: choose another")
        if isinstance(wanted, Version) and wanted.number == serving.number:
            raise ValueError(f"version {wanted.number} is the champion: put another up")
        record = self.client.get_run(run_id).data.tags.get("evergreen.record")
        if run_id == serving.run_id or (record and record == serving.record):
            named = f"run {run_id}" if isinstance(wanted, str) else f"version {wanted.number}"
            raise ValueError(f"{named} holds the model of version {serving.number}, the champion: put another up")
        return self._version_of(run_id) if isinstance(wanted, str) else wanted

    def _known(self, run_id: str) -> str:
        """Raises ValueError for what is no run."""
        try:
            return str(self.client.get_run(run_id).info.run_id)
        except _refusal() as error:
            if getattr(error, "error_code", "") not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
        raise ValueError(f"there is no run {run_id!r}: name a version, or the id of an MLflow run that holds a model")

    def _version_of(self, run_id: str) -> Version:
        if found := [each for each in self.versions() if each.run_id == run_id]:
            return found[-1]
        return self.register(
            run_id, decision=f"held-{run_id}", description="Never promoted: put up to be tried.", tags={}
        )

    @_answered
    def take_away(
        self, *, decision: str, as_of: datetime, reasons: Sequence[str], outcome: str | None = None
    ) -> Entry | None:
        """No version is the challenger any more; the line that says so, or None where none was. `outcome` REJECT: it
        lost, and is never put up or promoted again; PROMOTE: it won; None: nobody judged."""
        with self.lock:
            lines = self.ledger()
            over, up = ledger.find_entry(lines, "canary over", decision), ledger.find_canary(lines)
            if over is None and up:
                line = replace(up, mark="canary over", decision=decision, as_of=as_of, outcome=outcome)
                over = self.append(replace(line, reasons=tuple(reasons)))
            if ledger.find_canary(self.ledger()) is None:  # asked again late, it must not end the next one
                self._unname()
            return over

    def _unname(self) -> None:
        if self.challenger():  # there may be no model to have an alias yet
            self.client.delete_registered_model_alias(self.model, CHALLENGER)

    @_answered
    def canary(self) -> Entry | None:
        """The line that began the canary which is on, if its version has the alias."""
        if (named := self.challenger()) is None:
            return None
        up = ledger.find_canary(self.ledger())
        return up if up and up.version == named.number else None

    @_answered
    def only_challenger(self) -> Entry | None:
        """The canary which is on, by the ledger; the alias is put right. One that the ledger does not know is taken
        away: it was left by a process that was killed, or put there by somebody who did not ask whether it may. One
        that is missing, or elsewhere, is put where the ledger says: `take_away` ends a canary."""
        with self.lock:
            named, up = self.challenger(), ledger.find_canary(self.ledger())
            if up is None and named:
                log.warning("version %s is no challenger by the ledger: its alias is taken away", named.number)
                self._unname()
            return self._put_right(up, named) if up else None

    def _put_right(self, up: Entry, named: Version | None) -> Entry | None:
        """None for a version that somebody deleted."""
        if named and named.number == up.version:
            return up
        if up.version not in {each.number for each in self.versions()}:
            log.warning("version %s is the challenger by the ledger, but is there no more: end the canary", up.version)
            return None
        log.warning("version %s is the challenger by the ledger: its alias is set again", up.version)
        self.client.set_registered_model_alias(self.model, CHALLENGER, str(up.version))
        return up


# --- to and from MLflow's own forms --------------------------------------------------------------------------------


def _moved_to(serving: Version, begun: Entry) -> bool:
    """Whether the alias is where this decision puts it."""
    return serving.number == begun.version if begun.version is not None else serving.decision == begun.decision


def best(trials: Sequence[Trial]) -> list[Trial]:
    """The completed trials, the lowest loss first; before them those that were fitted on all rows, ranked by that."""
    return sorted(
        (each for each in trials if each.value is not None and each.state.lower() == "complete"),
        key=lambda each: (each.final is None, each.value if each.final is None else each.final, each.number),
    )


def _history(trials: Sequence[Trial]) -> Iterator[tuple[str, float, int]]:
    """The search as two curves: each completed trial's loss, and the lowest so far."""
    lowest = float("inf")
    for trial in sorted(best(trials), key=lambda each: each.number):
        assert trial.value is not None
        lowest = min(lowest, trial.value)
        yield "trial_value", trial.value, trial.number
        yield "trial_best", lowest, trial.number


def _table(trials: Sequence[Trial]) -> dict[str, Any]:
    """All trials as MLflow's log_table would write them; that needs pandas, and warns of what it does with it."""
    rows = [{**{k: v for k, v in asdict(each).items() if k != "params"}, **each.params} for each in trials]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": names, "data": [[row.get(name) for name in names] for row in rows]}


def _input(data: Dataset) -> Any:
    """A dataset as MLflow's UI shows it: where it is, what hash it had, its columns and its rows."""
    from mlflow.entities import Dataset as Listed
    from mlflow.entities import DatasetInput, InputTag

    scheme = data.address.partition("://")[0]
    types = {"number": "double", "category": "string"}
    columns = [{"name": each["name"], "type": types[each["kind"]], "required": False} for each in data.columns]
    listed = Listed(
        name=data.name,
        digest=data.hash[:36],
        source_type=scheme,
        source=json.dumps({"uri": data.address}),
        schema=json.dumps({"mlflow_colspec": columns}) if columns else None,
        profile=json.dumps({"num_rows": data.rows}) if data.rows is not None else None,
    )
    return DatasetInput(listed, [InputTag("mlflow.data.context", data.context)])


def _save(folder: Path, bundle: Bundle, *, run_id: str, model_id: str, location: str) -> None:
    """The model as a folder that `mlflow.pyfunc.load_model` takes anywhere, without this project, without pickle."""
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    here = Path(__file__).parent
    code = here.parent / "training" / "model.py"
    save_model(
        str(folder),
        python_model=str(here / "pyfunc.py"),
        artifacts={"model": str(bundle.model), "twin": str(bundle.twin), "code": str(code)},
        signature=_signature(bundle),
        input_example=bundle.example.to_pandas(),
        pip_requirements=list(_pinned()),  # given, because finding them out takes mlflow six seconds
        mlflow_model=Model(artifact_path=location, run_id=run_id, model_uuid=model_id, model_id=model_id),
    )


def _signature(bundle: Bundle) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    types = {"number": "double", "category": "string"}
    columns: list[ColSpec | TensorSpec] = [ColSpec(types[each["kind"]], each["name"]) for each in bundle.features]
    answer = TensorSpec(np.dtype("float64"), (-1, -1) if bundle.per_class else (-1,))
    return ModelSignature(Schema(columns), Schema([answer]))


def _pinned() -> Iterator[str]:
    for name in SHIPPED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield f"{name}=={importlib.metadata.version(name)}"


def _version(found: "ModelVersion") -> Version:
    tags = dict(found.tags)
    as_of = tags.get("evergreen.as_of")
    return Version(
        number=int(found.version),
        run_id=str(found.run_id),
        decision=tags.get("evergreen.decision", ""),
        record=tags.get("evergreen.record", ""),
        as_of=datetime.fromisoformat(as_of) if as_of else None,
        commit=tags.get("evergreen.commit", "unknown"),
        tags=tags,
    )


def _sentence(intent: Entry) -> str:
    """What a person reads beside the version's number."""
    return " ".join([f"Of what was known at {intent.as_of}. {intent.outcome}.", *intent.reasons])


def _lineage(intent: Entry) -> dict[str, str]:
    given = {key if "." in key else f"evergreen.{key}": str(v) for key, v in intent.lineage.items()}
    figures = json.dumps(intent.verdict, sort_keys=True, default=str)
    verdict = {"evergreen.verdict": str(intent.outcome), "evergreen.verdict.figures": figures}
    return {**given, **verdict, "evergreen.as_of": intent.as_of.isoformat()}


def _parts(whole: Any, size: int) -> Iterator[Any]:
    for start in range(0, len(whole), size):
        yield whole[start : start + size]
