"""record: what the stages before it made → one MLflow run, once for each state of dvc.lock → reports/record.json.

    python -m tasks.promotion.record

The retrain flow calls the same function, so that a result that DVC restored, or another machine made, is on record too.
The file holds the hash and no run id: the same inputs give the same bytes. Nothing is judged or promoted here.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks import log
from tasks.data import manifest, periods
from tasks.params import Params, yamltext
from tasks.promotion import bill, datacard, figures, registry, tags, tracking, verdict
from tasks.promotion.recipe import identify_recipe
from tasks.promotion.runs import Bundle, Dataset, Runs
from tasks.runtime import code, cost, files, stage
from tasks.training import holdout, trials

NAME = "record"
PATCH = "uncommitted.patch"
RAW = "raw.json"  # what ingest wrote of the sources
SECTIONS = ("clean", "clock", "evaluate", "features", "ingest", "label", "split", "train", "tune")  # as MLflow params
REPORTS = (
    "curves",
    "holdout.parquet",
    "importance.csv",
    "leaderboard.json",
    "metrics.json",
    "profile.json",
    "quality.html",
    "quality.json",
    "reference.parquet",
    "slices.json",
)
NOTE_METRICS = ("auc", "average_precision", "accuracy", "brier", "calibration_error", "f1", "mae", "r2")
EXAMPLE_ROWS = 5


@dataclass(frozen=True)
class Results:
    """What the stages made, read once.

    Attributes:
        patch: the edits that are not in the commit.
        costs: CPU seconds of the stages that ran, by stage.
    """

    p: Params
    folder: Path
    record: str
    entries: Mapping[str, Any]
    commit: str
    patch: bytes
    flow_run: str | None
    raw: manifest.RawManifest
    features: manifest.FeaturesManifest
    quality: Mapping[str, Any]
    tuned: Mapping[str, Any]
    trials: Sequence[trials.Trial]
    metrics: Mapping[str, Any]
    leaderboard: Sequence[Mapping[str, Any]]
    costs: Mapping[str, float]

    @property
    def columns(self) -> list[dict[str, str]]:
        """The features, each {name, kind}."""
        return [column.model_dump() for column in self.features.columns]


def record(p: Params, folder: Path = Path(), *, environment: Mapping[str, str] = os.environ) -> str:
    """Log the run, unless it is there; its hash. Raises ValueError where a stage before it has not been run.

    Args:
        environment: what the retrain flow sets for its stages: EVERGREEN_COMMIT, _DIFF and _FLOW_RUN.
    """
    results = _read_results(p, folder, environment)
    runs, content = registry.open_registry(p.registry).runs, {"record": results.record}
    run_id = runs.find(results.record) or _log_run(runs, results)
    target = folder / p.paths.reports / "record.json"
    if not target.exists() or json.loads(target.read_text()) != content:
        files.publish_json(target, content)
    log.info("MLflow run %s in %s", run_id, tracking.hide_password(runs.tracking.uri))
    return results.record


# --- what there is to record ---------------------------------------------------------------------------------------


def _read_results(p: Params, folder: Path, environment: Mapping[str, str]) -> Results:
    reports, models = folder / p.paths.reports, folder / p.paths.models
    entries = read_entries(folder)
    commit, patch = _read_code(folder, environment)
    try:
        return Results(
            p=p,
            folder=folder,
            record=hash_entries(entries),
            entries=entries,
            commit=commit,
            patch=patch,
            flow_run=environment.get("EVERGREEN_FLOW_RUN") or None,
            raw=manifest.RawManifest.read(folder / p.paths.raw),
            features=manifest.FeaturesManifest.read(folder / p.paths.features),
            quality=json.loads((reports / "quality.json").read_text()),
            tuned=json.loads((models / "tuned.json").read_text()),
            trials=trials.read_trials(reports / "trials.json"),
            metrics=json.loads((reports / "metrics.json").read_text()),
            leaderboard=json.loads((reports / "leaderboard.json").read_text()),
            costs=cost.read(folder),
        )
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is missing: run `dvc repro`, which makes it before record") from None


def read_entries(folder: Path) -> dict[str, Any]:
    """The entries of dvc.lock of all stages before this one. DVC writes each before it starts the next stage."""
    lock = folder / "dvc.lock"
    if not lock.exists():
        raise ValueError(f"{lock} is missing: record needs the stages before it. Run `dvc repro`.")
    entries = yamltext.load_plain(lock.read_text())["stages"]
    names = yamltext.load_plain((folder / "dvc.yaml").read_text())["stages"].keys() - {NAME}
    if missing := names - entries.keys():
        raise ValueError(
            f"{lock} has no entry for {', '.join(sorted(missing))}: run `dvc repro`, which runs them before record"
        )
    return {name: entries[name] for name in sorted(names)}


def hash_entries(entries: Mapping[str, Any]) -> str:
    """One hash for all that the stages read and made, and for their params."""
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_code(folder: Path, environment: Mapping[str, str]) -> tuple[str, bytes]:
    """The commit and the patch from there: the retrain flow's, which works in a copy, else the checkout's."""
    commit, patch = environment.get("EVERGREEN_COMMIT"), environment.get("EVERGREEN_DIFF")
    if commit is None:
        return code.find_commit_and_patch(folder)
    return commit, Path(patch).read_bytes() if patch else b""


# --- the run -------------------------------------------------------------------------------------------------------


def _log_run(runs: Runs, results: Results) -> str:
    commit = results.record if results.commit == code.UNKNOWN else results.commit
    with tempfile.TemporaryDirectory() as scratch:
        _lay_out_artifacts(results, Path(scratch))
        return runs.log(
            results.record,
            name=f"{results.raw.as_of:%Y-%m-%d} · {commit[:7]}{'+' if results.patch else ''}",
            note=_render_note(results),
            params=_flatten_params(results),
            metrics=_select_numbers({name: value for name, value in results.metrics.items() if "." not in name}),
            counts=_list_counts(results),
            tags=_find_lineage(results),
            datasets=list(_list_datasets(results)),
            trials=results.trials,
            files=Path(scratch),
            bundle=_make_bundle(results),
        )


def _lay_out_artifacts(results: Results, target: Path) -> None:
    """The run's artifacts, as a person will find them in MLflow."""
    folder, paths = results.folder, results.p.paths
    reports, models = folder / paths.reports, folder / paths.models
    copies = {
        "params.yaml": folder / "params.yaml",
        "dvc.lock": folder / "dvc.lock",
        "features.sql": folder / "tasks" / "features.sql",
        RAW: folder / paths.raw / manifest.NAME,
        "twins": models / "twins",
        "reports/tuned.json": models / "tuned.json",
        **{f"reports/{name}": reports / name for name in REPORTS if (reports / name).exists()},  # no curves, say
    }
    (target / "reports").mkdir()
    for name, source in copies.items():
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target / name)
    (target / "twins" / ".folder").touch()  # with train.seeds: 1 it is empty, and an object store has no empty folders
    if results.patch:
        (target / PATCH).write_bytes(results.patch)
    data = datacard.read_data(results.p, folder, results.entries)
    (target / datacard.NAME).write_text(datacard.render_data_card(data), encoding="utf-8")
    files.publish_json(target / bill.NAME, bill.list_software(folder / "requirements.lock"))
    figures.draw_record(
        target / "pictures",
        trials=results.trials,
        curves=reports / "curves",
        importance=reports / "importance.csv",
    )


def _render_note(results: Results) -> str:
    """The run's description: the leaderboard, and what it stands on."""
    tuned, columns = (
        results.tuned,
        dict.fromkeys([results.p.gate.metric, *NOTE_METRICS]),
    )  # first what the gate looks at
    names = [name for name in columns if any(name in row for row in results.leaderboard)]
    rows = [
        {"model": row["model"]} | {name: f"{row[name]:.4f}" if row.get(name) is not None else "" for name in names}
        for row in results.leaderboard
    ]
    edits = f" with uncommitted edits ({PATCH})" if results.patch else ""
    return "\n".join(
        [
            f"**What was known at {results.raw.as_of.isoformat()}**: {results.features.rows:,} rows, "
            f"{results.features.labelled:,} of them labelled. Measured on the holdout, by the twin:\n",
            verdict.render_table(rows),
            f"\n{tuned['trials']} trials, {tuned['pruned']} pruned; ended by the {tuned['ended_by']}. "
            f"Commit `{results.commit[:12]}`{edits}, record `{results.record[:12]}`.",
        ]
    )


def _flatten_params(results: Results) -> dict[str, str]:
    """params.yaml and the best parameters, flat. The whole file is an artifact: tables and SQL are left to it."""
    p, tuned = results.p, results.tuned
    sections = p.model_dump(mode="json", include=set(SECTIONS), exclude={"tune": {"space"}})
    best = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in tuned["params"].items()}
    space = p.tune.model_dump(mode="json", exclude_defaults=True)["space"]
    dimensions = "; ".join(f"{name} {_render_dimension(dimension)}" for name, dimension in space.items())
    best |= {"rounds": tuned["rounds"]}
    best |= {"dropped": tuned["dropped"]} if tuned.get("dropped") else {}
    return dict(_flatten({**sections, "best": best})) | {"tune.space": dimensions}


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flatten(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _render_dimension(dimension: Mapping[str, Any]) -> str:
    if "choice" in dimension:
        return "|".join(map(str, dimension["choice"]))
    return f"{dimension['low']:g} to {dimension['high']:g}{' log' if dimension.get('log') else ''}"


def _list_counts(results: Results) -> dict[str, float]:
    """What is not the model's own: each baseline's metrics as `<model>.<metric>`, rows, trials, CPU seconds."""
    tables = results.quality["tables"].values()
    return _select_numbers(
        {
            f"{row['model']}.{name}": value
            for row in results.leaderboard
            if row["model"] != holdout.CANDIDATE
            for name, value in row.items()
        }
        | {
            "rows.read": sum(table["rows"] for table in tables),
            "rows.quarantined": sum(table["bad"] for table in tables),
            "rows.labelled": results.features.labelled,
        }
        | {f"tune.{name}": results.tuned[name] for name in ("score", "trial", "trials", "pruned")}
        | {f"tune.preferred.{name}": value for name, value in (results.tuned.get("preferred") or {}).items()}
        | cost.list_metrics(results.costs, results.p.policy.cpu_price)
    )


def _select_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of the values that MLflow takes as metrics."""
    return {
        name: float(value) for name, value in values.items() if isinstance(value, (int, float)) and math.isfinite(value)
    }


def _list_datasets(results: Results) -> Iterator[Dataset]:
    """The features, the holdout that the metrics are of, and the tables as they were read."""
    paths, features, held = results.p.paths, results.features, results.metrics.get("rows")
    outs = {out["path"]: out["md5"] for entry in results.entries.values() for out in entry.get("outs", [])}
    for name, context, path, rows, columns in (
        ("features", "training", paths.features, features.rows, results.columns),
        ("holdout", "evaluation", paths.reports / "holdout.parquet", None if held is None else int(held), ()),
    ):
        md5 = outs[path.as_posix()]
        yield Dataset(name, context, f"dvc://{path.as_posix()}@{md5}", md5, rows, columns)
    for name, table in results.raw.tables.items():
        yield Dataset(name, "source", table.address, table.fingerprint, table.rows)


def _make_bundle(results: Results) -> Bundle:
    """The models, with a few rows of the newest period in the types that a caller sends: numbers and text."""
    p, columns = results.p, results.columns
    newest = max(
        (path for _, path in periods.list_files(results.folder / p.paths.features)), key=lambda path: path.stem
    )
    rows = pq.read_table(newest, columns=[column["name"] for column in columns]).slice(0, EXAMPLE_ROWS)
    types = {"number": pa.float64(), "category": pa.string()}
    example = rows.cast(pa.schema([(column["name"], types[column["kind"]]) for column in columns]))
    models, per_class = results.folder / p.paths.models, p.label.task == "multiclass"
    return Bundle(models / "model.ubj", models / "twin.ubj", columns, example, per_class=per_class)


def _find_lineage(results: Results) -> dict[str, str]:
    """The tags that lead back to the bytes."""
    lock, features = results.folder / "requirements.lock", results.features
    lineage = {
        tags.AS_OF: results.raw.as_of.isoformat(),
        tags.COMMIT: results.commit,
        tags.DIRTY: "true" if results.patch else "false",
        tags.ENVIRONMENT: periods.hash_file(lock) if lock.exists() else code.UNKNOWN,
        tags.FLOW_RUN: results.flow_run,
        tags.PII_KEY_ID: results.raw.pii_key_id,
        tags.RECIPE: identify_recipe(results.p, results.entries, results.tuned),
        tags.DATA_FROM: features.begin,
        tags.DATA_TO: features.end,
        tags.DATA_ROWS: features.rows,
        "mlflow.source.name": "dvc.yaml",
        "mlflow.source.type": "PROJECT",
        "mlflow.source.git.commit": results.commit,
    }
    return {name: str(value) for name, value in lineage.items() if value is not None}


def work(p: Params) -> None:
    stage.retry_while_away(lambda: record(p))  # a retrain's hours are not thrown away because MLflow is started anew


if __name__ == "__main__":
    stage.main(NAME, work)
