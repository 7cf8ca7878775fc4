"""gc: frees what no registered version, no open run and no current lock needs.

    python -m tasks.promotion.gc           what would be freed
    python -m tasks.promotion.gc --do      frees it

A version's lock lives in MLflow and counts like the checkout's own: whatever it names stays, so that every version can
be reproduced and rolled back to. Nothing else counts: what other commits and branches made goes, and so do the results
of `dvc exp` that were not applied or committed.

Two things are refused unless a flag says that they are meant: to free data when the registry holds no version (it may
be the wrong registry), and to free a DVC cache outside the checkout and the home (others may use it).
"""

import contextlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cyclopts
import yaml

from tasks import params
from tasks.promotion.registry import open_registry
from tasks.promotion.tags import RECIPE
from tasks.promotion.tracking import hide_password
from tasks.runtime import files, locks, pipeline, project, workspaces

Kind = Literal["workspace", "object", "run", "study", "booster", "candidate", "period", "evidence"]
Inode = tuple[int, int]  # of a file: device and number


@dataclass(frozen=True)
class Freed:
    """What is removed, or would be: `size` counts the bytes that the disk gets back, so a hard link's are 0."""

    kind: Kind
    path: Path
    size: int


def collect(
    checkout: Path,
    *,
    dry: bool,
    no_versions: bool = False,
    shared_cache: bool = False,
    say: Callable[[str], None] = print,
) -> list[Freed]:
    """Free what is not needed; what was freed, or with `dry` would be.

    Args:
        no_versions: free data although no version is registered.
        shared_cache: free a DVC cache outside the checkout and the home.
    """
    registry = open_registry(params.load(checkout / "params.yaml").registry)
    versions, address = registry.list_versions(), hide_password(registry.tracking.uri)
    say(f"{len(versions)} versions of {registry.model} in {address}: what they were made of stays")
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(version.number) for version in versions]
        for version, folder in zip(versions, folders, strict=True):
            registry.runs.fetch(version.run_id, "dvc.lock", folder)
        if not dry and not shared_cache:
            _check_cache(checkout)
        asks_for_all = not dry and not versions and not no_versions
        if asks_for_all and (objects := sum(freed.kind == "object" for freed in free(checkout, dry=True))):
            raise ValueError(
                f"{address} holds no version of {registry.model}, and {objects} objects of data would be freed. Set "
                "MLFLOW_TRACKING_URI and registry.model to those of the runs, or say NO_VERSIONS=1 (--no-versions) if "
                "there is none yet."
            )
        recipes = {version.tags[RECIPE] for version in versions if RECIPE in version.tags}
        return free(checkout, keep_locks=folders, keep_recipes=recipes, dry=dry)


def _check_cache(checkout: Path) -> None:
    cache, places = Path(project.find_cache(checkout)).resolve(), (checkout, params.home(checkout))
    if not any(cache.is_relative_to(place.resolve()) for place in places):
        raise ValueError(
            f"the DVC cache must lie in the checkout or in the home to be freed, but it is {cache}: other projects may "
            "need what this one does not. Say SHARED_CACHE=1 (--shared-cache) if no other uses it."
        )


def free(
    checkout: Path,
    *,
    keep_locks: Iterable[Path] = (),
    keep_recipes: Collection[str] = (),
    dry: bool = True,
    days: float = 14,
) -> list[Freed]:
    """Free what neither the locks of the given folders, nor the checkout's, nor a running workspace's need.

    Objects and remembered runs of DVC, left workspaces; and studies, boosters, periods, candidates of replays, and
    evidence of recipes not in `keep_recipes`, that were last used `days` ago. Waits for the run that is under way.
    Branches and tags of git do not count: their data is made again when asked for.
    """
    checkout = checkout.resolve()
    with contextlib.ExitStack() as stack:
        if not dry:
            stack.enter_context(locks.take_turn(params.home(checkout)))
        roots = [checkout]
        roots += [root for root in workspaces.list_workspaces(params.home(checkout)) if locks.has_owner(root)]
        for root in roots:
            if not dry and (root / ".dvc").is_dir():  # between an output's way into the cache and its line in dvc.lock
                stack.enter_context(stack.enter_context(project.open_project(root)).lock)
        before = time.time() - days * 86400
        unneeded = [
            *_find_unneeded(checkout, keep_locks=[*roots, *keep_locks], before=before),
            *(("evidence", path) for path in _list_unneeded_evidence(params.home(checkout), keep_recipes, before)),
        ]
        links: Counter[Inode] = Counter()
        freed = [Freed(kind, path, _count_bytes(path, links)) for kind, path in unneeded]
        for kind, path in () if dry else unneeded:
            _remove(kind, path)
    return freed


def _find_unneeded(checkout: Path, *, keep_locks: Iterable[Path], before: float) -> list[tuple[Kind, Path]]:
    home, cache = params.home(checkout), Path(project.find_cache(checkout))
    needed = _find_needed(cache, keep_locks)
    objects, runs = _list_files(cache / "files" / "md5"), _list_files(cache / "runs")
    paths: dict[Kind, list[Path]] = {
        "workspace": [root for root in workspaces.list_workspaces(home) if not locks.has_owner(root)],
        "object": [path for path in objects if path.parent.name + path.name not in needed],
        "run": [path for path in runs if not _list_outputs(yaml.safe_load(path.read_text()) or {}) <= needed],
        "study": _list_unused(home, "studies/*", before),
        "booster": _list_unused(home, "boosters/*", before),
        "candidate": _list_unused(home, "replay/candidates/[0-9]*", before),
    }
    gone = Counter(_read_inode(file) for group in paths.values() for path in group for file in _list_files(path))
    unused = _list_unused(home, "periods/*/*", before)
    # What is linked elsewhere too is part of data that stays: those are hard links of the periods' files.
    paths["period"] = [
        path
        for path in unused
        if all(file.lstat().st_nlink <= 1 + gone[_read_inode(file)] for file in _list_files(path))
    ]
    return [(kind, path) for kind, group in paths.items() for path in group]


def _list_unneeded_evidence(home: Path, recipes: Collection[str], before: float) -> list[Path]:
    """Of recipes that no version has. A recipe that is not decided yet is looked at again and again, and so is new."""
    return [path for path in _list_unused(home, "evidence/*", before) if path.name not in recipes]


def _find_needed(cache: Path, folders: Iterable[Path]) -> set[str]:
    """The hashes of the outputs that the locks name, and of the files of those that are folders."""
    stages = [entry for folder in folders for entry in pipeline.read_lock(folder).get("stages", {}).values()]
    outputs = {md5 for entry in stages for md5 in _list_outputs(entry)}
    listings = [cache / "files" / "md5" / md5[:2] / md5[2:] for md5 in outputs if md5.endswith(".dir")]
    return outputs | {entry["md5"] for path in listings if path.exists() for entry in json.loads(path.read_bytes())}


def _list_outputs(entry: Mapping[str, Any]) -> set[str]:
    """The hashes of a stage's outputs, by its entry in a lock or in DVC's memory of runs."""
    return {out["md5"] for out in entry.get("outs", []) if "md5" in out}


def _list_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _list_unused(home: Path, pattern: str, before: float) -> list[Path]:
    """The paths of which no file was made, linked or unlinked since a time."""
    return [
        path
        for path in sorted(home.glob(pattern))
        if max(file.stat().st_ctime for file in [path, *_list_files(path)]) < before
    ]


def _read_inode(file: Path) -> Inode:
    status = file.lstat()
    return status.st_dev, status.st_ino


def _count_bytes(path: Path, links: Counter[Inode]) -> int:
    """The bytes that removing a path gives back: a file counts with the last of its links, which `links` counts."""
    paths = _list_files(path)
    links.update(map(_read_inode, paths))
    unique = {_read_inode(file): file.lstat() for file in paths}
    return sum(status.st_size for inode, status in unique.items() if links[inode] >= status.st_nlink)


def _remove(kind: Kind, path: Path) -> None:
    if kind == "workspace":
        locks.remove_ownerless(path)
    elif path.is_dir():
        files.discard_folder(path)
    else:
        path.unlink(missing_ok=True)


def main(*, do: bool = False, no_versions: bool = False, shared_cache: bool = False) -> None:
    """Show what could be freed on disk, or free it.

    Args:
        do: Free it; without this nothing is touched.
        no_versions: Free data although no version is registered.
        shared_cache: Free a DVC cache outside the checkout and the home.
    """
    try:
        freed = collect(Path.cwd(), dry=not do, no_versions=no_versions, shared_cache=shared_cache)
    except ValueError as error:
        raise SystemExit(f"gc: {error}") from None
    for kind in sorted({item.kind for item in freed}):
        sizes = [item.size for item in freed if item.kind == kind]
        print(f"{sum(sizes) / 1e6:>10,.1f} MB  {len(sizes):>6} {kind}s")
    done = "freed" if do else "could be freed: `make gc DO=1` frees it"
    print(f"{sum(item.size for item in freed) / 1e6:>10,.1f} MB  in all {done}")


if __name__ == "__main__":
    cyclopts.run(main)
