"""train.warm: a fit goes on from a base that follows from its own rows, and is else what it was."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.data.featurerows import Rows
from tasks.params import Params, Task
from tasks.promotion.recipe import identify_recipe
from tasks.training import train, warm
from tasks.training.model import Model
from tests.conftest import BEGIN
from tests.tasks import small

EVERY = "20d"
ROUNDS = 20


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("EVERGREEN_HOME", str(folder))
    return folder


def settings(task: Task = "binary", *, warm: str | None = EVERY, **overrides: Any) -> Params:
    return small.settings(task, **{"train.warm": warm, **overrides})


def fit(rows: Rows, p: Params, *, rounds: int = ROUNDS, **drawn: Any) -> Model:
    tuned = small.by_hand({"max_depth": 3, "eta": 0.3, "subsample": 0.8, "max_bin": 32} | drawn, rounds=rounds)
    return train.fit(rows, tuned, p, threads=1)


def list_bases(home: Path) -> list[Path]:
    return sorted(home.glob("boosters/*.ubj"))


def trained(folder: Path, rows: Rows, p: Params) -> dict[str, bytes]:
    small.write(folder, rows, p)
    small.tuned(folder, p, params={"subsample": 0.8})
    train.train(p, folder)
    return {name: (folder / p.paths.models / name).read_bytes() for name in ("twin.ubj", "model.ubj", "twins/1.ubj")}


def find_boundary(rows: Rows) -> np.datetime64:
    """The newest day before the last row of which the number since 1970 is a multiple of 20."""
    day = rows.event_time[-1].astype("datetime64[D]")
    return np.datetime64(day - int(day.astype(int)) % 20, "us")


def test_the_twin_sees_nothing_that_is_known_in_the_holdout_or_after(tmp_path: Path) -> None:
    rows = small.made_rows(per_day=30)
    other = small.relabelled(rows, small.flipped, small.HELD_FROM - timedelta(days=1))
    before, after = (trained(tmp_path / name, each, settings()) for name, each in (("a", rows), ("b", other)))
    assert before["twin.ubj"] == after["twin.ubj"]
    assert before["twins/1.ubj"] == after["twins/1.ubj"]
    assert before["model.ubj"] != after["model.ubj"]


def test_a_fit_has_the_same_bytes_in_another_home_and_where_its_base_is_there(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, p = small.made_rows(per_day=30), settings()
    first = trained(tmp_path / "a", rows, p)
    made = list_bases(home)
    assert trained(tmp_path / "b", rows, p) == first
    assert list_bases(home) == made
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "other"))
    assert trained(tmp_path / "c", rows, p) == first
    assert [path.name for path in list_bases(tmp_path / "other")] == [path.name for path in made]


def test_a_fit_of_two_threads_leaves_the_base_that_one_of_one_thread_would(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, p = small.made_rows(per_day=60), settings()
    tuned = small.by_hand({"max_depth": 6, "eta": 0.3, "max_bin": 256, "subsample": 0.8}, rounds=ROUNDS)
    train.fit(rows, tuned, p, threads=2)
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "other"))
    train.fit(rows, tuned, p, threads=1)
    [one], [other] = list_bases(home), list_bases(tmp_path / "other")
    assert (one.name, one.read_bytes()) == (other.name, other.read_bytes())


def test_refreshes_until_the_next_boundary_go_on_from_one_base(home: Path) -> None:
    rows, p = small.made_rows(per_day=30), settings()
    boundary = find_boundary(rows)
    first, second = (fit(rows.take(rows.event_time < boundary - np.timedelta64(days, "D")), p) for days in (7, 1))
    assert len(list_bases(home)) == 1
    base = Model.load(list_bases(home)[0]).booster
    last = warm.count_last_rounds(ROUNDS)
    for fitted in (first, second):
        assert fitted.booster.num_boosted_rounds() == ROUNDS
        assert fitted.booster[: ROUNDS - last].get_dump() == base.get_dump()
    assert first.booster.get_dump()[-last:] != second.booster.get_dump()[-last:]


def test_a_base_is_the_recipe_on_the_rows_before_the_boundary(home: Path) -> None:
    rows = small.made_rows(per_day=30)
    fit(rows, settings())
    older = rows.take(rows.event_time < find_boundary(rows))
    plain = fit(older, settings(warm=None), rounds=ROUNDS - warm.count_last_rounds(ROUNDS))
    assert Model.load(list_bases(home)[0]).booster.get_dump() == plain.booster.get_dump()


def test_rows_before_the_boundary_that_change_give_another_base(home: Path) -> None:
    rows, p = small.made_rows(per_day=30), settings()
    late = small.relabelled(rows, small.flipped, BEGIN, BEGIN + timedelta(days=1))
    fit(rows, p), fit(late, p)
    assert len(list_bases(home)) == 2


@pytest.mark.parametrize("other", [{"eta": 0.2}, {"max_bin": 16}, {"class_weight": 0.5}])
def test_another_recipe_has_another_base(home: Path, other: dict[str, Any]) -> None:
    rows, p = small.made_rows(per_day=30), settings()
    fit(rows, p), fit(rows, p, **other)
    assert len(list_bases(home)) == 2


@pytest.mark.parametrize("native", [False, True])
def test_a_new_category_follows_those_of_the_base_and_is_learnt(native: bool) -> None:
    rows = small.made_rows(per_day=60)
    boundary = find_boundary(rows)
    rng = np.random.default_rng(1)
    is_new = (rows.event_time >= boundary) & (rng.random(len(rows)) < 0.5)
    store = np.where(is_new, "inland", np.asarray(rows.table["store"]))  # sorts before the others
    table = rows.table.set_column(rows.table.column_names.index("store"), "store", pa.array(store.tolist()))
    rows = replace(rows, table=table, label=np.where(is_new, 1.0, rows.label))
    p = settings("binary", **{"train.categories": "native" if native else "coded"})
    fitted = fit(rows, p)
    assert fitted.spec.categories["store"] == ("north", "south", "west", "inland")
    predicted = fitted.predict(rows.table)
    assert predicted[is_new].mean() > predicted[~is_new].mean() + 0.3


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_warm_fit_predicts_nearly_as_well_as_a_refit(task: Task) -> None:
    rows = small.made_rows(task, per_day=60)
    until = np.datetime64(small.AS_OF - timedelta(days=3))
    seen, unseen = rows.take(rows.event_time < until), rows.take(rows.event_time >= until)

    def measure_loss(fitted: Model) -> float:
        outcome, predicted = fitted.spec.encode_label(unseen.label), fitted.predict(unseen.table)
        if task == "regression":
            return float(np.mean(np.square(outcome - predicted)))
        shares = predicted if task == "multiclass" else np.column_stack([1 - predicted, predicted])
        return float(-np.mean(np.log(shares[np.arange(len(outcome)), outcome.astype(int)])))

    plain, warmed = (measure_loss(fit(seen, settings(task, warm=every))) for every in (None, EVERY))
    shares = None if task == "regression" else np.unique(unseen.label, return_counts=True)[1] / len(unseen)
    constant = float(np.var(unseen.label)) if shares is None else float(-(shares * np.log(shares)).sum())
    assert abs(warmed - plain) < 0.1 * (constant - plain)


def test_a_class_that_the_base_lacks_is_said_and_the_fit_begins_anew(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = small.made_rows("multiclass", per_day=30)
    boundary = find_boundary(rows)
    older = (rows.event_time < boundary) & (rows.label == "late")
    rows = rows.take(~older)
    with caplog.at_level("WARNING", "evergreen"):
        fitted = fit(rows, settings("multiclass"))
    assert "['late']" in caplog.text
    assert not list_bases(home)
    assert fitted.to_bytes() == fit(rows, settings("multiclass", warm=None)).to_bytes()


def test_a_base_of_less_than_half_of_the_rows_is_none(home: Path) -> None:
    rows = small.made_rows(per_day=30)
    boundary = find_boundary(rows)
    few = rows.take(rows.event_time >= boundary - np.timedelta64(1, "D"))
    assert fit(few, settings()).to_bytes() == fit(few, settings(warm=None)).to_bytes()
    assert not list_bases(home)


def test_a_torn_base_is_made_again(home: Path) -> None:
    rows, p = small.made_rows(per_day=30), settings()
    first = fit(rows, p).to_bytes()
    [path] = list_bases(home)
    path.write_bytes(path.read_bytes()[:-100])
    assert fit(rows, p).to_bytes() == first


def test_warm_fits_are_those_of_another_recipe() -> None:
    stages: dict[str, Any] = {"features": {}, "train": {}}
    tuned = {"params": {"eta": 0.3}, "rounds": ROUNDS}
    names = [identify_recipe(settings(warm=every), stages, tuned) for every in (None, EVERY, "30d", EVERY)]
    assert len(set(names)) == 3
    assert names[1] == names[3]


def test_what_a_window_would_forget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.warm 20d needs split\.window null.*split\.window is 30d"):
        settings("binary", **{"split.window": "30d"})
