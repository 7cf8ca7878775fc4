"""Other servers' clients get the very answers of /v1/predict, journalled: MLflow's, KServe's and Vertex's."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from httpx import Client, Response
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from pandas.testing import assert_frame_equal
from tritonclient import grpc as triton_grpc
from tritonclient.grpc import service_pb2
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from infra.servers import free_port
from tasks.serving.protocols.open_inference_messages import CLASSES
from tasks.training.model import Model
from tests.tasks.serving.test_app import Shop, client, kept, shop

__all__ = ["shop"]  # the fixture
FEATURES = 20  # rows of ready features


@pytest.fixture(scope="module")
def api(shop: Shop) -> Iterator[Client]:
    with client(shop) as one:
        yield one


@pytest.fixture(scope="module")
def features(shop: Shop) -> list[dict[str, Any]]:
    return shop.rows.table.slice(0, FEATURES).to_pylist()


@pytest.fixture(scope="module")
def raw_answers(shop: Shop, api: Client) -> list[dict[str, Any]]:
    """What /v1/predict answers to the raw rows."""
    answers: list[dict[str, Any]] = api.post("/v1/predict", json={"rows": shop.asked}).json()["predictions"]
    return answers


@pytest.fixture(scope="module")
def ready_answers(api: Client, features: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What /v1/predict/features answers to ready features; their ids are new each time."""
    body = {"rows": features, "reasons": 2}
    answers: list[dict[str, Any]] = api.post("/v1/predict/features", json=body).json()["predictions"]
    return answers


def scores(answers: list[dict[str, Any]]) -> list[float]:
    return [answer["score"] for answer in answers]


def split(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def journalled_scores(shop: Shop, ids: list[str]) -> list[float]:
    rows = {row["entry"]: row["score"] for row in kept(shop).read("predictions").to_pylist()}
    return [rows[entry] for entry in ids]


# --- MLflow's scoring server, and SageMaker


def forms(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"dataframe_split": split(rows)},
        {"dataframe_records": rows},
        {"instances": rows},
        {"inputs": columns(rows)},
        {"inputs": rows},
    ]


@pytest.mark.parametrize("form", range(5))
def test_every_form_of_an_invocation_gets_the_same_answers(
    shop: Shop, api: Client, raw_answers: list[dict[str, Any]], form: int
) -> None:
    answer = api.post("/invocations", json=forms(shop.asked)[form])
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["predictions"] == scores(raw_answers)
    assert body["ids"] == [answer["id"] for answer in raw_answers]
    assert body["decisions"] == [answer["decision"] for answer in raw_answers]
    assert body["version"] == 1


@pytest.mark.parametrize("form", range(5))
def test_every_form_of_an_invocation_takes_ready_features(
    shop: Shop,
    api: Client,
    features: list[dict[str, Any]],
    ready_answers: list[dict[str, Any]],
    form: int,
) -> None:
    body = api.post("/invocations", json=forms(features)[form] | {"params": {"reasons": 2}}).json()
    assert body["predictions"] == scores(ready_answers) == journalled_scores(shop, body["ids"])
    assert body["reasons"] == [answer["reasons"] for answer in ready_answers]


def test_rows_without_names_are_in_the_models_order(
    api: Client, features: list[dict[str, Any]], ready_answers: list[dict[str, Any]]
) -> None:
    names = [feature["name"] for feature in api.get("/v1/model").json()["features"]]
    rows = [[row[name] for name in names] for row in features]
    for form in ("instances", "inputs"):
        assert api.post("/invocations", json={form: rows}).json()["predictions"] == scores(ready_answers)
    short = api.post("/invocations", json={"instances": [rows[0], rows[1][1:]]})
    assert short.status_code == 400
    assert f"row 1 must be an object of names and values, as all others, or a list of {len(names)}" in short.text


def test_a_column_of_inputs_may_be_one_value(
    api: Client, features: list[dict[str, Any]], ready_answers: list[dict[str, Any]]
) -> None:
    assert api.post("/invocations", json={"inputs": features[0]}).json()["predictions"] == scores(ready_answers)[:1]


def test_mlflows_own_client_gets_them_from_a_data_frame(
    shop: Shop, api: Client, raw_answers: list[dict[str, Any]], ready_answers: list[dict[str, Any]]
) -> None:
    one = ScoringServerClient(api.base_url.host, api.base_url.port)
    one.ping()
    assert one.get_version()
    frame = pd.DataFrame(shop.asked).assign(event_time=lambda rows: pd.to_datetime(rows["event_time"]))
    frame["number"] = frame["number"].astype(float)  # as pandas has it once a value is missing
    answer = one.invoke(frame)
    assert_frame_equal(answer.get_predictions(), pd.DataFrame(scores(raw_answers)))
    ready = shop.rows.table.slice(0, FEATURES).to_pandas()
    assert ready.isna().any().any() or ready.notna().all().all()
    assert one.invoke(ready)["predictions"] == scores(ready_answers)
    ready.iloc[0, ready.columns.get_loc(ready.select_dtypes("number").columns[0])] = np.nan
    assert len(one.invoke(ready)["predictions"]) == FEATURES


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{", "the body must be JSON"),
        ("[]", "the body must be an object with one of dataframe_split"),
        ('{"instances": [], "inputs": []}', "one of dataframe_split, .* but has"),
        ('{"instances": []}', "one row at least"),
        ('{"instances": 3}', "instances must be a list of rows"),
        ('{"dataframe_split": [1]}', "dataframe_split must be an object with `columns`"),
        ('{"dataframe_split": {"columns": ["a", "a"], "data": [[1, 2]]}}', "different names"),
        ('{"dataframe_split": {"columns": ["a"], "data": [[1, 2]]}}', "row 0 of dataframe_split must be a list of 1"),
        ('{"inputs": {"amount": [1], "distance": [1, 2]}}', "lists of one length"),
        ('{"instances": [{"nothing": 1}]}', "row 0, nothing: is no feature of this model"),
        ('{"instances": [{"event_time": "2024-02-29T10:00:00", "number": "x"}]}', r"rows 0 number: .*integer"),
        ('{"instances": [{"amount": 1}], "params": {"reason": 1}}', "params may have reasons"),
        ('{"instances": [{"amount": 1}], "params": {"reasons": "x"}}', "reasons: .*integer"),
    ],
)
def test_an_invocation_that_cannot_be_answered_names_the_rule(api: Client, body: str, message: str) -> None:
    answer = api.post("/invocations", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()
    assert error["error_code"] == "BAD_REQUEST"
    assert_matches(message, error["message"])


def assert_matches(pattern: str, text: str) -> None:
    with pytest.raises(AssertionError, match=pattern):
        raise AssertionError(text)


# --- Vertex AI


def test_instances_of_vertex_get_the_answers_as_they_are(
    shop: Shop,
    api: Client,
    raw_answers: list[dict[str, Any]],
    features: list[dict[str, Any]],
    ready_answers: list[dict[str, Any]],
) -> None:
    assert api.post("/predict", json={"instances": shop.asked}).json() == {"predictions": raw_answers}
    body = {"instances": features, "parameters": {"reasons": 2}}
    answers = api.post("/predict", json=body).json()["predictions"]
    assert [{**one, "id": ""} for one in answers] == [{**one, "id": ""} for one in ready_answers]
    bad = api.post("/predict", json={"instance": []})
    assert (bad.status_code, list(bad.json())) == (400, ["error"])


# --- the Open Inference Protocol


def tensors(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "shape": [len(values)], "datatype": datatype_of(values), "data": values}
        for name, values in columns(rows).items()
    ]


def datatype_of(values: list[Any]) -> str:
    return {str: "BYTES", int: "INT64", float: "FP64"}[type(next(value for value in values if value is not None))]


def read_outputs(answer: Response) -> dict[str, list[Any]]:
    assert answer.status_code == 200, answer.text
    return {output["name"]: output["data"] for output in answer.json()["outputs"]}


def test_tensors_of_raw_rows_get_the_same_answers(shop: Shop, api: Client, raw_answers: list[dict[str, Any]]) -> None:
    for path in ("/v2/models/made/infer", "/v2/models/made/versions/1/infer"):
        answer = api.post(path, json={"id": "asked", "inputs": tensors(shop.asked)})
        outputs = read_outputs(answer)
        assert outputs["score"] == scores(raw_answers)
        assert outputs["id"] == [one["id"] for one in raw_answers]
        assert outputs["decision"] == [one["decision"] for one in raw_answers]
        assert answer.json()["id"] == "asked"
        assert (answer.json()["model_name"], answer.json()["model_version"]) == ("made", "1")


def test_tensors_of_features_may_have_a_second_dimension_and_ask_for_outputs(
    api: Client, features: list[dict[str, Any]], ready_answers: list[dict[str, Any]]
) -> None:
    inputs = [one | {"shape": [FEATURES, 1], "data": [[value] for value in one["data"]]} for one in tensors(features)]
    body = {"inputs": inputs, "outputs": [{"name": "score"}, {"name": "reasons"}], "parameters": {"reasons": 2}}
    outputs = read_outputs(api.post("/v2/models/made/infer", json=body))
    assert list(outputs) == ["score", "reasons"]
    assert outputs["score"] == scores(ready_answers)
    assert list(map(json.loads, outputs["reasons"])) == [one["reasons"] for one in ready_answers]


def test_what_the_metadata_says_is_what_the_model_takes_and_gives(api: Client, features: list[dict[str, Any]]) -> None:
    assert api.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert api.get("/v2/health/live").json() == {"live": True}
    assert api.get("/v2/health/ready").json() == {"ready": True}
    assert api.get("/v2/models/made/ready").json() == {"name": "made", "ready": True}
    described = api.get("/v2/models/made").json()
    assert {one["name"]: one["datatype"] for one in described["inputs"]} == {
        name: datatype if datatype == "BYTES" else "FP64"
        for name, datatype in ((one["name"], one["datatype"]) for one in tensors(features))
    }
    answer = api.post("/v2/models/made/infer", json={"inputs": tensors(features), "parameters": {"reasons": 1}}).json()
    declared = {(one["name"], one["datatype"], len(one["shape"])) for one in described["outputs"]}
    assert declared == {(one["name"], one["datatype"], len(one["shape"])) for one in answer["outputs"]}


@pytest.mark.parametrize("path", ["other", "made/versions/2"])
def test_a_model_that_does_not_serve_is_not_found(api: Client, path: str) -> None:
    for answer in (api.get(f"/v2/models/{path}"), api.post(f"/v2/models/{path}/infer", json={"inputs": []})):
        assert answer.status_code == 404
        assert answer.json() == {"error": "model 'made' in version 1 serves, and no other"}


def send_binary(api: Client, header: dict[str, Any], tail: bytes, length: int | None = None) -> Response:
    text = json.dumps(header).encode()
    headers = {"Inference-Header-Content-Length": str(len(text) if length is None else length)}
    content_type = {"content-type": "application/octet-stream"}
    return api.post("/v2/models/made/infer", content=text + tail, headers=headers | content_type)


def binary(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], bytes]:
    """Rows as tensors of the header, and their bytes, as the extension describes them."""
    heads, tail = [], b""
    for tensor in tensors(rows):
        values = tensor.pop("data")
        if tensor["datatype"] == "BYTES":
            raw = b"".join(len(text).to_bytes(4, "little") + text for text in (value.encode() for value in values))
        else:
            kind = {"INT64": "<i8", "FP64": "<f8"}[tensor["datatype"]]
            raw = np.array([np.nan if value is None else value for value in values], kind).tobytes()
        heads.append({**tensor, "parameters": {"binary_data_size": len(raw)}})
        tail += raw
    return heads, tail


def test_binary_tensors_get_the_same_answers_and_come_back_in_binary(
    shop: Shop, api: Client, raw_answers: list[dict[str, Any]]
) -> None:
    heads, tail = binary(shop.asked)
    assert read_outputs(send_binary(api, {"inputs": heads}, tail))["score"] == scores(raw_answers)
    outputs = [{"name": "score", "parameters": {"binary_data": True}}, {"name": "id"}]
    answer = send_binary(api, {"inputs": heads, "outputs": outputs}, tail)
    end = int(answer.headers["Inference-Header-Content-Length"])
    described = json.loads(answer.content[:end])["outputs"]
    assert described[0]["parameters"] == {"binary_data_size": 8 * len(shop.asked)}
    assert np.frombuffer(answer.content[end:], "<f8").tolist() == scores(raw_answers)
    assert described[1]["data"] == [one["id"] for one in raw_answers]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [3]}, r"input amount of shape \[3\] must have 3 values, but has 2"),
        ({"shape": [-1]}, "a shape of sizes from 0 on"),
        ({"shape": [1, 2]}, r"one tensor for all features must have the shape \[n, "),
        ({"datatype": "INT32"}, "input amount must hold INT32, but its value 0 is none"),
        ({"datatype": "BF16"}, "inputs 0 datatype: "),
        ({"datatype": "BYTES"}, "must hold BYTES"),
        ({"data": None}, r"must have either data or parameters\.binary_data_size"),
        ({"parameters": {"binary_data_size": 16}, "data": None}, "binary_data_size 16, but 0 bytes are left"),
        ({"name": "nothing"}, "row 0, nothing: is no feature of this model"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_with_its_rule(api: Client, change: dict[str, Any], message: str) -> None:
    tensor = {"name": "amount", "shape": [2], "datatype": "FP64", "data": [1.5, 2.5]} | change
    answer = api.post("/v2/models/made/infer", json={"inputs": [tensor]})
    assert answer.status_code == 400
    assert_matches(message, answer.json()["error"])


@pytest.mark.parametrize(
    ("tail", "size", "message"),
    [
        (b"\x00" * 15, 15, "must have 8 bytes for each value, but has 15 in all"),
        (b"\x00" * 17, 16, "1 bytes follow the last tensor"),
    ],
)
def test_a_binary_tensor_that_does_not_fit_is_named_with_its_rule(
    api: Client, tail: bytes, size: int, message: str
) -> None:
    tensor = {"name": "amount", "shape": [2], "datatype": "FP64", "parameters": {"binary_data_size": size}}
    answer = send_binary(api, {"inputs": [tensor]}, tail)
    assert answer.status_code == 400
    assert_matches(message, answer.json()["error"])
    answer = send_binary(api, {"inputs": [tensor]}, tail, length=10_000)
    assert_matches("Inference-Header-Content-Length must be the length", answer.json()["error"])


def test_a_text_that_is_cut_or_no_utf_8_is_named(api: Client) -> None:
    for raw, message in ((b"\x05\x00\x00\x00abc", "text 0 is cut"), (b"\x01\x00\x00\x00\xff", "text 0 is none")):
        parameters = {"binary_data_size": len(raw)}
        tensor = {"name": "store", "shape": [1], "datatype": "BYTES", "parameters": parameters}
        answer = send_binary(api, {"inputs": [tensor]}, raw)
        assert answer.status_code == 400
        assert_matches(message, answer.json()["error"])


# --- with Triton's client


def triton_inputs(rows: list[dict[str, Any]], *, binary: bool) -> list[InferInput]:
    inputs = []
    for tensor in tensors(rows):
        one = InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
        kind = {"BYTES": np.object_, "INT64": np.int64, "FP64": np.float64}[tensor["datatype"]]
        one.set_data_from_numpy(np.array(tensor["data"], kind), binary_data=binary)
        inputs.append(one)
    return inputs


@pytest.mark.parametrize("binary", [False, True])
def test_tritons_own_client_gets_the_same_answers(
    shop: Shop, api: Client, raw_answers: list[dict[str, Any]], binary: bool
) -> None:
    with InferenceServerClient(api.base_url.netloc.decode()) as one:
        assert one.is_server_live()
        assert one.is_server_ready()
        assert one.is_model_ready("made", "1")
        assert one.get_server_metadata()["name"] == "evergreen"
        assert one.get_model_metadata("made")["versions"] == ["1"]
        outputs = [InferRequestedOutput(name, binary_data=binary) for name in ("score", "id", "decision")]
        answer = one.infer("made", triton_inputs(shop.asked, binary=binary), outputs=outputs, request_id="asked")
        assert answer.as_numpy("score").tolist() == scores(raw_answers)
        assert answer.as_numpy("decision").tolist() == [one["decision"] for one in raw_answers]
        ids = [text.decode() if isinstance(text, bytes) else text for text in answer.as_numpy("id")]
        assert ids == [one["id"] for one in raw_answers]
        with pytest.raises(InferenceServerException, match="no feature of this model"):
            one.infer("made", triton_inputs([{"nothing": 1.0}], binary=binary))


# --- over gRPC


@pytest.fixture(scope="module")
def calls(shop: Shop) -> Iterator[triton_grpc.InferenceServerClient]:
    port = free_port()
    with client(shop, grpc_port=port), triton_grpc.InferenceServerClient(f"127.0.0.1:{port}") as one:
        yield one


def grpc_inputs(rows: list[dict[str, Any]]) -> list[triton_grpc.InferInput]:
    inputs = []
    for tensor in tensors(rows):
        one = triton_grpc.InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
        kind = {"BYTES": np.object_, "INT64": np.int64, "FP64": np.float64}[tensor["datatype"]]
        one.set_data_from_numpy(np.array(tensor["data"], kind))
        inputs.append(one)
    return inputs


def test_tritons_own_client_gets_the_same_answers_over_grpc(
    shop: Shop, calls: triton_grpc.InferenceServerClient, raw_answers: list[dict[str, Any]]
) -> None:
    assert calls.is_server_live()
    assert calls.is_server_ready()
    assert calls.is_model_ready("made", "1")
    assert calls.get_server_metadata().name == "evergreen"
    described = calls.get_model_metadata("made")
    assert [tensor.name for tensor in described.inputs] == model_of(shop).spec.names
    outputs = [triton_grpc.InferRequestedOutput(name) for name in ("score", "id", "decision")]
    answer = calls.infer("made", grpc_inputs(shop.asked), outputs=outputs, request_id="asked")
    assert answer.get_response().id == "asked"
    assert answer.as_numpy("score").tolist() == scores(raw_answers)
    assert [text.decode() for text in answer.as_numpy("id")] == [one["id"] for one in raw_answers]
    assert answer.as_numpy("decision").tolist() == [one["decision"] for one in raw_answers]


def model_of(shop: Shop) -> Model:
    return Model.load(shop.folder / shop.p.paths.models / "model.ubj")


def test_typed_contents_get_typed_contents(
    calls: triton_grpc.InferenceServerClient, features: list[dict[str, Any]], ready_answers: list[dict[str, Any]]
) -> None:
    """As a client in another language sends them: by Triton's own description of the messages."""
    request = service_pb2.ModelInferRequest(model_name="made", id="asked")
    request.parameters["reasons"].int64_param = 2
    fields = {"BYTES": "bytes_contents", "INT64": "int64_contents", "FP64": "fp64_contents"}
    for tensor in tensors(features):
        one = request.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        values = [np.nan if value is None else value for value in tensor["data"]]
        texts = tensor["datatype"] == "BYTES"
        getattr(one.contents, fields[tensor["datatype"]]).extend([v.encode() for v in values] if texts else values)
    answer = calls._client_stub.ModelInfer(request)
    outputs = {output.name: output.contents for output in answer.outputs}
    assert list(outputs["score"].fp64_contents) == scores(ready_answers)
    assert [json.loads(text) for text in outputs["reasons"].bytes_contents] == [one["reasons"] for one in ready_answers]


def test_a_call_that_cannot_be_answered_has_a_status_and_the_rule(
    calls: triton_grpc.InferenceServerClient, features: list[dict[str, Any]]
) -> None:
    bad = grpc_inputs([{"nothing": 1.0}])
    for model, inputs, status, rule in [
        ("made", bad, "INVALID_ARGUMENT", "row 0, nothing: is no feature of this model"),
        ("other", grpc_inputs(features), "NOT_FOUND", "model 'made' in version 1 serves, and no other"),
    ]:
        with pytest.raises(InferenceServerException, match=rule) as caught:
            calls.infer(model, inputs)
        assert caught.value.status() == f"StatusCode.{status}"


def test_a_call_needs_the_key_that_a_request_needs(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{name}:{name}:{hashlib.sha256(name.encode()).hexdigest()}" for name in ("predict", "outcomes")]
    monkeypatch.setenv("EVERGREEN_API_KEYS", "\n".join(lines))
    port, rows = free_port(), grpc_inputs(shop.asked[:2])
    with client(shop, grpc_port=port), triton_grpc.InferenceServerClient(f"127.0.0.1:{port}") as one:
        assert one.is_server_live()
        assert len(one.infer("made", rows, headers={"authorization": "Bearer predict"}).as_numpy("score")) == 2
        for headers, status in [({}, "UNAUTHENTICATED"), ({"authorization": "Bearer outcomes"}, "PERMISSION_DENIED")]:
            with pytest.raises(InferenceServerException) as caught:
                one.infer("made", rows, headers=headers)
            assert caught.value.status() == f"StatusCode.{status}"


def test_the_messages_have_the_numbers_that_tritons_description_gives_them() -> None:
    theirs = service_pb2.DESCRIPTOR.message_types_by_name
    nested = {
        "TensorMetadata": theirs["ModelMetadataResponse"].nested_types_by_name["TensorMetadata"],
        "InferInputTensor": theirs["ModelInferRequest"].nested_types_by_name["InferInputTensor"],
        "InferRequestedOutputTensor": theirs["ModelInferRequest"].nested_types_by_name["InferRequestedOutputTensor"],
        "InferOutputTensor": theirs["ModelInferResponse"].nested_types_by_name["InferOutputTensor"],
    }
    for name, mine in CLASSES.items():
        wanted = nested.get(name) or theirs[name]
        described = [
            {(field.name, field.number, field.type, field.is_repeated) for field in message.fields}
            for message in (mine.DESCRIPTOR, wanted)
        ]
        assert described[0] == described[1], name


@pytest.mark.parametrize(
    ("path", "name"),
    [("/invocations", "message"), ("/predict", "error"), ("/v2/models/made/infer", "error"), ("/v1/predict", "detail")],
)
def test_a_refusal_at_the_door_is_in_the_words_of_the_protocol(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, path: str, name: str
) -> None:
    monkeypatch.setenv("EVERGREEN_API_KEYS", f"shop:predict:{hashlib.sha256(b'shop').hexdigest()}")
    with client(shop) as one:
        refused = one.post(path, json={})
        assert (refused.status_code, list(refused.json())) == (401, [name])
