"""forms: what a flow asks a person in the Prefect UI.

Prefect makes a deployment's form from the flow's signature, and a field's help from the docstring's `Args`; the
description of a pydantic `Field` gets lost on the way. A parameter that only machines fill in stays a parameter:
events, automations and code pass it, and the form does not show it.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from prefect import Flow

F = TypeVar("F", bound=Flow[..., Any])


def hide_from_form(*names: str) -> Callable[[F], F]:
    """A decorator of a flow that leaves these parameters out of its form.

    Prefect asks the flow object for the form's signature and the function below it for the call's, so that a run may
    still be given them: the form's schema allows further parameters.
    """

    def hide(of_people: F) -> F:
        signature = inspect.signature(of_people.fn, eval_str=True)
        if unknown := set(names) - signature.parameters.keys():
            raise ValueError(f"the flow {of_people.name} has no parameter {sorted(unknown)} to hide")
        shown = [each for name, each in signature.parameters.items() if name not in names]
        of_people.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        return of_people

    return hide
