"""promotion.runs on a real MLflow database: a record's run is whole or absent."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tasks.promotion import changes
from tasks.promotion.registry import Registry
from tests.tasks.promotion.conftest import AS_OF, BETTER, TRIALS, small_model

ELSEWHERE = """
import sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
served = mlflow.pyfunc.load_model(sys.argv[2])
rows = pd.DataFrame({"size": [0.5, None, -1.0], "store": ["north", "never seen", None]})
assert "tasks" not in sys.modules
print([float(value) for value in served.predict(rows)])
"""


def statuses(registry: Registry, record: str) -> list[str]:
    runs = registry.tracking.client.search_runs([registry.runs.experiment], f"tags.`evergreen.record` = '{record}'")
    return sorted(run.info.status for run in runs)


def test_a_record_is_logged_once(registry: Registry, made: dict[str, Any]) -> None:
    assert registry.runs.find("r1") is None
    run_id = registry.runs.log("r1", **made)
    assert registry.runs.log("r1", **made) == run_id == registry.runs.find("r1")
    assert statuses(registry, "r1") == ["FINISHED"]


def test_a_killed_run_is_never_taken_for_a_whole_one(registry: Registry, made: dict[str, Any]) -> None:
    left = registry.tracking.client.create_run(registry.runs.experiment, tags={"evergreen.record": "r1"}).info.run_id
    assert registry.runs.find("r1") is None
    assert registry.runs.log("r1", **made) != left
    assert statuses(registry, "r1") == ["FINISHED", "KILLED"]


def test_a_run_that_could_not_be_logged_whole_is_absent(
    registry: Registry, made: dict[str, Any], tmp_path: Path
) -> None:
    broken = replace(made["bundle"], model=tmp_path / "missing.ubj")
    with pytest.raises(Exception, match=r"missing\.ubj"):
        registry.runs.log("r1", **{**made, "bundle": broken})
    assert registry.runs.find("r1") is None
    assert registry.runs.log("r1", **made) == registry.runs.find("r1")
    assert statuses(registry, "r1") == ["FAILED", "FINISHED"]


def test_a_run_holds_what_the_record_holds(registry: Registry, made: dict[str, Any], tmp_path: Path) -> None:
    run = registry.tracking.client.get_run(registry.runs.log("r1", **made))
    assert run.info.run_name == made["name"]
    assert run.data.params["tune.119"] == "119"
    assert run.data.metrics["log_loss"] == 0.4
    assert run.data.metrics["constant.log_loss"] == 0.5
    data = run.inputs.dataset_inputs[0].dataset
    assert (data.name, data.digest, json.loads(data.source)) == (
        "features",
        "a" * 32 + ".dir",
        {"uri": "dvc://data/features@abc"},
    )
    assert registry.runs.fetch(run.info.run_id, "reports/metrics.json", tmp_path).read_text() == "{}"
    assert registry.tracking.find_link(run.info.run_id).startswith("http://127.0.0.1:5000/#/experiments/")


def test_all_trials_are_a_table_and_the_best_are_runs(registry: Registry, made: dict[str, Any], tmp_path: Path) -> None:
    run_id = registry.runs.log("r1", **made)
    history = registry.tracking.client.get_metric_history(run_id, "trial_best")
    assert [(point.step, point.value) for point in history] == [(trial["number"], trial["value"]) for trial in TRIALS]
    table = json.loads(registry.runs.fetch(run_id, "trials.json", tmp_path).read_text())
    assert len(table["data"]) == len(made["trials"])
    assert table["columns"][-1] == "eta"
    children = registry.tracking.client.search_runs(
        [registry.runs.experiment], f"tags.`mlflow.parentRunId` = '{run_id}'"
    )
    assert sorted(child.info.run_name for child in children) == ["trial 3", "trial 4"]


def test_the_model_answers_in_another_process_that_knows_nothing_of_this_project(
    registry: Registry, made: dict[str, Any], store: str, tmp_path: Path
) -> None:
    changes.promote(registry, registry.runs.log("r1", **made), decision="d1", verdict=BETTER, as_of=AS_OF, tags={})
    quiet = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    asked = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, store, f"models:/{registry.model}@champion"],
        cwd=tmp_path,
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    rows = pa.table({"size": [0.5, None, -1.0], "store": ["north", None, None]})
    model, _ = small_model()
    assert json.loads(asked.stdout) == pytest.approx(model.predict(rows).tolist(), abs=1e-7)
