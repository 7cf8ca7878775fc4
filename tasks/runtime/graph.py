"""graph: dvc.yaml as data, and what DVC's cache has of each stage. It reads, and writes nothing.

DVC itself writes where it looks: locks, hashes of files, its own folders. Here the same questions are answered from the
same files: would a stage run, or does a lock or the cache of runs have it with these very inputs?
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tasks.params import yamltext
from tasks.runtime import project

LOCK = "dvc.lock"


@dataclass(frozen=True)
class Node:
    """A stage of dvc.yaml, with the paths and values of params.yaml filled in.

    Attributes:
        always: it runs in every run.
    """

    name: str
    command: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    params: Mapping[str, Any]
    always: bool = False


@dataclass(frozen=True)
class Content:
    """A file or folder by DVC's hash, and of a folder the hash of each file in it."""

    md5: str
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """What a stage read and made in an earlier run. `origin` says where that stands."""

    command: str
    deps: Mapping[str, str]
    params: Mapping[str, Any]
    outs: Mapping[str, str]
    origin: Literal["unchanged", "cached"] = "unchanged"

    def fits(self, node: Node, deps: Mapping[str, str]) -> bool:
        """Whether the stage would read just that again."""
        same = (self.command, dict(self.deps), dict(self.params)) == (node.command, dict(deps), dict(node.params))
        return same and self.outs.keys() == set(node.outs)


# --- dvc.yaml --------------------------------------------------------------------------------------------------------


def read_nodes(folder: Path) -> list[Node]:
    """The stages of a folder's dvc.yaml, each after those that it needs."""
    values = _load(folder / "params.yaml")
    stages = _fill_in(yamltext.read(folder / "dvc.yaml")[0]["stages"], values)
    nodes = {name: _make_node(name, stage, values) for name, stage in stages.items()}
    ordered: list[Node] = []
    while left := [node for name, node in nodes.items() if node not in ordered]:
        made = {out for node in left for out in node.outs}
        ready = [node for node in left if not any(find_out(dep, made) for dep in node.deps)]
        if not ready:
            raise ValueError(f"the stages {', '.join(node.name for node in left)} of dvc.yaml need each other")
        ordered.append(ready[0])
    return ordered


def find_out(path: str, outs: Iterable[str]) -> str | None:
    """The output that a path is, or lies in."""
    return next((out for out in outs if path == out or path.startswith(f"{out}/")), None)


def _make_node(name: str, stage: Mapping[str, Any], values: Mapping[str, Any]) -> Node:
    kinds = [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, ())]
    outs = [entry if isinstance(entry, str) else next(iter(entry)) for entry in kinds]
    params = {key: _find_value(values, key) for key in stage.get("params", ())}
    command, always = str(stage["cmd"]), bool(stage.get("always_changed"))
    return Node(name, command, tuple(sorted(stage.get("deps", ()))), tuple(sorted(outs)), params, always)


def _find_value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part] if isinstance(values, Mapping) and part in values else None
    return values


def _fill_in(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {_fill_in(name, values): _fill_in(item, values) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_fill_in(item, values) for item in value]
    if isinstance(value, str):
        return re.sub(r"\$\{([\w.]+)\}", lambda match: str(_find_value(values, match[1])), value)
    return value


def _load(path: Path) -> dict[str, Any]:
    """A YAML file with the values that DVC compares."""
    from dvc.utils.serialize import load_yaml

    return dict(load_yaml(str(path)) or {})


# --- DVC's cache -----------------------------------------------------------------------------------------------------


class Cache:
    """What has been made before: by the locks of the last runs, and by the cache's record of all runs."""

    def __init__(self, folder: Path, locks: Sequence[Path]) -> None:
        self.folder = folder
        stages = [_load(path).get("stages", {}) for path in locks if path.exists()]
        self.locked = [{name: _read_entry(entry) for name, entry in lock.items()} for lock in stages]

    def find_last(self, name: str) -> Entry | None:
        """What a stage read and made in the last run that is known, whether or not it would be so again."""
        return next((lock[name] for lock in self.locked if name in lock), None)

    def find(self, node: Node, deps: Mapping[str, str]) -> Entry | None:
        """What a stage has made before of these very inputs, where the cache still has it all."""
        entries = [lock[node.name] for lock in self.locked if node.name in lock]
        if run := None if node.always else self._find_run(node, deps):
            entries.append(run)
        return next((one for one in entries if one.fits(node, deps) and self._has_all(one.outs.values())), None)

    def open(self, md5: str) -> Content:
        """A hash of the cache with what it holds."""
        return Content(md5, self._list_folder(md5) if md5.endswith(".dir") else {})

    def read(self, md5: str) -> bytes:
        """A file's bytes. Raises FileNotFoundError."""
        return self._path_of(md5).read_bytes()

    def _find_run(self, node: Node, deps: Mapping[str, str]) -> Entry | None:
        from dvc.stage.cache import _get_cache_hash

        spelled = [{"path": path, "hash": "md5", "md5": md5} for path, md5 in sorted(deps.items())]
        inputs: dict[str, Any] = {"cmd": node.command, "deps": spelled}
        if node.params:
            inputs["params"] = {"params.yaml": dict(node.params)}
        key = _get_cache_hash(inputs | {"outs": [{"path": path} for path in node.outs]}, key=True)
        runs = sorted((self.folder / "runs" / key[:2] / key).glob("*"), key=lambda path: path.stat().st_mtime_ns)
        return _read_entry(_load(runs[-1]), origin="cached") if runs else None

    def _path_of(self, md5: str) -> Path:
        return self.folder / "files" / "md5" / md5[:2] / md5[2:]

    def _list_folder(self, md5: str) -> dict[str, str]:
        try:
            return {file["relpath"]: file["md5"] for file in json.loads(self.read(md5))}
        except (FileNotFoundError, ValueError):
            return {}

    def _has_all(self, hashes: Iterable[str]) -> bool:
        return all(
            self._path_of(one).exists() and all(self._path_of(file).exists() for file in self.open(one).files.values())
            for one in hashes
        )


def open_cache(checkout: Path, home: Path) -> Cache:
    """A checkout's cache, with the lock of the last retrain and then the checkout's own."""
    folder = Path(checkout, project.find_cache(checkout))
    return Cache(folder, [home / LOCK, checkout / LOCK])


def _read_entry(entry: Mapping[str, Any], origin: Literal["unchanged", "cached"] = "unchanged") -> Entry:
    deps, outs = ({one["path"]: str(one.get("md5")) for one in entry.get(kind, ())} for kind in ("deps", "outs"))
    return Entry(str(entry["cmd"]), deps, dict(entry.get("params", {}).get("params.yaml", {})), outs, origin)


# --- files as DVC hashes them ----------------------------------------------------------------------------------------


def hash_path(path: Path) -> Content:
    """A file or folder by DVC's hash. Raises FileNotFoundError."""
    if not path.is_dir():
        return Content(_hash_bytes(path.read_bytes()))
    files = {
        file.relative_to(path).as_posix(): _hash_bytes(file.read_bytes())
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
    listing = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return Content(f"{_hash_bytes(json.dumps(listing, sort_keys=True).encode())}.dir", files)


def _hash_bytes(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
