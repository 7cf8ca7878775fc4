"""The score flow on a made table: a row that arrives is predicted once, and its outcome joins it when it is known."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from prefect import flow

from flows.retrain import compare_features
from flows.score import score
from flows.stages import run_stages
from tasks import params
from tasks.data import state
from tasks.data.featurerows import Rows
from tasks.monitoring.skew import Skew
from tasks.promotion import registry
from tasks.runtime import clock, overrides, workspaces
from tasks.serving import journal, schema
from tasks.serving import score as work
from tasks.serving.predictions import latest_outcomes
from tasks.serving.score import Scored
from tasks.training.model import Model
from tests.conftest import BEGIN
from tests.flows.conftest import DAYS, Project, shown

FIRST = datetime(2024, 3, 1)
WEEK = timedelta(days=7)


@dataclass(frozen=True)
class Story:
    """Before any champion; a retrain; then a week later, the same again, and another week."""

    nobody: Scored
    week: Scored
    again: Scored
    next: Scored
    kept: journal.Journal
    known: registry.Registry


@pytest.fixture(scope="module")
def story(project: Project, recorded: Callable[[], registry.Version]) -> Story:
    with stepping(project, "3d", FIRST):
        nobody = score()
        assert clock.now(params.load().clock) == nobody.as_of == FIRST + timedelta(days=3)  # time waits for nobody
    assert recorded().number == 1
    done = [score(as_of=FIRST + weeks * WEEK) for weeks in (1, 1, 2)]
    p = params.load(project.folder / "params.yaml")
    return Story(nobody, *done, journal.open_journal(p.journal), registry.open_registry(p.registry))


def predictions(story: Story) -> pa.Table:
    return story.kept.read("predictions")


def test_without_a_champion_nothing_is_scored_and_nothing_fails(story: Story) -> None:
    assert (story.nobody.version, story.nobody.predictions) == (None, 0)


def test_every_row_that_has_arrived_since_the_champions_time_is_predicted_once(story: Story) -> None:
    assert story.week.predictions > 0 < story.next.predictions
    made = predictions(story)
    assert made.num_rows == story.week.predictions + story.next.predictions
    assert len(set(made["entry"].to_pylist())) == made.num_rows
    assert made["event_time"][0].as_py() >= FIRST
    assert FIRST + 2 * WEEK - timedelta(days=1) < made["event_time"][-1].as_py() <= FIRST + 2 * WEEK


def test_a_second_run_over_the_same_rows_adds_nothing(story: Story) -> None:
    assert (story.again.predictions, story.again.outcomes) == (0, 0)


def test_what_is_journalled_is_what_the_champion_says_of_the_journalled_features(story: Story, tmp_path: Path) -> None:
    made = predictions(story)
    champion = story.known.find_champion()
    assert champion
    one = Model.load(story.known.runs.fetch(champion.run_id, "model.ubj", tmp_path))
    table = pa.table({name: made[f"x_{name}"] for name in one.spec.names})
    assert np.array_equal(made["score"].to_numpy(), one.predict(table).astype(np.float64))
    assert set(made["version"].to_pylist()) == {1}


def test_an_outcome_joins_its_prediction_when_it_is_known_and_not_before(story: Story) -> None:
    made = {row["entry"]: row for row in predictions(story).to_pylist()}
    came = story.kept.read("outcomes").to_pylist()
    assert len(came) == story.week.outcomes + story.next.outcomes > 0
    assert {one["subject"] for one in came} < made.keys()
    assert all(one["known_at"] <= FIRST + 2 * WEEK for one in came)
    assert all(one["event_time"] == made[one["subject"]]["event_time"] < one["known_at"] for one in came)


@pytest.mark.usefixtures("story")
def test_what_was_written_before_is_parquet_by_day(project: Project) -> None:
    days = sorted(path.name for path in (project.home / "journal/predictions").glob("day=*"))
    assert days[0] == "day=2024-03-01"
    assert len(days) >= 7


def test_a_clock_behind_the_journal_adds_nothing(story: Story) -> None:
    before = predictions(story)
    assert score(as_of=FIRST + WEEK).predictions == 0
    assert predictions(story).equals(before)


def test_a_corrected_outcome_replaces_the_earlier_one_and_both_stay(story: Story, project: Project) -> None:
    before = story.kept.read("outcomes")
    source = project.folder / "source/orders.csv"
    text = source.read_text()
    try:
        source.write_text(corrected(text))
        done = score(as_of=FIRST + 2 * WEEK)
    finally:
        source.write_text(text)
    assert done.predictions == 0 < done.outcomes
    after = story.kept.read("outcomes")
    assert after.num_rows == before.num_rows + done.outcomes


def corrected(text: str) -> str:
    """The delays of one day, turned round."""
    lines = []
    for line in text.splitlines():
        rest, _, delay = line.rpartition(",")
        turned = delay.isdigit() and ",2024-03-03 " in line
        lines.append(f"{rest},{0 if int(delay) > 20 else 60}" if turned else line)
    return "\n".join(lines) + "\n"


def test_a_run_that_dies_between_predictions_and_outcomes_is_made_whole_by_the_next(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, when, before = journal.Journal.append, FIRST + 2 * WEEK + timedelta(hours=12), predictions(story)

    def dies(self: journal.Journal, kind: schema.Kind, rows: pa.Table) -> None:
        append(self, kind, rows)
        raise ValueError(f"dead after {kind}")  # which nobody tries again

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "append", dies)
        with pytest.raises(ValueError, match="dead after predictions"):
            score(as_of=when)
    assert predictions(story).num_rows > before.num_rows
    done = score(as_of=when)
    assert done.predictions == 0 < done.outcomes


def test_an_outcome_that_is_corrected_back_is_one_more_row(story: Story) -> None:
    row = story.kept.read("outcomes").slice(0, 1).to_pylist()[0]
    rows = Rows(
        pa.table({"x": [0.0]}), *(np.array([row[name]], "datetime64[us]") for name in ("event_time", "known_at")), None
    )
    entries, known = np.array([row["subject"]]), {row["subject"]}
    for label in (1 - row["label"], row["label"], 1 - row["label"], row["label"]):
        told = replace(rows, label=np.array([label]))
        for count in (1, 0):
            came = work.find_outcomes(told, entries, known, story.kept)
            assert came.num_rows == count
            story.kept.append("outcomes", came)
        assert latest_outcomes(story.kept.read("outcomes")).by_subject[row["subject"]] == label


@contextmanager
def stepping(project: Project, step: str, as_of: datetime) -> Iterator[None]:
    """params.yaml with a clock that is stored, for a while."""
    path = project.folder / "params.yaml"
    text = path.read_text()
    try:
        overrides.override_params(path, {"clock.step": step, "clock.as_of": as_of.isoformat()})
        yield
    finally:
        path.write_text(text)
        (project.home / clock.NAME).unlink(missing_ok=True)


@pytest.mark.usefixtures("story")
def test_ticks_move_the_stored_clock_by_a_step(project: Project) -> None:
    begin, step = FIRST + 2 * WEEK + timedelta(hours=12), timedelta(hours=6)
    with stepping(project, "6h", begin):
        first, second = score(), score()
        assert [one.as_of for one in (first, second)] == [begin + one * step for one in (1, 2)]
        assert json.loads((project.home / clock.NAME).read_text()) == {"as_of": second.as_of.isoformat()}
        assert first.predictions > 0


@pytest.mark.usefixtures("story")
def test_the_clock_stays_where_the_sources_end(project: Project) -> None:
    end = BEGIN + timedelta(days=DAYS)
    with stepping(project, "7d", end):
        assert score().newest < end
        assert clock.now(params.load().clock) == end


@flow
def compare_at(as_of: datetime) -> Skew | None:
    """What the retrain flow does between its stages and the gate."""
    with workspaces.open_workspace(Path.cwd(), overrides={"clock.as_of": as_of.isoformat()}) as space:
        run_stages(space, last="features")
        p = params.load(space.root / "params.yaml")
        return compare_features(p, space.root, registry.open_registry(p.registry))


@pytest.mark.usefixtures("story")
def test_a_retrain_names_the_features_that_the_champion_predicted_with_and_that_changed(project: Project) -> None:
    source = project.folder / "source/customers.csv"
    text = source.read_text()
    same = compare_at(FIRST + 2 * WEEK)
    assert same
    assert (same.columns, same.gone) == ((), 0)
    assert same.compared["score"] > 100
    try:
        head, *lines = text.splitlines()
        older = [f"{line.rpartition(',')[0]},{int(line.rpartition(',')[2]) + 1}" for line in lines]
        source.write_text("\n".join([head, *older]) + "\n")
        other = compare_at(FIRST + 2 * WEEK)
    finally:
        source.write_text(text)
    assert other
    assert [column.name for column in other.columns] == ["age"]
    assert any('"feature":"age"' in data.replace(" ", "").replace("'", '"') for data in shown("features-differ"))


def test_a_row_of_2031_and_a_tick_forced_there_bend_nothing_and_the_mended_row_is_predicted(
    story: Story, project: Project
) -> None:
    source, bent, end = project.folder / "source/orders.csv", datetime(2031, 3, 15, 12), FIRST + 4 * WEEK
    text = source.read_text()
    line = "90000,{} 12:00:00,person1@example.org,north,10,1,20\n"
    source.write_text(text + line.format("2031-03-15"))
    try:
        with stepping(project, "7d", bent):
            assert score(as_of=bent, force=True).as_of < end  # where the rows end
            source.write_text(text + line.format("2024-03-15"))
            mended = score(force=True)
            assert mended.as_of < end
        published = state.read_current()
        assert published
        assert published.as_of == mended.as_of
        made = predictions(story).to_pylist()
        assert len([row for row in made if row["event_time"] == datetime(2024, 3, 15, 12)]) == 1
        assert max(row["event_time"] for row in made) < end
        assert score(as_of=mended.as_of).predictions == 0
    finally:
        source.write_text(text)
