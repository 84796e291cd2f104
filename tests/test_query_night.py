"""Nights of the query side on a real store with a tiny model: what is promoted leaves documents and index alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tasks import night, registry, runs
from tasks.config import Checks, Gate, Outcome, Training
from tasks.encoding import document_identity, encode, load
from tasks.registry import pull
from tasks.runs import Run
from tasks.scoring import Sample, check_saved, describe
from tasks.splits import SPLIT_KEY
from tasks.storage import Store
from tasks.training import query_side
from tasks.training.query_side import encoder_of, join
from tests import tiny_models
from tests.test_query_side import files_of
from tests.test_training import NOUNS, VERBS

SPLIT = b'{"rule": 1, "salt": "words of every kind on both sides", "dev": 0.1, "test": 0.4}'
PLACES = {"tokyo": "asia", "lagos": "africa", "quito": "america", "perth": "australia"}
PAIRS = [
    {"query": f"{verb} my {noun} {place}", "document": f"{VERBS[verb]} the {NOUNS[noun]} of {PLACES[place]}"}
    for verb in VERBS
    for noun in NOUNS
    for place in PLACES
]
GATE = Gate(confidence=0.9, min_test_queries=40, max_slice_drop=1.0, max_serving_slowdown=50, resamples=1000)
CHECKS = Checks(max_leaked_share=1)
RUNS = [f"202611{day:02d}T033000Z-00000000" for day in range(1, 9)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with one encoder for both roles."""
    return tiny_models.save(tmp_path_factory.mktemp("base"))


def settings(base: Path, **changes: object) -> Training:
    """Settings with which a night of either kind is promoted."""
    quick = {"base_model": str(base), "max_length": 24, "matryoshka_dims": (16,), "learning_rate": 5e-3, "epochs": 6}
    return Training.model_validate({**quick, "batch_size": 16, "precision": "fp32", "side": "query", **changes})


def whole_night(store: Store, run_id: str, training: Training, work: Path) -> Outcome:
    """All steps of a night, as the flow makes them."""
    begun = night.begin(store, run_id)
    taken = night.take_in(store, run_id, begun.last_commit)
    night.check(store, run_id, taken.commit, 0, training.base_model, CHECKS)
    night.check_leaks(store, run_id, taken.commit, CHECKS)
    candidate = night.train(store, run_id, taken.commit, training, work, production=begun.version)
    night.score(store, run_id, taken.commit, candidate.version, begun.version, training, GATE, work)
    judged = night.judge(store, run_id, GATE, CHECKS)
    verdict = judged.verdict
    if verdict == "promoted" and judged.candidate is not None:
        change, _ = night.promote(store, run_id, judged.candidate, begun.etag, who="night", reason="better")
        assert change is not None
    outcome = Outcome(run_id=run_id, verdict=verdict, reasons=list(judged.reasons), commit=taken.commit)
    return night.conclude(store, outcome)[0]


def fill(store: Store, start: int, end: int) -> None:
    """Put some of the pairs into the store."""
    lines = b"".join(json.dumps(pair).encode() + b"\n" for pair in PAIRS[start:end])
    store.put(f"pairs/{start:04d}.jsonl", lines)


def folder(store: Store, version: str | None, work: Path) -> Path:
    """A version's files."""
    assert version is not None
    return pull(store, version, work / f"pulled-{version}")


@pytest.mark.slow
def test_promotions_of_queries_leave_documents_and_index_as_they_were(store: Store, base: Path, tmp_path: Path) -> None:
    """A full night moves the index; two of the query side do not, nor does the rollback between them."""
    store.put(SPLIT_KEY, SPLIT)
    fill(store, 0, 200)
    first = whole_night(store, RUNS[0], settings(base, side="both", epochs=1), tmp_path)
    assert (first.verdict, first.index) == ("promoted", "moves"), first.reasons
    cached = _blocks(store)

    fill(store, 200, 288)
    second = whole_night(store, RUNS[1], settings(base), tmp_path)
    assert (second.verdict, second.index) == ("promoted", "stays"), second.reasons
    one, two = (Run(store, run).read(runs.CANDIDATE) for run in RUNS[:2])
    assert two.side == "query"
    assert files_of(folder(store, two.version, tmp_path)) == files_of(folder(store, one.version, tmp_path))
    assert cached <= _blocks(store)

    pointer = json.loads(store.get("production.json").body)
    assert (pointer["index"], pointer["fingerprint"]["index"], pointer["fingerprint"]["rebuild_index"]) == (
        "stays",
        "stays",
        False,
    )
    assert pointer["fingerprint"]["documents"] == document_identity(folder(store, one.version, tmp_path))
    due = whole_night(store, RUNS[2], settings(base, full_retrain_every=2, epochs=1), tmp_path)
    third = Run(store, RUNS[2]).read(runs.CANDIDATE)
    assert (third.side, third.started_from, due.index) == (
        "both",
        "base",
        "moves" if due.verdict == "promoted" else None,
    )
    if due.verdict == "promoted":
        registry.rollback(store, run_id="undone", who="me", reason="test")
    back = registry.rollback(store, run_id="back", who="me", reason="test")
    assert (back.version, back.index) == (one.version, "stays")
    assert registry.rollback(store, "base", run_id="base", who="me", reason="test").index == "moves"


@pytest.mark.slow
def test_documents_that_are_not_those_of_production_hold_a_candidate(
    store: Store, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the base model, whose index would stay: the weights of documents are damaged before they are published."""
    store.put(SPLIT_KEY, SPLIT)
    fill(store, 0, 288)

    def damaged(queries: Path, documents: Path, target: Path) -> None:
        join(queries, documents, target)
        if target.name == "candidate":
            scale(target / "document_0_Transformer" / "model.safetensors")

    monkeypatch.setattr(query_side, "join", damaged)
    found = whole_night(store, RUNS[0], settings(base), tmp_path)
    assert (found.verdict, found.index) == ("held", None)
    assert any("only the query side was trained, but documents are not" in reason for reason in found.reasons)
    monkeypatch.undo()
    found = whole_night(store, RUNS[1], settings(base, seed=1), tmp_path)
    assert (found.verdict, found.index) == ("promoted", "stays"), found.reasons
    assert registry.rollback(store, "base", run_id="base", who="me", reason="test").index == "stays"


def scale(weights: Path) -> None:
    """Other weights."""
    tensors = load_file(weights)
    save_file({name: one * 1.5 if one.is_floating_point() else one for name, one in tensors.items()}, weights)


def test_a_wrong_claim_is_caught_by_files_and_by_vectors(base: Path, tmp_path: Path) -> None:
    """A manifest that claims the documents of what serves, over other weights."""
    join(encoder_of(base, "query", tmp_path / "queries"), base, tmp_path / "router")
    scale(tmp_path / "router" / "document_0_Transformer" / "model.safetensors")
    texts = ["rotate the key", "list every bucket of a region"]
    model = load(tmp_path / "router", "cpu")
    sample = Sample(texts, encode(model, texts, "query"), texts, encode(model, texts, "document"))
    claim = describe(tmp_path / "router").model_copy(update={"documents": document_identity(base)})
    reasons = check_saved(tmp_path / "router", sample, claim, baseline=base, max_slowdown=50)
    assert len(reasons) == 3
    assert "documents stay as they are, but 0_Transformer/model.safetensors is another file" in reasons[0]
    assert "the manifest says documents" in reasons[1]
    assert "against what serves: documents: 2 of 2 vectors are not the scored ones" in reasons[2]


def _blocks(store: Store) -> set[str]:
    return {entry.key for entry in store.entries("cache/vectors/") if entry.key.endswith(".npy")}
