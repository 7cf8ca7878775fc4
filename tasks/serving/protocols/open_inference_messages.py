"""open_inference_messages: the gRPC messages of the Open Inference Protocol, with the numbers of their fields.

They are described here, and not compiled from a .proto: so there is no generated code, and a client's own description
of the same messages may live in the same process. Source: the protocol's "Inference Protocol GRPC"; `double_param` and
`uint64_param` are Triton's.
"""

from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
Fields = dict[str, tuple[str, int]]  # by name: a type, `*` before it for many and `map` for parameters; and the number
SCALARS = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "uint32": FieldDescriptorProto.TYPE_UINT32,
    "uint64": FieldDescriptorProto.TYPE_UINT64,
    "float": FieldDescriptorProto.TYPE_FLOAT,
    "double": FieldDescriptorProto.TYPE_DOUBLE,
    "string": FieldDescriptorProto.TYPE_STRING,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
}
NAMED: Fields = {"name": ("string", 1), "version": ("string", 2)}
TENSOR: Fields = {"name": ("string", 1), "datatype": ("string", 2), "shape": ("*int64", 3)}
FULL_TENSOR: Fields = {**TENSOR, "parameters": ("map", 4), "contents": ("InferTensorContents", 5)}
MESSAGES: dict[str, Fields] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": ("bool", 1)},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": ("bool", 1)},
    "ModelReadyRequest": NAMED,
    "ModelReadyResponse": {"ready": ("bool", 1)},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {**NAMED, "extensions": ("*string", 3)},
    "ModelMetadataRequest": NAMED,
    "TensorMetadata": TENSOR,
    "ModelMetadataResponse": {
        "name": ("string", 1),
        "versions": ("*string", 2),
        "platform": ("string", 3),
        "inputs": ("*TensorMetadata", 4),
        "outputs": ("*TensorMetadata", 5),
    },
    "InferParameter": {
        "bool_param": ("bool", 1),
        "int64_param": ("int64", 2),
        "string_param": ("string", 3),
        "double_param": ("double", 4),
        "uint64_param": ("uint64", 5),
    },
    "InferTensorContents": {
        "bool_contents": ("*bool", 1),
        "int_contents": ("*int32", 2),
        "int64_contents": ("*int64", 3),
        "uint_contents": ("*uint32", 4),
        "uint64_contents": ("*uint64", 5),
        "fp32_contents": ("*float", 6),
        "fp64_contents": ("*double", 7),
        "bytes_contents": ("*bytes", 8),
    },
    "InferInputTensor": FULL_TENSOR,
    "InferRequestedOutputTensor": {"name": ("string", 1), "parameters": ("map", 2)},
    "InferOutputTensor": FULL_TENSOR,
    "ModelInferRequest": {
        "model_name": ("string", 1),
        "model_version": ("string", 2),
        "id": ("string", 3),
        "parameters": ("map", 4),
        "inputs": ("*InferInputTensor", 5),
        "outputs": ("*InferRequestedOutputTensor", 6),
        "raw_input_contents": ("*bytes", 7),
    },
    "ModelInferResponse": {
        "model_name": ("string", 1),
        "model_version": ("string", 2),
        "id": ("string", 3),
        "parameters": ("map", 4),
        "outputs": ("*InferOutputTensor", 5),
        "raw_output_contents": ("*bytes", 6),
    },
}
CHOICE = "InferParameter"  # whose fields exclude each other


def _describe() -> FileDescriptorProto:
    file = FileDescriptorProto(name="evergreen/open_inference.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        if name == CHOICE:
            message.oneof_decl.add(name="parameter_choice")
        for field, (kind, number) in fields.items():
            _add_field(message, field, kind, number)
    return file


def _add_field(message: DescriptorProto, name: str, kind: str, number: int) -> None:
    many = kind.startswith("*") or kind == "map"
    label = FieldDescriptorProto.LABEL_REPEATED if many else FieldDescriptorProto.LABEL_OPTIONAL
    field = message.field.add(name=name, number=number, label=label)
    plain = kind.removeprefix("*")
    if plain in SCALARS:
        field.type = SCALARS[plain]
    else:
        field.type = FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{plain}"
    if message.name == CHOICE:
        field.oneof_index = 0
    if kind == "map":
        field.type_name = f".{PACKAGE}.{message.name}.ParametersEntry"
        entry = message.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        _add_field(entry, "key", "string", 1)
        _add_field(entry, "value", CHOICE, 2)


_pool = descriptor_pool.DescriptorPool()
_pool.Add(_describe())
CLASSES: dict[str, Any] = {
    name: message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES
}
