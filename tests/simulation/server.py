"""A model of an S3 server in memory: conditional writes, pages, clocks, and what can go wrong with a reply."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from botocore.exceptions import ClientError, ReadTimeoutError

BEGINNING = datetime(2026, 11, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Stored:
    """One object: its bytes, their hash, and when it was written."""

    body: bytes
    etag: str
    modified: datetime


class Turns(Protocol):
    """What a client does around a request: let the others go on, or die."""

    def before(self, written: str) -> None:
        """Let others take their turns; raises Crash when the process dies here. `written`: the key, of a write."""

    def after(self) -> None:
        """Die after the request was carried out, before its reply is used."""


@dataclass
class Server:
    """Objects by key, the time, and how often requests go wrong. `on_put` and `on_delete` watch what happens."""

    random: random.Random
    trouble: float = 0.0
    """Share of requests that go wrong."""
    tree: bool = False
    """Whether listings follow the tree of folders, as SeaweedFS does, or the bytes of the keys, as AWS does."""
    objects: dict[str, Stored] = field(default_factory=dict)
    now: datetime = BEGINNING
    requests: int = 0
    on_put: Callable[[str, Stored | None, Stored], None] = lambda *_: None
    on_delete: Callable[[str], None] = lambda _: None

    def put(self, key: str, body: bytes) -> Stored:
        """Write an object, whoever asks."""
        before = self.objects.get(key)
        stored = Stored(body, f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"', self.now)
        self.objects[key] = stored
        self.on_put(key, before, stored)
        return stored

    def delete(self, key: str) -> None:
        """Remove an object."""
        if key in self.objects:
            self.on_delete(key)
            del self.objects[key]

    def listed(self) -> list[str]:
        """Every key, in the order of listings."""
        return sorted(self.objects, key=(lambda key: key.split("/")) if self.tree else None)


def _refused(status: int, code: str) -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "request")


class _Body:
    def __init__(self, body: bytes) -> None:
        self._body = body

    def read(self) -> bytes:
        return self._body

    def iter_chunks(self, _size: int) -> Iterator[bytes]:
        yield self._body


class Client:
    """What boto3 is to `tasks.storage.Store`: the operations that it uses, on the model."""

    def __init__(self, server: Server, turns: Turns) -> None:
        self._server, self._turns = server, turns

    def put_object(self, *, Key: str, Body: Any, IfMatch: str = "", IfNoneMatch: str = "", **_: Any) -> Any:  # noqa: N803
        """PUT, under a condition or none. A reply may be lost, and the request then made again by the client."""
        self._begin(Key)
        body = Body if isinstance(Body, bytes) else Body.read()

        def write() -> Stored:
            there = self._server.objects.get(Key)
            if (IfNoneMatch and there) or (IfMatch and (there is None or there.etag != IfMatch)):
                raise _refused(404 if IfMatch and there is None else 412, "PreconditionFailed")
            return self._server.put(Key, body)

        if (IfMatch or IfNoneMatch) and self._fails():
            raise _refused(409, "ConditionalRequestConflict")
        stored = write()
        self._turns.after()
        if self._fails():  # the reply is lost: the client repeats the request, or gives up
            if self._server.random.random() < 0.3:
                raise ReadTimeoutError(endpoint_url="http://s3")
            stored = write()
        return {"ETag": stored.etag}

    def get_object(self, *, Key: str, IfMatch: str = "", **_: Any) -> Any:  # noqa: N803
        """GET, of the object under an ETag where one is given."""
        self._begin()
        found = self._server.objects.get(Key)
        if found is None:
            raise _refused(404, "NoSuchKey")
        if IfMatch and found.etag != IfMatch:
            raise _refused(412, "PreconditionFailed")
        return {"Body": _Body(found.body), "ETag": found.etag}

    def head_object(self, *, Key: str, **_: Any) -> Any:  # noqa: N803
        """HEAD."""
        self._begin()
        found = self._server.objects.get(Key)
        if found is None:
            raise _refused(404, "404")
        return {"ContentLength": len(found.body), "ETag": found.etag}

    def delete_object(self, *, Key: str, **_: Any) -> Any:  # noqa: N803
        """DELETE; of nothing as well."""
        self._begin(Key)
        self._server.delete(Key)
        self._turns.after()
        return {}

    def list_object_versions(self, **_: Any) -> Any:
        """The model keeps no old versions, and says so."""
        self._begin()
        raise _refused(501, "NotImplemented")

    def list_objects_v2(
        self,
        *,
        Prefix: str,  # noqa: N803
        StartAfter: str = "",  # noqa: N803
        Delimiter: str = "",  # noqa: N803
        ContinuationToken: str = "",  # noqa: N803
        **_: Any,
    ) -> Any:
        """One page of a listing. Between pages the store may change."""
        self._begin()
        server = self._server
        order: Callable[[str], Any] = (lambda key: key.split("/")) if server.tree else (lambda key: key)
        after = ContinuationToken or StartAfter
        keys = [key for key in server.listed() if key.startswith(Prefix) and (not after or order(key) > order(after))]
        size = server.random.choice((2, 3, 1000, 1000))
        page, folders = [], []
        last = ""
        for key in keys:
            name = Prefix + key[len(Prefix) :].partition(Delimiter)[0] + Delimiter if Delimiter else key
            is_folder = bool(Delimiter) and key != name.removesuffix(Delimiter)
            if is_folder and folders and folders[-1] == name:
                last = key
                continue
            if len(page) + len(folders) == size:
                break
            last = key
            if is_folder:
                folders.append(name)
            else:
                page.append(key)
        reply: dict[str, Any] = {
            "Contents": [
                {"Key": key, "ETag": server.objects[key].etag, "Size": len(server.objects[key].body),
                 "LastModified": server.objects[key].modified}
                for key in page
            ],
            "CommonPrefixes": [{"Prefix": name} for name in folders],
        }  # fmt: skip
        if keys and last != keys[-1]:
            reply |= {"IsTruncated": True, "NextContinuationToken": last}
        return reply

    def _begin(self, written: str = "") -> None:
        """Every request: others may come first, time passes, and the server may not want it."""
        self._turns.before(written)
        self._server.requests += 1
        self._server.now += timedelta(seconds=1)
        if self._fails():
            raise _refused(503, "SlowDown")

    def _fails(self) -> bool:
        return self._server.random.random() < self._server.trouble
