"""training.profile: a profile is the same bytes however often it is made; its figures are those of plain counting."""

import math
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.params import Task
from tasks.training import columns, joint, windows
from tasks.training.columns import Column, jensen_shannon, to_shares
from tasks.training.model import Model, import_xgboost, make_spec
from tasks.training.profile import Profile, to_score_columns
from tests.tasks import small, stream
from tests.tasks.stream import BEGIN, DAY, PER_DAY

DAYS = 28
TABLE, TIMES = stream.made(DAYS)
COUNT = TABLE.num_rows
SHARES = st.lists(st.integers(0, 50), min_size=4, max_size=4)


def odd() -> pa.Table:
    """What a table may hold at its worst."""
    numbers = np.arange(COUNT)
    texts = [None if i % 7 == 0 else ("a\0b", "é|\n", "<script>", "'")[i % 4] for i in numbers]
    columns = {
        "texts": pa.array(texts, pa.string()),
        "one_text": pa.array(["only"] * COUNT),
        "no_text": pa.nulls(COUNT, pa.string()),
        "no_number": pa.nulls(COUNT, pa.float32()),
        "constant": pa.array(np.full(COUNT, 3.0)),
        "integer": pa.array(numbers % 24, pa.int64()),
        "flag": pa.array(numbers % 3 == 0),
        "holes": pa.array(np.where(numbers % 2, numbers, math.nan), from_pandas=True),
        "nan": pa.array(np.where(numbers % 2, numbers, math.nan)),
    }
    return pa.table(columns)


def column(of: Profile, name: str) -> Column:
    return of.columns[of.names.index(name)]


# --- as a file


@pytest.mark.parametrize("table", [TABLE, odd()], ids=["plain", "odd"])
def test_a_profile_is_the_same_bytes_made_twice_and_survives_its_file(table: pa.Table, tmp_path: Path) -> None:
    one, other = (stream.profile(table, TIMES) for _ in range(2))
    assert one.to_json() == other.to_json()
    (tmp_path / "profile.json").write_text(one.to_json())
    read = Profile.load(tmp_path / "profile.json")
    assert read == one
    assert read.to_json() == one.to_json()


def test_columns_in_another_order_give_the_same_profile() -> None:
    turned = TABLE.select(TABLE.column_names[::-1])
    assert stream.profile(turned, TIMES) == stream.profile(TABLE, TIMES)


def test_a_profile_that_is_missing_says_who_writes_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"profile.json is missing: run the evaluate stage"):
        Profile.load(tmp_path / "profile.json")


def test_a_profile_of_another_version_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    text = stream.profile(TABLE, TIMES).to_json()
    for other in (text.replace('"profile/1"', '"profile/0"'), text.replace('"format":"profile/1",', "")):
        path.write_text(other)
        with pytest.raises(ValueError, match=r"profile.json is in format .*, but this evergreen reads profile/1. Use"):
            Profile.load(path)


def test_weights_are_shares_of_the_importance() -> None:
    found = stream.profile(TABLE, TIMES)
    total = sum(stream.IMPORTANCE.values())
    assert dict(zip(found.names, found.weights, strict=True)) == pytest.approx(
        {name: stream.IMPORTANCE[name] / total for name in found.names}, abs=1e-6
    )
    assert sum(found.weights) == pytest.approx(1, abs=1e-5)


def test_a_model_without_importances_weighs_nothing() -> None:
    assert set(stream.profile(TABLE, TIMES, importance={}).weights) == {0}


# --- windows


@pytest.mark.parametrize(
    ("window", "unit", "span"), [("7d", 24, 7), ("1d", 24, 1), ("36h", 36, 1), ("6h", 6, 1), ("1h", 1, 1)]
)
def test_windows_slide_by_days_and_shorter_ones_by_themselves(window: str, unit: int, span: int) -> None:
    from tasks.params import parse_duration

    found = stream.profile(TABLE, TIMES, window=parse_duration(window))
    assert (found.unit, found.span) == (timedelta(hours=unit), span)
    there = np.unique(TIMES.astype("datetime64[h]").astype(int) // unit)
    windows = len(there) if span == 1 else there[-1] - there[0] + 1 - span + 1  # an hour without rows is no window
    assert len(found.columns[0].history) == windows


@pytest.mark.parametrize("days", [1, 6, 7, 8])
def test_a_history_of_less_than_a_window_has_no_distances(days: int) -> None:
    found = stream.profile(TABLE.slice(0, days * PER_DAY), TIMES[: days * PER_DAY])
    assert len(found.columns[0].history) == len(found.joint.history) == max(days - 6, 0)
    assert all(sum(each.counts) == days * PER_DAY for each in found.columns)


def test_a_day_counts_as_a_day_however_many_rows_it_has() -> None:
    """A level that holds all of one day is 1/7 of the week, whether the day has a row or thousands."""
    one = Column("store", "category", (), ("a", "b"), ("a", "b"), (0, 0, 0, 0, 0))
    days = np.array([0, 1, 2, 3, *[3] * 1000])
    shares = one.window_shares(pa.array(["a", "a", "a", *["b"] * 1001]), days)
    assert shares.tolist() == [0.75, 0.25, 0, 0, 0]


def test_of_a_week_the_most_extreme_day_at_either_end_does_not_count() -> None:
    weeks = np.array([[0.1, 0.2, 0.2, 0.2, 0.2, 0.3, 1.0], [0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]]).ravel()
    found = windows.trimmed_mean(windows.slide(weeks, 7))
    assert found[0] == pytest.approx(np.mean([0.2, 0.2, 0.2, 0.2, 0.3]))
    assert found[-1] == pytest.approx(0.2)


def test_a_week_with_days_without_rows_is_the_mean_of_the_others() -> None:
    some = np.array([0.5, math.nan, math.nan, 0.1, math.nan, 0.3, math.nan])
    assert windows.trimmed_mean(some) == pytest.approx(0.3)


def test_a_window_without_any_row_is_no_window_of_the_history() -> None:
    """A shop that was closed for three weeks has windows that say nothing: they are not far from the others."""
    days = np.arange(COUNT) // PER_DAY
    open_ = (days < 5) | (days >= 26)
    table, times = stream.made(2 * DAYS)
    kept = np.concatenate([open_, np.ones(COUNT, dtype=bool)])
    found = stream.profile(table.filter(pa.array(kept)), times[kept])
    for each in found.columns:
        assert len(each.history) == 2 + 3 + (2 * DAYS - 26 - 6)  # those that a pause cuts, and the whole ones
        assert 0 not in each.history
        assert max(each.history) < 0.5
    assert np.isfinite(np.array(found.joint.history)).all()


# --- distances


@given(SHARES, SHARES)
def test_a_distance_is_symmetric_and_lies_between_the_same_and_the_disjoint(one: list[int], other: list[int]) -> None:
    p, q = (to_shares(np.array(each)) for each in (one, other))
    found = float(jensen_shannon(p, q))
    assert found == pytest.approx(float(jensen_shannon(q, p)), abs=1e-9)
    assert 0 <= found <= 1 + 1e-9
    assert float(jensen_shannon(p, p)) == 0
    if not any(one) or not any(other):
        assert found == 0


def test_the_distance_is_that_of_jensen_and_shannon() -> None:
    from scipy.spatial.distance import jensenshannon

    p, q = np.array([0.2, 0.3, 0.5, 0.0]), np.array([0.1, 0.1, 0.4, 0.4])
    assert float(jensen_shannon(p, q)) == pytest.approx(jensenshannon(p, q, base=2))
    assert float(jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0]))) == pytest.approx(1)


def test_the_histories_distances_are_of_each_window_to_all_that_is_not_in_it() -> None:
    found = column(stream.profile(TABLE, TIMES), "store")
    values, days = np.array(TABLE["store"].to_pylist()), np.arange(COUNT) // PER_DAY
    levels = [*found.levels]
    for start in (0, 10, DAYS - 7):
        inside = (days >= start) & (days < start + 7)
        week = [values[days == day] for day in range(start, start + 7)]
        by_day = np.array([[(each == level).mean() for level in levels] for each in week])
        middle = np.sort(by_day, axis=0)[1:-1].mean(axis=0)
        rest = np.array([(values[~inside] == each).mean() for each in levels])
        assert found.history[start] == pytest.approx(float(jensen_shannon(middle, rest)), rel=1e-5)


def test_what_the_others_leave_of_a_window_is_what_a_regression_leaves() -> None:
    """Of three numbers: the residual of the last given the others, in its own deviations, by least squares."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(4000, 3)) @ np.array([[1, 0.5, 0.2], [0, 1, 0.4], [0, 0, 1]])
    found = stream.profile(
        pa.table({f"n{i}": numbers[:, i] for i in range(3)}),
        np.sort(np.datetime64(BEGIN, "us") + rng.integers(0, DAYS * 86_400, 4000).astype("timedelta64[s]")),
        scores={},
        importance={},
    )
    shift = np.array([0.3, -0.2, 0.5])
    told = joint.leave((shift / numbers.std(axis=0))[None], np.array(found.joint.inverse))
    held = numbers - numbers.mean(axis=0)
    for i in range(3):
        others = [j for j in range(3) if j != i]
        slopes = np.linalg.lstsq(held[:, others], held[:, i], rcond=None)[0]
        deviation = (held[:, i] - held[:, others] @ slopes).std()
        assert told[i] == pytest.approx((shift[i] - shift[others] @ slopes) / deviation, abs=0.02)


def test_a_constant_column_takes_no_part_in_the_regressions() -> None:
    found = stream.profile(odd(), TIMES)
    constant = {found.names.index(name) for name in ("constant", "one_text", "no_text", "no_number")}
    assert not constant & {term.column for term in found.joint.terms}
    assert np.isfinite(np.array(found.joint.inverse)).all()
    assert stream.profile(odd().select(["constant", "no_text"]), TIMES).joint.terms == ()


# --- bins and quality


@pytest.mark.parametrize("name", odd().column_names)
def test_every_value_has_a_bin_and_the_missing_have_their_own(name: str) -> None:
    found = column(stream.profile(odd(), TIMES), name)
    values = odd()[name].to_pylist()
    missing = sum(each is None or each != each for each in values)
    assert sum(found.counts) == COUNT
    assert found.counts[-1] == missing
    outside = [0, -2] if found.kind == "number" else [-2]
    assert [found.counts[place] for place in outside] == [0] * len(outside)


def test_values_outside_of_the_history_have_bins_of_their_own() -> None:
    found = column(stream.profile(TABLE, TIMES), "size")
    low, high = found.edges[0], found.edges[-1]
    codes = found.assign_bins(pa.array([low - 1, low, np.nextafter(high, -9), high + 1, None]))
    assert codes.tolist() == [0, 1, found.bins - 3, found.bins - 2, found.bins - 1]


@pytest.mark.parametrize("values", [["1", "2"], [[1.0]]])
def test_a_number_that_is_no_number_any_more_is_refused_by_name(values: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"the column size must be a number, but"):
        column(stream.profile(TABLE, TIMES), "size").assign_bins(pa.array(values))


def test_a_level_that_the_history_lacks_is_new_and_a_rare_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*["common"] * (COUNT - 1), "rare"]
    monkeypatch.setattr(columns, "LEVELS", 2)
    names = [f"level {i % 5}" for i in range(COUNT - 1)]
    found = column(stream.profile(pa.table({"t": [*names, "rare"]}), TIMES, importance={}), "t")
    assert (found.levels, len(found.known_values), "rare" in found.known_values) == (("level 0", "level 1"), 6, True)
    assert found.find_new(pa.array(["level 0", "rare", "never", None])).tolist() == [False, False, True, False]
    assert found.assign_bins(pa.array(["level 0", "level 4", "never", None])).tolist() == [0, 2, 3, 4]
    assert len(texts) == COUNT


def test_a_number_in_steps_knows_its_values_and_one_without_knows_none() -> None:
    found = stream.profile(TABLE, TIMES)
    assert column(found, "size").known_values == ()
    assert column(found, "count").find_new(pa.array([3.0, 3.5, None])).tolist() == [False, True, False]


def test_a_number_that_moves_to_values_of_its_own_is_not_taken_for_steps() -> None:
    """A meter that counts the weeks: each value is in one week alone, so a new one is no fault."""
    weeks = (np.arange(COUNT) // (7 * PER_DAY)).astype(float)
    found = stream.profile(pa.table({"week": weeks}), TIMES, importance={}).columns[0]
    assert (found.known_values, found.worst[1]) == ((), 0)


@pytest.mark.parametrize("seed", range(5))
def test_the_worst_shares_are_those_of_plain_counting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    days = np.sort(rng.integers(0, 20, 400))
    days -= days[0]
    texts = [None if hole else f"{level}" for hole, level in zip(rng.random(400) < 0.2, _rare(rng, 400), strict=True)]
    numbers = rng.standard_t(2, 400)
    times = np.datetime64(BEGIN, "us") + (days * 86_400).astype("timedelta64[s]")
    found = stream.profile(pa.table({"n": numbers, "t": texts}), times, importance={}, scores={})
    missing, new, outside = np.array(_counted(days, texts, numbers)).max(axis=0)
    assert column(found, "t").worst == pytest.approx((missing, new, 0), rel=1e-5)
    assert column(found, "n").worst == pytest.approx((0, 0, outside), rel=1e-5)


def _rare(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Many levels, most of them in few rows."""
    return np.minimum(rng.geometric(0.05, count), 60)


def _counted(
    days: NDArray[np.int64], texts: Sequence[str | None], numbers: NDArray[np.float64]
) -> list[tuple[float, ...]]:
    """By window: the shares of rows that are missing, of a level that is nowhere else, and beyond all others."""
    found = []
    for start in range(int(days[-1]) - 5):
        inside = (days >= start) & (days < start + 7)
        here = [each for each, within in zip(texts, inside, strict=True) if within]
        others = {each for each, within in zip(texts, inside, strict=True) if not within}
        beyond = (numbers[inside] < numbers[~inside].min()) | (numbers[inside] > numbers[~inside].max())
        alone = [each for each in here if each is not None and each not in others]
        found.append((sum(each is None for each in here) / len(here), len(alone) / len(here), beyond.mean()))
    return found


# --- of a model


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_contributions_add_up_to_the_margin_less_a_constant(task: Task) -> None:
    rows = small.made_rows(task, per_day=10)
    spec = make_spec(rows.table, rows.label, task=task)
    objective = {"binary": "binary:logistic", "multiclass": "multi:softprob", "regression": "reg:squarederror"}[task]
    codes, xgb = spec.scale_label(rows.label), import_xgboost()
    settings: dict[str, Any] = {"objective": objective, "max_depth": 3, "nthread": 1}
    settings |= {"num_class": 3} if task == "multiclass" else {}
    one = Model(xgb.train(settings, xgb.DMatrix(spec.encode(rows.table), codes), 5), spec)
    found, margins = one.contributions(rows.table), one.margins(rows.table)
    assert found.shape == ((len(rows), 3, 5) if task == "multiclass" else (len(rows), 5))
    found = found / spec.scale  # a number's are in the label's own units
    assert np.std(margins - found.sum(axis=-1), axis=0) == pytest.approx(np.zeros(margins.shape[1:]), abs=1e-4)


def test_predictions_are_one_column_or_one_a_class() -> None:
    one, three = np.arange(4.0), np.arange(12.0).reshape(4, 3)
    assert list(to_score_columns(one, ())) == ["_score"]
    found = to_score_columns(three, ("very late", 2.0, "early"))
    assert list(found) == ["_score very late", "_score 2.0", "_score early"]
    assert found["_score 2.0"].tolist() == [1, 4, 7, 10]


def test_units_are_counted_from_the_first_rows_own() -> None:
    times = np.array([BEGIN + each for each in (timedelta(hours=23), DAY, 3 * DAY)], dtype="datetime64[us]")
    assert windows.number_units(times, DAY).tolist() == [0, 1, 3]
    assert windows.number_units(times[:0], DAY).tolist() == []


@pytest.mark.parametrize("years", [1, 60])
def test_a_pause_of_any_length_costs_nothing_and_is_no_evidence(years: int) -> None:
    """A row of 1970 in a history of weeks made the windows between them as many quiet ones, and took minutes."""
    table, times = stream.made(2 * DAYS)
    late = np.arange(len(times)) >= COUNT
    apart = times + np.where(late, years * 365, 0).astype("timedelta64[D]")
    near = times + np.where(late, 20, 0).astype("timedelta64[D]")
    assert stream.profile(table, apart).columns == stream.profile(table, near).columns
    assert stream.profile(table, apart).joint == stream.profile(table, near).joint


def test_pauses_are_cut_to_a_window_and_nothing_else_moves() -> None:
    units = np.array([0, 0, 1, 5, 9, 40, 41, 900])
    assert windows.shorten_pauses(units, 7).tolist() == [0, 0, 1, 5, 9, 17, 18, 26]
