"""A registered version comes out of its lineage byte for byte, or the flow says what differs."""

import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from flows.reproduce import Difference, Origin, find_differences, reproduce, restore_params
from flows.retrain import retrain
from tasks import params
from tasks.promotion import changes, registry
from tasks.promotion.registry import Version
from tasks.runtime.workspaces import Workspace
from tests.conftest import write_params
from tests.flows.conftest import Project, commit

AS_OF = datetime(2024, 2, 20)


@pytest.mark.faults  # whole retrains: with the other long ones
def test_a_version_comes_out_as_it_was_and_a_changed_source_is_named(project: Project) -> None:
    (project.folder / "notes.py").write_text("# an edit that nobody has committed\n")
    done = retrain()
    assert done.version == 1
    commit(project.folder, "later work")
    features = project.folder / "tasks" / "features.sql"
    text = features.read_text()
    features.write_text("SELECT row_id, amount FROM spine")
    commit(project.folder, "other features")
    orders = project.folder / "source" / "orders.csv"
    orders.write_text(orders.read_text().replace("north", "south"))
    commit(project.folder, "other data")
    # the commit of the version still holds the sources of then: they are part of this made checkout
    assert reproduce(1) == []
    features.write_text(text)
    commit(project.folder, "the features of before, for the tests that follow")


@pytest.mark.faults
def test_a_refreshed_version_comes_out_without_a_search(
    project: Project, recorded: Callable[[], registry.Version]
) -> None:
    assert recorded().number == 1
    as_of = datetime.fromisoformat(project.raw["clock"]["as_of"]) + timedelta(days=7)
    done = retrain(as_of=as_of, kind="refresh")
    assert done
    verdict = {"outcome": "PROMOTE", "reasons": ["Its evidence is too short here."]}
    known = registry.open_registry(params.load().registry)
    changes.promote(known, done.run_id, decision="a refresh", verdict=verdict, as_of=as_of, tags={})
    assert reproduce(2) == []


def test_a_search_ends_with_its_trials_and_a_recipe_stays_as_it_was(tmp_path: Path, project: Project) -> None:
    recipe = {"params": {"eta": 0.1}, "rounds": 50, "dropped": []}
    for trials, tuned in ((3, None), (0, recipe)):
        version = Version(1, "r", "d", "h", AS_OF, "c", MappingProxyType({}))
        raw = {**project.raw, "tune": {**project.raw["tune"], "recipe": tuned}}
        write_params(raw, tmp_path)
        (tmp_path / "tuned.json").write_text(json.dumps({"trials": trials}))
        files = {"params.yaml": tmp_path / "params.yaml", "reports/tuned.json": tmp_path / "tuned.json"}
        (tmp_path / "now").mkdir(exist_ok=True)
        restore_params(Origin(version, files, None), Workspace(tmp_path / "now", "c", None, {}))
        now = params.load(tmp_path / "now" / "params.yaml")
        assert now.clock.as_of == AS_OF
        assert now.tune.trials == (trials or project.raw["tune"]["trials"])
        assert (now.tune.recipe and now.tune.recipe.model_dump()) == tuned


def test_a_version_that_does_not_exist_is_refused(project: Project) -> None:
    assert project
    with pytest.raises(ValueError, match="version"):
        reproduce(99)


# --- what counts as a difference -----------------------------------------------------------------------------------

TUNED = {"params": {"eta": 0.1}, "rounds": 50, "score": 0.4, "trials": 3, "pruned": 0, "ended_by": "budget"}


def test_what_ended_the_search_is_no_difference(tmp_path: Path) -> None:
    assert compared(tmp_path, tuned=TUNED | {"ended_by": "trials"}) == []


def test_another_search_is_a_difference_of_every_stage_that_has_it(tmp_path: Path) -> None:
    differences = compared(tmp_path, tuned=TUNED | {"rounds": 51, "ended_by": "trials"})
    assert [one.what for one in differences] == [
        "search out out/models/tuned.json",
        "train dep out/models/tuned.json",
    ]


def test_another_key_is_named_as_the_cause(tmp_path: Path) -> None:
    assert [(one.kind, one.then, one.now) for one in compared(tmp_path, key="k2")] == [("key", "k1", "k2")]


def test_another_model_is_a_result(tmp_path: Path) -> None:
    assert [(one.kind, one.what) for one in compared(tmp_path, model=b"another")] == [("result", "model.ubj")]


RAW = {"format": "raw manifest/1", "as_of": "2013-07-01T00:00:00", "limit": "2013-07-02T00:00:00", "tables": {}}


def compared(
    folder: Path, *, tuned: dict[str, Any] = TUNED, key: str = "k1", model: bytes = b"model"
) -> list[Difference]:
    """A version with folders of its own naming, against what was rebuilt of it."""
    then, now = made(folder / "then", TUNED, "k1", b"model"), made(folder / "now", tuned, key, model)
    out = then / "out"
    files = {
        "dvc.lock": then / "dvc.lock",
        "reports/tuned.json": out / "models" / "tuned.json",
        "model.ubj": out / "models" / "model.ubj",
        "twin.ubj": out / "models" / "twin.ubj",
        "reports/metrics.json": out / "told" / "metrics.json",
    }
    version = Version(1, "r", "d", "h", None, "c", MappingProxyType({"evergreen.pii_key_id": "k1"}))
    return list(find_differences(Origin(version, files, None), Workspace(now, "c", None, {})))


def made(root: Path, tuned: dict[str, Any], key: str, model: bytes) -> Path:
    files = {
        "params.yaml": b"paths: {raw: out/raw, models: out/models, reports: out/told}",
        "out/raw/manifest.json": json.dumps(RAW | {"pii_key_id": key}).encode(),
        "out/models/tuned.json": json.dumps(tuned).encode(),
        "out/models/model.ubj": model,
        "out/models/twin.ubj": b"twin",
        "out/told/metrics.json": b"{}",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    md5 = hashlib.md5(files["out/models/tuned.json"]).hexdigest()
    one = [{"path": "out/models/tuned.json", "md5": md5}]
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": {"search": {"outs": one}, "train": {"deps": one}}}))
    return root
