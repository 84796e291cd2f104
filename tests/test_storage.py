"""The store on a real S3 server: conditional writes, whole reads, and the probe that distrusts servers."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from obstore.store import S3Store

from deployments.stack import seaweedfs
from tasks.storage import ChangedError, MissingKeyError, Store, StoreError, UnreadableError


def test_put_if_absent_has_one_winner_in_twenty_threads(store: Store) -> None:
    """Twenty writers of different bytes to one key: one is told that it wrote, and its bytes are stored."""
    with ThreadPoolExecutor(20) as pool:
        written = list(pool.map(lambda i: store.put_if_absent("log/1", b"writer %d" % i), range(20)))
    winners = [i for i, etag in enumerate(written) if etag is not None]
    assert len(winners) == 1
    assert store.get("log/1").body == b"writer %d" % winners[0]


def test_put_if_absent_of_the_same_bytes_is_the_same_write(store: Store) -> None:
    """A second run of the same work, or a lost reply, is no conflict."""
    first = store.put_if_absent("batches/a", b"rows")
    assert first is not None
    assert store.put_if_absent("batches/a", b"rows") == first
    assert store.put_if_absent("batches/a", b"other") is None


def test_put_if_match_loses_no_update(store: Store) -> None:
    """Four threads raise one counter twenty times by compare-and-swap: it ends at twenty."""
    store.put("counter", b"0 first")

    def increment(_: int) -> None:
        while True:
            blob = store.get("counter")
            # a token of its own: equal bytes from another writer would look like our own lost reply
            body = f"{int(blob.body.split()[0]) + 1} {uuid.uuid4()}".encode()
            if store.put_if_match("counter", body, blob.etag) is not None:
                return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(increment, range(20)))
    assert store.get("counter").body.split()[0] == b"20"


def test_put_if_match_on_a_missing_object_writes_nothing(store: Store) -> None:
    """A pointer that was deleted is not brought back by a stale writer."""
    etag = store.put("production.json", b"{}")
    store.delete(["production.json"])
    assert store.put_if_match("production.json", b"new", etag) is None
    assert store.find("production.json") is None


def test_get_under_an_etag_reads_only_what_was_listed(store: Store) -> None:
    """An object overwritten or deleted between listing and reading is an error, not other bytes."""
    store.put("pairs/a.jsonl", b"old")
    (entry,) = store.entries("pairs/")
    assert store.get(entry.key, etag=entry.etag).body == b"old"
    store.put("pairs/a.jsonl", b"new")
    with pytest.raises(ChangedError, match=r"pairs/a\.jsonl changed"):
        store.get(entry.key, etag=entry.etag)
    store.delete([entry.key])
    with pytest.raises(ChangedError):
        store.get(entry.key, etag=entry.etag)
    with pytest.raises(MissingKeyError, match="does not exist"):
        store.get(entry.key)


KEYS = ["a.jsonl", "a b+c%20d.jsonl", "größe/ü.jsonl", "a=1&b=2/#?.jsonl", "dots...jsonl", "<script>.jsonl"]


def test_listed_objects_are_read_by_their_etag_with_the_standard_settings(s3_server: seaweedfs.S3Server) -> None:
    """The fast reader finds endpoint and credentials as boto3 does; any key is read as it was listed, or not at all."""
    store = Store.open(f"s3://ratchet/{uuid.uuid4().hex}")
    for key in KEYS:
        store.put(f"pairs/{key}", key.encode())
    listed = list(store.entries("pairs/"))
    assert {entry.key: store.get_listed(entry).body.decode() for entry in listed} == {f"pairs/{k}": k for k in KEYS}
    reader = store._reader
    assert reader is not None
    plain = next(entry for entry in listed if entry.key == "pairs/a.jsonl")
    found = reader.get(store.prefix + plain.key, options={"if_match": plain.etag})
    assert bytes(found.bytes()) == b"a.jsonl"
    store.put(plain.key, b"changed")
    with pytest.raises(ChangedError, match=r"pairs/a\.jsonl changed"):
        store.get_listed(plain)
    store.delete([plain.key])
    with pytest.raises(ChangedError):
        store.get_listed(plain)


def test_listed_objects_are_read_even_when_the_fast_reader_fails(s3_server: seaweedfs.S3Server) -> None:
    """A reader that cannot reach the server costs time, not objects."""
    store = Store.open(f"s3://ratchet/{uuid.uuid4().hex}")
    store.put("pairs/a.jsonl", b"rows")
    (port,) = seaweedfs.free_ports(1)
    options: Any = {"allow_http": True}
    lost = S3Store("ratchet", endpoint=f"http://127.0.0.1:{port}", region="us-east-1", client_options=options,
                   access_key_id="none", secret_access_key="none", retry_config={"max_retries": 0})  # fmt: skip
    broken = Store(store.url, store._client, lambda: lost)
    (entry,) = store.entries("pairs/")
    assert broken.get_listed(entry).body == b"rows"


def test_entries_and_folders_are_relative_to_the_prefix(store: Store) -> None:
    """Keys come back without the store's prefix, from every depth; folders from one level."""
    for key in ("runs/b/x", "runs/a/y/z", "runs/c"):
        store.put(key, b"1")
    assert {entry.key for entry in store.entries("runs/")} == {"runs/b/x", "runs/a/y/z", "runs/c"}
    assert store.folders("runs/") == ["a", "b"]


def test_upload_refuses_a_key_that_holds_something_else(store: Store, tmp_path: Path) -> None:
    """Content-addressed keys never change their content."""
    (tmp_path / "f").write_bytes(b"12345")
    store.upload_if_absent("models/v/f", tmp_path / "f")
    store.upload_if_absent("models/v/f", tmp_path / "f")
    (tmp_path / "f").write_bytes(b"123456")
    with pytest.raises(StoreError, match="5 bytes, expected 6"):
        store.upload_if_absent("models/v/f", tmp_path / "f")
    store.download("models/v/f", tmp_path / "g")
    assert (tmp_path / "g").read_bytes() == b"12345"


def test_probe_passes_a_server_that_honours_conditions_and_leaves_nothing_behind(store: Store) -> None:
    """SeaweedFS honours both conditions."""
    assert store.probe() == []
    assert list(store.entries("cache/")) == []


@pytest.mark.parametrize("header", ["IfMatch", "IfNoneMatch"])
def test_probe_names_a_server_that_ignores_a_condition(s3_server: seaweedfs.S3Server, header: str) -> None:
    """A server or proxy that drops one of the two headers is not to be trusted with production."""
    client = boto3.client("s3", endpoint_url=s3_server.endpoint)

    def drop(params: dict[str, Any], **_: Any) -> None:
        params.pop(header, None)

    client.meta.events.register("before-parameter-build.s3.PutObject", drop)
    problems = Store(f"s3://ratchet/{uuid.uuid4().hex}", client).probe()
    assert len(problems) == 1
    assert {"IfMatch": "If-Match", "IfNoneMatch": "If-None-Match"}[header] in problems[0]


@pytest.mark.parametrize("url", ["", "bucket/prefix", "https://bucket/prefix", "s3:///prefix"])
def test_a_store_that_names_no_bucket_is_refused(url: str) -> None:
    """The message says what a store's name looks like."""
    with pytest.raises(StoreError, match="s3://bucket/prefix"):
        Store.open(url)


@pytest.mark.parametrize(
    ("settings", "bucket", "says"),
    [
        ({}, "no-such-bucket", "create the bucket"),
        ({"AWS_SECRET_ACCESS_KEY": "guess"}, "ratchet", "check AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "ratchet", "check AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "ratchet", "or AWS_PROFILE"),
    ],
    ids=["no bucket", "wrong secret", "unknown key", "no key"],
)
def test_what_keeps_a_store_from_being_reached_is_said_with_a_remedy(
    settings: dict[str, str],
    bucket: str,
    says: str,
    s3_server: seaweedfs.S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading, listing and every way of writing; a bucket that does not exist is never taken for a missing key."""
    for name, value in {"AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", **s3_server.environment(), **settings}.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name)
    store = Store.open(f"s3://{bucket}/x")
    operations: list[Callable[[], object]] = [
        lambda: store.find("a"),
        lambda: store.folders("runs/"),
        lambda: store.put("a", b""),
        lambda: store.put_if_absent("a", b""),
        lambda: store.put_if_match("a", b"", '"never"'),
    ]
    for operation in operations:
        with pytest.raises(StoreError, match=says):
            operation()


class Answering:
    """An S3 client that answers some calls of an operation with an error; notes the names of all calls."""

    def __init__(self, client: Any, operation: str, code: str, status: int, times: int) -> None:
        self._client, self._operation, self._times = client, operation, times
        self._error = ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, operation)
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def answer(**arguments: Any) -> Any:
            self.calls.append(name)
            if name == self._operation and self._times > 0:
                self._times -= 1
                raise self._error
            return call(**arguments)

        return answer


def answering(store: Store, operation: str, code: str, status: int, times: int = 1) -> tuple[Store, Answering]:
    """The store behind a server that answers so, and the client that counts."""
    client: Any = Answering(store._client, operation, code, status, times)
    return Store(store.url, client), client


def test_a_conflict_with_another_write_is_tried_again(store: Store, tmp_path: Path) -> None:
    """AWS answers 409 while another write to the key is under way, whatever comes of that one."""
    etag = store.put("pointer", b"old")
    (tmp_path / "f").write_bytes(b"12345")
    conflict = ("put_object", "ConditionalRequestConflict", 409, 2)
    assert answering(store, *conflict)[0].put_if_absent("log/1", b"mine") is not None
    assert answering(store, *conflict)[0].put_if_match("pointer", b"new", etag) is not None
    answering(store, *conflict)[0].upload_if_absent("batches/f", tmp_path / "f")
    assert [store.get(key).body for key in ("log/1", "pointer", "batches/f")] == [b"mine", b"new", b"12345"]
    assert answering(store, *conflict)[0].put_if_absent("log/1", b"another's") is None


def test_a_conflict_that_does_not_end_is_an_error_of_the_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a lost race: nothing was written by anybody, and the step may be tried again."""
    monkeypatch.setattr("tasks.storage._CONFLICT_SECONDS", 0.0)
    etag = store.put("pointer", b"old")
    (tmp_path / "f").write_bytes(b"12345")
    conflict = ("put_object", "ConditionalRequestConflict", 409, 100)
    with pytest.raises(StoreError, match="cannot write"):
        answering(store, *conflict)[0].put_if_absent("log/1", b"mine")
    with pytest.raises(StoreError, match="cannot write"):
        answering(store, *conflict)[0].put_if_match("pointer", b"new", etag)
    with pytest.raises(StoreError, match="cannot write"):
        answering(store, *conflict)[0].upload_if_absent("batches/f", tmp_path / "f")
    assert answering(store, *conflict)[0].put_if_absent("pointer", b"mine") is None
    assert answering(store, *conflict)[0].put_if_match("pointer", b"new", '"stale"') is None


def test_a_large_file_goes_up_in_parts_and_only_where_there_is_none(store: Store, tmp_path: Path) -> None:
    """Byte for byte, one winner, nothing left behind: also of the one that lost, and of one that died."""
    body = bytes(range(256)) * 50_000  # 12.8 MB in three parts
    (tmp_path / "f").write_bytes(body)

    def parted(client: Any) -> Store:
        made = Store(store.url, client)
        made.multipart_bytes, made.part_bytes = 5 << 20, 5 << 20
        return made

    client: Any = Answering(store._client, "", "", 0, 0)
    parted(client).upload_if_absent("models/v/f", tmp_path / "f")
    assert client.calls.count("upload_part") == 3
    assert store.get("models/v/f").body == body
    parted(store._client).upload_if_absent("models/v/f", tmp_path / "f")
    (tmp_path / "f").write_bytes(body + b"more")
    with pytest.raises(StoreError, match=f"{len(body)} bytes, expected {len(body) + 4}"):
        parted(store._client).upload_if_absent("models/v/f", tmp_path / "f")
    conflict: Any = Answering(store._client, "complete_multipart_upload", "ConditionalRequestConflict", 409, 1)
    parted(conflict).upload_if_absent("models/v/g", tmp_path / "f")
    assert store.get("models/v/g").body == body + b"more"
    broken: Any = Answering(store._client, "upload_part", "InternalError", 500, 1)
    with pytest.raises(StoreError, match="cannot write"):
        parted(broken).upload_if_absent("models/v/h", tmp_path / "f")
    assert store.find("models/v/h") is None
    assert not store._client.list_multipart_uploads(Bucket="ratchet", Prefix=store.prefix).get("Uploads")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: parted(store._client).upload_if_absent("models/v/i", tmp_path / "f"), range(4)))
    assert store.get("models/v/i").body == body + b"more"


def test_uploads_in_parts_are_probed(store: Store, s3_server: seaweedfs.S3Server) -> None:
    """SeaweedFS completes them conditionally; a server that ignores the condition, or knows no parts, is named."""
    assert store.probe_parts() == []
    client = boto3.client("s3", endpoint_url=s3_server.endpoint)

    def drop(params: dict[str, Any], **_: Any) -> None:
        params.pop("IfNoneMatch", None)

    client.meta.events.register("before-parameter-build.s3.CompleteMultipartUpload", drop)
    (problem,) = Store(store.url, client).probe_parts()
    assert "If-None-Match is ignored by uploads in parts" in problem
    without, _ = answering(store, "create_multipart_upload", "NotImplemented", 501, 100)
    (problem,) = without.probe_parts()
    assert "an upload in parts failed" in problem
    assert list(store.entries("cache/")) == []


def test_rotated_credentials_are_read_again(s3_server: seaweedfs.S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that was opened with keys that are no longer valid goes on with those that the settings name now."""
    name = f"s3://ratchet/{uuid.uuid4().hex}"
    for setting, value in s3_server.environment().items():
        monkeypatch.setenv(setting, value)
    Store.open(name).put("pairs/a.jsonl", b"rows")
    operations: list[Callable[[Store], object]] = [
        lambda store: store.get("pairs/a.jsonl"),
        lambda store: list(store.entries("pairs/")),
        lambda store: store.level("pairs/"),
        lambda store: store.put("runs/a", b""),
        lambda store: store.put_if_absent(f"log/{uuid.uuid4().hex}", b""),
        lambda store: store.delete(["runs/a"]),
        lambda store: store.get_listed(next(Store.open(name).entries("pairs/"))),
    ]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "revoked")
    revoked = [Store.open(name) for _ in operations]
    with pytest.raises(StoreError, match="check AWS_ACCESS_KEY_ID"):
        revoked[0].get("pairs/a.jsonl")  # refused before and after the settings are read again
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.environment()["AWS_ACCESS_KEY_ID"])
    for operation, store in zip(operations, revoked, strict=True):
        operation(store)


def test_an_object_that_cannot_be_read_is_told_from_a_store_that_cannot(store: Store) -> None:
    """Locked with a key, archived, forbidden, broken: a reason of its own. Refused credentials, throttling: not."""
    key = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32}
    store._client.put_object(Bucket="ratchet", Key=f"{store.prefix}pairs/a.jsonl", Body=b"rows", **key)
    with pytest.raises(UnreadableError, match=r"pairs/a\.jsonl") as caught:
        store.get("pairs/a.jsonl")
    assert not caught.value.transient
    assert store.exists("pairs/a.jsonl")
    assert not store.exists("pairs/b.jsonl")
    store.put("pairs/b.jsonl", b"rows")
    own = [("AccessDenied", 403), ("InvalidObjectState", 403), ("KMS.DisabledException", 400), ("InternalError", 500)]
    for code, status in own:
        with pytest.raises(UnreadableError, match=code) as caught:
            answering(store, "get_object", code, status)[0].get("pairs/b.jsonl")
        assert caught.value.transient == (status == 500)
    for code, status in [("InvalidAccessKeyId", 403), ("ExpiredToken", 400), ("SlowDown", 503), ("SlowDown", 429)]:
        with pytest.raises(StoreError, match=code) as other:
            answering(store, "get_object", code, status)[0].get("pairs/b.jsonl")
        assert not isinstance(other.value, UnreadableError)


def test_the_address_of_a_store_is_kept_as_it_is() -> None:
    """Characters that mean something in a web address mean nothing in a key; slashes at the end are one store."""
    assert [Store.open(url).url for url in ("s3://b/team#1", "s3://b/a&b/", "s3://b/")] == [
        "s3://b/team#1",
        "s3://b/a&b",
        "s3://b",
    ]
