"""vertex: a custom container of Vertex AI: {"instances": [...], "parameters": {...}} → {"predictions": [...]}.

    curl 127.0.0.1:8080/predict --json '{"instances": [{"distance": 631, "carrier": "EV"}]}'

Vertex names the routes and the port in AIP_PREDICT_ROUTE, AIP_HEALTH_ROUTE and AIP_HTTP_PORT. A prediction is an answer
of /v1/predict as it is. Source: Vertex AI's "Custom container requirements for prediction".
"""

from typing import Any

from pydantic import BaseModel

from tasks.serving.handler import Answers, Columns
from tasks.serving.messages import Prediction
from tasks.serving.protocols import scoring_server
from tasks.serving.protocols.questions import MisfitError, name_columns
from tasks.serving.protocols.scoring_server import ROWS

BODY: dict[str, Any] = {  # for OpenAPI
    "type": "object",
    "properties": {"instances": ROWS, "parameters": scoring_server.BODY["properties"]["params"]},
    "required": ["instances"],
}


class Instances(BaseModel):
    """A response, for OpenAPI."""

    predictions: list[Prediction]


def read_columns(body: Any, names: list[str]) -> tuple[Columns, Any]:
    """A body → its columns, and how many reasons it asks for.

    Args:
        names: the model's features, for instances without names.

    Raises:
        MisfitError: it is no such body.
    """
    if not isinstance(body, dict) or not isinstance(body.get("instances"), list):
        raise MisfitError("the body must be an object with `instances`, a list of rows")
    extra = body.get("parameters") or {}
    if not isinstance(extra, dict) or not extra.keys() <= {"reasons"}:
        raise MisfitError(f"parameters may have reasons, a whole number, and nothing else, but got {str(extra)[:100]}")
    return name_columns(body["instances"], names), extra.get("reasons", 0)


def write_answers(_version: int, answers: Answers) -> dict[str, Any]:
    """The answers: Vertex hands them on as they are."""
    return {"predictions": answers}


def write_error(message: str) -> dict[str, Any]:
    """What is wrong, for the logs of Vertex and the caller."""
    return {"error": message}
