"""objects: what others keep in a bucket of S3, listed and read. What this project keeps there is store.py's.

Nothing is tried again here. Errors are OSErrors by what they mean: FileNotFoundError, PermissionError, ConnectionError
for what may pass, and ChangedError.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.runtime import store

CHUNK = 1 << 20  # bytes
MISSING = ("404", "NoSuchKey", "NotFound", "NoSuchBucket")
CHANGED = ("412", "PreconditionFailed")


class ChangedError(OSError):
    """An object has other bytes than when it was listed."""


@dataclass(frozen=True)
class Object:
    """An object as it was listed: `etag` is another for other bytes, `size` is in bytes."""

    key: str
    etag: str
    size: int


def find_object(bucket: str, key: str) -> Object:
    """One object; this needs no right to list the bucket. Raises OSError."""
    with _explain(f"s3://{bucket}/{key}"):
        head = store.connect_s3(attempts=1).head_object(Bucket=bucket, Key=key)
        return Object(key, head["ETag"], int(head["ContentLength"]))


def list_objects(bucket: str, prefix: str) -> list[Object]:
    """The objects whose keys begin so, by their keys. Raises OSError."""
    with _explain(f"s3://{bucket}/{prefix}"):
        pages = store.connect_s3(attempts=1).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [Object(one["Key"], one["ETag"], int(one["Size"])) for page in pages for one in page.get("Contents", [])]


def read_object(bucket: str, one: Object, *, start: int = 0) -> Iterator[bytes]:
    """The bytes of an object from a place on, by and by. Raises OSError, ChangedError where it is another by now."""
    place = {"Range": f"bytes={start}-"} if start else {}
    with _explain(f"s3://{bucket}/{one.key}"):
        body = store.connect_s3(attempts=1).get_object(Bucket=bucket, Key=one.key, IfMatch=one.etag, **place)["Body"]
        with contextlib.closing(body):
            yield from body.iter_chunks(CHUNK)


@contextlib.contextmanager
def _explain(address: str) -> Iterator[None]:
    """Raise botocore's errors as OSErrors, and as ValueError what is wrong with the credentials of this machine."""
    from botocore import exceptions
    from urllib3.exceptions import HTTPError

    try:
        yield
    except exceptions.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in MISSING:
            raise FileNotFoundError(f"{address} is not there ({code})") from None
        if code in CHANGED:
            raise ChangedError(f"{address} has changed since it was listed") from None
        if status >= 500 or status in (408, 429) or code in ("SlowDown", "RequestTimeout", "Throttling"):
            raise ConnectionError(f"{address} does not answer ({code})") from None
        raise PermissionError(f"{address} refuses to be read ({code})") from None
    except (exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError, HTTPError) as error:
        raise ConnectionError(f"{address} does not answer ({type(error).__name__}: {error})") from None
    except exceptions.BotoCoreError as error:
        raise ValueError(
            f"{address} cannot be asked for ({type(error).__name__}: {error}). Set AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION and, for another server than AWS's, AWS_ENDPOINT_URL where the "
            "stage runs."
        ) from None
