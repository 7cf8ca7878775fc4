"""The texts of params.yaml as values, and back: lengths of time, moments, encodings; and what an error suggests."""

import codecs
import contextlib
import difflib
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_duration(text: Any) -> Any:
    """'28d' → timedelta(days=28). Raises ValueError for anything else but a timedelta."""
    if isinstance(text, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())):
        with contextlib.suppress(OverflowError):
            return timedelta(**{UNITS[match[2]]: float(match[1])})
        raise ValueError(f"a length of time is at most {timedelta.max.days} days, but got {text!r}")
    if isinstance(text, timedelta):
        return text
    raise ValueError(f"a length of time is a number and one of {'/'.join(UNITS)}, such as 28d, but got {text!r}")


def to_utc(moment: datetime) -> datetime:
    """The same moment as a naive UTC timestamp, which is what every table holds."""
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def parse_moment(value: Any) -> Any:
    """Refuse a number, which pydantic would take for seconds since 1970. Dates and their texts are left to pydantic."""
    if isinstance(value, int | float) or (isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+", value.strip())):
        raise ValueError(f"a moment is a date such as 2013-09-01 or 2013-09-01T06:00:00Z, but got {value!r}")
    return value


def normalize_encoding(name: str) -> str:
    """The usual spelling of an encoding that Python knows."""
    try:
        "".encode(name)
        return codecs.lookup(name).name
    except (LookupError, ValueError):
        raise ValueError(f"an encoding is a name such as utf-8, cp1252 or latin-1, but got {name!r}") from None


def spell(length: timedelta) -> str:
    """timedelta(days=28) → '28d': the way back into params.yaml, in the largest unit that fits."""
    seconds = length.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


def spelled_as(pattern: str, rule: str) -> AfterValidator:
    """A validator for texts of one form, such as a device. `rule` is the form in words."""

    def check_form(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{rule}, but got {text!r}")
        return text

    return AfterValidator(check_form)


Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(spell)]
Moment = Annotated[datetime, BeforeValidator(parse_moment), PlainSerializer(datetime.isoformat)]


def suggest(name: str, names: Iterable[str]) -> str:
    """The end of a sentence, such as ". Did you mean `trials`?"; empty where nothing is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f". Did you mean `{near[0]}`?" if near else ""
