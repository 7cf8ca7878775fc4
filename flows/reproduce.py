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
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from flows import cli
from flows.runs import retried
from flows.stages import stage_task
from tasks import params
from tasks.data.manifest import RawManifest
from tasks.params import Params
from tasks.promotion.registry import Version, open_registry
from tasks.promotion.tags import DIRTY, ENVIRONMENT, PII_KEY_ID
from tasks.runtime import overrides, pipeline, workspaces
from tasks.runtime.workspaces import Workspace

UNBOUND = "30d"  # of search: the recorded number of trials is what ends it
RECORD = "record"  # logs to MLflow and makes nothing of the model


@dataclass(frozen=True)
class Origin:
    """What a version was made of, as recorded in its MLflow run."""

    version: Version
    lock: Mapping[str, Any]
    tuned: Mapping[str, Any]
    patch: Path | None
    files: Mapping[str, Path]


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
    p = params.load()
    with tempfile.TemporaryDirectory() as scratch:
        origin = fetch(p, version, Path(scratch))
        commit, patch = origin.version.commit, origin.patch
        with workspaces.open_workspace(Path.cwd(), commit=commit, patch=patch, fresh=True) as space:
            restore_params(origin, space)
            rebuild(space)
            differences = list(find_differences(origin, space))
    publish(version, differences)
    if any(difference.kind == "result" for difference in differences):
        raise ValueError(f"version {version} does not come out as it was:\n{describe(differences)}")
    get_run_logger().info("version %s comes out byte for byte", version)
    return differences


@retried("lineage")
def fetch(p: Params, number: int, into: Path) -> Origin:
    registry = open_registry(p.registry)
    version = registry.read_version(number)
    is_dirty = version.tags.get(DIRTY) == "true"
    names = ("dvc.lock", "params.yaml", "reports/tuned.json", "reports/metrics.json", "model.ubj", "twin.ubj")
    files = {name: registry.runs.fetch(version.run_id, name, into) for name in names}
    return Origin(
        version,
        yaml.safe_load(files["dvc.lock"].read_text())["stages"],
        json.loads(files["reports/tuned.json"].read_text()),
        registry.runs.fetch(version.run_id, "uncommitted.patch", into) if is_dirty else None,
        files,
    )


def restore_params(origin: Origin, space: Workspace) -> None:
    """The params of then; the search ends with the number of trials that were done."""
    shutil.copyfile(origin.files["params.yaml"], space.root / "params.yaml")
    as_of = {"clock.as_of": origin.version.as_of.isoformat()} if origin.version.as_of else {}
    search = {"tune.trials": origin.tuned["trials"], "tune.budget": UNBOUND}
    overrides.override_params(space.root / "params.yaml", {**search, **as_of})


def rebuild(space: Workspace) -> None:
    """Every stage that makes the model, forced; each as a task run of its name."""
    for stage in pipeline.list_stages(space.root):
        if stage.name != RECORD:
            stage_task(stage.name)(space, stage.name, force=True)


def find_differences(origin: Origin, space: Workspace) -> Iterator[Difference]:
    """What differs from then, causes before results."""
    now, paths = pipeline.read_lock(space.root)["stages"], _read_paths(space)
    same = {(paths["models"] / "tuned.json").as_posix()} if _is_same_search(origin, space) else set()
    yield from _compare_environments(origin)
    yield from _compare_keys(origin, space)
    for stage, entry in origin.lock.items():
        if stage != RECORD:
            yield from _compare_stage(stage, entry, now.get(stage, {}), same=same)
    places = {"model.ubj": "models", "twin.ubj": "models", "reports/metrics.json": "reports"}
    for name, folder in places.items():
        then, made = _hash(origin.files[name]), _hash(space.root / paths[folder] / Path(name).name)
        if then != made:
            yield Difference("result", name, then, made)


def _read_paths(space: Workspace) -> dict[str, Path]:
    """Where the version's own params put things. As they stand: today's rules for a params.yaml may be others."""
    paths = yaml.safe_load((space.root / "params.yaml").read_text())["paths"]
    return {name: Path(path) for name, path in paths.items()}


def _is_same_search(origin: Origin, space: Workspace) -> bool:
    """Whether the search found the same. What ended it is another matter: here it is always the number of trials."""
    now = json.loads((space.root / _read_paths(space)["models"] / "tuned.json").read_text())
    return {**origin.tuned, "ended_by": None} == {**now, "ended_by": None}


def _compare_keys(origin: Origin, space: Workspace) -> Iterator[Difference]:
    """Another key gives other pseudonyms, and so other rows in another order."""
    then = origin.version.tags.get(PII_KEY_ID)
    now = RawManifest.read(space.root / _read_paths(space)["raw"]).pii_key_id
    if then != now:
        yield Difference("key", "the id of EVERGREEN_PII_KEY (or pii.key)", then or "none", now or "none")


def _compare_environments(origin: Origin) -> Iterator[Difference]:
    """The lock of the libraries: what is installed now against what was then."""
    then = origin.version.tags.get(ENVIRONMENT, "")
    now = hashlib.sha256((Path.cwd() / "requirements.lock").read_bytes()).hexdigest()
    if then and then != now:
        yield Difference("environment", "requirements.lock", then, now)


def _compare_stage(
    stage: str, then: Mapping[str, Any], now: Mapping[str, Any], *, same: Container[str]
) -> Iterator[Difference]:
    for side in ("deps", "outs"):
        hashes = {file["path"]: file["md5"] for file in now.get(side, [])}
        for path, before in ((file["path"], file["md5"]) for file in then.get(side, [])):
            if hashes.get(path) != before and path not in same:
                kind = "code" if path.startswith("tasks/") else "data"
                yield Difference(kind, f"{stage} {side[:-1]} {path}", before, hashes.get(path, "missing"))


def _hash(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@retried("publish")
def publish(version: int, differences: list[Difference]) -> None:
    """Show the comparison beside the run in the Prefect UI."""
    create_markdown_artifact(f"# Version {version}\n\n{describe(differences)}\n", key="reproduction")


def describe(differences: list[Difference]) -> str:
    """The comparison as a person reads it."""
    lines = (f"- {one.kind}: {one.what} was {one.then[:12]}, is {one.now[:12]}" for one in differences)
    return "\n".join(lines) or "Every byte is the same."


if __name__ == "__main__":
    cli.run("reproduce")
