"""The section `contract`: each table's columns, with their types and rules."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tasks.params.sections import Section
from tasks.params.values import spelled_as

FORMAT = re.compile(r"(?:[^%]|%-?[dmyHIMS]|%[YbBaApfj%])*")


class Column(Section):
    """A column, and what becomes of a value that breaks its rules.

    Attributes:
        format: how a file spells a time, in strptime's marks, such as %d.%m.%Y; without one, as ISO 8601 does.
        text: how a text is spelled anew before anything compares it: `trim` blanks at its ends, `squeeze` those inside
            to one each, `lower` or `upper` its letters. What is empty then is missing.
        alias: what else a file may call it, such as the name that it had before.
        absent: a source without it is refused, or it is empty in all rows.
        outside: what becomes of a number beyond min or max: its row goes to quarantine, or it is clipped to the bound,
            emptied, or kept. The last three are counted in the quality report.
        coarsen: how much of a personal value is read: the first so many characters of a text, a number down to a
            multiple of this, a time down to its hour, day, month or year. Nothing finer is ever written.
        scale: a number's unit must not change from one period to the next (tasks/data/units.py), or it may.
    """

    type: Literal["VARCHAR", "INTEGER", "BIGINT", "DOUBLE", "BOOLEAN", "DATE", "TIMESTAMP"]
    format: str | None = None
    alias: tuple[str, ...] = ()
    absent: Literal["refuse", "empty"] = "refuse"
    required: bool = False
    min: float | None = None
    max: float | None = None
    outside: Literal["quarantine", "clip", "empty", "keep"] = "quarantine"
    scale: Literal["steady", "free"] = "steady"
    coarsen: Annotated[int, Field(ge=1)] | Literal["hour", "day", "month", "year"] | None = None
    allowed: Annotated[list[str], Field(min_length=1)] | None = None
    text: tuple[Literal["trim", "squeeze", "lower", "upper"], ...] = ()
    references: Annotated[str, spelled_as(r"\w+\.\w+", "a reference is <table>.<column>")] | None = None
    unmatched: Literal["quarantine", "report"] = "quarantine"
    outcome: bool = False
    pii: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "Column":
        if (self.min is not None or self.max is not None) and self.type not in ("INTEGER", "BIGINT", "DOUBLE"):
            raise ValueError(f"min and max need a number's type, but got {self.type}; write sources.<table>.derive")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min must not be above max, but got min {self.min:g} and max {self.max:g}")
        if self.outside != "quarantine" and self.min is None and self.max is None:
            raise ValueError(f"outside {self.outside} needs a min or a max that values can lie outside of")
        if self.required and self.absent == "empty":
            raise ValueError("a required column may not be absent: set required: false or absent: refuse")
        if self.text and self.type != "VARCHAR":
            raise ValueError(f"text says how a VARCHAR is spelled, but the type is {self.type}")
        if {"lower", "upper"} <= set(self.text):
            raise ValueError("text takes lower or upper, but got both")
        if self.format is not None and self.type not in ("DATE", "TIMESTAMP"):
            raise ValueError(f"format says how a DATE or a TIMESTAMP is spelled, but the type is {self.type}")
        if self.format is not None and ("%" not in self.format or not FORMAT.fullmatch(self.format)):
            raise ValueError(
                "format is made of strptime's marks, such as %d.%m.%Y or %m/%d/%Y %H:%M:%S, without a zone, but got "
                f"{self.format!r}"
            )
        self._check_coarsening()
        if self.pii and (self.type != "VARCHAR" or self.allowed):
            raise ValueError("pii: true makes a pseudonym, a text: it needs type VARCHAR and no allowed")
        return self

    def _check_coarsening(self) -> None:
        if self.coarsen is None:
            return
        units = {"DATE": ("month", "year"), "TIMESTAMP": ("hour", "day", "month", "year")}.get(self.type)
        if self.type == "BOOLEAN" or (units is None) != isinstance(self.coarsen, int):
            raise ValueError(
                "coarsen is a number of characters for a VARCHAR, a step for a number, and one of "
                f"{units or ('month', 'year')} for a time, but got {self.coarsen!r} for {self.type}"
            )
        if units and self.coarsen not in units:
            raise ValueError(f"coarsen must be one of {units} for {self.type}, but got {self.coarsen!r}")
        if self.pii or self.references:
            raise ValueError("coarsen makes many values one, so the column can have neither pii: true nor references")
        bounds = [bound for bound in (self.min, self.max) if bound is not None]
        if bounds and isinstance(self.coarsen, int) and any(bound % self.coarsen for bound in bounds):
            raise ValueError(f"min and max must be multiples of coarsen, {self.coarsen}, but got {bounds}")

    @property
    def reading(self) -> tuple[Any, ...]:
        """All that decides which value of a file the column has, and what an expression sees of it."""
        bounds = (self.outside, self.min, self.max) if self.outside in ("clip", "empty") else ()
        return (
            self.type,
            self.format,
            self.alias,
            self.absent,
            self.outcome,
            self.pii,
            self.text,
            self.coarsen,
            bounds,
        )


class Table(Section):
    """The columns of a table, and which of its rows is the one that holds.

    `key` names the columns that tell rows apart; of two rows with one key the later wins, or the one with the higher
    `version`, a column. `deleted` is SQL over the columns: a row for which it is true says that the row of its key is
    gone.
    """

    key: list[str] = Field(default_factory=list)
    version: str | None = None
    deleted: str | None = None
    columns: dict[str, Column]

    @model_validator(mode="after")
    def _has_own_names(self) -> "Table":
        names = [*self.columns, *(alias for column in self.columns.values() for alias in column.alias)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"a name may stand for one column, but {twice} stand for several: take them out of alias")
        return self
