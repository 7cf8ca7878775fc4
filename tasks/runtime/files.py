"""Files that are whole or absent: written under a temporary name, synced, and renamed last."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _flush(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def publish(target: Path, write: Callable[[Path], None]) -> None:
    """Write a file under a temporary name and rename it: a file's existence means that it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.new")
    try:
        write(new)
        _flush(new)
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


def publish_json(target: Path, value: Any) -> None:
    publish_text(target, json.dumps(value, indent=1, sort_keys=True, default=str, allow_nan=False) + "\n")


def publish_text(target: Path, text: str) -> None:
    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    publish(target, write)
