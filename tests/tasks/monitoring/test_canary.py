"""monitoring.canary on a real registry and journal: both arms on the same unseen rows; who is surely better stays."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.data.featurerows import Rows
from tasks.monitoring import canary, pairs, predecessor
from tasks.monitoring.signal import Signal, list_looks
from tasks.monitoring.window import read_newest, select_predictions
from tasks.promotion import changes, ledger, registry
from tasks.promotion.contest import align_classes, row_losses
from tasks.promotion.ledger import Entry
from tasks.promotion.registry import Version
from tasks.serving import predictions
from tasks.serving.schema import make_entry
from tasks.training.model import Model, Spec
from tests.conftest import raw_params, write_params
from tests.tasks import journalled, small
from tests.tasks.monitoring.test_predecessor import FIRST, GOOD, GOOD_MODEL, LAST, POOR_MODEL, ROWS, Shop, fitted

DAY = timedelta(days=1)
P = small.settings()
TWIN, WIDE = fitted(GOOD, rounds=31), fitted((*GOOD, "noise_1"))
HALF = FIRST + 15 * DAY


def recipe(shop: Shop, name: str, *, sql: str = "SELECT 1", lead: str | None = None) -> list[Path]:
    """What a run stores of how its features are made."""
    folder = shop.folder / f"recipe of {name}"
    folder.mkdir(parents=True)
    (folder / "features.sql").write_text(sql)
    raw = raw_params("binary", small.DAYS)
    raw["features"] |= {"lead": lead} if lead else {}
    write_params(raw, folder)
    return [folder / "features.sql", folder / "params.yaml"]


def inside(since: datetime, until: datetime) -> Any:
    return (ROWS.event_time >= np.datetime64(since)) & (ROWS.event_time < np.datetime64(until))


def says(
    shop: Shop,
    version: int,
    model: Model,
    arm: str | None,
    *,
    since: datetime = FIRST,
    until: datetime = LAST,
    outcomes: bool = True,
    rows: Rows = ROWS,
    made_at: datetime = LAST,
    times: int = 1,
) -> None:
    """What a version said of the rows between two moments, as the API journals it, and what came of its answers.
    `times`: how often it was asked with this."""
    which = inside(since, until)
    mine, places = rows.take(which), np.flatnonzero(which)
    table = mine.table.select(model.spec.names)
    subjects = [make_entry("row", place) for place in places]
    entries = [make_entry(subject, version, times) for subject in subjects]
    made = journalled.predictions(
        entries,
        subject=subjects,
        by="api",
        arm=arm or "champion",
        version=version,
        event_time=mine.event_time,
        made_at=made_at,
        score=model.predict(table).astype(np.float64),
        **{f"x_{name}": table[name] for name in model.spec.names},
    )
    shop.kept.append("predictions", made)
    if outcomes:
        shop.outcomes(entries, mine.label, mine.event_time)


def put_up(shop: Shop, champion: Model, challenger: Model, *, as_of: datetime = FIRST, **otherwise: str) -> Entry:
    """`otherwise`: how the challenger makes its features."""
    shop.crown("champion", champion, more=recipe(shop, "champion"))
    run_id = shop.logged("challenger", challenger, more=recipe(shop, "challenger", **otherwise))
    changes.put_up(shop.known, run_id, decision="begin", as_of=as_of, reasons=["To try it."])
    return begun(shop)


def begun(shop: Shop) -> Entry:
    found = shop.known.find_canary()
    assert found
    return found


def serving(shop: Shop) -> Version:
    found = shop.known.find_champion()
    assert found
    return found


def look(shop: Shop, *, looks: int = 0, as_of: datetime = LAST, **overrides: Any) -> Signal:
    p = small.settings(**overrides)
    told: dict[str, Any] = {"champion": serving(shop), "begun": begun(shop), "as_of": as_of, "looks": looks}
    found = canary.compare(p, journal=shop.kept, registry=shop.known, **told)
    assert found
    return found


def losses(*models: Model, since: datetime = FIRST) -> list[float]:
    mature = ROWS.take(inside(since, LAST - DAY))
    return [row_losses(mature.label, each.predict(mature.table), metric="log_loss").mean() for each in models]


# --- the same rows


def test_a_better_challenger_in_the_shadow_wins_on_the_rows_that_both_scored(shop: Shop) -> None:
    put_up(shop, POOR_MODEL, GOOD_MODEL)
    says(shop, 1, POOR_MODEL, None)
    says(shop, 2, GOOD_MODEL, "shadow", outcomes=False)  # an outcome is told of the answer that was sent
    found, (old, new) = look(shop), losses(POOR_MODEL, GOOD_MODEL)
    assert (found.kind, found.alarm, found.version, found.detail["outcome"]) == ("challenger", True, 1, "PROMOTE")
    assert found.rows == found.detail["both"] == inside(FIRST, LAST - DAY).sum()
    assert (found.detail["champion"], found.detail["candidate"]) == pytest.approx((old, new), rel=1e-6)
    assert found.low
    assert found.low > 0
    assert "version 2, the challenger, is better than version 1: log loss 0." in found.message
    assert [tuple(row.values())[:3] for row in canary.tabulate_arms(found)] == [
        ("champion", "1", f"{found.rows:,}"),
        ("challenger", "2", f"{found.rows:,}"),
    ]


def test_of_a_share_each_arm_is_asked_again_what_the_other_answered(shop: Shop) -> None:
    put_up(shop, POOR_MODEL, GOOD_MODEL)
    says(shop, 1, POOR_MODEL, "champion", until=HALF)
    says(shop, 2, GOOD_MODEL, "challenger", since=HALF)
    found, (old, new) = look(shop), losses(POOR_MODEL, GOOD_MODEL)
    assert (found.rows, found.detail["both"]) == (inside(FIRST, LAST - DAY).sum(), 0)
    assert (found.detail["champion"], found.detail["candidate"]) == pytest.approx((old, new), rel=1e-6)
    assert found.detail["answers"] == [inside(FIRST, HALF).sum(), inside(HALF, LAST - DAY).sum()]


def test_a_challenger_with_a_feature_of_its_own_counts_where_it_was_asked(shop: Shop) -> None:
    put_up(shop, POOR_MODEL, WIDE)
    says(shop, 1, POOR_MODEL, None)
    says(shop, 2, WIDE, "shadow", since=HALF, outcomes=False)
    assert look(shop).rows == inside(HALF, LAST - DAY).sum()


def test_no_row_counts_that_either_was_trained_on_or_that_came_before_it_was_put_up(shop: Shop) -> None:
    of = put_up(shop, POOR_MODEL, GOOD_MODEL.with_spec(until=HALF.isoformat()))  # it has seen half of what comes
    says(shop, 1, POOR_MODEL, None)
    one = serving(shop)
    told: dict[str, Any] = {"journal": shop.kept, "registry": shop.known, "as_of": LAST, "looks": 0}
    cases = [
        (one, of, HALF),
        (replace(one, as_of=HALF + DAY), of, HALF + DAY),
        (one, replace(of, as_of=HALF + 2 * DAY), HALF + 2 * DAY),
    ]
    for champion, began, since in cases:
        found = canary.compare(P, champion=champion, begun=began, **told)
        assert found
        assert (found.window_begin, found.rows) == (since, inside(since, LAST - DAY).sum())


@pytest.mark.parametrize("otherwise", [{"sql": "SELECT 2"}, {"lead": "3h"}])
def test_a_challenger_that_makes_its_features_otherwise_is_asked_nothing_again(
    shop: Shop, otherwise: dict[str, str]
) -> None:
    put_up(shop, GOOD_MODEL, POOR_MODEL, **otherwise)
    says(shop, 1, GOOD_MODEL, None)
    found = look(shop)
    assert (found.alarm, found.rows, found.detail["looked"]) == (False, 0, False)
    assert "The challenger scored 0 of the champion's" in found.message
    other = ROWS.table.set_column(ROWS.table.column_names.index("jam"), "jam", pa.array(-ROWS.table["jam"].to_numpy()))
    says(shop, 2, POOR_MODEL, "shadow", rows=replace(ROWS, table=other), outcomes=False)  # its own jam, of that request
    assert look(shop).detail["both"] == inside(FIRST, LAST - DAY).sum()


@pytest.mark.parametrize("alike", [True, False])
def test_of_features_that_changed_between_the_arms_the_newer_row_is_compared_or_none(shop: Shop, alike: bool) -> None:
    put_up(shop, POOR_MODEL, GOOD_MODEL, **({} if alike else {"sql": "SELECT 2"}))
    early = ROWS.table.set_column(
        ROWS.table.column_names.index("jam"), "jam", pa.array(np.zeros(len(ROWS), dtype=np.float32))
    )
    says(shop, 1, POOR_MODEL, None, rows=replace(ROWS, table=early), made_at=LAST - DAY)
    says(shop, 2, GOOD_MODEL, "shadow", outcomes=False)
    found = look(shop)
    if alike:
        told = (found.detail["champion"], found.detail["candidate"])
        assert told == pytest.approx(losses(POOR_MODEL, GOOD_MODEL), rel=1e-6)
        assert (found.detail["both"], found.detail["covered"]) == (0, found.rows)
    else:
        assert (found.rows, found.alarm) == (0, False)


def test_a_challenger_that_misses_too_many_of_the_champions_rows_is_not_judged(shop: Shop) -> None:
    put_up(shop, POOR_MODEL, WIDE, sql="SELECT 2")
    says(shop, 1, POOR_MODEL, None)
    says(shop, 2, WIDE, "shadow", until=HALF, outcomes=False)
    found = look(shop)
    assert (found.alarm, found.detail["outcome"], found.detail["looked"]) == (False, "HOLD", False)
    counts = (inside(FIRST, HALF).sum(), inside(FIRST, LAST - DAY).sum())
    assert (found.detail["covered"], found.detail["answered"]) == counts
    assert f"scored {counts[0]:,} of the champion's {counts[1]:,} rows" in found.message


def test_of_several_outcomes_the_one_that_was_journalled_last_counts() -> None:
    times = [LAST, LAST + DAY, LAST - DAY]
    made = journalled.predictions(["a 1"], subject=["a"])
    told = journalled.outcomes(
        ["1", "2", "3"],
        subject=["a", None, "a"],
        prediction=[None, "a 1", None],
        label=[0.0, 1.0, 0.0],
        made_at=times,
    )
    assert pairs.latest_labels(told, made) == {"a": 1.0}


def test_a_class_that_the_challenger_alone_knows_is_one_that_the_champion_gives_nothing() -> None:
    one, other = (Spec("multiclass", (), {}, classes=known) for known in (("a", "c"), ("a", "b", "c")))
    both = pairs.join_classes(one, other)
    assert both.classes == ("a", "c", "b")
    codes = both.encode_label(np.array(["b", "c", "never seen"], dtype=object))
    assert codes[:2].tolist() == [2, 1]
    assert np.isnan(codes[2])
    assert align_classes(both, one.classes, np.array([[0.4, 0.6]])).tolist() == [[0.4, 0.6, 0.0]]
    assert align_classes(both, other.classes, np.array([[0.2, 0.7, 0.1]])).tolist() == [[0.2, 0.1, 0.7]]


# --- the verdict


def test_a_worse_challenger_loses_and_an_equal_one_goes_on(shop: Shop) -> None:
    put_up(shop, GOOD_MODEL, POOR_MODEL)
    says(shop, 1, GOOD_MODEL, None)  # no API knows of the challenger
    found = look(shop)
    assert (found.alarm, found.detail["outcome"]) == (True, "REJECT")
    assert "is worse than version 1" in found.message
    assert f"the loss is above {found.detail['loss_bound']:+.4f}, and above 0 it is taken away." in found.message
    assert "Better than" not in found.message
    changes.take_away(shop.known, decision="end", as_of=LAST, reasons=["Another."])
    changes.put_up(
        shop.known,
        shop.logged("twin", TWIN, more=recipe(shop, "twin")),
        decision="begin again",
        as_of=FIRST,
        reasons=["Again."],
    )
    equal = look(shop)
    assert (equal.alarm, equal.detail["outcome"], equal.detail["looked"]) == (False, "HOLD", True)
    assert "is not surely better or worse than version 1" in equal.message


def test_a_look_tells_its_own_level_and_the_bound_that_decided(shop: Shop) -> None:
    put_up(shop, POOR_MODEL, GOOD_MODEL)
    says(shop, 1, POOR_MODEL, None)
    won = look(shop)
    level = f"At this look's level ({won.detail['spent_level']:.2%})"
    assert f"{level} the gain is above {won.detail['bound']:+.4f}, and above +0.0000 it is promoted." in won.message
    equal = look(shop, **{"gate.rule": "non_inferior", "gate.margin": 0.02})
    assert "is no worse than version 1" in equal.message
    assert f"above {-0.02 * equal.detail['skill']:+.4f} it is promoted" in equal.message
    changes.take_away(shop.known, decision="end", as_of=LAST, reasons=["Another."])


def test_what_the_gate_refuses_for_its_cost_goes_on(shop: Shop) -> None:
    put_up(shop, POOR_MODEL, GOOD_MODEL)
    says(shop, 1, POOR_MODEL, None)
    found = look(shop, **{"gate.max_megabytes": 1e-9})
    assert (found.alarm, found.detail["looked"]) == (False, True)
    assert "Over budget" in found.message


def test_each_look_makes_the_next_one_harder_on_both_sides(shop: Shop) -> None:
    put_up(shop, GOOD_MODEL, TWIN)
    says(shop, 1, GOOD_MODEL, None)
    found = [look(shop, looks=looks) for looks in (0, 1, 7)]
    bounds = [each.detail["bound"] for each in found]
    assert bounds == sorted(bounds, reverse=True)
    assert len(set(bounds)) == 3


def test_too_few_mature_rows_say_nothing_and_spend_nothing(shop: Shop) -> None:
    put_up(shop, POOR_MODEL, GOOD_MODEL)
    for _ in range(2):
        found = look(shop, as_of=FIRST + 4 * DAY)
        assert (found.alarm, found.detail["looked"]) == (False, False)
        assert "Nothing can be said of version 2" in found.message
        assert list_looks([found], 1, kind="challenger") == []
        says(shop, 1, POOR_MODEL, None)


# --- what is done


def act(shop: Shop, found: Signal) -> Entry | None:
    return canary.carry_out(shop.known, found, as_of=LAST)


def test_a_winner_is_promoted_once_and_a_loser_never_comes_back(shop: Shop) -> None:
    put_up(shop, POOR_MODEL, GOOD_MODEL)
    says(shop, 1, POOR_MODEL, None)
    won = look(shop)
    assert canary.find_pending([won], 1, begun(shop)) == won
    over = act(shop, won)
    assert over
    assert (over.version, over.outcome, over.reasons, serving(shop).number) == (2, "PROMOTE", (won.message,), 2)
    assert act(shop, won) is None
    worse = shop.logged("worse", fitted(GOOD, rounds=2), more=recipe(shop, "worse"))
    changes.put_up(shop.known, worse, decision="2", as_of=FIRST, reasons=["Again."])
    says(shop, 2, GOOD_MODEL, "champion")
    assert act(shop, won) is None  # of another canary, and of another champion
    lost = act(shop, look(shop))
    assert lost
    assert (lost.version, lost.outcome, serving(shop).number, shop.known.find_challenger()) == (3, "REJECT", 2, None)
    assert [(line.version, line.outcome) for line in canary.list_ended(shop.known.read_ledger())] == [
        (2, "PROMOTE"),
        (3, "REJECT"),
    ]
    with pytest.raises(ValueError, match="version 3 lost as a challenger"):
        changes.put_up(shop.known, 3, decision="3", as_of=LAST, reasons=["And again."])


@pytest.mark.parametrize("marked", [False, True])
def test_a_promotion_that_was_cut_off_ends_the_canary_all_the_same(shop: Shop, marked: bool) -> None:
    of = put_up(shop, POOR_MODEL, GOOD_MODEL)
    assert canary.settle(shop.known, as_of=LAST) == canary.Settlement(of)
    shop.known.append(Entry("intent", "canary-2-1-x", LAST, run=of.run, version=2, champion=1, reasons=("Better.",)))
    shop.known.tracking.client.set_registered_model_alias(shop.known.model, registry.CHAMPION, "2")
    if marked:
        changes.finish_open(shop.known)
    found = canary.settle(shop.known, as_of=LAST)
    (over,) = canary.list_ended(shop.known.read_ledger())
    assert found == canary.Settlement(None, over)
    assert canary.find_last_winner(shop.known) == over
    assert canary.explain_end(over) == "The canary is over: version 2 was promoted. Better."
    assert (over.decision, over.outcome, over.reasons) == ("canary-2-1-x", "PROMOTE", ("Better.",))
    assert (shop.known.find_challenger(), ledger.find_answered(shop.known.read_ledger())) == (
        None,
        {"champion", "canary-2-1-x"},
    )


def test_a_challenger_that_serves_by_hand_is_no_challenger_and_did_not_win(shop: Shop) -> None:
    for name, model in (("first", GOOD_MODEL), ("second", POOR_MODEL)):
        shop.crown(name, model)
    changes.put_up(shop.known, 1, decision="begin", as_of=FIRST, reasons=["To try it."])
    changes.rollback(shop.known, decision="back", as_of=LAST, reasons=["By hand."])
    assert canary.settle(shop.known, as_of=LAST).on is None
    assert (shop.known.find_challenger(), canary.list_ended(shop.known.read_ledger())) == (None, [])


def test_a_challenger_that_is_the_champions_model_under_another_number_is_over(shop: Shop) -> None:
    of = put_up(shop, POOR_MODEL, GOOD_MODEL)
    assert of.run
    told: dict[str, Any] = {"verdict": {"outcome": "PROMOTE", "reasons": []}, "as_of": LAST, "tags": {}}
    changes.promote(shop.known, of.run, decision="a retrain of the same", **told)
    over = canary.settle(shop.known, as_of=LAST).over
    assert over
    assert (over.outcome, shop.known.find_challenger()) == (None, None)
    assert over.reasons == ("Version 2 is the model of version 3, which serves: there is nothing to try.",)
    assert canary.find_last_winner(shop.known) is None


def test_the_newest_look_of_this_canary_decides(shop: Shop) -> None:
    of = put_up(shop, POOR_MODEL, GOOD_MODEL)
    says(shop, 1, POOR_MODEL, None)
    won = look(shop)
    later = replace(won, alarm=False, window_end=LAST + DAY)
    elsewhere = replace(later, window_end=LAST + 2 * DAY, detail={**won.detail, "canary": "another"}, alarm=True)
    unspent = replace(later, window_end=LAST + 3 * DAY, detail={**won.detail, "looked": False})
    assert canary.find_pending([unspent, elsewhere, won], 1, of) == won
    assert canary.find_pending([later, won], 1, of) is None


# --- what was said in the shadow counts for nothing else


def test_the_shadow_is_nobodys_performance_and_nobodys_score(shop: Shop) -> None:
    put_up(shop, POOR_MODEL, GOOD_MODEL)
    says(shop, 1, POOR_MODEL, "champion", until=HALF)
    says(shop, 2, GOOD_MODEL, "shadow")
    both = (serving(shop), shop.known.read_version(2))
    begin = HALF - P.monitor.window
    rows = shop.kept.read("predictions", since=begin, until=HALF)
    seen = [len(select_predictions(rows, None, each, begin, HALF).times) for each in both]
    assert seen == [inside(HALF - P.monitor.window, HALF).sum(), 0]
    told = [len(predecessor.read_mature(shop.kept, each, POOR_MODEL.spec, until=LAST)[1]) for each in both]
    assert told == [inside(FIRST, HALF).sum(), 0]
    made = shop.kept.read("predictions", columns=["entry", "event_time"])
    assert (
        len(predictions.last_of_each_subject(shop.kept.read("predictions")))
        == made.num_rows
        == inside(FIRST, HALF).sum()
    )
    assert read_newest(shop.kept) == made["event_time"][-1].as_py() < HALF
