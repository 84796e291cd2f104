"""Guard sets: how folders in BEIR layout are read, what is refused with its line, and what both models score there."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tasks import intake, runs
from tasks.config import Gate, Limits
from tasks.encoding import Progress, Role, VectorError
from tasks.parsing.beir import BeirSet, LayoutError, read_set
from tasks.records import GuardScored, Moved, Scored, Settings, SideScored
from tasks.runs import Run
from tasks.scoring import guards
from tasks.storage import Store

CORPUS = b'{"_id": "d1", "title": "Pumps", "text": "close the valve"}\n{"_id": "d2", "title": "", "text": "seals"}\n'
QUERIES = b'{"_id": "q1", "text": "how to repair a pump"}\n{"_id": "q2", "text": "not judged"}\n'
QRELS = b"query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n"
SOUND = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/test.tsv": QRELS}
WANTED = BeirSet(
    {"q1": "how to repair a pump"}, {"d1": "Pumps close the valve", "d2": "seals"},
    {"q1": {"d1": 2.0, "d2": 0.0}},
)  # fmt: skip


def _read(files: Mapping[str, bytes], limits: Limits | None = None) -> BeirSet:
    def reader(body: bytes) -> Callable[[], bytes]:
        return lambda: body

    return read_set({name: reader(body) for name, body in files.items()}, limits or Limits())


def _parquet(*rows: Mapping[str, Any]) -> bytes:
    sink = BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue()


NANO = {
    "corpus/train-00000-of-00002.parquet": _parquet({"_id": "d1", "text": "Pumps close the valve"}),
    "corpus/train-00001-of-00002.parquet": _parquet({"_id": "d2", "text": "seals"}),
    "queries/train-00000-of-00001.parquet": _parquet({"_id": "q1", "text": "how to repair a pump"}),
    "qrels/train-00000-of-00001.parquet": _parquet({"query-id": "q1", "corpus-id": "d1"}),
}
"""As the hub serves NanoBEIR: a folder of Parquet for each part, qrels without a score."""


# --- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        SOUND,
        {f"{name}.gz": gzip.compress(body) for name, body in SOUND.items()},
        SOUND | {"README.md": b"# About", ".gitattributes": b"", "qrels/train.tsv": b"broken", "qrels/dev.tsv": b""},
        {**SOUND, "qrels/test.tsv": QRELS.replace(b"\n", b"\r\n")},
        {**SOUND, "qrels/test.tsv": QRELS.partition(b"\n")[2]},
        {**SOUND, "qrels/test.tsv": b"q1\t0\td1\t2\nq1\t0\td2\t0\n"},
        {**SOUND, "qrels/test.tsv": b"q1 Q0 d1 2\nq1 Q0 d2 0\n\n"},
        {**SOUND, "qrels/test.tsv": b"corpus-id\tquery-id\tscore\nd1\tq1\t2\nd2\tq1\t0\n"},
        {**SOUND, "corpus.jsonl": b"\xef\xbb\xbf" + CORPUS},
        {**SOUND, "corpus.jsonl": CORPUS.replace(b"_id", b"id"), "queries.jsonl": QUERIES.replace(b"_id", b"id")},
        {**SOUND, "corpus.jsonl": CORPUS.replace(b'"", "text": "seals"', b'"seals", "text": null')},
        {
            **{name: body for name, body in SOUND.items() if name != "qrels/test.tsv"},
            "qrels/test.jsonl": b'{"query-id": "q1", "corpus-id": "d1", "score": 2}\n'
            b'{"query-id": "q1", "corpus-id": "d2", "score": 0}\n',
        },
    ],
    ids=[
        "plain",
        "gzip",
        "others",
        "CRLF",
        "no header",
        "TREC",
        "TREC blanks",
        "swapped",
        "BOM",
        "id",
        "title alone",
        "JSON qrels",
    ],
)
def test_the_layouts_of_the_field_say_the_same(files: Mapping[str, bytes]) -> None:
    """Title before text, test before other qrels, with a header or without, four columns as TREC has them."""
    assert _read(files) == WANTED


def test_nanobeir_is_read_as_it_is_downloaded() -> None:
    """Parts of a split belong together, and a judgement without a score says relevant."""
    found = _read(NANO)
    assert found.documents == WANTED.documents
    assert found.scores == {"q1": {"d1": 1.0}}
    both = _read(NANO | {"qrels/test.tsv": b"q1\td2\t1\n"})
    assert both.scores == {"q1": {"d2": 1.0}}, "test is preferred, whatever its format"


def test_numbers_serve_as_ids() -> None:
    """As in many exports; qrels always spell them as texts."""
    files = {
        "corpus.jsonl": b'{"_id": 7, "text": "seals"}\n{"_id": 8, "text": "valves"}',
        "queries.jsonl": b'{"_id": 1, "text": "what seals"}',
        "qrels/test.tsv": b"1\t7\t1\n",
    }
    assert _read(files).scores == {"1": {"7": 1.0}}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"corpus.jsonl": None}, "there is no corpus.jsonl"),
        ({"queries.jsonl": None}, "there is no queries.jsonl"),
        ({"qrels/test.tsv": None}, "there is no qrels/test.tsv"),
        ({"corpus.jsonl": b""}, "corpus.jsonl: empty"),
        ({"corpus.jsonl": CORPUS + b"{broken\n"}, "corpus.jsonl line 3 is not JSON"),
        ({"corpus.jsonl": CORPUS + b"[1]\n"}, "corpus.jsonl line 3 is not a JSON object"),
        ({"corpus.jsonl": CORPUS + b'{"text": "x"}\n'}, "corpus.jsonl line 3 has no _id and text"),
        ({"corpus.jsonl": CORPUS + b'{"_id": "d3", "text": 5}\n'}, "corpus.jsonl line 3 has no _id and text"),
        ({"corpus.jsonl": CORPUS + b'{"_id": "d2", "text": "x"}\n'}, "line 3 gives the _id 'd2' to another text"),
        ({"queries.jsonl": b'{"_id": "q1", "text": " "}'}, "judges 'q1', whose text is blank (queries.jsonl line 1)"),
        ({"qrels/test.tsv": QRELS + b"q1\td9\t1\n"}, "qrels/test.tsv line 4 judges 'd9', which is not in the corpus"),
        ({"qrels/test.tsv": QRELS + b"q9\td1\t0\n"}, "qrels/test.tsv line 4 judges 'q9', which is not in the queries"),
        ({"qrels/test.tsv": QRELS + b"q1\td1\n"}, "qrels/test.tsv line 4 is not query-id, corpus-id, score"),
        ({"qrels/test.tsv": QRELS + b"q1\td1\tnan\n"}, "qrels/test.tsv line 4 is not query-id, corpus-id, score"),
        ({"qrels/test.tsv": QRELS + b"q1\td1\t0\n"}, "qrels/test.tsv line 4 judges 'q1' and 'd1' once more"),
        ({"qrels/test.tsv": QRELS + b"q1\t\xff\t1\n"}, "qrels/test.tsv line 4 is not UTF-8"),
        ({"qrels/test.tsv": b"a\tb\tc\n"}, "qrels/test.tsv line 1 is not query-id, corpus-id, score"),
        ({"qrels/test.tsv": b"query-id\tcorpus-id\tscore\n"}, "qrels hold no judgement"),
        (
            {"qrels/test.tsv": None, "qrels/a.tsv": QRELS, "qrels/b.tsv": QRELS},
            "qrels/a.tsv, qrels/b.tsv none is named",
        ),
        ({"corpus.jsonl.gz": gzip.compress(CORPUS)}, "corpus.jsonl and corpus.jsonl.gz each hold the corpus"),
        ({"corpus.jsonl": None, "corpus.jsonl.gz": CORPUS}, "corpus.jsonl.gz: not gzip"),
        ({"corpus.jsonl": None, "corpus.jsonl.gz": gzip.compress(CORPUS)[:-9]}, "corpus.jsonl.gz: "),
        ({"corpus.jsonl": None, "corpus/a.parquet": b"PAR1 broken PAR1"}, "corpus/a.parquet: not readable as Parquet"),
        ({"corpus.jsonl": None, "corpus/a.parquet": _parquet({"x": 1})}, "corpus/a.parquet: has none of the columns"),
        (
            {"corpus.jsonl": None, "corpus/a.parquet": _parquet({"_id": None, "text": "x"})},
            "corpus/a.parquet row 1 has no _id",
        ),
    ],
)
def test_what_is_not_understood_is_named_with_its_line(changed: Mapping[str, bytes | None], said: str) -> None:
    """Nothing is left out in silence: what guards production must be whole."""
    files = {name: body for name, body in {**SOUND, **changed}.items() if body is not None}
    with pytest.raises(LayoutError) as error:
        _read(files)
    assert said in str(error.value)


def test_the_caps_on_uploaded_objects_hold() -> None:
    """A packed file that grows without end, a line without end, a file that is too large."""
    bomb = gzip.compress(b" " * (40 << 20))
    for name, body, limits in (
        ("corpus.jsonl.gz", bomb, Limits()),
        ("corpus.jsonl", CORPUS, Limits(max_object_bytes=len(CORPUS) - 1)),
        ("corpus.jsonl", b'{"_id": "d1", "text": "' + b"x" * 200 + b'"}', Limits(max_line_bytes=64)),
    ):
        files = {key: value for key, value in SOUND.items() if key != "corpus.jsonl"} | {name: body}
        with pytest.raises(LayoutError, match=r"corpus\.jsonl"):
            _read(files, limits)


# --- sets of a store ---------------------------------------------------------------------------------------------


def _put(store: Store, name: str, files: Mapping[str, bytes] = SOUND) -> None:
    for path, body in files.items():
        store.put(f"guard/{name}/{path}", body)


def _problem(store: Store, work: Path) -> str:
    (listed,) = guards.find(store)
    with pytest.raises(guards.GuardError) as error:
        guards.read(store, listed, Limits(), work)
    return str(error.value)


def test_texts_that_are_the_same_are_one(store: Store, tmp_path: Path) -> None:
    """As in the corpus of a night: a document or a query that is spelt otherwise, with what is relevant to both."""
    documents = [("d1", "Close the valve"), ("d2", "close  the VALVE"), ("d3", "seals")]
    queries = [("q1", "valve?"), ("q2", "Valve?"), ("q3", "nothing is relevant")]
    files = {
        "corpus.jsonl": b"\n".join(json.dumps({"_id": key, "text": text}).encode() for key, text in documents),
        "queries.jsonl": b"\n".join(json.dumps({"_id": key, "text": text}).encode() for key, text in queries),
        "qrels/test.tsv": b"q1\td1\t1\nq2\td2\t1\nq3\td3\t0\n",
    }
    _put(store, "general", files)
    (listed,) = guards.find(store)
    found = guards.read(store, listed, Limits(), tmp_path)
    assert found.documents == ["Close the valve", "seals"]
    assert found.test.queries == ["valve?"]
    assert found.test.relevant[0].tolist() == [0]
    assert found.test.excluded == 1


def test_an_unpacked_archive_is_a_set(store: Store, tmp_path: Path) -> None:
    """With the folder that the archive has inside, and what a Mac leaves beside it; two of them are no set."""
    _put(store, "scifact/scifact")
    _put(store, "scifact/__MACOSX/scifact", {"._corpus.jsonl": b"x"})
    _put(store, "__MACOSX/scifact", {"._corpus.jsonl": b"x"})
    (listed,) = guards.find(store)
    assert (listed.name, set(listed.files)) == ("scifact", set(SOUND))
    assert guards.read(store, listed, Limits(), tmp_path).test.queries == ["how to repair a pump"]
    for path, body in SOUND.items():
        place = tmp_path / "here" / "general" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(body)
    assert guards.read_folder(tmp_path / "here", Limits()).documents == ["Pumps close the valve", "seals"]
    _put(store, "scifact/another")
    assert "guard/scifact/: there is no" in _problem(store, tmp_path)


def test_a_set_is_read_once(store: Store, tmp_path: Path) -> None:
    """Kept by the ETags of its files: not read again, not even where it is gone; read anew where it changed."""
    _put(store, "general")
    (listed,) = guards.find(store)
    first = guards.read(store, listed, Limits(), tmp_path)
    store.delete([entry.key for entry in listed.files.values()])
    kept = guards.read(store, listed, Limits(), tmp_path)
    assert (kept.documents, kept.test.queries) == (first.documents, first.test.queries)
    assert [indices.tolist() for indices in kept.test.relevant] == [indices.tolist() for indices in first.test.relevant]

    (file,) = (tmp_path / "guards").glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(guards.GuardError, match="changed while it was read"):
        guards.read(store, listed, Limits(), tmp_path)
    _put(store, "general", {**SOUND, "queries.jsonl": b'{"_id": "q1", "text": "another question"}'})
    (again,) = guards.find(store)
    assert again.digest != listed.digest
    assert guards.read(store, again, Limits(), tmp_path).test.queries == ["another question"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"qrels/test.tsv": b"q1\td1\t0\n"}, "no query has a relevant document"),
        ({"qrels/test.tsv": b"q1\td1\t1\nq1\td2\t1\n"}, "every document is relevant to every query"),
        ({"corpus.jsonl": CORPUS[:40]}, "guard/general/: corpus.jsonl line 1 is not JSON"),
    ],
)
def test_a_set_that_guards_nothing_is_refused(
    store: Store, tmp_path: Path, files: Mapping[str, bytes], said: str
) -> None:
    """With the name of the set."""
    _put(store, "general", {**SOUND, **files})
    found = _problem(store, tmp_path)
    assert said in found
    assert found.startswith("guard/general/")


def test_files_without_a_set_and_folders_without_files_are_refused(store: Store, tmp_path: Path) -> None:
    """Whoever put them there meant to guard something; other files beside the sets mean nothing."""
    store.put("guard/README.md", b"# Sets")
    assert guards.find(store) == []
    store.put("guard/corpus.jsonl", CORPUS)
    assert "guard/corpus.jsonl belongs into a folder of its own" in _problem(store, tmp_path)
    store.delete(["guard/corpus.jsonl"])
    store.put("guard/general/", b"")
    assert "guard/general/: there is no" in _problem(store, tmp_path)


# --- scoring and judging -----------------------------------------------------------------------------------------


class Letters:
    """An encoder that counts letters, so that a text is nearest to itself; blind to all that hold one of `unseen`."""

    dimension = 27

    def __init__(self, unseen: str = "", fails: str = "") -> None:
        self._unseen, self._fails = unseen, fails

    def key(self, role: Role) -> str:
        """Never kept."""
        return role

    def encode(self, texts: Sequence[str], role: Role, *, on_progress: Progress | None = None) -> NDArray[np.float32]:
        """Unit vectors."""
        del role, on_progress
        vectors = np.zeros((len(texts), 27), np.float32)
        for row, text in enumerate(texts):
            if self._fails and self._fails in text:
                raise VectorError("letters", row)
            blind = any(letter in text for letter in self._unseen)
            for letter in "" if blind else text:
                vectors[row, ord(letter) % 26] += 1
            vectors[row, 26] = 0.01
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def _words(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxy"), 8)) + "z" * (i % 2) for i in range(count)]


def _set_of(words: Sequence[str]) -> dict[str, bytes]:
    """Every word is a document, and the query that it answers."""
    texts = b"\n".join(json.dumps({"_id": str(i), "text": word}).encode() for i, word in enumerate(words))
    qrels = b"".join(f"{i}\t{i}\t1\n".encode() for i in range(len(words)))
    return {"corpus.jsonl": texts, "queries.jsonl": texts, "qrels/test.tsv": qrels}


def scored_on(found: Sequence[GuardScored]) -> Scored:
    """The record of a night that scored these guard sets, and nothing else."""
    side = SideScored(version=None, fingerprint="c", scores={}, by_dimension={})
    return Scored(
        candidate=side,
        production=SideScored(version="p", fingerprint="p", scores={}, by_dimension={}),
        counts={},
        moved=Moved(),
        serving=[],
        numeric_path="fp32",
        guards=found,
    )


def _night(store: Store, work: Path, candidate: Letters, trained_on: Sequence[str] = ()) -> tuple[Run, Scored]:
    run = Run(store, "20261101T033000Z-00000000")
    sides = {"candidate": candidate, "production": Letters()}
    return run, scored_on(guards.score(run, sides, trained_on, work))


def test_a_set_that_falls_holds_and_one_that_stands_does_not(store: Store, tmp_path: Path) -> None:
    """A candidate that no longer tells words with a z apart: half of one set falls, nothing of the other."""
    words = _words(60)
    _put(store, "all", _set_of(words))
    _put(store, "plain", _set_of([word for word in words if "z" not in word]))
    run, scored = _night(store, tmp_path, Letters(unseen="z"), trained_on=[words[0].upper(), "another"])
    assert [(one.name, one.queries, one.trained) for one in scored.guards] == [("all", 60, 1), ("plain", 30, 1)]
    fallen, stands = guards.judge(run, scored, Gate())
    assert (fallen.name, fallen.verdict) == ("all", "falls")
    assert fallen.before["recall_at_10"] == 1.0
    assert fallen.after["recall_at_10"] == 0.5
    assert fallen.deltas["recall_at_10"].value == -0.5
    assert "Guard set 'all' (60 queries) falls in Recall@10 by 50.00 points, beyond chance" in fallen.reasons[0]
    assert (stands.name, stands.verdict, stands.reasons) == ("plain", "stands", [])
    assert guards.vetoes([fallen, stands]) == fallen.reasons


def test_a_set_that_cannot_be_read_or_encoded_holds(store: Store, tmp_path: Path) -> None:
    """Beside one that stands; the reason names the file, the line, and what is wrong there."""
    words = _words(20)
    _put(store, "broken", {**SOUND, "qrels/test.tsv": QRELS + b"q1\td9\t1\n"})
    _put(store, "plain", _set_of(words))
    _put(store, "strange", _set_of([*words, "%"]))
    run, scored = _night(store, tmp_path, Letters(fails="%"))
    broken, plain, strange = guards.judge(run, scored, Gate())
    assert broken.verdict == strange.verdict == "not judged"
    assert broken.reasons == [
        "Guard set 'broken' cannot be read: guard/broken/: qrels/test.tsv line 4 judges 'd9', which is not in the "
        "corpus."
    ]
    assert "no usable vector" in strange.reasons[0]
    assert plain.verdict == "stands"


def test_sets_that_change_come_or_go_during_a_night_hold(store: Store, tmp_path: Path) -> None:
    """What was scored is no longer what guards; what came was not scored."""
    for name in ("changed", "gone", "same"):
        _put(store, name, _set_of(_words(20)))
    run, scored = _night(store, tmp_path, Letters())
    assert [one.verdict for one in guards.judge(run, scored, Gate())] == ["stands"] * 3
    store.put("guard/changed/qrels/test.tsv", b"0\t1\t1\n")
    store.delete([entry.key for entry in store.entries("guard/gone/")])
    _put(store, "new")
    results = {one.name: one for one in guards.judge(run, scored, Gate())}
    assert {name: one.verdict for name, one in results.items()} == {
        "changed": "not judged",
        "gone": "not judged",
        "same": "stands",
        "new": "not judged",
    }
    assert "changed while the night ran" in results["changed"].reasons[0]
    assert "came while the night ran" in results["new"].reasons[0]


def test_the_limits_are_the_nights(store: Store, tmp_path: Path) -> None:
    """A set beyond them cannot be read."""
    _put(store, "plain", _set_of(_words(20)))
    run = Run(store, "20261101T033000Z-00000000")
    run.once(runs.SETTINGS, lambda: Settings(limits=Limits(max_object_bytes=100)))
    _, scored = _night(store, tmp_path, Letters())
    assert "larger than 100 bytes (limits.max_object_bytes)" in scored.guards[0].problem


def test_guard_sets_are_no_data_of_a_night(store: Store) -> None:
    """Intake does not see them: they are in no corpus, train nothing, and are in no check for leaks."""
    _put(store, "general")
    store.put("pairs/a.jsonl", b'{"query": "q", "document": "d"}\n')
    taken = intake.take_in(store, writer="test", full=True)
    rows = intake.read_rows(store, taken.commit)
    assert rows["document"].to_pylist() == ["d"]
    assert {entry.key for entry in store.entries("guard/")} == {f"guard/general/{path}" for path in SOUND}
