"""Forgetting: nothing of the text is left in any byte of the store, what else is there stays, and nights go on."""

from __future__ import annotations

import gzip
import html
import io
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from deployments.cli import app
from deployments.stack import seaweedfs
from tasks import erasure, intake
from tasks.config import Limits
from tasks.encoding.cache import VectorCache, text_hash
from tasks.index import shards
from tasks.index.documents import DOCUMENTS, Part
from tasks.intake import commit_log, take_in
from tasks.splits import Split, as_fields
from tasks.storage import Store, StoreError
from tests.faults import Crash, faulty, writes
from tests.memory import MemoryClient, memory_store

SECRET = 'Was ist mit Herrn Müllers "Konto" in der Straße 7?'
"""A text with quotes and letters that are written differently in JSON, HTML and CSV."""

OTHER = "Where is the quick brown fox tonight?"


def row(query: str, document: str, **more: Any) -> bytes:
    """A JSON line, with escapes for everything that is not ASCII."""
    return json.dumps({"query": query, "document": document, **more}).encode()


def table(*pairs: tuple[str, str]) -> bytes:
    """Parquet with a row for each pair."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"query": [q for q, _ in pairs], "document": [d for _, d in pairs]}), sink)
    return sink.getvalue()


def fill(store: Store, secret: str = SECRET) -> None:
    """Objects in every format that hold the secret, as query, document and negative, in several commits and records."""
    kept = row(OTHER, "in the forest")
    store.put("pairs/a.jsonl", b"\n".join([kept, row(secret, "answer a"), row("who?", secret), b"", kept]))
    store.put("pairs/b.jsonl.gz", gzip.compress(row(f" {secret.upper()} ", "answer b") + b"\n" + row("b?", "kept b")))
    quoted = secret.replace('"', '""')
    store.put("pairs/c.csv", f'query,document\nc?,"kept\nin two lines"\n"{quoted}",answer c\nd?,"x ""y"" z"\n'.encode())
    store.put("pairs/d.parquet", table(("e?", "kept e"), (secret, "answer d")))
    store.put("pairs/only.jsonl", row(secret, "answer only"))
    store.put("golden/g.jsonl", row(secret, "answer g") + b"\n" + row("golden?", "kept g"))
    store.put("corpus/k.jsonl", orjson.dumps({"text": secret}) + b"\n" + orjson.dumps({"text": "kept k"}))
    store.put("pairs/negative.jsonl", row("n?", "kept n", negatives=[secret, "other negative"]))
    bad = b"\n".join([row(secret, ""), row("x" * 150, secret), b"not JSON", secret.encode()])
    store.put("pairs/bad.jsonl", bad)
    store.put(
        "documents/d.jsonl",
        orjson.dumps({"id": "1", "text": secret}) + b"\n" + orjson.dumps({"id": "2", "text": "kept"}),
    )
    take_in(store, writer="run-1", limits=Limits(max_commit_rows=3))
    store.put("pairs/a.jsonl", b"\n".join([kept, row(secret, "answer a again")]))
    take_in(store, writer="run-2")
    records(store, secret)


def records(store: Store, secret: str) -> None:
    """What a night and the watch leave, with the secret in it."""
    run = "runs/20260101T033000Z-00000000"
    moved = {"query": secret, "slice": None, "returned_before": [secret[:20], "kept"], "returned_after": [secret]}
    store.put(f"{run}/scores.json", orjson.dumps({"moved": {"lost": [moved], "gained": []}, "counts": {"test": 1}}))
    sample = {"object": "test queries", "line": 1, "text": secret}
    store.put(f"{run}/leaks.json", orjson.dumps({"result": {"reasons": [f"found: {secret}"], "samples": [sample]}}))
    store.put(f"{run}/report.html", f'<p title="{html.escape(secret)}">{html.escape(secret)}</p><p>kept</p>'.encode())
    store.put(
        f"{run}/train.json",
        orjson.dumps({"version": "7c0e39691b7a3088", "commit": intake.take_in(store, writer="x").commit}),
    )
    sink = io.BytesIO()
    pq.write_table(pa.table({"query": [secret, "kept"], "mrr": [0.1, 0.2], "side": ["candidate"] * 2}), sink)
    store.put(f"{run}/per_query.parquet", sink.getvalue())
    judge = [
        {"query": secret, "document": "kept"},
        {"query": "kept", "document": secret},
        {"query": "x", "document": "y"},
    ]
    store.put(f"{run}/to_judge.jsonl", b"".join(orjson.dumps(line) + b"\n" for line in judge))
    store.put("watch/7c0e39691b7a3088/000000000001.json", orjson.dumps({"worst": [secret], "queries": 50}))
    with tempfile.TemporaryDirectory() as folder:
        cache = VectorCache(Path(folder), store)
        cache.add("k", [text_hash(secret), text_hash("kept")], np.ones((2, 4), np.float32))
        cache.add("k", [text_hash("kept too")], np.ones((1, 4), np.float32))
    for number, (text, metadata) in enumerate([(secret, {}), ("x", {"author": [secret]}), ("kept", {})]):
        part = Part(2, number, pa.table([["1"], [text], [json.dumps(metadata)]], schema=DOCUMENTS))
        shards.stage(store, shards.shard_of(part))
        shards.write(store, "a" * 64, shards.shard_of(part), np.ones((1, 1), np.float32))


def everything(store: Store) -> Iterator[tuple[str, str]]:
    """Every object as text, decoded: JSON with its escapes undone, HTML with its entities, Parquet cell by cell."""
    for entry in store.entries(""):
        body = store.get(entry.key).body
        if entry.key.endswith(".gz"):
            body = gzip.decompress(body)
        if entry.key.endswith(".parquet"):
            yield entry.key, repr(pq.read_table(pa.BufferReader(body)).to_pylist())
        text = body.decode(errors="replace")
        yield entry.key, text
        yield entry.key, html.unescape(text).replace('""', '"')
        yield entry.key, re.sub(r"\\u([0-9a-f]{4})", lambda code: chr(int(code[1], 16)), text).replace('\\"', '"')
        for line in text.splitlines() if "json" in entry.key else ():
            try:
                yield entry.key, repr(json.loads(line))
            except ValueError:
                continue


def places(store: Store, secret: str) -> set[str]:
    """The objects that hold a text, in whatever case."""
    return {key for key, text in everything(store) if secret.casefold() in text.casefold()}


def forget(store: Store, **what: str) -> erasure.Plan:
    """Forget, and return what was planned."""
    wanted = erasure.select(store, **what)
    plan = erasure.find(store, wanted)
    if plan:
        erasure.carry_out(store, wanted, plan)
    return plan


def queries(store: Store) -> set[str | None]:
    """The queries of the live rows."""
    return {q for part in intake.live_tables(store) for q in part["query"].to_pylist()}


@pytest.mark.parametrize("kind", ["query", "document"])
def test_nothing_is_left_of_a_text(store: Store, kind: str) -> None:
    """On a real server: batches of all commits, sources, quarantine, records, vectors; the next intake goes on."""
    fill(store)
    assert len(places(store, SECRET)) > 15
    vectors = {entry.key for entry in store.entries("cache/vectors/k/") if entry.key.endswith(".npy")}
    plan = forget(store, **{kind: SECRET})
    assert plan.rows >= 9
    assert plan.versions == ("7c0e39691b7a3088",)
    assert places(store, SECRET) == set()
    assert len(vectors & {entry.key for entry in store.entries("cache/vectors/k/")}) == 1
    assert queries(store) == {OTHER, "b?", "c?", "d?", "e?", "golden?", None, "n?"}
    found = take_in(store, writer="next")
    assert found.blocked == ""
    assert found.pending == ()
    assert queries(store) == {OTHER, "b?", "c?", "d?", "e?", "golden?", None, "n?"}
    assert places(store, SECRET) == set()
    assert next(iter(intake.quarantined(store))).text == "not JSON"
    assert store.find("pairs/only.jsonl") is None
    assert erasure.find(store, erasure.select(store, query=SECRET)) == erasure.Plan()
    (audit,) = store.entries("erasures/")
    entry = orjson.loads(store.get(audit.key).body)
    assert audit.key == "erasures/000000000001.json"
    assert (entry["state"], entry["rows"], entry["versions"]) == ("done", plan.rows, ["7c0e39691b7a3088"])


def test_records_stay_whole_but_for_the_text() -> None:
    """JSON is JSON, a page is a page, and the rows of other queries keep their figures."""
    store = memory_store()
    fill(store)
    forget(store, query=SECRET)
    run = "runs/20260101T033000Z-00000000"
    scores = orjson.loads(store.get(f"{run}/scores.json").body)
    (lost,) = scores["moved"]["lost"]
    assert (lost["query"], lost["returned_after"], scores["counts"]) == ("(erased)", ["(erased)"], {"test": 1})
    assert lost["returned_before"][1] == "kept"
    assert pq.read_table(pa.BufferReader(store.get(f"{run}/per_query.parquet").body))["query"].to_pylist() == ["kept"]
    judged = [orjson.loads(line) for line in store.get(f"{run}/to_judge.jsonl").body.splitlines()]
    assert judged == [
        {"query": "(erased)", "document": "kept"},
        {"query": "kept", "document": "(erased)"},
        {"query": "x", "document": "y"},
    ]
    assert b"<p>kept</p>" in store.get(f"{run}/report.html").body
    assert store.get("pairs/c.csv").body == b'query,document\nc?,"kept\nin two lines"\nd?,"x ""y"" z"\n'
    assert orjson.loads(store.get("pairs/negative.jsonl").body)["negatives"] == ["other negative"]
    assert gzip.decompress(store.get("pairs/b.jsonl.gz").body) == row("b?", "kept b")


def test_an_object_is_forgotten_with_all_that_came_of_it() -> None:
    """Its rows of every state, its rejected rows, its texts in records; texts that others have too stay."""
    store = memory_store()
    fill(store)
    store.put(
        "pairs/person.jsonl", b"\n".join([row("What did Anna Schmidt ask?", "her answer"), row(OTHER, "hers"), b"Anna"])
    )
    take_in(store, writer="run-3")
    store.put("pairs/person.jsonl", row("What else did Anna Schmidt ask?", "her answer"))
    take_in(store, writer="run-4")
    store.put(
        "runs/20260101T033000Z-00000000/leaks.json", orjson.dumps({"samples": ["What did Anna Schmidt ask?", OTHER]})
    )
    before = queries(store)
    forget(store, key="pairs/person.jsonl")
    assert places(store, "Anna") == set()
    assert places(store, "her answer") == set()
    assert places(store, OTHER)
    assert before - queries(store) == {"What else did Anna Schmidt ask?"}
    found = take_in(store, writer="next")
    assert found.removed == ()
    assert "pairs/person.jsonl" not in commit_log.load(store).objects
    assert orjson.loads(store.get("erasures/000000000001.json").body)["object"] == "pairs/person.jsonl"


def test_an_object_that_was_deleted_before_is_forgotten_too() -> None:
    """Its rows are still in the batches of the past."""
    store = memory_store()
    fill(store)
    store.put("pairs/person.jsonl", row("What did Anna Schmidt ask?", "her answer"))
    take_in(store, writer="run-3")
    store.delete(["pairs/person.jsonl"])
    take_in(store, writer="run-4")
    assert places(store, "Anna")
    forget(store, key="pairs/person.jsonl")
    assert places(store, "Anna") == set()
    assert take_in(store, writer="next").new_commits == ()


def test_an_erasure_can_be_interrupted_at_any_write_and_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each write, and after the last: the log stays whole meanwhile, and nothing is left in the end."""
    monkeypatch.setattr(commit_log, "CHECKPOINT_COMMITS", 1)
    template = memory_store()
    template.put("pairs/a.jsonl", row(OTHER, "in the forest") + b"\n" + row(SECRET, "answer a"))
    template.put("pairs/only.jsonl", row(SECRET, "answer only"))
    template.put("pairs/bad.jsonl", row(SECRET, "") + b"\nnot JSON")
    take_in(template, writer="run-1", limits=Limits(max_commit_rows=1))
    template.put("pairs/a.jsonl", row(OTHER, "in the forest") + b"\n" + row(SECRET, "answer a again"))
    take_in(template, writer="run-2")
    records(template, SECRET)
    client: Any = template._client
    original = dict(client.objects)

    def copy() -> Store:
        fresh: Any = MemoryClient()
        fresh.objects = dict(original)
        return Store(template.url, fresh)

    counted = faulty(copy(), at=0)
    forget(counted, query=SECRET)
    total = writes(counted)
    assert total > 20
    for at, when in [*((number, "before") for number in range(1, total + 1)), (total, "after")]:
        store = copy()
        with pytest.raises(Crash):
            forget(faulty(store, at, when), query=SECRET)  # type: ignore[arg-type]
        take_in(store, writer="between")
        intake.read_rows(store, commit_log.load(store).commit)
        forget(store, query=SECRET)
        assert places(store, SECRET) == set(), (at, when)
        commit = take_in(store, writer="after").commit
        assert intake.read_rows(store, commit)["query"].to_pylist() == [OTHER]
        assert [rejected.text for rejected in intake.quarantined(store)] == ["not JSON"]


def test_an_intake_that_began_before_an_erasure_brings_nothing_back() -> None:
    """It loses the race for the next number, reads the log anew, and finds the sources rewritten."""
    store = memory_store()
    fill(store)
    store.put("pairs/new.jsonl", row(SECRET, "a new answer") + b"\n" + row("new?", "kept new"))

    class Interrupted(Store):
        done = False

        def put_if_absent(self, key: str, body: bytes) -> str | None:
            if key.startswith("log/") and not self.done:
                self.done = True
                forget(store, query=SECRET)
            return super().put_if_absent(key, body)

    take_in(Interrupted(store.url, store._client), writer="run-3")
    forget(store, query=SECRET)
    assert places(store, SECRET) == set()
    assert "new?" in queries(store)


def test_a_checkpoint_from_before_an_erasure_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow intake may write one afterwards: its batches are gone."""
    monkeypatch.setattr(commit_log, "CHECKPOINT_COMMITS", 1)
    store = memory_store()
    fill(store)
    slow = commit_log.load(store)
    forget(store, query=SECRET)
    slow.read = 100
    commit_log.checkpoint(store, slow)
    take_in(store, writer="next")
    assert queries(store) == {OTHER, "b?", "c?", "d?", "e?", "golden?", None, "n?"}


def test_an_object_that_cannot_be_rewritten_stops_it_before_anything_is_changed() -> None:
    """The message names it and what to do."""
    store = memory_store()
    fill(store)
    store.put("pairs/notes.xlsx", b"PK " + SECRET.encode())
    client: Any = store._client
    before = dict(client.objects)
    wanted = erasure.select(store, query=SECRET)
    with pytest.raises(erasure.StubbornError, match=r"pairs/notes\.xlsx.*--object"):
        erasure.carry_out(store, wanted, erasure.find(store, wanted))
    assert client.objects == before
    forget(store, key="pairs/notes.xlsx")
    forget(store, query=SECRET)
    assert places(store, SECRET) == set()


def test_a_short_text_does_not_damage_records() -> None:
    """A query that is spelt like a verdict, a slice or the name of a field."""
    store = memory_store()
    store.put("split.json", orjson.dumps(as_fields(Split("salt"))))
    for word in ("promoted", "query", "pumps"):
        store.put(
            "pairs/a.jsonl", row(word, f"about {word}") + b"\n" + row("x?", f"a text with {word} in it", slice="pumps")
        )
        take_in(store, writer="run")
        outcome = {"verdict": "promoted", "reasons": ["query"], "slices": {"pumps": 1}}
        store.put("runs/20260101T033000Z-00000000/outcome.json", orjson.dumps(outcome))
        plan = forget(store, query=word)
        assert plan.rows == 1
        assert plan.mentions >= 1
        assert orjson.loads(store.get("runs/20260101T033000Z-00000000/outcome.json").body) == outcome
        take_in(store, writer="next")
        assert queries(store) == {"x?"}


@pytest.mark.parametrize("what", [{}, {"key": "pairs/a", "query": "q"}, {"query": " \n"}])
def test_exactly_one_thing_is_forgotten(what: dict[str, str]) -> None:
    """Nothing, two things, or blanks: an error that says so."""
    with pytest.raises(erasure.NothingToForgetError, match="--"):
        erasure.select(memory_store(), **what)


def test_the_command_says_what_it_would_do_and_does_it(store: Store) -> None:
    """A dry run changes nothing; without a word it asks; `ratchet rows` shows what is there before and after."""
    fill(store)
    run = CliRunner()

    def call(*arguments: str) -> str:
        done = run.invoke(app, [*arguments, "--store", store.url])
        assert done.exit_code == 0, done.output
        return done.output

    shown = [orjson.loads(line) for line in call("rows", "--query", SECRET.lower()).splitlines()]
    assert {found["object"] for found in shown} >= {"pairs/a.jsonl", "pairs/c.csv", "pairs/d.parquet"}
    assert set(shown[0]) == {"query", "document", "negatives", "score", "slice", "object", "line"}
    assert len(call("rows", "--object", "pairs/d.parquet").splitlines()) == 2
    before = places(store, SECRET)
    assert "7c0e39691b7a3088" in call("forget", "--query", SECRET, "--dry-run")
    refused = run.invoke(app, ["forget", "--query", SECRET, "--store", store.url], input="n\n")
    assert refused.exit_code == 1
    assert places(store, SECRET) == before
    assert "erasures/000000000001.json" in call("forget", "--query", SECRET, "--yes")
    assert call("rows", "--query", SECRET) == ""
    assert "Nothing in the store holds it" in call("forget", "--query", SECRET, "--yes")
    assert places(store, SECRET) == set()


ERASER = (Path(__file__).parents[1] / "deployments" / "iam" / "eraser.json").read_text()


def _identity(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "credentials": [{"accessKey": f"key-{name}", "secretKey": f"secret-{name}"}], **more}


@pytest.fixture(scope="module")
def versioned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Store]]:
    """A bucket that keeps old versions, as its owner sees it, and as `iam/eraser.json` lets somebody see it."""
    folder = tmp_path_factory.mktemp("eraser")
    policy = ERASER.replace("BUCKET", "ratchet").replace("PREFIX", "search")
    config = {
        "identities": [
            _identity("owner", actions=["Admin", "Read", "Write", "List", "Tagging"]),
            _identity("eraser", actions=[], policyNames=["eraser"]),
        ],
        "policies": [{"name": "eraser", "content": policy}],
    }
    (folder / "s3.json").write_text(json.dumps(config))
    with seaweedfs.running(folder) as server:

        def client(name: str) -> Any:
            keys = {"aws_access_key_id": f"key-{name}", "aws_secret_access_key": f"secret-{name}"}
            return boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1", **keys)

        client("owner").create_bucket(Bucket="ratchet")
        client("owner").put_bucket_versioning(Bucket="ratchet", VersioningConfiguration={"Status": "Enabled"})
        yield Store("s3://ratchet/search", client("owner")), Store("s3://ratchet/search", client("eraser"))


def test_old_versions_are_forgotten_too_with_the_erasers_rights(versioned: tuple[Store, Store]) -> None:
    """What a versioned bucket keeps of overwritten and deleted objects; the policy suffices for it."""
    owner, eraser = versioned
    fill(owner)
    owner.put("pairs/a.jsonl", row(OTHER, "in the forest"))
    owner.delete(["pairs/c.csv"])
    take_in(owner, writer="run-3")
    before = {old.key for old in owner.old_versions("") if SECRET.encode() in owner.get_old(old)}
    plan = forget(eraser, query=SECRET)
    assert {old.key for old in plan.old} >= {"pairs/a.jsonl", "pairs/c.csv"}
    assert places(owner, SECRET) == set()
    olds = Store(owner.url, owner._client)
    kept = memory_store()
    for number, old in enumerate(owner.old_versions("")):
        kept.put(f"{number}/{old.key}", olds.get_old(old))
    assert places(kept, SECRET) == set()
    assert before <= {old.key for old in plan.old} | set(plan.records) | set(plan.sources) | {"pairs/c.csv"}
    assert take_in(owner, writer="next").blocked == ""
    with pytest.raises(StoreError):
        eraser.put("production.json", b"{}")
    with pytest.raises(StoreError):
        eraser.delete(["log/000000000001.json"])


def test_forgetting_an_object_of_documents_reaches_the_shards_of_its_texts() -> None:
    """Of its documents only those that no other object has; what the shards hold besides is made again."""
    store = memory_store()
    both = {"id": "2", "text": "in both"}
    store.put("documents/a.jsonl", b"".join(orjson.dumps(one) + b"\n" for one in ({"id": "1", "text": SECRET}, both)))
    store.put("documents/b.jsonl", orjson.dumps(both))
    for number, text in enumerate([SECRET, "in both"]):
        part = Part(1, number, pa.table([["1"], [text], ["{}"]], schema=DOCUMENTS))
        shards.write(store, "a" * 64, shards.shard_of(part), np.ones((1, 1), np.float32))
    forget(store, key="documents/a.jsonl")
    assert places(store, SECRET) == set()
    assert len(places(store, "in both")) == 2
