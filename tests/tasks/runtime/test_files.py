"""A file under its final name is whole, and one of another version is refused with the way out."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.runtime import files, store
from tests.conftest import tree

ROOT = Path(__file__).parents[3]


def test_what_is_published_replaces_the_old_file_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "reports" / "figures.json"
    files.publish_json(target, {"b": 1, "a": [1.5, None]})
    assert json.loads(target.read_text()) == {"a": [1.5, None], "b": 1}

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        files.publish(target, fail)
    assert list(tree(tmp_path)) == ["reports/figures.json"]
    assert json.loads(target.read_text())["b"] == 1


@pytest.mark.parametrize("depth", [1, 3])
def test_the_name_of_each_new_folder_is_on_disk(depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []

    def sync(path: Path, whole: Callable[[Path], None] = files.sync) -> None:
        synced.append(path)
        whole(path)

    monkeypatch.setattr(files, "sync", sync)
    folder = tmp_path.joinpath(*"abc"[:depth])
    assert store.FolderStore(tmp_path).add(str(folder.relative_to(tmp_path) / "file"), b"1")
    above = [path for path in (folder, *folder.parents) if path.is_relative_to(tmp_path)]
    assert set(above) <= set(synced)
    synced.clear()
    files.publish_text(folder / "d" / "e" / "file", "1")
    assert {folder, folder / "d", folder / "d" / "e"} <= set(synced)


def test_a_number_that_json_does_not_know_is_refused_rather_than_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.publish_json(tmp_path / "x.json", {"a": float("nan")})
    assert tree(tmp_path) == {}


def test_a_full_disk_leaves_no_half_file_under_its_final_name(tmp_path: Path) -> None:
    """The limit on a file's size stands in for the full disk: a write fails in its middle."""
    script = (
        "import resource; from pathlib import Path; from tasks.runtime import files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "files.publish_text(Path('text'), 'x' * 5000)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == 1
    assert b"OSError: [Errno 27] File too large" in done.stderr
    assert tree(tmp_path) == {}


def test_a_format_takes_its_own_mark_alone() -> None:
    journal = files.Format("journal", 2)
    journal.check("journal/2", "a.parquet")
    for mark in ("journal/1", "journal/3", "ledger/2", None):
        with pytest.raises(ValueError, match=r"^a\.parquet is in format .* reads journal/2.* EVERGREEN_HOME"):
            journal.check(mark, "a.parquet")
