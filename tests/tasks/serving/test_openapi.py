"""The API as its own OpenAPI document has it: what is asked by it is answered by it, and nothing that is sent is a 5xx.

A 503 that says when to ask again is an answer. The server is a real one; hypothesis makes what is sent.
"""

import json
import math
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import schemathesis
from httpx import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.conftest import BEGIN, STORES
from tests.tasks.serving.test_app import DAYS, JSON, Shop, client, shop

__all__ = ["shop"]  # the fixture
CHECKS = [
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
ASKED = [
    *("GET /health", "GET /metrics", "GET /ready", "GET /v1/model"),
    *("GET /ping", "GET /version", "GET /v2", "GET /v2/health/live", "GET /v2/health/ready"),
    *("GET /v2/models/{model}", "GET /v2/models/{model}/ready"),
    *("GET /v2/models/{model}/versions/{version}", "GET /v2/models/{model}/versions/{version}/ready"),
]
SENT = [
    *("POST /v1/outcomes", "POST /v1/predict", "POST /v1/predict/features"),
    *("POST /invocations", "POST /predict"),
    *("POST /v2/models/{model}/infer", "POST /v2/models/{model}/versions/{version}/infer"),
]
LISTS = ("rows", "outcomes", "inputs", "instances", "dataframe_records", "outputs")
TENSOR = ("name", "shape", "datatype", "data", "parameters", "binary_data_size")
quick = settings(max_examples=60, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def api(shop: Shop) -> Iterator[Client]:
    with client(shop) as found:
        yield found


@pytest.fixture(scope="module")
def operations(api: Client) -> dict[str, Any]:
    """By method and path."""
    document = schemathesis.openapi.from_dict(api.get("/openapi.json").json())
    document.config.update(base_url=str(api.base_url))
    found = (each.ok() for each in document.get_all_operations())
    return {f"{each.method.upper()} {each.path}": each for each in found}


def test_the_document_is_of_every_page(operations: dict[str, Any]) -> None:
    assert sorted(operations) == sorted([*ASKED, *SENT])


@pytest.mark.parametrize("name", ASKED + SENT)
def test_what_the_document_allows_is_answered_as_the_document_says(operations: dict[str, Any], name: str) -> None:
    @quick
    @given(operations[name].as_strategy())
    def check(case: Any) -> None:
        answered(case)

    check()


@pytest.mark.parametrize("name", SENT)
def test_what_the_document_forbids_is_refused_as_the_document_says(operations: dict[str, Any], name: str) -> None:
    forbids = schemathesis.GenerationMode.NEGATIVE

    @quick
    @given(operations[name].as_strategy(generation_mode=forbids))
    def check(case: Any) -> None:
        answered(case)

    check()


def answered(case: Any) -> None:
    answer = case.call()
    if answer.status_code == 503:
        assert int(answer.headers["retry-after"][0]) > 0
    else:
        case.validate_response(answer, checks=[not_a_server_error, *CHECKS])


# --- rows

END = BEGIN + timedelta(days=DAYS)


def rows(emails: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """All that the contract allows."""
    whole = {
        "number": st.integers(-(2**31), 2**31 - 1),
        "store": st.sampled_from(STORES),
        "event_time": st.datetimes(END, datetime(2199, 12, 31)).map(datetime.isoformat),
    }
    some = {
        "email": st.none() | st.sampled_from(emails),
        "amount": st.none() | st.floats(0, allow_infinity=False),
        "distance": st.none() | st.floats(0, 100),
    }
    return st.fixed_dictionaries(whole, optional=some)


def test_a_row_that_the_contract_allows_has_a_probability(shop: Shop) -> None:
    """However far ahead of the state it lies, where serving.beyond lets it be answered."""

    @quick
    @given(st.lists(rows([each["email"] for each in shop.asked]), min_size=1, max_size=5))
    def check(asked: list[dict[str, Any]]) -> None:
        answer = api.post("/v1/predict", json={"rows": asked})
        assert answer.status_code == 200, answer.text
        scores = [each["score"] for each in answer.json()["predictions"]]
        assert len(scores) == len(asked)
        assert all(math.isfinite(score) and 0 <= score <= 1 for score in scores)

    with client(shop, beyond="stale") as api:
        check()


def test_no_json_is_a_server_error(api: Client) -> None:
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    names = st.sampled_from(
        ["rows", "inputs", "outcomes", "reasons", "id", "label", "store", "amount", "event_time", *TENSOR]
    )
    anything = st.recursive(
        plain, lambda part: st.lists(part, max_size=4) | st.dictionaries(names | st.text(), part, max_size=4)
    )
    near = st.fixed_dictionaries({}, optional={name: st.lists(anything) for name in LISTS})

    @settings(quick, max_examples=150)
    @given(anything | near, st.sampled_from(SENT))
    def check(body: Any, name: str) -> None:
        path = name.removeprefix("POST ").format(model="made", version="1")
        answer = api.post(path, content=dumped(body), headers=JSON)
        assert answer.status_code < 500, answer.text
        assert {"detail", "error", "message"} & answer.json().keys() or answer.status_code == 200

    check()


def dumped(body: Any) -> bytes:
    """As JSON, with lone surrogates as Python's json sends them, and NaN."""
    return json.dumps(body).encode()
