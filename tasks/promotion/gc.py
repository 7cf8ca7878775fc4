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
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cyclopts
import yaml

from tasks import params
from tasks.promotion import registry, tracking
from tasks.runtime import locks, pipeline, workspaces

Kind = Literal["workspace", "object", "run", "study", "candidate", "period"]
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True)
class Freed:
    """What `gc` removes, or would: `size` counts the bytes that the disk gets back, so a hard link's are 0."""

    kind: Kind
    path: Path
    size: int


def gc(
    checkout: Path,
    *,
    dry: bool,
    no_versions: bool = False,
    shared_cache: bool = False,
    say: Callable[[str], None] = print,
) -> list[Freed]:
    """What was freed, or with `dry` would be. The two flags say that what is refused without them is meant."""
    known = registry.open_registry(params.load(checkout / "params.yaml").registry)
    versions, address = known.versions(), tracking.hide_password(known.tracking.uri)
    say(f"{len(versions)} versions of {known.model} in {address}: what they were made of stays")
    with tempfile.TemporaryDirectory() as scratch:
        locks = [_lock_of(known, version, Path(scratch)) for version in versions]
        if not dry and not shared_cache:
            _check_cache(checkout)
        if not dry and not versions and not no_versions:
            _check_versions(known.model, address, would=free(checkout, dry=True))
        return free(checkout, keep_locks=locks, dry=dry)


def _check_cache(checkout: Path) -> None:
    cache, places = Path(pipeline.find_cache(checkout)).resolve(), (checkout, params.home(checkout))
    if not any(cache.is_relative_to(place.resolve()) for place in places):
        raise ValueError(
            f"the DVC cache must lie in the checkout or in the home to be freed, but it is {cache}: other projects may "
            "need what this one does not. Say SHARED_CACHE=1 (--shared-cache) if no other uses it."
        )


def _check_versions(model: str, address: str, *, would: Iterable[Freed]) -> None:
    if objects := sum(each.kind == "object" for each in would):
        raise ValueError(
            f"{address} holds no version of {model}, and {objects} objects of data would be freed. Set "
            "MLFLOW_TRACKING_URI and registry.model to those of the runs, or say NO_VERSIONS=1 (--no-versions) if "
            "there is none yet."
        )


def _lock_of(known: registry.Registry, version: registry.Version, into: Path) -> Path:
    folder = into / str(version.number)
    known.runs.fetch(version.run_id, "dvc.lock", folder)
    return folder


def free(checkout: Path, *, keep_locks: Iterable[Path] = (), dry: bool = True, days: float = 14) -> list[Freed]:
    """Free what neither the locks of the given folders, nor the checkout's, nor a running workspace's need.

    Objects and remembered runs of DVC, left workspaces, and what was last used `days` ago of studies, periods and the
    candidates of replays. Waits for the run that is under way. Branches and tags of git do not count: their data is
    made again when asked for.
    """
    checkout = checkout.resolve()
    with contextlib.ExitStack() as held:
        if not dry:
            held.enter_context(locks.take_turn(params.home(checkout)))
        living = [root for root in workspaces.list_workspaces(params.home(checkout)) if workspaces.has_owner(root)]
        for root in () if dry else (checkout, *living):
            held.enter_context(_locked(root))  # between an output's way into the cache and its line in dvc.lock
        found = _unneeded(checkout, keep_locks=[checkout, *living, *keep_locks], before=time.time() - days * 86400)
        sizes = _sizes([path for _, path in found])
        for kind, path in () if dry else found:
            _free(kind, path)
    return [Freed(kind, path, size) for (kind, path), size in zip(found, sizes, strict=True)]


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    if not (root / ".dvc").is_dir():
        yield
        return
    with pipeline.open_project(root) as repo, repo.lock:
        yield


def _unneeded(checkout: Path, *, keep_locks: Iterable[Path], before: float) -> list[tuple[Kind, Path]]:
    shared, cache = params.home(checkout), Path(pipeline.find_cache(checkout))
    needed = _needed(cache, keep_locks)
    found: list[tuple[Kind, Path]] = [
        ("workspace", root) for root in workspaces.list_workspaces(shared) if not workspaces.has_owner(root)
    ]
    found += [
        ("object", path) for path in _files(cache / "files" / "md5") if path.parent.name + path.name not in needed
    ]
    found += [("run", path) for path in _files(cache / "runs") if not _made(_read_yaml(path)) <= needed]
    found += [("study", path) for path in sorted((shared / "studies").glob("*")) if _used(path) < before]
    found += [
        ("candidate", path)
        for path in sorted((shared / "replay" / "candidates").glob("[0-9]*"))
        if _used(path) < before
    ]
    old = [path for path in sorted((shared / "periods").glob("*/*")) if _used(path) < before]
    gone = _links(path for _, path in found)
    return found + [("period", path) for path in old if not _linked_elsewhere(path, gone)]


def _needed(cache: Path, folders: Iterable[Path]) -> set[str]:
    """The outputs that the locks name, and the files of those that are folders."""
    named = {
        value
        for folder in folders
        for stage in pipeline.read_lock(folder).get("stages", {}).values()
        for value in _made(stage)
    }
    listings = [cache / "files" / "md5" / value[:2] / value[2:] for value in named if value.endswith(".dir")]
    return named | {entry["md5"] for path in listings if path.exists() for entry in json.loads(path.read_bytes())}


def _made(stage: Mapping[str, Any]) -> set[str]:
    return {out["md5"] for out in stage.get("outs", []) if "md5" in out}


def _read_yaml(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()) or {})


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _used(path: Path) -> float:
    """When a file of it was last made, linked or unlinked."""
    return max((file.stat().st_ctime for file in [path, *_files(path)]), default=0.0)


def _links(paths: Iterable[Path]) -> Counter[tuple[int, int]]:
    stats = [file.lstat() for path in paths for file in _files(path)]
    return Counter((stat.st_dev, stat.st_ino) for stat in stats)


def _linked_elsewhere(path: Path, gone: Counter[tuple[int, int]]) -> bool:
    """Whether a period is part of data that stays: those are hard links of its files."""
    stats = [file.lstat() for file in _files(path)]
    return any(stat.st_nlink - gone[stat.st_dev, stat.st_ino] > 1 for stat in stats)


def _sizes(paths: list[Path]) -> list[int]:
    """The bytes that removing each gives back, in this order: a file's count with the last of its links."""
    gone: Counter[tuple[int, int]] = Counter()
    return [sum(_last_link(file, gone) for file in _files(path)) for path in paths]


def _last_link(file: Path, gone: Counter[tuple[int, int]]) -> int:
    stat = file.lstat()
    gone[stat.st_dev, stat.st_ino] += 1
    return stat.st_size if gone[stat.st_dev, stat.st_ino] >= stat.st_nlink else 0


def _free(kind: Kind, path: Path) -> None:
    """A folder goes by a rename first: nobody finds half of it."""
    if kind == "workspace":
        workspaces.remove_if_dead(path)
    elif path.is_dir():
        shutil.rmtree(path.rename(path.with_name(f".gone-{secrets.token_hex(4)}")))
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
        freed = gc(Path.cwd(), dry=not do, no_versions=no_versions, shared_cache=shared_cache)
    except ValueError as error:
        raise SystemExit(f"gc: {error}") from None
    _print(freed, done=do)


def _print(freed: list[Freed], *, done: bool) -> None:
    for kind in sorted({each.kind for each in freed}):
        of_kind = [each.size for each in freed if each.kind == kind]
        print(f"{_bytes(sum(of_kind)):>10}  {len(of_kind):>6} {kind}s")
    told = "freed" if done else "could be freed: `make gc DO=1` frees it"
    print(f"{_bytes(sum(each.size for each in freed)):>10}  in all {told}")


def _bytes(size: float) -> str:
    found = next(((scale, unit) for scale, unit in UNITS if size >= scale), (1, "B"))
    return f"{size / found[0]:.1f} {found[1]}"


if __name__ == "__main__":
    cyclopts.run(main)
