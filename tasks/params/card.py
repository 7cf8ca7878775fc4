"""The section `card`: what a person says of the model and its data, for their cards. It changes no byte of a model."""

from pydantic import Field

from tasks.params.sections import Section


class Card(Section):
    """What only a person knows.

    Attributes:
        purpose: what the model is for.
        owner: whom to ask.
        limits: what it must not be used for, and what it cannot do.
        licences: of the data, by table.
    """

    purpose: str | None = None
    owner: str | None = None
    limits: tuple[str, ...] = ()
    licences: dict[str, str] = Field(default_factory=dict)
