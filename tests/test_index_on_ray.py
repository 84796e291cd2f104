"""The same index from actors of Ray: on loopback, with names alone between the processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tasks import index
from tasks.encoding import FP32, CachedEncoder, ModelEncoder, VectorCache, text_hash
from tasks.index import documents, filling, on_ray
from tasks.index.encoder import ShardWorker
from tasks.index.filling import CacheWorker
from tasks.storage import Store
from tests import tiny_models
from tests.memory import memory_store
from tests.test_index import COUNT, filled


def test_actors_of_ray_make_the_same_index(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two actors come to the index that this process comes to; while they work nothing listens beyond loopback."""
    monkeypatch.setattr(documents, "PART_ROWS", 8)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    listening: set[str] = set()
    plain = on_ray.run

    def run(*given: Any) -> Any:
        for made in plain(*given):
            for process in psutil.Process().children(recursive=True):
                found = process.net_connections(kind="inet")
                listening.update(one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN)
            yield made

    monkeypatch.setattr(on_ray, "run", run)
    model = tiny_models.save(tmp_path)
    filled(store)
    serving = index.find_serving(store, tmp_path, str(model))
    done = index.embed(store, serving, tmp_path, workers=2)
    assert (done.documents, done.encoded) == (COUNT, COUNT)
    assert listening
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    here = Store(f"{store.url}-here", store._client)
    filled(here)
    assert index.embed(here, serving, tmp_path, workers=0).index == done.index
    assert list(store.entries("indexes/staged/")) == []


def test_a_cluster_that_is_away_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would try for minutes, and then end the process."""
    monkeypatch.setattr(documents, "PART_ROWS", 8)
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:1")
    store = filled(memory_store())
    serving = index.find_serving(store, tmp_path, str(tiny_models.save(tmp_path)))
    with pytest.raises(index.RayError, match=r"no cluster of Ray at RAY_ADDRESS=ray://127.0.0.1:1"):
        index.embed(store, serving, tmp_path)


def test_what_a_worker_meets_is_said_in_its_own_words(tmp_path: Path) -> None:
    """In a row like any other: an exception would be pickled, and its message buried."""
    model = {"version": "base", "base": str(tmp_path / "none"), "identity": "a" * 64, "dimension": 32}
    worker = ShardWorker("s3://bucket@host", model, str(tmp_path))
    row = worker({"name": ["00-00000-" + "a" * 64], "older": [[""]]})
    assert row["failed"][0].startswith("StoreError: a store is named s3://bucket/prefix")
    assert row["transient"] == [True]


@pytest.mark.slow
def test_scoring_finds_in_the_cache_what_actors_of_ray_encoded(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two actors encode what the cache lacks, under the key of the night; nothing is left to encode."""
    monkeypatch.setattr(filling, "_LEAST", 4)
    monkeypatch.setattr(filling, "_CHUNK", 8)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    encoder = ModelEncoder.open(tiny_models.save(tmp_path), FP32)
    texts = [f"document number {i}" for i in range(20)]
    cache = VectorCache(tmp_path / "here", store)
    CachedEncoder(encoder, cache).encode(texts[:2], "document")
    more = {"base": str(tmp_path / "model"), "work": tmp_path, "workers": 2}
    saved = index.prefill(store, {None: encoder}, [*texts, texts[0]], **more)
    assert saved is not None
    assert saved.texts == 18
    assert "18 texts were encoded on Ray in" in str(saved)
    assert index.prefill(store, {None: encoder}, texts, **more) is None
    blocks = VectorCache(tmp_path / "elsewhere", store).open(encoder.key("document"), encoder.dimension)
    found = np.empty((20, encoder.dimension), np.float32)
    blocks.read([text_hash(text) for text in texts], found, np.arange(20))
    assert (found * encoder.encode(texts, "document")).sum(axis=1).min() > 0.9999


def test_a_worker_that_would_give_other_vectors_keeps_none(tmp_path: Path) -> None:
    """Its key differs from that of the night: another kind of device, or other libraries."""
    store = memory_store()
    worker = CacheWorker(store.url, str(tiny_models.save(tmp_path)), str(tmp_path))
    worker._store = store
    row = worker({"name": ["base 0"], "texts": [["a"]], "version": ["base"], "key": ["other"], "path": ["fp32"]})
    assert row["failed"][0].startswith("ModelError: this worker would give other vectors")
    assert list(store.entries("cache/")) == []
