"""pull: a registered version in a folder of its own, with its code, its parameters and its data.

The outputs are those that the version's dvc.lock names. They come from DVC's cache, and from its remote where that
lacks them.
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tasks import params
from tasks.params import Params
from tasks.promotion import tags
from tasks.promotion.record import PATCH
from tasks.promotion.registry import Registry, Version, open_registry
from tasks.runtime import code, files, pipeline, project, remote


@dataclass(frozen=True)
class Pulled:
    """A version's folder, and the bytes of each of its outputs by path."""

    version: Version
    folder: Path
    sizes: Mapping[str, int]


def pull_version(p: Params, number: int, *, checkout: Path, into: Path | None = None) -> Pulled:
    """Make the folder, whole or not at all.

    Args:
        checkout: Whose git knows the version's commit, and whose DVC project knows the cache and the remote.
        into: The new folder. None: versions/<number> in the home.

    Raises:
        ValueError: There is no such version, the folder is there already, or DVC's cache lacks its outputs and no
            remote is set.
        RemoteFailed: The remote does not give them.
    """
    registry = open_registry(p.registry)
    version = registry.read_version(number)
    folder = (into or params.home(checkout) / "versions" / str(number)).resolve()
    if folder.exists():
        raise ValueError(f"{folder} is there already: remove it, or name another folder by --into")
    with files.publish_folder(folder) as making:
        _copy_code(registry, version, checkout, making)
        cache = project.find_cache(checkout)
        project.configure_project(checkout, making, cache=cache, site=making)
        remote.pull_outputs(making)
        project.configure_project(checkout, making, cache=cache, site=folder)
        stages = pipeline.read_lock(making)["stages"].values()
    return Pulled(version, folder, {out["path"]: out["size"] for stage in stages for out in stage.get("outs", [])})


def _copy_code(registry: Registry, version: Version, checkout: Path, making: Path) -> None:
    """The code of the version's commit, with the edits that were not committed, its parameters and its lock."""
    with tempfile.TemporaryDirectory() as scratch:
        is_edited = version.tags.get(tags.DIRTY) == "true"
        patch = registry.runs.fetch(version.run_id, PATCH, Path(scratch)) if is_edited else None
        code.copy_code(checkout, making, commit=version.commit, patch=patch)
        for name in ("dvc.lock", "params.yaml"):
            shutil.copyfile(registry.runs.fetch(version.run_id, name, Path(scratch)), making / name)


def main(version: int, *, into: Annotated[Path | None, Parameter(name="--into")] = None) -> None:
    """Bring a registered version back with its data, in a folder of its own.

    Args:
        version: The number of the version.
        into: A new folder for it. Empty: the folder versions in the home, and the number.
    """
    pulled = pull_version(params.load(), version, checkout=Path.cwd(), into=into)
    for path, size in pulled.sizes.items():
        print(f"{size / 1e6:>10,.1f} MB  {path}")
    print(f"{sum(pulled.sizes.values()) / 1e6:>10,.1f} MB  in all: version {version} is in {pulled.folder}")
