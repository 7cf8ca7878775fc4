"""Files and folders that are whole or absent: written under a temporary name, put on disk, and renamed last.

A file that one module writes and another reads has one schema, beside the code that writes it, and a `Format` that
stands in the file. A change that an older reader would misread raises the version. No release is out yet, so a file of
another version is refused, with the way out. From the first release on, the reader migrates older versions, and a test
holds a sample of each.
"""

import contextlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT_KEY = "evergreen.format"  # where Parquet's metadata, a model's attributes and MLflow's tags hold the mark
READ_ONLY = 0o444


def sync(path: Path) -> None:
    """Put a file's bytes on disk, or a folder's names: a new file's name is on disk only when its folder is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing. Their names are on disk when this returns."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def publish(target: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name and rename it: a file's existence means that it is whole."""
    make_folder(target.parent)
    temporary = target.with_name(f".{target.name}.new")
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def publish_json(target: Path, value: Any) -> None:
    publish_text(target, to_json(value))


def to_json(value: Any) -> str:
    """A value as text that a person can read, the same each time."""
    return json.dumps(value, indent=1, sort_keys=True, default=str, allow_nan=False) + "\n"


def publish_text(target: Path, text: str) -> None:
    publish(target, lambda path: path.write_text(text, encoding="utf-8"))


@contextlib.contextmanager
def publish_folder(target: Path, *, prefix: str = ".new-", temporary: Path | None = None) -> Iterator[Path]:
    """A folder to fill, which gets the name `target` when the block ends. After an error nothing is left.

    Args:
        target: must not exist as a folder with files; its parent is made.
        prefix: of the temporary folder's random name, which only its owner may read.
        temporary: the temporary folder, where others must know its name.

    Raises:
        OSError: among others, where another process has published the target meanwhile.
    """
    make_folder(target.parent)
    if temporary is None:
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    else:
        temporary.mkdir()
    try:
        yield temporary
        temporary.rename(target)
        sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def discard_folder(folder: Path) -> None:
    """Remove a folder, by a rename first: nobody finds half of it. Another process may have been faster."""
    renamed = folder.with_name(f".gone-{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(renamed)
    shutil.rmtree(renamed, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """A read-only file under a second name: a hard link, or a copy where a link would not protect the first.

    Root may write into a read-only file, and would write into both. Nor does every file system have links.
    """
    try:
        if os.geteuid() == 0:
            raise OSError("root may write into read-only files")
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        target.chmod(READ_ONLY)
        sync(target)


@dataclass(frozen=True)
class Format:
    """A kind of file and the version that this code writes and reads."""

    name: str
    version: int

    @property
    def mark(self) -> str:
        """What stands in the file, such as `journal/1`."""
        return f"{self.name}/{self.version}"

    def check(self, mark: str | None, where: object) -> None:
        """Refuses a file of another kind or version.

        Args:
            mark: what stands in the file; None where nothing does.
            where: the file, as the message names it.

        Raises:
            ValueError: the mark is not this format's; the message says what to do.
        """
        if mark != self.mark:
            raise ValueError(
                f"{where} is in format {mark or 'unknown'}, but this evergreen reads {self.mark}. Use the evergreen "
                "that wrote it, or begin a new home: set EVERGREEN_HOME to an empty folder and train again."
            )
