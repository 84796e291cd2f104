"""An S3 server's objects in memory, behind the calls of the client that the store makes: for many short schedules."""

from __future__ import annotations

import hashlib
import io
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError
from botocore.response import StreamingBody

from tasks.storage import Store


class MemoryClient:
    """Whole-object writes with conditions, reads and listings in pages, in byte order of the keys."""

    def __init__(self, page: int = 1000) -> None:
        self.objects: dict[str, bytes] = {}
        self._page = page

    def put_object(self, *, Bucket: str, Key: str, Body: Any, **condition: str) -> dict[str, Any]:  # noqa: ARG002, N803
        """Write, if the condition holds."""
        current = self.objects.get(Key)
        if "IfNoneMatch" in condition and current is not None:
            raise error("PreconditionFailed", 412)
        if "IfMatch" in condition and (current is None or etag(current) != condition["IfMatch"]):
            raise error("PreconditionFailed", 412)
        self.objects[Key] = bytes(Body) if isinstance(Body, bytes | bytearray) else Body.read()
        return {"ETag": etag(self.objects[Key])}

    def get_object(self, *, Bucket: str, Key: str, IfMatch: str | None = None) -> dict[str, Any]:  # noqa: ARG002, N803
        """Read, if the condition holds."""
        body = self.objects.get(Key)
        if body is None:
            raise error("NoSuchKey", 404)
        if IfMatch is not None and etag(body) != IfMatch:
            raise error("PreconditionFailed", 412)
        return {"Body": StreamingBody(io.BytesIO(body), len(body)), "ETag": etag(body)}

    def head_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: ARG002, N803
        """The size."""
        if Key not in self.objects:
            raise error("404", 404)
        return {"ContentLength": len(self.objects[Key]), "ETag": etag(self.objects[Key])}

    def delete_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: ARG002, N803
        """Delete; what does not exist is no error."""
        self.objects.pop(Key, None)
        return {}

    def list_object_versions(self, **_: str) -> dict[str, Any]:
        """It keeps none."""
        return {}

    def list_objects_v2(self, *, Bucket: str, Prefix: str, **more: str) -> dict[str, Any]:  # noqa: ARG002, N803
        """One page; folders where a delimiter asks for them."""
        after = max(more.get("StartAfter", ""), more.get("ContinuationToken", ""))
        keys = sorted(key for key in self.objects if key.startswith(Prefix) and key > after)
        found, names = keys, []
        if more.get("Delimiter"):
            found = [key for key in keys if "/" not in key[len(Prefix) :]]
            names = sorted({Prefix + key[len(Prefix) :].partition("/")[0] + "/" for key in set(keys) - set(found)})
        else:
            found = keys[: self._page]
        page: dict[str, Any] = {
            "Contents": [
                {
                    "Key": k,
                    "ETag": etag(self.objects[k]),
                    "Size": len(self.objects[k]),
                    "LastModified": datetime.now(UTC),
                }
                for k in found
            ],
            "CommonPrefixes": [{"Prefix": name} for name in names],
            "IsTruncated": not more.get("Delimiter") and len(keys) > len(found),
        }
        return page | ({"NextContinuationToken": found[-1]} if page["IsTruncated"] else {})


def etag(body: bytes) -> str:
    """As S3 gives it to objects that were written at once."""
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


def error(code: str, status: int) -> ClientError:
    """An error as botocore raises it."""
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "")


def memory_store(page: int = 1000) -> Store:
    """An empty store in memory."""
    client: Any = MemoryClient(page)
    return Store("s3://memory/store", client)
