"""The store: one prefix of one S3 bucket, and the few operations that everything else is built from.

Two properties matter to the rest of Ratchet. Writes that decide anything are conditional
(`put_if_absent`, `put_if_match`), and a reply that was lost on the way is told apart from a lost race
by reading back what is stored. Reads return whole bodies or raise: a truncated body is retried, never used.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, TypeVar

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ResponseStreamingError,
)
from obstore.exceptions import BaseError as ObstoreError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import (
        CompletedPartTypeDef,
        GetObjectOutputTypeDef,
        ListObjectsV2OutputTypeDef,
        ObjectTypeDef,
    )
    from obstore.store import S3Store

T = TypeVar("T")

_ADVICE: Final = {
    "NoSuchBucket": "create the bucket, or is AWS_ENDPOINT_URL the address of another server?",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID, and AWS_ENDPOINT_URL",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY",
    "AccessDenied": "deployments/iam/trainer.json grants what a night needs",
}
"""What to look at, by the code of an error whose message does not say it."""

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_AVOID: Final = frozenset('\\{}^%`[]"<>~|?*')
"""Characters that S3 advises against, and those that policies and event filters read as wildcards."""

_CONFLICT: Final = 409
_NOT_WRITTEN: Final = {404, 412, _CONFLICT}
"""Replies to a conditional write that all mean "not written": AWS and SeaweedFS use each of them."""

_CONFLICT_ATTEMPTS: Final = 6
_CONFLICT_SECONDS: Final = 0.05
"""A 409 says that another write to the key was under way: whether the condition holds is not known, so ask again."""

_CREDENTIALS_REFUSED: Final = frozenset(
    {
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UnrecognizedClientException",
    }
)
"""Codes of errors that other credentials could fix: they may have been rotated since the client was made."""

_THROTTLED: Final = frozenset({"RequestTimeout", "RequestTimeTooSkewed", "SlowDown", "TooManyRequests", "Throttling"})
"""Codes of errors with a status of the client's that say nothing about the object that was asked for."""

_MOST_PARTS: Final = 9_000
"""Parts of one multipart upload; S3 takes 10,000."""

_BODY_ERRORS: Final = (HTTPClientError, IncompleteReadError, ResponseStreamingError)
_BODY_ATTEMPTS: Final = 4
"""botocore retries requests, never errors while a body is being read: those we retry ourselves."""


class StoreError(Exception):
    """The store could not be read or written; the message names the key and what was tried."""


class MissingKeyError(StoreError):
    """There is no object under the key."""


class UnreadableError(StoreError):
    """One object cannot be read, for a reason that says nothing about the others.

    `transient`: the server failed at it; if it fails at all objects, it is the server.
    """

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


class ChangedError(StoreError):
    """The object is no longer the one that was listed: its ETag differs, or it is gone."""


@dataclass(frozen=True)
class Entry:
    """One listed object: key relative to the store's prefix, ETag, size in bytes, and when it was last written."""

    key: str
    etag: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class OldVersion:
    """A version of an object that is no longer the current one."""

    key: str
    version: str


@dataclass(frozen=True)
class Blob:
    """An object's bytes and the ETag they were read under."""

    body: bytes
    etag: str


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def normalise(url: str) -> str:
    """The one spelling of a store's address: `s3://bucket` or `s3://bucket/prefix`, without a slash at the end.

    Events, alerts and policies name a store by it, so an address that could be read as another one is refused.

    Raises:
        StoreError: It has another form, an empty part, `.` or `..`, or a character that S3 advises against.
    """
    if "@" in url:  # and it is not repeated
        raise StoreError("a store is named s3://bucket/prefix, without credentials: set AWS_ACCESS_KEY_ID and so on")
    scheme, separator, rest = url.partition("://")
    bucket, *parts = rest.rstrip("/").split("/")
    if scheme != "s3" or not separator or not _BUCKET.fullmatch(bucket):
        raise StoreError(f"a store is named s3://bucket/prefix, got {url!r}")
    for part in parts:
        if part in {"", ".", ".."}:
            raise StoreError(f"a store is named s3://bucket/prefix, got {url!r}: the prefix has the part {part!r}")
    bad = sorted({char for char in "".join(parts) if char in _AVOID or not char.isprintable() or char.isspace()})
    if bad:
        raise StoreError(
            f"a store is named s3://bucket/prefix, got {url!r}: the prefix has {', '.join(map(repr, bad))}"
        )
    return "/".join(["s3:/", bucket, *parts])


class Store:
    """Objects under `s3://bucket/prefix`; every key taken or returned is relative to that prefix.

    One instance is safe to share between threads (boto3 clients are), not between processes.
    """

    multipart_bytes: int = 512 << 20
    """Size above which a file is uploaded in parts. S3 takes at most 5 GiB in one request."""

    part_bytes: int = 64 << 20
    """Size of a part, unless that makes too many of them."""

    def __init__(
        self,
        url: str,
        client: S3Client,
        reader: Callable[[], S3Store | None] | None = None,
        reconnect: Callable[[], Connection] | None = None,
    ) -> None:
        self.url: str = normalise(url)
        self.bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        self.prefix: str = f"{prefix}/" if prefix else ""
        self._client = client
        self._make_reader = reader
        self._made_reader: tuple[S3Store | None] | None = None
        self._reconnect = reconnect
        self._reconnecting = threading.Lock()

    @classmethod
    def open(cls, url: str, *, threads: int = 32) -> Store:
        """Connect with the standard AWS settings as they are now: endpoint, region, profile, role.

        When the server refuses the credentials later, the settings are read once more: they may have been rotated.
        Raises StoreError when the URL names no bucket or the settings do not make a client.
        """
        bucket = normalise(url).split("/")[2]
        connection = _connect(url, bucket, threads)
        return cls(url, connection.client, connection.reader, lambda: _connect(url, bucket, threads))

    def _call(self, request: Callable[[S3Client], T]) -> T:
        """Make a request; where the credentials are refused, once more with those of the settings as they are now."""
        client = self._client
        try:
            return request(client)
        except ClientError as error:
            if self._reconnect is None or _code(error) not in _CREDENTIALS_REFUSED:
                raise
        with self._reconnecting:
            if self._client is client:  # else another thread has done so meanwhile
                connection = self._reconnect()
                self._client, self._make_reader, self._made_reader = connection.client, connection.reader, None
        return request(self._client)

    def uri(self, key: str) -> str:
        """The full address of a key, for people and for messages."""
        return f"s3://{self.bucket}/{self.prefix}{key}"

    # --- reading -----------------------------------------------------------------------------------------

    def get(self, key: str, *, etag: str | None = None) -> Blob:
        """Read a whole object; with `etag`, only the object that was listed under it.

        Raises MissingKeyError when there is none, ChangedError when `etag` no longer holds.
        """
        condition: dict[str, Any] = {} if etag is None else {"IfMatch": etag}
        return self._read(key, lambda reply: Blob(reply["Body"].read(), reply["ETag"]), condition)

    def _read(self, key: str, take: Callable[[GetObjectOutputTypeDef], T], condition: dict[str, Any]) -> T:
        """What `take` makes of an object's body; an error in the body is tried again."""
        where = {"Bucket": self.bucket, "Key": self.prefix + key, **condition}
        for attempt in range(1, _BODY_ATTEMPTS + 1):
            try:
                return take(self._call(lambda client: client.get_object(**where)))
            except _BODY_ERRORS as error:
                if attempt == _BODY_ATTEMPTS:
                    raise UnreadableError(f"cannot read {self.uri(key)}: {_why(error)}", transient=True) from error
            except ClientError as error:
                status = _status(error)
                if condition and status in {404, 412}:
                    raise ChangedError(f"{self.uri(key)} changed since it was listed") from error
                if status == 404:
                    raise MissingKeyError(f"{self.uri(key)} does not exist") from error
                raise self._unread(key, error) from error
            except BotoCoreError as error:  # no server there, or no credentials
                raise StoreError(f"cannot read {self.uri(key)}: {_why(error)}") from error
        raise AssertionError("unreachable: the loop returns or raises")

    def _unread(self, key: str, error: ClientError) -> StoreError:
        """What kept an object from being read: a reason of its own, or of the whole store."""
        message, status = f"cannot read {self.uri(key)}: {_why(error)}", _status(error)
        if status == 500 or (400 <= status < 500 and _code(error) not in _CREDENTIALS_REFUSED | _THROTTLED):
            return UnreadableError(message, transient=status == 500)
        return StoreError(message)

    def get_listed(self, entry: Entry) -> Blob:
        """Read an object as it was listed, by a client that takes a sixth of the CPU time for it.

        Whatever that client cannot do (a key it does not accept, an error in the body), `get` does, with its retries
        and its errors: ChangedError when the object is no longer what was listed. What it does return are the bytes
        that have the ETag, so a key that it read differently does no harm.
        """
        reader = self._reader
        if reader is not None:
            try:
                found = reader.get(self.prefix + entry.key, options={"if_match": entry.etag})
                return Blob(bytes(found.bytes()), entry.etag)
            except (ObstoreError, OSError, ValueError):
                pass  # said again, and better, by what follows
        return self.get(entry.key, etag=entry.etag)

    @property
    def _reader(self) -> S3Store | None:
        """The client for reading many small objects; None where the store was made without one."""
        if self._made_reader is None:
            self._made_reader = (None if self._make_reader is None else self._make_reader(),)
        return self._made_reader[0]

    def exists(self, key: str) -> bool:
        """Whether there is an object under the key; also true for one that may not be read."""
        try:
            self._call(lambda client: client.head_object(Bucket=self.bucket, Key=self.prefix + key))
        except ClientError as error:
            status = _status(error)
            if not 400 <= status < 500:
                raise StoreError(f"cannot read {self.uri(key)}: {_why(error)}") from error
            return status != 404
        except BotoCoreError as error:
            raise StoreError(f"cannot read {self.uri(key)}: {_why(error)}") from error
        return True

    def find(self, key: str) -> Blob | None:
        """Read a whole object, or None when there is none."""
        try:
            return self.get(key)
        except MissingKeyError:
            return None

    def download(self, key: str, path: Path) -> None:
        """Stream an object to a local file, in bounded memory. Raises MissingKeyError."""

        def write(reply: GetObjectOutputTypeDef) -> None:
            with path.open("wb") as file:
                for chunk in reply["Body"].iter_chunks(1 << 20):
                    file.write(chunk)

        self._read(key, write, {})

    def entries(self, prefix: str, *, start_after: str | None = None) -> Iterator[Entry]:
        """List every object under a prefix, at any depth.

        Servers differ in the order of keys at mixed depths; within one folder it is byte order.
        `start_after` (a key) is only safe within one folder, for the same reason.
        """
        more: dict[str, Any] = {} if start_after is None else {"StartAfter": self.prefix + start_after}
        for page in self._pages(prefix, more):
            yield from map(self._entry, page.get("Contents", []))

    def _pages(self, prefix: str, more: dict[str, Any]) -> Iterator[ListObjectsV2OutputTypeDef]:
        """Every page of a listing."""
        asked = {"Bucket": self.bucket, "Prefix": self.prefix + prefix, **more}
        try:
            while True:
                page = self._call(lambda client: client.list_objects_v2(**asked))
                yield page
                if not page.get("IsTruncated"):
                    return
                asked["ContinuationToken"] = page["NextContinuationToken"]
        except (ClientError, BotoCoreError) as error:
            raise StoreError(f"cannot list {self.uri(prefix)}: {_why(error)}") from error
        except KeyError as error:
            raise StoreError(
                f"cannot list {self.uri(prefix)}: the server says that there is more, not where"
            ) from error

    def level(self, prefix: str) -> tuple[list[Entry], list[str]]:
        """Objects directly under `prefix` (which ends in "/"), and the names of the folders there, sorted."""
        entries: list[Entry] = []
        names: list[str] = []
        for page in self._pages(prefix, {"Delimiter": "/"}):
            entries += [self._entry(found) for found in page.get("Contents", [])]
            names += [f["Prefix"][len(self.prefix + prefix) : -1] for f in page.get("CommonPrefixes", [])]
        return entries, sorted(names)

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly under `prefix` (which ends in "/"), sorted, without the slash."""
        return self.level(prefix)[1]

    def _entry(self, found: ObjectTypeDef) -> Entry:
        return Entry(found["Key"][len(self.prefix) :], found["ETag"], found["Size"], found["LastModified"])

    # --- writing -----------------------------------------------------------------------------------------

    def put(self, key: str, body: bytes) -> str:
        """Write an object, replacing what is there; returns its ETag. For `runs/` and `cache/` only."""
        try:
            return self._call(lambda client: client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=body))[
                "ETag"
            ]
        except (ClientError, BotoCoreError) as error:
            raise StoreError(f"cannot write {self.uri(key)}: {_why(error)}") from error

    def put_if_absent(self, key: str, body: bytes) -> str | None:
        """Write an object only where there is none.

        Returns its ETag, also when exactly these bytes are there already (a lost reply, or a second run of
        the same work), and None when something else is there.
        """
        return self._put_conditionally(key, body, {"IfNoneMatch": "*"})

    def put_if_match(self, key: str, body: bytes, etag: str) -> str | None:
        """Replace exactly the object that was read under `etag`.

        Returns the new ETag (also after a lost reply), and None when the object has changed or is gone.
        """
        return self._put_conditionally(key, body, {"IfMatch": etag})

    def _put_conditionally(self, key: str, body: bytes, condition: dict[str, Any]) -> str | None:
        where = {"Bucket": self.bucket, "Key": self.prefix + key, **condition}
        reply, refused = self._conditional(key, lambda client: client.put_object(Body=body, **where))
        if reply is not None:
            return reply["ETag"]
        # botocore repeats a request whose reply was lost, and then meets its own write as a conflict
        stored = self.find(key)
        if stored is not None and stored.body == body:
            return stored.etag
        still_holds = stored is None if "IfNoneMatch" in condition else (stored and stored.etag == condition["IfMatch"])
        if _status(refused) == _CONFLICT and still_holds:
            raise StoreError(f"cannot write {self.uri(key)}: {_why(refused)}") from refused
        return None

    def _conditional(self, key: str, write: Callable[[S3Client], T]) -> tuple[T | None, ClientError]:
        """Make a conditional write, again where it met another one; without a reply, the error that refused it."""
        refused = ClientError({}, "")
        for attempt in range(_CONFLICT_ATTEMPTS):
            try:
                return self._call(write), refused
            except ClientError as error:
                if _status(error) not in _NOT_WRITTEN:
                    raise StoreError(f"cannot write {self.uri(key)}: {_why(error)}") from error
                refused = error
            except BotoCoreError as error:
                raise StoreError(f"cannot write {self.uri(key)}: {_why(error)}") from error
            if _status(refused) != _CONFLICT:
                break
            if attempt + 1 < _CONFLICT_ATTEMPTS:
                time.sleep(_CONFLICT_SECONDS * 2**attempt)
        return None, refused

    def upload_if_absent(self, key: str, path: Path) -> None:
        """Stream a local file to a content-addressed key, unless it is there already; large ones in parts.

        Raises StoreError when an object of another size is there: then the key was not content-addressed.
        """
        size = path.stat().st_size

        def upload(client: S3Client) -> object:
            if size > self.multipart_bytes:
                return self._upload_parts(client, key, path, size)
            with path.open("rb") as file:
                return client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=file, IfNoneMatch="*")

        reply, refused = self._conditional(key, upload)
        if reply is not None:
            return
        try:
            there = self._size(key)
        except MissingKeyError:
            raise StoreError(f"cannot write {self.uri(key)}: {_why(refused)}") from refused
        if there != size:
            raise StoreError(
                f"{self.uri(key)} exists with {there} bytes, expected {size} from {path.name}"
            ) from refused

    def _upload_parts(self, client: S3Client, key: str, path: Path, size: int) -> object:
        """Upload a file in parts. They become an object at once, and only where there is none."""
        where: Any = {"Bucket": self.bucket, "Key": self.prefix + key}
        where["UploadId"] = client.create_multipart_upload(**where)["UploadId"]
        step = max(self.part_bytes, math.ceil(size / _MOST_PARTS))
        parts: list[CompletedPartTypeDef] = []
        try:
            with path.open("rb") as file:
                for number, start in enumerate(range(0, size, step), 1):
                    piece = _Piece(file, start, min(step, size - start))
                    etag = client.upload_part(**where, PartNumber=number, Body=piece)["ETag"]  # type: ignore[arg-type]
                    parts.append({"ETag": etag, "PartNumber": number})
            return client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
        except BaseException:
            with suppress(ClientError, BotoCoreError):  # what is left behind costs money, and nothing else
                client.abort_multipart_upload(**where)
            raise

    def _size(self, key: str) -> int:
        try:
            return self._call(lambda client: client.head_object(Bucket=self.bucket, Key=self.prefix + key))[
                "ContentLength"
            ]
        except ClientError as error:
            if _status(error) == 404:
                raise MissingKeyError(f"{self.uri(key)} does not exist") from error
            raise StoreError(f"cannot read {self.uri(key)}: {_why(error)}") from error
        except BotoCoreError as error:
            raise StoreError(f"cannot read {self.uri(key)}: {_why(error)}") from error

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; keys that do not exist are ignored."""
        try:
            for key in keys:
                self._delete(self.prefix + key)
        except (ClientError, BotoCoreError) as error:
            raise StoreError(f"cannot delete under {self.url}: {error}") from error

    def _delete(self, key: str) -> None:
        self._call(lambda client: client.delete_object(Bucket=self.bucket, Key=key))

    def create_bucket(self) -> None:
        """Create the store's bucket, unless it is there already; for a server of one's own."""
        try:
            self._call(lambda client: client.create_bucket(Bucket=self.bucket))
        except ClientError as error:
            if _status(error) != 409:
                raise StoreError(f"cannot create the bucket {self.bucket}: {error}") from error
        except BotoCoreError as error:
            raise StoreError(f"cannot create the bucket {self.bucket}: {error}") from error

    # --- versions that a bucket keeps --------------------------------------------------------------------

    def old_versions(self, prefix: str) -> Iterator[OldVersion]:
        """Versions of objects that are no longer the current one, deleted ones included; none without versioning."""
        asked: dict[str, Any] = {"Bucket": self.bucket, "Prefix": self.prefix + prefix}
        try:
            while True:
                page = self._call(lambda client, asked=asked: client.list_object_versions(**asked))  # type: ignore[misc]
                for found in page.get("Versions", []):
                    if not found["IsLatest"]:
                        yield OldVersion(found["Key"][len(self.prefix) :], found["VersionId"])
                if not page.get("IsTruncated"):
                    return
                asked = {**asked, "KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page["NextVersionIdMarker"]}
        except ClientError as error:
            if _status(error) not in {405, 501}:  # a server that knows no versions keeps none
                raise StoreError(f"cannot list the versions under {self.uri(prefix)}: {_why(error)}") from error
        except BotoCoreError as error:
            raise StoreError(f"cannot list the versions under {self.uri(prefix)}: {_why(error)}") from error

    def get_old(self, old: OldVersion) -> bytes:
        """The bytes of an old version."""
        return self._read(old.key, lambda reply: reply["Body"].read(), {"VersionId": old.version})

    def delete_old(self, olds: Iterable[OldVersion]) -> None:
        """Delete old versions for good."""
        for old in olds:
            where: Any = {"Bucket": self.bucket, "Key": self.prefix + old.key, "VersionId": old.version}
            try:
                self._call(lambda client, where=where: client.delete_object(**where))  # type: ignore[misc]
            except (ClientError, BotoCoreError) as error:
                raise StoreError(f"cannot delete under {self.url}: {_why(error)}") from error

    # --- trust -------------------------------------------------------------------------------------------

    def probe(self) -> list[str]:
        """Try both conditional writes on the configured bucket; returns what is wrong, empty when sound.

        Some S3 servers and proxies accept the headers and ignore them; a promotion there could overwrite
        another's. The probe's own object is deleted again.
        """
        key = f"cache/probe/{secrets.token_hex(8)}"
        problems: list[str] = []
        etag = self.put(key, b"first")
        try:
            if self.put_if_absent(key, b"second") is not None or self.get(key).body != b"first":
                problems.append("If-None-Match is ignored: an existing object was overwritten")
            current = self.put(key, b"third")
            if self.put_if_match(key, b"fourth", etag) is not None or self.get(key).body != b"third":
                problems.append("If-Match is ignored: an object was replaced under a stale ETag")
            elif self.put_if_match(key, b"fifth", current) is None:
                problems.append("If-Match is refused: a write under the current ETag failed")
        finally:
            self.delete([key])
        return problems

    def probe_parts(self) -> list[str]:
        """Try an upload in parts; returns what is wrong. Models and checkpoints of more than 5 GiB need it."""
        key = f"cache/probe/{secrets.token_hex(8)}"
        self.put(key, b"first")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "probe")
            path.write_bytes(b"second")
            try:
                reply, _ = self._conditional(key, lambda client: self._upload_parts(client, key, path, 6))
                if reply is not None or self.get(key).body != b"first":
                    return ["If-None-Match is ignored by uploads in parts: an existing object was overwritten"]
                self.delete([key])
                reply, refused = self._conditional(key, lambda client: self._upload_parts(client, key, path, 6))
                if reply is None or self.get(key).body != b"second":
                    return [f"an upload in parts failed: {_why(refused)}"]
            except StoreError as error:
                return [f"an upload in parts failed: {error}"]
            finally:
                self.delete([key])
        return []

    # What credentials may do is found out without changing anything: a write is tried under an ETag that no object has,
    # a deletion and a read on a key that no object has. Whoever may not is refused with 403 before that is looked at.
    # To be asked only where `probe` found nothing wrong.

    def may_write(self, key: str, *, outside: bool = False) -> bool:
        """Whether the credentials may write under a key, or, `outside`, under a key beside the store's prefix."""
        whole = key if outside else self.prefix + key
        return self._may(lambda client: client.put_object(Bucket=self.bucket, Key=whole, Body=b"", IfMatch='"never"'))

    def may_upload(self, key: str) -> bool:
        """Whether the credentials may begin to upload a key in parts; what was begun is aborted."""

        def begin(client: S3Client) -> object:
            upload = client.create_multipart_upload(Bucket=self.bucket, Key=self.prefix + key)["UploadId"]
            return client.abort_multipart_upload(Bucket=self.bucket, Key=self.prefix + key, UploadId=upload)

        return self._may(begin)

    def may_delete(self, key: str) -> bool:
        """Whether the credentials may delete a key, which no object must have."""
        return self._may(lambda client: client.delete_object(Bucket=self.bucket, Key=self.prefix + key))

    def may_read(self, key: str, *, outside: bool = False) -> bool:
        """Whether the credentials may read a key, or, `outside`, one beside the store's prefix."""
        whole = key if outside else self.prefix + key
        return self._may(lambda client: client.head_object(Bucket=self.bucket, Key=whole))

    def _may(self, request: Callable[[S3Client], object]) -> bool:
        """Whether a request fails for another reason than missing rights, or does not fail."""
        try:
            self._call(request)
        except ClientError as error:
            return _status(error) != 403
        except BotoCoreError as error:
            raise StoreError(f"cannot try what is allowed under {self.url}: {error}") from error
        return True


class Connection(NamedTuple):
    """A client, and what makes the one for reading many small objects."""

    client: S3Client
    reader: Callable[[], S3Store | None]


def _connect(url: str, bucket: str, threads: int) -> Connection:
    """Make the clients from the standard AWS settings as they are now."""
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 6},
        connect_timeout=5,
        read_timeout=30,
        max_pool_connections=threads,
        s3={"addressing_style": "path"},
    )
    try:
        settings = botocore.session.get_session()
        session = boto3.session.Session(botocore_session=settings)
        client = session.client("s3", region_name=session.region_name or "us-east-1", config=config)
        certificates = settings.get_config_variable("ca_bundle")
    except BotoCoreError as error:
        raise StoreError(f"cannot connect to {url}: {error}") from error
    return Connection(client, lambda: _reader(session, client, bucket, certificates))


class _Piece(io.RawIOBase):
    """A stretch of an open file as a file of its own: read again from its start when a request is repeated."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def __len__(self) -> int:
        return self._length

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move within the stretch."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        return self._at

    def tell(self) -> int:
        """Where in the stretch the next byte is."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes."""
        self._file.seek(self._start + self._at)
        piece = self._file.read(max(0, min(len(buffer), self._length - self._at)))
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def _reader(session: boto3.session.Session, client: S3Client, bucket: str, certificates: str | None) -> S3Store | None:
    """An obstore client with the settings of a boto3 client: endpoint, region, profile or role, certificates.

    None where there are no credentials: then boto3 says so. Few retries, since `get` comes after them.
    """
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    try:
        # shorter than what botocore leaves on credentials that expire
        provider = Boto3CredentialProvider(session, ttl=timedelta(minutes=5))
    except ValueError:
        return None
    options: dict[str, Any] = {"allow_http": True, "connect_timeout": "5s", "timeout": "5m", "read_timeout": "30s"}
    if certificates:
        options["root_certificate"] = Path(certificates).read_bytes()
    return S3Store(
        bucket,
        endpoint=client.meta.endpoint_url,
        region=client.meta.region_name,
        credential_provider=provider,
        virtual_hosted_style_request=False,
        client_options=options,  # type: ignore[arg-type]  # a dictionary that is put together
        retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=20)},
    )


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    """The HTTP status of a refused request; 0 where the bucket does not exist: then no key of it is merely missing."""
    if _code(error) == "NoSuchBucket":
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _why(error: Exception) -> str:
    """What the server or the client says, and what to look at where that is not plain from it."""
    if isinstance(error, NoCredentialsError):
        return f"{error}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role"
    if isinstance(error, EndpointConnectionError | ConnectTimeoutError):
        return f"{error}; is the server running, and AWS_ENDPOINT_URL its address?"
    if isinstance(error, ClientError):
        advice = _ADVICE.get(_code(error))
        return f"{error}; {advice}" if advice else str(error)
    return str(error)
