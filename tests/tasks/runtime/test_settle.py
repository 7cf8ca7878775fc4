"""tasks.runtime.pipeline settles what has not changed since the last run, in one question to DVC, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import params
from tasks.runtime import pipeline, workspaces
from tasks.runtime.workspaces import open_workspace
from tests.tasks.runtime.conftest import FILES, content, objects, run_all, write
from tests.tasks.runtime.test_pipeline import cached_as, flip, outputs, truncate

REST = ["train", "report"]


def run_once(checkout: Path) -> dict[str, dict[str, bytes]]:
    """A first run, which leaves its lock; what it made."""
    with open_workspace(checkout) as space:
        run_all(space)
        workspaces.keep_lock(space)
        return outputs(space.root)


def settle(space: workspaces.Workspace) -> list[str]:
    """The stages that are settled, after ingest."""
    pipeline.run_stage(space.root, "ingest", env=space.env, on_line=lambda _: None)
    settled = pipeline.settle_stages(space.root, REST)
    assert {stage.status for stage in settled.values()} <= {"unchanged"}
    return list(settled)


def test_what_has_not_changed_is_put_in_place_with_the_same_bytes_and_no_program_runs(checkout: Path) -> None:
    made, before = run_once(checkout), objects(checkout)
    with open_workspace(checkout) as space:
        assert settle(space) == REST
        assert outputs(space.root) == made
        assert run_all(space) == ["ran", "unchanged", "unchanged"], "DVC itself says so"
    assert objects(checkout) == before


def test_nothing_is_settled_without_the_lock_of_a_run(checkout: Path) -> None:
    run_once(checkout)
    (params.home(checkout) / "dvc.lock").unlink()
    with open_workspace(checkout) as space:
        assert settle(space) == []
        assert run_all(space) == ["ran", "cached", "cached"]


@pytest.mark.parametrize(
    ("name", "old", "new", "settled"),
    [
        ("train.py", "import json", "import  json", []),  # code
        ("report.py", "import pathlib", "import  pathlib", ["train"]),
        ("params.yaml", "rate: 0.1", "rate: 0.2", []),  # a parameter
        ("params.yaml", "of learning", "of the learning", REST),  # a comment is none
        ("params.yaml", "2013-07-01", "2013-08-01", []),  # data
        ("dvc.yaml", "cmd: python report.py", "cmd: python report.py --again", ["train"]),
        ("dvc.yaml", "deps: [models/model.txt, report.py]", "deps: [models/model.txt]", ["train"]),  # one less
        ("dvc.yaml", "deps: [models/model.txt, report.py]", "deps: [models/model.txt, report.py, train.py]", ["train"]),
        ("dvc.yaml", "outs: [reports/table.csv]", "outs: [reports/table.csv, reports/more.csv]", ["train"]),
        ("dvc.yaml", "    metrics: [reports/metrics.json]\n", "", []),  # an output less
    ],
)
def test_a_stage_of_which_anything_has_changed_is_not_settled_nor_what_comes_after(
    name: str, old: str, new: str, settled: list[str], checkout: Path
) -> None:
    run_once(checkout)
    assert old in FILES[name]
    write(checkout, {name: FILES[name].replace(old, new)})
    with open_workspace(checkout) as space:
        assert settle(space) == settled


def test_a_dependency_that_is_gone_is_not_taken_for_unchanged(checkout: Path) -> None:
    run_once(checkout)
    (checkout / "report.py").unlink()
    with open_workspace(checkout) as space:
        assert settle(space) == ["train"]
        with pytest.raises(pipeline.StageFailed, match="report"):
            pipeline.run_stage(space.root, "report", env=space.env)


@pytest.mark.parametrize("spoil", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("out", ["models/model.txt", "reports/metrics.json"])
def test_a_damaged_output_in_the_cache_is_noticed_and_made_again(
    spoil: Callable[[Path], None], out: str, checkout: Path
) -> None:
    made = run_once(checkout)
    spoil(cached_as(checkout, out, home=params.home(checkout))[0])
    with open_workspace(checkout) as space:
        assert settle(space) == []
        assert run_all(space)[1] == "ran"
        assert outputs(space.root) == made


def test_the_lock_is_left_as_it_is_where_a_stage_changes_nothing_in_it(checkout: Path) -> None:
    run_once(checkout)
    with open_workspace(checkout) as space:
        lock = space.root / "dvc.lock"
        before = lock.stat().st_mtime_ns, lock.read_bytes()
        assert run_all(space) == ["ran", "cached", "cached"]
        assert (lock.stat().st_mtime_ns, lock.read_bytes()) == before
    with open_workspace(checkout, overrides={"train.trials": 5}) as space:
        run_all(space)
        assert pipeline.read_lock(space.root)["stages"]["train"]["params"]["params.yaml"]["train"]["trials"] == 5


def test_only_a_run_of_the_checkout_as_it_is_begins_with_the_last_lock(checkout: Path) -> None:
    run_once(checkout)
    for options in ({"fresh": True}, {"commit": "HEAD"}):
        with open_workspace(checkout, **options) as space:  # type: ignore[arg-type]
            assert not (space.root / "dvc.lock").exists()
    assert "dvc.lock" not in content(checkout)
