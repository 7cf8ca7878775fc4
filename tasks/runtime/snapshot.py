"""snapshot: code as it travels to a machine without git: the files of a commit, and a list of their hashes.

`evergreen deploy --code store` brings it to the store of a team, and a pull step of Prefect's from there to a worker.

    code/<commit>/<file>
    code/<commit>/.evergreen-code.json    the commit and the hash of each file

The list proves that the code is that of the commit: an edited file is refused, since no patch could tell what was run.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.runtime import files, store

LIST, FORMAT = ".evergreen-code.json", files.Format("code", 1)
FOLDER = "code"


@dataclass(frozen=True)
class Snapshot:
    """The code of a commit.

    Attributes:
        files: The SHA-256 of each file's bytes, by its path.
        programs: Those that can be executed.
    """

    commit: str
    files: Mapping[str, str]
    programs: Sequence[str]


def read_snapshot(folder: Path) -> Snapshot | None:
    """What a folder's list says; None where it has none.

    Raises:
        ValueError: Another format, or files that are not those of the list.
    """
    try:
        content = json.loads((folder / LIST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    FORMAT.check(content.get("format"), folder / LIST)
    snapshot = Snapshot(content["commit"], content["files"], content["programs"])
    if edited := [name for name, digest in snapshot.files.items() if _hash(folder / name) != digest]:
        raise ValueError(
            f"code without git must be that of its commit {snapshot.commit[:12]}, but {len(edited)} files of {folder} "
            f"are gone or edited ({', '.join(edited[:3])}{', ...' if edited[3:] else ''}). Edit a clone, commit, and "
            "deploy again."
        )
    return snapshot


def copy_snapshot(folder: Path, snapshot: Snapshot, root: Path) -> None:
    """Fill `root` with the files of a snapshot."""
    for name in snapshot.files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, root / name)
    for name in snapshot.programs:  # what no store knows
        (root / name).chmod(0o755)


def save_snapshot(folder: Path, commit: str, shared: store.Store) -> str:
    """Bring all files of a folder to the store, as the code of a commit. What is there stays.

    Returns:
        The folder's name in the store.
    """
    name = f"{FOLDER}/{commit}"
    if f"{name}/{LIST}" in shared.list_names(name):  # which comes last
        return name
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    for file, path in paths.items():
        shared.replace(f"{name}/{file}", path.read_bytes())
    content = {
        "format": FORMAT.mark,
        "commit": commit,
        "files": {file: _hash(path) for file, path in paths.items()},
        "programs": [file for file, path in paths.items() if os.access(path, os.X_OK)],
    }
    shared.add(f"{name}/{LIST}", files.to_json(content).encode())
    return name


def fetch_snapshot(commit: str, folder: Path, shared: store.Store) -> Snapshot | None:
    """Bring the code of a commit from the store into an empty folder; None where the store has it not."""
    name = f"{FOLDER}/{commit}"
    try:
        listed = shared.read(f"{name}/{LIST}")
    except FileNotFoundError:
        return None
    (folder / LIST).write_bytes(listed)
    for file in json.loads(listed)["files"]:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(shared.read(f"{name}/{file}"))
    return read_snapshot(folder)


def _hash(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
