"""Documents to vectors in the store to an index that serves: killed anywhere, it comes to the same end."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import erasure, index, registry
from tasks.encoding import ModelEncoder, Role, document_identity, load
from tasks.index import documents, shards
from tasks.index.build import Build, _actors, read_build
from tasks.index.documents import DocumentsError, gather
from tasks.index.retention import retire
from tasks.index.targets import Target, TargetError
from tasks.intake import take_in
from tasks.parsing import Document, RefusedError, Rejected, read_documents
from tasks.storage import Store
from tests import model_zoo, tiny_models
from tests.faults import Crash, crash, faulty, writes
from tests.memory import memory_store

COUNT = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model."""
    return tiny_models.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of about eight documents."""
    monkeypatch.setattr(documents, "PART_ROWS", 8)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every document that was encoded."""
    found: list[str] = []
    plain = ModelEncoder.encode

    def encode(self: ModelEncoder, texts: Any, role: Role, **more: Any) -> np.ndarray:
        if role == "document":
            found.extend(texts)
        return plain(self, texts, role, **more)

    monkeypatch.setattr(ModelEncoder, "encode", encode)
    return found


def lines(*rows: dict[str, Any]) -> bytes:
    """JSON lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def filled(store: Store, count: int = COUNT) -> Store:
    """A store with documents in two objects."""
    rows = [{"id": f"d{i}", "text": f"document number {i} about pumps", "n": i} for i in range(count)]
    store.put("documents/a.jsonl", lines(*rows[::2]))
    store.put("documents/b/c.jsonl.gz", gzip.compress(lines(*rows[1::2])))
    return store


@cache
def serving_of(model: Path) -> index.Serving:
    """A base model, before anything is promoted."""
    return index.find_serving(memory_store(), model, str(model))


def embedded(store: Store, model: Path, work: Path) -> index.Embedded:
    """Embed with the base model in this process."""
    return index.embed(store, serving_of(model), work, workers=0)


# --- documents -----------------------------------------------------------------------------------------------


def test_rows_are_documents_with_id_text_and_metadata() -> None:
    """A title goes before the text; ids are texts or whole numbers; what is not a document is named by its line."""
    body = lines(
        {"id": "a", "text": "one", "url": "x", "tags": ["p"]},
        {"id": 7, "title": "Seven", "text": "two"},
        {"text": "no id"},
        {"id": "b", "text": " "},
        {"id": 1.5, "text": "three"},
        {"id": True, "text": "three"},
    )
    found = list(read_documents("documents/a.jsonl", body + b"\xff\n"))
    assert found[0] == Document("a", "one", b'{"tags":["p"],"url":"x"}', 1)
    assert found[1] == Document("7", "Seven two", b'{"title":"Seven"}', 2)
    assert [(one.line, one.reason) for one in found[2:] if isinstance(one, Rejected)] == [
        (3, "no id"),
        (4, "empty text"),
        (5, "id is not a text"),
        (6, "id is not a text"),
        (7, "not UTF-8"),
    ]


@pytest.mark.parametrize("name", ["ID", "_id", "docId", "doc-id", "docno", "document_id", "pid", "uuid"])
def test_ids_have_many_names(name: str) -> None:
    """As MongoDB, TREC, MS MARCO and others have them."""
    [found] = read_documents("documents/a.jsonl", lines({name: "a", "text": "one"}))
    assert found == Document("a", "one", b"{}", 1)


def test_tables_keep_their_other_columns_as_metadata() -> None:
    """Of CSV as texts, of Parquet as what they are; vectors, bytes and structs are left out, and named."""
    found = list(read_documents("documents/a.csv.gz", gzip.compress(b'id,text,lang\n007,"a, b",en\n')))
    assert found == [Document("007", "a, b", b'{"lang":"en"}', 2)]
    table = pa.table(
        {
            "id": [1],
            "text": ["a"],
            "when": pa.array([1], pa.timestamp("s")),
            "vector": [[1.0]],
            "raw": [b"x"],
            "price": [float("nan")],
            "tags": [["p", "q"]],
            "pages": [[1, 2]],
            "author": [{"name": "x"}],
        }
    )
    left_out: list[str] = []
    found = list(read_documents("documents/a.parquet", parquet(table), left_out=left_out))
    wanted = b'{"pages":[1,2],"price":null,"tags":["p","q"],"when":"1970-01-01T00:00:01"}'
    assert found == [Document("1", "a", wanted, 1)]
    assert [name.partition(" ")[0] for name in left_out] == ["vector", "raw", "author"]


def parquet(table: pa.Table) -> bytes:
    """A file."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_an_object_without_a_row_has_no_documents(tmp_path: Path) -> None:
    """As writers leave them of a partition without rows; where there is nothing else, there are no documents."""
    store = memory_store()
    none = pa.table({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    bodies = {
        "parquet": parquet(none),
        "jsonl.gz": gzip.compress(b""),
        "json": b"[]",
        "jsonl": b"\n",
        "csv": b"id,text\n",
    }
    for ending, body in bodies.items():
        store.put(f"documents/part-0.{ending}", body)
    with pytest.raises(DocumentsError, match="there are no documents"):
        gather(store, tmp_path)
    with gather(filled(store), tmp_path) as found:
        assert (found.count, found.rejected) == (COUNT, 0)


def test_a_row_that_is_too_long_is_named(tmp_path: Path) -> None:
    """Where it is the only one, the message says so, and nothing of columns."""
    store = memory_store()
    store.put("documents/a.jsonl", lines({"id": "a", "text": "long " * 300_000}))
    with pytest.raises(DocumentsError, match=r"none of its 1 rows is a document, such as line 1: longer than"):
        gather(store, tmp_path)


@pytest.mark.parametrize(
    ("name", "body", "reason"),
    [
        ("a.jsonl", lines({"text": "x"}), "no column of ids"),
        ("a.jsonl", lines({"id": "x", "words": "x"}), "no text"),
        ("scifact/queries.jsonl", lines({"_id": "q", "text": "x"}), "queries in BEIR layout, not documents"),
        ("a.xlsx", b"PK", "unknown kind of file"),
        ("a.csv", "id,text\n1,a\n".encode("utf-16-le"), "UTF-16 text"),
        ("a.csv", ("id,text\n" + "1,ä\n" * 20).encode("cp1252"), "not UTF-8"),
        ("a.parquet", b"PAR1nothing", "not readable as Parquet"),
    ],
)
def test_an_object_that_cannot_be_read_ends_the_reindex(name: str, body: bytes, reason: str, tmp_path: Path) -> None:
    """An index must not lack a whole object without a word; the message names it."""
    with pytest.raises(RefusedError, match=reason):
        list(read_documents(f"documents/{name}", body))
    store = filled(memory_store())
    store.put(f"documents/{name}", body)
    with pytest.raises(DocumentsError, match=rf"documents/{name}: .*{reason}.*run the reindex again"):
        gather(store, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_object_of_which_no_row_is_a_document_ends_the_reindex(tmp_path: Path) -> None:
    """The message names the first line and what is wrong with it."""
    store = memory_store()
    store.put("documents/a.jsonl", lines({"id": "", "text": "x"}, {"id": None, "text": "y"}))
    with pytest.raises(DocumentsError, match=r"documents/a\.jsonl: none of its 2 rows .* line 1: empty id"):
        gather(store, tmp_path)


def test_one_id_is_one_document(tmp_path: Path) -> None:
    """The same row twice counts once; with another text both places are named."""
    store = filled(memory_store())
    store.put("documents/again.jsonl", lines({"n": 4, "id": "d4", "text": "document number 4 about pumps"}))
    with gather(store, tmp_path) as found:
        assert (found.count, found.repeated, found.rejected) == (COUNT, 1, 0)
    store.put("documents/again.jsonl", lines({"id": "x", "text": "x"}, {"id": "d4", "text": "changed"}))
    with pytest.raises(DocumentsError, match=r"again\.jsonl line 2: the id 'd4' .* in documents/a\.jsonl line 3"):
        gather(store, tmp_path)


def test_without_documents_the_labelled_ones_are_taken(tmp_path: Path) -> None:
    """Documents, negatives and corpus, each once however it is spelt; without any of them it says so."""
    store = memory_store()
    with pytest.raises(DocumentsError, match="there are no documents: put them under documents/"):
        gather(store, tmp_path)
    store.put("pairs/a.jsonl", lines({"query": "q", "document": "A pump.", "negative": "A valve."}))
    store.put("corpus/a.jsonl", lines({"text": "a  PUMP."}, {"text": "A seal."}))
    take_in(store, writer="test")
    with gather(store, tmp_path) as found:
        (part,) = found.parts()
        assert found.origin == "commit"
        assert sorted(part.documents["text"].to_pylist()) == ["A pump.", "A seal.", "A valve."] or sorted(
            part.documents["text"].to_pylist()
        ) == ["A seal.", "A valve.", "a  PUMP."]


def test_documents_that_are_gone_do_not_make_way_for_the_labelled_ones(model: Path, tmp_path: Path) -> None:
    """As while somebody uploads them anew: the index that serves stays; it begins with labelled ones where it may."""
    store, target = memory_store(), opened(tmp_path / "target")
    store.put("pairs/a.jsonl", lines({"query": "q", "document": "A pump."}))
    take_in(store, writer="test")
    assert renewed(store, target, model, tmp_path).live.contents.count == 1
    live = renewed(filled(store), target, model, tmp_path).live
    store.delete([entry.key for entry in store.entries("documents/")])
    with pytest.raises(DocumentsError, match="documents/ is empty, and the index that serves"):
        renewed(store, target, model, tmp_path)
    assert target.live() == live


# --- vectors in the store --------------------------------------------------------------------------------------


def test_vectors_are_those_of_the_model(model: Path, tmp_path: Path) -> None:
    """Each document has the vector that the library gives it, and its text and metadata."""
    store = filled(memory_store())
    done = embedded(store, model, tmp_path)
    found = read_build(store, done.index)
    assert (done.documents, done.encoded, done.made) == (COUNT, COUNT, len(found.shards))
    assert len(found.shards) > 2
    loaded = load(model, "cpu")
    ids = []
    for one in found.shards:
        rows = shards.read_shard(store, found.identity, one.name, found.dimension)
        expected = loaded.encode_document(list(rows.texts), normalize_embeddings=True, show_progress_bar=False)
        assert (rows.vectors * expected).sum(axis=1).min() > 0.9999
        assert [meta["n"] for meta in rows.metadata] == [int(name[1:]) for name in rows.ids]
        ids += rows.ids
    assert sorted(ids) == sorted(f"d{i}" for i in range(COUNT))
    assert found.contents.count == COUNT


def test_a_document_without_a_known_word_is_kept_and_never_found(tmp_path: Path) -> None:
    """Static embeddings give it a vector of zeros: its shard is sound, and a second build encodes nothing again."""
    static = model_zoo.static_without_marks(tmp_path / "model")
    store = filled(memory_store())
    store.put("documents/odd.jsonl", lines({"id": "odd", "text": "\N{ALCHEMICAL SYMBOL FOR GOLD}", "n": 0}))
    first = embedded(store, static, tmp_path)
    found = read_build(store, first.index)
    rows = [shards.read_shard(store, found.identity, one.name, found.dimension) for one in found.shards]
    [odd] = [part.vectors[part.ids.index("odd")] for part in rows if "odd" in part.ids]
    assert not odd.any()
    again = embedded(store, static, tmp_path)
    assert (again.encoded, again.made) == (0, 0)


def test_only_what_is_new_is_encoded(model: Path, tmp_path: Path, encoded: list[str]) -> None:
    """Another object, other metadata: nothing. One more document: one. Many more, in smaller parts: those."""
    store = filled(memory_store())
    first = embedded(store, model, tmp_path)
    body = store.get("documents/a.jsonl").body
    store.delete(["documents/a.jsonl"])
    store.put("documents/z.jsonl", body)
    assert embedded(store, model, tmp_path).index == first.index
    store.put("documents/z.jsonl", body.replace(b'"n": 4}', b'"n": 5}'))
    changed = embedded(store, model, tmp_path)
    assert (changed.made, changed.encoded) == (1, 0)
    encoded.clear()
    store.put("documents/new.jsonl", lines({"id": "new", "text": "one more"}))
    assert embedded(store, model, tmp_path).made == 1
    assert encoded == ["one more"]
    encoded.clear()
    more = [{"id": f"e{i}", "text": f"further document {i}"} for i in range(6 * COUNT)]
    store.put("documents/more.jsonl", lines(*more))
    grown = embedded(store, model, tmp_path)
    assert grown.shards > changed.shards
    assert sorted(encoded) == sorted(row["text"] for row in more)


def test_documents_of_a_killed_run_do_not_stay_on_disk(model: Path, tmp_path: Path) -> None:
    """What is older than a day goes with the next run, what is younger may be another run's."""
    for name, age in (("old", 90_000), ("young", 60)):
        left = tmp_path / "reindex" / name
        left.mkdir(parents=True)
        os.utime(left, (time.time() - age,) * 2)
    embedded(filled(memory_store()), model, tmp_path)
    assert [path.name for path in (tmp_path / "reindex").iterdir()] == ["young"]


def test_another_document_encoder_shares_nothing(model: Path, tmp_path: Path) -> None:
    """Every document is encoded again."""
    store = filled(memory_store())
    embedded(store, model, tmp_path)
    other = tiny_models.save(tmp_path / "other", max_length=16)
    assert embedded(store, other, tmp_path).encoded == COUNT


def test_a_damaged_shard_is_made_again(model: Path, tmp_path: Path) -> None:
    """A bit in a vector, a text of another document: found by checksum and name."""
    store = filled(memory_store())
    first = embedded(store, model, tmp_path)
    names = [entry.key for entry in shards.stored(store, read_build(store, first.index).identity)]
    body = bytearray(store.get(names[0]).body)
    body[len(body) // 2] ^= 1
    store.put(names[0], bytes(body))
    store.put(names[1], store.get(names[2]).body)
    again = embedded(store, model, tmp_path)
    assert (again.index, again.made) == (first.index, 2)


@pytest.mark.parametrize(
    ("workers", "missing", "cores", "address", "actors"),
    [
        (None, 100, 2, "", 0),
        (None, 100, 7, "", 0),
        (None, 100, 16, "", 4),
        (None, 1, 16, "", 0),
        (None, 100, 2, "head:6379", None),
        (3, 100, 2, "", 3),
        (0, 100, 16, "head:6379", 0),
        (None, 0, 16, "head:6379", 0),
    ],
)
def test_ray_is_started_where_several_actors_pay(
    workers: int | None, missing: int, cores: int, address: str, actors: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU an actor for every four cores; one alone would do what this process does."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert _actors(workers, missing) == actors


# --- killed anywhere -------------------------------------------------------------------------------------------


class Killed:
    """A target whose process dies just before its call number `at` (from 1) that changes something, or after it."""

    def __init__(self, target: Target, at: int = 0, *, after: bool = False, fault: Callable[[], None] = crash) -> None:
        self._target, self._at, self._after, self._fault = target, at, after, fault
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)
        if name not in {"prepare", "load", "build", "switch", "drop"}:
            return method

        def call(*given: Any) -> Any:
            self.calls += 1
            if self.calls == self._at and not self._after:
                self._fault()
            done = method(*given)
            if self.calls == self._at:
                self._fault()
            return done

        return call


def renewed(store: Store, target: Any, model: Path, work: Path) -> index.Renewed:
    """Every stage of a reindex."""
    serving = serving_of(model)
    index.follow(target, serving)
    done = index.embed(store, serving, work, workers=0)
    index.load(store, target, done.index)
    found = index.switch(store, target, done.index, serving, index.Rule(0.9), work)
    assert found is not None
    return found


def opened(folder: Path) -> Target:
    """A LanceDB of its own."""
    return index.open_target(f"lancedb:{folder}", store="s3://memory/store", work=folder)


def rows_of(store: Store, build: Build) -> Iterator[str]:
    """Texts of an index in the store."""
    for one in build.shards:
        yield from shards.read_shard(store, build.identity, one.name, build.dimension).texts


def test_killed_at_any_write_it_ends_equal_and_encodes_nothing_twice(
    model: Path, tmp_path: Path, encoded: list[str]
) -> None:
    """The process dies at every write to the store in turn, before and after it; the next run goes on."""
    clean = filled(memory_store())
    whole = embedded(faulty(clean, 0), model, tmp_path)
    reference = read_build(clean, whole.index)
    counted = faulty(filled(memory_store()), 0)
    embedded(counted, model, tmp_path)
    points = [(at, when) for at in range(1, writes(counted) + 1) for when in ("before", "after")]
    assert len(points) >= 10
    for at, when in points:
        store = filled(memory_store())
        encoded.clear()
        with pytest.raises(Crash):
            embedded(faulty(store, at, when), model, tmp_path)  # type: ignore[arg-type]
        there = [shards.name_of(entry.key) for entry in shards.stored(store, reference.identity)]
        done = {text for name in there for text in shards.read_shard(store, reference.identity, name, 32).texts}
        encoded.clear()
        assert embedded(store, model, tmp_path).index == whole.index
        assert done.isdisjoint(encoded)
        assert len(encoded) == COUNT - len(done)
        assert sorted(rows_of(store, reference)) == sorted(rows_of(clean, reference))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_call_of_the_target_blue_serves_and_it_ends_equal(
    after: bool, model: Path, tmp_path: Path, encoded: list[str]
) -> None:
    """Blue serves until the switch; the next run encodes nothing, loads what is missing, and comes to the same end."""
    store = filled(memory_store(), COUNT // 2)
    blue = renewed(store, opened(tmp_path / "first"), model, tmp_path).live
    filled(store)
    clean = Killed(opened(tmp_path / "clean"))
    green = renewed(store, clean, model, tmp_path).live
    assert blue.index != green.index
    for at in range(1, clean.calls + 1):
        filled(store, COUNT // 2)
        folder = tmp_path / f"target-{at}"
        assert renewed(store, opened(folder), model, tmp_path).live == blue
        filled(store)
        encoded.clear()
        with pytest.raises(Crash):
            renewed(store, Killed(opened(folder), at, after=after), model, tmp_path)
        assert opened(folder).live() in ([blue, green] if at >= clean.calls else [blue])
        done = renewed(store, opened(folder), model, tmp_path)
        assert done.live == green == opened(folder).live()
        assert opened(folder).contents(green.index.name) == green.contents
        assert encoded == []


# --- following production --------------------------------------------------------------------------------------


def publish(store: Store, folder: Path) -> str:
    """Publish a model as a night does, with the identity of its documents."""
    description = registry.Description(
        dimension=32, normalisation="l2", max_length=48, documents=document_identity(folder)
    )
    return registry.publish(store, folder, description)


def promote(store: Store, version: str) -> None:
    """Let a version serve in the place of whatever serves."""
    scored = registry.read_production(store)
    etag = scored.etag if scored else None
    registry.promote(store, version, etag, run_id=f"run-{version}", who="w", reason="r", scores={})


def follow_production(store: Store, target: Target, work: Path) -> index.Renewed:
    """Every stage of a reindex for what serves."""
    serving = index.find_serving(store, work)
    done = index.embed(store, serving, work, workers=0)
    index.load(store, target, done.index)
    found = index.switch(store, target, done.index, serving, index.Rule(0.9), work)
    assert found is not None
    return found


def test_a_rollback_switches_back_without_encoding(model: Path, tmp_path: Path, encoded: list[str]) -> None:
    """Two versions in turn, then the first again: at once, its index as it was; a third index pushes out the oldest."""
    store, target = filled(memory_store()), opened(tmp_path / "target")
    versions = [publish(store, tiny_models.save(tmp_path / f"{n}", max_length=n)) for n in (8, 16)]
    lives = []
    for version in versions:
        promote(store, version)
        assert index.follow(target, index.find_serving(store, tmp_path)) is None
        lives.append(follow_production(store, target, tmp_path).live)
    assert [live.model for live in lives] == versions
    assert lives[0].index != lives[1].index
    encoded.clear()
    registry.rollback(store, run_id="back", who="w", reason="r")
    back = index.follow(target, index.find_serving(store, tmp_path))
    assert back == replace(lives[0], promotion=3) == target.live()
    assert follow_production(store, target, tmp_path).live == back
    assert encoded == []


def test_a_version_with_the_same_documents_takes_over_the_index(
    model: Path, tmp_path: Path, encoded: list[str]
) -> None:
    """Only the name of the model changes, under a new number; nothing is encoded, loaded or dropped."""
    store, target = filled(memory_store()), opened(tmp_path / "target")
    promote(store, publish(store, model))
    before = follow_production(store, target, tmp_path).live
    other = shutil.copytree(model, tmp_path / "other")
    settings = json.loads((other / "config_sentence_transformers.json").read_text())
    settings["prompts"]["query"] = "find: "
    (other / "config_sentence_transformers.json").write_text(json.dumps(settings))
    assert document_identity(other) == document_identity(model)
    promote(store, publish(store, other))
    encoded.clear()
    after = index.follow(target, index.find_serving(store, tmp_path))
    assert after == replace(before, model=registry.read_production(store).version, promotion=2)  # type: ignore[union-attr]
    assert target.live() == after
    assert encoded == []


def test_what_production_left_meanwhile_does_not_serve(model: Path, tmp_path: Path) -> None:
    """Production changes while an index is built: blue stays, and the next pass follows what serves then."""
    store, target = filled(memory_store()), opened(tmp_path / "target")
    promote(store, publish(store, tiny_models.save(tmp_path / "a", max_length=8)))
    blue = follow_production(store, target, tmp_path).live
    promote(store, publish(store, tiny_models.save(tmp_path / "b", max_length=16)))
    serving = index.find_serving(store, tmp_path)
    done = index.embed(store, serving, tmp_path, workers=0)
    index.load(store, target, done.index)
    promote(store, publish(store, model))
    assert index.switch(store, target, done.index, serving, index.Rule(), tmp_path) is None
    assert target.live() == blue
    assert follow_production(store, target, tmp_path).live.promotion == 3


class Full:
    """A target that has no room after so many shards."""

    def __init__(self, target: Target, room: int) -> None:
        self._target, self._room = target, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def load(self, *given: Any) -> None:
        """Take a shard while there is room."""
        self._room -= 1
        if self._room < 0:
            raise TargetError("the disk is full: make room, then run `ratchet reindex`")
        self._target.load(*given)


def test_a_target_that_is_full_leaves_blue_serving_and_is_gone_on_with(
    model: Path, tmp_path: Path, encoded: list[str]
) -> None:
    """The error is the target's; what was loaded stays, and what was embedded is not embedded again."""
    store, target = filled(memory_store(), COUNT // 2), opened(tmp_path / "target")
    blue = renewed(store, target, model, tmp_path).live
    filled(store)
    with pytest.raises(TargetError, match="the disk is full"):
        renewed(store, Full(target, 1), model, tmp_path)
    assert target.live() == blue
    encoded.clear()
    done = renewed(store, target, model, tmp_path)
    assert (done.live.contents.count, target.live()) == (COUNT, done.live)
    assert encoded == []


def test_after_an_erasure_the_previous_index_goes_too(model: Path, tmp_path: Path) -> None:
    """`drop_previous` leaves the target with one index, whose documents no longer hold the text."""
    store, target = filled(memory_store()), opened(tmp_path / "target")
    renewed(store, target, model, tmp_path)
    wanted = erasure.select(store, document="document number 4 about pumps")
    plan = erasure.find(store, wanted)
    assert len(plan.vectors) == 1
    erasure.carry_out(store, wanted, plan)
    serving = serving_of(model)
    done = index.embed(store, serving, tmp_path, workers=0)
    index.load(store, target, done.index)
    found = index.switch(store, target, done.index, serving, index.Rule(drop_previous=True), tmp_path)
    assert found is not None
    assert found.live.contents.count == COUNT - 1
    assert target.indexes() == [done.index]


def test_vectors_go_when_no_rollback_can_need_them(tmp_path: Path) -> None:
    """Three encoders served; two changes are kept, which name the last two. Of those the latest index stays."""
    store, target = filled(memory_store()), opened(tmp_path / "target")
    later = datetime.now(UTC) + timedelta(days=2)
    builds = []
    for n in (8, 16, 24):
        promote(store, publish(store, tiny_models.save(tmp_path / f"{n}", max_length=n)))
        builds.append(follow_production(store, target, tmp_path).live.index)
    assert retire(store, ledger_entries=1, now=datetime.now(UTC)) == []
    before = sorted(entry.key for entry in store.entries("indexes/"))
    gone = retire(store, ledger_entries=1, now=later, dry_run=True)
    assert sorted(entry.key for entry in store.entries("indexes/")) == before
    assert retire(store, ledger_entries=1, now=later) == gone
    assert {key.split("/")[1] for key in gone} == {"builds", builds[0].documents}
    assert retire(store, ledger_entries=1, now=later) == []
    store.put("documents/new.jsonl", lines({"id": "new", "text": "one more"}))
    follow_production(store, target, tmp_path)
    gone = retire(store, ledger_entries=1, now=later)
    assert len(gone) == 2  # one of the two indexes of the encoder, and the one shard in which they differ
    names = [shards.name_of(entry.key).removesuffix(".json") for entry in store.entries(shards.BUILDS)]
    found = [read_build(store, name) for name in names]
    assert {one.identity for one in found} == {build.documents for build in builds[1:]}
    assert {len(list(rows_of(store, one))) for one in found} <= {COUNT, COUNT + 1}  # whole
