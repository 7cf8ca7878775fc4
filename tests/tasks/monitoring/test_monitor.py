"""monitoring.monitor on a real registry and journal: what is measured of a window, and of late, odd or no input."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tasks import params
from tasks.data.featurerows import Rows
from tasks.monitoring import decisions, monitor, page
from tasks.monitoring.drift import compare_scores
from tasks.monitoring.excess import expect_log_loss
from tasks.monitoring.monitor import Measured
from tasks.monitoring.policy import Decision
from tasks.monitoring.signal import Signal, name_cause, read_signals
from tasks.monitoring.signals import quality
from tasks.monitoring.signals.estimate import measure_estimate
from tasks.monitoring.signals.performance import measure_performance
from tasks.monitoring.window import (
    FILES,
    Predictions,
    Watched,
    Window,
    load_watched,
    read_newest,
    read_watched,
    select_features,
)
from tasks.params import Params, Policy
from tasks.promotion import changes, registry
from tasks.promotion.contest import row_losses
from tasks.promotion.registry import Registry, Version
from tasks.promotion.runs import Bundle
from tasks.serving.journal import Journal
from tasks.serving.journal_log import LocalLogs
from tasks.serving.predictions import latest_outcomes
from tasks.serving.schema import make_entry
from tasks.training import columns, evaluate, model, train
from tasks.training.labels import EarlyLabels
from tests.registries import place_tables
from tests.tasks import journalled, small

DAY = timedelta(days=1)
WINDOW = 4 * DAY
FIRST = small.AS_OF  # the champion is made of what was known then, and predicts from then on
LAST = FIRST + 20 * DAY
ROWS = small.made_rows(days=small.DAYS + 20, seed=11)
NEW = ROWS.take(ROWS.event_time >= np.datetime64(FIRST))


def settings(**overrides: Any) -> Params:
    p = small.settings(**{"monitor.window": "4d", "evaluate.slice_rows": 40, "evaluate.baselines": [], **overrides})
    return p.model_copy(update={"policy": Policy(min_rows=50)})


def trained(folder: Path, p: Params) -> Path:
    """A folder as train and evaluate leave it, at FIRST."""
    small.write(folder, small.known(ROWS, FIRST), p)
    small.tuned(folder, p)
    train.train(p, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "BINS", 8)  # the rows are few
        evaluate.evaluate(p, folder)
    return folder


def crowned(known: Registry, folder: Path, scratch: Path, *, name: str = "one", drop: tuple[str, ...] = ()) -> Version:
    """A champion of what lies in the folder; its run lacks the reports that are to be dropped."""
    files = scratch / f"files {name}"
    shutil.copytree(folder / "reports", files / "reports")
    for each in drop:
        (files / "reports" / each).unlink()
    one = model.Model.load(folder / "models/model.ubj")
    features = [{"name": each.name, "kind": each.kind} for each in one.spec.features]
    bundle = Bundle(folder / "models/model.ubj", folder / "models/twin.ubj", features, ROWS.table.slice(0, 2))
    empty: dict[str, Any] = {"params": {}, "metrics": {}, "counts": {}, "datasets": [], "trials": []}
    run = known.runs.log(name, name=name, note="", tags={}, files=files, bundle=bundle, **empty)
    return changes.promote(
        known, run, decision=name, verdict={"outcome": "PROMOTE", "reasons": []}, as_of=FIRST, tags={}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("trained"), settings())


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    uri = place_tables(tmp_path_factory.mktemp("registry"))
    return registry.open_registry(params.Registry(model="made", experiment="made", top_trials=0), uri=uri)


@pytest.fixture(scope="module")
def of(known: Registry, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return load_watched(settings(), known, crowned(known, folder, tmp_path_factory.mktemp("crowned")))


@dataclass(frozen=True)
class Shop:
    """The journal of what a champion predicts, and the monitor that reads it."""

    of: Watched
    known: Registry
    kept: Journal

    def predicts(self, rows: Rows, *, version: int | None = None, drop: tuple[str, ...] = ()) -> list[str]:
        """As tasks.serving.score journals it; the entries."""
        entries = [make_entry(str(each), i) for i, each in enumerate(rows.event_time)]
        named = {f"x_{name}": rows.table[name] for name in self.of.model.spec.names if name not in drop}
        made = journalled.predictions(
            entries,
            version=version or self.of.version.number,
            event_time=rows.event_time,
            made_at=LAST,
            score=self.of.model.predict(rows.table).astype(np.float64),
            **named,
        )
        self.kept.append("predictions", made)
        return entries

    def hears(self, entries: list[str], label: Any, rows: Rows, *, made_at: datetime = LAST) -> None:
        names = [make_entry(entry, value, made_at) for entry, value in zip(entries, label, strict=True)]
        told = journalled.outcomes(names, subject=entries, label=label, made_at=made_at, event_time=rows.event_time)
        self.kept.append("outcomes", told)

    def lives(self, rows: Rows = NEW) -> list[str]:
        """Predictions, and the outcome of each."""
        entries = self.predicts(rows)
        self.hears(entries, rows.label, rows)
        return entries

    def measures(self, as_of: datetime = LAST, p: Params | None = None) -> Measured:
        champion = replace(self.of, p=p or self.of.p)
        return monitor.measure_window(champion, journal=self.kept, registry=self.known, as_of=as_of)

    def signals(self, as_of: datetime = LAST) -> dict[str, Signal]:
        return {each.kind: each for each in self.measures(as_of).signals}


@pytest.fixture
def shop(of: Watched, known: Registry, tmp_path: Path) -> Iterator[Shop]:
    kept = Journal(LocalLogs(tmp_path / "logs"), str(tmp_path / "parquet"))
    yield Shop(of, known, kept)
    kept.close()


def between(since: datetime, until: datetime, rows: Rows = NEW) -> Rows:
    return rows.take((rows.event_time >= np.datetime64(since)) & (rows.event_time < np.datetime64(until)))


def with_table(rows: Rows, name: str, values: Any) -> Rows:
    table = rows.table.set_column(rows.table.column_names.index(name), name, pa.array(values))
    return replace(rows, table=table)


# --- a window


def test_a_stream_that_goes_on_as_it_was_is_quiet(shop: Shop) -> None:
    shop.lives()
    found = shop.signals()
    assert found.keys() == {"performance", "freshness", "estimate", "drift", "prediction", "quality"}
    assert [each.kind for each in found.values() if each.alarm] == []
    assert all(each.version == shop.of.version.number for each in found.values())
    assert found["drift"].value is not None
    assert found["prediction"].value is not None


def test_the_loss_is_that_of_the_mature_rows_and_of_no_others(shop: Shop) -> None:
    shop.lives()
    found = shop.signals()["performance"]
    mature = between(LAST - DAY - WINDOW, LAST - DAY)
    losses = row_losses(mature.label, shop.of.model.predict(mature.table), metric="log_loss")
    assert found.rows == len(mature)
    assert found.value == pytest.approx(losses.mean(), rel=1e-9)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert found.detail["at_promotion"] == pytest.approx(json.loads(_metrics(shop))["log_loss"], rel=1e-4)


def _metrics(shop: Shop) -> str:
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        return shop.known.runs.fetch(shop.of.version.run_id, "reports/metrics.json", Path(scratch)).read_text()


def test_outcomes_that_turn_alarm(shop: Shop) -> None:
    turned = replace(NEW, label=1 - NEW.label)
    shop.lives(turned)
    found = shop.measures()
    assert {each.kind for each in found.signals if each.alarm} == {"performance"}
    assert found.causes
    assert [each.name for each in found.slices] == ["store"] * 3
    assert all(each.loss_now > each.loss_then for each in found.slices)


def test_a_column_that_moves_alarms_and_is_named_with_what_it_did_to_the_scores(shop: Shop) -> None:
    shop.predicts(with_table(NEW, "distance", (NEW.table["distance"].to_numpy() + 1).astype(np.float32)))
    found = shop.measures()
    assert {"drift", "prediction"} <= {each.kind for each in found.signals if each.alarm}
    assert found.drift.moved[0].name == "distance"
    assert found.causes[0].name == "distance"
    assert found.causes[0].shift > 0  # a longer way is late oftener


def test_a_window_of_which_the_journal_holds_a_part_alarms_about_no_drift(shop: Shop) -> None:
    moved = with_table(NEW, "distance", (NEW.table["distance"].to_numpy() + 3).astype(np.float32))
    shop.predicts(between(LAST - 2 * DAY, LAST, moved))
    assert not shop.signals()["drift"].alarm


def test_a_handful_of_rows_alarms_about_no_drift(shop: Shop) -> None:
    shop.predicts(between(FIRST, LAST - WINDOW))
    shop.predicts(NEW.take(np.arange(len(NEW)) >= len(NEW) - 5))
    found = shop.signals()
    assert "5 rows are fewer than policy.min_rows (50)" in found["drift"].message
    assert found["quality"].alarm  # of volume


def test_drift_is_measured_over_the_length_that_its_thresholds_come_from(shop: Shop) -> None:
    shop.lives()
    p = shop.of.p.model_copy(update={"monitor": params.Monitor(window=DAY)})
    found = {each.kind: each for each in shop.measures(p=p).signals}
    assert found["drift"].window_end - found["drift"].window_begin == WINDOW
    assert found["performance"].window_end - found["performance"].window_begin == DAY


# --- no input, late input, odd input


def test_an_empty_window_is_an_alarm_of_volume_and_nothing_else(shop: Shop) -> None:
    found = shop.signals()
    assert [each.kind for each in found.values() if each.alarm] == ["quality"]
    assert found["quality"].message.endswith(
        "0 rows came, 0 in the monitor.window (4d) before; fewer than half as many alarm."
    )
    assert "no mature outcomes" in found["performance"].message
    assert "estimate" not in found
    assert shop.kept.read("signals").num_rows == len(found)


@pytest.mark.parametrize(
    ("since", "before", "alarm"), [(FIRST - DAY, 0, False), (FIRST - DAY, 3, True), (FIRST, 0, True)]
)
def test_an_empty_window_that_begins_before_a_first_champion_is_no_alarm(
    since: datetime, before: int, alarm: bool, of: Watched
) -> None:
    found = quality.check_volume(Window(since, since + WINDOW, rows_before=before), of)
    assert found.alarm is alarm
    assert ("No row has come since version" in found.sentence) is not alarm


def test_half_of_the_rows_is_an_alarm_of_volume(shop: Shop) -> None:
    shop.predicts(between(FIRST, LAST - WINDOW))
    few = between(LAST - WINDOW, LAST)
    shop.predicts(few.take(np.arange(len(few)) % 3 == 0))
    assert shop.signals()["quality"].alarm


def test_labels_that_never_come_leave_an_estimate_and_alarm_about_the_feed_alone(shop: Shop) -> None:
    shop.predicts(NEW)
    found = shop.signals()
    assert found["performance"].value is None
    assert not found["performance"].alarm
    assert found["estimate"].value is not None
    assert found["estimate"].message.startswith("Estimated log loss")
    assert [signal.kind for signal in found.values() if signal.alarm] == ["quality"]
    assert "labels: 0.0% of " in found["quality"].message


def test_a_feed_that_stops_alarms_long_before_a_far_deadline(shop: Shop) -> None:
    """Labels come within two days, may take ten, and end on the day FIRST + 14."""
    entries, until = shop.predicts(NEW), FIRST + 14 * DAY
    for champion, told in (
        (shop.of, ""),
        (replace(shop.of, profile=replace(shop.of.profile, early_labels=EarlyLabels(2 * DAY, 0.95))), "2d after"),
    ):
        p = champion.p.model_copy(update={"label": champion.p.label.model_copy(update={"deadline": 10 * DAY})})
        come = NEW.event_time < np.datetime64(until)
        shop.hears([entry for entry, here in zip(entries, come, strict=True) if here], NEW.label[come], NEW.take(come))
        measure = partial(monitor.measure_window, replace(champion, p=p), journal=shop.kept, registry=shop.known)
        early, late = (
            {signal.kind: signal for signal in measure(as_of=as_of).signals}["quality"] for as_of in (until, LAST)
        )
        assert not early.alarm
        assert late.alarm is bool(told)
        assert told in late.message


def test_the_share_that_stayed_unlabelled_is_told(shop: Shop) -> None:
    entries = shop.predicts(NEW)
    some = np.arange(len(NEW)) % 4 == 0
    shop.hears([each for each, there in zip(entries, some, strict=True) if there], NEW.label[some], NEW.take(some))
    found = shop.signals()["performance"]
    assert found.detail["unlabelled"] == pytest.approx(0.75, abs=0.01)
    assert "75." in found.message or "74." in found.message


def test_outcomes_of_unknown_predictions_and_outcomes_told_twice_change_nothing(shop: Shop) -> None:
    entries = shop.lives()
    before = shop.signals()["performance"]
    shop.hears([f"unknown {i}" for i in range(len(NEW))], 1 - NEW.label, NEW)
    shop.hears(entries, NEW.label, NEW)
    shop.hears(entries, NEW.label, NEW, made_at=LAST + DAY)
    assert shop.signals()["performance"] == before


def test_a_corrected_outcome_replaces_the_earlier_one_and_both_stay_in_the_journal(shop: Shop) -> None:
    entries = shop.lives()
    before = shop.signals()["performance"]
    shop.hears(entries, 1 - NEW.label, NEW, made_at=LAST + DAY)
    after = shop.signals()["performance"]
    assert after.rows == before.rows
    assert before.value
    assert after.value
    assert after.value > 2 * before.value
    assert shop.kept.read("outcomes").num_rows == 2 * len(entries)
    assert set(latest_outcomes(shop.kept.read("outcomes")).by_subject.values()) == {0.0, 1.0}


def test_a_clock_that_went_back_measures_what_was_there_then(shop: Shop) -> None:
    shop.lives()
    late, early = shop.signals(LAST), shop.signals(FIRST + 8 * DAY)
    assert late["drift"].window_end > early["drift"].window_end
    assert early["performance"].rows > 0
    assert shop.signals(FIRST - 100 * DAY)["drift"].rows == 0


def test_what_an_earlier_version_did_without_has_not_gone_missing(shop: Shop) -> None:
    """After a promotion with a new feature, the window holds rows of both; nobody wrote it down for the older."""
    turn = LAST - 2 * DAY
    shop.predicts(between(FIRST, turn), version=shop.of.version.number + 7, drop=("distance",))
    shop.lives(between(turn, LAST))
    found = shop.signals()
    assert [each.kind for each in found.values() if each.alarm] == []
    assert "too little of the window" in found["drift"].message
    assert f"{len(between(LAST - WINDOW, LAST))} rows came" in found["quality"].message
    rows = shop.kept.read("predictions", since=LAST - WINDOW, until=LAST)
    features, times = select_features(rows, shop.of)
    assert len(times) == len(between(turn, LAST))
    assert features["distance"].null_count == 0


def test_rows_of_an_earlier_version_with_the_same_features_count_for_drift_and_not_for_performance(shop: Shop) -> None:
    turn = LAST - 3 * DAY
    shop.predicts(between(FIRST, turn), version=shop.of.version.number + 7)
    shop.lives(between(turn, LAST))
    found = shop.signals()
    assert found["drift"].rows == len(between(LAST - WINDOW, LAST))
    assert found["performance"].rows == len(between(turn, LAST - DAY))


def test_a_column_that_is_empty_from_now_on_is_a_fault_of_quality(shop: Shop) -> None:
    shop.predicts(between(FIRST, LAST - WINDOW))
    rows = between(LAST - WINDOW, LAST)
    shop.predicts(with_table(rows, "store", pa.nulls(len(rows), pa.string())))
    found = shop.signals()["quality"]
    assert found.alarm
    assert "store: 100.0% missing" in found.message


def test_whatever_keeps_a_signal_quiet_its_message_names_a_setting(shop: Shop) -> None:
    """In windows without rows, with a few, half journalled, too short for an interval, and whole."""
    seen = set[tuple[str, bool]]()
    for as_of, hours in ((FIRST, 0), (FIRST + DAY, 12), (LAST, 48)):
        shop.predicts(between(as_of - timedelta(hours=hours), as_of))
        seen |= set(check_settings_named(shop, as_of))
    shop.lives()
    short = shop.of.p.model_copy(update={"monitor": params.Monitor(window=DAY)})
    for p in (shop.of.p, short):
        seen |= set(check_settings_named(shop, LAST, p))
    for kind in ("performance", "drift", "prediction"):
        assert {(kind, False), (kind, True)} <= seen


def check_settings_named(shop: Shop, as_of: datetime, p: Params | None = None) -> Iterator[tuple[str, bool]]:
    """Each quiet signal's kind, and whether it was measured."""
    for signal in shop.measures(as_of, p).signals:
        if signal.alarm or signal.kind in (
            "estimate",
            "freshness",
        ):  # one never alarms; what age costs, no setting moves
            continue
        named = re.findall(r"\b([a-z]+)\.([a-z_]+)\b", signal.message)
        assert any(hasattr(getattr(shop.of.p, section, None), key) for section, key in named), signal.message
        yield signal.kind, signal.is_measured


# --- versions and classes


def test_a_version_without_a_profile_is_refused(shop: Shop, folder: Path, tmp_path: Path) -> None:
    settings_of = params.Registry(model="older", experiment="older", top_trials=0)
    known = registry.open_registry(settings_of, uri=shop.known.tracking.uri)
    older = crowned(known, folder, tmp_path, name="older", drop=("profile.json",))
    with pytest.raises(ValueError, match=r"reports/profile\.json"):
        load_watched(settings(), known, older)


def decision(**changes: Any) -> Decision:
    given: dict[str, Any] = {"action": "retrain", "id": "a", "as_of": LAST, "version": 1, "reasons": ("Because.",)}
    return Decision(**{**given, **changes})


def test_a_champion_of_several_classes_is_measured_class_by_class(tmp_path: Path) -> None:
    """A class that came after the twin was trained is none that the champion knows."""
    p = small.settings("multiclass", **{"monitor.window": "4d", "evaluate.baselines": ["constant"]})
    rows = small.relabelled(small.made_rows("multiclass", per_day=40), _absent, small.HELD_FROM)
    of = watched_by_hand(tmp_path, p, rows)
    assert of.twin.spec.classes == of.model.spec.classes == ("early", "fair", "late")
    told = json.loads((tmp_path / "reports/metrics.json").read_text())
    assert of.at_promotion.excess.loss == pytest.approx(told["log_loss"], rel=1e-4)
    inside = rows.event_time >= np.datetime64(small.AS_OF - WINDOW)
    scores = of.model.predict(rows.table)[inside]
    drifted = compare_scores(of.profile, scores, rows.event_time[inside], false_alarms=p.drift.false_alarms)
    assert [each.name for each in drifted.columns] == ["_score early", "_score fair", "_score late"]
    assert not drifted.alarm
    labels = np.array(rows.label[inside], dtype=object)
    window = window_of(Predictions(small.AS_OF - WINDOW, small.AS_OF, rows.event_time[inside], scores, labels))
    found = measure_performance(window, of)
    known = labels != "absent"
    losses = row_losses(of.model.spec.encode_label(labels[known]), scores[known], metric="log_loss")
    assert found.value == pytest.approx(losses.mean())
    guess = measure_estimate(window, of)
    assert guess is not None
    assert guess.value == pytest.approx(float(expect_log_loss(scores).mean()))


def window_of(rows: Predictions) -> Window:
    """In which all outcomes are mature."""
    return Window(rows.since, rows.until, mature=rows, recent=rows)


def watched_by_hand(folder: Path, p: Params, rows: Rows) -> Watched:
    """What train and evaluate make of these rows, without a registry."""
    small.write(folder, rows, p)
    small.tuned(folder, p)
    train.train(p, folder)
    evaluate.evaluate(p, folder)
    files = [folder / ("models" if name.endswith(".ubj") else "") / name for name in FILES]
    return read_watched(p, Version(1, "run", "d", "r", FIRST, "c", {}), *files)


def _absent(label: small.Labels) -> small.Labels:
    found = label.copy()
    found[::60] = "absent"
    return found


def test_outcomes_of_classes_that_the_champion_never_saw_are_an_alarm(of: Watched) -> None:
    spec = replace(of.model.spec, task="multiclass", classes=("a", "b"))
    times = np.array([LAST - 2 * DAY] * 30, dtype="datetime64[us]")
    labels = np.array(["new"] * 30, dtype=object)
    window = window_of(Predictions(LAST - WINDOW, LAST, times, np.full((30, 2), 0.5), labels))
    one = model.Model(of.model.booster, spec)
    found = measure_performance(window, replace(of, model=one))
    assert found.alarm
    assert "classes that it never saw" in found.message


# --- figures


@pytest.mark.parametrize("classes", [2, 3])
def test_the_estimate_is_the_measured_loss_where_scores_are_calibrated(classes: int) -> None:
    """Labels drawn from the scores themselves: both are means of the same rows, within four of their errors."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([2] * classes, 20_000)
    labels = (rng.random(len(shares))[:, None] > np.cumsum(shares, axis=1)).sum(axis=1)
    scores = shares[:, 1] if classes == 2 else shares
    losses = row_losses(labels.astype(float), scores, metric="log_loss")
    error = losses.std() / len(losses) ** 0.5
    assert abs(expect_log_loss(scores).mean() - losses.mean()) < 4 * error


def test_regression_has_no_estimate_and_its_own_words(tmp_path: Path) -> None:
    p = small.settings("regression", **{"monitor.window": "4d", "evaluate.baselines": ["constant"]})
    rows = small.made_rows("regression", per_day=30)
    of = watched_by_hand(tmp_path, p, rows)
    inside = rows.event_time >= np.datetime64(small.AS_OF - WINDOW)
    labels = np.empty(int(inside.sum()), dtype=object)
    labels[:] = rows.label[inside]
    scores = of.model.predict(rows.table)[inside]
    window = window_of(Predictions(small.AS_OF - WINDOW, small.AS_OF, rows.event_time[inside], scores, labels))
    assert measure_estimate(window, of) is None
    found = measure_performance(window, of)
    assert found.value == pytest.approx(float(np.sqrt(np.mean((rows.label[inside] - scores) ** 2))), rel=1e-6)
    assert "RMSE" in found.message.upper()


def test_what_people_and_charts_read_bears_odd_names_and_texts(shop: Shop) -> None:
    import mlflow.utils.validation as validation

    shop.lives(replace(NEW, label=1 - NEW.label))
    found = shop.measures()
    odd = replace(found.drift.columns[0], name="hour(a|b) %\0", change="a|b\nc", score=99.0)
    found = replace(found, drift=replace(found.drift, columns=(odd, *found.drift.columns)))
    for name, value in page.list_figures(found).items():
        validation._validate_metric_name(name)
        assert isinstance(value, float)
    text = page.render_page(found, decision())
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)
    assert "| hour(a\\|b) %  | 99.0 |" in text
    assert "\0" not in text


# --- the journal of signals and decisions


def test_measured_again_the_signals_are_the_same_rows(shop: Shop) -> None:
    shop.lives()
    first, again = shop.measures().signals, shop.measures().signals
    assert first == again
    assert shop.kept.read("signals").num_rows == len(first)
    assert sorted(read_signals(shop.kept), key=lambda each: each.kind) == sorted(first, key=lambda each: each.kind)


def test_a_window_that_was_measured_before_its_rows_had_come_is_told_as_it_was_found_last(shop: Shop) -> None:
    early = shop.signals()
    shop.lives()
    late = shop.signals()
    assert (early["drift"].rows, early["quality"].alarm) == (0, True)
    read = {each.kind: each for each in read_signals(shop.kept)}
    assert read == late
    assert shop.kept.read("signals").num_rows > len(late)


def due(shop: Shop, champion: Version, p: Params, *, newest: datetime) -> list[datetime]:
    return monitor.find_due(read_signals(shop.kept), shop.kept, champion, p, newest=newest)


def test_missed_windows_are_made_good(shop: Shop) -> None:
    p, champion = shop.of.p, shop.of.version
    assert due(shop, champion, p, newest=FIRST + 4 * DAY) == [FIRST + 4 * DAY]
    shop.lives()
    shop.measures(FIRST + 4 * DAY)
    assert due(shop, champion, p, newest=FIRST + 5 * DAY) == [FIRST + 5 * DAY]
    assert due(shop, champion, p, newest=FIRST + 8 * DAY) == [FIRST + 8 * DAY]
    ends = due(shop, champion, p, newest=FIRST + 17 * DAY)
    assert ends == [FIRST + days * DAY for days in (8, 12, 16, 17)]
    assert due(shop, champion, p, newest=FIRST + 2 * DAY) == [FIRST + 2 * DAY]
    assert due(shop, replace(champion, number=99), p, newest=LAST) == [LAST]


def test_a_retrain_that_nobody_answered_is_asked_for_again_after_six_hours_and_not_before(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(answered: set[str], p: Params = shop.of.p) -> list[str]:
        requests = decisions.select_asked(decisions.read_requests(shop.kept), answered=answered, p=p)
        return [request.decision for request in requests]

    def pending(answered: set[str]) -> list[str]:
        requests = decisions.read_requests(shop.kept)
        return [one.decision for one in decisions.select_pending(requests, answered=answered, p=shop.of.p)]

    decisions.append_decision(shop.kept, decision(id="a"))
    decisions.append_decision(shop.kept, decision(id="b", action="wait"))
    p = shop.of.p
    assert asked(set()) == ["a"]
    assert pending(set()) == ["a"]
    assert pending({"a"}) == []
    assert timedelta(hours=6) == decisions.PATIENCE
    with monkeypatch.context() as patch:
        patch.setattr(decisions, "PATIENCE", timedelta(0))
        assert asked(set()) == []
        assert asked({"a"}) == ["a"]
        waits = p.gate.model_copy(update={"approval": "required", "approval_within": timedelta(days=1)})
        assert asked(set(), p.model_copy(update={"gate": waits})) == ["a"]
        decisions.append_decision(shop.kept, decision(id="a"))  # at the same event time
    (request,) = decisions.select_recent(decisions.read_requests(shop.kept))
    assert asked(set()) == ["a"]
    assert (request.decision, request.reasons, request.times) == ("a", "Because.", 2)


def test_a_decision_to_wait_is_kept_once_for_its_cause_and_time(shop: Shop) -> None:
    for _ in range(2):
        decisions.append_decision(shop.kept, decision(action="wait"))
    decisions.append_decision(shop.kept, decision(action="wait", as_of=LAST + DAY))
    assert shop.kept.read("decisions").num_rows == 2


def test_rows_of_another_format_are_refused_with_the_way_out(shop: Shop) -> None:
    decisions.append_decision(shop.kept, decision())
    shop.measures()
    for kind, read in (("signals", read_signals), ("decisions", decisions.read_requests)):
        row = shop.kept.read(kind).slice(0, 1).to_pylist()[0] | {"entry": f"older {kind}", "format": None}
        shop.kept.append(kind, pa.Table.from_pylist([row], schema=shop.kept.read(kind).schema))
        with pytest.raises(ValueError, match="begin a new home: set EVERGREEN_HOME"):
            read(shop.kept)


def test_an_alarm_that_goes_on_has_one_cause_and_one_that_comes_back_another(shop: Shop) -> None:
    shop.lives(replace(NEW, label=np.where(NEW.event_time < np.datetime64(FIRST + 5 * DAY), NEW.label, 1 - NEW.label)))
    causes = []
    for days in (5, 12, 16):
        found = shop.signals(FIRST + days * DAY)["performance"]
        causes.append((found.alarm, name_cause(read_signals(shop.kept), found)))
    assert [alarm for alarm, _ in causes] == [False, True, True]
    assert causes[1][1] == causes[2][1]


def test_the_newest_row_is_what_time_it_is(shop: Shop) -> None:
    assert read_newest(shop.kept) is None
    shop.predicts(NEW)
    last = pc.max(pa.array(NEW.event_time)).as_py()
    assert read_newest(shop.kept) == last
    now = datetime.now(UTC).replace(tzinfo=None)
    for entry, at in (("a", last + DAY), ("b", now + DAY)):
        shop.kept.append("predictions", journalled.predictions([entry], by="api", event_time=at, made_at=now))
    assert read_newest(shop.kept) == last + DAY
    assert read_newest(shop.kept, now=last + DAY / 2) == last  # of tomorrow, where history is replayed


def test_the_report_draws_a_sample_of_the_window_with_its_scores(shop: Shop) -> None:
    shop.predicts(NEW)
    drawn = shop.measures().sample
    assert 0 < drawn.num_rows <= shop.of.sample.num_rows
    assert set(drawn.column_names) == {*shop.of.model.spec.names, "_score"} == set(shop.of.sample.column_names)
