"""objects: the files of DVC's cache are checked by content before DVC gives them back or keeps them.

DVC trusts a cached file that is read-only. Root, a disk that loses bits and `chmod` change such files all the same. So
every file that a stage's run asks for is hashed (0.7 GB/s), and one with other bytes is removed and named in the log.
DVC then finds that it lacks an output of the stage, and the stage runs again. A bare `dvc repro` is not checked.
Nothing here imports dvc: tasks/runtime/pipeline.py hands the cache over.
"""

import hashlib
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks import log

Signature = tuple[int, int, int, int]


def check_content(store: Any, *, stage: str) -> None:
    """Have DVC's object store check each object by content. `store` is a `LocalHashFileDB`."""
    shelf = Shelf(stage)
    check, get = store.check, store.get

    def checked(oid: str, *args: Any, **kwargs: Any) -> Any:
        shelf.remove_damaged(Path(store.oid_to_path(oid)), oid)
        return check(oid, *args, **kwargs)

    def got(oid: str) -> Any:
        if oid.endswith(".dir"):  # DVC reads the listing of a folder before it asks whether that is sound
            shelf.remove_damaged(Path(store.oid_to_path(oid)), oid)
        return get(oid)

    store.check, store.get = checked, got


def link_apart(reflink: Callable[[str, str], None]) -> Callable[[str, str], None]:
    """A function that clones a file as `reflink` does, but under another name first.

    On Linux DVC's own opens its target and empties it before it asks whether the disk can clone. Where another run has
    just put the same object there, that empties the object, and the files of that run that are links to it.
    """

    def clone(source: str, target: str) -> None:
        temporary = f"{target}.{uuid.uuid4().hex}"
        try:
            reflink(source, temporary)
            os.link(temporary, target)  # FileExistsError where another run was first
        finally:
            Path(temporary).unlink(missing_ok=True)

    return clone


@dataclass(frozen=True)
class Shelf:
    """What of a cache has been hashed during one run of a stage."""

    stage: str
    sound: dict[Path, Signature] = field(default_factory=dict)

    def remove_damaged(self, path: Path, oid: str) -> None:
        """Remove an object that does not have the hash that it is named by."""
        try:
            before = _signature(path)
            if self.sound.get(path) == before:
                return
            damaged = _md5(path) != oid.removesuffix(".dir")
        except FileNotFoundError:
            return
        if damaged:
            path.unlink(missing_ok=True)
            log.warning(
                "%s: DVC's cache held other bytes than dvc.lock names (%s). The file is removed, and what it was an "
                "output of is made again.",
                self.stage,
                path,
            )
        else:
            self.sound[path] = before


def _signature(path: Path) -> Signature:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
