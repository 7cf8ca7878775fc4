"""tasks.runtime.pipeline: stages by DVC, what they find in its cache, and what of it is not to be trusted."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tasks import params
from tasks.runtime import pipeline
from tasks.runtime.pipeline import run_stage
from tasks.runtime.workspaces import open_workspace
from tests.tasks.runtime.conftest import FILES, content, dvc, objects, run_all, write


def test_stages_come_after_what_they_need(checkout: Path) -> None:
    expected = {"ingest": (), "train": ("ingest",), "report": ("train",)}
    assert list(pipeline.list_stages(checkout).items()) == list(expected.items())


def test_dvc_repro_takes_what_a_workspace_made_and_has_the_same_hashes(checkout: Path) -> None:
    with open_workspace(checkout) as space:
        assert run_all(space) == ["ran", "ran", "ran"]
        made = pipeline.read_lock(space.root)
    said = dvc(checkout, "repro")
    assert said.count("is cached - skipping run") == 2  # ingest alone is always run
    assert pipeline.read_lock(checkout) == made


def test_a_workspace_takes_what_dvc_repro_made_and_has_the_same_hashes(checkout: Path) -> None:
    dvc(checkout, "repro")
    (checkout / "dvc.lock").rename(checkout / "elsewhere")
    with open_workspace(checkout) as space:
        assert run_all(space) == ["ran", "cached", "cached"]
        assert pipeline.read_lock(space.root) == yaml.safe_load((checkout / "elsewhere").read_text())


def test_a_stage_whose_outputs_are_there_is_unchanged(checkout: Path) -> None:
    with open_workspace(checkout) as space:
        run_all(space)
        assert run_all(space) == ["ran", "unchanged", "unchanged"]


def test_a_changed_parameter_runs_the_stages_that_use_it_and_no_others(checkout: Path) -> None:
    with open_workspace(checkout) as space:
        run_all(space)
    with open_workspace(checkout, overrides={"train.trials": 5}) as space:
        assert run_all(space) == ["ran", "ran", "ran"]
    with open_workspace(checkout) as space:
        assert run_all(space) == ["ran", "cached", "cached"]


def test_a_fresh_workspace_uses_nothing_made_before_and_leaves_nothing(checkout: Path) -> None:
    with open_workspace(checkout) as space:
        run_all(space)
        made = pipeline.read_lock(space.root)
    before = objects(checkout)
    write(params.home(checkout), {"pii.key": "k", "studies/a.log": "trials"})
    with open_workspace(checkout, fresh=True) as space:
        assert run_all(space) == ["ran", "ran", "ran"]
        assert pipeline.read_lock(space.root) == made
        assert content(Path(space.env["EVERGREEN_HOME"])) == {"pii.key": b"k"}
        own = {name: folder for name, folder in space.env.items() if name != "EVERGREEN_CHECKOUT"}
        assert (own.pop("EVERGREEN_STORE"), own.pop("EVERGREEN_LOCKS")) == ("", "")  # a team's are not used
        assert all(Path(folder).is_relative_to(space.root) for folder in own.values())
    assert objects(checkout) == before


def test_force_runs_a_stage_that_has_not_changed(checkout: Path) -> None:
    with open_workspace(checkout) as space:
        run_all(space)
        assert run_stage(space.root, "train", env=space.env, force=True).status == "ran"


def test_outputs_are_links_of_the_cache_and_making_them_anew_leaves_it_whole(checkout: Path) -> None:
    with open_workspace(checkout) as space:
        run_all(space)
        model = space.root / "models" / "model.txt"
        assert model.stat().st_nlink > 1
        assert model.stat().st_mode & 0o222 == 0
    with open_workspace(checkout, overrides={"train.rate": 0.5}) as space:
        run_stage(space.root, "ingest", env=space.env)
        run_stage(space.root, "train", env=space.env)
    assert broken(checkout) == []


def flip(path: Path) -> None:
    """64 bytes of a file in place, with its size, mode and time as they were."""
    before, held = path.stat(), bytearray(path.read_bytes())
    middle = len(held) // 2
    held[middle : middle + 64] = bytes(byte ^ 1 for byte in held[middle : middle + 64])
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.write(held)
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncate(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"")
    path.chmod(0o444)


def rename_in_listing(path: Path) -> None:
    """A folder's listing that is sound JSON of another folder."""
    text = path.read_text().replace("1.txt", "9.txt")
    path.chmod(0o644)
    path.write_text(text)
    path.chmod(0o444)


def outputs(root: Path) -> dict[str, dict[str, bytes]]:
    return {name: content(root / name) for name in ("data", "models", "reports")}


def cached_as(checkout: Path, out: str, *, home: Path | None = None) -> list[Path]:
    """The objects of an output: the file's, or those of the folder's files and its listing. By the lock of the
    checkout, or the last run's in a home."""
    hashes = {
        entry["path"]: entry["md5"]
        for stage in pipeline.read_lock(home or checkout)["stages"].values()
        for entry in stage["outs"]
    }
    name = hashes[out]
    listing = checkout / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:]
    if not name.endswith(".dir"):
        return [listing]
    inside = [entry["md5"] for entry in json.loads(listing.read_text())]
    return [*(listing.parents[1] / each[:2] / each[2:] for each in inside), listing]


@pytest.mark.parametrize("locked", [True, False], ids=["by the lock", "by the run cache"])
@pytest.mark.parametrize(
    ("out", "place", "spoil", "statuses"),
    [
        ("data/raw", 0, flip, ["ran", "cached", "cached"]),
        ("data/raw", -1, flip, ["ran", "cached", "cached"]),
        ("data/raw", -1, truncate, ["ran", "cached", "cached"]),
        ("data/raw", -1, rename_in_listing, ["ran", "cached", "cached"]),
        ("models/model.txt", 0, flip, ["cached", "ran", "cached"]),
        ("reports/metrics.json", 0, truncate, ["cached", "ran", "cached"]),
    ],
)
def test_a_cached_output_with_other_bytes_is_made_again_and_that_is_logged(
    checkout: Path,
    caplog: pytest.LogCaptureFixture,
    out: str,
    place: int,
    spoil: Callable[[Path], None],
    statuses: list[str],
    locked: bool,
) -> None:
    write(checkout, {"dvc.yaml": FILES["dvc.yaml"].replace("always_changed: true, ", "")})
    with open_workspace(checkout) as space:
        run_all(space)
        made = outputs(space.root)
        (checkout / "dvc.lock").write_bytes((space.root / "dvc.lock").read_bytes())
    spoil(cached_as(checkout, out)[place])
    if not locked:
        (checkout / "dvc.lock").unlink()
    with open_workspace(checkout) as space:
        assert run_all(space) == statuses
        assert outputs(space.root) == made
    assert "DVC's cache held other bytes than dvc.lock names" in caplog.text
    assert broken(checkout) == []


def test_a_stage_that_runs_again_is_not_given_what_the_cache_holds_of_it(checkout: Path) -> None:
    """Its output has the hash of a cached file with other bytes: DVC would link that file into its place."""
    with open_workspace(checkout) as space:
        run_all(space)
        whole = (space.root / "models" / "model.txt").read_bytes()
        (checkout / "dvc.lock").write_bytes((space.root / "dvc.lock").read_bytes())
    flip(cached_as(checkout, "models/model.txt")[0])
    (checkout / "dvc.lock").unlink()
    write(checkout, {"train.py": FILES["train.py"] + "# the same in other words"})
    with open_workspace(checkout) as space:
        run_all(space)
        assert (space.root / "models" / "model.txt").read_bytes() == whole


def broken(checkout: Path) -> list[Path]:
    """Objects of the cache whose content is not what their name says."""
    files = [path for path in (checkout / ".dvc" / "cache" / "files" / "md5").rglob("*") if path.is_file()]
    names = {path: (path.parent.name + path.name).removesuffix(".dir") for path in files}
    return [path for path, name in names.items() if hashlib.md5(path.read_bytes()).hexdigest() != name]


def test_a_remote_that_is_given_by_a_relative_path_is_the_same_from_a_workspace(checkout: Path) -> None:
    from dvc.config import Config

    text = '[remote "store"]\n    url = ../../store\n'
    write(checkout, {".dvc/config": FILES[".dvc/config"] + text, ".dvc/config.local": '[remote "store"]\n  jobs = 3\n'})
    with open_workspace(checkout) as space:
        remote = Config(str(space.root / ".dvc")).read()["remote"]["store"]
    assert Path(remote["url"]).resolve() == checkout.parent / "store"
    assert int(remote["jobs"]) == 3


def test_an_object_that_another_run_has_just_put_there_is_not_emptied(tmp_path: Path) -> None:
    """DVC tries to clone a file into its cache first, and empties what is there before it knows whether it can."""
    from dvc_objects.fs import system

    mine, other, cached = (tmp_path / name for name in ("mine", "other", "cached"))
    mine.write_text("same")
    other.write_text("same")
    os.link(other, cached)
    pipeline.clone_apart()
    with pytest.raises(OSError):
        system.reflink(str(mine), str(cached))
    assert (other.read_text(), cached.read_text()) == ("same", "same")
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "other", "cached"}
