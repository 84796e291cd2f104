"""The store on a real S3 server: conditional writes, whole reads, and the probe that distrusts servers."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from obstore.store import S3Store

from deployments.stack import seaweedfs
from tasks.storage import ChangedError, MissingKeyError, Store, StoreError


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
