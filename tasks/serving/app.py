"""app: the web application. `create` is its factory; what it needs begins and ends with its lifespan.

A request is checked, answered by who serves at that moment, journalled, and sent: in this order; desk.py does all but
the checking. What the answers mean is in messages.py; OpenAPI is at /openapi.json, and no page here asks another
machine for its scripts.
"""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ValidationError

from tasks import log, params
from tasks.params import Params
from tasks.serving import journal, registry_mirror
from tasks.serving.active import Active
from tasks.serving.handler import Handler
from tasks.serving.journal_writer import JournalWriter
from tasks.serving.keys import Scope
from tasks.serving.keys import read as read_keys
from tasks.serving.messages import Accepted, Messages, Predictions
from tasks.serving.metrics import Metrics
from tasks.serving.tables import Refused, Tables
from tasks.serving.versions import Champion

LOOK = 0.5  # seconds between looks whether there is something newer
TOLD, MANY = 20, 2000  # faults of a request that are told; beyond so many, only how many they are
WRONG: dict[int | str, dict[str, Any]] = {
    401: {"description": "no API key, or an unknown one"},
    403: {"description": "the key is not for this"},
    413: {"description": "longer than serving.megabytes"},
    422: {"description": "a row that breaks the contract: its place, its field and the rule"},
    503: {"description": "no champion yet, or too much at once: ask again after Retry-After seconds"},
}


async def _body(request: Request, kind: type[BaseModel], p: Params) -> Any:
    """The request's body as a message. Raises what becomes a 413 or a 422."""
    most = int(p.serving.megabytes * 1e6)
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > most:
            raise HTTPException(413, f"a request may have {most:,} bytes (serving.megabytes)")
    try:
        return kind.model_validate_json(bytes(found))
    except ValidationError as error:
        raise RequestValidationError(_places(error)) from None


def _said(version: int, told: list[dict[str, Any]]) -> Response:
    return Response(orjson.dumps({"version": version, "predictions": told}), media_type="application/json")


def _places(error: ValidationError) -> list[dict[str, Any]]:
    """Of each fault where it is and which rule it breaks; never the value, which may be personal."""
    if error.error_count() > MANY:  # to make so many would take longer than to answer
        return [{"type": "faults", "loc": ("body",), "msg": f"{error.error_count():,} faults: too many to be told"}]
    found = error.errors(include_context=False, include_url=False, include_input=False)[:TOLD]
    return [{"type": each["type"], "loc": [*map(_short, each["loc"])], "msg": each["msg"][:300]} for each in found]


def _short(part: int | str) -> int | str:
    return part if isinstance(part, int) else part[:100]


def _place(error: Refused, kind: str) -> RequestValidationError:
    """The same of a row that breaks a rule which needs more than itself."""
    return RequestValidationError([{"type": kind, "loc": ("rows", error.row, error.name), "msg": error.rule}])


def create(p: Params, home: Path) -> FastAPI:
    """The application of one process. Raises ValueError for settings that would leave it open."""
    keys = read_keys(p.serving)
    desk = Handler(
        p,
        keys,
        Active(home),
        JournalWriter(journal.open_journal(p.journal, home=home), p.serving.sync),
        Messages.of(p),
        Metrics.begin(),
    )
    app = FastAPI(
        title=f"evergreen: {p.registry.model}", version="1", lifespan=_lifespan(desk), docs_url=None, redoc_url=None
    )
    app.add_middleware(FrontDoor, desk=desk)
    _add_answers(app, desk)
    _add_pages(app, desk)
    return app


def app() -> FastAPI:
    """For uvicorn's workers: of the checkout that they run in."""
    end_with_supervisor()
    return create(params.load(), params.home())


def end_with_supervisor() -> None:
    """End this process as by SIGTERM when the process that uvicorn started it from dies. Nobody else would end it: it
    would hold the port without a mirror, and so serve an old champion for ever."""
    supervisor = multiprocessing.parent_process()
    if supervisor is None:  # one process alone is its own supervisor
        return

    def wait() -> None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="supervisor", daemon=True).start()


def _lifespan(desk: Handler) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def living(_app: FastAPI) -> AsyncIterator[None]:
        if not desk.keys.known:
            log.warning("no API keys: whoever reaches %s may ask everything", desk.p.serving.host)
        await asyncio.to_thread(_renew, desk)
        task = asyncio.create_task(_watch(desk))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await desk.close()

    return living


async def _watch(desk: Handler) -> None:
    with ThreadPoolExecutor(1, "newer") as alone:  # it waits for no request
        while True:
            await asyncio.sleep(LOOK)
            try:
                await asyncio.get_running_loop().run_in_executor(alone, _renew, desk)
            except Exception:  # whatever it is: the next look may find better, and what serves serves on
                log.exception("a look for what is newer failed")


def _renew(desk: Handler) -> None:
    for said in desk.live.renew(desk.p):
        log.info("%s", said)
        gc.collect()
        gc.freeze()  # what has come to stay is never looked through again: it held up every answer for a while


# --- the door ------------------------------------------------------------------------------------------------------


@dataclass
class FrontDoor:
    """In front of everything: who asks, how much at once, how long. Counts what goes out."""

    app: Callable[..., Awaitable[None]]
    desk: Handler

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def counted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            answer = self._refusal(scope)
            await (answer(scope, receive, counted) if answer else self._in_time(scope, receive, counted))
        finally:
            route = scope.get("route")
            path = route.path if route else "other"
            self.desk.metrics.answered(path, status, time.perf_counter() - began)

    def _refusal(self, scope: Any) -> Response | None:
        wanted = _scope_of(scope["path"])
        if wanted is None or not self.desk.keys.known:
            return None
        given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        key = self.desk.keys.owner(given.removeprefix("Bearer ")) if given.startswith("Bearer ") else None
        if key is None:
            return _say(401, "send a known API key as Authorization: Bearer ...", {"WWW-Authenticate": "Bearer"})
        if wanted not in key.scopes and "admin" not in key.scopes:
            return _say(403, f"this key is not for {wanted}")
        return None

    async def _in_time(self, scope: Any, receive: Any, send: Any) -> None:
        desk, asks = self.desk, scope["path"].startswith("/v1/") and scope["method"] == "POST"
        if asks and desk.busy >= desk.p.serving.busy:
            await _say(503, "too many requests at once", {"Retry-After": "1"})(scope, receive, send)
            return
        begun = False

        async def noted(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        desk.busy += asks
        try:
            async with asyncio.timeout(desk.p.serving.within.total_seconds()):
                await self.app(scope, receive, noted)
        except TimeoutError:
            if not begun:
                await _say(503, "no answer within serving.within", {"Retry-After": "1"})(scope, receive, send)
        finally:
            desk.busy -= asks


def _scope_of(path: str) -> Scope | None:
    """What a key must be for; None for what everybody may ask: whether it lives."""
    if path.startswith("/v1/predict"):
        return "predict"
    if path.startswith("/v1/outcomes"):
        return "outcomes"
    return None if path in ("/health", "/ready") else "admin"


def _say(status: int, why: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": why}, status, headers)


# --- what may be asked ---------------------------------------------------------------------------------------------


def _add_answers(app: FastAPI, desk: Handler) -> None:
    @app.post("/v1/predict", response_model=Predictions, responses=WRONG, openapi_extra=_shape(desk.messages.rows))
    async def predict_rows(request: Request) -> Response:
        """Raw rows, as the spine has them: the features are made here, by the champion's own features.sql."""
        asked = (await _body(request, desk.messages.rows, desk.p)).model_dump(by_alias=True)
        try:
            return _said(*await desk.of_rows(asked["rows"], reasons=asked["reasons"]))
        except Refused as error:
            raise _place(error, "contract") from None

    @app.post(
        "/v1/predict/features",
        response_model=Predictions,
        responses=WRONG,
        openapi_extra=_shape(desk.messages.features),
    )
    async def predict_features(request: Request) -> Response:
        """Features that are ready, as `rows` of names and values or as `inputs`, a column each; what is not sent is
        missing."""
        asked = await _body(request, desk.messages.features, desk.p)
        try:
            return _said(*await desk.of_features(asked.rows, asked.inputs, reasons=asked.reasons))
        except Refused as error:
            raise _place(error, "feature") from None

    @app.post("/v1/outcomes", response_model=Accepted, responses=WRONG, openapi_extra=_shape(desk.messages.outcomes))
    async def outcomes(request: Request) -> Response:
        """What came of predictions, by their ids. One that is sent again with another label corrects the first."""
        asked = (await _body(request, desk.messages.outcomes, desk.p)).outcomes
        await desk.came(asked)
        return JSONResponse({"accepted": len(asked)})


def _shape(kind: type[BaseModel]) -> dict[str, Any]:
    """For OpenAPI: the body is read by hand, so that it is checked once and fast."""
    schema = kind.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inline(schema, schema)}}}}


def _inline(part: Any, whole: dict[str, Any]) -> Any:
    """A schema without references into itself."""
    if isinstance(part, dict):
        if "$ref" in part:
            return _inline(whole["$defs"][part["$ref"].rpartition("/")[2]], whole)
        return {name: _inline(value, whole) for name, value in part.items() if name != "$defs"}
    return [_inline(each, whole) for each in part] if isinstance(part, list) else part


def _reach(champion: Champion, tables: Tables) -> dict[str, str]:
    """The event times that can be answered."""
    state = tables.state
    return {
        "as_of": state.as_of.isoformat(),
        "answers_from": state.since.isoformat(),
        "answers_until": tables.until(champion).isoformat(),
    }


def _add_pages(app: FastAPI, desk: Handler) -> None:
    @app.get("/", include_in_schema=False)
    async def root() -> dict[str, Any]:
        """What there is, for whoever comes with a browser."""
        return {"model": desk.p.registry.model, "pages": sorted(app.openapi()["paths"]), "openapi": "/openapi.json"}

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "alive"}

    @app.get("/ready", responses={503: WRONG[503]})
    async def ready() -> Response:
        """Whether it can answer: a champion is loaded, and the state is fresh enough. And which event times."""
        champion, tables = desk.live.champion, desk.live.tables
        fits = champion is None or tables is None or tables.prepare(champion)
        old = tables is not None and tables.state.age() > desk.p.serving.stale
        why = [
            *(["no champion serves yet"] if champion is None else []),
            *(["no state is published yet"] if tables is None else []),
            *(["the state is older than serving.stale"] if old else []),
            *([] if fits else ["the champion's features cannot be made of the state"]),
            *(["the journal could not be written"] if desk.book.error else []),
        ]
        reach = _reach(champion, tables) if champion and tables else {}
        return JSONResponse({"ready": not why, "why": why, **reach}, 503 if why else 200)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        champion, tables = desk.live.champion, desk.live.tables
        desk.metrics.version.set(champion.number if champion else 0)
        desk.metrics.age.set(tables.state.age().total_seconds() if tables else float("nan"))
        looked = registry_mirror.copy_age_s(desk.live.home)
        desk.metrics.looked.set(float("nan") if looked is None else looked)
        return Response(desk.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/model", responses={503: WRONG[503]})
    async def model() -> dict[str, Any]:
        """Who serves, and where it comes from."""
        champion = desk.champion()
        spec = champion.model.spec
        features = [{"name": each.name, "kind": each.kind} for each in spec.features]
        return {**champion.told, "task": spec.task, "threshold": spec.threshold, "features": features}
