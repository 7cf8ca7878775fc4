"""routes: where the protocols are answered, and what all of them do alike."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import orjson
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel

from tasks.serving import door, messages
from tasks.serving.handler import Answers, Columns, Handler
from tasks.serving.protocols import open_inference, questions, scoring_server, vertex
from tasks.serving.protocols.questions import MisfitError

JSON = "application/json"


def _describe(
    body: type[BaseModel] | dict[str, Any], response: type[BaseModel], fault: type[BaseModel]
) -> dict[str, Any]:
    """A route's arguments that tell OpenAPI what it takes and gives. The body is read by hand."""
    return {
        "response_model": response,
        "responses": {**door.ERRORS, 400: {"model": fault, "description": "A rule that the body or a row breaks."}},
        "openapi_extra": messages.describe_body(body),
    }


UNREADY: dict[int | str, dict[str, Any]] = {503: {"description": "No champion serves yet."}}
UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"model": open_inference.Fault, "description": "Another model, or another version of it, serves."},
    **UNREADY,
}


@dataclass(frozen=True)
class Dialect:
    """How a protocol of rows spells a body, the answers, and an error."""

    read_columns: Callable[[Any, list[str]], tuple[Columns, Any]]
    write_answers: Callable[[int, Answers], dict[str, Any]]
    write_error: Callable[[str], dict[str, Any]]


SCORING_SERVER = Dialect(scoring_server.read_columns, scoring_server.write_answers, scoring_server.write_error)
VERTEX = Dialect(vertex.read_columns, vertex.write_answers, vertex.write_error)


def add_routes(app: FastAPI, handler: Handler) -> None:
    """All protocols beside /v1."""
    _add_scoring_server(app, handler)
    _add_vertex(app, handler)
    _add_open_inference(app, handler)


def _add_scoring_server(app: FastAPI, handler: Handler) -> None:
    @app.post("/invocations", **_describe(scoring_server.BODY, scoring_server.Invocation, scoring_server.Fault))
    async def invocations(request: Request) -> Response:
        """Predict as MLflow's server and SageMaker do: dataframe_split or dataframe_records, instances, inputs."""
        return await _answer(request, handler, SCORING_SERVER)

    @app.get("/ping", response_class=PlainTextResponse, responses=UNREADY)
    async def ping() -> Response:
        """Whether a model answers, as MLflow's server and SageMaker ask."""
        return PlainTextResponse("\n", 200 if handler.active.champion else 503)

    @app.get("/version", response_class=PlainTextResponse)
    async def version() -> Response:
        """The version of MLflow whose protocol this is."""
        return PlainTextResponse(metadata.version("mlflow"))


def _add_vertex(app: FastAPI, handler: Handler) -> None:
    @app.post(door.VERTEX_ROUTE, **_describe(vertex.BODY, vertex.Instances, open_inference.Fault))
    async def predict_instances(request: Request) -> Response:
        """Predict as a custom container of Vertex AI does: `instances` → `predictions`."""
        return await _answer(request, handler, VERTEX)

    if door.VERTEX_HEALTH not in {"/health", "/ping"}:

        @app.get(door.VERTEX_HEALTH, response_class=PlainTextResponse, responses=UNREADY)
        async def is_ready() -> Response:
            """Whether a model answers, as Vertex AI asks."""
            return PlainTextResponse("\n", 200 if handler.active.champion else 503)


async def _answer(request: Request, handler: Handler, dialect: Dialect) -> Response:
    def read(body: bytes) -> tuple[Columns, Any]:
        return dialect.read_columns(questions.parse_json(body), handler.champion().model.spec.names)

    try:
        body = await door.read_bytes(request)
        columns, reasons = read(body) if len(body) <= door.LARGE_BYTES else await handler.run_apart(read, body)
        version, answers = await questions.answer(handler, columns, reasons=reasons)
    except MisfitError as error:
        return JSONResponse(dialect.write_error(str(error)), 400)
    except HTTPException as error:
        return JSONResponse(dialect.write_error(error.detail), error.status_code, error.headers)
    return Response(orjson.dumps(dialect.write_answers(version, answers)), media_type=JSON)


def _add_open_inference(app: FastAPI, handler: Handler) -> None:
    @app.get("/v2")
    async def describe_server() -> dict[str, Any]:
        """The server's name, version and extensions."""
        return {"name": "evergreen", "version": app.version, "extensions": open_inference.EXTENSIONS}

    @app.get("/v2/health/live")
    async def is_live() -> dict[str, Any]:
        """Whether the process runs."""
        return {"live": True}

    @app.get("/v2/health/ready", responses=UNREADY)
    async def is_ready() -> Response:
        """Whether a model answers."""
        ready = handler.active.champion is not None
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    _add_model(app, handler)


def _add_model(app: FastAPI, handler: Handler) -> None:
    @app.get("/v2/models/{model}", responses=UNKNOWN)
    async def describe_model(model: str) -> Response:
        """The model's tensors, in and out."""
        return _write_model(handler, model)

    @app.get("/v2/models/{model}/versions/{version}", responses=UNKNOWN)
    async def describe_version(model: str, version: str) -> Response:
        """The tensors of the version that serves, in and out."""
        return _write_model(handler, model, version)

    @app.get("/v2/models/{model}/ready", responses=UNKNOWN)
    async def is_model_ready(model: str) -> Response:
        """Whether this model answers."""
        return _find_fault(handler, model) or JSONResponse({"name": model, "ready": True})

    @app.get("/v2/models/{model}/versions/{version}/ready", responses=UNKNOWN)
    async def is_version_ready(model: str, version: str) -> Response:
        """Whether this version of the model answers."""
        return _find_fault(handler, model, version) or JSONResponse({"name": model, "ready": True})

    described = _describe(open_inference.Inference, open_inference.Inferred, open_inference.Fault)
    described["responses"] |= UNKNOWN

    @app.post("/v2/models/{model}/infer", **described)
    async def infer(request: Request, model: str) -> Response:
        """Predict tensors: one for each column, as JSON or in binary."""
        return await _infer(request, handler, model)

    @app.post("/v2/models/{model}/versions/{version}/infer", **described)
    async def infer_by_version(request: Request, model: str, version: str) -> Response:
        """Predict tensors, where this version serves."""
        return await _infer(request, handler, model, version)


def _find_fault(handler: Handler, model: str, version: str | None = None) -> Response | None:
    """The answer to who asks for another model, or another version, than the one that serves."""
    if handler.active.champion is None:
        return JSONResponse({"error": "no champion serves yet: run the retrain flow"}, 503, {"Retry-After": "5"})
    serves = str(handler.active.champion.number)
    if model == handler.p.registry.model and version in (None, serves):
        return None
    known = f"model {handler.p.registry.model!r} in version {serves} serves, and no other"
    return JSONResponse({"error": known}, 404)


def _write_model(handler: Handler, model: str, version: str | None = None) -> Response:
    if fault := _find_fault(handler, model, version):
        return fault
    champion = handler.champion()
    return JSONResponse(open_inference.describe_model(model, champion.number, champion.model.spec))


async def _infer(request: Request, handler: Handler, model: str, version: str | None = None) -> Response:
    if fault := _find_fault(handler, model, version):
        return fault
    try:
        return await _answer_tensors(request, handler, model)
    except MisfitError as error:
        return JSONResponse({"error": str(error)}, 400)
    except HTTPException as error:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _answer_tensors(request: Request, handler: Handler, model: str) -> Response:
    spec = handler.champion().model.spec

    def read(body: bytes, length: str | None) -> tuple[open_inference.Inference, Columns]:
        header, tensors = open_inference.split_body(body, length)
        asked = open_inference.read_request(questions.parse_json(header))
        return asked, open_inference.read_columns(asked, tensors, spec)

    body, length = await door.read_bytes(request), request.headers.get(open_inference.HEADER_LENGTH)
    asked, columns = (
        read(body, length) if len(body) <= door.LARGE_BYTES else await handler.run_apart(read, body, length)
    )
    version, answers = await questions.answer(handler, columns, reasons=asked.reasons)
    tensors = open_inference.write_tensors(answers, spec, asked.outputs)
    body, json_length = open_inference.write_body(asked, model, version, tensors)
    if json_length is None:
        return Response(body, media_type=JSON)
    headers = {open_inference.HEADER_LENGTH: str(json_length)}
    return Response(body, media_type="application/octet-stream", headers=headers)
