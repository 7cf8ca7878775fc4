"""runs: what was made, as MLflow runs: a candidate with its metrics, trials, files and model; replays; charts.

A run of a record is whole or absent: `log` ends it last, and `find` sees ended runs only.
"""

import contextlib
import importlib.metadata
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import params as parameters
from tasks.promotion.tags import ARTIFACTS, CONTEXT, MODEL, NOTE, PARENT, RECORD
from tasks.promotion.tracking import Point, Tracking, asks_mlflow, find, load_mlflow
from tasks.training.trials import Trial

if TYPE_CHECKING:
    import pyarrow as pa

MODEL_FILES = ("model.ubj", "twin.ubj")  # of a run's artifacts, these are the logged model's
MONITOR_NOTE = "How each champion fares: a point a window, at its event time."
SHIPPED = ("mlflow", "numpy", "pandas", "pyarrow", "xgboost", "xgboost-cpu")  # what serving a model needs
TRIALS = "trials.json"
TYPES = {"number": "double", "category": "string"}  # a feature's kind, as a type of MLflow's


@dataclass(frozen=True)
class Dataset:
    """Data by address and hash: MLflow gets no rows.

    Attributes:
        context: what it was used for: training, evaluation or source.
        columns: each {name, kind}.
    """

    name: str
    context: str
    address: str
    hash: str
    rows: int | None = None
    columns: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True)
class Bundle:
    """The model to serve, as a folder that `mlflow.pyfunc.load_model` takes anywhere.

    It needs nothing of this project and no pickle: pyfunc.py and the code of training/model.py travel in the folder.

    Attributes:
        model: the file of the model that serves.
        twin: the file of its twin, which has not seen the holdout.
        features: the columns that it wants, each {name, kind}.
        example: some rows, to show how to ask it.
        per_class: whether it answers with a probability for each class.
    """

    model: Path
    twin: Path
    features: Sequence[Mapping[str, str]]
    example: "pa.Table"
    per_class: bool = False

    def save(self, folder: Path, *, run_id: str, model_id: str, location: str) -> None:
        """Write it as MLflow's model of a run; `location` is where MLflow keeps it."""
        mlflow, here = load_mlflow(), Path(__file__).parent
        code = here.parent / "training" / "model.py"
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(here / "pyfunc.py"),
            artifacts={"model": str(self.model), "twin": str(self.twin), "code": str(code)},
            signature=self._signature(mlflow),
            input_example=self.example.to_pandas(),
            pip_requirements=list(_pin_requirements()),  # given: MLflow takes six seconds to find them
            mlflow_model=mlflow.models.Model(
                artifact_path=location, run_id=run_id, model_uuid=model_id, model_id=model_id
            ),
        )

    def _signature(self, mlflow: Any) -> Any:
        import numpy as np

        types = mlflow.types
        columns = [types.ColSpec(TYPES[feature["kind"]], feature["name"]) for feature in self.features]
        answer = types.TensorSpec(np.dtype("float64"), (-1, -1) if self.per_class else (-1,))
        return mlflow.models.ModelSignature(types.Schema(columns), types.Schema([answer]))


@dataclass(frozen=True)
class Runs:
    """The runs of one experiment."""

    tracking: Tracking
    settings: parameters.Registry

    @property
    def experiment(self) -> str:
        """The experiment's id."""
        return self.tracking.experiments[self.settings.experiment]

    @asks_mlflow
    def find(self, record: str) -> str | None:
        """The id of a record's ended run: of two that raced, the one that ended first, so that all name the same."""
        runs = self._search_record(record, "FINISHED")
        first = min(runs, key=lambda run: (run.info.end_time, run.info.run_id), default=None)
        return str(first.info.run_id) if first else None

    @asks_mlflow
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
        """Log one run with everything that a record holds. A record that has a run is left as it is.

        Args:
            record: the record's hash.
            metrics: the model's own.
            counts: other numbers, such as a baseline's metrics.
            files: a folder, whose content becomes the run's artifacts.

        Returns:
            The run's id.
        """
        client = self.tracking.client
        with self.tracking.lock:
            if run_id := self.find(record):
                return run_id
            for run in self._search_record(record, "RUNNING"):  # of a process that was killed
                client.set_terminated(run.info.run_id, "KILLED")
            run_id = self.tracking.create_run(self.experiment, name, {**tags, RECORD: record, NOTE: note})
            try:
                model_id = self._log_model(run_id, bundle, params)
                client.set_tag(run_id, MODEL, model_id)
                client.log_inputs(run_id, datasets=[_to_input(dataset) for dataset in datasets])
                self.tracking.log_params(run_id, params)
                self.tracking.log_points(run_id, [Point(*item) for item in metrics.items()], model_id=model_id)
                self.tracking.log_points(run_id, [Point(*item) for item in counts.items()])
                self._log_search(run_id, trials)
                client.log_artifacts(run_id, str(files))
            except Exception:
                with contextlib.suppress(Exception):  # the first error is the one to report
                    client.set_terminated(run_id, "FAILED")
                raise
            client.set_terminated(run_id, "FINISHED")
        return self.find(record) or run_id

    @asks_mlflow
    def add(self, run_id: str, *, tags: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """Add what was learnt of a run after it ended. A tag or metric that it has takes the new value."""
        with self.tracking.lock:
            for name, tag in tags.items():
                self.tracking.client.set_tag(run_id, name, tag)
            self.tracking.log_points(run_id, [Point(*item) for item in metrics.items()])

    @asks_mlflow
    def add_files(self, run_id: str, files: Path) -> None:
        """Add a folder's files to a run's artifacts; those of the same names are replaced."""
        with self.tracking.lock:
            self.tracking.client.log_artifacts(run_id, str(files))

    def _search_record(self, record: str, status: str) -> list[Any]:
        query = f"tags.`{RECORD}` = '{record}' AND attributes.status = '{status}'"
        return self.tracking.search_runs(self.experiment, query)

    def _log_model(self, run_id: str, bundle: Bundle, params: Mapping[str, Any]) -> str:
        """Without MLflow's fluent log_model, which needs the process's one active run and global address."""
        client, flat = self.tracking.client, {name: str(value) for name, value in params.items()}
        model = client.create_logged_model(
            self.experiment, self.settings.model, run_id, params=flat, model_type="xgboost"
        )
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings(action="ignore"):
            folder = Path(scratch) / "model"
            bundle.save(folder, run_id=run_id, model_id=model.model_id, location=model.artifact_location)
            client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run_id, [load_mlflow().entities.LoggedModelOutput(model.model_id, step=0)])
        return str(model.model_id)

    def _log_search(self, run_id: str, trials: Sequence[Trial]) -> None:
        """Log all trials as two curves and a table, and the best as runs of their own."""
        client, rows = self.tracking.client, [_trial_row(trial) for trial in trials]
        completed = [row for row in rows if row["value"] is not None]
        self.tracking.log_points(run_id, list(_trial_curves(completed)))
        client.log_dict(run_id, _trial_table(rows), TRIALS)
        client.set_tag(run_id, ARTIFACTS, json.dumps([{"path": TRIALS, "type": "table"}]))
        for row in sorted(completed, key=_rank_trial)[: self.settings.top_trials]:
            number = row["number"]
            trial_tags = {PARENT: run_id, NOTE: f"Trial {number} of the search."}
            trial_id = self.tracking.create_run(self.experiment, f"trial {number}", trial_tags)
            scores = {"trial_value": row["value"], "trial_final": row["final"], "rounds": row["rounds"]}
            scores |= {"trial_size": row.get("size")}
            points = [Point(name, value, number) for name, value in scores.items() if value is not None]
            self.tracking.log_params(trial_id, row["params"])
            self.tracking.log_points(trial_id, points)
            client.set_terminated(trial_id, "FINISHED")

    @asks_mlflow
    def log_files(
        self,
        name: str,
        *,
        note: str,
        metrics: Mapping[str, Sequence[tuple[int, float]]],
        files: Path,
        tags: Mapping[str, str],
    ) -> str:
        """Log a run that has no model, such as a replay; its id. `metrics`: points (step, value)."""
        points = [Point(metric, value, step) for metric, course in metrics.items() for step, value in course]
        with self.tracking.lock:
            run_id = self.tracking.create_run(self.experiment, name, {**tags, NOTE: note})
            self._finish(run_id, points, files)
        return run_id

    @asks_mlflow
    def chart(
        self, name: str, points: Mapping[datetime, Mapping[str, float]], *, since: datetime, note: str, files: Path
    ) -> str:
        """Add points at event times to the run of a name, in the experiment beside this one; MLflow draws them.

        Args:
            points: for each event time, values by metric.
            since: what the charts' steps count hours from.
            files: a folder, whose files take the place of those of the same names.

        Returns:
            The run's id.
        """
        rows = [
            Point(metric, value, int((moment - since) / timedelta(hours=1)), moment.replace(tzinfo=UTC))
            for moment, values in sorted(points.items())
            for metric, value in values.items()
        ]
        with self.tracking.lock:
            experiment = self.tracking.open_experiment(f"{self.settings.experiment}-monitor", MONITOR_NOTE)
            runs = self.tracking.search_runs(experiment, f"attributes.run_name = '{name}'")
            run_id = str(runs[0].info.run_id) if runs else self.tracking.create_run(experiment, name, {NOTE: note})
            self._finish(run_id, rows, files)
        return run_id

    def _finish(self, run_id: str, points: Sequence[Point], files: Path) -> None:
        self.tracking.log_points(run_id, points)
        self.tracking.client.log_artifacts(run_id, str(files))
        self.tracking.client.set_terminated(run_id, "FINISHED")

    @asks_mlflow
    def fetch(self, run_id: str, name: str, folder: Path) -> Path:
        """Download one artifact of a run, a file or a folder, into `folder`: whole, or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        source = f"runs:/{run_id}/{name}"
        if name in MODEL_FILES:
            source = f"{self.find_model(run_id).artifact_location}/artifacts/{name}"
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            try:
                download = load_mlflow().artifacts.download_artifacts
                path = Path(download(artifact_uri=source, dst_path=scratch, tracking_uri=self.tracking.uri))
            except (OSError, load_mlflow().exceptions.MlflowException) as error:
                raise ValueError(f"run {run_id} has no artifact {name!r}") from error
            target = folder / Path(name).name
            if target.is_dir():
                shutil.rmtree(target)
            return path.replace(target)

    @asks_mlflow
    def read_data(self, run_id: str) -> Any:
        """A run's metrics, params and tags. Raises ValueError where there is no such run."""
        if run := find(self.tracking.client.get_run, run_id):
            return run.data
        raise ValueError(f"there is no run {run_id!r}: name a version, or the id of an MLflow run that holds a model")

    def find_model(self, run_id: str) -> Any:
        """MLflow's logged model of a run."""
        model_id = self.read_data(run_id).tags.get(MODEL)
        if model_id is None:
            raise ValueError(
                f"run {run_id} holds no model: only runs that tasks.promotion.record made can be registered"
            )
        return self.tracking.client.get_logged_model(model_id)


def _trial_row(trial: Trial) -> dict[str, Any]:
    """`final`, and the trees, are of the fit on all rows, where the search had fewer."""
    final = trial.get("final") or {}
    return {
        "number": trial["number"],
        "state": trial["state"].lower(),
        "value": trial["value"],
        "params": trial["params"],
        "rounds": final.get("rounds", trial["rounds"]),
        "final": final.get("score"),
    } | ({"size": trial["size"]} if "size" in trial else {})


def _rank_trial(row: Mapping[str, Any]) -> tuple[bool, float, int]:
    """The lowest loss first; before all those that were fitted on all rows, by that loss."""
    is_final = row["final"] is not None
    return not is_final, row["final"] if is_final else row["value"], row["number"]


def _trial_curves(completed: Sequence[Mapping[str, Any]]) -> Iterator[Point]:
    """Each completed trial's loss, and the lowest so far."""
    lowest = float("inf")
    for row in sorted(completed, key=lambda row: row["number"]):
        lowest = min(lowest, row["value"])
        yield Point("trial_value", row["value"], row["number"])
        yield Point("trial_best", lowest, row["number"])


def _trial_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All trials in the form of MLflow's log_table, which itself needs pandas and warns."""
    flat = [{name: value for name, value in row.items() if name != "params"} | row["params"] for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    return {"columns": columns, "data": [[row.get(name) for name in columns] for row in flat]}


def _to_input(dataset: Dataset) -> Any:
    """A dataset as MLflow's UI shows it: where it is, its hash, its columns and the count of its rows."""
    entities = load_mlflow().entities
    columns = [{"name": column["name"], "type": TYPES[column["kind"]], "required": False} for column in dataset.columns]
    data = entities.Dataset(
        name=dataset.name,
        digest=dataset.hash[:36],
        source_type=dataset.address.partition("://")[0],
        source=json.dumps({"uri": dataset.address}),
        schema=json.dumps({"mlflow_colspec": columns}) if columns else None,
        profile=json.dumps({"num_rows": dataset.rows}) if dataset.rows is not None else None,
    )
    return entities.DatasetInput(data, [entities.InputTag(CONTEXT, dataset.context)])


def _pin_requirements() -> Iterator[str]:
    for name in SHIPPED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield f"{name}=={importlib.metadata.version(name)}"
