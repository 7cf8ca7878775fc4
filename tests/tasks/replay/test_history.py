"""replay.history: what was known at T is what the pipeline makes as of T, and a candidate of T is trained once."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.data import featurerows, periods
from tasks.data.featurerows import META, Rows
from tasks.params import Params
from tasks.replay import history
from tasks.replay.history import History
from tests.conftest import BEGIN, Made
from tests.tasks import small

DAY = timedelta(days=1)
END = BEGIN + 60 * DAY
THEN = BEGIN + 45 * DAY + timedelta(hours=12)
SMALL = {"tune.trials": 2, "tune.rounds": 20, "train.seeds": 1, "split.fold": "5d"}


def past(folder: Path, rows: Rows, p: Params, **changes: Any) -> History:
    small.write(folder, rows, p, END)
    return History(p, folder / p.paths.features, "SELECT 1", folder / "shelf", **changes)


@pytest.fixture
def kept(tmp_path: Path) -> History:
    return past(tmp_path, small.made_rows(), history.reduce_search(small.settings(**SMALL)))


def viewed(kept: History, as_of: datetime, folder: Path) -> Rows:
    kept.write(as_of, folder)
    return featurerows.read_rows(folder / kept.p.paths.features)


def same(one: Rows, other: Rows) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("event_time", "known_at", "label")]
    alike = all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
    return alike and one.table.combine_chunks().equals(other.table.combine_chunks())


def test_the_view_of_a_moment_is_what_the_pipeline_makes_at_it(make_world: Callable[..., Made], tmp_path: Path) -> None:
    made = make_world(days=60)
    p = made.run("ingest", "clean", "features")
    kept = History(p, made.folder / p.paths.features, "SELECT 1", tmp_path / "shelf")
    views = {each: viewed(kept, each, tmp_path / f"{each:%d%H}") for each in (THEN, datetime(2024, 2, 1))}
    for as_of, view in views.items():
        made.run("ingest", "clean", "features", p=made.params(**{"clock.as_of": as_of.isoformat()}))
        assert same(view, featurerows.read_rows(made.folder / p.paths.features))


def test_a_label_that_was_not_known_is_not_there(tmp_path: Path) -> None:
    rows = small.made_rows()
    planted = int(np.searchsorted(rows.event_time, np.datetime64(THEN - 10 * DAY)))
    known_at = rows.known_at.copy()
    known_at[planted] = np.datetime64(THEN + timedelta(microseconds=1))
    kept = past(tmp_path, replace(rows, known_at=known_at), small.settings())
    before, after = (viewed(kept, each, tmp_path / f"{each:%f}") for each in (THEN, THEN + timedelta(microseconds=1)))
    assert np.isnan(before.label[planted])
    assert np.isnat(before.known_at[planted])
    assert after.label[planted] == rows.label[planted]
    assert before.event_time.max() <= np.datetime64(THEN)


def test_nothing_that_came_later_decides_a_candidate(kept: History, tmp_path: Path) -> None:
    """Other outcomes in later months, and another end: the key is the same, for the earlier files are."""
    later = small.relabelled(small.made_rows(), small.flipped, datetime(2024, 2, 10))
    other = past(tmp_path / "other", later, kept.p)
    assert other.key(datetime(2024, 1, 31)) == kept.key(datetime(2024, 1, 31))
    assert other.key(THEN) != kept.key(THEN)


def test_a_month_that_was_over_is_linked_and_not_copied(
    kept: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)  # root gets copies: see periods.share
    kept.write(THEN, tmp_path / "view")
    whole = {path.name: path for _, path in periods.list_files(kept.features)}
    view = {path.name: path for _, path in periods.list_files(tmp_path / "view" / kept.p.paths.features)}
    assert view.keys() == whole.keys()
    assert view["2024-01.parquet"].samefile(whole["2024-01.parquet"])
    assert not view["2024-02.parquet"].samefile(whole["2024-02.parquet"])


def test_a_candidate_is_trained_once_and_its_cost_stays(kept: History) -> None:
    first, second = kept.candidate(THEN), kept.candidate(THEN)
    assert (first.is_new, second.is_new) == (True, False)
    assert first.cpu == second.cpu > 0
    assert first.folder == second.folder
    assert [each.name for each in kept.shelf.glob("2*")] == [first.folder.name]
    assert list(kept.shelf.glob(f"{history.PARTIAL_PREFIX}*")) == []


def test_a_candidate_with_other_bytes_is_trained_again_and_that_is_logged(
    kept: History, caplog: pytest.LogCaptureFixture
) -> None:
    first = kept.candidate(THEN)
    spoilt = first.folder / kept.p.paths.models / "model.ubj"
    before = spoilt.read_bytes()
    spoilt.chmod(0o644)
    spoilt.write_bytes(before[:-1])
    second = kept.candidate(THEN)
    assert second.is_new
    assert "no longer holds what was made (models/model.ubj): it is trained again" in caplog.text
    assert spoilt.read_bytes() == before
    assert not kept.candidate(THEN).is_new


def test_a_candidate_sees_nothing_after_its_moment(kept: History) -> None:
    found = kept.candidate(THEN)
    assert found.model.spec.until == THEN.isoformat()
    assert found.recipe.p == kept.p
    assert found.holdout.times.max() < np.datetime64(THEN - kept.p.label.deadline)


def test_a_search_made_before_saves_nobody_its_cost(kept: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of a search belongs to the home; a candidate's search has one of its own, and leaves none."""
    home = kept.shelf.parent / "home"
    monkeypatch.setenv("EVERGREEN_HOME", str(home))
    found = kept.candidate(THEN)
    assert not (home / "studies").exists()
    assert not (found.folder / "home").exists()


def test_a_failed_training_leaves_nothing_on_the_shelf(kept: History) -> None:
    with pytest.raises(ValueError, match="split"):
        kept.candidate(BEGIN + 20 * DAY)
    assert [each.name for each in kept.shelf.iterdir()] == [history.LOCKS]


def test_a_smaller_search_has_fewer_finalists() -> None:
    p = small.settings(**{"tune.trials": 24, "tune.finalists": 5})
    fewer = p.model_copy(update={"replay": p.replay.model_copy(update={"trials": 6})})
    assert [(each.tune.trials, each.tune.finalists) for each in map(history.reduce_search, (p, fewer))] == [
        (24, 5),
        (6, 2),
    ]


def test_the_written_columns_keep_their_types(kept: History, tmp_path: Path) -> None:
    kept.write(THEN, tmp_path / "view")
    one, other = (pq.read_schema(each / "2024-02.parquet") for each in (kept.features, tmp_path / "view/data/features"))
    assert all(one.field(name) == other.field(name) for name in META)
