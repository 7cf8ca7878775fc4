"""replay.walk: policies differ by their retrains alone, nobody sees the future, and what drifts pays to be seen."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from tasks.data.featurerows import Rows
from tasks.monitoring.signal import Signal
from tasks.params import Params, Policy, SignalKind
from tasks.promotion.contest import row_losses
from tasks.replay import history
from tasks.replay.compare import Comparison, compare_policies
from tasks.replay.course import Auc, count_wins
from tasks.replay.history import History, Training
from tasks.replay.past import Needs, Past, Serving, make_here
from tasks.replay.policies import Grid, check_period, find_earliest, parse_rule
from tasks.replay.report import list_points, list_saved, render_markdown, tabulate_costs, tabulate_gains, write_report
from tasks.replay.walk import FAILED, PolicyState, Retrain, explain_retrain
from tests.conftest import BEGIN
from tests.tasks import small

DAY, WEEK = timedelta(days=1), timedelta(days=7)
DAYS = 84
GRID = Grid(BEGIN + 28 * DAY, BEGIN + DAYS * DAY, WEEK)
NAMES = ["never", "every:14d", "performance", "ungated:14d"]
SMALL = {
    "tune.trials": 2,
    "tune.rounds": 20,
    "train.seeds": 1,
    "split.holdout": "7d",
    "split.fold": "4d",
    "split.window": "21d",
    "gate.min_rows": 200,
}


def settings(**overrides: Any) -> Params:
    p = small.settings(**SMALL | overrides)
    eager = Policy(signals=["performance"], windows=1, min_rows=100, cool_down=WEEK)
    return history.reduce_search(p.model_copy(update={"policy": eager}))


def kept(folder: Path, rows: Rows, p: Params | None = None) -> History:
    p = p or settings()
    small.write(folder, rows, p, GRID.until)
    return History(p, folder / p.paths.features, "SELECT 1", folder.parent / "shelf")


def walked(past: History, names: Sequence[str] = NAMES, grid: Grid = GRID, **measure: Any) -> Comparison:
    return compare_policies(Past(past, grid.since), grid, names, **measure)


def at(moment: datetime) -> Training:
    """The search of a moment."""
    return Training(moment, moment)


def list_candidates(shelf: Path) -> list[Path]:
    """Without the past fits."""
    return [path for path in shelf.glob("2*") if "evidence" not in path.name]


def rows_made(**changes: Any) -> Rows:
    return small.made_rows(days=DAYS, **changes)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> History:
    return kept(tmp_path_factory.mktemp("quiet") / "folder", rows_made())


@pytest.fixture(scope="module")
def done(quiet: History) -> Comparison:
    return walked(quiet)


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """From the sixth week on what was true is false."""
    rows = small.relabelled(rows_made(), small.flipped, BEGIN + 37 * DAY, GRID.until)
    return walked(kept(tmp_path_factory.mktemp("turned") / "folder", rows))


def plain(done: Comparison) -> dict[str, Any]:
    """Without what differs from one training to the next: its seconds."""
    found = done.to_dict()
    for line in found["lines"]:
        line.update(cpu=0, cost=0)
        for walk in line["walks"]:
            walk.update(cpu=0)
            for each in walk["retrains"]:
                each.update(cpu=0)
    return found


# --- the policies --------------------------------------------------------------------------------------------------


def test_never_never_retrains_and_costs_nothing(done: Comparison) -> None:
    never = done.line("never")
    assert (never.retrains, never.cpu, never.cost, never.gain.value) == ((), 0, 0, 0)
    assert never.unpromoted_dates == 1


def test_every_retrains_on_its_grid_and_not_after_the_last_row(done: Comparison) -> None:
    assert [each.as_of for each in done.line("every:14d").retrains] == [GRID.since + i * 2 * WEEK for i in (1, 2, 3)]


def test_a_length_that_is_no_part_of_the_grid_waits_for_its_next_moment(quiet: History) -> None:
    found = walked(quiet, ["every:10d"]).line("every:10d")
    assert [each.as_of for each in found.retrains] == [GRID.since + i * 2 * WEEK for i in (1, 2, 3)]


def test_a_quiet_stream_is_left_alone_by_those_who_look(done: Comparison) -> None:
    assert done.line("performance").retrains == ()
    assert done.line("never").alarms is None
    assert done.line("performance").alarms is not None


def test_outcomes_that_turn_are_seen(turned: Comparison) -> None:
    found = turned.line("performance")
    assert found.retrains[0].as_of > BEGIN + 37 * DAY
    assert found.alarms


def test_where_outcomes_turn_newer_rows_pay(turned: Comparison) -> None:
    found = turned.line("ungated:14d")
    assert found.promotions == 3
    assert found.gain.low is not None
    assert found.gain.low > 0
    assert found.metric.value < turned.line("never").metric.value
    assert found.walks[0].promotions[0].gain > 0
    assert found.auc_gain is not None
    assert found.auc_gain.value > 0


def test_a_feature_that_moves_is_seen_by_those_who_watch_for_drift(tmp_path: Path) -> None:
    rows, since = rows_made(), BEGIN + 58 * DAY
    moved = rows.table["jam"].to_numpy() + np.where(rows.event_time >= np.datetime64(since), 4, 0).astype(np.float32)
    place = rows.table.column_names.index("jam")
    table = rows.table.set_column(place, "jam", pa.array(moved))
    found = walked(kept(tmp_path / "folder", replace(rows, table=table)), ["drift", "both"])
    for name in ("drift", "both"):
        (first, *_) = (each for each in found.line(name).retrains if each.as_of > since)
        assert first.as_of <= since + 2 * WEEK
        assert any("jam" in said for said in first.why)


def test_until_they_turn_all_policies_are_the_same_model(turned: Comparison) -> None:
    assert len({line.weeks[0] for line in turned.lines}) == 1


def test_a_refusal_costs_its_training_and_changes_nothing(done: Comparison) -> None:
    found = done.line("every:14d")
    refused = [each for each in found.retrains if not each.promoted]
    assert refused
    assert all(each.cpu > 0 and each.reasons for each in refused)
    assert found.cpu == pytest.approx(sum(each.cpu for each in found.retrains), abs=0.01)


def test_spaced_retrains_are_so_many_and_even() -> None:
    grid = Grid(datetime(2013, 5, 1), datetime(2013, 12, 31), WEEK)
    for number in range(1, len(grid.starts)):
        moments = parse_rule(f"spaced:{number}", grid, small.settings()).moments
        assert len(set(moments)) == number
        ends = [grid.since, *moments, grid.until]
        gaps = [after - before for before, after in pairwise(ends)]
        assert max(gaps) - min(gaps) <= WEEK * 1.5
        assert set(moments) <= set(grid.starts[1:])


@pytest.mark.parametrize("name", ["sometimes", "every:0d", "every:4", "every:7x", "spaced:0", ""])
def test_an_unknown_policy_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"but got '{name}'"):
        parse_rule(name, GRID, small.settings())


# --- what is shared, and what comes again --------------------------------------------------------------------------


def test_a_model_is_trained_once_and_charged_to_each(tmp_path: Path) -> None:
    made: list[datetime] = []

    def make(past: History, trainings: Sequence[Training], fits: Needs) -> None:
        made.extend(training.as_of for training in trainings)
        make_here(past, trainings, fits)

    past = Past(kept(tmp_path / "folder", rows_made()), GRID.since, make=make)
    done = compare_policies(past, GRID, ["every:14d", "every:28d"])
    assert sorted(made) == [GRID.since + i * 2 * WEEK for i in (0, 1, 2, 3)]
    assert len(list_candidates(tmp_path / "shelf")) == 4
    costs = {line.policy: {each.as_of: each.cpu for each in line.retrains} for line in done.lines}
    assert costs["every:28d"].items() <= costs["every:14d"].items()


def test_the_same_replay_again_trains_nothing_and_is_equal(quiet: History, done: Comparison) -> None:
    assert compare_policies(Past(quiet, GRID.since, make=refuse), GRID, NAMES) == done


def refuse(_past: History, trainings: Sequence[Training], fits: Needs) -> None:
    raise AssertionError((trainings, fits))


def test_another_shelf_gives_the_same_but_for_the_seconds(quiet: History, done: Comparison, tmp_path: Path) -> None:
    again = walked(replace(quiet, shelf=tmp_path))
    assert plain(again) == plain(done)


def test_a_later_end_keeps_what_was_trained(quiet: History) -> None:
    """Every candidate of a shorter grid is one of the longer's."""
    compare_policies(Past(quiet, GRID.since, make=refuse), replace(GRID, until=GRID.until - 2 * WEEK), ["every:14d"])


# --- nobody sees the future ----------------------------------------------------------------------------------------


def test_a_row_is_predicted_by_who_was_champion_when_it_came(turned: Comparison) -> None:
    """Before its first promotion a policy's weeks are never's; the week after, they are not."""
    found, never = turned.line("ungated:14d"), turned.line("never")
    place = turned.grid.starts.index(next(each.as_of for each in found.retrains if each.promoted))
    assert found.weeks[:place] == never.weeks[:place]
    assert found.weeks[place] != never.weeks[place]


def test_performance_is_measured_on_what_was_known_then(tmp_path: Path) -> None:
    """Outcomes that come late turn a loss round, but not before they have come."""
    now = GRID.since + 2 * WEEK
    rows = rows_made()
    window = (rows.event_time >= np.datetime64(now - 8 * DAY)) & (rows.event_time < np.datetime64(now - DAY))
    known_at = np.where(window, np.datetime64(now + DAY), rows.known_at)
    found = {
        name: Past(kept(tmp_path / name, each), GRID.since)
        for name, each in (("early", rows), ("late", replace(rows, known_at=known_at)))
    }
    serving = Serving(at(GRID.since), 1)
    counts = {name: past.measure(serving, now, ("performance",), GRID.since)[0].rows for name, past in found.items()}
    assert counts == {"early": int(window.sum()), "late": 0}


def test_a_policy_hears_only_of_rows_that_its_champion_predicted(quiet: History) -> None:
    past = Past(quiet, GRID.since)
    now = GRID.since + 3 * WEEK
    ages = (GRID.since, GRID.since + 2 * WEEK, now)
    (old,), (young,), (newborn,) = (
        past.measure(Serving(at(since), version), now, ("performance",), GRID.since)
        for version, since in enumerate(ages, 1)
    )
    assert old.rows > young.rows > newborn.rows == 0
    assert not newborn.alarm


def test_signals_reach_the_policies_that_look_at_them_and_no_others(quiet: History) -> None:
    asked: list[tuple[SignalKind, ...]] = []

    def alarmed(
        _past: Past, serving: Serving, now: datetime, kinds: Sequence[SignalKind], _began: datetime
    ) -> list[Signal]:
        asked.append(tuple(kinds))
        told = {"window_begin": now - WEEK, "window_end": now, "version": serving.version, "rows": 400}
        return [Signal(kind, alarm=kind == "drift", message="Moved.", **told) for kind in kinds]

    done = walked(quiet, ["every:28d", "drift", "performance", "both"], measure=alarmed)
    assert set(asked) == {("drift",), ("performance",), ("performance", "drift")}
    counts = {line.policy: len(line.retrains) for line in done.lines}
    assert counts["performance"] == 0 < counts["drift"] == counts["both"]
    assert all("Moved." in each.why for each in done.line("drift").retrains)
    gaps = [after.as_of - before.as_of for before, after in pairwise(done.line("drift").retrains)]
    assert min(gaps) >= WEEK


# --- the numbers ---------------------------------------------------------------------------------------------------


def test_only_mature_rows_with_an_outcome_count(quiet: History, done: Comparison) -> None:
    rows, p = quiet.rows, quiet.p
    times = rows.event_time
    old = (times >= np.datetime64(GRID.since)) & (times < np.datetime64(GRID.until - p.label.deadline))
    assert done.rows == int(old.sum()) == sum(done.stretches)
    assert done.unlabelled_share == 0


def test_the_metric_is_the_mean_loss_of_the_stream(quiet: History, done: Comparison) -> None:
    """Told again, without the walk: never is the first model on every row."""
    rows, p = quiet.rows, quiet.p
    times = rows.event_time
    old = (times >= np.datetime64(GRID.since)) & (times < np.datetime64(GRID.until - p.label.deadline))
    found = quiet.candidate(GRID.since).model.predict(rows.take(old).table)
    losses = row_losses(rows.label[old], found, metric="log_loss")
    never = done.line("never")
    assert never.metric.value == pytest.approx(float(losses.mean()), abs=1e-12)
    assert never.auc
    assert never.auc.value == pytest.approx(roc_auc_score(rows.label[old], found), abs=1e-12)


def test_the_auc_of_a_draw_is_that_of_its_rows() -> None:
    rng = np.random.default_rng(0)
    codes, block = rng.integers(0, 2, 400).astype(float), rng.integers(0, 6, 400)
    scores = np.round(codes * 0.3 + rng.random(400), 1)  # with ties
    draw = np.array([2, 0, 1, 3, 0, 1])
    repeated = np.concatenate([np.flatnonzero(block == each).repeat(count) for each, count in enumerate(draw)])
    found = Auc(count_wins(codes, scores, block, 6)).weigh(draw[None].astype(float))[0]
    assert found == pytest.approx(roc_auc_score(codes[repeated], scores[repeated]), abs=1e-12)


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_other_tasks_are_replayed_too(task: Any, tmp_path: Path) -> None:
    rows = small.made_rows(task, days=49)
    p = history.reduce_search(small.settings(task, **SMALL | {"split.window": None}))
    small.write(tmp_path, rows, p, BEGIN + 49 * DAY)
    past = History(p, tmp_path / p.paths.features, "SELECT 1", tmp_path / "shelf")
    grid = Grid(BEGIN + 28 * DAY, BEGIN + 49 * DAY, WEEK)
    done = walked(past, ["every:14d", "performance"], grid)
    assert done.line("never").auc is None
    assert len(done.line("every:14d").retrains) == 1
    assert 0 < done.line("never").metric.value < 2


def test_an_empty_week_is_a_gap_and_no_error(tmp_path: Path) -> None:
    rows = rows_made()
    gap = (rows.event_time >= np.datetime64(GRID.starts[2])) & (rows.event_time < np.datetime64(GRID.starts[3]))
    done = walked(kept(tmp_path / "folder", rows.take(~gap)), ["performance"])
    assert [done.line(name).weeks[2] for name in ("never", "performance")] == [None, None]
    assert done.stretches[2] == 0


def test_a_moment_at_which_nothing_can_be_trained_leaves_the_champion(tmp_path: Path) -> None:
    """All the rows of the holdout of the second retrain lost their outcomes."""
    rows = rows_made()
    at = GRID.since + 4 * WEEK
    lost = (rows.event_time >= np.datetime64(at - 8 * DAY)) & (rows.event_time < np.datetime64(at - DAY))
    label, known_at = np.where(lost, np.nan, rows.label), np.where(lost, np.datetime64("NaT"), rows.known_at)
    done = walked(kept(tmp_path / "folder", replace(rows, label=label, known_at=known_at)), ["every:28d"])
    (found,) = done.line("every:28d").retrains
    assert (found.as_of, found.outcome, found.cpu) == (at, FAILED, 0.0)
    assert "holdout" in found.reasons[0]
    assert done.unlabelled_share > 0.1


def test_a_retrain_that_failed_costs_no_cool_down_and_the_gates_back_off_is_asked_first(quiet: History) -> None:
    now, p = GRID.since + 4 * WEEK, quiet.p
    policy = Policy(windows=2, min_rows=50, cool_down=2 * WEEK)
    p = p.model_copy(update={"policy": policy, "gate": p.gate.model_copy(update={"backoff": WEEK})})
    ends = [now - WEEK, now]
    alarms = [Signal("drift", end - WEEK, end, 1, 400, alarm=True, message="Moved.") for end in ends]
    state = PolicyState(parse_rule("drift", GRID, p), GRID, Serving(at(GRID.since), 1), signals=tuple(alarms))
    wanted = explain_retrain(state, now, p)
    assert wanted
    asked = replace(state, asked=wanted.causes)
    failed = replace(asked, retrains=(Retrain(now - DAY, FAILED, (), 0.0, ()),))
    made = replace(asked, retrains=(Retrain(now - DAY, "HOLD", (), 1.0, ()),))
    again = explain_retrain(failed, now, p)
    assert again
    assert again.why == wanted.why
    assert explain_retrain(made, now, p) is explain_retrain(asked, now, p) is None
    assert explain_retrain(replace(state, looks=(now - DAY,)), now, p) is None


# --- what people see -----------------------------------------------------------------------------------------------


def test_the_files_are_written_and_the_table_has_a_row_a_policy(turned: Comparison, tmp_path: Path) -> None:
    write_report(turned, tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {"replay.json", "replay.md", "replay.png"}
    text = (tmp_path / "replay.md").read_text()
    assert all(f"| {line.policy} |" in text for line in turned.lines)
    assert "| log loss | saved |" in text
    assert (tmp_path / "replay.png").read_bytes().startswith(b"\x89PNG")
    assert len(tabulate_gains(turned)) == len(tabulate_costs(turned)) == len(turned.lines)


def test_what_is_saved_so_far_ends_at_what_was_saved(turned: Comparison) -> None:
    line, never = turned.line("ungated:14d"), turned.line("never")
    expected = 100 * line.gain.value / never.metric.value
    assert list_saved(line, turned)[-1] == pytest.approx(expected, abs=1e-9)


def test_points_name_no_policy_in_a_way_that_mlflow_refuses(turned: Comparison) -> None:
    found = list_points(turned)
    assert len(found["log_loss/every 14d"]) == len(turned.grid.starts)
    assert found["total retrains/performance"] == [(0, len(turned.line("performance").retrains))]


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "until", "said"),
    [
        (BEGIN + 10 * DAY, GRID.until, "split.holdout"),
        (GRID.since, GRID.since + WEEK, "since . replay.step < until"),
        (GRID.since, GRID.since - WEEK, "since . replay.step < until"),
        (GRID.since, GRID.until + 8 * DAY, "beyond the data"),
    ],
)
def test_a_period_that_cannot_be_walked_is_refused(quiet: History, since: datetime, until: datetime, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        walked(quiet, grid=Grid(since, until, WEEK))


def test_the_earliest_start_is_one_that_can_be_trained(quiet: History) -> None:
    since = find_earliest(quiet.rows, quiet.p)
    check_period(quiet.rows, quiet.p, replace(GRID, since=since))
    assert quiet.candidate(since).cpu > 0
    with pytest.raises(ValueError, match="must lie after"):
        check_period(quiet.rows, quiet.p, replace(GRID, since=since - DAY))


def test_a_retrain_is_a_promotion_by_the_gates_word_alone() -> None:
    found = [Retrain(BEGIN, outcome, (), 1.0, ()) for outcome in ("PROMOTE", "HOLD", "REJECT", FAILED)]
    assert [each.promoted for each in found] == [True, False, False, False]


def test_a_policy_whose_signals_are_off_says_which_setting_turned_them_off(tmp_path: Path) -> None:
    """The made rows are 420 a week. Without the note it would look as if nothing had ever drifted."""
    p = settings()
    deaf = p.model_copy(update={"policy": p.policy.model_copy(update={"min_rows": 5000})})
    wide = p.model_copy(update={"monitor": p.monitor.model_copy(update={"window": timedelta(days=28)})})
    past = {name: kept(tmp_path / name / "folder", rows_made(), q) for name, q in (("rows", deaf), ("window", wide))}
    grid = Grid(GRID.until - 2 * WEEK, GRID.until, WEEK)
    notes = {name: walked(one, ["never", "drift"], grid) for name, one in past.items()}
    assert "policy.min_rows is 5,000, but a monitor.window of 7d holds about 4" in notes["rows"].notes[0]
    assert "monitor.window is 28d, but the history before the holdout spans" in notes["window"].notes[0]
    assert notes["rows"].notes[0] in render_markdown(notes["rows"])
    assert walked(past["rows"], ["never"], grid).notes == ()
