"""The store: one prefix of one S3 bucket, and the few operations that everything else is built from.

Two properties matter to the rest of Ratchet. Writes that decide anything are conditional
(`put_if_absent`, `put_if_match`), and a reply that was lost on the way is told apart from a lost race
by reading back what is stored. Reads return whole bodies or raise: a truncated body is retried, never used.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

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
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, ObjectTypeDef
    from obstore.store import S3Store

T = TypeVar("T")

_ADVICE: Final = {
    "NoSuchBucket": "create the bucket, or is AWS_ENDPOINT_URL the address of another server?",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID, and AWS_ENDPOINT_URL",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY",
    "AccessDenied": "deployments/iam/trainer.json grants what a night needs",
}
"""What to look at, by the code of an error whose message does not say it."""

_NOT_WRITTEN: Final = {404, 409, 412}
"""Replies to a conditional write that all mean "not written": AWS and SeaweedFS use each of them."""

_BODY_ERRORS: Final = (HTTPClientError, IncompleteReadError, ResponseStreamingError)
_BODY_ATTEMPTS: Final = 4
"""botocore retries requests, never errors while a body is being read: those we retry ourselves."""


class StoreError(Exception):
    """The store could not be read or written; the message names the key and what was tried."""


class MissingKeyError(StoreError):
    """There is no object under the key."""


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
class Blob:
    """An object's bytes and the ETag they were read under."""

    body: bytes
    etag: str


class Store:
    """Objects under `s3://bucket/prefix`; every key taken or returned is relative to that prefix.

    One instance is safe to share between threads (boto3 clients are), not between processes.
    """

    def __init__(self, url: str, client: S3Client, reader: Callable[[], S3Store | None] | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc:
            raise StoreError(f"a store is named s3://bucket/prefix, got {url!r}")
        self.bucket: str = parts.netloc
        self.prefix: str = parts.path.strip("/") + "/" if parts.path.strip("/") else ""
        self.url: str = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        self._client = client
        self._make_reader = reader

    @classmethod
    def open(cls, url: str, *, threads: int = 32) -> Store:
        """Connect with the standard AWS settings as they are now: endpoint, region, profile, role.

        Raises StoreError when the URL names no bucket or the settings do not make a client.
        """
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
            bucket = urlsplit(url).netloc
            certificates = settings.get_config_variable("ca_bundle")
            return cls(url, client, lambda: _reader(session, client, bucket, certificates))
        except BotoCoreError as error:
            raise StoreError(f"cannot connect to {url}: {error}") from error

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
        for attempt in range(1, _BODY_ATTEMPTS + 1):
            try:
                return take(self._client.get_object(Bucket=self.bucket, Key=self.prefix + key, **condition))
            except _BODY_ERRORS as error:
                if attempt == _BODY_ATTEMPTS:
                    raise StoreError(f"cannot read {self.uri(key)}: {_why(error)}") from error
            except ClientError as error:
                status = _status(error)
                if condition and status in {404, 412}:
                    raise ChangedError(f"{self.uri(key)} changed since it was listed") from error
                if status == 404:
                    raise MissingKeyError(f"{self.uri(key)} does not exist") from error
                raise StoreError(f"cannot read {self.uri(key)}: {_why(error)}") from error
            except BotoCoreError as error:  # no server there, or no credentials
                raise StoreError(f"cannot read {self.uri(key)}: {_why(error)}") from error
        raise AssertionError("unreachable: the loop returns or raises")

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

    @functools.cached_property
    def _reader(self) -> S3Store | None:
        """The client for reading many small objects; None where the store was made without one."""
        return None if self._make_reader is None else self._make_reader()

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
        try:
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix, **more):
                yield from map(self._entry, page.get("Contents", []))
        except (ClientError, BotoCoreError) as error:
            raise StoreError(f"cannot list {self.uri(prefix)}: {_why(error)}") from error

    def level(self, prefix: str) -> tuple[list[Entry], list[str]]:
        """Objects directly under `prefix` (which ends in "/"), and the names of the folders there, sorted."""
        entries: list[Entry] = []
        names: list[str] = []
        try:
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix, Delimiter="/"):
                entries += [self._entry(found) for found in page.get("Contents", [])]
                names += [f["Prefix"][len(self.prefix + prefix) : -1] for f in page.get("CommonPrefixes", [])]
        except (ClientError, BotoCoreError) as error:
            raise StoreError(f"cannot list {self.uri(prefix)}: {_why(error)}") from error
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
            return self._client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=body)["ETag"]
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
        try:
            reply = self._client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=body, **condition)
            return reply["ETag"]
        except ClientError as error:
            if _status(error) not in _NOT_WRITTEN:
                raise StoreError(f"cannot write {self.uri(key)}: {_why(error)}") from error
        except BotoCoreError as error:
            raise StoreError(f"cannot write {self.uri(key)}: {_why(error)}") from error
        # botocore repeats a request whose reply was lost, and then meets its own write as a conflict
        stored = self.find(key)
        return stored.etag if stored is not None and stored.body == body else None

    def upload_if_absent(self, key: str, path: Path) -> None:
        """Stream a local file to a content-addressed key, unless it is there already.

        Raises StoreError when an object of another size is there: then the key was not content-addressed.
        """
        try:
            with path.open("rb") as file:
                self._client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=file, IfNoneMatch="*")
        except ClientError as error:
            if _status(error) not in _NOT_WRITTEN:
                raise StoreError(f"cannot write {self.uri(key)}: {_why(error)}") from error
            size = self._size(key)
            if size != path.stat().st_size:
                raise StoreError(
                    f"{self.uri(key)} exists with {size} bytes, expected {path.stat().st_size} from {path.name}"
                ) from error
        except BotoCoreError as error:
            raise StoreError(f"cannot write {self.uri(key)}: {_why(error)}") from error

    def _size(self, key: str) -> int:
        try:
            return self._client.head_object(Bucket=self.bucket, Key=self.prefix + key)["ContentLength"]
        except (ClientError, BotoCoreError) as error:
            raise StoreError(f"cannot read {self.uri(key)}: {_why(error)}") from error

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; keys that do not exist are no error."""
        try:
            for key in keys:
                self._client.delete_object(Bucket=self.bucket, Key=self.prefix + key)
        except (ClientError, BotoCoreError) as error:
            raise StoreError(f"cannot delete under {self.url}: {error}") from error

    def create_bucket(self) -> None:
        """Create the store's bucket, unless it is there already; for a server of one's own."""
        try:
            self._client.create_bucket(Bucket=self.bucket)
        except ClientError as error:
            if _status(error) != 409:
                raise StoreError(f"cannot create the bucket {self.bucket}: {error}") from error
        except BotoCoreError as error:
            raise StoreError(f"cannot create the bucket {self.bucket}: {error}") from error

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

    def excess(self) -> list[str]:
        """What these credentials may do that no night needs, in words; empty when they are as narrow as they can be.

        Nothing is changed to find out: a write is tried under an ETag that no object has, a deletion on a key that no
        object has, a read on a key outside the prefix that no object has. Whoever may not is refused with 403 before
        that is looked at. To be asked only where `probe` found nothing wrong.
        """
        name = f".ratchet-probe-{secrets.token_hex(8)}"

        def writes(key: str) -> object:
            return self._client.put_object(Bucket=self.bucket, Key=key, Body=b"", IfMatch='"never"')

        def deletes(key: str) -> object:
            return self._client.delete_object(Bucket=self.bucket, Key=key)

        def reads(key: str) -> object:
            return self._client.get_object(Bucket=self.bucket, Key=key)

        found = []
        for folder in ("pairs/", "golden/", "corpus/"):
            found += [f"write to {folder}"] * self._may(writes, f"{self.prefix}{folder}{name}")
        for folder in ("pairs/", "golden/", "corpus/", "log/", "batches/", "promotions/"):
            found += [f"remove from {folder}"] * self._may(deletes, f"{self.prefix}{folder}{name}")
        if self.prefix:
            found += ["read outside the prefix"] * self._may(reads, name)
            found += ["write outside the prefix"] * self._may(writes, name)
        return found

    def _may(self, operation: Callable[[str], object], key: str) -> bool:
        """Whether the operation on the key fails for another reason than missing rights, or does not fail."""
        try:
            operation(key)
        except ClientError as error:
            return _status(error) != 403
        except BotoCoreError as error:
            raise StoreError(f"cannot try what is allowed under {self.url}: {error}") from error
        return True


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


def _status(error: ClientError) -> int:
    """The HTTP status of a refused request; 0 where the bucket does not exist: then no key of it is merely missing."""
    if error.response.get("Error", {}).get("Code") == "NoSuchBucket":
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _why(error: Exception) -> str:
    """What the server or the client says, and what to look at where that is not plain from it."""
    if isinstance(error, NoCredentialsError):
        return f"{error}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role"
    if isinstance(error, EndpointConnectionError | ConnectTimeoutError):
        return f"{error}; is the server running, and AWS_ENDPOINT_URL its address?"
    if isinstance(error, ClientError):
        advice = _ADVICE.get(error.response.get("Error", {}).get("Code", ""))
        return f"{error}; {advice}" if advice else str(error)
    return str(error)
