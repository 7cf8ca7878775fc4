"""app: the web application and its routes. `create` makes it; what it needs lives in its lifespan.

door.py checks a request and handler.py answers it: by the version that serves at that moment, then journalled, then
sent. The bodies are in messages.py. OpenAPI is at /openapi.json, and no page loads a script from another machine.
"""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse

from tasks import log, params
from tasks.serving import active, address, door, journal, journal_writer, keys, messages, registry_mirror
from tasks.serving.arrivals import Arrivals
from tasks.serving.direct import answer_directly
from tasks.serving.door import FrontDoor, read_body
from tasks.serving.handler import Answers, Handler
from tasks.serving.metrics import Metrics
from tasks.serving.protocols import routes
from tasks.serving.tables import Refused

SWITCH_S = 0.0005  # until a thread that works apart lets the event loop go on, which would wait 5 ms by default
LOOK_S = 0.5  # between looks for a newer version or state
ERRORS = door.ERRORS | {422: {"description": "A row breaks the contract: its place, its field and the rule."}}


async def _respond(answering: Awaitable[tuple[int, Answers]], kind: str) -> Response:
    """The answers as they are sent. Raises a 422 of this kind for a row that breaks a rule which needs more than it."""
    try:
        version, predictions = await answering
    except Refused as error:
        fault = {"type": kind, "loc": ("rows", error.row, error.name), "msg": error.rule}
        raise RequestValidationError([fault]) from None
    return Response(orjson.dumps({"version": version, "predictions": predictions}), media_type="application/json")


def create(p: params.Params, home: Path) -> FastAPI:
    """The application of one process. Raises ValueError for settings that would leave it open to others."""
    handler = Handler(
        p,
        keys.read_keys(p.serving),
        active.Active(home),
        journal_writer.JournalWriter(journal.open_journal(p.journal, home=home), p.serving.sync),
        messages.Messages(p),
        Metrics(),
    )
    app = FastAPI(
        title=f"evergreen: {p.registry.model}", version="1", lifespan=_lifespan(handler), docs_url=None, redoc_url=None
    )
    app.add_middleware(FrontDoor, handler=handler, arrivals=Arrivals(p.serving.arriving, door.ARRIVING_BYTES))
    _add_predictions(app, handler)
    routes.add_routes(app, handler)
    _add_pages(app, handler)
    answer_directly(app)
    app.openapi = partial(_describe, app, handler, app.openapi)  # type: ignore[method-assign]
    return app


def _describe(app: FastAPI, handler: Handler, describe: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """OpenAPI's document, with the key that each operation needs and its scope, where there are keys."""
    if app.openapi_schema:
        return app.openapi_schema
    document = describe()
    document.setdefault("components", {})["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key, where the server has some."}
    }
    for path, operations in document["paths"].items():
        scope = door.scope_of(path)
        for operation in operations.values() if scope and handler.keys.keys else ():
            operation["security"] = [{"key": [scope]}]
    return document


def app() -> FastAPI:
    """The application for uvicorn's workers, from the checkout that they run in."""
    end_with_supervisor()
    sys.setswitchinterval(SWITCH_S)
    return create(address.read_address(params.load(), os.environ), params.home())


def end_with_supervisor() -> None:
    """End this process as by SIGTERM when the process that uvicorn started it from dies. Nothing else would end it: it
    would hold the port without a mirror, and so serve an old champion for ever."""
    supervisor = multiprocessing.parent_process()
    if supervisor is None:  # one process alone is its own supervisor
        return

    def wait() -> None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="supervisor", daemon=True).start()


def _lifespan(handler: Handler) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def living(_app: FastAPI) -> AsyncIterator[None]:
        if not handler.keys.keys:
            log.warning("no API keys: everybody who reaches %s may ask everything", handler.p.serving.host)
        await asyncio.to_thread(_renew, handler)
        task = asyncio.create_task(_watch(handler))
        calls = await _start_grpc(handler)
        try:
            yield
        finally:
            if calls:
                await calls.stop(grace=handler.p.serving.within.total_seconds())
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await handler.close()

    return living


async def _start_grpc(handler: Handler) -> Any:
    """The Open Inference Protocol over gRPC, if serving.grpc_port asks for it; else None."""
    if handler.p.serving.grpc_port is None:
        return None
    from tasks.serving.protocols import open_inference_grpc  # of a server that does not speak it, grpc is not loaded

    return await open_inference_grpc.start(handler, handler.p.serving.host, handler.p.serving.grpc_port)


async def _watch(handler: Handler) -> None:
    with ThreadPoolExecutor(1, "newer") as alone:  # not the threads that answer requests
        while True:
            await asyncio.sleep(LOOK_S)
            await asyncio.get_running_loop().run_in_executor(alone, _renew, handler)


def _renew(handler: Handler) -> None:
    handler.keys = keys.renew_keys(handler.keys, handler.p.serving)
    for change in handler.active.renew(handler.p):
        log.info("%s", change)
        gc.collect()
        gc.freeze()  # the collector no longer walks through what stays loaded, which held up every answer


# --- routes --------------------------------------------------------------------------------------------------------


def _add_predictions(app: FastAPI, handler: Handler) -> None:
    @app.post(
        "/v1/predict",
        response_model=messages.Predictions,
        responses=ERRORS,
        openapi_extra=messages.describe_body(handler.messages.rows),
    )
    async def predict_rows(request: Request) -> Response:
        """Predict raw rows with the columns of the spine. The server computes the features, by the champion's own
        features.sql."""
        body = (await read_body(request, handler.messages.rows, handler)).model_dump(by_alias=True)
        return await _respond(handler.predict_rows(body["rows"], reasons=body["reasons"]), "contract")

    @app.post(
        "/v1/predict/features",
        response_model=messages.Predictions,
        responses=ERRORS,
        openapi_extra=messages.describe_body(handler.messages.features),
    )
    async def predict_features(request: Request) -> Response:
        """Predict ready features, sent as `rows` of names and values or as `inputs`, a list for each column. A feature
        that is not sent is missing."""
        body = await read_body(request, handler.messages.features, handler)
        return await _respond(handler.predict_features(body.rows, body.inputs, reasons=body.reasons), "feature")

    @app.post(
        "/v1/outcomes",
        response_model=messages.Accepted,
        responses=ERRORS,
        openapi_extra=messages.describe_body(handler.messages.outcomes),
    )
    async def accept_outcomes(request: Request) -> Response:
        """Send the outcomes of predictions, by their ids. A second outcome of one prediction corrects the first."""
        outcomes = (await read_body(request, handler.messages.outcomes, handler)).outcomes
        try:
            await handler.accept_outcomes(outcomes)
        except Refused as error:
            fault = messages.make_fault("outcome", ("outcomes", error.row, error.name), error.rule)
            raise RequestValidationError([fault]) from None
        return JSONResponse({"accepted": len(outcomes)})


def _add_pages(app: FastAPI, handler: Handler) -> None:
    @app.get("/", include_in_schema=False)
    async def root() -> dict[str, Any]:
        """The pages, for a browser."""
        return {"model": handler.p.registry.model, "pages": sorted(app.openapi()["paths"]), "openapi": "/openapi.json"}

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process runs."""
        return {"status": "alive"}

    @app.get("/ready", responses={503: ERRORS[503]})
    async def ready() -> Response:
        """Whether it can answer: a champion is loaded and the state is fresh enough. Also the event times that it can
        answer."""
        champion, tables = handler.active.champion, handler.active.tables
        fits = champion is None or tables is None or tables.prepare(champion)
        old = tables is not None and tables.state.age() > handler.p.serving.stale
        why = [
            *(["no champion serves yet"] if champion is None else []),
            *(["no state is published yet"] if tables is None else []),
            *(["the state is older than serving.stale"] if old else []),
            *([] if fits else ["the champion's features cannot be made of the state"]),
            *(["the journal could not be written"] if handler.writer.error else []),
        ]
        answer: dict[str, Any] = {"ready": not why, "why": why}
        if champion and tables:
            answer |= {
                "as_of": tables.state.as_of.isoformat(),
                "answers_from": tables.state.since.isoformat(),
                "answers_until": tables.until(champion).isoformat(),
            }
        return JSONResponse(answer, 503 if why else 200)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        champion, tables = handler.active.champion, handler.active.tables
        handler.metrics.version.set(champion.number if champion else 0)
        handler.metrics.state_age.set(tables.state.age().total_seconds() if tables else float("nan"))
        age_s = registry_mirror.copy_age_s(handler.active.home)
        handler.metrics.registry_age.set(float("nan") if age_s is None else age_s)
        return Response(handler.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/model", responses={503: ERRORS[503]})
    async def model() -> dict[str, Any]:
        """The version that serves, and where it comes from."""
        champion = handler.champion()
        spec = champion.model.spec
        features = [{"name": feature.name, "kind": feature.kind} for feature in spec.features]
        return {**champion.card, "task": spec.task, "threshold": spec.threshold, "features": features}
