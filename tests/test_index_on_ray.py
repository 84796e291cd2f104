"""The same index from actors of Ray: on loopback, with names alone between the processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks import index
from tasks.index import documents, on_ray
from tasks.storage import Store
from tests import tiny_models
from tests.memory import memory_store
from tests.test_index import COUNT, filled


def test_actors_of_ray_make_the_same_index(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two actors come to the index that this process comes to; while they work nothing listens beyond loopback."""
    monkeypatch.setattr(documents, "PART_ROWS", 8)
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    listening: set[str] = set()
    plain = on_ray.make

    def make(*given: Any) -> Any:
        for made in plain(*given):
            for process in psutil.Process().children(recursive=True):
                found = process.net_connections(kind="inet")
                listening.update(one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN)
            yield made

    monkeypatch.setattr(on_ray, "make", make)
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
    worker = on_ray._Worker("s3://bucket@host", model, str(tmp_path))
    row = worker({"name": ["00-00000-" + "a" * 64], "older": [[""]]})
    assert row["failed"][0].startswith("StoreError: a store is named s3://bucket/prefix")
    assert row["transient"] == [True]
