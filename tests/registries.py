"""MLflow's empty tables for tests that are not about them: MLflow makes them once, and each home gets a copy."""

import contextlib
import functools
import sqlite3
import tempfile
from pathlib import Path

from tasks.promotion import database, tracking


def place_tables(home: Path) -> str:
    """Put a database in a home as MLflow leaves it after some seconds; its address."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / database.DATABASE
    path.write_bytes(_make_tables())
    return database.sqlite_uri(path)


@functools.cache
def _make_tables() -> bytes:
    tracking.load_stores()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        path = Path(folder) / database.DATABASE
        tracking.load_mlflow().MlflowClient(database.sqlite_uri(path)).search_experiments()
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return connection.serialize()
