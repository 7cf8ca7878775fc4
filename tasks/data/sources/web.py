"""web: http://… and https://…, a file that a web server has.

A copy is kept, and the server is asked whether it has another by now (ETag, Last-Modified). A torn download goes on
where it ended (Range, If-Range). What may pass is tried again: lost connections, timeouts, 429 and 5xx, as late as
Retry-After says. Secrets go into headers, which no other host gets when a server redirects to it.
"""

import contextlib
import email.message
import email.utils
import gzip
import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tasks.data.sources import copies
from tasks.data.sources.download import Answer, Limit, discard, download
from tasks.data.sources.scheme import DeliveryError, PassingError
from tasks.params import Source
from tasks.params.source import show_address

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 30.0
REDIRECTS = 10
PASSING = (408, 425, 429, 500, 502, 503, 504)  # of the server or of the net before it, and no answer to the question
STRONG_AFTER_S = 60.0  # a Last-Modified tells contents apart when the file is older than that, says RFC 9110
SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".jsonl", ".ndjson", ".zip", ".gz")
PAGES = ("text/html", "application/xhtml+xml")


class WebFile:
    """One file by HTTP."""

    def fetch(self, address: str, source: Source) -> list[Path]:
        limit = Limit.begin(source.timeout, show_address(address))
        headers = _read_headers(address, source)
        with copies.open_copies(address, source) as shelf:
            before = shelf.read()
            if before and source.sha256 == before.copies[0].sha256:  # as it must be: nothing to ask
                return shelf.publish(before.copies)
            part, name = shelf.part_of(address), _name_of(address)
            with _open_client(headers) as client:
                known = before.copies[0].marks if before and not source.sha256 else {}
                notes = download(part, _Question(client, address, known, limit).ask, limit)
            if notes is None:
                assert before is not None  # without a copy nothing is asked conditionally
                return shelf.publish(before.copies)
            if notes.get("encoding") == "gzip" and not name.endswith(".gz"):
                part = _decode(part, limit)
            if PurePosixPath(name).suffix.lower() not in SUFFIXES:
                name = notes.get("name") or name
            marks = {key: notes[key] for key in ("etag", "modified") if key in notes}
            return shelf.publish((shelf.keep(part, name, marks, source.sha256),))


def _read_headers(address: str, source: Source) -> dict[str, str]:
    """The headers that hold secrets, by their variables. Another host than the source's own gets none.

    Raises:
        ValueError: a variable is not set.
    """
    if _origin(address) != _origin(source.address):
        return {}
    for name, variable in source.headers.items():
        if not os.environ.get(variable):
            raise ValueError(
                f"{source.shown}: its header {name} is read from the environment variable {variable}, which is not "
                "set. Set it where the stage runs, or take the header out."
            )
    return {name: os.environ[variable] for name, variable in source.headers.items()}


def _origin(address: str) -> tuple[str, str]:
    parts = urlsplit(address)
    return parts.scheme, parts.netloc.lower()


def _name_of(address: str) -> str:
    return unquote(PurePosixPath(urlsplit(address).path).name) or "table.csv"


@contextlib.contextmanager
def _open_client(headers: Mapping[str, str]) -> Iterator["httpx.Client"]:
    import httpx

    logging.getLogger("httpx").setLevel(logging.WARNING)  # its lines show whole addresses, with what is secret in them
    with httpx.Client(headers={**headers, "accept-encoding": "identity"}) as client:
        yield client


class _Question:
    """What is asked of a server, from try to try."""

    def __init__(self, client: "httpx.Client", address: str, known: Mapping[str, str], limit: Limit) -> None:
        self.client, self.address, self.known, self.limit = client, address, known, limit

    @contextlib.contextmanager
    def ask(self, done: int, mark: str | None) -> Iterator[Answer | None]:
        headers: dict[str, str] = {}
        if done and mark:
            headers = {"range": f"bytes={done}-", "if-range": mark}
        elif "etag" in self.known:
            headers = {"if-none-match": self.known["etag"]}
        elif "modified" in self.known:
            headers = {"if-modified-since": self.known["modified"]}
        with self._explain(), self._send(headers) as response:
            if response.status_code == 304 and self.known and not done:
                yield None
                return
            if response.status_code == 416:
                yield Answer(iter(()), -1, None, None)  # no such part: it is another file by now
                return
            self._check(response)
            yield self._read(response)

    @contextlib.contextmanager
    def _send(self, headers: Mapping[str, str]) -> Iterator["httpx.Response"]:
        """An answer that is no redirection. Another host gets no secrets, nor does the same one in clear."""
        rest = max(self.limit.rest_s, 0.001)
        read = min(READ_TIMEOUT_S, rest)
        timeout = (min(CONNECT_TIMEOUT_S, rest), read, read, read)  # to connect, read, write, and wait for a turn
        request = self.client.build_request("GET", self.address, headers=headers, timeout=timeout)
        own = {"accept-encoding", "range", "if-range", "if-none-match", "if-modified-since", "host", "user-agent"}
        for _ in range(REDIRECTS):
            response = self.client.send(request, stream=True)
            with contextlib.closing(response):
                following = response.next_request
                if following is None:
                    yield response
                    return
            if request.url.scheme == "https" != following.url.scheme:
                raise DeliveryError(f"{self.limit.address} leads from https to http, where anybody could change it")
            if _origin(str(following.url)) != _origin(self.address):
                for name in [name for name in following.headers if name.lower() not in own]:
                    del following.headers[name]
            request = following
        raise DeliveryError(f"{self.limit.address} leads from address to address, {REDIRECTS} times")

    def _check(self, response: "httpx.Response") -> None:
        """Raises DeliveryError where the answer is no file, PassingError where another try may give it."""
        status = response.status_code
        message = f"{self.limit.address} answers with {status} {response.reason_phrase}".rstrip()
        if status in PASSING:
            raise PassingError(message, after=_read_wait(response.headers.get("retry-after")))
        if status in (401, 403):
            raise DeliveryError(f"{message}. Give the source the `headers` that it needs, with valid secrets")
        if status not in (200, 206):
            raise DeliveryError(f"{message}. Correct the address")
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in PAGES and PurePosixPath(_name_of(self.address)).suffix.lower() not in (".html", ".htm"):
            raise DeliveryError(
                f"{self.limit.address} answers with a web page, not with a table. Does it need a login?"
            )
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding not in ("identity", "gzip", "x-gzip"):
            raise DeliveryError(f"{self.limit.address} answers with the encoding {encoding}, which was not asked for")
        if "content-length" not in response.headers and "transfer-encoding" not in response.headers:
            raise DeliveryError(
                f"{self.limit.address} does not say how long the file is, so that a part could pass for the whole. "
                "Have its server send Content-Length"
            )

    def _read(self, response: "httpx.Response") -> Answer:
        headers = response.headers
        notes = {
            key: headers[name] for key, name in (("etag", "etag"), ("modified", "last-modified")) if name in headers
        }
        if "gzip" in headers.get("content-encoding", "").lower():
            notes["encoding"] = "gzip"
        if name := _read_name(headers.get("content-disposition")) or _name_of(str(response.url)):
            notes["name"] = name
        start, size = 0, int(headers["content-length"]) if "content-length" in headers else None
        if response.status_code == 206:
            place = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("content-range", "").strip())
            start, size = (int(place[1]), int(place[3])) if place else (-1, None)
        return Answer(self._chunks(response), start, size, _read_mark(headers), notes)

    def _chunks(self, response: "httpx.Response") -> Iterator[bytes]:
        with self._explain():
            yield from response.iter_raw()

    @contextlib.contextmanager
    def _explain(self) -> Iterator[None]:
        """Raise the net's faults as what may pass."""
        import httpx

        try:
            yield
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.LocalProtocolError) as error:
            raise DeliveryError(f"{self.limit.address} cannot be asked for ({type(error).__name__})") from None
        except httpx.TransportError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise DeliveryError(f"{self.limit.address}: the certificate of its server is not trusted") from None
            raise PassingError(f"{self.limit.address} does not answer ({type(error).__name__}: {error})") from None


def _read_mark(headers: Mapping[str, str]) -> str | None:
    """What surely changes with the content: a strong ETag, or a Last-Modified that is old enough."""
    etag = headers.get("etag")
    if etag and not etag.startswith("W/"):
        return str(etag)
    modified, now = (_read_date(headers.get(name)) for name in ("last-modified", "date"))
    if modified and now and (now - modified).total_seconds() >= STRONG_AFTER_S:
        return str(headers["last-modified"])
    return None


def _read_date(text: str | None) -> datetime | None:
    try:
        return email.utils.parsedate_to_datetime(text or "")
    except ValueError:
        return None


def _read_wait(text: str | None) -> float:
    """Retry-After as seconds from now."""
    if text and text.strip().isdigit():
        return float(text)
    moment = _read_date(text)
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0) if moment and moment.tzinfo else 0.0


def _read_name(disposition: str | None) -> str | None:
    """The file's name in a Content-Disposition."""
    message = email.message.Message()
    message["content-disposition"] = disposition or ""
    return message.get_filename()


def _decode(part: Path, limit: Limit) -> Path:
    """A file that came packed by its Content-Encoding, unpacked. Raises DeliveryError where it is torn."""
    plain = part.with_name(f"{part.name}.plain")
    try:
        with gzip.open(part) as packed, plain.open("wb") as file:
            shutil.copyfileobj(packed, file)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        discard(part)
        raise DeliveryError(
            f"{limit.address} sent bytes that are no whole gzip, as its Content-Encoding says"
        ) from None
    discard(part)
    return plain
