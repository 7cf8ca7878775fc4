"""A program of somebody else gets the API's answers in the order of its rows, and waits for what may pass."""

import asyncio
import hashlib
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest
import uvicorn

from infra.servers import free_port
from tasks.serving import app, client
from tasks.serving.client import AsyncClient, Client, Outcome, Prediction, RefusedError, UnavailableError
from tasks.serving.predictions import latest_outcomes
from tests.tasks.serving import test_app
from tests.tasks.serving.test_app import Shop, kept, shop
from tests.waiting import wait_until

__all__ = ["shop"]  # the fixture


@pytest.fixture(scope="module")
def url(shop: Shop) -> Iterator[str]:
    with test_app.client(shop) as api:
        yield str(api.base_url)


@pytest.fixture(scope="module")
def answers(shop: Shop, url: str) -> list[Prediction]:
    """What the API answers to the rows in one request."""
    body = httpx.post(f"{url}/v1/predict", json={"rows": shop.asked, "reasons": 2}).json()
    return [Prediction(**prediction) for prediction in body["predictions"]]


@pytest.mark.parametrize("batch", [7, 500])
def test_rows_are_answered_in_their_order_in_requests_of_any_size(
    shop: Shop, url: str, answers: list[Prediction], batch: int
) -> None:
    rows = [row | {"event_time": datetime.fromisoformat(row["event_time"])} for row in shop.asked]
    with Client(url, batch=batch) as api:
        assert api.is_ready()
        assert api.describe_model()["number"] == 1
        assert api.predict(iter(rows), reasons=2) == answers
        assert api.predict([]) == []


def test_the_asynchronous_client_gets_the_same(shop: Shop, url: str, answers: list[Prediction]) -> None:
    async def ask() -> None:
        async with AsyncClient(url, batch=7) as api:
            assert await api.is_ready()
            assert await api.predict(shop.asked, reasons=2) == answers
            assert (await api.describe_model())["number"] == 1
            ready = await api.predict_features(shop.rows.table.slice(0, 20).to_pylist())
            assert len({answer.id for answer in ready}) == 20
            assert await api.send_outcomes([Outcome(answer.id, label=True) for answer in ready]) == 20
            with pytest.raises(RefusedError, match=r"\(422\).*amount"):
                await api.predict([*shop.asked[:20], shop.asked[0] | {"amount": -1}])

    asyncio.run(ask())


def test_ready_features_and_outcomes_are_taken(shop: Shop, url: str) -> None:
    table = shop.rows.table.slice(0, 20)
    with Client(url, batch=6) as api:
        ready = api.predict_features(table.to_pylist())
        assert api.send_outcomes([Outcome(answer.id, label=place % 2 == 0) for place, answer in enumerate(ready)]) == 20
    came = latest_outcomes(kept(shop).read("outcomes")).by_prediction
    assert [came[answer.id] for answer in ready] == [1.0, 0.0] * 10


def test_a_row_that_breaks_the_contract_is_refused_at_once_with_its_place(shop: Shop, url: str) -> None:
    with Client(url) as api, pytest.raises(RefusedError) as refused:
        api.predict([shop.asked[0], shop.asked[1] | {"amount": -1}])
    assert refused.value.status == 422
    assert refused.value.detail[0]["loc"][:2] == ["rows", 1]


def test_a_server_that_comes_up_late_is_waited_for(shop: Shop) -> None:
    port, rows = free_port(), shop.asked[:3]
    config = uvicorn.Config(app.create(shop.p, shop.home), host="127.0.0.1", port=port, log_config=None)
    server = uvicorn.Server(config)

    def start() -> None:
        time.sleep(0.5)
        server.run()

    thread = threading.Thread(target=start)
    thread.start()
    try:
        with Client(f"http://127.0.0.1:{port}", tries=100) as api:
            assert not api.is_ready()
            assert len(api.predict(rows)) == len(api.predict_features([{"amount": 1.0}] * 3)) == 3
    finally:
        server.should_exit = True
        thread.join()


def test_where_nobody_answers_the_error_names_the_address_and_the_tries() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url, tries=2) as api, pytest.raises(UnavailableError, match=rf"{url} did not answer in 2 tries"):
        api.predict([{"amount": 1.0}])


def test_a_busy_server_is_asked_again_no_sooner_than_it_says(shop: Shop) -> None:
    one = app.create(shop.p, shop.home)
    (front,) = one.user_middleware
    handler: Any = front.kwargs["handler"]
    handler.busy = shop.p.serving.busy  # every place is taken, until the first refusal

    def free() -> None:
        wait_until(lambda: 'status="503"' in handler.metrics.text().decode() or None, 30)
        handler.busy = 0

    with test_app.serves(one) as raw, Client(str(raw.base_url)) as api:
        thread = threading.Thread(target=free)
        thread.start()
        began = time.monotonic()
        assert len(api.predict(shop.asked[:2])) == 2
        assert time.monotonic() - began >= 1  # as Retry-After says
        thread.join()


@pytest.mark.parametrize("repeatable", [True, False])
def test_what_may_have_been_answered_is_repeated_only_where_that_does_no_harm(repeatable: bool) -> None:
    may_pass = client.Settings().retry_options(repeatable=repeatable)["retry"].predicate
    assert may_pass(httpx.ConnectError("nobody"))
    assert may_pass(httpx.ReadTimeout("no answer")) == repeatable
    assert not may_pass(RefusedError(422, "a rule"))


def test_a_key_is_sent_and_may_come_from_the_environment(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(test_app.TOKEN.encode()).hexdigest()
    monkeypatch.setenv("EVERGREEN_API_KEYS", f"shop:predict:{digest}")
    with test_app.client(shop) as raw:
        url = str(raw.base_url)
        with Client(url, key="wrong") as api, pytest.raises(RefusedError, match=r"\(401\)"):
            api.predict(shop.asked[:1])
        with Client(url, key=test_app.TOKEN) as api:
            assert len(api.predict(shop.asked[:1])) == 1
        monkeypatch.setenv(client.KEY, test_app.TOKEN)
        with Client(url) as api:
            assert len(api.predict(shop.asked[:1])) == 1
