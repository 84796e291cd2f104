"""The cache of vectors on disk and on a real S3 server: what is encoded once, and what is noticed to be wrong."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import encoding
from tasks.config import BUNDLED_MODEL
from tasks.encoding import FP32, ModelEncoder, Progress, Role, VectorError
from tasks.encoding import cache as vector_cache
from tasks.encoding.cache import PREFIX, CachedEncoder, VectorCache, text_hash
from tasks.storage import Store

DIMENSION = 4


@dataclass
class Lengths:
    """An encoder whose vectors a human can check, (1, length, 0, 0) made unit, and which keeps what it was asked."""

    model: str = "a"
    asked: list[str] = field(default_factory=list)
    roles: set[Role] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def dimension(self) -> int:
        """Components of a vector."""
        return DIMENSION

    def key(self, role: Role) -> str:
        """One key per model and role."""
        return f"{self.model}-{role}"

    def encode(self, texts: Sequence[str], role: Role, *, on_progress: Progress | None = None) -> np.ndarray:
        """Unit vectors; refuses the text "NaN"."""
        with self.lock:
            self.asked += texts
            self.roles.add(role)
        if "NaN" in texts:
            raise VectorError(f"model {self.model}", list(texts).index("NaN"))
        if on_progress is not None:
            on_progress(len(texts), len(texts))
        return expected(texts)


def expected(texts: Sequence[str]) -> np.ndarray:
    """What `Lengths` gives for the texts."""
    vectors = np.array([[1, len(text), 0, 0] for text in texts], np.float32).reshape(-1, DIMENSION)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def texts(count: int, start: int = 0) -> list[str]:
    """Texts of different lengths."""
    return [f"{i} " + "x" * i for i in range(start, start + count)]


def blocks(store: Store) -> list[str]:
    """Keys of all blocks in the store."""
    return sorted(entry.key for entry in store.entries(PREFIX) if entry.key.endswith(".npy"))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of four texts, so that a few texts make several."""
    monkeypatch.setattr(vector_cache, "BLOCK_ROWS", 4)


# --- once ----------------------------------------------------------------------------------------------------


def test_a_second_night_on_another_machine_encodes_only_what_is_new(store: Store, tmp_path: Path) -> None:
    """Ten documents, then the same and two more: twelve are encoded in all, from a folder that starts empty."""
    first, second = Lengths(), Lengths()
    CachedEncoder(first, VectorCache(tmp_path / "one", store)).encode(texts(10), "document")
    found = CachedEncoder(second, VectorCache(tmp_path / "two", store)).encode(texts(12), "document")
    assert sorted(first.asked) == sorted(texts(10))
    assert sorted(second.asked) == sorted(texts(2, start=10))
    np.testing.assert_array_equal(found, expected(texts(12)))


def test_the_order_of_texts_does_not_matter(tmp_path: Path) -> None:
    """Vectors come back in the order that was asked for, from several blocks; no store is needed."""
    encoder = Lengths()
    cached = CachedEncoder(encoder, VectorCache(tmp_path))
    cached.encode(texts(5), "document")
    cached.encode(texts(5, start=5), "document")
    mixed = [texts(10)[i] for i in np.random.default_rng(0).permutation(10)]
    np.testing.assert_array_equal(cached.encode(mixed, "document"), expected(mixed))
    assert len(encoder.asked) == 10


def test_a_text_given_twice_is_encoded_once(tmp_path: Path) -> None:
    """Both places get its vector."""
    encoder = Lengths()
    found = CachedEncoder(encoder, VectorCache(tmp_path)).encode(["a", "bb", "a", "a"], "query")
    assert sorted(encoder.asked) == ["a", "bb"]
    np.testing.assert_array_equal(found, expected(["a", "bb", "a", "a"]))


def test_models_and_roles_do_not_share_vectors(store: Store, tmp_path: Path) -> None:
    """Each key has its own blocks."""
    cache = VectorCache(tmp_path, store)
    for model in ("a", "b"):
        for role in ("query", "document"):
            encoder = Lengths(model)
            CachedEncoder(encoder, cache).encode(["text"], role)  # type: ignore[arg-type]
            assert (encoder.asked, encoder.roles) == (["text"], {role})
    assert len({key.split("/")[2] for key in blocks(store)}) == 4


def test_no_texts_and_odd_texts(tmp_path: Path) -> None:
    """Nothing, the empty text, and a lone surrogate, which UTF-8 refuses, have their place."""
    cached = CachedEncoder(Lengths(), VectorCache(tmp_path))
    assert cached.encode([], "query").shape == (0, DIMENSION)
    odd = ["", "\ud800", "\x00"]
    np.testing.assert_array_equal(cached.encode(odd, "query"), expected(odd))
    np.testing.assert_array_equal(cached.encode(odd, "query"), expected(odd))


def test_progress_starts_at_what_is_known_and_ends_at_all(tmp_path: Path, small_blocks: None) -> None:
    """Three of eleven are known; then slabs of four."""
    cached = CachedEncoder(Lengths(), VectorCache(tmp_path))
    cached.encode(texts(3), "document")
    seen: list[tuple[int, int]] = []
    cached.encode(texts(11), "document", on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 11), (7, 11), (11, 11)]


def test_a_failure_keeps_what_was_encoded_before_it_and_names_the_text(tmp_path: Path, small_blocks: None) -> None:
    """The tenth text is unusable: eight are kept in two slabs, and the index is that of the whole list."""
    encoder = Lengths()
    cached = CachedEncoder(encoder, VectorCache(tmp_path))
    with pytest.raises(VectorError, match="index 9") as caught:
        cached.encode([*texts(9), "NaN", "more"], "document")
    assert caught.value.index == 9
    encoder.asked.clear()
    cached.encode(texts(9), "document")
    assert encoder.asked == texts(9)[8:]


# --- wrong blocks --------------------------------------------------------------------------------------------


def _flip(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


def _truncate(body: bytes) -> bytes:
    return body[: len(body) // 2]


def _empty(_: bytes) -> bytes:
    return b""


def _pickle(_: bytes) -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("damage", [_flip, _truncate, _empty, _pickle])
@pytest.mark.parametrize("place", ["store", "disk"])
def test_a_damaged_block_is_noticed_and_rebuilt(store: Store, tmp_path: Path, damage: Any, place: str) -> None:
    """One bit, half a file, no file, a pickle: in the store or on disk, the right vectors come back and stay."""
    CachedEncoder(Lengths(), VectorCache(tmp_path / "one", store)).encode(texts(6), "document")
    (key,) = blocks(store)
    sound = store.get(key).body
    folder = tmp_path / ("one" if place == "disk" else "two")
    if place == "store":
        store.put(key, damage(sound))
    else:
        (path,) = folder.glob("*/*.npy")
        path.write_bytes(damage(sound))
    np.testing.assert_array_equal(
        CachedEncoder(Lengths(), VectorCache(folder, store)).encode(texts(6), "document"), expected(texts(6))
    )
    assert store.get(key).body == sound
    third = Lengths()
    CachedEncoder(third, VectorCache(tmp_path / "three", store)).encode(texts(6), "document")
    assert third.asked == []


def test_a_block_of_another_model_under_this_ones_key_is_foreign(store: Store, tmp_path: Path) -> None:
    """The bytes are sound and carry their name, but they belong to model b: they are not read as model a's."""
    CachedEncoder(Lengths("b"), VectorCache(tmp_path / "b", store)).encode(texts(3), "document")
    (key,) = blocks(store)
    foreign = key.replace("b-document", "a-document")
    store.put(foreign, store.get(key).body)
    encoder = Lengths("a")
    CachedEncoder(encoder, VectorCache(tmp_path / "a", store)).encode(texts(3), "document")
    assert encoder.asked == texts(3)
    assert foreign not in blocks(store)


def test_a_block_of_another_dimension_is_not_read(tmp_path: Path) -> None:
    """A name can only be right by a fault of ours; the shape is checked all the same."""
    cache = VectorCache(tmp_path)
    cache.add("k", [text_hash("a")], np.ones((1, 3), np.float32))
    assert len(cache.open("k", 3)) == 1
    assert len(cache.open("k", 4)) == 0


def test_a_store_that_was_emptied_is_filled_again_from_disk(store: Store, tmp_path: Path) -> None:
    """The cache in the store may be deleted at any time; nothing is encoded again on a machine that has it."""
    encoder = Lengths()
    cached = CachedEncoder(encoder, VectorCache(tmp_path, store))
    cached.encode(texts(4), "document")
    before = blocks(store)
    store.delete(before)
    cached.encode(texts(4), "document")
    assert len(encoder.asked) == 4
    assert blocks(store) == before


def test_what_a_killed_run_left_half_written_is_cleared_after_a_day(tmp_path: Path) -> None:
    """A temporary file is never a block, and does not stay for ever."""
    cache = VectorCache(tmp_path, now=lambda: 0.0)
    cache.open("k", DIMENSION)
    (tmp_path / "k" / "tmpabc.part").write_bytes(b"half")
    cache.open("k", DIMENSION)
    assert (tmp_path / "k" / "tmpabc.part").exists()
    later = (tmp_path / "k" / "tmpabc.part").stat().st_mtime + 86_401
    VectorCache(tmp_path, now=lambda: later).open("k", DIMENSION)
    assert not (tmp_path / "k" / "tmpabc.part").exists()


# --- few blocks, within the limit ----------------------------------------------------------------------------


def test_many_small_blocks_become_one(store: Store, tmp_path: Path) -> None:
    """Nine nights of one new text each: one block at the end, nothing encoded twice, every vector right."""
    encoder = Lengths()
    for night in range(1, 10):
        CachedEncoder(encoder, VectorCache(tmp_path / "local", store)).encode(texts(night), "document")
    assert len(blocks(store)) == 1
    assert len(list((tmp_path / "local").glob("*/*.npy"))) == 1
    assert encoder.asked == texts(9)
    found = CachedEncoder(encoder, VectorCache(tmp_path / "new", store)).encode(texts(9), "document")
    np.testing.assert_array_equal(found, expected(texts(9)))
    assert len(encoder.asked) == 9


def test_large_blocks_are_left_as_they_are(store: Store, tmp_path: Path, small_blocks: None) -> None:
    """Forty texts in full blocks of four stay ten blocks: merging is for small ones, in bounded memory."""
    CachedEncoder(Lengths(), VectorCache(tmp_path, store)).encode(texts(40), "document")
    assert len(blocks(store)) == 10


def test_a_machine_that_missed_a_merge_does_not_bring_the_old_blocks_back(store: Store, tmp_path: Path) -> None:
    """Its own copies of merged blocks go, once the store has all their texts."""
    for night in range(1, 9):
        CachedEncoder(Lengths(), VectorCache(tmp_path / "one", store)).encode(texts(night), "document")
    CachedEncoder(Lengths(), VectorCache(tmp_path / "two", store)).encode(texts(9), "document")
    (merged,) = blocks(store)
    CachedEncoder(Lengths(), VectorCache(tmp_path / "one", store)).encode(texts(9), "document")
    assert blocks(store) == [merged]
    assert [path.name for path in (tmp_path / "one").glob("*/*.npy")] == [merged.rsplit("/")[-1]]


def test_the_limit_removes_the_model_that_was_not_used_longest(store: Store, tmp_path: Path) -> None:
    """Room for two models: b was used after a was written, a again after b, so c's arrival costs b its place."""
    clock = iter(range(1000, 2000))
    cache = VectorCache(tmp_path, store, limit_bytes=0, now=lambda: float(next(clock)))
    cache.add("size", [text_hash("t")], np.ones((1, DIMENSION), np.float32))
    assert blocks(store) == [], "a block larger than the limit is not kept"
    probe = VectorCache(tmp_path / "probe")
    probe.add("size", [text_hash("t")], np.ones((1, DIMENSION), np.float32))
    (path,) = (tmp_path / "probe").glob("*/*.npy")
    cache.limit_bytes = 2 * path.stat().st_size
    for model in ("a", "b", "a", "c"):
        CachedEncoder(Lengths(model), cache).encode(["t"], "document")
    assert [key.split("/")[2] for key in blocks(store)] == ["a-document", "c-document"]
    assert sorted(path.parent.name for path in tmp_path.glob("*/*.npy")) == ["a-document", "c-document"]
    marks = [entry.key for entry in store.entries(PREFIX) if "/used/" in entry.key]
    assert sorted(mark.split("/")[2] for mark in marks) == ["a-document", "c-document"]


def test_the_key_in_use_keeps_to_the_limit_too(store: Store, tmp_path: Path, small_blocks: None) -> None:
    """A corpus larger than the cache: what fits is kept, and the vectors are right all the same."""
    cache = VectorCache(tmp_path, store, limit_bytes=1000)
    found = CachedEncoder(Lengths(), cache).encode(texts(40), "document")
    np.testing.assert_array_equal(found, expected(texts(40)))
    for size in (
        sum(entry.size for entry in store.entries(PREFIX)),
        sum(path.stat().st_size for path in tmp_path.glob("*/*.npy")),
    ):
        assert 0 < size <= 1000


def test_foreign_objects_beside_the_cache_are_left_alone(store: Store, tmp_path: Path) -> None:
    """Whatever else lies under the prefix neither stops a night nor is deleted for its size."""
    foreign = [f"{PREFIX}README", f"{PREFIX}a-document/used/yesterday", f"{PREFIX}a/b/c/d.npy"]
    for key in foreign:
        store.put(key, b"x" * 5000)
    found = CachedEncoder(Lengths(), VectorCache(tmp_path, store, limit_bytes=1000)).encode(texts(2), "document")
    np.testing.assert_array_equal(found, expected(texts(2)))
    assert all(store.find(key) is not None for key in foreign)


# --- at the same time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_runs_at_the_same_time_agree(store: Store, tmp_path: Path, shared: bool) -> None:
    """Four runs with overlapping texts, on one machine or four: each gets its vectors, and the cache ends sound."""

    def run(number: int) -> None:
        folder = tmp_path / ("shared" if shared else str(number))
        for night in range(4):
            wanted = texts(12, start=3 * number + night)
            cached = CachedEncoder(Lengths(), VectorCache(folder, store))
            np.testing.assert_array_equal(cached.encode(wanted, "document"), expected(wanted))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    last = Lengths()
    found = CachedEncoder(last, VectorCache(tmp_path / "last", store)).encode(texts(20), "document")
    np.testing.assert_array_equal(found, expected(texts(20)))
    assert last.asked == []


# --- with a real model ---------------------------------------------------------------------------------------


def test_a_real_models_forward_is_not_called_for_what_is_cached(store: Store, tmp_path: Path) -> None:
    """Second night: no forward at all for known documents, one for a new one; the vectors are those of serving."""
    encoder = ModelEncoder.open(encoding.resolve_model(BUNDLED_MODEL), FP32, device="cpu")
    documents = [f"Deletes the backup plan number {i}" for i in range(24)]
    calls: list[int] = []
    encoder.model.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0]["input_ids"])))
    first = CachedEncoder(encoder, VectorCache(tmp_path / "one", store)).encode(documents, "document")
    assert sum(calls) == 24
    calls.clear()
    again = CachedEncoder(encoder, VectorCache(tmp_path / "two", store))
    np.testing.assert_array_equal(again.encode(documents, "document"), first)
    assert calls == []
    again.encode([*documents, "Lists the backup plans"], "document")
    assert calls == [1]
    np.testing.assert_allclose(first, encoder.model.encode(documents), atol=1e-6)
    calls.clear()
    encoder.model.max_seq_length = 8
    again.encode(documents, "document")
    assert sum(calls) == 24, "another length is another key"
