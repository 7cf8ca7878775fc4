"""monitoring.drift: what stays alarms as seldom as it says; what changes is found and named; nothing crashes."""

import math
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from scipy import stats

from tasks.monitoring import drift, monitor, report
from tasks.monitoring.drift import ColumnDrift, Comparison
from tasks.monitoring.signal import Signal
from tasks.monitoring.signals.drift import measure_drift, measure_prediction
from tasks.monitoring.signals.quality import measure_quality
from tasks.monitoring.statistics import History
from tasks.monitoring.window import Window
from tasks.params import Task
from tasks.training.model import Model, import_xgboost, make_spec
from tasks.training.profile import SCORE_COLUMN, Profile, to_score_columns
from tests.tasks import small, stream
from tests.tasks.stream import BEGIN, FALSE_ALARMS, PER_DAY, WEEK, Times

PAST = 91  # days
TABLE, TIMES = stream.made(PAST + 7, seed=2)  # whose last week is one of the many that are quiet
CUT = PAST * PER_DAY
PROFILE = stream.profile(TABLE.slice(0, CUT), TIMES[:CUT])
NOW, NOW_TIMES = TABLE.slice(CUT), TIMES[CUT:]
ROWS = NOW.num_rows


def found(table: pa.Table, times: Times = NOW_TIMES) -> Comparison:
    return stream.compared(PROFILE, table, times)


def names(of: Comparison) -> list[str]:
    return [each.name for each in of.moved]


def column(of: Comparison, name: str) -> ColumnDrift:
    return next(each for each in of.columns if each.name == name)


def told(of: Comparison, scores: Comparison | None = None, *, whole: bool = True) -> dict[str, Signal]:
    window = Window(
        BEGIN, BEGIN + WEEK, drift=of, score_drift=scores or of, is_whole=whole, rows=of.rows, rows_before=of.rows
    )
    measures = (measure_drift, measure_prediction, measure_quality)
    signals = [measure(window, stream.watched(PROFILE)) for measure in measures]
    return {signal.kind: signal for signal in signals}


# --- how often it alarms when nothing has changed


def test_a_stream_that_does_not_change_alarms_at_about_the_stated_rate() -> None:
    """Streams of their own, a history and the week after it each: the alarms are binomial."""
    streams, share = 80, FALSE_ALARMS * 7 / 30
    alarms = sum(stream.compared(*_split(*stream.made(63, seed=seed, per_day=30), 56)).alarm for seed in range(streams))
    low, high = stats.binom.ppf([0.0005, 0.9995], streams, share)
    assert low <= alarms <= high + 0.05 * streams  # the threshold is an estimate of 8 windows, too


def _split(table: pa.Table, times: Times, days: int) -> tuple[Profile, pa.Table, Times]:
    cut = table.num_rows * days // int((times[-1] - times[0]) / np.timedelta64(1, "D") + 1)
    return stream.profile(table.slice(0, cut), times[:cut]), table.slice(cut), times[cut:]


def test_a_quiet_week_is_quiet() -> None:
    assert not found(NOW).alarm
    assert names(found(NOW)) == []
    assert told(found(NOW))["quality"].alarm is False


def test_more_false_alarms_allowed_make_a_lower_threshold() -> None:
    of = [drift.compare(PROFILE, NOW, NOW_TIMES, false_alarms=each) for each in (0.05, 0.25, 1.0)]
    assert of[0].threshold > of[1].threshold > of[2].threshold
    assert of[0].signal == of[1].signal == of[2].signal


@pytest.mark.parametrize("days", [1, 7, 20])
def test_below_three_windows_of_history_nothing_alarms(days: int) -> None:
    of = stream.profile(TABLE.slice(0, days * PER_DAY), TIMES[: days * PER_DAY])
    far = stream.compared(of, stream.moved(NOW, "size", 50), NOW_TIMES)
    assert (far.alarm, far.columns) == (False, ())
    assert "history" in told(far)["drift"].message
    assert told(far)["drift"].value is None
    assert "no column was looked at" in told(far)["quality"].message


def test_the_threshold_of_a_short_history_is_extrapolated_above_all_that_it_shows() -> None:
    """Of three windows none tells what happens once in seventeen."""
    of = stream.profile(TABLE.slice(0, 22 * PER_DAY), TIMES[: 22 * PER_DAY])
    usual = History(of, FALSE_ALARMS, of.columns, with_terms=True)
    seen = usual.signal(usual.own)
    told_by_number = 1 / (usual.windows + 1)
    assert usual.windows == pytest.approx(22 / 7)
    assert usual.threshold == pytest.approx(
        np.quantile(seen, 1 - told_by_number, method="higher") + math.log(told_by_number / usual.share)
    )
    assert usual.share < told_by_number


def test_the_threshold_of_a_long_history_is_a_quantile_of_it() -> None:
    one = History(stream.profile(*stream.made(140, seed=4)), FALSE_ALARMS, PROFILE.columns, with_terms=True)
    usual = replace(one, columns=one.profile.columns)
    seen = usual.signal(usual.own)
    assert usual.threshold == np.quantile(seen, 1 - usual.share, method="higher")
    assert (seen > usual.threshold).mean() <= usual.share


# --- what it finds


def test_a_mean_that_shifts_is_found_and_named() -> None:
    of = found(stream.moved(NOW, "noise", 0.5))
    assert of.alarm
    assert names(of)[0] == "noise"
    before, after = (float(each) for each in re.findall(r"-?\d+\.?\d*", column(of, "noise").change))
    assert after - before == pytest.approx(0.5, abs=0.3)


def test_a_category_whose_share_doubles_is_found_and_named() -> None:
    store, draws = np.array(NOW["store"].to_pylist()), np.random.default_rng(0).random(ROWS)
    share = (store == "west").mean()
    store[(store != "west") & (draws < share / (1 - share))] = "west"
    of = found(stream.changed(NOW, "store", store.tolist()))
    assert of.alarm
    assert names(of)[0] == "store"
    assert re.fullmatch(r"west .*% → .*%", column(of, "store").change)


@pytest.mark.parametrize("name", ["size", "weight", "volume"])
def test_a_column_that_moves_alone_against_its_partners_is_found_where_its_own_distribution_hides_it(name: str) -> None:
    """The days move all three by 0.5, so that 0.3 more is nothing; but the others stay, and always went with it."""
    alone, together = found(stream.moved(NOW, name, 0.3)), NOW
    for each in ("size", "weight", "volume"):
        together = stream.moved(together, each, 0.3)
    assert alone.alarm
    assert names(alone) == [name]
    assert column(found(together), name).distance == column(alone, name).distance
    assert names(found(together)) == []
    assert not found(together).alarm


@pytest.mark.parametrize("name", ["size", "weight", "volume", "noise"])
def test_the_culprit_is_named_and_what_merely_went_with_it_is_not(name: str) -> None:
    assert names(found(stream.moved(NOW, name, 1.0))) == [name]


def test_a_season_that_moves_what_goes_together_is_less_than_one_that_moves_it_apart() -> None:
    together = stream.moved(stream.moved(stream.moved(NOW, "size", 0.4), "weight", 0.4), "volume", 0.4)
    apart = stream.moved(stream.moved(stream.moved(NOW, "size", 0.4), "weight", -0.4), "volume", 0.4)
    assert found(apart).signal > 5 * max(found(together).signal, 1)


def test_one_odd_day_in_a_week_is_no_shift_and_four_are() -> None:
    day = np.arange(ROWS) // PER_DAY
    noise = NOW["noise"].to_numpy()
    for odd, alarm in ((1, False), (4, True)):
        stormy = (noise + np.where(day < odd, 3.0, 0.0)).astype(np.float32)
        assert found(stream.changed(NOW, "noise", stormy)).alarm is alarm


def test_the_same_shift_has_more_evidence_in_a_column_of_more_importance() -> None:
    shifted = stream.moved(NOW, "noise", 0.4)
    signals = []
    for importance in (0.0, 1.0, 10.0):
        of = stream.profile(
            TABLE.slice(0, CUT), TIMES[:CUT], importance={**stream.IMPORTANCE, "noise": importance, "size": 1.0}
        )
        signals.append(column(stream.compared(of, shifted, NOW_TIMES), "noise").evidence)
    assert signals[0] < signals[1] < signals[2]


def test_a_column_of_no_importance_can_still_alarm() -> None:
    of = stream.profile(TABLE.slice(0, CUT), TIMES[:CUT], importance={"size": 1.0})
    assert stream.compared(of, stream.moved(NOW, "noise", 1.5), NOW_TIMES).alarm


def test_predictions_that_move_are_found() -> None:
    scores = stream.scores(NOW)
    quiet, moved = (
        drift.compare_scores(PROFILE, each, NOW_TIMES, false_alarms=FALSE_ALARMS) for each in (scores, np.sqrt(scores))
    )
    assert (quiet.alarm, moved.alarm) == (False, True)
    assert told(found(NOW), moved)["prediction"].alarm


def test_the_predictions_of_each_class_are_held_against_their_own() -> None:
    rng = np.random.default_rng(0)
    three = rng.dirichlet([5, 3, 2], CUT + ROWS)
    classes = ("early", "very late", "fair")
    of = stream.profile(TABLE.slice(0, CUT), TIMES[:CUT], scores=to_score_columns(three[:CUT], classes))
    now = three[CUT:]
    assert not drift.compare_scores(of, now, NOW_TIMES, false_alarms=FALSE_ALARMS).alarm
    moved = drift.compare_scores(of, now[:, [0, 2, 1]], NOW_TIMES, false_alarms=FALSE_ALARMS)
    assert {each.name for each in moved.moved} == {"_score very late", "_score fair"}


@pytest.mark.parametrize("hours", [6, 36])
def test_windows_that_are_no_whole_days_are_measured_too(hours: int) -> None:
    window = timedelta(hours=hours)
    of = stream.profile(TABLE.slice(0, CUT), TIMES[:CUT], window=window)
    inside = np.asarray((NOW_TIMES[-1] - NOW_TIMES) <= np.timedelta64(hours, "h"))
    rows, times = NOW.filter(pa.array(inside)), NOW_TIMES[inside]
    assert not stream.compared(of, rows, times).alarm
    assert stream.compared(of, stream.moved(rows, "noise", 5), times).alarm


# --- bad input


def test_an_empty_window_is_no_alarm_of_drift() -> None:
    of = found(NOW.slice(0, 0), NOW_TIMES[:0])
    assert (of.alarm, of.rows) == (False, 0)
    assert "no rows in the window" in told(of)["drift"].message
    assert "no rows in the window" in told(of)["prediction"].message


def test_a_window_that_is_hardly_covered_alarms_about_nothing() -> None:
    far = found(stream.moved(NOW, "noise", 50))
    assert told(far, whole=True)["drift"].alarm
    signals = told(far, whole=False)
    assert not signals["drift"].alarm
    assert not signals["prediction"].alarm
    assert "too little of the window" in signals["drift"].message


@pytest.mark.parametrize("name", TABLE.column_names)
def test_a_column_that_is_gone_is_a_fault_of_quality_and_no_crash(name: str) -> None:
    of = found(NOW.drop_columns([name]))
    assert of.gone == (name,)
    assert names(of) == []
    quality = told(of)["quality"]
    assert quality.alarm
    assert f"{name} is gone, or holds another type" in quality.message


def test_a_number_that_has_become_text_is_a_fault_of_quality() -> None:
    of = found(NOW.set_column(0, "size", NOW["size"].cast(pa.string())))
    assert of.gone == ("size",)
    assert names(of) == []


def test_a_category_that_has_become_a_number_is_full_of_new_levels() -> None:
    of = found(stream.changed(NOW, "store", np.arange(ROWS)))
    assert of.gone == ()
    assert names(of)[0] == "store"
    assert column(of, "store").faults == ("100.0% never seen before, at most 0.0% in any window of its history",)


def test_missing_new_and_out_of_range_values_are_told_when_they_are_more_than_ever_before() -> None:
    some = np.arange(ROWS) % 10 == 0
    noise = NOW["noise"].to_numpy()
    lost = pa.array(noise, mask=some)
    far = np.where(some, 99.0, noise)
    new = np.where(some, "east", NOW["store"].to_pylist()).tolist()
    half = np.where(some, 1.5, NOW["count"].to_numpy())
    for name, values, fault in (
        ("noise", lost, "10.0% missing"),
        ("noise", far, "10.0% out of range"),
        ("store", new, "10.0% never seen before"),
        ("count", half, "10.0% never seen before"),
    ):
        of = found(stream.changed(NOW, name, values))
        assert [each.name for each in of.faulty] == [name]
        assert column(of, name).faults[0].startswith(fault)
        assert told(of)["quality"].alarm


def test_a_few_missing_values_are_no_fault() -> None:
    few = pa.array(NOW["noise"].to_numpy(), mask=np.arange(ROWS) % 25 == 0)
    assert not found(stream.changed(NOW, "noise", few)).faulty


def test_what_history_lacks_as_often_is_no_fault() -> None:
    holes = np.arange(TABLE.num_rows) % 3 == 0
    table = stream.changed(TABLE, "noise", pa.array(TABLE["noise"].to_numpy(), mask=holes))
    of = stream.compared(stream.profile(table.slice(0, CUT), TIMES[:CUT]), table.slice(CUT), NOW_TIMES)
    assert not of.faulty
    assert not of.alarm


def test_a_column_that_is_missing_altogether_says_so() -> None:
    of = found(stream.changed(NOW, "noise", pa.nulls(ROWS, pa.float32())))
    assert column(of, "noise").change.endswith("→ nan, missing 0.0% → 100.0%")


def test_columns_that_hold_nothing_or_one_value_are_quiet_until_they_change() -> None:
    table = TABLE.append_column("nothing", pa.nulls(TABLE.num_rows, pa.float32()))
    table = table.append_column("void", pa.nulls(TABLE.num_rows, pa.string()))
    table = table.append_column("constant", pa.array(np.full(TABLE.num_rows, 7.0)))
    table = table.append_column("single", pa.array(["only"] * TABLE.num_rows))
    of, now = stream.profile(table.slice(0, CUT), TIMES[:CUT]), table.slice(CUT)
    quiet = stream.compared(of, now, NOW_TIMES)
    assert not quiet.alarm
    assert not quiet.faulty
    for name, values in (
        ("nothing", np.ones(ROWS)),
        ("void", ["x"] * ROWS),
        ("constant", np.full(ROWS, 8.0)),
        ("single", ["other"] * ROWS),
    ):
        changed = stream.compared(of, stream.changed(now, name, values), NOW_TIMES)
        assert names(changed) == [name]
        assert [each.name for each in changed.faulty] == [name]


def test_texts_of_any_kind_are_levels_like_others() -> None:
    odd = ["a\0b", "é|\n", "<script>alert(1)</script>", ""]
    table = TABLE.append_column("odd", pa.array([odd[i % 4] for i in range(TABLE.num_rows)]))
    of = stream.profile(table.slice(0, CUT), TIMES[:CUT])
    assert not stream.compared(of, table.slice(CUT), NOW_TIMES).alarm
    assert names(stream.compared(of, stream.changed(table.slice(CUT), "odd", ["a\0b"] * ROWS), NOW_TIMES)) == ["odd"]


# --- root cause


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_what_moved_the_scores_is_first_among_the_causes(task: Task) -> None:
    rows = small.made_rows(task, per_day=30)
    twin = _fitted(task, rows)
    parts = twin.contributions(rows.table.slice(0, 400)).mean(axis=0)
    of = stream.profile(
        rows.table,
        rows.event_time,
        importance={},
        contributions=parts,
        scores=to_score_columns(twin.predict(rows.table), twin.spec.classes),
    )
    week = rows.event_time >= rows.event_time[-1] - np.timedelta64(7, "D")
    now = stream.moved(rows.table.filter(pa.array(week)), "distance", 2)
    moved = stream.compared(of, now, rows.event_time[week])
    window = Window(BEGIN, BEGIN, features=now, drift=moved)
    listed = monitor.find_causes(window, replace(stream.watched(of), twin=twin))
    assert listed[0].name == "distance"
    assert len(listed) == len(twin.spec.names)
    assert listed[0].score > 3
    assert "median about" in listed[0].change


def _fitted(task: Task, rows: Any) -> Model:
    objective = {"binary": "binary:logistic", "multiclass": "multi:softprob", "regression": "reg:squarederror"}[task]
    spec, xgb = make_spec(rows.table, rows.label, task=task), import_xgboost()
    settings: dict[str, Any] = {"objective": objective, "max_depth": 3, "nthread": 1}
    settings |= {"num_class": 3} if task == "multiclass" else {}
    data = xgb.DMatrix(spec.encode(rows.table), spec.scale_label(rows.label))
    return Model(xgb.train(settings, data, 10), spec)


def test_the_slices_that_lost_most_come_first_and_small_ones_do_not_come() -> None:
    then = {"store": np.array(["a", "b", "c"] * 100)}
    now: dict[str, NDArray[Any]] = {"store": np.array(["a"] * 50 + ["b"] * 50 + ["c"] * 5 + [None] * 10, dtype=object)}
    losses = np.concatenate([np.full(50, 0.1), np.full(50, 0.9), np.full(15, 5.0)])
    listed = monitor.compare_slices(then, np.full(300, 0.3), now, losses, min_rows=20)
    assert [(each.name, each.value, each.rows) for each in listed] == [("store", "b", 50), ("store", "a", 50)]
    assert (listed[0].loss_then, listed[0].loss_now) == (pytest.approx(0.3), pytest.approx(0.9))


# --- Evidently's report


def sample(table: pa.Table) -> pa.Table:
    return table.append_column(SCORE_COLUMN, pa.array(stream.scores(table))).slice(0, 400)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """A report of a week that lost a column, has an empty one, and one with odd texts; written twice."""
    folder = tmp_path_factory.mktemp("reports")
    texts = ["plain", "<script src='http://evil.example/x.js'></script>", "é\n|"]
    table = TABLE.append_column("text", pa.array([texts[i % 3] for i in range(TABLE.num_rows)]))
    table = table.append_column("none", pa.nulls(TABLE.num_rows, pa.string()))
    of, now = stream.profile(table.slice(0, CUT), TIMES[:CUT]), stream.moved(table.slice(CUT), "noise", 0.8)
    window = now.drop_columns(["size"])
    moved = stream.compared(of, window, NOW_TIMES)
    said = drift.compare_scores(of, stream.scores(now), NOW_TIMES, false_alarms=FALSE_ALARMS)
    shown = sample(now).set_column(0, "size", pa.nulls(400, pa.float32()))
    for _ in range(2):
        page = report.draw_report(
            moved,
            sample(table),
            shown,
            scores=said,
            until=BEGIN + WEEK,
            html=folder / "reports" / "drift.html",
            workspace=folder / "evidently",
            project="made",
        )
    return page, moved


def test_the_report_is_a_page_that_needs_no_network(drawn: tuple[Path, Comparison]) -> None:
    text = drawn[0].read_text()
    assert re.findall(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)\s*=\s*[^>]*//[^>]*>", text) == []
    assert "evil.example" in text  # as a level that is drawn, and no more
    assert "noise" in text
    assert ("Dataset Drift is detected" in text) is drawn[1].alarm
    assert sorted(each.name for each in drawn[0].parent.iterdir()) == ["drift.html"]


def test_the_window_written_twice_is_one_snapshot_with_our_scores_and_thresholds(
    drawn: tuple[Path, Comparison],
) -> None:
    from evidently.ui.workspace import Workspace

    page, moved = drawn
    held = Workspace.create(str(page.parent.parent / "evidently"))
    (project,) = held.search_project("made")
    (run,) = held.list_runs(project.id)
    snapshot = held.get_run(project.id, run)
    assert snapshot.timestamp == BEGIN + WEEK
    results = [each.dict() for each in snapshot.metric_results.values()]
    asked = [each["metric_value_location"]["metric"]["params"] for each in results]
    shown = {
        each["column"]: (result["value"], each["threshold"])
        for result, each in zip(results, asked, strict=True)
        if "column" in each
    }
    ours = [each for each in moved.columns if each.name not in ("size", "none")]
    assert shown.keys() == {each.name for each in ours} | {"_score"}
    for each in ours:
        assert shown[each.name] == (pytest.approx(each.score), pytest.approx(each.threshold, abs=1e-4))


def test_only_so_many_snapshots_stay_and_the_newest_are_among_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "SNAPSHOTS", 2)
    now, left = sample(NOW), list[Path]()
    for day in range(4):
        until = BEGIN + timedelta(days=day)
        where = {"html": tmp_path / "drift.html", "workspace": tmp_path / "evidently", "project": "made"}
        report.draw_report(found(NOW), now, now, until=until, **where)
        found_now = sorted(tmp_path.glob("evidently/*/snapshots/*.json"), key=lambda path: path.stat().st_mtime)
        left.append(found_now[-1])
    assert found_now == left[-2:]


def test_only_so_many_reports_stay_and_the_one_just_drawn_is_among_them(tmp_path: Path) -> None:
    for day in range(report.REPORTS + 3):
        (tmp_path / f"drift-2025-01-{day + 1:02}.html").write_text("older")
    now = sample(NOW)
    page = report.draw_report(found(NOW), now, now, until=BEGIN, html=tmp_path / "drift-2024-01-01.html")
    assert page.stat().st_size > 10_000
    listed = sorted(each.name for each in tmp_path.iterdir())
    assert len(listed) == report.REPORTS
    assert listed[0] == page.name
    assert listed[-1] == f"drift-2025-01-{report.REPORTS + 3:02}.html"
