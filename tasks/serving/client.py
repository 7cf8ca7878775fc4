"""client: the API from Python, for programs of others.

    from tasks.serving.client import Client, Outcome

    with Client("http://127.0.0.1:8080") as api:
        (answer,) = api.predict([{"event_time": "2013-07-31T23:40:00Z", "carrier": "EV", "flight": 4361}])
        api.send_outcomes([Outcome(answer.id, label=True)])

What may pass is tried again after random waits: no connection, 408, 429, 502, 503 and 504, no sooner than Retry-After
says. A raw row that is asked again has the same id, and an outcome that is sent again counts once. Ready features have
a new id each time: when their answer was lost on its way, they are not sent again. `AsyncClient` is for asyncio.
"""

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Self

import httpx
import orjson
import tenacity

KEY = "EVERGREEN_API_KEY"  # the environment variable that is read where no key is given
PASSING = {408, 429, 502, 503, 504}
BACKOFF = tenacity.wait_random_exponential(multiplier=0.2, max=10)
AT_ONCE = 4  # requests of one call of an AsyncClient
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Prediction:
    """An answer. `id` names it, for its outcome; `score` is a probability, one for each class, or the value."""

    id: str
    version: int
    score: float | dict[str, float]
    decision: bool | str | float | None = None
    stale: bool = False
    reasons: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a prediction, and when that became known; None: now."""

    id: str
    label: bool | str | float
    known_at: datetime | None = None


class RefusedError(ValueError):
    """A request that breaks a rule: it is not tried again.

    Attributes:
        status: of the answer, such as 422.
        detail: what the server says: a text, or the faults, each with its place, its field and the rule.
    """

    def __init__(self, status: int, detail: Any) -> None:
        super().__init__(f"the API refused the request ({status}): {detail}")
        self.status, self.detail = status, detail


class UnavailableError(OSError):
    """The API did not answer, after all tries."""


@dataclass(frozen=True)
class Settings:
    """How a client asks.

    Attributes:
        url: of the API.
        key: an API key; by default what the environment variable EVERGREEN_API_KEY says.
        timeout_s: of each try, in seconds.
        tries: of each request.
        batch: the rows of a request; more are sent in several. A server's bound is serving.rows.
    """

    url: str = "http://127.0.0.1:8080"
    key: str | None = None
    timeout_s: float = 10.0
    tries: int = 6
    batch: int = 500

    def open_options(self) -> dict[str, Any]:
        """Of httpx's clients."""
        key = self.key or os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return {"base_url": self.url, "headers": headers, "timeout": self.timeout_s}

    def retry_options(self, *, repeatable: bool) -> dict[str, Any]:
        """Of tenacity's loops. What is not repeatable is tried again only where the server has not begun to answer."""
        lost: tuple[type[Exception], ...] = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
        if repeatable:
            lost = (httpx.TransportError,)

        def may_pass(error: BaseException) -> bool:
            return isinstance(error, (*lost, _PassingError))

        return {
            "retry": tenacity.retry_if_exception(may_pass),
            "wait": _wait,
            "stop": tenacity.stop_after_attempt(self.tries),
            "reraise": True,
        }


class _PassingError(Exception):
    """An answer after which the same request may succeed."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(f"{answer.status_code} {_detail_of(answer)}")
        self.after_s = 0.0
        with suppress(ValueError):
            self.after_s = float(answer.headers.get("retry-after", 0))


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    least = error.after_s if isinstance(error, _PassingError) else 0.0
    return max(least, BACKOFF(state))


def _detail_of(answer: httpx.Response) -> Any:
    try:
        return answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]


def _read(answer: httpx.Response) -> Any:
    """An answer's JSON. Raises _PassingError or RefusedError."""
    if answer.status_code in PASSING:
        raise _PassingError(answer)
    if answer.status_code >= 400:
        raise RefusedError(answer.status_code, _detail_of(answer))
    return answer.json()


@dataclass(frozen=True)
class _Call:
    """A request: what to post where, and whether it does no harm to post it twice."""

    path: str
    body: bytes
    repeatable: bool


def _make_calls(path: str, name: str, items: Iterable[Any], size: int, **more: Any) -> Iterator[_Call]:
    listed = list(items)
    for begin in range(0, len(listed), size):
        body = orjson.dumps({name: listed[begin : begin + size], **more}, option=orjson.OPT_SERIALIZE_NUMPY)
        yield _Call(path, body, repeatable=path != "/v1/predict/features")


def _predictions_of(answers: Iterable[Any]) -> list[Prediction]:
    return [Prediction(**prediction) for answer in answers for prediction in answer["predictions"]]


def _outcomes_of(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    return [{name: value for name, value in asdict(outcome).items() if value is not None} for outcome in outcomes]


def _unavailable(settings: Settings, error: Exception) -> UnavailableError:
    return UnavailableError(f"{settings.url} did not answer in {settings.tries} tries; the last: {error!r}")


JSON = {"Content-Type": "application/json"}
FAILED = (httpx.TransportError, _PassingError)


class Client:
    """The API, for a program that waits. Threads may share it. Arguments: see `Settings`."""

    def __init__(self, url: str = Settings.url, **settings: Any) -> None:
        self.settings = Settings(url, **settings)
        self._http = httpx.Client(**self.settings.open_options())

    def predict(self, rows: Iterable[Row], *, reasons: int = 0) -> list[Prediction]:
        """Raw rows, with event_time and the spine's columns → answers in their order.

        Args:
            reasons: how many of the features that moved each score most.

        Raises:
            RefusedError: a row breaks the contract.
            UnavailableError: no answer in all tries. Of rows for several requests some may be answered and journalled.
        """
        return _predictions_of(map(self._post, self._calls("/v1/predict", "rows", rows, reasons=reasons)))

    def predict_features(self, rows: Iterable[Row], *, reasons: int = 0) -> list[Prediction]:
        """Rows of ready features → answers in their order. Raises as `predict`."""
        return _predictions_of(map(self._post, self._calls("/v1/predict/features", "rows", rows, reasons=reasons)))

    def send_outcomes(self, outcomes: Iterable[Outcome]) -> int:
        """Returns how many were accepted. Raises as `predict`."""
        calls = self._calls("/v1/outcomes", "outcomes", _outcomes_of(outcomes))
        return sum(self._post(call)["accepted"] for call in calls)

    def describe_model(self) -> dict[str, Any]:
        """The version that serves, its features, and where it comes from. Raises as `predict`."""
        model: dict[str, Any] = self._try(lambda: _read(self._http.get("/v1/model")), repeatable=True)
        return model

    def is_ready(self) -> bool:
        """Whether the API can answer now. False also where nobody answers."""
        try:
            return self._http.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _calls(self, path: str, name: str, items: Iterable[Any], **more: Any) -> Iterator[_Call]:
        return _make_calls(path, name, items, self.settings.batch, **more)

    def _post(self, call: _Call) -> Any:
        ask = lambda: _read(self._http.post(call.path, content=call.body, headers=JSON))  # noqa: E731
        return self._try(ask, repeatable=call.repeatable)

    def _try(self, ask: Any, *, repeatable: bool) -> Any:
        try:
            return tenacity.Retrying(**self.settings.retry_options(repeatable=repeatable))(ask)
        except FAILED as error:
            raise _unavailable(self.settings, error) from error


class AsyncClient:
    """The API, for asyncio. The requests of one call run side by side. Arguments: see `Settings`."""

    def __init__(self, url: str = Settings.url, **settings: Any) -> None:
        self.settings = Settings(url, **settings)
        self._http = httpx.AsyncClient(**self.settings.open_options())

    async def predict(self, rows: Iterable[Row], *, reasons: int = 0) -> list[Prediction]:
        """As `Client.predict`."""
        return _predictions_of(await self._post_all("/v1/predict", "rows", rows, reasons=reasons))

    async def predict_features(self, rows: Iterable[Row], *, reasons: int = 0) -> list[Prediction]:
        """As `Client.predict_features`."""
        return _predictions_of(await self._post_all("/v1/predict/features", "rows", rows, reasons=reasons))

    async def send_outcomes(self, outcomes: Iterable[Outcome]) -> int:
        """As `Client.send_outcomes`."""
        answers = await self._post_all("/v1/outcomes", "outcomes", _outcomes_of(outcomes))
        return sum(answer["accepted"] for answer in answers)

    async def describe_model(self) -> dict[str, Any]:
        """As `Client.describe_model`."""

        async def ask() -> dict[str, Any]:
            model: dict[str, Any] = _read(await self._http.get("/v1/model"))
            return model

        return await self._try(ask, repeatable=True)  # type: ignore[no-any-return]

    async def is_ready(self) -> bool:
        """As `Client.is_ready`."""
        try:
            return (await self._http.get("/ready")).status_code == 200
        except httpx.TransportError:
            return False

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _post_all(self, path: str, name: str, items: Iterable[Any], **more: Any) -> list[Any]:
        places = asyncio.Semaphore(AT_ONCE)

        async def post(call: _Call) -> Any:
            async def ask() -> Any:
                return _read(await self._http.post(call.path, content=call.body, headers=JSON))

            async with places:
                return await self._try(ask, repeatable=call.repeatable)

        tasks = [
            asyncio.create_task(post(call)) for call in _make_calls(path, name, items, self.settings.batch, **more)
        ]
        try:
            return await asyncio.gather(*tasks)
        finally:  # a request that is refused ends the others
            for task in tasks:
                task.cancel()

    async def _try(self, ask: Any, *, repeatable: bool) -> Any:
        try:
            return await tenacity.AsyncRetrying(**self.settings.retry_options(repeatable=repeatable))(ask)
        except FAILED as error:
            raise _unavailable(self.settings, error) from error
