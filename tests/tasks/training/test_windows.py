"""training.windows and training.joint: a value of one window is new; only columns that part are found."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.monitoring.statistics import History
from tasks.training import joint, windows
from tests.benchmarks import drift as bench
from tests.benchmarks import still_columns
from tests.tasks import stream

SEEDS = 3
PAST = 91
TABLE, TIMES = stream.made(PAST + 7, seed=2)
CUT = PAST * stream.PER_DAY
PROFILE = stream.profile(TABLE.slice(0, CUT), TIMES[:CUT])
NOW, NOW_TIMES = TABLE.slice(CUT), TIMES[CUT:]


# --- what a window alone holds


@pytest.mark.parametrize("span", [1, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_in_one_window_alone_is_counted_by_bin_and_unit(span: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    units = np.sort(rng.integers(0, 12, 150))
    units -= units[0]
    groups, codes, values = rng.geometric(0.05, 150) - 2, rng.integers(0, 4, 150), rng.standard_t(2, 150)
    alone = windows.count_unique(groups, codes, units, span=span, bins=4)
    below, above = windows.count_extreme(values, codes, units, span=span, bins=4)
    for start in range(int(units[-1]) - span + 2):
        inside = (units >= start) & (units < start + span)
        single = inside & (groups >= 0) & ~np.isin(groups, groups[~inside])
        masks = (single, inside & (values < values[~inside].min()), inside & (values > values[~inside].max()))
        for counts, rows in zip((alone, below, above), masks, strict=True):
            wanted = np.zeros((4, span))
            np.add.at(wanted, (codes[rows], units[rows] - start), 1)
            assert counts[start].tolist() == wanted.tolist()


def test_a_history_shorter_than_a_window_has_none() -> None:
    none = np.zeros(0, dtype=np.int64)
    for units in (none, np.zeros(3, dtype=np.int64)):
        held = np.zeros(len(units), dtype=np.int64)
        assert windows.count_unique(held, held, units, span=7, bins=3).shape == (0, 3, 7)
        assert windows.count_extreme(held.astype(float), held, units, span=7, bins=3)[0].shape == (0, 3, 7)


# --- streams that do not change


@pytest.mark.parametrize("kind", still_columns.KINDS)
def test_a_stationary_column_alarms_at_the_stated_rate_and_parted_ones_are_found(kind: str) -> None:
    """The short form of `make bench`: without the leave-one-window-out rule, 90 % of the weeks alarm."""
    result = still_columns.count(kind, SEEDS)
    alarms = sum(any(signals) for _, *signals in result["windows"])
    stated = still_columns.SETTINGS.false_alarms * 7 / 30
    assert alarms <= bench.likely([still_columns.WEEKS] * SEEDS, stated, result["windows_of_history"])[1]
    assert all(all(result["alarms"][how]) for how in still_columns.BROKEN)
    assert all(result["alarms"]["size raised"])


def test_new_levels_beyond_what_any_window_had_are_still_found() -> None:
    """In a column of 5,000 levels a few are new in each week; three in ten are not."""
    table, times = still_columns.rows("zipf", still_columns.HISTORY + 7, 5)
    cut = still_columns.HISTORY * still_columns.PER_DAY
    model, now = still_columns.profile(table.slice(0, cut), times[:cut]), table.slice(cut)
    texts = [f"unheard of {i}" if i % 10 < 3 else text for i, text in enumerate(now["odd"].to_pylist())]
    renamed = now.set_column(now.column_names.index("odd"), "odd", pa.array(texts))
    quiet, moved = (still_columns.compare(model, each, times[cut:]) for each in (now, renamed))
    assert not quiet.alarm
    assert moved.alarm
    assert [column.name for column in moved.moved] == ["odd"]
    assert [column.name for column in moved.faulty] == ["odd"]


# --- columns that go together, or do not


def parted(name: str, how: str) -> pa.Table:
    values = NOW[name].to_numpy()
    changed = {
        "shuffled": np.random.default_rng(0).permutation(values),
        "shifted": np.roll(values, 1),
        "turned": 2 * values.mean() - values,
    }[how]
    return stream.changed(NOW, name, changed.astype(np.float32))


@pytest.mark.parametrize("how", ["shuffled", "shifted", "turned"])
@pytest.mark.parametrize("name", ["size", "weight", "volume"])
def test_a_column_that_goes_with_the_others_no_more_is_found_and_told(name: str, how: str) -> None:
    window = stream.compared(PROFILE, parted(name, how), NOW_TIMES)
    assert window.alarm
    parting = {column.name: column.change for column in window.moved}  # its partners part from it, too
    assert set(parting) <= {"size", "weight", "volume"}
    assert "correlation with what the other columns say of it 0.9" in parting[name]


@pytest.mark.parametrize("how", ["shuffled", "shifted"])
def test_columns_that_come_from_other_rows_together_are_found(how: str) -> None:
    """As of a join that went wrong: they still go with each other."""
    places = np.random.default_rng(0).permutation(NOW.num_rows) if how == "shuffled" else np.arange(NOW.num_rows) - 1
    table = NOW
    for name in ("weight", "volume"):
        table = stream.changed(table, name, NOW[name].to_numpy()[places])
    window = stream.compared(PROFILE, table, NOW_TIMES)
    assert window.alarm
    assert "size" in [column.name for column in window.moved]


def test_a_column_that_never_went_with_the_others_may_be_shuffled() -> None:
    assert not stream.compared(PROFILE, parted("noise", "shuffled"), NOW_TIMES).alarm


def test_the_columns_that_went_with_one_that_is_gone_are_no_fault() -> None:
    window = stream.compared(PROFILE, NOW.drop_columns(["size"]), NOW_TIMES)
    assert (window.gone, window.moved) == (("size",), [])


def test_a_profile_without_relations_measures_the_rest() -> None:
    """An older version's: it has none."""
    older = replace(PROFILE, joint=replace(PROFILE.joint, relations=()))
    assert not stream.compared(older, parted("weight", "shuffled"), NOW_TIMES).alarm
    assert stream.compared(older, stream.moved(NOW, "noise", 1.0), NOW_TIMES).alarm


def test_relations_raise_no_threshold_where_nothing_parts() -> None:
    """So what was found without them is found with them."""
    joint = replace(PROFILE.joint, relations=())
    with_them, without = (
        History(profile, stream.FALSE_ALARMS, profile.columns, with_terms=True).threshold
        for profile in (PROFILE, replace(PROFILE, joint=joint))
    )
    assert with_them == without


def test_the_agreement_is_the_correlation_with_the_regressions_prediction() -> None:
    rng = np.random.default_rng(0)
    terms = rng.normal(size=(7, 500, 3)) @ np.array([[1, 0.5, 0.2], [0, 1, 0.4], [0, 0, 1]])
    sums, products = terms.sum(axis=1), np.einsum("unj,unk->ujk", terms, terms)
    together = terms.reshape(-1, 3)
    by = joint.find_slopes(np.linalg.inv(np.cov(together.T)))
    found = np.tanh(joint.correlate(sums, products, np.full(7, 500.0), by))
    for i in range(3):
        others = np.delete(together, i, axis=1)
        predicted = others @ np.linalg.lstsq(others, together[:, i], rcond=None)[0]
        assert found[i] == pytest.approx(np.corrcoef(together[:, i], predicted)[0, 1], abs=0.03)


def test_a_term_that_is_constant_in_a_window_says_nothing() -> None:
    shape: Any = (7, 2)
    found = joint.correlate(np.zeros(shape), np.zeros((*shape, 2)), np.full(7, 5.0), np.array([[0, 0.5], [0.5, 0]]))
    assert np.isnan(found).all()
    assert joint.fill_constant(np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])).tolist() == [
        [1, 0],
        [3, 0],
        [2, 0],
    ]
    assert joint.measure_loosening(found, np.ones(2), np.full(2, 0.1)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("days", "step"), [(1, 1), (7, 1), (28, 1), (92, 1), (93, 3), (364, 4), (3640, 40), (3653, 281), (97, 97)]
)
def test_a_long_window_slides_by_more_than_a_day(days: int, step: int) -> None:
    window = timedelta(days=days)
    assert windows.choose_unit(window) == timedelta(days=step)
    assert windows.units_in(window) == days // step <= windows.MOST_UNITS


def test_a_window_of_no_number_of_days_slides_by_itself() -> None:
    assert windows.choose_unit(timedelta(hours=30)) == timedelta(hours=30)
