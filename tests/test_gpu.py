"""On a GPU: the vectors and losses of the CPU, and nothing left behind. Skipped where there is no CUDA device.

`RATCHET_GPU_TESTS=cpu` runs them on the CPU, to see that the tests themselves work.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.config import BUNDLED_MODEL, Training
from tasks.encoding import BF16, FP32, PLAIN, NumericPath, choose_path, encode, load, resolve_model
from tasks.training import TrainingError, hardware, train
from tasks.training.checkpoints import Checkpoint, Checkpoints
from tasks.training.embedder import Embedder, Texts
from tasks.training.examples import Examples, order
from tasks.training.loop import Loop
from tasks.training.processes import ALONE, Group
from tasks.training.start import FROM_BASE, choose_kernel, open_start
from tests import tiny_models
from tests.test_buckets import TEXTS
from tests.test_training import DOCUMENTS, PAIRS, ROWS, dev_set, settings

PRETEND = os.environ.get("RATCHET_GPU_TESTS") == "cpu"
GPU = "cpu" if PRETEND else "cuda"
CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (PRETEND or torch.cuda.is_available()), reason="needs a CUDA device"),
]


ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="what only a GPU has")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random BERT, as a folder to start from."""
    return str(tiny_models.save(tmp_path_factory.mktemp("base")))


class Kept(Checkpoints):
    """The newest checkpoint, in memory: a machine with a GPU may have no server for the tests."""

    def __init__(self) -> None:
        self.newest: Checkpoint | None = None

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Keep it."""
        assert step == len(checkpoint.state["losses"])
        self.newest = checkpoint

    def latest(self, identity: str) -> Checkpoint | None:
        """The one that was kept, if it is of this run."""
        return self.newest if self.newest is not None and self.newest.state["identity"] == identity else None


def new_loop(training: Training) -> Loop:
    """A run before its first step."""
    return Loop(open_start(training), FROM_BASE, Examples(ROWS), training, 0.0, ALONE)


@pytest.mark.parametrize(("path", "most"), [(PLAIN, 1e-4), (FP32, 1e-4), (BF16, 2e-2)], ids=lambda one: str(one))
def test_vectors_are_those_of_the_cpu(path: NumericPath, most: float) -> None:
    """all-MiniLM-L6-v2 on every numeric path, within what the serving check tolerates."""
    folder = resolve_model(BUNDLED_MODEL)
    expected = encode(load(folder, "cpu"), TEXTS, "document", path=PLAIN)
    found = encode(load(folder, GPU), TEXTS, "document", path=path)
    assert np.linalg.norm(found - expected, axis=1).max() < most


def test_a_training_leaves_the_precision_of_matrix_products_as_it_was(base: str, tmp_path: Path) -> None:
    """What is scored after a training, in its process, is what a fresh process serves: IEEE products, no TF32."""
    before = torch.get_float32_matmul_precision()
    train(ROWS, None, [], settings(base, epochs=1), tmp_path / "model")
    assert torch.get_float32_matmul_precision() == before
    model = load(resolve_model(BUNDLED_MODEL), GPU)
    expected = encode(load(resolve_model(BUNDLED_MODEL), "cpu"), TEXTS, "document")
    assert np.linalg.norm(encode(model, TEXTS, "document") - expected, axis=1).max() < 1e-4


def test_the_numeric_path_is_chosen_the_same_every_time() -> None:
    """By what the card can do, not by a race between launches: else the cache of vectors is thrown away."""
    model = load(resolve_model(BUNDLED_MODEL), GPU)
    assert len({choose_path([model], TEXTS) for _ in range(5)}) == 1


@pytest.mark.parametrize(("precision", "most"), [("fp32", 5e-3), ("bf16", 5e-2), ("fp16", 5e-2)])
def test_the_loss_curve_is_that_of_the_cpu(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, most: float
) -> None:
    """Three epochs of a tiny model: losses within rounding of those on the CPU in fp32, and they fall."""
    there = train(ROWS, dev_set(PAIRS), DOCUMENTS, settings(base, precision=precision), tmp_path / "there")
    monkeypatch.setattr(hardware, "device", lambda: CPU)
    here = train(ROWS, dev_set(PAIRS), DOCUMENTS, settings(base), tmp_path / "here")
    np.testing.assert_allclose(there.losses, here.losses, rtol=most)
    assert there.losses[-1] < there.losses[0]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "mpnet", "electra", "modernbert"])
def test_every_architecture_trains(tmp_path: Path, architecture: tiny_models.Architecture) -> None:
    """Whatever attention it allows."""
    folder = str(tiny_models.save(tmp_path / "base", architecture))
    trained = train(ROWS, None, [], settings(folder, epochs=1, precision="auto"), tmp_path / "model")
    assert np.isfinite(trained.losses).all()


def test_a_process_without_a_share_of_a_batch_still_has_vectors_on_the_device() -> None:
    """Fewer texts than GPUs: NCCL gathers tensors of the GPU only."""
    model = load(resolve_model(BUNDLED_MODEL), GPU)
    seen: list[torch.Tensor] = []

    class Alone(Group):
        def gather(self, own: torch.Tensor, rows: int) -> torch.Tensor:
            seen.append(own)
            return own.new_zeros(rows, own.shape[1])

    embedder = Embedder(model, group=Alone(3, 4))
    embedder.embed((Texts(model, TEXTS[:2], "document"), np.arange(2)))
    assert [tensor.device.type for tensor in seen] == [GPU]


def test_a_checkpoint_takes_no_memory_of_the_gpu(base: str) -> None:
    """Weights, best weights and moments are put together on the CPU: a large model has no room for them twice."""
    loop = new_loop(settings(base))
    assert {tensor.device.type for tensor in loop.checkpoint().tensors.values()} == {"cpu"}


def test_the_estimate_is_of_the_right_size(tmp_path: Path) -> None:
    """The first launch of every kernel takes a second: it is not multiplied by the number of pairs."""
    trained = train(ROWS, None, [], Training(batch_size=8, epochs=3), tmp_path / "model")
    assert trained.estimate.seconds < 4 * trained.seconds + 2


@ON_A_GPU
def test_more_processes_than_gpus_are_refused_in_words(base: str, tmp_path: Path) -> None:
    """Before anything is started."""
    with pytest.raises(TrainingError, match="GPU"):
        train(ROWS, None, [], settings(base, processes=torch.cuda.device_count() + 1), tmp_path / "model")


@ON_A_GPU
def test_memory_runs_out_and_the_training_goes_on(tmp_path: Path) -> None:
    """Half of what a step needs: cached gradients in smaller chunks, the same losses."""
    changes: dict[str, Any] = {"batch_size": 72, "epochs": 2}
    torch.cuda.reset_peak_memory_stats()
    roomy = train(ROWS, None, [], Training(**changes), tmp_path / "roomy")
    torch.cuda.empty_cache()
    share = 0.6 * roomy.peak_memory / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        tight = train(ROWS, None, [], Training(**changes), tmp_path / "tight")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert tight.cached
    np.testing.assert_allclose(tight.losses, roomy.losses, rtol=3e-2)


@ON_A_GPU
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_packed_vectors_are_those_of_the_padded_forward(precision: str) -> None:
    """By PyTorch's variable-length kernel, both columns in one forward."""
    model = load(resolve_model(BUNDLED_MODEL), GPU).eval()
    columns = [(Texts(model, TEXTS, role), np.arange(len(TEXTS))) for role in ("query", "document")]  # type: ignore[arg-type]
    embedder = Embedder(model, precision, chunk_tokens=65_536)  # type: ignore[arg-type]
    with torch.no_grad():
        plain = embedder.embed(*columns)
        choose_kernel(embedder, packed=True)
        found = embedder.embed(*columns)
    for one, other in zip(found, plain, strict=True):
        assert torch.cosine_similarity(one, other).min() > 0.999


@ON_A_GPU
def test_training_on_this_card_is_packed_in_half_precision() -> None:
    """What the goals for speed rest on."""
    embedder = new_loop(Training(matryoshka_dims=())).embedder
    assert embedder.precision in ("bf16", "fp16")
    assert embedder.packed
    assert embedder.chunk_tokens == 65_536


@ON_A_GPU
def test_a_step_waits_for_the_gpu_once() -> None:
    """For the loss; every other value that a step needs is known on the CPU."""
    loop = new_loop(Training(matryoshka_dims=(256,)))
    batch = next(iter(order(1, 64, 1, loop.examples)))
    loop._step(1, batch)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing") as seen:
            loop._step(2, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(seen) <= 2


@ON_A_GPU
def test_a_run_resumed_on_the_gpu_goes_on(base: str, tmp_path: Path) -> None:
    """Best weights and moments come back from the CPU to the card; the loss curve is that of an unbroken run."""
    training = settings(base, checkpoint_minutes=1e-9, precision="auto")
    whole = train(ROWS, dev_set(PAIRS), DOCUMENTS, training, tmp_path / "whole")

    def stop(step: int, *_: object) -> None:
        if step == 20:
            raise KeyboardInterrupt

    kept = Kept()
    with pytest.raises(KeyboardInterrupt):
        train(ROWS, dev_set(PAIRS), DOCUMENTS, training, tmp_path / "m", checkpoints=kept, on_progress=stop)
    again = train(ROWS, dev_set(PAIRS), DOCUMENTS, training, tmp_path / "m", checkpoints=kept)
    assert again.resumed == 19
    np.testing.assert_allclose(again.losses, whole.losses, rtol=5e-2)


@ON_A_GPU
def test_the_run_names_the_card(base: str, tmp_path: Path) -> None:
    """A GPU that is not used must not go unnoticed."""
    trained = train(ROWS, None, [], settings(base, epochs=1), tmp_path / "model")
    assert torch.cuda.get_device_name(0) in trained.device


@ON_A_GPU
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_as_one_does(base: str, tmp_path: Path) -> None:
    """Over NCCL, on the loopback interface."""
    alone = train(ROWS, dev_set(PAIRS), DOCUMENTS, settings(base), tmp_path / "alone")
    together = train(ROWS, dev_set(PAIRS), DOCUMENTS, settings(base, processes=2), tmp_path / "together")
    np.testing.assert_allclose(together.losses, alone.losses, rtol=5e-3)
