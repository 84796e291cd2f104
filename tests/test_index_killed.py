"""A reindex whose process is killed, and started again: real processes and SIGKILL, a real S3 server, real targets."""

from __future__ import annotations

import json
import multiprocessing
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from tasks.encoding import ModelEncoder
from tasks.index import documents, open_target, shards
from tasks.index.build import Build, read_build
from tasks.index.targets import Target
from tasks.storage import Store
from tests import postgres, tiny_models
from tests.faults import faulty, kill, writes
from tests.test_index import COUNT, Killed, filled, renewed

PROCESSES = multiprocessing.get_context("forkserver")  # a fork of a process that has imported everything, and no more
PROCESSES.set_forkserver_preload([__name__, "sentence_transformers"])


@dataclass(frozen=True)
class Place:
    """Where a reindex reads and writes; `work` is a folder for what its process says."""

    store: str
    target: str
    model: Path
    work: Path
    password: str | None

    def open(self) -> Target:
        """The target."""
        return open_target(self.target, store=self.store, work=self.work, password=self.password)

    def run(self, write: int = 0, call: int = 0, *, after: bool = False) -> int:
        """A reindex in a process of its own, killed at a write to the store or a call of the target; its exit code."""
        process = PROCESSES.Process(target=_reindex, args=(self, write, call, after))
        process.start()
        process.join(300)
        assert process.exitcode is not None
        return process.exitcode

    def encoded(self) -> list[str]:
        """Documents that were encoded since the last time that this was asked."""
        path = self.work / "encoded"
        found = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return found


def _reindex(place: Place, write: int, call: int, after: bool) -> None:
    """What such a process does."""
    documents.PART_ROWS = 4  # type: ignore[misc]
    plain = ModelEncoder.encode

    def encode(self: ModelEncoder, texts: Any, role: Any, **more: Any) -> np.ndarray:
        if role == "document":
            with (place.work / "encoded").open("a") as file:
                file.writelines(f"{text}\n" for text in texts)
        return plain(self, texts, role, **more)

    ModelEncoder.encode = encode  # type: ignore[method-assign]
    store = faulty(Store.open(place.store), write, "after" if after else "before", kill)
    target = Killed(place.open(), call, after=after, fault=kill)
    done = renewed(store, target, place.model, place.work)
    said = {"index": done.live.index.name, "checksum": done.live.contents.checksum}
    (place.work / "done").write_text(json.dumps({**said, "writes": writes(store), "calls": target.calls}))


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("lancedb", 2),
        pytest.param("lancedb", 10, marks=pytest.mark.slow),
        pytest.param("pgvector", 10, marks=pytest.mark.slow),
    ],
)
def test_killed_and_started_again_it_ends_equal_and_encodes_nothing_twice(
    kind: str, points: int, store: Store, tmp_path: Path
) -> None:
    """At points from the first write to the store to the last call of the target, before them and after them."""
    model = tiny_models.save(tmp_path / "model")
    with ExitStack() as stack:
        server = None
        if kind == "pgvector":
            server = stack.enter_context(postgres.running(postgres.with_pgvector()))
            admin = server.dsn().replace("//prefect:", "//postgres:")
            stack.enter_context(psycopg.connect(admin, autocommit=True)).execute("CREATE EXTENSION vector")

        def place(number: int) -> Place:
            work = tmp_path / str(number)
            work.mkdir()
            target, password = f"lancedb:{work / 'index'}", server and server.password
            if server is not None:
                target = f"postgresql://prefect@127.0.0.1:{server.port}/prefect#ratchet.v{number}"
            found = Place(f"{store.url}/{number}", target, model, work, password)
            filled(Store(found.store, store._client))
            return found

        clean = place(0)
        assert clean.run() == 0
        whole = json.loads((clean.work / "done").read_text())
        assert len(clean.encoded()) == COUNT
        build = read_build(Store(clean.store, store._client), whole["index"])
        every = [(n, 0) for n in range(1, whole["writes"] + 1)] + [(0, n) for n in range(1, whole["calls"] + 1)]
        assert len(every) >= 10
        for number in range(1, points + 1):
            write, call = every[number * len(every) // (points + 1)]
            killed = place(number)
            assert killed.run(write, call, after=number % 2 == 0) == -signal.SIGKILL
            first, done = set(killed.encoded()), _stored(Store(killed.store, store._client), build)
            assert done <= first
            assert killed.run() == 0
            assert json.loads((killed.work / "done").read_text())["index"] == whole["index"]
            second = killed.encoded()
            assert len(second) == len(set(second)) == COUNT - len(done)
            assert done.isdisjoint(second)
            target = killed.open()
            live = target.live()
            assert live is not None
            assert target.contents(live.index.name).checksum == whole["checksum"]
            assert target.indexes() == [whole["index"]]
            target.close()


def _stored(store: Store, build: Build) -> set[str]:
    """Documents whose vectors a process that was killed has stored."""
    names = [shards.name_of(entry.key) for entry in shards.stored(store, build.identity)]
    rows = (shards.read_shard(store, build.identity, name, build.dimension) for name in names)
    return {text for one in rows for text in one.texts}
