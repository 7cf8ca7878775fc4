"""recipe: what turns data into a version. Its id; its files from the registry: params, tuned, features.sql, models."""

import hashlib
import json
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import log, params
from tasks.data import features, storedrows
from tasks.data.featurerows import Rows
from tasks.data.storedrows import AnyRows
from tasks.promotion.registry import Registry, Version
from tasks.runtime import stage
from tasks.training.model import Model
from tasks.training.trials import Tuned

RECIPE = ("params.yaml", "reports/tuned.json", "features.sql", "model.ubj", "twin.ubj", "twins")

CODE = (".py", ".sql")
SQL = "features.sql"
STAGES = ("features", "train")  # their code makes the model; the search's does not


@dataclass(frozen=True)
class Recipe:
    """Everything that turned data into a champion, as it was recorded."""

    p: params.Params
    tuned: Tuned
    sql: str
    model: Model
    twins: tuple[Model, ...]


def identify_recipe(p: params.Params, entries: Mapping[str, Any], tuned: Mapping[str, Any]) -> str:
    """The id of a recipe: a hash of all that turns data into a model, without the data and as_of.

    Args:
        entries: Of the stages in dvc.lock.
        tuned: The parameters, rounds and dropped features, as in tuned.json.
    """
    code = {
        stage: {dep["path"]: dep["md5"] for dep in entries[stage].get("deps", []) if dep["path"].endswith(CODE)}
        for stage in STAGES
    }
    sections = {name: getattr(p, name).model_dump(mode="json") for name in ("features", "label", "spine", "train")}
    contract = {name: table.model_dump(mode="json") for name, table in p.contract.items()}
    rest = {"window": str(p.split.window), "seed": p.tune.seed, "params": tuned["params"], "rounds": tuned["rounds"]}
    rest |= {"dropped": dropped} if (dropped := tuned.get("dropped")) else {}
    text = json.dumps([code, sections, contract, rest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identify_stored(recipe: Recipe, p: params.Params, entries: Mapping[str, Any]) -> str:
    """The id of a stored recipe as today's code fits it.

    Args:
        p: Its params, with what today's run sets.
        entries: Of the stages in today's dvc.lock.
    """
    digest = hashlib.md5(recipe.sql.encode(), usedforsecurity=False).hexdigest()
    deps = [{**dep, "md5": digest} if dep["path"].endswith(SQL) else dep for dep in entries["features"].get("deps", [])]
    tuned = {name: getattr(recipe.tuned, name) for name in ("params", "rounds", "dropped")}
    return identify_recipe(p, {**entries, "features": {**entries["features"], "deps": deps}}, tuned)


def fetch_model(registry: Registry, version: Version) -> Model:
    """The model of a version that would serve."""
    with tempfile.TemporaryDirectory() as scratch:
        return Model.load(registry.runs.fetch(version.run_id, "model.ubj", Path(scratch)))


def fetch_tuned(registry: Registry, run: str) -> Tuned:
    """The parameters and rounds that a run recorded."""
    with tempfile.TemporaryDirectory() as scratch:
        return Tuned.load(registry.runs.fetch(run, "reports/tuned.json", Path(scratch)))


def fetch_recipe(registry: Registry, version: Version) -> Recipe:
    """A version's recipe from the registry: params, tuned numbers, SQL, its model and the stored twins."""
    with tempfile.TemporaryDirectory() as scratch:
        return load_recipe(download_recipe(registry, version, Path(scratch)))


def download_recipe(registry: Registry, version: Version, into: Path) -> dict[str, Path]:
    """The files of a recipe, by name."""
    return {name: registry.runs.fetch(version.run_id, name, into) for name in RECIPE}


def load_recipe(files: dict[str, Path]) -> Recipe:
    """Raises ValueError for a file that this evergreen cannot read."""
    twins = [files["twin.ubj"], *sorted(files["twins"].glob("*.ubj"))]
    return Recipe(
        params.load(files["params.yaml"]),
        Tuned.load(files["reports/tuned.json"]),
        files["features.sql"].read_text(),
        Model.load(files["model.ubj"]),
        tuple(Model.load(path) for path in twins),
    )


def rebuild_features(recipe: Recipe, p: params.Params, folder: Path, rows: AnyRows) -> AnyRows:
    """Today's rows with the champion's features; when its SQL is today's, they are `rows`.

    Those that memory does not hold stay in a folder that goes with this process.
    """
    is_same_sql = (folder / "tasks" / "features.sql").read_text() == recipe.sql
    if is_same_sql and (recipe.p.features, recipe.p.spine) == (p.features, p.spine):
        return rows
    log.info("the champion has other features: running its own features.sql")
    mixed = p.model_copy(update={"features": recipe.p.features, "spine": recipe.p.spine})
    out = stage.spill_folder(Path.cwd()) / f"features-{secrets.token_hex(8)}"
    features.build(params.validate(mixed.model_dump(mode="json")), folder / p.paths.clean, out, recipe.sql)
    own = storedrows.open_rows(out, memory=p.stage.memory_bytes)
    if isinstance(own, Rows):
        shutil.rmtree(out)
    return own
