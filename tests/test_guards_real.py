"""Real labels: a model that learns one domain by heart is better there, and a guard set of another kind holds it."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from numpy.typing import NDArray

from data_checks.leaks import near_duplicates, nearest_training_query
from deployments import demo
from deployments.demo.tour import cut
from tasks import encoding, scoring, trial
from tasks.config import BUNDLED_MODEL, Gate
from tasks.dataset import Dataset
from tasks.encoding import Progress, Role
from tasks.gate import decide
from tasks.runs import Run
from tasks.scoring import guards
from tasks.storage import Store
from tests.test_guards import scored_on

_DIRECTIONS = 128


class _Vectors:
    """all-MiniLM-L6-v2's vectors, each text encoded once, mapped by a matrix and scaled to unit length."""

    dimension = 384
    _known: dict[str, NDArray[np.float32]] = {}  # noqa: RUF012 # shared by both models: each text is encoded once

    def __init__(self, matrix: NDArray[np.float32]) -> None:
        self._matrix = matrix

    @cached_property
    def _encoder(self) -> encoding.ModelEncoder:
        return encoding.ModelEncoder.open(encoding.resolve_model(BUNDLED_MODEL), encoding.FP32)

    def key(self, role: Role) -> str:
        """Never kept."""
        return role

    def encode(self, texts: Sequence[str], role: Role, *, on_progress: Progress | None = None) -> NDArray[np.float32]:
        """Unit vectors of shape (n, 384)."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._encoder.encode(new, role, on_progress=on_progress), strict=True))
        mapped = np.stack([self._known[text] for text in texts]) @ self._matrix
        return np.asarray(mapped / np.linalg.norm(mapped, axis=1, keepdims=True), np.float32)


def _specialised(data: Dataset, base: _Vectors) -> _Vectors:
    """A map that finds the documents of the training queries, of the directions alone in which documents differ."""
    documents = base.encode(data.documents, "document")
    asked = torch.from_numpy(base.encode(data.train["query"].to_pylist(), "query"))
    answers = torch.from_numpy(data.train["document_id"].to_numpy().copy())
    searched = torch.from_numpy(documents)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.eye(384, requires_grad=True)
    optimiser = torch.optim.Adam([matrix], lr=2e-3)
    for _ in range(60):
        chosen = torch.randperm(len(asked), generator=generator)[:256]
        sides = (torch.nn.functional.normalize(side @ matrix, dim=1) for side in (asked[chosen], searched))
        query, document = sides
        loss = torch.nn.functional.cross_entropy(20 * query @ document.T, answers[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    _, _, directions = np.linalg.svd(documents - documents.mean(axis=0), full_matrices=False)
    kept = directions[:_DIRECTIONS].T @ directions[:_DIRECTIONS]
    return _Vectors(np.asarray(kept @ matrix.detach().numpy(), np.float32))


def _put_packages(store: Store) -> None:
    """What every installed package says of itself in one line, and the beginning of its description, as the answer."""
    rows: dict[str, tuple[str, str]] = {}
    for package in importlib.metadata.distributions():
        summary = str(package.metadata.get("Summary") or "").strip()
        body = str(package.metadata.get_payload() or package.metadata.get("Description") or "")
        text = " ".join(re.sub(r"<[^>]+>|https?://\S+|[^\w\s.,:;()'-]+", " ", body).split()).replace(summary, "")[:400]
        if len(summary.split()) > 2 and len(text) > 200:
            rows.setdefault(package.metadata["Name"].lower(), (summary, text))
    for file, place in (("queries", 0), ("corpus", 1)):
        lines = [orjson.dumps({"_id": name, "text": row[place]}) for name, row in rows.items()]
        store.put(f"guard/packages/{file}.jsonl", b"\n".join(lines))
    store.put("guard/packages/qrels/test.tsv", "".join(f"{name}\t{name}\t1\n" for name in rows).encode())


@pytest.mark.slow
def test_a_guard_set_holds_an_otherwise_better_candidate_on_real_labels(store: Store, tmp_path: Path) -> None:
    """Better at finding operations of the AWS API from requests, worse at finding Python packages: held."""
    labels = demo.build()
    (tmp_path / "pairs.jsonl").write_bytes(b"".join(cut(labels.pairs, "document")))
    (tmp_path / "corpus.jsonl").write_bytes(b"".join(cut(labels.corpus, "text")[::2]))
    (data,) = trial._parts(trial.read(tmp_path / "pairs.jsonl", tmp_path / "corpus.jsonl").rows)
    base = _Vectors(np.eye(384, dtype=np.float32))
    sides = {"production": base, "candidate": _specialised(data, base)}
    nearest = nearest_training_query(data.test.queries, data.train["query"].to_pylist())
    new = scoring.new_documents(data.test, data.trained_documents)
    found = {side: scoring.score_side(data.test, data.documents, encoder) for side, encoder in sides.items()}
    table = scoring.per_query_table(data.test, found, scoring.Exposure(nearest, near_duplicates(nearest), new))
    candidate, production = (scoring.read_side(table, side, side) for side in ("candidate", "production"))
    assert decide(candidate, production, Gate()).verdict == "promoted"

    _put_packages(store)
    run = Run(store, "20261101T033000Z-00000000")
    scored = scored_on(guards.score(run, sides, data.train["query"].to_pylist(), tmp_path))
    (result,) = guards.judge(run, scored, Gate())
    assert result.verdict == "falls"
    assert result.queries > 100
    assert result.deltas["mrr"].high < 0
    held = decide(candidate, production, Gate(), vetoes=guards.vetoes([result]))
    assert held.verdict == "held"
    assert any(f"Guard set 'packages' ({result.queries} queries) falls in MRR" in reason for reason in held.reasons)
