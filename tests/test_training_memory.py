"""What training takes is known before the first step; what does not fit is computed in parts, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tasks.training import Trained, TrainingError, hardware, train
from tasks.training.examples import Batch
from tasks.training.loop import Loop
from tasks.training.memory import Memory, measure
from tests import tiny_models
from tests.test_training import DOCUMENTS, PAIRS, ROWS, dev_set, settings


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random BERT, as a folder to start from."""
    return str(tiny_models.save(tmp_path_factory.mktemp("base")))


def test_by_hand() -> None:
    """Two square layers of 8 with a ReLU: 16 bytes for each of 128 weights, and for each token two rows of 8 floats.

    The first layer keeps its input, which is not the model's own; the ReLU its output, which the second shares.
    """
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))

    def forward(tokens: int) -> tuple[int, object]:
        return tokens, lambda: model(torch.ones(tokens, 8))

    found = measure(model, [forward(3), forward(7)], recomputed=False)  # type: ignore[list-item]
    assert found == Memory(fixed=128 * 16, per_token=2 * 8 * 4)
    assert found.of(10) == 2048 + 640
    assert found.tokens_within(2048 + 650) == 10
    assert found.tokens_within(100) == 0
    model[0].weight.requires_grad_(False)
    assert measure(model, [forward(3), forward(7)], recomputed=False).fixed == 64 * 16 + 64 * 4  # type: ignore[list-item]


def test_a_decoder_of_600_million_parameters_trains_on_16_gb_at_batch_16() -> None:
    """The shape of Qwen3-0.6B, 16 pairs of 128 tokens a text, fp16: 15 GiB hold it only when layers are recomputed.

    Nothing is computed: on the `meta` device there are only shapes. Weights, gradients and moments are in fp32, and
    autocast adds a copy of the weights in half precision.
    """
    from transformers import Qwen3Config, Qwen3Model

    size = {"hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072, "num_attention_heads": 16}
    settings = Qwen3Config(**size, num_key_value_heads=8, head_dim=128, vocab_size=151_669, use_cache=False)
    with torch.device("meta"):
        model = Qwen3Model(settings)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == pytest.approx(596e6, rel=0.01)
    model.half()

    def forward(texts: int) -> Tensor:
        hidden: Tensor = model(
            torch.ones(texts, 128, dtype=torch.int64, device="meta"), attention_mask={"full_attention": None}
        ).last_hidden_state
        return hidden

    tokens, card = 2 * 16 * 128, 15 * 2**30
    for recomputed, fits in ((False, False), (True, True)):
        forwards = [(texts * 128, lambda texts=texts: forward(texts)) for texts in (1, 3)]
        per_token = measure(model, forwards, recomputed=recomputed).per_token
        needed = Memory(fixed=(4 + 12 + 2) * parameters, per_token=per_token)
        assert (needed.of(tokens) < card) == fits


def test_what_does_not_fit_is_computed_in_parts(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with room for the weights and some activations: the same losses, one chunk's activations at a time."""
    roomy = train(ROWS, None, [], settings(base, epochs=1), tmp_path / "roomy")
    assert not roomy.cached
    assert roomy.estimate.memory > 0
    weights = sum(tensor.nbytes for tensor in load_file(Path(base) / "model.safetensors").values())
    monkeypatch.setattr(hardware, "free_memory", lambda _: 6 * weights)
    tight = train(ROWS, None, [], settings(base, epochs=1), tmp_path / "tight")
    assert tight.cached
    assert tight.bucket_tokens < roomy.bucket_tokens
    assert tight.estimate.memory < roomy.estimate.memory
    np.testing.assert_allclose(tight.losses, roomy.losses, rtol=2e-3)


def test_a_gpu_without_room_for_the_weights_is_refused(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step, with both sizes."""
    monkeypatch.setattr(hardware, "free_memory", lambda _: 1000)
    with pytest.raises(TrainingError, match="GiB for weights, gradients and optimiser"):
        train(ROWS, None, [], settings(base), tmp_path / "model")


def test_recomputed_layers_give_the_same_weights(base: str, tmp_path: Path) -> None:
    """Gradient checkpointing keeps less and changes nothing: losses, weights and settings that are saved."""
    runs: list[Trained] = []
    for name, recomputed in (("kept", False), ("again", True)):
        training = settings(base, epochs=1, gradient_checkpointing=recomputed)
        runs.append(train(ROWS, dev_set(PAIRS), DOCUMENTS, training, tmp_path / name))
    assert runs[1].losses == runs[0].losses
    assert runs[1].estimate.memory < runs[0].estimate.memory
    for path in (tmp_path / "kept").rglob("*.*"):
        if path.name != "README.md":
            assert (tmp_path / "again" / path.relative_to(tmp_path / "kept")).read_bytes() == path.read_bytes()


def test_memory_that_runs_out_in_a_dev_score_is_answered_with_smaller_chunks(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above ten texts without gradients: the scores are those of an undisturbed run."""
    from tasks.training.embedder import Embedder

    undisturbed = train(ROWS, dev_set(PAIRS), DOCUMENTS, settings(base, epochs=1), tmp_path / "undisturbed")
    forward = Embedder.forward

    def short_of_memory(self: Embedder, plan: object, chunk: np.ndarray) -> Tensor:
        if not torch.is_grad_enabled() and len(chunk) > 10:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return forward(self, plan, chunk)  # type: ignore[arg-type]

    monkeypatch.setattr(Embedder, "forward", short_of_memory)
    trained = train(ROWS, dev_set(PAIRS), DOCUMENTS, settings(base, epochs=1), tmp_path / "model")
    assert trained.bucket_tokens < undisturbed.bucket_tokens
    assert [score.mrr for score in trained.dev] == pytest.approx([score.mrr for score in undisturbed.dev], abs=0.02)
    np.testing.assert_allclose(trained.losses, undisturbed.losses, rtol=2e-3)


def test_fp16_trains_with_a_scaled_loss(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss curve of fp32 within fp16's three digits; a scale that overflows is lowered, and no step is lost."""
    exact = train(ROWS, None, [], settings(base), tmp_path / "exact")
    monkeypatch.setattr("tasks.training.loop._FIRST_SCALE", 2.0**60)
    trained = train(ROWS, None, [], settings(base, precision="fp16"), tmp_path / "half")
    assert trained.precision == "fp16"
    assert trained.steps == exact.steps
    np.testing.assert_allclose(trained.losses, exact.losses, rtol=5e-2)


def test_gradients_that_overflow_at_any_scale_are_an_error(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named, with the remedy; not an endless search for a scale."""
    real = Loop._gradients

    def infinite(self: Loop, batch: Batch) -> float:
        loss = real(self, batch)
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.fill_(torch.inf)
        return loss

    monkeypatch.setattr(Loop, "_gradients", infinite)
    with pytest.raises(TrainingError, match="gradients overflow in fp16 at step 1: set precision to fp32"):
        train(ROWS, None, [], settings(base, precision="fp16"), tmp_path / "model")
