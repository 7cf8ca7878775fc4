"""serving.ahead: a row that lies too far ahead of the state is refused, or marked and predicted anew by score."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx import Client

from tasks import params
from tasks.data import state
from tasks.serving import app, journal, predictions, score, tables, versions
from tests.conftest import BEGIN
from tests.tasks import journalled
from tests.tasks.serving.test_app import DAYS, Shop, serves, shop

__all__ = ["shop"]  # the fixture
LEAD, BEHIND = timedelta(hours=1), timedelta(hours=12)
AS_OF = BEGIN + timedelta(days=DAYS) - BEHIND  # of the state that these servers have


@pytest.fixture
def home(shop: Shop, tmp_path: Path) -> Path:
    """A home whose state was published half a day before the newest rows."""
    for name in ("serving", "state"):
        shutil.copytree(shop.home / name, tmp_path / name)
    pointer = tmp_path / "state" / state.POINTER
    pointer.write_text(json.dumps(json.loads(pointer.read_text()) | {"as_of": str(AS_OF)}))
    return tmp_path


@contextmanager
def client(shop: Shop, home: Path, **serving: Any) -> Iterator[Client]:
    with serves(app.create(with_serving(shop, **serving), home)) as one:
        yield one


def with_serving(shop: Shop, **serving: Any) -> params.Params:
    return shop.p.model_copy(update={"serving": shop.p.serving.model_copy(update=serving)})


def row_at(shop: Shop, moment: datetime) -> dict[str, Any]:
    return shop.asked[0] | {"event_time": moment.isoformat()}


@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(hours=2), timedelta(hours=9)])
def test_a_row_beyond_the_reach_of_the_state_is_refused_and_one_within_it_answered(
    shop: Shop, home: Path, ahead: timedelta
) -> None:
    until = AS_OF + LEAD + ahead
    with client(shop, home, ahead=ahead) as api:
        within = api.post("/v1/predict", json={"rows": [row_at(shop, until)]})
        beyond = api.post(
            "/v1/predict", json={"rows": [row_at(shop, AS_OF), row_at(shop, until + timedelta(seconds=1))]}
        )
        ready = api.get("/ready").json()
    assert within.status_code == 200, within.text
    assert "stale" not in within.json()["predictions"][0]
    assert beyond.status_code == 422
    (fault,) = beyond.json()["detail"]
    assert fault["loc"] == ["rows", 1, "event_time"]
    assert fault["msg"] == (
        f"must not be after {until}: the state is of {AS_OF}, features.lead is 1h and serving.ahead "
        f"{params.spell(ahead)}. Run the score flow for a newer state, or set serving.beyond to stale"
    )
    assert (ready["as_of"], ready["answers_until"]) == (AS_OF.isoformat(), until.isoformat())


def test_a_stale_answer_says_so_and_score_predicts_its_row_anew(shop: Shop, home: Path) -> None:
    """Rows of the newest twenty hours: the state lacks what happened in the last eleven of them."""
    with client(shop, home, beyond="stale", ahead=timedelta(0)) as api:
        answers = api.post("/v1/predict", json={"rows": shop.asked}).json()["predictions"]
    stale = [datetime.fromisoformat(row["event_time"]) > AS_OF + LEAD for row in shop.asked]
    assert 0 < sum(stale) < len(stale)
    assert [answer.get("stale", False) for answer in answers] == stale
    kept = journal.open_journal(shop.p.journal, home=home)
    made = kept.read("predictions", columns=["entry", "subject", "by", "event_time", "stale"])
    champion = replace(shop.known.read_version(1), as_of=BEGIN)
    entries = score.subjects_of_keys(shop.rows)
    arrived = score._arrived(shop.rows, entries, made, champion, BEGIN)
    assert arrived.sum() == sum(stale)
    assert (shop.rows.event_time[arrived] > np.datetime64(AS_OF + LEAD)).all()
    anew = journalled.predictions(entries[arrived].tolist(), event_time=shop.rows.event_time[arrived])  # as score does
    kept.append("predictions", anew)
    made = kept.read("predictions", columns=["entry", "subject", "by", "event_time", "stale"])
    assert not score._arrived(shop.rows, entries, made, champion, BEGIN).any()
    assert made.num_rows == len(shop.asked) + sum(stale)
    assert predictions.drop_superseded(made).num_rows == len(shop.asked)
    kept.close()


def test_a_stale_answer_counts_until_its_row_is_predicted_anew() -> None:
    entries, stale = ["a 1", "b 1", "b 2", "c 1"], [True, True, False, False]
    made = journalled.predictions(entries, subject=["a", "b", "b", "c"], stale=stale)
    assert predictions.drop_superseded(made)["entry"].to_pylist() == ["a 1", "b 2", "c 1"]
    assert predictions.drop_superseded(journalled.predictions([])).num_rows == 0


def test_a_state_reaches_as_far_as_the_champions_own_lead(shop: Shop, home: Path) -> None:
    p = with_serving(shop, ahead=timedelta(hours=2))
    found = state.read_current(home)
    assert found
    loaded, champion = tables.Tables.load(p, found), versions.load_version(home, 1)
    longer = replace(
        champion,
        p=shop.p.model_copy(update={"features": shop.p.features.model_copy(update={"lead": timedelta(hours=5)})}),
    )
    assert [loaded.until(one) - AS_OF for one in (champion, longer)] == [timedelta(hours=3), timedelta(hours=7)]
