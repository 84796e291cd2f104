"""Targets of an index: LanceDB in a folder, pgvector in a real PostgreSQL server."""

from __future__ import annotations

import itertools
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import psycopg
import pytest
from filelock import FileLock
from psycopg import sql

from tasks import index, registry
from tasks.index.client import QueryEncoder, Searcher, query_encoders
from tasks.index.targets import (
    Contents,
    GoneError,
    Index,
    Live,
    Rows,
    SwitchedError,
    Target,
    TargetError,
    VerificationError,
    check_address,
    connection,
    contents_of,
    open_target,
    verify,
)
from tasks.scoring.serving import describe
from tasks.storage import Store
from tests import postgres, tiny_models
from tests.memory import memory_store
from tests.test_index import filled, follow_production, promote, publish

DOCUMENTS = 120
PROMOTIONS = 10
CLIENTS = 3
MOST_QUERIES = 20_000
SECONDS = 120.0


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server with pgvector; `prefect` owns the database, and may not create extensions."""

    running: postgres.Postgres
    views: Iterator[int] = field(default_factory=itertools.count)

    @property
    def url(self) -> str:
        """The address of the database, without a password."""
        return f"postgresql://prefect@127.0.0.1:{self.running.port}/prefect"

    def database(self, name: str) -> str:
        """The address of another database."""
        return f"{self.url.rpartition('/')[0]}/{name}"

    @property
    def superuser(self) -> psycopg.Connection[Any]:
        """A connection that may do everything."""
        return psycopg.connect(
            self.url.replace("prefect@", "postgres@"), password=self.running.password, autocommit=True
        )

    def address(self) -> str:
        """A view of its own for one test."""
        return f"{self.url}#ratchet.v{next(self.views)}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server for all tests of this module; the password is in the environment."""
    with postgres.running(postgres.with_pgvector()) as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", running.password)
        found = Server(running)
        with found.superuser as admin:
            admin.execute("CREATE EXTENSION vector")
        yield found


Opening = Callable[[], Target]


@pytest.fixture(params=["lancedb", "pgvector"])
def opening(request: pytest.FixtureRequest, tmp_path: Path) -> Opening:
    """Opens one and the same target as often as it is called."""
    address = "lancedb:" if request.param == "lancedb" else request.getfixturevalue("server").address()
    return lambda: open_target(address, store="s3://bucket", work=tmp_path)


# --- models that can be told apart ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Rotated:
    """A made-up model: each text has a direction, which each model turns its own way, in its own dimension.

    Under one model a text is its own nearest document, with similarity 1; under two it is as good as any other.
    """

    number: int

    @property
    def version(self) -> str:
        """The name of the version."""
        return f"{self.number:032x}"

    @property
    def dimension(self) -> int:
        """Components of a vector: 48 or 64."""
        return 48 + 16 * (self.number % 2)

    def __call__(self, texts: Any) -> np.ndarray:
        """Unit vectors of texts, whose last word is a number."""
        directions = np.stack([np.random.default_rng(int(text.split()[-1])).normal(size=48) for text in texts])
        turn = np.random.default_rng(1000 + self.number).normal(size=(self.dimension, self.dimension))
        turned = directions @ np.linalg.qr(turn)[0][:48]
        return np.asarray(turned / np.linalg.norm(turned, axis=1, keepdims=True), np.float32)

    @property
    def index(self) -> Index:
        """The index of the documents of this model."""
        return Index(f"i{self.number}", f"documents of {self.number}", self.dimension)

    def rows(self, numbers: range) -> Rows:
        """Documents with their vectors, by number."""
        texts = [f"document {number}" for number in numbers]
        ids = [f"d{number}" for number in numbers]
        return Rows(ids, texts, [{"number": number} for number in numbers], self(texts))


def built(target: Target, model: Rotated) -> Contents:
    """Fill and build an index of a model in two shards; what it must hold."""
    target.prepare(model.index)
    found = contents_of([], [], np.empty((0, model.dimension), np.float32))
    for shard, numbers in {"a": range(DOCUMENTS // 2), "b": range(DOCUMENTS // 2, DOCUMENTS)}.items():
        rows = model.rows(numbers)
        target.load(model.index.name, shard, rows)
        found += contents_of(rows.ids, rows.texts, rows.vectors)
    target.build(model.index.name)
    return found


def promoted(target: Target, model: Rotated) -> Live:
    """Build an index of a model, verify it, and switch to it."""
    expected = built(target, model)
    verify(target, model.index, expected, model([f"query {number}" for number in range(10)]))
    live = Live(model.index, model.version, expected, model.number)
    target.switch(live, target.live())
    return live


# --- the acceptance: searches while models change -------------------------------------------------------------


@dataclass
class Client:
    """Asks for documents by their own text until it is told to stop, and notes what is wrong with the answers."""

    ask: Callable[[str], tuple[str, str, float]]
    tells_apart: bool = True
    """Whether the models give different texts clearly different vectors."""
    seen: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)

    def run(self, stop: threading.Event, answered: threading.Condition) -> None:
        """Ask until `stop`, at most MOST_QUERIES times; tell of every answer."""
        for number in itertools.islice(itertools.cycle(range(DOCUMENTS)), MOST_QUERIES):
            if stop.is_set():
                return
            try:
                model, document, score = self.ask(f"document {number}")
            except Exception as error:  # noqa: BLE001 - whatever it is, a query failed
                self.failed.append(repr(error))
                continue
            if score < 0.99 or (self.tells_apart and document != f"d{number}"):
                self.mixed.append(f"{model}: {document} for {number}, {score:.3f}")
            with answered:
                self.seen.append(model)
                answered.notify_all()


@contextmanager
def _asking(clients: list[Client]) -> Iterator[Callable[[str], None]]:
    """Clients that ask all the time; what is given waits until each of them was answered by a version."""
    stop, answered = threading.Event(), threading.Condition()
    threads = [threading.Thread(target=client.run, args=(stop, answered), daemon=True) for client in clients]

    def seen(version: str) -> None:
        with answered:
            assert answered.wait_for(lambda: all(version in one.seen or one.failed for one in clients), SECONDS)

    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(SECONDS)


def _through_searcher(
    opening: Opening,
    load: Callable[[str], QueryEncoder] = lambda version: Rotated(int(version, 16)),
    tells_apart: bool = True,
) -> Client:
    searcher = Searcher(opening(), load)

    def ask(text: str) -> tuple[str, str, float]:
        answer = searcher.search([text], 3)
        best = answer.hits[0][0]
        return answer.live.model, best.id, best.score

    return Client(ask, tells_apart)


def _through_view(server: Server, address: str) -> Client:
    """A search in plain SQL, as docs/targets.md shows it: the model is a condition of the statement that searches."""
    view = sql.Identifier(*address.rpartition("#")[2].split("."))
    reader = psycopg.connect(server.url, autocommit=True)
    serving = sql.SQL("SELECT model FROM {} LIMIT 1").format(view)
    nearest = sql.SQL(
        "SELECT id, 1 - (embedding <=> %(query)s::vector) FROM {} WHERE model = %(model)s "
        "ORDER BY embedding <=> %(query)s::vector LIMIT 3"
    ).format(view)

    def ask(text: str) -> tuple[str, str, float]:
        while True:
            (model,) = reader.execute(serving).fetchone() or ("",)
            query = str(Rotated(int(model, 16))([text])[0].tolist())
            best = reader.execute(nearest, {"query": query, "model": model}).fetchone()
            if best is not None:
                return str(model), *best

    return Client(ask)


def test_ten_promotions_under_load_fail_no_query_and_mix_no_models(
    opening: Opening, request: pytest.FixtureRequest
) -> None:
    """Also where a promotion leaves the index as it is, and where an index from before the last one is deleted."""
    target = opening()
    promoted(target, Rotated(0))
    clients = [_through_searcher(opening) for _ in range(CLIENTS)]
    if not target.address.startswith("lancedb"):
        clients.append(_through_view(request.getfixturevalue("server"), target.address))
    with _asking(clients) as seen:
        for number in range(1, PROMOTIONS + 1):
            live = promoted(target, Rotated(number))
            for old in target.served()[2:]:
                target.drop(old.index.name)
            seen(live.model)

    assert [client.failed for client in clients] == [[]] * len(clients)
    assert [client.mixed for client in clients] == [[]] * len(clients)
    for client in clients:
        assert list(dict.fromkeys(client.seen)) == [Rotated(number).version for number in range(PROMOTIONS + 1)]


ARCHITECTURES: tuple[tiny_models.Architecture, ...] = (
    "bert",
    "roberta",
    "distilbert",
    "mpnet",
    "electra",
    "modernbert",
)


@pytest.mark.slow
def test_ten_promotions_of_the_registry_under_load(opening: Opening, tmp_path: Path) -> None:
    """The same with what makes the vectors: models that are published, promoted, pulled and loaded, a reindex each."""
    store = memory_store()
    rows = [f'{{"id": "d{number}", "text": "document {number}"}}' for number in range(DOCUMENTS)]
    store.put("documents/a.jsonl", "\n".join(rows).encode())
    kinds = itertools.product(("mean", "cls"), ARCHITECTURES)
    folders = [tiny_models.save(tmp_path / f"{one}-{two}", two, one) for one, two in kinds][: PROMOTIONS + 1]
    target, work = opening(), tmp_path / "work"

    def promote(folder: Path) -> str:
        version = registry.publish(store, folder, describe(folder))
        now = registry.read_production(store)
        etag = now.etag if now else None
        registry.promote(store, version, etag, run_id=version, who="night", reason="better", scores={})
        serving = index.find_serving(store, work, str(folders[0]))
        assert index.follow(target, serving) is None
        name = index.embed(store, serving, work, workers=0).index
        index.load(store, target, name)
        assert index.switch(store, target, name, serving, index.Rule(), work) is not None
        return version

    versions = [promote(folders[0])]
    clients = [
        _through_searcher(opening, query_encoders(store, tmp_path / f"client {n}", "none"), tells_apart=False)
        for n in range(CLIENTS)
    ]
    with _asking(clients) as seen:
        for folder in folders[1:]:
            versions.append(promote(folder))
            seen(versions[-1])
    for client in clients:
        assert (client.failed, client.mixed, list(dict.fromkeys(client.seen))) == ([], [], versions)

    # a mixed query would have been noticed
    texts = [f"document {number}" for number in range(DOCUMENTS)]
    vectors = [query_encoders(store, work, "none")(version)(texts) for version in versions]
    for one, two in itertools.pairwise(vectors):
        assert (one @ two.T).max() < 0.9


def test_a_mixed_query_would_have_been_noticed(opening: Opening) -> None:
    """The check of the test above can fail: under another model's vectors no text is near itself."""
    target = opening()
    promoted(target, Rotated(0))
    promoted(target, Rotated(2))
    texts = [f"document {number}" for number in range(20)]
    found = target.search("i2", Rotated(0)(texts), 1)
    assert max(hits[0].score for hits in found) < 0.9


def test_an_index_that_is_deleted_between_record_and_search_is_asked_for_again(opening: Opening) -> None:
    """A query whose index is gone when it gets there is encoded again, with what serves then."""
    target = opening()
    promoted(target, Rotated(0))

    def load(version: str) -> Rotated:
        """Takes so long that two promotions happen meanwhile."""
        if version == Rotated(0).version:
            promoted(target, Rotated(1))
            target.drop("i0")
        return Rotated(int(version, 16))

    answer = Searcher(opening(), load).search(["document 7"], 1)
    assert (answer.live.model, answer.hits[0][0].id) == (Rotated(1).version, "d7")


def test_the_former_model_answers_while_the_new_one_is_loaded(opening: Opening) -> None:
    """A promotion costs no query a wait: the former index is searched by the former model until then."""
    target, loaded = opening(), threading.Event()

    def load(version: str) -> Rotated:
        """The second model takes its time."""
        if version == Rotated(1).version:
            assert loaded.wait(SECONDS)
        return Rotated(int(version, 16))

    searcher = Searcher(opening(), load)
    promoted(target, Rotated(0))
    searcher.search(["document 3"], 1)
    promoted(target, Rotated(1))
    for _ in range(3):
        answer = searcher.search(["document 3"], 1)
        assert (answer.live.model, answer.hits[0][0].id) == (Rotated(0).version, "d3")
    loaded.set()
    answers = (searcher.search(["document 3"], 1) for _ in range(MOST_QUERIES))
    new = next(answer for answer in answers if answer.live.model == Rotated(1).version)
    assert new.hits[0][0].id == "d3"


def test_a_model_that_cannot_be_loaded_fails_no_query(
    opening: Opening, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The store is away when a promotion comes: searches go on, the log says why, and the next attempt succeeds."""
    monkeypatch.setattr("tasks.index.client._PAUSE_SECONDS", 0.0)
    target, failures = opening(), iter([OSError("the store is away")])

    def load(version: str) -> Rotated:
        if version == Rotated(1).version and (failure := next(failures, None)):
            raise failure
        return Rotated(int(version, 16))

    searcher = Searcher(opening(), load)
    promoted(target, Rotated(0))
    searcher.search(["document 3"], 1)
    promoted(target, Rotated(1))
    answers = (searcher.search(["document 3"], 1) for _ in range(MOST_QUERIES))
    seen = [answer.live.model for answer in itertools.takewhile(lambda a: a.live.model == Rotated(0).version, answers)]
    assert seen
    assert "the store is away" in caplog.text
    assert "which serves, cannot be loaded: the former one answers" in caplog.text


def test_a_search_before_the_first_index_says_what_to_run(opening: Opening) -> None:
    """An empty target is told from one that finds nothing."""
    with pytest.raises(TargetError, match=r"has no index yet: run `ratchet reindex`"):
        Searcher(opening(), lambda _: Rotated(0)).search(["anything"])


# --- building ------------------------------------------------------------------------------------------------


def test_a_shard_is_loaded_once_however_often_it_is_sent(opening: Opening) -> None:
    """What a second run sends again is left as it is."""
    target, model = opening(), Rotated(3)
    expected = built(target, model)
    assert built(opening(), model) == expected == target.contents("i3")
    assert target.loaded("i3") == {"a", "b"}
    assert target.indexes() == ["i3"]
    assert target.live() is None


def test_hits_come_back_as_they_were_loaded_whatever_they_hold(opening: Opening) -> None:
    """Quotes, SQL, U+0000, other scripts: values are parameters, and never parts of a statement."""
    target, model = opening(), Rotated(0)
    texts = ["'; DROP TABLE x; -- 1", "nul \0 2", "\u202edrow \U0001f600 3"]
    metadata = [{"key'": ["'\"", None, 1.5]}, {"nul\0": {"deep": "\0"}}, {}]
    target.prepare(model.index)
    target.load("i0", "a'); --", Rows(texts, texts, metadata, model(texts)))
    target.build("i0")
    hits = [found[0] for found in target.search("i0", model(texts), 1)]
    stored = [text.replace("\0", "\ufffd") for text in texts]
    assert [hit.text.replace("\0", "\ufffd") for hit in hits] == [hit.id.replace("\0", "\ufffd") for hit in hits]
    assert [hit.text.replace("\0", "\ufffd") for hit in hits] == stored
    assert hits[0].metadata == metadata[0]
    assert hits[0].score == pytest.approx(1.0, abs=1e-5)
    assert target.contents("i0") == contents_of(texts, texts, model(texts))


def test_an_index_takes_no_vectors_of_another_dimension(opening: Opening) -> None:
    """Another dimension is refused, and nothing of it is stored."""
    target = opening()
    live = promoted(target, Rotated(0))
    with pytest.raises(TargetError, match=r"has vectors of 48 dimensions, not 16: somebody else made it"):
        target.prepare(replace(live.index, dimension=16))
    target.prepare(Rotated(2).index)
    with pytest.raises(TargetError, match=r"vectors of shape \(5, 64\) do not fit: expected \(5, 48\)"):
        target.load("i2", "a", Rotated(1).rows(range(5)))
    assert target.loaded("i2") == set()
    assert target.live() == live


def test_two_documents_with_one_id_are_refused(opening: Opening) -> None:
    """Within a shard and across shards; nothing of the shard is stored."""
    target, rows = opening(), Rotated(0).rows(range(2))
    target.prepare(Rotated(0).index)
    with pytest.raises(TargetError, match="ids must be unique"):
        target.load("i0", "a", replace(rows, ids=["same", "same"]))
    target.load("i0", "a", rows)
    with pytest.raises(TargetError, match="ids must be unique"):
        target.load("i0", "b", replace(rows, ids=["new", "d1"]))
    assert target.loaded("i0") == {"a"}
    assert target.contents("i0").count == 2


def test_an_index_that_served_is_never_written_again(opening: Opening) -> None:
    """Blue stays as it was verified, so that a rollback finds it."""
    target = opening()
    promoted(target, Rotated(0))
    promoted(target, Rotated(1))
    with pytest.raises(TargetError, match="has served"):
        target.load("i0", "c", Rotated(0).rows(range(500, 501)))


@pytest.mark.parametrize("name", ["", "a b", "a;b", 'a"', "A", "_switches", "../x", "x" * 33])
def test_a_name_that_is_not_an_identifier_is_refused(name: str) -> None:
    """Names become parts of names of tables and folders."""
    with pytest.raises(TargetError, match="is not a valid index name"):
        Index(name, "documents", 8)


# --- switching -----------------------------------------------------------------------------------------------


def test_a_switch_follows_what_it_was_meant_to_follow(opening: Opening) -> None:
    """A switch under a stale condition changes nothing, and one that was made already is made."""
    target = opening()
    first = promoted(target, Rotated(0))
    second = Live(Rotated(1).index, Rotated(1).version, built(target, Rotated(1)), 1)
    with pytest.raises(SwitchedError, match=r"now index i0 serves"):
        target.switch(second, None)
    assert target.live() == first
    target.switch(second, first)
    target.switch(second, first)  # a second run after a crash
    with pytest.raises(SwitchedError, match="now index i1 serves"):
        target.switch(replace(first, promotion=2), first)
    assert opening().live() == second


def test_two_that_switch_at_once_have_one_winner(opening: Opening) -> None:
    """The condition holds under a race."""
    target = opening()
    promoted(target, Rotated(0))
    blue = target.live()
    both = [Live(model.index, model.version, built(target, model), 1) for model in (Rotated(1), Rotated(2))]
    lost: list[Live] = []
    start = threading.Barrier(2)

    def switch(live: Live, own: Target) -> None:
        start.wait(SECONDS)
        try:
            own.switch(live, blue)
        except SwitchedError:
            lost.append(live)

    threads = [threading.Thread(target=switch, args=(live, opening())) for live in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(lost) == 1
    assert target.live() in both
    assert target.live() not in lost


def test_a_rollback_switches_back_to_the_index_that_was_kept(opening: Opening) -> None:
    """The former index serves again as it was, and the left one stays searchable."""
    target = opening()
    first, second = promoted(target, Rotated(0)), promoted(target, Rotated(1))
    assert target.served() == [second, first]
    back = replace(target.served()[1], promotion=2)
    target.switch(back, second)
    assert target.live() == back
    assert target.search("i0", Rotated(0)(["document 9"]), 1)[0][0].id == "d9"
    assert target.search("i1", Rotated(1)(["document 9"]), 1)[0][0].id == "d9"


def test_one_index_serves_another_model_whose_documents_are_the_same(opening: Opening) -> None:
    """A promotion of the query side alone changes the model of the record, and no document."""
    target = opening()
    first = promoted(target, Rotated(0))
    query_side = replace(first, model=Rotated(7).version, promotion=1)
    target.switch(query_side, first)
    assert target.live() == query_side
    assert target.indexes() == ["i0"]


def test_what_serves_is_not_deleted_and_what_was_deleted_may_come_back(opening: Opening) -> None:
    """Blue cannot be deleted; green can, twice, and be built again under its name."""
    target = opening()
    promoted(target, Rotated(0))
    promoted(target, Rotated(1))
    with pytest.raises(TargetError, match="serves: switch to another before it is deleted"):
        target.drop("i1")
    target.drop("i0")
    target.drop("i0")
    assert [live.index.name for live in target.served()] == ["i1"]
    with pytest.raises(GoneError):
        target.search("i0", Rotated(0)(["document 1"]), 1)
    with pytest.raises(GoneError):
        target.switch(Live(Rotated(0).index, "x", Contents(0, "0"), 1), target.live())
    promoted(target, Rotated(0))
    assert target.search("i0", Rotated(0)(["document 1"]), 1)[0][0].id == "d1"


def _damage(target: Target, name: str, *, gone: bool) -> None:
    """Delete a document of an index, or all of it, behind the target's back."""
    kind, _, place = target.address.partition(":")
    if kind == "lancedb":
        shutil.rmtree(Path(place) / f"{name}.lance") if gone else lancedb.connect(place).open_table(name).delete(
            "id = 'd1'"
        )
        return
    url, _, view = target.address.partition("#")
    table = sql.Identifier(*f"{view}_{name}".split("."))
    statement = "DROP TABLE {} CASCADE" if gone else "DELETE FROM {} WHERE id = 'd1'"
    with psycopg.connect(url) as admin:
        admin.execute(sql.SQL(statement).format(table))


@pytest.mark.parametrize("gone", [False, True], ids=["damaged", "gone"])
@pytest.mark.parametrize("serves", [False, True], ids=["kept", "serves"])
def test_an_index_that_was_damaged_or_deleted_by_hand_is_made_anew(
    opening: Opening, tmp_path: Path, *, serves: bool, gone: bool
) -> None:
    """The one that serves, by the next reindex; the kept one, when a rollback needs it. Until then blue stays."""
    store, target = filled(memory_store()), opening()
    first, second = (publish(store, tiny_models.save(tmp_path / f"{n}", max_length=n)) for n in (8, 16))
    promote(store, first)
    blue = follow_production(store, target, tmp_path).live
    if not serves:
        promote(store, second)
        green = follow_production(store, target, tmp_path).live
        registry.rollback(store, run_id="back", who="w", reason="r")
    _damage(target, blue.index.name, gone=gone)
    if not serves:
        assert index.follow(target, index.find_serving(store, tmp_path)) is None
        assert target.live() == green
    found = follow_production(store, target, tmp_path).live
    assert (found.model, found.contents) == (first, blue.contents)
    assert target.contents(found.index.name) == blue.contents
    assert (found.index == blue.index) is not serves
    again = follow_production(store, target, tmp_path).live
    assert again == found == target.live()


# --- verification --------------------------------------------------------------------------------------------


def test_an_index_that_lacks_or_changes_anything_does_not_verify(opening: Opening) -> None:
    """Counts and checksums are compared with what was meant to be loaded."""
    target, model = opening(), Rotated(0)
    expected, queries = built(target, model), model([f"query {number}" for number in range(10)])
    assert verify(target, model.index, expected, queries).recall == 1.0
    with pytest.raises(VerificationError, match="holds 120 documents, not 121"):
        verify(target, model.index, replace(expected, count=121), queries)
    assert target.indexes() == []  # so that the next run does not take it for loaded
    built(target, model)
    with pytest.raises(VerificationError, match="there is no query"):
        verify(target, model.index, expected, queries[:0])
    live = promoted(target, model)
    with pytest.raises(VerificationError, match="other documents or vectors"):
        verify(target, model.index, replace(expected, checksum="0" * 16), queries)
    assert target.live() == live


def test_documents_that_no_query_can_find_do_not_fail_an_index(opening: Opening) -> None:
    """Without any known word static embeddings give a vector of zeros, which is near to nothing."""
    target, model = opening(), Rotated(0)
    target.prepare(model.index)
    rows = model.rows(range(5))
    rows.vectors[3:] = 0
    target.load(model.index.name, "a", rows)
    target.build(model.index.name)
    expected = contents_of(rows.ids, rows.texts, rows.vectors)
    assert verify(target, model.index, expected, model(["query 1", "query 2"])).recall == 1.0
    [found, nothing] = target.search(model.index.name, np.stack([rows.vectors[0], rows.vectors[3]]), 5)
    assert ([hit.id for hit in found][:1], len(found), nothing) == (["d0"], 3, [])


def test_a_checksum_changes_with_any_id_text_or_vector_and_not_with_the_order() -> None:
    """The sum of hashes: order does not matter, everything else does."""
    vectors = np.eye(3, dtype=np.float32)
    whole = contents_of(["a", "b", "c"], ["x", "y", "z"], vectors)
    assert whole == contents_of(["c", "a", "b"], ["z", "x", "y"], vectors[[2, 0, 1]])
    assert whole == contents_of(["a"], ["x"], vectors[:1]) + contents_of(["b", "c"], ["y", "z"], vectors[1:])
    others = [
        contents_of(["ax", "b", "c"], ["", "y", "z"], vectors),
        contents_of(["a", "b", "c"], ["x", "z", "y"], vectors),
        contents_of(["a", "b", "c"], ["x", "y", "z"], vectors[::-1]),
        contents_of(["a", "b", "c"], ["x", "y", "z"], np.nextafter(vectors, np.float32(2))),
    ]
    assert len({one.checksum for one in [whole, *others]}) == 5


# --- LanceDB -------------------------------------------------------------------------------------------------


def _many(count: int, dimension: int) -> Rows:
    vectors = np.random.default_rng(0).normal(size=(count, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Rows([str(number) for number in range(count)], ["x"] * count, [{}] * count, vectors)


def test_a_full_disk_leaves_what_serves_and_the_next_try_goes_on(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the system refuses the write in the same way."""
    target = open_target(f"lancedb:{tmp_path / 'index'}", store="s3://bucket", work=tmp_path)
    live = promoted(target, Rotated(0))
    index, rows = Index("big", "documents", 64), _many(2_000, 64)
    target.prepare(index)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(TargetError, match="make room on the disk and start again"):
            target.load("big", "a", rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.loaded("big") == set()
    assert target.live() == live
    target.load("big", "a", rows)
    assert target.contents("big").count == 2_000


def test_a_table_that_was_cut_off_while_it_was_created_is_created_again(tmp_path: Path) -> None:
    """A folder without any version of the table is what a process leaves that is killed at this point."""
    target = open_target(f"lancedb:{tmp_path}", store="s3://bucket", work=tmp_path)
    (tmp_path / "i0.lance" / "data").mkdir(parents=True)
    promoted(target, Rotated(0))
    assert target.search("i0", Rotated(0)(["document 3"]), 1)[0][0].id == "d3"


def test_the_structure_of_a_large_lancedb_table_finds_what_it_must(tmp_path: Path, monkeypatch: Any) -> None:
    """Above the limit a structure is built, and finds at least 95% of the nearest."""
    monkeypatch.setattr("tasks.index.targets.lance._EXACT_ROWS", 1_000)
    target, rows = open_target(f"lancedb:{tmp_path}", store="s3://bucket", work=tmp_path), _many(3_000, 32)
    index = Index("big", "documents", 32)
    target.prepare(index)
    target.load("big", "a", rows)
    target.build("big")
    queries = rows.vectors[:50] + np.float32(0.1) * rows.vectors[50:100]
    verified = verify(target, index, contents_of(rows.ids, rows.texts, rows.vectors), queries)
    assert (verified.recall, verified.queries) == (pytest.approx(1.0, abs=0.05), 50)


def test_a_damaged_record_of_what_serves_is_not_taken_for_nothing(tmp_path: Path) -> None:
    """Damage is an error, and is not written over."""
    target = open_target(f"lancedb:{tmp_path}", store="s3://bucket", work=tmp_path)
    promoted(target, Rotated(0))
    (tmp_path / "served.json").write_text("[{]")
    with pytest.raises(TargetError, match="cannot be read as what serves"):
        target.live()
    with pytest.raises(TargetError, match="cannot be read as what serves"):
        promoted(target, Rotated(1))


def test_a_writer_waits_its_turn_and_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run holds the lock, or it cannot be taken: an error with what to do, and what serves is searched."""
    monkeypatch.setattr("tasks.index.targets.lance._SECONDS", 0.1)
    target = open_target(f"lancedb:{tmp_path}", store="s3://bucket", work=tmp_path)
    live = promoted(target, Rotated(0))
    with FileLock(tmp_path / "served.lock"), pytest.raises(TargetError, match="another run writes to it: try again"):
        target.drop("i1")
    (tmp_path / "served.lock").unlink()
    (tmp_path / "served.lock").mkdir()
    with pytest.raises(TargetError, match="cannot be locked"):
        target.switch(replace(live, promotion=1), live)
    assert target.live() == live
    assert target.search("i0", Rotated(0)(["document 1"]), 1)[0][0].id == "d1"


def test_tables_of_somebody_else_are_left_alone(tmp_path: Path) -> None:
    """A folder in which a team has its own tables: no index, and not deleted with those that nobody needs."""
    lancedb.connect(str(tmp_path)).create_table("papers", [{"id": 1, "vector": [0.0, 1.0]}])
    store = filled(memory_store())
    target = open_target(f"lancedb:{tmp_path}", store=store.url, work=tmp_path)
    for number in (8, 16, 24):
        promote(store, publish(store, tiny_models.save(tmp_path / f"{number}", max_length=number)))
        follow_production(store, target, tmp_path)
    assert len(target.indexes()) == 2
    target.drop("papers")
    assert lancedb.connect(str(tmp_path)).open_table("papers").count_rows() == 1


def test_a_target_is_one_stores(opening: Opening, tmp_path: Path) -> None:
    """Another store's reindex would switch its documents away: refused, whatever their models."""
    base, target = tiny_models.save(tmp_path / "base"), opening()
    first, second = (filled(Store(f"s3://memory/{name}", memory_store()._client)) for name in "ab")
    serving = index.find_serving(first, tmp_path, str(base))
    name = index.embed(first, serving, tmp_path, workers=0).index
    index.load(first, target, name)
    done = index.switch(first, target, name, serving, index.Rule(), tmp_path)
    assert done is not None
    other = index.find_serving(second, tmp_path, str(base))
    with pytest.raises(TargetError, match=r"serves the documents of s3://memory/a, not of s3://memory/b"):
        index.follow(target, other)
    index.embed(second, other, tmp_path, workers=0)
    with pytest.raises(TargetError, match="give each store a target of its own"):
        index.switch(second, target, name, other, index.Rule(), tmp_path)
    assert target.live() == done.live


def test_each_store_has_a_folder_of_its_own_by_default(tmp_path: Path) -> None:
    """Two stores on one machine do not share an index."""
    first, second = (open_target(None, store=f"s3://bucket/{name}", work=tmp_path) for name in "ab")
    promoted(first, Rotated(0))
    assert second.live() is None
    assert first.address.startswith(f"lancedb:{tmp_path / 'index'}")


# --- pgvector ------------------------------------------------------------------------------------------------


def _open(address: str, password: str | None = None) -> Target:
    return open_target(address, store="s3://bucket", work=Path("unused"), password=password)


def test_the_view_reads_the_structure_of_the_index_that_serves(server: Server) -> None:
    """HNSW is used through the view, and another model's condition ends a search before it starts."""
    target = _open(server.address())
    promoted(target, Rotated(0))
    view = sql.Identifier(*target.address.rpartition("#")[2].split("."))
    plan = sql.SQL("EXPLAIN SELECT id FROM {} WHERE model = {} ORDER BY embedding <=> {}::vector LIMIT 3")
    with psycopg.connect(server.url) as reader:
        reader.execute("SET enable_seqscan = off")
        query = str(Rotated(0)(["document 1"])[0].tolist())

        def explained(version: str) -> str:
            return str(reader.execute(plan.format(view, sql.Literal(version), sql.Literal(query))).fetchall())

        assert "_embedding_idx" in explained(Rotated(0).version)
        assert "One-Time Filter: false" in explained(Rotated(1).version)


def test_who_may_read_the_view_may_search_every_index_after_a_switch(server: Server) -> None:
    """Rights on the view are handed on to the tables of the index, and to nothing else."""
    address = server.address()
    target = _open(address)
    promoted(target, Rotated(0))
    with server.superuser as admin:
        admin.execute(sql.SQL("CREATE ROLE search LOGIN PASSWORD {}").format(sql.Literal(server.running.password)))
        admin.execute("GRANT USAGE ON SCHEMA ratchet TO search")
        admin.execute(
            sql.SQL("GRANT SELECT ON {} TO search").format(sql.Identifier(*address.rpartition("#")[2].split(".")))
        )
    promoted(target, Rotated(1))
    reader = _open(address.replace("prefect@", "search@"))
    answer = Searcher(reader, lambda version: Rotated(int(version, 16))).search(["document 5"], 1)
    assert answer.hits[0][0].id == "d5"
    with pytest.raises(TargetError, match=r"permission denied.*docs/targets.md"):
        reader.prepare(Rotated(2).index)


def test_an_index_whose_structure_misses_documents_does_not_verify(server: Server) -> None:
    """A structure that was built with too few links is caught by its recall."""
    target, rows, index = _open(server.address()), _many(3_000, 32), Index("big", "documents", 32)
    target.prepare(index)
    target.load("big", "a", rows)
    with psycopg.connect(server.url) as admin:
        name = sql.Identifier("ratchet", f"{target.address.rpartition('.')[2]}_big")
        statement = "CREATE INDEX ON {} USING hnsw (embedding vector_cosine_ops) WITH (m = 2, ef_construction = 4)"
        admin.execute(sql.SQL(statement).format(name))
    target.build("big")
    with pytest.raises(VerificationError, match=r"of the 10 nearest documents, less than 95.0%"):
        verify(target, index, contents_of(rows.ids, rows.texts, rows.vectors), rows.vectors[:50] + rows.vectors[50:100])
    assert target.live() is None


def test_a_full_server_leaves_what_serves_and_the_next_try_goes_on(server: Server) -> None:
    """The server refuses in the middle of a shard: nothing of it stays, and blue serves on."""
    target = _open(server.address())
    live = promoted(target, Rotated(0))
    target.prepare(Rotated(1).index)
    name = sql.Identifier("ratchet", f"{target.address.rpartition('.')[2]}_i1")
    with psycopg.connect(server.url) as admin:
        admin.execute(
            "CREATE FUNCTION ratchet.full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.id = 'd30' THEN "
            "RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END IF; "
            "RETURN NEW; END $$"
        )
        admin.execute(
            sql.SQL(
                "CREATE TRIGGER full_disk BEFORE INSERT ON {} FOR EACH ROW EXECUTE FUNCTION ratchet.full_disk()"
            ).format(name)
        )
    with pytest.raises(TargetError, match=r"cannot load a shard: could not extend file.*make room"):
        target.load("i1", "a", Rotated(1).rows(range(60)))
    assert target.loaded("i1") == set()
    assert target.live() == live
    with psycopg.connect(server.url) as admin:
        admin.execute(sql.SQL("DROP TRIGGER full_disk ON {}").format(name))
    promoted(target, Rotated(1))
    assert target.search("i0", Rotated(0)(["document 1"]), 1)[0][0].id == "d1"


def test_a_connection_that_broke_is_made_again(server: Server) -> None:
    """A restart of the server costs no query."""
    target = _open(server.address())
    live = promoted(target, Rotated(0))
    with server.superuser as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ratchet'")
    assert target.live() == live


def test_a_server_that_is_away_is_named_with_what_to_do(server: Server) -> None:
    """Nobody listens there; and there is no such database."""
    with pytest.raises(TargetError, match=r"prefect#ratchet.documents cannot be reached: .*is the server running"):
        _open("postgresql://prefect@127.0.0.1:1/prefect")
    with pytest.raises(TargetError, match="create the database"):
        _open(server.database("nowhere"))


def test_a_wrong_password_is_told_without_it(server: Server) -> None:
    """The message names where a password comes from."""
    with pytest.raises(TargetError, match="PGPASSWORD or a pgpass file") as caught:
        _open(server.url, password="not-the-password")
    assert "not-the-password" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://user:s3cret@host/db",
        "postgresql://user@host/db?password=s3cret",
        "postgresql://user:s3cret@host:notaport/db",
        "postgres://user@host/db?sslmode=require&sslpassword=s3cret",
        "mysql://user:s3cret@host/db",
        "lancedb:s3://s3cret/prefix",
        "s3cret",
    ],
)
def test_an_address_with_a_secret_or_of_another_kind_is_refused_and_not_repeated(address: str) -> None:
    """Addresses are parameters of runs, which everybody sees; so are messages."""
    with pytest.raises(TargetError) as caught:
        check_address(address)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("view", ["documents", "a.b.c", 'a."b', "a.B", "a." + "b" * 31, "1.b", ".b", "a."])
def test_an_address_that_names_no_valid_view_is_refused(view: str) -> None:
    """What follows # is a schema and a view, as plain identifiers."""
    with pytest.raises(TargetError, match=r"write schema.view"):
        check_address(f"postgresql://user@host/db#{view}")


def test_a_database_without_the_extension_or_with_an_old_one_says_what_to_do(server: Server) -> None:
    """Both are found when the target is opened, before anything is encoded."""
    with server.superuser as admin:
        admin.execute("CREATE DATABASE bare OWNER prefect")
    bare = server.database("bare")
    with pytest.raises(TargetError, match=r"no extension pgvector.*CREATE EXTENSION vector"):
        _open(bare)
    with psycopg.connect(
        bare.replace("prefect@", "postgres@"), password=server.running.password, autocommit=True
    ) as admin:
        admin.execute("CREATE EXTENSION vector")
        admin.execute("UPDATE pg_extension SET extversion = '0.4.4' WHERE extname = 'vector'")
    with pytest.raises(TargetError, match=r"has pgvector 0.4.4, which has no HNSW: install 0.5 or later"):
        _open(bare)


def test_a_name_that_is_somebody_elses_is_refused_before_anything_is_encoded(server: Server) -> None:
    """A table or a view of the team has the view's name, or the name of an index: it stays as it is."""
    with psycopg.connect(server.url) as admin:
        admin.execute("CREATE SCHEMA mine")
        admin.execute("CREATE TABLE mine.documents AS SELECT 1 AS id")
        admin.execute("CREATE VIEW mine.view AS SELECT 1 AS id")
        admin.execute("CREATE TABLE mine.own_i0 (id text)")
    for name in ("documents", "view"):
        with pytest.raises(TargetError, match=rf"mine.{name} is there already, and was not made by Ratchet"):
            _open(f"{server.url}#mine.{name}").live()
    with pytest.raises(TargetError, match=r"mine.own_i0 was not made by Ratchet"):
        promoted(_open(f"{server.url}#mine.own"), Rotated(0))
    with psycopg.connect(server.url) as admin:
        assert admin.execute("SELECT id FROM mine.documents UNION ALL SELECT id FROM mine.view").fetchall() == [
            (1,),
            (1,),
        ]
        assert admin.execute("SELECT id FROM mine.own_i0").fetchall() == []


def test_a_database_that_is_not_in_utf_8_takes_what_it_can_hold(server: Server) -> None:
    """What it cannot is refused with what to do."""
    with server.superuser as admin:
        admin.execute(
            "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C' OWNER prefect"
        )
    latin = server.database("latin")
    with psycopg.connect(latin.replace("prefect@", "postgres@"), autocommit=True) as admin:
        admin.execute("CREATE EXTENSION vector")
    target, model = _open(latin), Rotated(0)
    target.prepare(model.index)
    target.load("i0", "a", replace(model.rows(range(1)), ids=["é"]))
    assert target.search("i0", model(["document 0"]), 1)[0][0].id == "é"
    with pytest.raises(TargetError, match=r"no equivalent in encoding.*the database is not in UTF-8"):
        target.load("i0", "b", replace(model.rows(range(1, 2)), ids=["日"]))


def test_more_dimensions_than_pgvector_indexes_are_refused(server: Server) -> None:
    """HNSW of pgvector ends at 2,000."""
    with pytest.raises(TargetError, match="at most 2000 dimensions, not 2048"):
        _open(server.address()).prepare(Index("wide", "documents", 2_048))


def test_a_switch_does_not_wait_for_ever_for_a_query(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that has read the view and stays open blocks its replacement; then blue serves on."""
    monkeypatch.setattr(connection, "_LOCK_SECONDS", 1)
    target = _open(server.address())
    live = promoted(target, Rotated(0))
    view = sql.Identifier(*target.address.rpartition("#")[2].split("."))
    with psycopg.connect(server.url) as slow:
        slow.execute(sql.SQL("SELECT id FROM {} LIMIT 1").format(view))  # its transaction stays open
        with pytest.raises(TargetError, match="a query or a session holds the view"):
            promoted(target, Rotated(1))
    assert target.live() == live
    promoted(target, Rotated(1))
