"""packing: what a .zip or .gz holds, unpacked to a folder of the home."""

import gzip
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

from tasks.params import home

TORN = (  # the last two: locked, packed in an exotic way
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    NotImplementedError,
)


def scratch_root() -> Path:
    """Where files are unpacked: in the home, not among the system's, for they may hold personal data, in clear."""
    return home() / "unpacked"


def list_suffixes(file: Path) -> tuple[str, ...]:
    """What a file's name says of how it is packed and written, in small letters: .csv and .gz."""
    return tuple(suffix.lower() for suffix in file.suffixes[-2 if file.suffix.lower() == ".gz" else -1 :])


def unpack(file: Path, folder: Path) -> Path:
    """The file itself, or what a .zip or .gz holds, written to `folder`. Raises ValueError when it is torn."""
    if (suffix := file.suffix.lower()) not in PACKED:
        return file
    folder.mkdir(parents=True, exist_ok=True)
    try:
        name, source = PACKED[suffix](file)
        with source, (folder / name).open("wb") as copy:
            shutil.copyfileobj(source, copy)
    except TORN:
        raise ValueError(
            f"{file.name} is torn or locked: what it holds cannot be unpacked. Fetch it again, without a password"
        ) from None
    return folder / name


def _open_zip(file: Path) -> tuple[str, Any]:
    archive = zipfile.ZipFile(file)
    names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
    if len(names) != 1:
        raise ValueError(f"{file.name}: a zip must hold one file, but it holds {names or 'none'}")
    return Path(names[0]).name, archive.open(names[0])


def _open_gzip(file: Path) -> tuple[str, Any]:
    return file.stem, gzip.open(file)


PACKED = {".zip": _open_zip, ".gz": _open_gzip}
