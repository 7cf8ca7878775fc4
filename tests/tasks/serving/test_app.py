"""tasks.serving: what the API answers is what the batch path makes of the same rows, and what it answered is kept."""

import functools
import hashlib
import importlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from httpx import Client

from tasks import params
from tasks.data import featurerows, state
from tasks.data.featurerows import Rows
from tasks.monitoring.window import select_predictions
from tasks.params import Challenger, Params
from tasks.promotion import changes, registry
from tasks.promotion.registry import Registry
from tasks.promotion.runs import Bundle
from tasks.serving import (
    active,
    app,
    handler,
    journal,
    messages,
    predict,
    protocol,
    registry_mirror,
    score,
    tables,
    traffic,
    versions,
)
from tasks.serving.predictions import latest_outcomes
from tasks.training.model import Model
from tests.conftest import BEGIN, FEATURES_SQL, KEY, raw_params, write_params, write_sources
from tests.programs import PROGRAMS
from tests.registries import place_tables
from tests.waiting import PATIENCE_S, wait_until

DAYS, STAGES = 60, ("ingest", "clean", "features", "tune", "train", "evaluate")
TOKEN = "ev_a-key-of-the-tests"
JSON = {"content-type": "application/json"}
NEWEST = timedelta(hours=20)  # of the rows that are asked for again


@dataclass(frozen=True)
class Shop:
    """A made project whose first model serves, with its state published, and the rows of its last day."""

    folder: Path
    home: Path
    p: Params
    known: Registry
    rows: Rows
    asked: list[dict[str, Any]]  # the same rows, as somebody outside would send them


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A copy of the one that is made for all modules."""
    made, place = make_shop(tmp_path_factory.getbasetemp() / "shop"), tmp_path_factory.mktemp("shop")
    folder, home = (Path(shutil.copytree(made / name, place / name)) for name in ("folder", "home"))
    with at(folder, home):
        p = params.load()
        rows = featurerows.read_rows(folder / p.paths.features)
        inside = rows.event_time >= np.datetime64(BEGIN + timedelta(days=DAYS) - NEWEST)
        yield Shop(folder, home, p, registry.open_registry(p.registry), rows.take(inside), sent(folder))


@functools.cache
def make_shop(place: Path) -> Path:
    folder, home = place / "folder", place / "home"
    (folder / "tasks").mkdir(parents=True)
    (folder / "tasks" / "features.sql").write_text(FEATURES_SQL)
    write_sources(folder / "source", days=DAYS, per_day=80)
    write_params(raw_params("binary", DAYS), folder)
    place_tables(home)
    with at(folder, home):
        p = params.load()
        for name in STAGES:
            getattr(importlib.import_module(PROGRAMS[name]), name)(p)
        known = registry.open_registry(p.registry)
        crowned(known, folder, p, "first")
        state.publish(p, folder)
        registry_mirror.copy_versions(known, home)
    return place


@contextmanager
def at(folder: Path, home: Path) -> Iterator[None]:
    """The working folder and its home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("EVERGREEN_HOME", str(home))
        patch.setenv("EVERGREEN_PII_KEY", KEY)
        patch.delenv("EVERGREEN_API_KEYS", raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


def crowned(known: Registry, folder: Path, p: Params, name: str) -> int:
    """A version of the model that the stages left, promoted."""
    model = folder / p.paths.models / "model.ubj"
    files = folder / "recorded"
    files.mkdir(exist_ok=True)
    for path in (folder / "params.yaml", folder / "tasks" / "features.sql"):
        shutil.copy(path, files)
    spec = Model.load(model).spec
    listed = [{"name": each.name, "kind": each.kind} for each in spec.features]
    example = featurerows.read_rows(folder / p.paths.features).table.select(spec.names).slice(0, 2)
    empty: dict[str, Any] = {
        "params": {},
        "metrics": {"holdout.log_loss": 0.4},
        "counts": {},
        "datasets": [],
        "trials": [],
    }
    bundle = Bundle(model, model, listed, example)
    run_id = known.runs.log(name, name=name, note="A card.", tags={}, files=files, bundle=bundle, **empty)
    told = {"outcome": "PROMOTE", "reasons": ["It is good."]}
    return changes.promote(
        known, run_id, decision=name, verdict=told, as_of=BEGIN + timedelta(days=DAYS), tags={}
    ).number


def sent(folder: Path, begin: datetime = BEGIN + timedelta(days=DAYS) - NEWEST) -> list[dict[str, Any]]:
    """The rows of the last day, or from `begin` on, with what is known of an order when it is placed."""
    lines = (folder / "source" / "orders.csv").read_text().splitlines()[1:]
    found = []
    for line in lines:
        number, placed, email, store, amount, distance, _ = line.split(",")
        if datetime.fromisoformat(placed) >= begin:
            plain = {"number": int(number), "email": email, "store": store}
            at = placed.replace(" ", "T")
            found.append(plain | {"amount": float(amount), "distance": float(distance), "event_time": at})
    return found


@contextmanager
def client(shop: Shop, **serving: Any) -> Iterator[Client]:
    p = shop.p.model_copy(update={"serving": shop.p.serving.model_copy(update=serving)})
    with serves(app.create(p, shop.home)) as found:
        yield found


@contextmanager
def serves(one: FastAPI) -> Iterator[Client]:
    """A real server in a thread of this process."""
    config = uvicorn.Config(
        one, host="127.0.0.1", port=0, log_config=None, http=protocol.BoundedHeaders, ws="none"
    )  # as __main__ has it
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as found:
            yield found
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def api(shop: Shop) -> Iterator[Client]:
    with client(shop) as found:
        yield found


def kept(shop: Shop) -> journal.Journal:
    return journal.open_journal(shop.p.journal, home=shop.home)


def champion_scores(shop: Shop) -> dict[int, float]:
    """What the batch path says of each order."""
    one = Model.load(shop.folder / shop.p.paths.models / "model.ubj")
    assert shop.rows.keys
    return dict(zip(shop.rows.keys["number"].to_pylist(), one.predict(shop.rows.table).tolist(), strict=True))


# --- answers


def test_a_raw_row_gets_the_very_score_that_the_batch_path_gives_it(shop: Shop, api: Client) -> None:
    answer = api.post("/v1/predict", json={"rows": shop.asked})
    assert answer.status_code == 200, answer.text
    found = answer.json()["predictions"]
    batch = champion_scores(shop)
    assert len(found) > 40
    assert [each["score"] for each in found] == [batch[row["number"]] for row in shop.asked]
    threshold = api.get("/v1/model").json()["threshold"]
    assert [each["decision"] for each in found] == [each["score"] >= threshold for each in found]


def test_alone_and_among_others_a_row_has_the_same_answer(shop: Shop, api: Client) -> None:
    among = api.post("/v1/predict", json={"rows": shop.asked}).json()["predictions"]
    for place in (0, len(among) // 2, -1):
        (alone,) = api.post("/v1/predict", json={"rows": [shop.asked[place]]}).json()["predictions"]
        assert alone == among[place]


def test_ready_features_get_the_same_score(shop: Shop, api: Client) -> None:
    rows = [{k: v for k, v in row.items() if v is not None} for row in shop.rows.table.slice(0, 30).to_pylist()]
    found = api.post("/v1/predict/features", json={"rows": rows}).json()["predictions"]
    one = Model.load(shop.folder / shop.p.paths.models / "model.ubj")
    assert [each["score"] for each in found] == one.predict(shop.rows.table.slice(0, 30)).tolist()


def test_what_was_answered_is_journalled_with_its_features_and_no_name(shop: Shop, api: Client) -> None:
    row = shop.asked[3]
    (told,) = api.post("/v1/predict", json={"rows": [row]}).json()["predictions"]
    made = {each["entry"]: each for each in kept(shop).read("predictions").to_pylist()}
    line = made[told["id"]]
    assert (line["score"], line["version"], line["key_number"]) == (told["score"], 1, row["number"])
    assert line["event_time"] == datetime.fromisoformat(row["event_time"])
    assert line["x_store"] == row["store"]
    assert row["email"] not in json.dumps(line, default=str)


def test_asked_again_it_is_the_same_prediction(shop: Shop, api: Client) -> None:
    once, again = (api.post("/v1/predict", json={"rows": shop.asked[:2]}).json() for _ in range(2))
    assert once == again


def test_the_batch_path_does_not_predict_again_what_the_api_has_answered(shop: Shop, api: Client) -> None:
    api.post("/v1/predict", json={"rows": shop.asked})
    made = kept(shop).read("predictions", columns=["entry", "subject", "by", "event_time", "stale"])
    champion = replace(shop.known.read_version(1), as_of=BEGIN)
    arrived = score._arrived(shop.rows, score.subjects_of_keys(shop.rows), made, champion, BEGIN)
    assert not arrived.any()


def test_what_the_api_was_asked_of_tomorrow_hides_no_row_of_today_from_the_batch_path(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    end = BEGIN + timedelta(days=DAYS)
    row = shop.asked[0] | {"event_time": (end + timedelta(hours=20)).isoformat()}
    with client(shop, ahead=timedelta(days=1)) as api:
        (told,) = api.post("/v1/predict", json={"rows": [row]}).json()["predictions"]
    made = kept(shop).read("predictions", columns=["entry", "subject", "by", "event_time", "stale"])
    made = made.filter([entry == told["id"] for entry in made["entry"].to_pylist()])
    champion = replace(shop.known.read_version(1), as_of=BEGIN)
    arrived = score._arrived(shop.rows, score.subjects_of_keys(shop.rows), made, champion, end)
    assert arrived.sum() == len(shop.rows.event_time) - 1  # its own subject is answered
    assert "ahead" not in caplog.text


def test_an_outcome_is_taken_and_joins_its_prediction(shop: Shop, api: Client) -> None:
    (told,) = api.post("/v1/predict", json={"rows": [shop.asked[5]]}).json()["predictions"]
    for label in (True, False):
        answer = api.post("/v1/outcomes", json={"outcomes": [{"id": told["id"], "label": label}]})
        assert answer.json() == {"accepted": 1}
    came = latest_outcomes(kept(shop).read("outcomes"))
    assert came.by_prediction[told["id"]] == 0.0  # the later one
    end = BEGIN + timedelta(days=DAYS)
    begin = end - shop.p.monitor.window
    rows = kept(shop).read("predictions", since=begin, until=end)
    window = select_predictions(rows, came, replace(shop.known.read_version(1), as_of=None), begin, end)
    assert window.labels[list(window.times).index(np.datetime64(shop.asked[5]["event_time"], "us"))] == 0.0
    assert len(window.times) == len(subjects(shop, end))


def subjects(shop: Shop, end: datetime) -> set[str]:
    since = end - shop.p.monitor.window
    return set(kept(shop).read("predictions", since=since, until=end)["subject"].to_pylist())


def test_an_outcome_cannot_be_known_in_the_future_and_none_of_its_request_is_kept(shop: Shop, api: Client) -> None:
    end, before = BEGIN + timedelta(days=DAYS), kept(shop).read("outcomes").num_rows

    def send(known_at: datetime) -> Any:
        sent = [{"id": "sooner", "label": True}, {"id": "later", "label": True, "known_at": known_at.isoformat()}]
        return api.post("/v1/outcomes", json={"outcomes": sent})

    answer = send(end + shop.p.serving.stale + timedelta(days=300))
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["outcomes", 1, "known_at"])
    assert "must not be after" in answer.text
    assert kept(shop).read("outcomes").num_rows == before
    assert send(end + shop.p.serving.stale - timedelta(hours=1)).json() == {"accepted": 2}


def test_an_outcome_of_a_prediction_that_nobody_made_is_kept_and_harms_nothing(shop: Shop, api: Client) -> None:
    for name in ("unknown", "a.b.c", f"a.{'0' * 16}.{'f' * 40}", "a." + "0" * 16 + ".-1"):
        answer = api.post("/v1/outcomes", json={"outcomes": [{"id": name, "label": True}]})
        assert answer.status_code == 200, answer.text
        assert name in kept(shop).read("outcomes")["prediction"].to_pylist()


def test_for_a_thousand_rows_features_and_scores_are_the_batch_paths_to_the_last_bit(
    shop: Shop, tmp_path: Path
) -> None:
    p = shop.p.model_copy(update={"serving": shop.p.serving.model_copy(update={"behind": timedelta(days=14)})})
    shutil.copytree(versions.folder(shop.home), versions.folder(tmp_path))
    state.publish(p, shop.folder, home=tmp_path)
    found = featurerows.read_rows(shop.folder / p.paths.features)
    begin = BEGIN + timedelta(days=DAYS - 13)
    rows = found.take(found.event_time >= np.datetime64(begin))
    asked = sent(shop.folder, begin)
    assert rows.keys
    places = {number: place for place, number in enumerate(rows.keys["number"].to_pylist())}
    np.random.default_rng(3).shuffle(asked)  # type: ignore[arg-type]
    with serves(app.create(p, tmp_path)) as one:
        told = [
            each
            for some in halves(asked)
            for each in one.post("/v1/predict", json={"rows": some}).json()["predictions"]
        ]
    model = Model.load(shop.folder / p.paths.models / "model.ubj")
    scores = model.predict(rows.table).tolist()
    assert len(asked) >= 1000
    made = {
        each["entry"]: each for each in journal.open_journal(p.journal, home=tmp_path).read("predictions").to_pylist()
    }
    table = rows.table.to_pylist()
    for row, answer in zip(asked, told, strict=True):
        place = places[row["number"]]
        assert answer["score"] == scores[place]
        assert {name: made[answer["id"]][f"x_{name}"] for name in table[place]} == table[place]


def test_sql_that_ends_in_a_semicolon_and_a_comment_serves_as_it_trains(shop: Shop) -> None:
    one = active.Active(shop.home)
    assert list(one.renew(shop.p))
    assert one.champion
    assert one.tables
    rows = tables.hide_personal_data(
        shop.p,
        messages.Messages(shop.p)
        .rows.model_validate_json(json.dumps({"rows": shop.asked[:3]}))
        .model_dump(by_alias=True)["rows"],
        KEY.encode(),
    )
    ended = replace(one.champion, number=2, sql=one.champion.sql + ";\n-- the end\n")
    assert one.tables.features(ended, rows).equals(one.tables.features(one.champion, rows))


def halves(rows: list[Any]) -> tuple[list[Any], list[Any]]:
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def test_columns_get_the_scores_that_rows_get(shop: Shop, api: Client) -> None:
    for count in (1, 30, 70):  # together with others, and apart
        table = shop.rows.table.slice(0, count)
        by_row = api.post("/v1/predict/features", json={"rows": table.to_pylist()}).json()["predictions"]
        columns = {name: table[name].to_pylist() for name in table.column_names}
        by_column = api.post("/v1/predict/features", json={"inputs": columns}).json()["predictions"]
        assert [each["score"] for each in by_row] == [each["score"] for each in by_column]
        assert len({each["id"] for each in [*by_row, *by_column]}) == 2 * table.num_rows


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "either rows or inputs"),
        ({"rows": [{}], "inputs": {"amount": [1.0]}}, "either rows or inputs"),
        ({"inputs": {}}, "either rows or inputs"),
        ({"inputs": {"amount": [1.0], "store": []}}, "at least 1 item"),
        ({"inputs": {"amount": [1.0], "store": ["west", "west"]}}, "of one length"),
        ({"inputs": {"amount": [1.0, "much"]}}, "must be a number"),
        ({"rows": [{"amount": 10**400}]}, "must be a number"),
        ({"rows": [{"store": "w" * 1001}]}, "1,000 characters"),
        ({"rows": [{"store": ["west"]}]}, "must be a category"),
        ({"rows": [{"amount": {}}]}, "must be a number"),
    ],
)
def test_features_that_cannot_be_taken_are_422(api: Client, body: Any, says: str) -> None:
    answer = api.post("/v1/predict/features", json=body)
    assert answer.status_code == 422, answer.text
    assert says in answer.text


def test_what_is_not_finite_is_missing(api: Client) -> None:
    bodies = (b'{"rows": [{"amount": 1e39}]}', b'{"rows": [{"amount": null}]}', b'{"rows": [{}]}')
    scores = [
        api.post("/v1/predict/features", content=body, headers=JSON).json()["predictions"][0]["score"]
        for body in bodies
    ]
    assert len(set(scores)) == 1


def test_reasons_are_the_strongest_shap_values_and_come_on_request_alone(shop: Shop, api: Client) -> None:
    model = Model.load(shop.folder / shop.p.paths.models / "model.ubj")
    plain = api.post("/v1/predict", json={"rows": shop.asked[:3]}).json()["predictions"]
    asked = api.post("/v1/predict", json={"rows": shop.asked[:3], "reasons": 2}).json()["predictions"]
    assert [{k: v for k, v in each.items() if k != "reasons"} for each in asked] == plain
    numbers = shop.rows.keys["number"].to_pylist() if shop.rows.keys else []
    parts = model.contributions(shop.rows.table)
    for row, told in zip(shop.asked, asked, strict=False):
        part = parts[numbers.index(row["number"])]
        order = np.argsort(-np.abs(part))[:2]
        assert [each["feature"] for each in told["reasons"]] == [model.spec.names[i] for i in order]
        np.testing.assert_allclose([each["effect"] for each in told["reasons"]], part[order], rtol=1e-4)


def test_many_at_once_each_get_their_own_answer(shop: Shop, api: Client) -> None:
    batch = champion_scores(shop)
    rows = shop.rows.table.to_pylist()

    def ask(place: int) -> tuple[float, float, int]:
        (raw,) = api.post("/v1/predict", json={"rows": [shop.asked[place]]}).json()["predictions"]
        (ready,) = api.post("/v1/predict/features", json={"rows": [rows[place]]}).json()["predictions"]
        bad = api.post("/v1/predict/features", json={"rows": [{"amount": "much"}]}).status_code
        return raw["score"], ready["score"], bad

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(40)))
    assert shop.rows.keys
    numbers = shop.rows.keys["number"].to_pylist()
    assert [raw for raw, _, _ in found] == [batch[row["number"]] for row in shop.asked[:40]]
    assert [ready for _, ready, _ in found] == [batch[number] for number in numbers[:40]]
    assert {bad for _, _, bad in found} == {422}


def test_a_challenger_in_the_shadow_is_journalled_and_told_nobody(shop: Shop) -> None:
    with challenged(shop, mode="shadow") as (one, number):
        answer = one.post("/v1/predict", json={"rows": shop.asked[:5]}).json()
        ready = one.post("/v1/predict/features", json={"rows": shop.rows.table.slice(0, 3).to_pylist()}).json()
    assert {each["version"] for each in [*answer["predictions"], *ready["predictions"]]} == {1}
    every = kept(shop).read("predictions", shadows=True).to_pylist()
    assert {each["by"] for each in every} == {"api"}
    shadows = [each for each in every if each["arm"] == "shadow" and each["version"] == number]
    assert len(shadows) == 8
    ids = {each["id"] for each in [*answer["predictions"], *ready["predictions"]]}
    assert {each["subject"] for each in shadows} == {each["subject"] for each in every if each["entry"] in ids}
    assert not {each["entry"] for each in shadows} & {
        each["entry"] for each in kept(shop).read("predictions").to_pylist()
    }


def test_a_challenger_with_a_share_answers_the_same_rows_each_time(shop: Shop) -> None:
    with challenged(shop, mode="share", share=0.5) as (one, number):
        once, again = (one.post("/v1/predict", json={"rows": shop.asked}).json()["predictions"] for _ in range(2))
        alone = [one.post("/v1/predict", json={"rows": [row]}).json()["predictions"][0] for row in shop.asked[:8]]
    assert once == again
    assert once[:8] == alone
    versions = [each["version"] for each in once]
    made = {each["entry"]: each for each in kept(shop).read("predictions").to_pylist()}
    assert {made[each["id"]]["arm"] for each in once if each["version"] == number} == {"challenger"}
    assert set(versions) == {1, number}
    assert 0.2 < versions.count(number) / len(versions) < 0.8


def test_what_a_challenger_said_in_the_shadow_takes_no_answers_place_when_it_serves(shop: Shop) -> None:
    """Also not when both are in one log, which keeps an entry once."""
    champion, rows = versions.load_version(shop.home, 1), shop.rows.table.slice(0, 2)
    told: Any = {"by": "api", "subjects": ["a", "b"], "times": [BEGIN, BEGIN], "keys": {}}
    shadow, answer = (predict.answer(champion, rows, arm=arm, **told) for arm in ("shadow", "champion"))
    assert not set(shadow.entries) & set(answer.entries)
    assert shadow.rows["subject"].equals(answer.rows["subject"])
    assert [set(each.rows["arm"].to_pylist()) for each in (shadow, answer)] == [{"shadow"}, {"champion"}]


def test_where_a_challenger_fails_the_champion_answers(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = predict.answer

    def fails(champion: versions.Champion, *args: Any, **more: Any) -> Any:
        if champion.number != 1:
            raise RuntimeError("a value that nobody may read")
        return whole(champion, *args, **more)

    monkeypatch.setattr(predict, "answer", fails)
    for settings in ({"mode": "share", "share": 0.5}, {"mode": "shadow"}):
        with challenged(shop, **settings) as (one, _):
            answer = one.post("/v1/predict", json={"rows": shop.asked[:12]})
            kind = "challenger" if "share" in settings else "shadow"
            counted = f'evergreen_errors_total{{kind="{kind}"}} 1.0'  # what is done in the shadow may come after
            wait_until(lambda one=one, counted=counted: counted in one.get("/metrics").text)
        assert {each["version"] for each in answer.json()["predictions"]} == {1}
    made = {each["entry"]: each for each in kept(shop).read("predictions").to_pylist()}
    assert {made[each["id"]]["arm"] for each in answer.json()["predictions"]} == {"champion"}


def test_a_shadow_that_takes_longer_than_an_answer_may_stops_nobody(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def slow(_job: Any) -> list[Any]:
        answered.wait(PATIENCE_S)
        return []

    monkeypatch.setattr(traffic.Job, "shadows", slow)
    many = {"rows": shop.rows.table.slice(0, 40).to_pylist()}
    with challenged(shop, timedelta(seconds=0.5), mode="shadow") as (one, _):
        statuses = [one.post("/v1/predict/features", json=many).status_code for _ in range(2)]
        answered.set()
        wait_until(lambda: one.post("/v1/predict/features", json={"rows": many["rows"][:1]}).status_code == 200)
    assert statuses == [200, 503]


@contextmanager
def challenged(shop: Shop, within: timedelta | None = None, **settings: Any) -> Iterator[tuple[Client, int]]:
    """A server while the first version, under another number, is its challenger."""
    number = 77
    shutil.copytree(versions.folder(shop.home) / "1", versions.folder(shop.home) / str(number))
    pointer = versions.folder(shop.home) / versions.CHALLENGER
    pointer.write_text(json.dumps({"number": number}))
    try:
        with client(shop, challenger=Challenger(**settings), within=within or shop.p.serving.within) as one:
            yield one, number
    finally:
        pointer.unlink()
        shutil.rmtree(versions.folder(shop.home) / str(number))


# --- what is refused


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("distance", 101, "less than or equal to 100"),
        ("distance", "far", "valid number"),
        ("distance", True, "valid number"),
        ("number", 1.5, "valid integer"),
        ("number", 2**31, "less than or equal to"),
        ("number", None, "valid integer"),
        ("store", "east", "'north', 'south' or 'west'"),
        ("email", "nobody@example.org", "is not in customers.email"),
        ("event_time", "2023-01-01T00:00:00", "must not be before"),
        ("event_time", "9999-12-31T23:59:59Z", "must be before 2200"),
        ("event_time", "soon", "valid datetime"),
        ("event_time", "0001-01-01T00:00:00+23:00", "between the years 1 and 9999"),
        ("colour", "red", "not permitted"),
    ],
)
def test_a_row_that_breaks_the_contract_is_named_with_its_field_and_rule(
    shop: Shop, api: Client, field: str, value: Any, says: str
) -> None:
    answer = api.post("/v1/predict", json={"rows": [shop.asked[0], {**shop.asked[1], field: value}]})
    assert answer.status_code == 422, answer.text
    fault = answer.json()["detail"][0]
    assert fault["loc"][:3] == ["rows", 1, field]
    assert says in fault["msg"]
    assert "nobody@example.org" not in answer.text


def test_what_the_contract_lets_be_missing_may_be(shop: Shop, api: Client) -> None:
    row = {k: v for k, v in shop.asked[0].items() if k not in ("email", "distance")}
    answer = api.post("/v1/predict", json={"rows": [row]})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"rows": []}', b'{"rows": 3}', b"\xff\xfe", b'{"rows": [NaN]}'])
def test_what_is_no_message_is_422(api: Client, body: bytes) -> None:
    for path in ("/v1/predict", "/v1/predict/features", "/v1/outcomes"):
        assert api.post(path, content=body, headers=JSON).status_code == 422


def test_features_that_the_model_does_not_know_are_named(api: Client) -> None:
    for row, name in (({"size": 1.0}, "size"), ({"store": 2.0}, "store"), ({"amount": "much"}, "amount")):
        answer = api.post("/v1/predict/features", json={"rows": [row]})
        assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["rows", 0, name])


def test_too_much_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MOST_BYTES", 1000)
    with client(shop, rows=2) as small:
        assert small.post("/v1/predict", json={"rows": shop.asked[:3]}).status_code == 422
        assert small.post("/v1/predict", content=b" " * 2000, headers=JSON).status_code == 413


def test_over_load_it_says_so_and_does_not_queue(shop: Shop) -> None:
    made = app.create(shop.p, shop.home)
    at_work = made.user_middleware[0].kwargs["handler"]
    with serves(made) as one:
        at_work.busy = shop.p.serving.busy
        answer = one.post("/v1/predict", json={"rows": shop.asked[:1]})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert one.get("/health").status_code == 200
        at_work.busy = 0
        assert one.post("/v1/predict", json={"rows": shop.asked[:1]}).status_code == 200


def test_a_slow_answer_is_given_up(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    given_up = threading.Event()
    monkeypatch.setattr(handler.Handler, "_raw_answers", lambda *_: given_up.wait(PATIENCE_S))
    with client(shop, within=timedelta(seconds=0.2)) as one:
        status = one.post("/v1/predict", json={"rows": shop.asked[:1]}).status_code
        given_up.set()
    assert status == 503


@pytest.mark.timeout(60)  # what is worked at for each name and row takes minutes
def test_made_up_names_cost_no_more_than_they_are_worth(api: Client) -> None:
    rows = [{f"made_{i}_{k}": 1 for k in range(10)} for i in range(1000)]
    names = {"rows": [{f"{'long' * 50}{i}": 1 for i in range(12_000)}]}
    for asked, page in (({"rows": rows}, "/v1/predict/features"), (names, "/v1/predict")):
        answer = api.post(page, json=asked)
        assert answer.status_code == 422
        assert len(answer.content) < 10_000


def test_a_row_that_the_sql_fails_on_is_named_and_spoils_nobody_elses(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = shop.asked[3]["distance"]
    one = active.Active(shop.home)
    assert list(one.renew(shop.p))
    assert one.champion
    assert one.tables
    sql = one.champion.sql.replace("asked.distance", f"CASE WHEN asked.distance = {bad} THEN error('it') ELSE 1 END d")
    asked = messages.Messages(shop.p).rows.model_validate_json(json.dumps({"rows": shop.asked[:5]}))
    rows = tables.hide_personal_data(shop.p, asked.model_dump(by_alias=True)["rows"], KEY.encode())
    other = replace(one.champion, number=9, sql=sql)
    monkeypatch.setattr(tables.Tables, "_rows_to_try", lambda _: [rows[:1], rows[1:3]])
    assert one.tables.prepare(other)
    plan = one.tables.queries[other.identity]
    with pytest.raises(tables.Refused, match=r"row 3: event_time: features.sql fails on this row \(InvalidInputExc"):
        one.tables.features(other, rows)
    assert one.tables.features(other, rows[:3]).num_rows == 3
    assert one.tables.queries[other.identity] is plan
    assert str(bad) not in caplog.text


def test_sql_that_does_not_fit_the_state_is_not_ready_and_says_so(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.Tables, "prepare", lambda *_: False)
    with client(shop) as one:
        assert "cannot be made of the state" in one.get("/ready").text
        answer = one.post("/v1/predict", json={"rows": shop.asked[:1]})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


def test_a_journal_that_cannot_be_written_is_a_503_until_it_can(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: Any, **_more: Any) -> None:
        raise OSError(28, "No space left on device")

    with client(shop) as one:
        for page, asked in (
            ("/v1/predict", {"rows": shop.asked[:1]}),
            ("/v1/outcomes", {"outcomes": [{"id": "x", "label": True}]}),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(journal.Journal, "append", full)
                answer = one.post(page, json=asked)
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
                assert "the journal could not be written" in one.get("/ready").text
            assert one.post(page, json=asked).status_code == 200
            assert one.get("/ready").status_code == 200


# --- keys


def test_a_key_opens_what_it_is_for(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    monkeypatch.setenv("EVERGREEN_API_KEYS", f"# of the tests\nshop:predict:{digest}\n")
    with client(shop) as one:
        asked = {"rows": shop.asked[:1]}
        assert one.post("/v1/predict", json=asked).status_code == 401
        for given in ("Bearer wrong", TOKEN, "Bearer \xff"):
            answer = one.post("/v1/predict", json=asked, headers={"Authorization": given.encode("latin-1")})
            assert answer.status_code == 401
        mine = {"Authorization": f"Bearer {TOKEN}"}
        assert one.post("/v1/predict", json=asked, headers=mine).status_code == 200
        assert one.post("/v1/outcomes", json={"outcomes": []}, headers=mine).status_code == 403
        assert one.get("/v1/model", headers=mine).status_code == 403
        assert one.get("/health").status_code == 200


def test_without_keys_nobody_else_is_let_in(shop: Shop) -> None:
    with pytest.raises(ValueError, match="that needs API keys"), client(shop, host="0.0.0.0"):
        pass


def test_a_bad_line_is_named_and_not_shown(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_API_KEYS", "shop:predict:secret")
    with pytest.raises(ValueError, match="line 1 of the API keys") as error, client(shop):
        pass
    assert "secret" not in str(error.value)


# --- what serves


def test_before_anything_serves_it_lives_and_is_not_ready(shop: Shop, tmp_path: Path) -> None:
    with serves(app.create(shop.p, tmp_path)) as empty:
        assert empty.get("/health").json() == {"status": "alive"}
        assert empty.get("/ready").json()["why"] == ["no champion serves yet", "no state is published yet"]
        answer = empty.post("/v1/predict", json={"rows": shop.asked[:1]})
        assert (answer.status_code, "retrain" in answer.text) == (503, True)


def test_a_state_that_is_old_is_not_ready_and_answers_all_the_same(shop: Shop) -> None:
    with client(shop, stale=timedelta(microseconds=1)) as one:
        assert one.get("/ready").status_code == 503
        assert one.post("/v1/predict", json={"rows": shop.asked[:1]}).status_code == 200


def test_the_model_tells_its_lineage_its_metrics_and_its_card(api: Client) -> None:
    told = api.get("/v1/model").json()
    assert told["number"] == 1
    assert told["metrics"] == {"holdout.log_loss": 0.4}
    assert (told["card"], told["task"]) == ("A card.", "binary")
    assert {each["name"] for each in told["features"]} >= {"amount", "store"}


def test_metrics_tell_rates_latencies_scores_and_the_version(shop: Shop, api: Client) -> None:
    api.post("/v1/predict", json={"rows": shop.asked[:1]})
    text = api.get("/metrics").text
    assert 'evergreen_requests_total{path="/v1/predict",status="200"}' in text
    assert "evergreen_version 1.0" in text
    assert 'evergreen_request_seconds_bucket{le="10.0",path="/v1/predict"}' in text
    assert "evergreen_score_bucket" in text


def test_the_documentation_shows_what_a_row_is(api: Client) -> None:
    found = api.get("/openapi.json").json()["paths"]["/v1/predict"]["post"]
    row = found["requestBody"]["content"]["application/json"]["schema"]["properties"]["rows"]["items"]
    assert set(row["required"]) == {"event_time", "number", "store"}
    assert {"422", "503"} <= found["responses"].keys()


def test_a_promotion_is_live_without_a_restart_and_the_old_serves_until_then(shop: Shop) -> None:
    with client(shop) as one:
        assert one.get("/v1/model").json()["number"] == 1
        made = crowned(shop.known, shop.folder, shop.p, "second")
        try:
            assert registry_mirror.copy_versions(shop.known, shop.home) == made
            asked: list[int] = []

            def is_live() -> bool:
                asked.append(one.post("/v1/predict", json={"rows": shop.asked[:1]}).status_code)
                return bool(one.get("/v1/model").json()["number"] == made)

            wait_until(is_live)
            assert set(asked) == {200}
            assert one.post("/v1/predict", json={"rows": shop.asked[:1]}).json()["version"] == made
        finally:
            changes.rollback(shop.known, decision="back", as_of=BEGIN, reasons=["for the other tests"])
            registry_mirror.copy_versions(shop.known, shop.home)


def test_what_cannot_be_loaded_does_not_serve_and_the_old_serves_on(shop: Shop) -> None:
    one = active.Active(shop.home)
    assert list(one.renew(shop.p))
    before = one.champion
    torn = versions.folder(shop.home) / "99"
    torn.mkdir()
    pointer = versions.folder(shop.home) / versions.POINTER
    said = pointer.read_text()
    try:
        pointer.write_text('{"number": 99}')
        assert list(one.renew(shop.p)) == []
        assert one.champion is before
    finally:
        pointer.write_text(said)
        torn.rmdir()
