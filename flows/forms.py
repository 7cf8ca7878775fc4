"""forms: what a flow asks a person, in the Prefect UI and in a terminal.

Prefect makes a deployment's form, and flows/cli.py a command, from the flow's signature; a field's help is in the
docstring's `Args` (Prefect drops the description of a pydantic `Field`). A parameter that only machines fill in stays a
parameter: events, automations and code pass it, and people are not asked for it.
"""

import inspect
import json
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from cyclopts import Parameter
from prefect import Flow

F = TypeVar("F", bound=Flow[..., Any])


Json = Annotated[
    dict[str, Any] | None,
    Parameter(converter=lambda _type, tokens: json.loads(tokens[0].value), accepts_keys=False, n_tokens=1),
]
Names = Annotated[  # in a terminal: never,every:28d
    list[str] | None,
    Parameter(converter=lambda _type, tokens: ",".join(token.value for token in tokens).split(","), n_tokens=1),
]


def hide_from_form(*names: str) -> Callable[[F], F]:
    """A decorator of a flow that leaves these parameters out of its form.

    Prefect asks the flow object for the form's signature and the function below it for the call's, so that a run may
    still be given them: the form's schema allows further parameters.
    """

    def hide(flow: F) -> F:
        signature = inspect.signature(flow.fn, eval_str=True)
        if unknown := set(names) - signature.parameters.keys():
            raise ValueError(f"the flow {flow.name} has no parameter {sorted(unknown)} to hide")
        shown = [parameter for name, parameter in signature.parameters.items() if name not in names]
        flow.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        return flow

    return hide
