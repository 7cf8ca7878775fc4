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
from typing import TYPE_CHECKING, Any

import yaml

from tasks import log
from tasks.data import cache, periods
from tasks.params import Params
from tasks.promotion import figures, registry, tracking
from tasks.promotion.bundle import Bundle
from tasks.promotion.runs import Dataset, Trial
from tasks.runtime import code, files, stage
from tasks.runtime.code import UNKNOWN

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "record"
PATCH = "uncommitted.patch"
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
TELLING = ("auc", "average_precision", "accuracy", "brier", "calibration_error", "f1", "mae", "r2")  # in a description
EXAMPLE = 5  # rows


@dataclass(frozen=True)
class Made:
    """What the stages made, read once."""

    p: Params
    folder: Path
    outs: Mapping[str, str]
    record: str
    raw: Mapping[str, Any]
    features: Mapping[str, Any]
    quality: Mapping[str, Any]
    tuned: Mapping[str, Any]
    trials: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, Any]
    leaderboard: Sequence[Mapping[str, Any]]

    @property
    def as_of(self) -> str:
        return str(self.raw["as_of"])


def record(p: Params, folder: Path = Path()) -> str:
    """Log the run, unless it is there; its hash. Raises ValueError where a stage before it has not been run."""
    made = gather(p, folder)
    mlflow = registry.open_registry(p.registry)
    run_id = mlflow.runs.find(made.record) or _log(mlflow, made)
    target = folder / p.paths.reports / "record.json"
    if not target.exists() or json.loads(target.read_text()) != {"record": made.record}:
        files.publish_json(target, {"record": made.record})
    log.info("MLflow run %s in %s", run_id, tracking.hide_password(mlflow.tracking.uri))
    return made.record


# --- what there is to record ---------------------------------------------------------------------------------------


def gather(p: Params, folder: Path) -> Made:
    entries = upstream(folder)
    reports, models = folder / p.paths.reports, folder / p.paths.models
    return Made(
        p=p,
        folder=folder,
        outs={out["path"]: out["md5"] for entry in entries.values() for out in entry.get("outs", [])},
        record=digest(entries),
        raw=_read(folder / p.paths.raw / "manifest.json"),
        features=_read(folder / p.paths.features / "manifest.json"),
        quality=_read(reports / "quality.json"),
        tuned=_read(models / "tuned.json"),
        trials=_read(reports / "trials.json"),
        metrics=_read(reports / "metrics.json"),
        leaderboard=_read(reports / "leaderboard.json"),
    )


def upstream(folder: Path) -> dict[str, Any]:
    """The entries of dvc.lock of all stages before this one. DVC writes each before it starts the next stage."""
    lock, plan = folder / "dvc.lock", folder / "dvc.yaml"
    if not lock.exists():
        raise ValueError(f"{lock} is missing: record needs the stages before it. Run `dvc repro`.")
    entries = yaml.safe_load(lock.read_text())["stages"]
    names = [name for name in yaml.safe_load(plan.read_text())["stages"] if name != NAME]
    if missing := [name for name in names if name not in entries]:
        raise ValueError(
            f"{lock} has no entry for {', '.join(missing)}: run `dvc repro`, which runs them before record"
        )
    return {name: entries[name] for name in names}


def digest(entries: Mapping[str, Any]) -> str:
    """One hash for all that the stages read, were told, and made."""
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: run `dvc repro`, which makes it before record") from None


# --- the run -------------------------------------------------------------------------------------------------------


def _log(mlflow: registry.Registry, made: Made) -> str:
    commit, patch = _code(made.folder)
    tags = lineage(made, commit=commit, dirty=bool(patch))
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch)
        _stage_files(made, files, patch)
        return mlflow.runs.log(
            made.record,
            name=run_name(made, tags),
            note=note(made, tags),
            params=settings(made),
            metrics=own_metrics(made),
            counts=dict(counts(made)),
            tags=tags,
            datasets=list(datasets(made)),
            trials=[_trial(each) for each in made.trials],
            files=files,
            bundle=_bundle(made),
        )


def _stage_files(made: Made, files: Path, patch: bytes) -> None:
    """The run's artifacts, laid out as a person will find them in MLflow."""
    reports = made.folder / made.p.paths.reports
    shutil.copy(made.folder / "params.yaml", files)
    shutil.copy(made.folder / "dvc.lock", files)
    shutil.copy(made.folder / "tasks" / "features.sql", files)
    if patch:
        (files / PATCH).write_bytes(patch)
    _copy(made.folder / made.p.paths.models / "twins", files / "twins")
    (files / "twins").mkdir(exist_ok=True)
    (files / "twins" / ".folder").touch()  # with train.seeds: 1 it is empty, and an object store has no empty folders
    kept = files / "reports"
    kept.mkdir()
    shutil.copy(made.folder / made.p.paths.models / "tuned.json", kept)
    for name in REPORTS:
        _copy(reports / name, kept / name)
    figures.draw(
        files / "pictures", trials=made.trials, curves=reports / "curves", importance=reports / "importance.csv"
    )


def _copy(source: Path, target: Path) -> None:
    """A regression has no curves."""
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copy(source, target)


def run_name(made: Made, tags: Mapping[str, str]) -> str:
    """'2013-07-01 · 3f2a91c', with a + for uncommitted edits."""
    commit = tags["evergreen.commit"]
    code = made.record[:7] if commit == UNKNOWN else commit[:7]
    return f"{made.as_of[:10]} · {code}{'+' if tags['evergreen.dirty'] == 'true' else ''}"


def note(made: Made, tags: Mapping[str, str]) -> str:
    """The run's description: the leaderboard, and what it stands on."""
    names = _telling(made)
    rows = [[row["model"], *(_figure(row.get(name)) for name in names)] for row in made.leaderboard]
    table = ["model", *names], ["---", *("---:" for _ in names)], *rows
    dirty = " with uncommitted edits (uncommitted.patch)" if tags["evergreen.dirty"] == "true" else ""
    return "\n".join(
        [
            f"**What was known at {made.as_of}**: {made.features['rows']:,} rows, "
            f"{made.features['labelled']:,} of them labelled. Measured on the holdout, by the twin:\n",
            *("| " + " | ".join(cells) + " |" for cells in table),
            f"\n{made.tuned['trials']} trials, {made.tuned['pruned']} pruned; ended by the {made.tuned['ended_by']}. "
            f"Commit `{tags['evergreen.commit'][:12]}`{dirty}, record `{made.record[:12]}`.",
        ]
    )


def _telling(made: Made) -> list[str]:
    """The columns of the leaderboard that fit beside each other: what the gate looks at first."""
    there = {name: None for row in made.leaderboard for name in row}
    return [name for name in dict.fromkeys([made.p.gate.metric, *TELLING]) if name in there]


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else "" if value is None else str(value)


def settings(made: Made) -> dict[str, str]:
    """params.yaml and the best parameters, flat. The whole file is an artifact: tables and SQL are left to it."""
    sections = made.p.model_dump(mode="json", include=set(SECTIONS), exclude={"tune": {"space"}})
    space = made.p.tune.model_dump(mode="json", exclude_defaults=True)["space"]
    best = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in made.tuned["params"].items()}
    best["rounds"] = made.tuned["rounds"]
    found = dict(_flat({**sections, "best": best}))
    return {**found, "tune.space": "; ".join(f"{name} {_spell(each)}" for name, each in space.items())}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    else:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _spell(dimension: Mapping[str, Any]) -> str:
    if "choice" in dimension:
        return "|".join(map(str, dimension["choice"]))
    return f"{dimension['low']:g} to {dimension['high']:g}{' log' if dimension.get('log') else ''}"


def own_metrics(made: Made) -> dict[str, float]:
    """The twin's metrics by their plain names; metrics.json holds some of the baselines' beside them."""
    return {name: value for name, value in _numbers(made.metrics) if "." not in name}


def counts(made: Made) -> Iterator[tuple[str, float]]:
    """What is not the model's own: each baseline's metrics as `<model>.<metric>`, rows, trials."""
    for row in made.leaderboard:
        if not _same(row, made.metrics):
            yield from _numbers({f"{row['model']}.{name}": value for name, value in row.items() if name != "model"})
    tables = made.quality["tables"].values()
    yield "rows.read", float(sum(table["rows"] for table in tables))
    yield "rows.quarantined", float(sum(table["bad"] for table in tables))
    yield "rows.labelled", float(made.features["labelled"])
    for name in ("score", "trial", "trials", "pruned"):
        yield from _numbers({f"tune.{name}": made.tuned[name]})


def _same(row: Mapping[str, Any], metrics: Mapping[str, Any]) -> bool:
    """Whether a line of the leaderboard is the twin's own."""
    shared = [name for name in row if name in metrics]
    return bool(shared) and all(row[name] == metrics[name] for name in shared)


def _numbers(named: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in named.items():
        if isinstance(value, (int, float)) and math.isfinite(value):
            yield name, float(value)


def datasets(made: Made) -> Iterator[Dataset]:
    """The features, the holdout that the metrics are of, and the tables as they were read."""
    paths, features = made.p.paths, made.features
    yield _made(made, "features", "training", paths.features, rows=features["rows"], columns=features["columns"])
    yield _made(made, "holdout", "evaluation", paths.reports / "holdout.parquet", rows=_count(made.metrics.get("rows")))
    for name, table in made.raw["tables"].items():
        yield Dataset(name, "source", table["address"], table["fingerprint"], table["rows"])


def _count(value: Any) -> int | None:
    return None if value is None else int(value)


def _made(made: Made, name: str, context: str, path: Path, **known: Any) -> Dataset:
    md5 = made.outs[path.as_posix()]
    return Dataset(name, context, f"dvc://{path.as_posix()}@{md5}", md5, **known)


def _trial(row: Mapping[str, Any]) -> Trial:
    final = row.get("final") or {}
    rounds = final.get("rounds", row.get("rounds"))
    return Trial(row["number"], str(row["state"]).lower(), row["value"], row["params"], rounds, final.get("score"))


def _bundle(made: Made) -> Bundle:
    columns, models = made.features["columns"], made.folder / made.p.paths.models
    example = _example(made.folder / made.p.paths.features, columns)
    multiclass = made.p.label.task == "multiclass"
    return Bundle(models / "model.ubj", models / "twin.ubj", columns, example, per_class=multiclass)


def _example(features: Path, columns: Sequence[Mapping[str, str]]) -> "pa.Table":
    """A few rows of the newest period, in the types that a caller sends: numbers and text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    newest = max((path for _, path in periods.list_files(features)), key=lambda path: path.stem)
    rows = pq.read_table(newest, columns=[each["name"] for each in columns]).slice(0, EXAMPLE)
    types = {"number": pa.float64(), "category": pa.string()}
    return rows.cast(pa.schema([(each["name"], types[each["kind"]]) for each in columns]))


# --- where the code came from --------------------------------------------------------------------------------------


def lineage(made: Made, *, commit: str, dirty: bool) -> dict[str, str]:
    """The tags that lead back to the bytes."""
    lock = made.folder / "requirements.lock"
    known = {
        "as_of": made.as_of,
        "commit": commit,
        "dirty": str(dirty).lower(),
        "environment": cache.hash_file(lock) if lock.exists() else UNKNOWN,
        "flow_run": os.environ.get("EVERGREEN_FLOW_RUN") or None,
        "pii_key_id": made.raw.get("pii_key_id"),
        "data.from": made.features.get("from"),
        "data.to": made.features.get("to"),
        "data.rows": made.features["rows"],
    }
    shown = {"mlflow.source.name": "dvc.yaml", "mlflow.source.type": "PROJECT", "mlflow.source.git.commit": commit}
    return {**{f"evergreen.{key}": str(value) for key, value in known.items() if value is not None}, **shown}


def _code(folder: Path) -> tuple[str, bytes]:
    """The commit and the patch from there: what the retrain flow tells of its workspace, else what the checkout is."""
    commit, patch = os.environ.get("EVERGREEN_COMMIT"), os.environ.get("EVERGREEN_DIFF")
    if commit is None:
        return code.find_commit_and_patch(folder)
    return commit, Path(patch).read_bytes() if patch else b""


def work(p: Params) -> None:
    stage.retry_while_away(lambda: record(p))  # a retrain's hours are not thrown away because MLflow is started anew


if __name__ == "__main__":
    stage.main(NAME, work)
