"""tasks.promotion.gc on a small project: what it frees, and what it keeps."""

import contextlib
import os
from pathlib import Path

from tasks import params
from tasks.promotion import gc
from tasks.runtime.workspaces import Workspace, open_workspace
from tests.tasks.runtime.conftest import FILES, objects, run_all, write


def saved_lock(space: Workspace, folder: Path) -> Path:
    write(folder, {"dvc.lock": (space.root / "dvc.lock").read_text(), "dvc.yaml": FILES["dvc.yaml"]})
    return folder


def test_gc_frees_what_no_lock_needs_and_a_dry_run_frees_nothing(checkout: Path, tmp_path: Path) -> None:
    with open_workspace(checkout) as space:
        run_all(space)
        saved_lock(space, checkout)
    with open_workspace(checkout, overrides={"clock.as_of": "2013-08-01"}) as space:
        run_all(space)
        registered = saved_lock(space, tmp_path / "registered")
    needed = objects(checkout)
    with open_workspace(checkout, overrides={"clock.as_of": "2013-09-01", "train.rate": 0.3}) as space:
        run_all(space)
    everything = objects(checkout)
    listed = gc.free(checkout, keep_locks=[registered])
    assert objects(checkout) == everything
    assert gc.free(checkout, keep_locks=[registered], dry=False) == listed
    assert {freed.path for freed in listed} == everything - needed
    assert objects(checkout) == needed
    assert sum(freed.size for freed in listed) >= 3 * len("2013-09-01 0\n") * 1000
    with open_workspace(checkout) as space:
        assert run_all(space) == ["ran", "cached", "cached"]


def test_gc_keeps_what_a_running_workspace_needs(checkout: Path) -> None:
    with open_workspace(checkout) as space:
        run_all(space)
        assert gc.free(checkout, dry=False) == []
    assert {freed.kind for freed in gc.free(checkout)} == {"object", "run"}


def test_gc_frees_left_workspaces_old_studies_candidates_and_periods_that_no_data_is_made_of(checkout: Path) -> None:
    shared_state = params.home(checkout)
    with contextlib.suppress(RuntimeError), open_workspace(checkout) as left:
        run_all(left)
        saved_lock(left, checkout)
        model = left.root / "models" / "model.txt"
        write(shared_state, {"studies/a.log": "trials", "periods/ab/abc/x.parquet": "unused", "periods/ab/abd/.k": ""})
        write(shared_state, {"replay/candidates/2013-05-01T000000-ab/cost.json": "{}", "boosters/b.ubj": "trees"})
        os.link(model, shared_state / "periods" / "ab" / "abd" / "used.parquet")
        raise RuntimeError("a failed run's workspace stays")
    freed = gc.free(checkout, dry=False, days=0)
    assert {(each.kind, each.path.name) for each in freed} == {
        ("workspace", left.root.name),
        ("study", "a.log"),
        ("booster", "b.ubj"),
        ("candidate", "2013-05-01T000000-ab"),
        ("period", "abc"),
    }
    assert not left.root.exists()
    assert gc.free(checkout, dry=False, days=0) == []


def test_gc_frees_old_evidence_of_recipes_that_no_version_has(checkout: Path) -> None:
    for recipe in ("has-a-version", "has-none"):
        write(checkout / ".evergreen", {f"evidence/{recipe}/2013-05-06T03/losses.parquet": "x"})
    assert gc.free(checkout, keep_recipes={"has-a-version"}, dry=False) == []  # a look at it may come yet
    freed = gc.free(checkout, keep_recipes={"has-a-version"}, dry=False, days=0)
    assert [(one.kind, one.path.name) for one in freed] == [("evidence", "has-none")]
    assert [path.name for path in (checkout / ".evergreen" / "evidence").iterdir()] == ["has-a-version"]


def test_gc_leaves_studies_and_periods_that_are_young(checkout: Path) -> None:
    write(params.home(checkout), {"studies/a.log": "trials", "periods/ab/abc/x.parquet": "unused"})
    assert gc.free(checkout) == []
