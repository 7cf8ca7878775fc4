"""address: where the API listens: a flag, else the environment, else params.yaml.

    EVERGREEN_API_HOST, EVERGREEN_API_PORT, EVERGREEN_API_WORKERS
    AIP_HTTP_PORT            Vertex AI's port of a custom container
    SAGEMAKER_BIND_TO_PORT   SageMaker's

A platform that names its port asks from outside the container, so the API then listens on all addresses. It sends no
API key: `serving.guarded` says that it checks by itself who asks.
"""

from collections.abc import Mapping

from pydantic import ValidationError

from tasks.params import Params, Serving

HOST, PORT, WORKERS = "EVERGREEN_API_HOST", "EVERGREEN_API_PORT", "EVERGREEN_API_WORKERS"
PLATFORMS = ("AIP_HTTP_PORT", "SAGEMAKER_BIND_TO_PORT")
EVERYWHERE = "0.0.0.0"


def read_address(p: Params, environ: Mapping[str, str]) -> Params:
    """The settings with what the environment says of the address.

    Raises:
        ValueError: a port or a number of workers that is none; the message names the variable.
    """
    chosen: dict[str, str] = {}
    for name in PLATFORMS:
        if environ.get(name):
            chosen |= {"host": EVERYWHERE, "port": environ[name]}
    fields = {"host": HOST, "port": PORT, "workers": WORKERS}
    chosen |= {field: environ[name] for field, name in fields.items() if environ.get(name)}
    if not chosen:
        return p
    settings = p.serving.model_dump() | chosen
    try:
        return p.model_copy(update={"serving": Serving.model_validate(settings)})
    except ValidationError as error:
        fault = error.errors()[0]
        field = str(fault["loc"][0])
        names = " or ".join([fields[field], *(PLATFORMS if field == "port" else ())])
        raise ValueError(f"{names} must be a valid serving.{field}, but is {chosen[field]!r}: {fault['msg']}") from None
