"""monitoring.predecessor on a real registry and journal: a worse champion is found out, one that is no worse stays."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.data.featurerows import Rows
from tasks.monitoring import predecessor
from tasks.monitoring.signal import Signal, is_look_due, list_looks
from tasks.params import Params
from tasks.promotion import changes
from tasks.promotion.contest import row_losses
from tasks.promotion.registry import Registry, Version
from tasks.promotion.runs import Bundle
from tasks.serving import predictions
from tasks.serving.journal import Journal
from tasks.serving.schema import make_entry
from tasks.training.evaluate import write_sample
from tasks.training.holdout import CANDIDATE, write_holdout
from tasks.training.model import Model, import_xgboost, make_spec
from tasks.training.profile import build_profile, to_score_columns
from tests.tasks import journalled, small

FIRST = small.BEGIN + timedelta(days=30)  # the models are trained before it, and predict from it on
LAST = small.AS_OF
DEADLINE = timedelta(days=1)
ROWS = small.made_rows(seed=5)
GOOD = ("jam", "distance", "store")


def settings(**overrides: Any) -> Params:
    return small.settings(**{"gate.rule": "non_inferior", "gate.max_megabytes": 1e-9, **overrides})


def fitted(features: tuple[str, ...], *, rows: Rows = ROWS, rounds: int = 30) -> Model:
    """A small model of these features, trained before FIRST."""
    past = rows.take(rows.event_time < np.datetime64(FIRST))
    table = past.table.select(list(features))
    spec, xgb = make_spec(table, past.label, task="binary"), import_xgboost()
    data = xgb.QuantileDMatrix(spec.encode(table), spec.encode_label(past.label))
    return Model(xgb.train({"objective": "binary:logistic", "max_depth": 4, "nthread": 1}, data, rounds), spec)


def write_history(folder: Path, model: Model) -> None:
    """What the monitor compares windows with: rows before FIRST, the last two weeks of them as the holdout."""
    columns = list(model.spec.names)
    past = ROWS.take(ROWS.event_time < np.datetime64(FIRST))
    held = past.take(past.event_time >= np.datetime64(FIRST - timedelta(days=14)))
    scores = model.predict(held.table.select(columns))
    drawn = to_score_columns(scores, model.spec.classes)
    write_holdout(folder / "holdout.parquet", held, {CANDIDATE: scores}, ())
    made = build_profile(
        replace(past, table=past.table.select(columns)),
        importance=dict.fromkeys(columns, 1.0),
        contributions=np.zeros(len(columns)),
        scores=drawn,
        score_times=held.event_time,
        until=FIRST,
        window=timedelta(days=4),
    )
    (folder / "profile.json").write_text(made.to_json())
    write_sample(folder / "reference.parquet", replace(past, table=past.table.select(columns)), held, drawn)


@dataclass(frozen=True)
class Shop:
    """A registry with its champions, and the journal of what they predicted."""

    known: Registry
    kept: Journal
    folder: Path

    def crown(self, name: str, model: Model, *, more: Sequence[Path] = ()) -> Version:
        told = {"outcome": "PROMOTE", "reasons": ["It is better."]}
        return changes.promote(
            self.known, self.logged(name, model, more=more), decision=name, verdict=told, as_of=FIRST, tags={}
        )

    def logged(self, name: str, model: Model, *, more: Sequence[Path] = ()) -> str:
        """The run of a model, with these files beside it."""
        files = self.folder / name
        (files / "reports").mkdir(parents=True)
        for each in more:
            shutil.copy(each, files)
        (files / "reports" / "metrics.json").write_text('{"log_loss": 0.5}')
        write_history(files / "reports", model)
        path, twin = files / "model.ubj", files / "twin.ubj"
        for each in (path, twin):
            each.write_bytes(model.to_bytes())
        features = [{"name": each.name, "kind": each.kind} for each in model.spec.features]
        bundle = Bundle(path, twin, features, ROWS.table.select(model.spec.names).slice(0, 2))
        empty: dict[str, Any] = {"params": {}, "metrics": {}, "counts": {}, "datasets": [], "trials": []}
        tags = {"evergreen.as_of": FIRST.isoformat()}
        return self.known.runs.log(name, name=name, note="", tags=tags, files=files, bundle=bundle, **empty)

    def predicts(self, version: Version, model: Model, *, since: datetime = FIRST, until: datetime = LAST) -> None:
        """Its predictions of the rows between two moments, as tasks.serving.score journals them, and their outcomes."""
        mine = ROWS.take((ROWS.event_time >= np.datetime64(since)) & (ROWS.event_time < np.datetime64(until)))
        table = mine.table.select(model.spec.names)
        entries = [make_entry(version.number, i) for i in range(len(mine))]
        made = journalled.predictions(
            entries,
            version=version.number,
            event_time=mine.event_time,
            made_at=LAST,
            score=model.predict(table).astype(np.float64),
            **{f"x_{name}": table[name] for name in model.spec.names},
        )
        self.kept.append("predictions", made)
        self.outcomes(entries, mine.label, mine.event_time)

    def outcomes(self, entries: list[str], label: Any, event_time: Any, *, made_at: datetime = LAST) -> None:
        names = [make_entry(entry, made_at) for entry in entries]
        told = journalled.outcomes(names, prediction=entries, label=label, made_at=made_at, event_time=event_time)
        self.kept.append("outcomes", told)

    def compare(self, champion: Version, *, looks: int = 0, as_of: datetime = LAST, **overrides: Any) -> Signal | None:
        return predecessor.compare(
            settings(**overrides), journal=self.kept, registry=self.known, champion=champion, as_of=as_of, looks=looks
        )


GOOD_MODEL, POOR_MODEL = fitted(GOOD), fitted(GOOD, rounds=1)


def test_a_champion_that_is_worse_than_its_predecessor_is_found_out(shop: Shop) -> None:
    shop.crown("good", GOOD_MODEL)
    worse = shop.crown("worse", POOR_MODEL)
    shop.predicts(worse, POOR_MODEL)
    found = shop.compare(worse)
    assert found
    assert (found.kind, found.alarm, found.version) == ("predecessor", True, 2)
    assert found.value
    assert found.low
    assert 0 < found.low < found.value
    assert {"predecessor": 1, "outcome": "PROMOTE", "looked": True}.items() <= found.detail.items()
    assert "version 1, which served before version 2, is better than it: log loss 0." in found.message


def test_the_figures_are_the_gates_own_on_the_mature_rows(shop: Shop) -> None:
    shop.crown("good", GOOD_MODEL)
    worse = shop.crown("worse", POOR_MODEL)
    shop.predicts(worse, POOR_MODEL)
    found = shop.compare(worse)
    mature = ROWS.take((ROWS.event_time >= np.datetime64(FIRST)) & (ROWS.event_time < np.datetime64(LAST - DEADLINE)))
    loss = [
        row_losses(mature.label, each.predict(mature.table), metric="log_loss").mean()
        for each in (POOR_MODEL, GOOD_MODEL)
    ]
    assert found
    assert found.rows == len(mature)
    assert found.value == pytest.approx(loss[0] - loss[1], rel=1e-6)


def test_a_champion_that_is_better_or_no_worse_stays(shop: Shop) -> None:
    shop.crown("poor", POOR_MODEL)
    better = shop.crown("better", GOOD_MODEL)
    shop.predicts(better, GOOD_MODEL, until=FIRST + timedelta(days=29))
    twin = shop.crown("twin", fitted(GOOD, rounds=31))
    found = shop.compare(better)
    assert found
    assert (found.alarm, found.detail["outcome"]) == (False, "REJECT")
    assert "is not surely better than it" in found.message
    assert shop.compare(twin)
    shop.predicts(twin, fitted(GOOD, rounds=31), since=FIRST + timedelta(days=5))
    same = shop.compare(twin)
    assert same
    assert not same.alarm


def test_each_look_makes_the_next_one_harder(shop: Shop) -> None:
    shop.crown("good", GOOD_MODEL)
    worse = shop.crown("worse", POOR_MODEL)
    shop.predicts(worse, POOR_MODEL)
    bounds = [found.detail["bound"] for looks in (0, 1, 7) if (found := shop.compare(worse, looks=looks))]
    assert bounds == sorted(bounds, reverse=True)
    assert len(set(bounds)) == 3


def test_without_a_predecessor_there_is_no_signal(shop: Shop) -> None:
    only = shop.crown("only", POOR_MODEL)
    shop.predicts(only, POOR_MODEL)
    assert shop.compare(only) is None


def test_what_was_rolled_back_is_no_predecessor(shop: Shop) -> None:
    first, second = shop.crown("first", POOR_MODEL), shop.crown("second", GOOD_MODEL)
    changes.rollback(shop.known, decision="back", as_of=LAST, reasons=["By hand."])
    third = shop.crown("third", POOR_MODEL)
    shop.predicts(third, POOR_MODEL)
    found = shop.compare(third)
    assert found
    assert (second.number, found.detail["predecessor"]) == (2, first.number)


def test_features_that_the_journal_lacks_say_so_and_give_no_signal(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    shop.crown("wide", fitted((*GOOD, "noise_1")))
    narrow = shop.crown("narrow", POOR_MODEL)
    shop.predicts(narrow, POOR_MODEL)
    assert shop.compare(narrow) is None
    assert "the journal does not hold its features ['noise_1']" in caplog.text


def test_without_mature_outcomes_nothing_is_said_and_no_look_is_spent(shop: Shop) -> None:
    shop.crown("good", GOOD_MODEL)
    worse = shop.crown("worse", POOR_MODEL)
    for said in ("No outcome of its predictions is mature yet", "fewer than gate.min_rows"):
        found = shop.compare(worse, as_of=FIRST + timedelta(days=4))
        assert found
        assert (found.alarm, found.detail["looked"]) == (False, False)
        assert said in found.message
        assert list_looks([found], worse.number, kind="predecessor") == []
        shop.predicts(worse, POOR_MODEL)


def test_the_latest_of_several_outcomes_counts(shop: Shop) -> None:
    shop.crown("good", GOOD_MODEL)
    worse = shop.crown("worse", POOR_MODEL)
    shop.predicts(worse, POOR_MODEL)
    told = shop.kept.read("outcomes")
    turned = [1 - label for label in told["label"].to_pylist()]
    shop.outcomes(told["prediction"].to_pylist(), turned, told["event_time"], made_at=LAST + timedelta(hours=1))
    found = shop.compare(worse)
    assert found
    assert found.detail["outcome"] == "REJECT"  # who was right before is wrong now


def test_of_what_was_asked_several_times_the_last_answer_counts() -> None:
    hour = timedelta(hours=1)
    made = journalled.predictions(
        ["1", "2", "3", "4"],
        subject=["a", "b", "a", "b"],
        made_at=[LAST, LAST + hour, LAST + hour, LAST],
        score=[0.1, 0.2, 0.3, 0.4],
    )
    assert predictions.last_of_each_subject(made)["score"].to_pylist() == [0.2, 0.3]
    assert predictions.last_of_each_subject(journalled.predictions([])).num_rows == 0


def test_rows_that_the_champion_was_trained_on_do_not_count(shop: Shop) -> None:
    shop.crown("good", GOOD_MODEL)
    worse = shop.crown("worse", POOR_MODEL)
    turn = FIRST + timedelta(days=10)
    ahead = replace(worse, as_of=turn)  # a retrain by hand, ahead of what had been scored
    shop.predicts(worse, POOR_MODEL)
    found, of_all = shop.compare(ahead), shop.compare(worse)
    assert found
    assert of_all
    assert (found.window_begin >= turn, of_all.window_begin < turn) == (True, True)
    assert found.rows < of_all.rows


def test_only_rows_of_this_champion_count_even_among_others(shop: Shop) -> None:
    good = shop.crown("good", GOOD_MODEL)
    worse = shop.crown("worse", POOR_MODEL)
    turn = FIRST + timedelta(days=10)
    shop.predicts(good, fitted((*GOOD, "noise_2")), until=turn)
    shop.predicts(worse, POOR_MODEL, since=turn)
    found = shop.compare(worse)
    assert found
    mature = (ROWS.event_time >= np.datetime64(turn)) & (ROWS.event_time < np.datetime64(LAST - DEADLINE))
    assert found.rows == mature.sum()
    assert found.window_begin >= turn


# --- when to look


def look(day: int, *, alarm: bool = False, version: int = 2, looked: bool = True) -> Signal:
    at = FIRST + timedelta(days=day)
    return Signal("predecessor", at, at, version, 100, alarm, "Said.", detail={"looked": looked})


def test_a_look_is_due_once_a_window() -> None:
    week = timedelta(days=7)
    seen = [look(7), look(0), look(9, version=3), look(10, looked=False)]
    for day, due in ((0, False), (7, False), (13, False), (14, True), (30, True)):
        as_of = FIRST + timedelta(days=day)
        assert is_look_due(seen, 2, as_of=as_of, window=week, kind="predecessor") is due
    assert is_look_due([], 2, as_of=FIRST, window=week, kind="predecessor")
    assert len(list_looks(seen, 2, kind="predecessor")) == 2


def test_an_alarm_stands_until_it_is_acted_on() -> None:
    alarm = look(7, alarm=True)
    assert predecessor.find_pending([look(0), alarm, look(14)], 2) == alarm
    assert predecessor.find_pending([replace(alarm, version=3), look(0)], 2) is None
    assert predecessor.decision_id(alarm) == "predecessor-2-20240207T000000"
