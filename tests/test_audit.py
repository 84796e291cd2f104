"""The audit of labels: planted faults are found and named, right labels are not, and no verdict depends on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest

from tasks import audit, night, runs
from tasks.audit import blame, ranks, sample, texts
from tasks.config import Checks, Gate, Limits, Training
from tasks.dataset import build
from tasks.intake import with_origin
from tasks.parsing import parse
from tasks.records import Audited, UploadAudit
from tasks.report.labels import blamed
from tasks.runs import Run
from tasks.splits import SPLIT_KEY, Split
from tasks.storage import Store
from tests import rows, tiny_models

TRAIN_ALL = Split("all", dev=0.0, test=1e-9)


def _world(seed: int, pairs: int, spread: float = 0.35) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of queries and of the documents that answer them, of shape (pairs, 48) each."""
    rng = np.random.default_rng(seed)
    documents = rng.normal(size=(pairs, 48))
    queries = documents / np.linalg.norm(documents, axis=1, keepdims=True) + rng.normal(0, spread / 3, (pairs, 48))
    return tuple((v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in (queries, documents))  # type: ignore[return-value]


def _labels(queries: np.ndarray, documents: np.ndarray, document: np.ndarray) -> blame.Labels:
    ids = np.arange(len(queries))
    return blame.Labels(queries, documents, document, ids, np.sort(ids * len(documents) + document))


def _shuffled(document: np.ndarray, own: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The labels of some pairs moved on by one place, for a share of one upload."""
    changed = document.copy()
    chosen = rng.permutation(own)[: round(share * len(own))]
    changed[chosen] = document[np.roll(chosen, 1)]
    return changed


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_the_upload_with_shuffled_labels_is_named_and_no_other(share: float) -> None:
    """Of ten nights with five uploads of 100 pairs each names the one; the share that it states is about right."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        queries, documents = _world(seed, 500)
        groups = list(np.arange(500).reshape(5, 100))
        document = _shuffled(np.arange(500), groups[2], share, rng)
        found = blame.judge(_labels(queries, documents, document), groups, seed)
        assert [one.named for one in found] == [False, False, True, False, False]
        assert found[2].share == pytest.approx(share, abs=0.1)


def test_two_bad_uploads_are_both_named() -> None:
    """The worse one is left out when the other is judged: it would spoil what that is compared with."""
    queries, documents = _world(1, 500)
    groups = list(np.arange(500).reshape(5, 100))
    document = _shuffled(np.arange(500), groups[0], 1.0, np.random.default_rng(0))
    document = _shuffled(document, groups[3], 0.3, np.random.default_rng(1))
    found = blame.judge(_labels(queries, documents, document), groups, 0)
    assert [one.named for one in found] == [True, False, False, True, False]


def test_too_few_pairs_and_what_the_model_cannot_tell_apart_are_not_judged() -> None:
    """Both say why; unrelated vectors, as of a language that the model does not know, accuse nobody."""
    queries, documents = _world(2, 300)
    queries[200:] = np.roll(_world(7, 100)[0], 1, axis=0)
    groups = [np.arange(49), np.arange(200, 300)]
    few, unknown = blame.judge(_labels(queries, documents, np.arange(300)), groups, 0)
    assert [(one.share, one.named) for one in (few, unknown)] == [(None, False), (None, False)]
    assert "49 pairs are too few" in few.why
    assert "hardly tells its documents apart" in unknown.why


def test_queries_that_the_model_puts_in_one_place_accuse_nobody() -> None:
    """As of another language than the documents': one document stands out for all of them, and says nothing of each."""
    queries, documents = _world(5, 300)
    queries[200:] = documents[210] + np.random.default_rng(0).normal(0, 0.05, (100, 48))
    labels = _labels(queries, documents, np.arange(300))
    _, foreign = blame.judge(labels, [np.arange(100), np.arange(200, 300)], 0)
    assert (foreign.share, foreign.named) == (None, False)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_many_queries_for_each_of_a_few_documents_are_judged(share: float) -> None:
    """Questions and their few answers: an upload of 200 pairs about 10 documents."""
    queries, documents = _world(6, 500)
    rng = np.random.default_rng(6)
    document = np.arange(500)
    document[300:] = 300 + np.arange(200) % 10
    queries[300:] = documents[document[300:]] + rng.normal(0, 0.1, (200, 48))
    document = _shuffled(document, np.arange(300, 500), share, rng)
    groups = [np.arange(100), np.arange(100, 200), np.arange(300, 500)]
    found = blame.judge(_labels(queries, documents, document), groups, 0)
    assert [one.named for one in found] == [False, False, share > 0]


def test_an_upload_that_is_all_there_is_has_nothing_to_be_compared_with() -> None:
    """With right labels it is not named; with shuffled ones it is, for no set of right labels is that bad."""
    queries, documents = _world(3, 150)
    every = np.arange(150)
    (right,) = blame.judge(_labels(queries, documents, every), [every], 0)
    (wrong,) = blame.judge(_labels(queries, documents, np.roll(every, 1)), [every], 0)
    assert (right.named, wrong.named) == (False, True)


def test_one_slip_in_an_upload_is_no_bad_upload() -> None:
    """One wrong label of 50, the smallest upload that is judged."""
    queries, documents = _world(4, 250)
    groups = list(np.arange(250).reshape(5, 50))
    document = np.arange(250)
    document[[7, 8]] = document[[8, 7]]
    found = blame.judge(_labels(queries, documents, document), groups, 0)
    assert not any(one.named for one in found)


def test_dev_scores_rise_without_what_hurts() -> None:
    """40 pairs call document i + 1 right for query i, one pair i: 30 + 1 against 40 is rank 2, so MRR 1/2, else 1."""
    axes = np.eye(8, dtype=np.float32)
    wrong = np.tile(np.arange(1, 9) % 8, 40)
    labels = _labels(np.tile(axes, (41, 1)), axes, np.concatenate([wrong, np.arange(8)]))
    gain = blame.without(labels, np.arange(320), axes, axes, [np.array([i]) for i in range(8)])
    assert gain == pytest.approx(0.5)


def test_ranks_leave_out_what_is_right_elsewhere() -> None:
    """Documents at cosines 1, 0.8 and 0 of one query: the label 0.8 is second, unless 1 is right as well."""
    documents = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    query = np.array([[1, 0]], np.float32)
    one = ranks.rank(query, documents, np.array([1]), [np.array([1])])
    both = ranks.rank(query, documents, np.array([1]), [np.array([0, 1])])
    assert (one.above.tolist(), one.best.tolist(), both.above.tolist()) == ([1], [0], [0])


def test_a_pair_is_suspicious_only_if_every_model_says_so() -> None:
    """Hopeless before training, and not first after it; what the candidate has learnt by heart is not listed."""

    def ranked(above: int, gap: float) -> ranks.Ranked:
        return ranks.Ranked(np.array([above]), np.array([0]), np.array([gap], np.float32))

    for base, candidate, expected in (
        (ranked(40, 4.0), ranked(5, 1.0), True),
        (ranked(40, 4.0), ranked(0, 0.0), False),  # the candidate finds it
        (ranked(19, 4.0), ranked(5, 1.0), False),  # not hopeless
        (ranked(40, 2.9), ranked(5, 1.0), False),  # nothing stands out: a hard query
    ):
        assert ranks.hopeless(base, [base, candidate], 1_000).tolist() == [expected]


def test_contradictions_name_both_rows() -> None:
    """A negative of one row is the document of another row whose query is a rewording."""
    table = rows.table(
        [
            {"query": "How do I reset the pump?", "document": "Press reset.", "negatives": ["Pull the lever."]},
            {"query": "reset pump", "document": "pull the  LEVER.", "object": "pairs/b.jsonl"},
            {"query": "drain pump", "document": "Open the valve.", "negatives": ["Pull the lever."]},
        ]
    )
    (found,) = texts.contradictions(table)
    assert (found.object, found.line, found.other_object, found.other_line) == ("pairs/a.jsonl", 1, "pairs/b.jsonl", 2)


def test_near_duplicates_are_pairs_only_with_other_documents() -> None:
    """Two queries that differ by one letter: suspicious with different documents, and not with the same one."""
    table = rows.table(
        [
            {"query": "replace the membrane of pump twelve", "document": "Document one."},
            {"query": "replace the membranes of pump twelve", "document": "Document two."},
            {"query": "replace the gasket of filter eleven", "document": "Document three."},
            {"query": "replace the gaskets of filter eleven", "document": "Document three."},
        ]
    )
    train = build(table, TRAIN_ALL).train
    every = np.arange(4)
    (found,) = texts.similar_queries(train, every, every)
    assert (found.line, found.other_line) == (1, 2)


def test_small_uploads_of_a_folder_are_judged_together() -> None:
    """60 objects of one pair each under one folder are one upload; three elsewhere are too small."""
    made = [
        {"query": f"q {i}", "document": f"d {i}", "object": f"pairs/many/{i}.jsonl", "commit": 2} for i in range(60)
    ]
    made += [{"query": f"r {i}", "document": f"e {i}", "object": f"pairs/few/{i}.jsonl", "commit": 2} for i in range(3)]
    made += [{"query": f"s {i}", "document": f"f {i}", "object": "pairs/old.jsonl", "commit": 1} for i in range(80)]
    train = build(rows.table(made), TRAIN_ALL).train
    chosen = sample.choose(train, 1, 0)
    assert ([upload.name for upload in chosen.uploads], chosen.too_small) == (["pairs/many/"], 3)
    assert len(chosen.rows) == 143
    bounded = sample.choose(train, 1, 0, most=70)
    assert len(bounded.rows) == 70
    assert len(bounded.uploads[0].pairs) == 60


def test_what_is_said_of_a_night_that_regressed() -> None:
    """The upload by name with its share; where none is named, how many were judged; where nothing was, why."""
    bad = UploadAudit("pairs/b.jsonl", 100, 0.22, True, "For 16 of 100 pairs ...", 0.01)
    good = UploadAudit("pairs/a.jsonl", 100, 0.0, False, "For 0 of 100 pairs ...")
    (said,) = blamed(Audited(uploads=[good, bad]))
    assert said.startswith("Probably hurt by pairs/b.jsonl: about 22% of its labels look drawn at random.")
    assert "+0.0100 MRR" in said
    assert blamed(Audited(uploads=[good], too_small=2)) == [
        "No upload stands out by its labels (1 judged, 2 more are too small to judge)."
    ]
    assert blamed(Audited(failed="OSError: full")) == ["The labels were not audited: OSError: full"]


SPLIT = b'{"rule": 1, "salt": "queries of every kind on both sides", "dev": 0.1, "test": 0.3}'
RUN = "20261101T033000Z-00000000"


def _scored(store: Store, work: Path) -> tuple[Training, str, int]:
    """A night on a real store up to its scores, with a tiny model; returns its settings, candidate and commit."""
    base = tiny_models.save(work)
    names = ["".join(np.random.default_rng(i).choice(list("abcdefghijklmnopqrstuvwxyz"), 9)) for i in range(160)]
    lines = [
        json.dumps({"query": f"where is {name}", "document": f"shelf {i} holds {name}", "negative": f"no {name} here"})
        for i, name in enumerate(names)
    ]
    wrong = json.dumps({"query": f"where is {names[0]}", "document": f"no {names[0]} here <b>"})
    again = json.dumps({"query": f"is {names[1]} where", "document": f"No {names[1]} here"})
    store.put(SPLIT_KEY, SPLIT)
    store.put("pairs/a.jsonl", "\n".join([*lines, wrong, again]).encode())
    training = Training(base_model=str(base), max_length=16, matryoshka_dims=(), learning_rate=1e-2, hard_negatives=1)
    checks = Checks(max_leaked_share=1, max_contradictory_share=1)
    commit = night.take_in(store, RUN, night.begin(store, RUN).last_commit).commit
    night.check(store, RUN, commit, 0, str(base), checks)
    night.check_leaks(store, RUN, commit, checks)
    candidate = night.train(store, RUN, commit, training, work)
    night.score(store, RUN, commit, candidate.version, None, training, Gate(), work)
    return training, candidate.version, commit


def test_a_night_keeps_its_suspects_and_its_verdict(store: Store, tmp_path: Path) -> None:
    """On a real store: suspects with object and line; the decision stays the same bytes."""
    training, candidate, commit = _scored(store, tmp_path)
    before = night.judge(store, RUN, Gate(), Checks())
    decided = store.get(Run(store, RUN).key(runs.DECISION)).body
    audited = night.audit(store, RUN, commit, candidate, None, training, tmp_path)
    lines = [orjson.loads(line) for line in store.get(Run(store, RUN).key(runs.SUSPECTS)).body.splitlines()]
    assert sum(audited.counts.values()) == len(lines)
    assert {"object", "line", "why", "kind"} <= lines[0].keys()
    contradicted = [line for line in lines if line["kind"] == "contradiction"]
    assert [(line["object"], line["line"], line["other_line"]) for line in contradicted] == [("pairs/a.jsonl", 2, 162)]
    (upload,) = audited.uploads
    assert upload.name == "pairs/a.jsonl"
    assert night.audit(store, RUN, commit, candidate, None, training, tmp_path) == audited
    after = night.judge(store, RUN, Gate(), Checks())
    assert store.get(Run(store, RUN).key(runs.DECISION)).body == decided
    assert after.verdict == before.verdict
    store.put(Run(store, RUN).key(runs.AUDITED.name), b"not JSON")
    assert night.judge(store, RUN, Gate(), Checks()).reasons == before.reasons


def test_suspects_are_printed_with_nothing_that_a_terminal_obeys(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON lines of the latest audited run; a run without an audit is an error of usage."""
    from deployments import cli

    run = Run(store, RUN)
    bad = UploadAudit("pairs/b\x1b[2J.jsonl", 100, 0.22, True, "For 16 of 100 pairs ...", 0.01)
    run.once(runs.AUDITED, lambda: Audited(pairs=10, uploads=[bad]))
    run.put(runs.SUSPECTS, orjson.dumps({"kind": "label", "query": "a\x1b[2Jb"}) + b"\n")
    monkeypatch.setattr("sys.argv", ["ratchet", "suspects", "--store", store.url])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 0
    assert json.loads(said.out) == {"kind": "label", "query": "a\x1b[2Jb"}
    assert "22% of the labels look random, too many for chance" in " ".join(said.err.split())
    assert "\x1b[2J" not in said.out + said.err
    monkeypatch.setattr("sys.argv", ["ratchet", "suspects", "20200101T000000Z-00000000", "--store", store.url])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2


class _Fixed:
    """An encoder that knows the vectors of its texts."""

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self._vectors = vectors
        self.dimension = 48

    def key(self, role: str) -> str:
        return role

    def encode(self, texts: Sequence[str], role: str, *, on_progress: object = None) -> np.ndarray:  # noqa: ARG002
        return np.stack([self._vectors[text] for text in texts])


def test_a_labeller_is_judged_as_an_upload_is() -> None:
    """Three labellers in one upload, of whom one shuffles: named, and so are the lines of that one."""
    queries, documents = _world(8, 300)
    who = ["ann"] * 100 + ["bob"] * 100 + ["eve"] * 100
    document = np.arange(300)
    document[100:200] = np.roll(document[100:200], 1)
    lines = [{"query": f"query {i}", "document": f"text {document[i]}", "labeller": who[i]} for i in range(300)]
    body = b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)
    parts = [with_origin("pairs/a.jsonl", one.rows) for one in parse("pairs/a.jsonl", body, Limits())]
    table = pa.Table.from_batches(parts).append_column("commit", pa.array([1] * 300, pa.int64()))
    vectors = {f"query {i}": queries[i] for i in range(300)} | {f"text {i}": documents[i] for i in range(300)}
    encoders = {side: _Fixed(vectors) for side in ("candidate", "production")}
    found, suspects = audit.look(audit.Night(table, build(table, TRAIN_ALL), encoders, 0, 0, "base", 0))
    assert [one.name for one in found.uploads if one.named] == ["pairs/a.jsonl", "labeller bob"]
    wrong = [line for line in map(orjson.loads, suspects.splitlines()) if line["kind"] == "label"]
    assert len(wrong) > 50
    assert all(101 <= line["line"] <= 200 for line in wrong)
