"""buckets: what the buckets hold, and how they are emptied. A versioned bucket is empty when it has no version left."""

from collections.abc import Iterator
from typing import Any

import boto3

PAGE = 1000  # versions that S3 lists, and deletes, at a time


def count_versions(bucket: str) -> int:
    """Versions and deletion marks of a bucket, counted up to PAGE. 0 also for a bucket that is not there."""
    client = boto3.client("s3")
    try:
        page = client.list_object_versions(Bucket=bucket, MaxKeys=PAGE)
    except client.exceptions.NoSuchBucket:
        return 0
    return len(_list_versions(page))


def empty_bucket(bucket: str) -> int:
    """Delete every version of every object. Returns how many there were. Raises RuntimeError where S3 refuses one."""
    client, number = boto3.client("s3"), 0
    for batch in _batches(bucket):
        answer = client.delete_objects(Bucket=bucket, Delete={"Objects": batch, "Quiet": True})
        if errors := answer.get("Errors"):
            first = errors[0]
            raise RuntimeError(f"{bucket}: {first.get('Key')} was not deleted: {first.get('Message')}")
        number += len(batch)
    return number


def _batches(bucket: str) -> Iterator[list[dict[str, str]]]:
    client = boto3.client("s3")
    while batch := _list_versions(client.list_object_versions(Bucket=bucket, MaxKeys=PAGE)):
        yield batch


def _list_versions(page: Any) -> list[dict[str, str]]:
    versions = (*page.get("Versions", ()), *page.get("DeleteMarkers", ()))
    return [{"Key": version["Key"], "VersionId": version["VersionId"]} for version in versions]
