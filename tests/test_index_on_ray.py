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
