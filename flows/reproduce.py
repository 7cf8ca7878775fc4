"""reproduce: rebuild a registered version from its lineage, and compare what comes out, byte for byte.

    python -m flows.reproduce 3

Its commit (with the uncommitted edits of then), its params and its number of trials, in a workspace with empty caches,
every stage forced. The model and the metrics are equal, or the flow fails and says what differs: the code, the data,
the key of the pseudonyms, the environment, or, with all of these equal, the machine.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from prefect import flow, get_run_logger
from pydantic import Field

from flows import cli, runs, stages
from tasks import params
from tasks.data.manifest import RawManifest
from tasks.promotion import tags
from tasks.promotion.registry import Version, open_registry
from tasks.runtime import overrides, pipeline, workspaces

UNBOUND = "30d"  # of search: the recorded number of trials is what ends it
RECORD = "record"  # logs to MLflow and makes nothing of the model
FILES = ("dvc.lock", "params.yaml", "reports/tuned.json", "reports/metrics.json", "model.ubj", "twin.ubj")
RESULTS = {"model.ubj": "models", "twin.ubj": "models", "reports/metrics.json": "reports"}  # and where each lies


@dataclass(frozen=True)
class Origin:
    """What a version was made of, as recorded in its MLflow run. `patch`: the edits that were not committed."""

    version: Version
    files: Mapping[str, Path]
    patch: Path | None


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was. `kind` is code, data, key, environment, or result."""

    kind: str
    what: str
    then: str
    now: str


@flow(name="reproduce", flow_run_name="reproduce version {version}")
def reproduce(
    version: Annotated[int, Field(ge=1)],
) -> list[Difference]:
    """Rebuild the version and compare. Fails when its model or its metrics come out different.

    Args:
        version: The number of the registered version to rebuild.
    """
    with tempfile.TemporaryDirectory() as scratch:
        origin = fetch(params.load(), version, Path(scratch))
        with workspaces.open_workspace(
            Path.cwd(), commit=origin.version.commit, patch=origin.patch, fresh=True
        ) as space:
            restore_params(origin, space)
            for stage in pipeline.list_stages(space.root):
                if stage != RECORD:
                    stages.stage_task(stage)(space, stage, force=True)
            differences = list(find_differences(origin, space))
    runs.publish(f"# Version {version}\n\n{describe(differences)}\n", key="reproduction")
    if any(difference.kind == "result" for difference in differences):
        raise ValueError(f"version {version} does not come out as it was:\n{describe(differences)}")
    get_run_logger().info("version %s comes out byte for byte", version)
    return differences


@runs.retried("lineage")
def fetch(p: params.Params, number: int, into: Path) -> Origin:
    registry = open_registry(p.registry)
    version = registry.read_version(number)
    names = (*FILES, "uncommitted.patch") if version.tags.get(tags.DIRTY) == "true" else FILES
    files = {name: registry.runs.fetch(version.run_id, name, into) for name in names}
    return Origin(version, files, files.get("uncommitted.patch"))


def restore_params(origin: Origin, space: workspaces.Workspace) -> None:
    """The params of then; the search ends with the number of trials that were done."""
    shutil.copyfile(origin.files["params.yaml"], space.root / "params.yaml")
    as_of = {"clock.as_of": origin.version.as_of.isoformat()} if origin.version.as_of else {}
    trials = json.loads(origin.files["reports/tuned.json"].read_text())["trials"]
    search = {"tune.trials": trials, "tune.budget": UNBOUND, "tune.cpu": None} if trials else {}  # a refresh has none
    overrides.override_params(space.root / "params.yaml", {**search, **as_of})


def find_differences(origin: Origin, space: workspaces.Workspace) -> Iterator[Difference]:
    """What differs from then, causes before results."""
    # The version's own params, as they stand: today's rules for a params.yaml may be others.
    paths = yaml.safe_load((space.root / "params.yaml").read_text())["paths"]
    folders = {name: space.root / path for name, path in paths.items()}
    then = origin.version.tags.get(tags.ENVIRONMENT, "")
    now = hashlib.sha256((Path.cwd() / "requirements.lock").read_bytes()).hexdigest()
    if then and then != now:
        yield Difference("environment", "requirements.lock", then, now)
    old_key, new_key = origin.version.tags.get(tags.PII_KEY_ID), RawManifest.read(folders["raw"]).pii_key_id
    if old_key != new_key:  # another key gives other pseudonyms, and so other rows in another order
        yield Difference("key", "the id of EVERGREEN_PII_KEY (or pii.key)", old_key or "none", new_key or "none")
    yield from _compare_stages(origin, space, tuned=folders["models"] / "tuned.json")
    for name, folder in RESULTS.items():
        then, now = _hash(origin.files[name]), _hash(folders[folder] / Path(name).name)
        if then != now:
            yield Difference("result", name, then, now)


def _compare_stages(origin: Origin, space: workspaces.Workspace, *, tuned: Path) -> Iterator[Difference]:
    """Files that a stage reads or makes. What ended the search is no difference: here it is the number of trials."""
    search, again = (json.loads(path.read_text()) for path in (origin.files["reports/tuned.json"], tuned))
    is_same = {**search, "ended_by": None} == {**again, "ended_by": None}
    stages_now = pipeline.read_lock(space.root)["stages"]
    for stage, before in yaml.safe_load(origin.files["dvc.lock"].read_text())["stages"].items():
        for side in ("deps", "outs"):
            now = _read_hashes(stages_now.get(stage, {}), side)
            for path, then in _read_hashes(before, side).items():
                is_search = is_same and space.root / path == tuned
                if now.get(path) != then and not is_search and stage != RECORD:
                    kind = "code" if path.startswith("tasks/") else "data"
                    yield Difference(kind, f"{stage} {side[:-1]} {path}", then, now.get(path, "missing"))


def _read_hashes(stage: Mapping[str, Any], side: str) -> dict[str, str]:
    return {file["path"]: file["md5"] for file in stage.get(side, [])}


def _hash(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def describe(differences: list[Difference]) -> str:
    """The comparison as a person reads it."""
    lines = (f"- {one.kind}: {one.what} was {one.then[:12]}, is {one.now[:12]}" for one in differences)
    return "\n".join(lines) or "Every byte is the same."


if __name__ == "__main__":
    cli.run("reproduce")
