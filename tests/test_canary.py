"""The canary: the same vectors are no warning, whatever moves them is one that names what has changed."""

from __future__ import annotations

import base64
import importlib.metadata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prefect.logging import disable_run_logger
from sentence_transformers import SentenceTransformer

from tasks import runs, steps
from tasks.audit import canary
from tasks.config import Training
from tasks.encoding import encode, fingerprint, load
from tasks.night import judging
from tasks.records import Canary, Drift
from tasks.runs import Run
from tasks.storage import Store
from tests import tiny_models

RUN, NEXT = "20261101T033000Z-00000000", "20261102T033000Z-00000000"


@pytest.fixture
def model(tmp_path: Path) -> SentenceTransformer:
    """A small random encoder."""
    return load(tiny_models.save(tmp_path), "cpu")


def _stored(vectors: np.ndarray) -> Canary:
    body = base64.b64encode(vectors.astype("<f4").tobytes()).decode()
    return Canary(None, RUN, canary.environment("cpu"), vectors.shape[1], body)


def test_there_are_64_different_texts() -> None:
    """As the documentation says."""
    assert len(set(canary.TEXTS)) == 64


def test_the_same_model_on_the_same_machine_does_not_drift(store: Store, model: SentenceTransformer) -> None:
    """The first night stores the vectors, the second compares: no warning, and nothing is written again."""
    first = canary.check(store, RUN, model, "f" * 64, None)
    body = store.get(f"watch/canary/{'f' * 64}.json").body
    second = canary.check(store, NEXT, model, "f" * 64, None)
    assert (first.warning, second.warning, second.since, second.drifted) == ("", "", RUN, 0)
    assert second.least > 1 - canary.TOLERANCE
    assert store.get(f"watch/canary/{'f' * 64}.json").body == body


def test_a_tokenizer_that_reads_otherwise_is_a_drift(store: Store, model: SentenceTransformer) -> None:
    """Upper case that is kept, as after a changed normaliser, moves the texts that have any; the others stay."""
    canary.check(store, RUN, model, "f" * 64, None)
    tokenizer = model.tokenizer.backend_tokenizer
    tokenizer.normalizer = None
    drift = canary.check(store, NEXT, model, "f" * 64, None)
    assert 10 < drift.drifted <= 64
    assert f"drifted since run {RUN}" in drift.warning
    assert "no version that is known" in drift.warning


def test_a_version_that_changed_is_named(
    store: Store, model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other vectors in the warning; with the same ones only in the record."""
    canary.check(store, RUN, model, "f" * 64, None)
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0" if name == "tokenizers" else version(name))
    drift = canary.check(store, NEXT, model, "f" * 64, None)
    assert drift.warning == ""
    assert drift.changed == [f"tokenizers {version('tokenizers')} to 99.0"]
    model.tokenizer.backend_tokenizer.normalizer = None
    assert (
        f"Changed since: tokenizers {version('tokenizers')} to 99.0."
        in canary.check(store, NEXT, model, "f" * 64, None).warning
    )


def test_noise_is_no_drift_and_ten_times_as_much_is(model: SentenceTransformer) -> None:
    """Noise of 1e-3 in length (5e-7 in cosine) is none; ten times that, another dimension and NaN are."""
    vectors = encode(model, canary.TEXTS, "document")
    stored = _stored(vectors)
    noise = np.random.default_rng(0).normal(size=vectors.shape)
    noise -= (noise * vectors).sum(axis=1, keepdims=True) * vectors
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    near, far = ((vectors + size * noise) / np.sqrt(1 + size**2) for size in (1e-3, 1e-2))
    assert canary.compare(stored, near.astype(np.float32), "cpu").drifted == 0
    assert canary.compare(stored, far.astype(np.float32), "cpu").drifted == 64
    broken = vectors.copy()
    broken[3] = np.nan
    assert canary.compare(stored, broken, "cpu").drifted == 1
    assert "vectors of shape (64, 16)" in canary.compare(stored, vectors[:, :16], "cpu").warning
    other = replace(stored, environment={**stored.environment, "device": "cuda"})
    assert canary.compare(other, vectors, "cpu").changed == ["device cuda to cpu"]


def test_a_canary_that_fails_stops_nothing(store: Store, tmp_path: Path) -> None:
    """There are no scores, so it cannot be asked: the step returns, and the reason is kept for the report."""
    training = Training(base_model=str(tiny_models.save(tmp_path)))
    with disable_run_logger():
        steps.canary.fn(store.url, RUN, None, training, str(tmp_path))
        steps.audit.fn(store.url, RUN, 1, "0" * 32, None, training, str(tmp_path))
    assert "scores.json" in Run(store, RUN).read(runs.DRIFT).failed
    assert Run(store, RUN).read(runs.AUDITED).failed


def test_a_drift_is_said_with_the_verdict(store: Store) -> None:
    """Whatever the verdict is; a damaged record says nothing."""
    run = Run(store, RUN)
    run.once(runs.DRIFT, lambda: Drift(since=RUN, drifted=3, warning="The vectors have drifted."))
    assert judging._noticed(run, "held") == ["The vectors have drifted."]
    store.put(run.key(runs.DRIFT.name), b"{")
    assert judging._noticed(run, "held") == []


def test_the_fingerprint_of_a_model_names_its_canary(tmp_path: Path) -> None:
    """64 hex digits, as docs/store.md says of the key."""
    assert len(fingerprint(tiny_models.save(tmp_path))) == 64
