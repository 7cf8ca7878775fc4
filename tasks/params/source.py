"""The `sources` section of params.yaml: where a table comes from, how it is fetched, and how its files are read."""

import re
from datetime import timedelta
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, Field, model_validator

from tasks.params.sections import Section
from tasks.params.values import Duration, normalize_encoding, spelled_as

READING = {"nulls", "decimal", "encoding", "event_time", "known_at", "derive"}  # what the rows depend on, once fetched
COPIED = ("http", "https", "s3", "postgresql", "kafka")  # schemes of which this machine keeps a copy
WEB, DATABASE, KAFKA = ("http", "https"), "postgresql", "kafka"
PGPASSWORD = "PGPASSWORD"  # of a database, where `password` names no other
LAST = "last"  # as a fallback: the copy of the last good delivery
Variable = Annotated[
    str, spelled_as(r"[A-Za-z_]\w*", "a secret is given by the name of an environment variable that holds it")
]


def scheme_of(address: str) -> str:
    """What stands before ://; empty for a plain path."""
    return address.partition("://")[0] if "://" in address else ""


def show_address(address: str) -> str:
    """An address as messages, manifests and MLflow show it: the values of its query may be secrets."""
    if scheme_of(address) not in (*WEB, DATABASE):
        return address
    parts = urlsplit(address)
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    return f"{parts.scheme}://{parts.netloc}{parts.path}" + ("?" + "&".join(f"{name}=…" for name in names)) * bool(
        names
    )


def _check_address(address: str) -> str:
    """No message quotes the address, since it may hold a password."""
    scheme = scheme_of(address)
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*|", scheme):
        raise ValueError("an address begins with a scheme in small letters, such as https://, or is a path")
    if scheme in WEB:
        netloc = urlsplit(address).netloc
        if "@" in netloc:
            raise ValueError("an address must hold no user and no password. Take them out, and set `headers`")
        if not netloc:
            raise ValueError(f"an address with {scheme}:// needs a host, such as {scheme}://example.org/table.csv")
    if scheme == DATABASE:
        parts = urlsplit(address)
        if ":" in parts.netloc.rpartition("@")[0] or "password" in parts.query:
            raise ValueError(
                "an address must hold no password. Take it out, and put it into the environment variable PGPASSWORD, "
                "or the one that `password` names"
            )
        if parts.netloc.rpartition("@")[2] == "" or parts.path in ("", "/"):
            raise ValueError("an address in PostgreSQL is postgresql://user@host:port/database. Complete it")
    if scheme == KAFKA and not re.fullmatch(r"kafka://[^/@\s]+/[A-Za-z0-9._-]{1,249}", address):
        raise ValueError("an address in Kafka is kafka://broker:port,broker:port/topic, without a password. Correct it")
    if scheme == "s3" and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+/.+", address):
        raise ValueError(
            f"an address with s3:// needs a bucket and a key, such as s3://bucket/folder/*.csv, got {address}"
        )
    return address


class Source(Section):
    """A table without event_time is small and static: always read whole, always known.

    `nulls` are the texts that stand for a missing value, `decimal` and `encoding` how its CSV files are written.
    `timeout` bounds a fetch with all its tries. `fallback` is used when the address does not deliver: a second address,
    or `last`, the copy of the last good delivery, no older than `max_age`. `max_drop` is the share of its rows that the
    table may lose between two ingests. `headers` are sent with each request: the name of a header, and that of the
    environment variable that holds its value. `fresh_within` promises how old the newest row may be: score tells a
    person when it is older.

    In PostgreSQL a table is what `query` gives, a name or a SELECT. With `watermark`, one of its columns, only what is
    newer is read, and again what lies `overlap` below the newest: a length of time, or a number as the watermark is.
    `password` names an environment variable. In Kafka, `client` has more of librdkafka's settings, and `group` is the
    consumer group to which offsets are committed, for people to see.
    """

    address: Annotated[str, AfterValidator(_check_address)]
    nulls: list[str] = Field([])
    decimal: Literal[".", ","] = "."
    encoding: Annotated[str, AfterValidator(normalize_encoding)] = "utf-8"
    event_time: str | None = None
    known_at: str | None = None
    derive: dict[str, str] = Field({})
    timeout: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(minutes=10)
    fallback: Annotated[str, AfterValidator(_check_address)] | None = None
    max_age: Annotated[Duration, Field(gt=timedelta(0))] | None = None
    max_drop: float = Field(0.1, ge=0, le=1)
    fresh_within: Annotated[Duration, Field(gt=timedelta(0))] | None = None
    sha256: Annotated[str, spelled_as(r"[0-9a-f]{64}", "a sha256 is 64 digits of 0-9 and a-f")] | None = None
    headers: dict[str, Variable] = Field({})
    query: str | None = None
    watermark: str | None = None
    overlap: Annotated[int, Field(ge=0, strict=True)] | Duration | None = None
    password: Variable | None = None
    group: str = Field("evergreen-sources", min_length=1)
    client: dict[str, str | bool | int | float] = Field({})

    @property
    def secrets(self) -> tuple[str, ...]:
        """The environment variables that hold what the source asks for: its headers, its password."""
        password = self.password or (PGPASSWORD if scheme_of(self.address) == DATABASE else None)
        return tuple(dict.fromkeys([*self.headers.values(), *([password] if password else [])]))

    @property
    def shown(self) -> str:
        """The address as messages, manifests and MLflow show it."""
        return show_address(self.address)

    @model_validator(mode="after")
    def _fits(self) -> "Source":
        scheme = scheme_of(self.address)
        if (self.fallback == LAST) != (self.max_age is not None):
            raise ValueError(
                f"fallback: {LAST} and max_age go together: max_age, such as 7d, is how old the last good copy may be. "
                "Give both or neither"
            )
        if self.fallback == LAST and scheme not in COPIED:
            raise ValueError(
                f"fallback: {LAST} needs an address of which a copy is kept ({', '.join(COPIED)}), but this one is "
                f"{scheme + '://' if scheme else 'a path'}. Name a second address instead"
            )
        if self.fresh_within and self.event_time is None:
            raise ValueError("fresh_within is of the newest event: it needs event_time. Give that, or take it out")
        if self.headers and scheme not in WEB:
            raise ValueError("headers are sent to http:// and https:// only. Take them out")
        if (scheme == DATABASE) != (self.query is not None):
            raise ValueError("query goes with an address of postgresql://, and that with a query. Give both or neither")
        if scheme != DATABASE and (self.watermark or self.overlap):
            raise ValueError("watermark and overlap go with an address of postgresql://. Take them out")
        if scheme not in (DATABASE, KAFKA) and self.password:
            raise ValueError("password goes with an address of postgresql:// or kafka://. Take it out")
        if scheme != KAFKA and self.client:
            raise ValueError("client goes with an address of kafka://. Take it out")
        if secret := [name for name in self.client if re.search(r"password|secret|\.pem$|jaas", name)]:
            raise ValueError(f"client must hold no secrets, but has {secret}: `password` names the variable that does")
        if self.overlap is not None and self.watermark is None:
            raise ValueError("overlap is how far below the last watermark rows are read again. Give a watermark")
        return self
