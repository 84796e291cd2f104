"""The serving check, in its fresh process: what is stored must be what was scored, and not much slower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.config import BUNDLED_MODEL
from tasks.encoding import FP32, encode, load, resolve_model
from tasks.registry import Description, publish
from tasks.scoring.serving import MachineError, Sample, check_serving, describe, differs
from tasks.storage import Store
from tests import tiny_models

QUERIES = ["fox", "the lazy dog", "a quick brown fox jumps over it"]
DOCUMENTS = ["dog", "the quick brown fox", "letters from the pangram jumps over the lazy dog 0 1 2 3 " * 3]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model in all but size: 2 layers, 32 dimensions."""
    return tiny_models.save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def scored(tiny: Path) -> Sample:
    """What the tiny model gives for the sample, in this process."""
    model = load(tiny, "cpu")
    return Sample(QUERIES, encode(model, QUERIES, "query"), DOCUMENTS, encode(model, DOCUMENTS, "document"))


def check(store: Store, version: str, sample: Sample, baseline: Path, **more: float) -> list[str]:
    """Run the check on the CPU; the slowdown is only judged where a test asks for it."""
    rule = {"max_slowdown": 1e6, "timeout": 300.0} | more
    return check_serving(store, version, sample, baseline=baseline, path=FP32, device="cpu", **rule)


def test_a_stored_model_that_gives_the_scored_vectors_may_serve(store: Store, tiny: Path, scored: Sample) -> None:
    """Published, downloaded, loaded by another process: no reason against it."""
    version = publish(store, tiny, describe(tiny, (16, 8)))
    assert check(store, version, scored, tiny) == []


def test_a_prompt_that_was_not_saved_is_noticed(store: Store, tiny: Path) -> None:
    """The scored model put "query: " before each query; the stored one does not know of it. Documents are the same."""
    model = load(tiny, "cpu")
    model.prompts = {"query": "query: ", "document": ""}
    sample = Sample(QUERIES, encode(model, QUERIES, "query"), DOCUMENTS, encode(model, DOCUMENTS, "document"))
    declared = describe(tiny).model_copy(update={"prompts": {"query": "query: "}})
    reasons = check(store, publish(store, tiny, declared), sample, tiny)
    assert len(reasons) == 3
    assert "prompts {'query': 'query: '}, the stored model has {}" in reasons[0]
    assert "queries by fp32: 3 of 3 vectors are not the scored ones" in reasons[1]
    assert "queries by the library's own encode: 3 of 3" in reasons[2]


def test_everything_that_the_manifest_says_wrongly_is_named(store: Store, tiny: Path, scored: Sample) -> None:
    """Dimension, normalisation, length, and Matryoshka dimensions that the model does not have."""
    declared = Description(dimension=384, normalisation="none", max_length=512, matryoshka_dims=(256, 16))
    reasons = check(store, publish(store, tiny, declared), scored, tiny)
    for field in ("dimension 384", "normalisation 'none'", "max_length 512", "Matryoshka dimensions [256]"):
        assert sum(field in reason for reason in reasons) == 1
    assert len(reasons) == 4


def test_a_model_that_does_not_load_is_a_reason_and_no_crash(
    store: Store, tiny: Path, scored: Sample, tmp_path: Path
) -> None:
    """Weights that verify by their hash and are no weights."""
    folder = tmp_path / "broken"
    for path in tiny.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(tiny)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(tiny)).write_bytes(path.read_bytes())
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    (reason,) = check(store, publish(store, folder, describe(tiny)), scored, tiny)
    assert "cannot be served (exit status 1)" in reason


def test_a_model_that_is_much_slower_may_not_serve(store: Store, tiny: Path, tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 beside a model with a hundredth of its work, allowed 1.5 times the time."""
    folder = resolve_model(BUNDLED_MODEL)
    model = load(folder, "cpu")
    long = [f"{number} " + DOCUMENTS[2] * 8 for number in range(8)]
    sample = Sample(QUERIES, encode(model, QUERIES, "query"), long, encode(model, long, "document"))
    model.save(str(tmp_path / "saved"), create_model_card=False)
    version = publish(store, tmp_path / "saved", describe(tmp_path / "saved"))
    (reason,) = check(store, version, sample, tiny, max_slowdown=1.5)
    assert "times the time of what serves" in reason


def test_bytes_that_changed_in_the_store_are_found_before_anything_is_loaded(
    store: Store, tiny: Path, scored: Sample
) -> None:
    """One flipped bit in the weights."""
    version = publish(store, tiny, describe(tiny))
    body = bytearray(store.get(f"models/{version}/model.safetensors").body)
    body[-1] ^= 1
    store.put(f"models/{version}/model.safetensors", bytes(body))
    (reason,) = check(store, version, scored, tiny)
    assert "model.safetensors has another sha256" in reason
    (reason,) = check(store, "0123456789abcdef", scored, tiny)
    assert "there is no version" in reason


def test_a_check_of_nothing_and_one_that_takes_too_long_do_not_pass(store: Store, tiny: Path, scored: Sample) -> None:
    """Vacuous or unfinished is not proven."""
    version = publish(store, tiny, describe(tiny))
    nothing = np.empty((0, 32), np.float32)
    assert check(store, version, Sample([], nothing, [], nothing), tiny) == ["the serving check had no texts to encode"]
    (reason,) = check(store, version, scored, tiny, timeout=0.01)
    assert "within 0.01 seconds" in reason


@pytest.mark.parametrize(
    "failure",
    [
        'raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")',
        "os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory is short",
    ],
)
def test_a_machine_without_memory_is_not_blamed_on_the_candidate(
    store: Store, tiny: Path, scored: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    """Memory runs out in the fresh process: an error of the machine, and no reason to hold the candidate."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'tasks.scoring.serving' in sys.orig_argv:\n"
        "    import torch\n    import tasks.encoding\n"
        f"    def encode(*_, **__):\n        {failure}\n"
        "    tasks.encoding.encode = encode\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    version = publish(store, tiny, describe(tiny))
    with pytest.raises(MachineError, match="this machine ran out of memory"):
        check(store, version, scored, tiny)


def test_vectors_are_compared_by_distance_and_nan_is_never_equal() -> None:
    """Distances 0, 0.1 and NaN, with a tolerance of 0.05: two of three are wrong."""
    scored = np.array([[1, 0], [1, 0], [1, 0]], np.float32)
    served = np.array([[1, 0], [1, 0.1], [np.nan, 0]], np.float32)
    assert differs(scored, scored, 0.05, "x") == []
    (reason,) = differs(served, scored, 0.05, "x")
    assert reason.startswith("x: 2 of 3 vectors are not the scored ones")
    assert "shape (3, 2), scored ones (3, 1)" in differs(served, scored[:, :1], 0.05, "x")[0]


def test_a_sample_is_cut_evenly_over_lengths() -> None:
    """Of five texts three: the shortest, the middle and the longest, each with its own vector."""
    texts = ["aaaaa", "a", "aaa", "aaaa", "aa"]
    vectors = np.array([[len(text)] for text in texts], np.float32)
    cut = Sample(texts, vectors, texts, vectors).cut(3)
    assert cut.queries == cut.documents == ["a", "aaa", "aaaaa"]
    assert cut.query_vectors.tolist() == cut.document_vectors.tolist() == [[1], [3], [5]]
    assert Sample(texts, vectors, texts, vectors).cut(9).queries == sorted(texts)
    with pytest.raises(ValueError, match="5 texts need as many vectors"):
        Sample(texts, vectors[:4], texts, vectors)
