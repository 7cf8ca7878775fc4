"""bucket: s3://bucket/key, with * for many keys: the objects of S3, or of a server that speaks as it does.

Only objects that are new or have changed are fetched. `*` stands for no slash, and keys are in their natural order, as
with files. Where the bucket lies, and the credentials, are what boto3 finds: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …
"""

import contextlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from tasks import log
from tasks.data.sources import copies
from tasks.data.sources.download import Answer, Limit, download, retry
from tasks.data.sources.files import order_naturally
from tasks.data.sources.scheme import DeliveryError, PassingError
from tasks.params import Source
from tasks.runtime import objects
from tasks.runtime.objects import Object

THREADS = 8  # objects at once


class BucketObjects:
    """Objects of a bucket."""

    def fetch(self, address: str, source: Source) -> list[Path]:
        limit = Limit.begin(source.timeout, address)
        with copies.open_copies(address, source) as shelf:
            return shelf.publish(retry(lambda: _bring_as_listed(shelf, address, source, limit), limit))


def _bring_as_listed(shelf: copies.Copies, address: str, source: Source, limit: Limit) -> tuple[copies.Copy, ...]:
    """An object that changes while they are fetched is a reason to list them again. What has come stays."""
    try:
        return _bring(shelf, address, source, limit)
    except objects.ChangedError as error:
        raise PassingError(str(error)) from None


def _bring(shelf: copies.Copies, address: str, source: Source, limit: Limit) -> tuple[copies.Copy, ...]:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    listed = retry(lambda: _list(bucket, key, address), limit)
    before = shelf.read()
    here = {(copy.name, copy.marks.get("etag")): copy for copy in before.copies} if before else {}
    missing = [one for one in listed if (one.key, one.etag) not in here]
    if len(listed) > 1 and missing:
        log.info("%s: %s of %s objects are new", address, f"{len(missing):,}", f"{len(listed):,}")
    threads = ThreadPoolExecutor(THREADS, "bucket")
    try:
        list(threads.map(lambda one: _fetch_object(shelf, bucket, one, limit), missing))
    finally:
        threads.shutdown(cancel_futures=True)
    for one in missing:
        marks = {"etag": one.etag}
        here[one.key, one.etag] = shelf.keep(shelf.part_of(one.key), one.key, marks, source.sha256)
    return tuple(here[one.key, one.etag] for one in listed)


def _list(bucket: str, key: str, address: str) -> list[Object]:
    with _explain(address):
        if "*" not in key:
            return [objects.find_object(bucket, key)]
        listed = objects.list_objects(bucket, key.partition("*")[0])
    if exact := [one for one in listed if one.key == key]:  # a name that exists is no pattern
        return exact
    pattern = re.compile(re.escape(key).replace(r"/\*", r"/(?!\.)\*").replace(r"\*", "[^/]*"))
    matching = sorted((one for one in listed if pattern.fullmatch(one.key)), key=lambda one: order_naturally(one.key))
    if not matching:
        raise DeliveryError(f"{address}: no key fits, of {len(listed)} that begin with {key.partition('*')[0]!r}")
    return matching


def _fetch_object(shelf: copies.Copies, bucket: str, one: Object, limit: Limit) -> None:
    address = f"s3://{bucket}/{one.key}"

    def ask(done: int, mark: str | None) -> AbstractContextManager[Answer]:
        start = done if mark == one.etag else 0
        came_whole = start == one.size and start > 0  # before a kill
        chunks = iter(()) if came_whole else _read(bucket, one, start, address)
        return contextlib.nullcontext(Answer(chunks, start, one.size, one.etag))

    download(shelf.part_of(one.key), ask, replace(limit, address=address))


def _read(bucket: str, one: Object, start: int, address: str) -> Iterator[bytes]:
    with _explain(address):
        yield from objects.read_object(bucket, one, start=start)


@contextlib.contextmanager
def _explain(address: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DeliveryError(f"{error}. Correct {address}, or bring it back") from None
    except PermissionError as error:
        raise DeliveryError(f"{error}. Let the stage's credentials read and list there") from None
    except ConnectionError as error:
        raise PassingError(str(error)) from None
