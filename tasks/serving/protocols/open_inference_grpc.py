"""open_inference_grpc: the Open Inference Protocol over gRPC, on serving.grpc_port. The only importer of grpc.

It has the keys, the bounds and the answer path of the routes: a key comes as the metadata `authorization`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from fastapi import HTTPException

from tasks.serving import keys, messages
from tasks.serving.handler import Handler
from tasks.serving.protocols import open_inference, questions
from tasks.serving.protocols.open_inference import Inference, Input, Output
from tasks.serving.protocols.open_inference_messages import CLASSES, SERVICE
from tasks.serving.protocols.questions import MisfitError

INTS, UINTS = ("INT8", "INT16", "INT32"), ("UINT8", "UINT16", "UINT32")
CONTENTS: Mapping[str, str] = {  # the field that holds a tensor's values
    "BOOL": "bool_contents",
    **dict.fromkeys(INTS, "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(UINTS, "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
OPTIONS = [("grpc.max_receive_message_length", messages.MOST_BYTES), ("grpc.max_metadata_size", 16_384)]
STATUS = {  # of an answer by HTTP
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    400: grpc.StatusCode.INVALID_ARGUMENT,
    503: grpc.StatusCode.UNAVAILABLE,
}
Answering = Callable[[Any], Awaitable[Any]]


async def start(handler: Handler, host: str, port: int) -> grpc.aio.Server:
    """A server of this process's event loop. Several processes may share the port.

    Raises:
        OSError: the port is taken by another program.
    """
    service = Service(handler)
    methods = {
        "ServerLive": service.is_live,
        "ServerReady": service.is_ready,
        "ModelReady": service.is_model_ready,
        "ServerMetadata": service.describe_server,
        "ModelMetadata": service.describe_model,
        "ModelInfer": service.infer,
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            service.guard(name, method),
            request_deserializer=CLASSES[f"{name}Request"].FromString,
            response_serializer=CLASSES[f"{name}Response"].SerializeToString,
        )
        for name, method in methods.items()
    }
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=4 * handler.p.serving.busy)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    try:
        server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"serving.grpc_port {port} cannot be listened on: {error}") from None
    await server.start()
    return server


@dataclass(frozen=True)
class Service:
    """The protocol's calls."""

    handler: Handler

    def guard(self, name: str, method: Answering) -> Any:
        """A call behind what stands in front of every route: keys, how much at once, and for how long."""
        wanted: keys.Scope | None = None if name in ("ServerLive", "ServerReady") else "predict"
        works = name == "ModelInfer"

        async def call(request: Any, context: Any) -> Any:
            began, status = time.perf_counter(), 200
            try:
                return await self._admit(request, context, method, wanted, works=works)
            except HTTPException as error:
                status = error.status_code
                await context.abort(STATUS.get(status, grpc.StatusCode.UNKNOWN), str(error.detail))
            finally:
                self.handler.metrics.count_request(f"/{SERVICE}/{name}", status, time.perf_counter() - began)

        return call

    async def _admit(
        self, request: Any, context: Any, method: Answering, wanted: keys.Scope | None, *, works: bool
    ) -> Any:
        """Raises HTTPException, with the status that a route would answer."""
        handler = self.handler
        if wanted is not None:
            _check_key(handler.keys, dict(context.invocation_metadata() or ()), wanted)
        if works and handler.busy >= handler.p.serving.busy:
            raise HTTPException(503, "too many requests at once")
        handler.busy += works
        try:
            async with asyncio.timeout(handler.p.serving.within.total_seconds()):
                return await method(request)
        except TimeoutError:
            raise HTTPException(503, "no answer within serving.within") from None
        except MisfitError as error:
            raise HTTPException(400, str(error)) from None
        finally:
            handler.busy -= works

    async def is_live(self, _: Any) -> Any:
        return CLASSES["ServerLiveResponse"](live=True)

    async def is_ready(self, _: Any) -> Any:
        return CLASSES["ServerReadyResponse"](ready=self.handler.active.champion is not None)

    async def is_model_ready(self, request: Any) -> Any:
        self._check_model(request.name, request.version)
        return CLASSES["ModelReadyResponse"](ready=True)

    async def describe_server(self, _: Any) -> Any:
        return CLASSES["ServerMetadataResponse"](name="evergreen", version="1", extensions=[])

    async def describe_model(self, request: Any) -> Any:
        self._check_model(request.name, request.version)
        champion = self.handler.champion()
        described = open_inference.describe_model(request.name, champion.number, champion.model.spec)
        return CLASSES["ModelMetadataResponse"](**described)

    async def infer(self, request: Any) -> Any:
        self._check_model(request.model_name, request.model_version)
        spec = self.handler.champion().model.spec
        asked = read_request(request)
        columns = open_inference.read_columns(asked, memoryview(b""), spec)
        version, answers = await questions.answer(self.handler, columns, reasons=asked.reasons)
        tensors = open_inference.write_tensors(answers, spec, asked.outputs)
        whose = {"model_name": request.model_name, "model_version": str(version), "id": request.id}
        response = CLASSES["ModelInferResponse"](**whose)
        for tensor in tensors:
            output = response.outputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
            if request.raw_input_contents:  # a client that sends bytes reads bytes
                response.raw_output_contents.append(open_inference.write_binary(tensor))
            else:
                texts = tensor["datatype"] == open_inference.TEXT
                values = [text.encode() for text in tensor["data"]] if texts else tensor["data"]
                getattr(output.contents, CONTENTS[tensor["datatype"]]).extend(values)
        return response

    def _check_model(self, model: str, version: str) -> None:
        serves = str(self.handler.champion().number)
        if model != self.handler.p.registry.model or version not in ("", serves):
            known = f"model {self.handler.p.registry.model!r} in version {serves} serves, and no other"
            raise HTTPException(404, known)


def _check_key(known: keys.Keys, metadata: Mapping[str, Any], wanted: keys.Scope) -> None:
    if not known.keys:
        return
    scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
    key = known.owner(token) if scheme.lower() == "bearer" else None
    if key is None:
        raise HTTPException(401, "send a known API key as the metadata `authorization`: Bearer ...")
    if wanted not in key.scopes and "admin" not in key.scopes:
        raise HTTPException(403, f"this key is not for {wanted}")


def read_request(request: Any) -> Inference:
    """A ModelInferRequest as the request that a body of JSON would be.

    Raises:
        MisfitError: its tensors have no such datatype, or are partly in raw_input_contents.
    """
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise MisfitError(
            f"raw_input_contents must have the bytes of all {len(request.inputs)} inputs or of none, but has {len(raw)}"
        )
    inputs = []
    for place, tensor in enumerate(request.inputs):
        if tensor.datatype not in open_inference.DTYPES and tensor.datatype != open_inference.TEXT:
            raise MisfitError(f"input {tensor.name} has the datatype {tensor.datatype[:20]!r}, which there is not")
        values = open_inference.read_binary(tensor.name, tensor.datatype, raw[place]) if raw else _read_contents(tensor)
        inputs.append(Input(name=tensor.name, datatype=tensor.datatype, shape=list(tensor.shape), data=values))
    outputs = [Output(name=output.name) for output in request.outputs]
    parameters = {name: _read_parameter(value) for name, value in request.parameters.items()}
    return Inference(inputs=inputs, outputs=outputs or None, id=request.id, parameters=parameters)


def _read_contents(tensor: Any) -> list[Any]:
    if tensor.datatype not in CONTENTS:  # FP16 comes as bytes alone
        raise MisfitError(f"input {tensor.name} of {tensor.datatype} must be in raw_input_contents")
    values = list(getattr(tensor.contents, CONTENTS[tensor.datatype]))
    if tensor.datatype != open_inference.TEXT:
        return values
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError:
        raise MisfitError(f"input {tensor.name} must have texts in UTF-8") from None


def _read_parameter(value: Any) -> Any:
    choice = value.WhichOneof("parameter_choice")
    return getattr(value, choice) if choice else None
