"""Fine-tuning: it learns, it repeats itself exactly, it saves what serving needs, and it refuses what cannot work."""

from __future__ import annotations

import gc
import json
import math
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tasks.config import BUNDLED_MODEL, Training
from tasks.dataset import EvaluationSet
from tasks.encoding import check_folder, fingerprint, load, resolve_model
from tasks.training import Estimate, Start, Trained, TrainingError, hardware, train
from tasks.training.examples import Examples
from tasks.training.loop import _evaluation_steps, _schedule
from tasks.training.memory import measure
from tests import tiny_models
from tests.test_batches import table
from tests.test_packed import by_text

# what is asked for in one vocabulary is answered in another, so that words in common find nothing: it must be learned
NOUNS = dict(
    zip(
        ("key", "user", "bucket", "table", "queue", "topic", "role", "policy", "stack", "alarm", "volume", "image"),
        ("secret", "person", "folder", "sheet", "line", "theme", "duty", "rule", "pile", "bell", "disk", "picture"),
        strict=True,
    )
)
VERBS = {"rotate": "turn", "list": "show", "create": "make", "delete": "drop", "copy": "clone", "attach": "join"}
PAIRS = [
    (f"{verb} my {noun}", f"{VERBS[verb]} the {NOUNS[noun]} {'and so on ' * (place % 5)}")
    for verb in VERBS
    for place, noun in enumerate(NOUNS)
]
ROWS = table(*[(query, document, [], None) for query, document in PAIRS])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random BERT, as a folder to start from."""
    return str(tiny_models.save(tmp_path_factory.mktemp("base")))


def settings(base: str, **changes: Any) -> Training:
    """Small, exact settings for the tiny model."""
    quick: dict[str, Any] = {
        "base_model": base,
        "batch_size": 8,
        "epochs": 3,
        "learning_rate": 3e-3,
        "matryoshka_dims": (16, 8),
        "precision": "fp32",
    }
    return Training(**quick | changes)


def dev_set(pairs: list[tuple[str, str]]) -> EvaluationSet:
    """Dev queries whose relevant document is the one at the same place."""
    queries = [query for query, _ in pairs]
    relevant = [np.array([place]) for place in range(len(pairs))]
    return EvaluationSet(queries, relevant, [None] * len(pairs), np.zeros(len(pairs), bool), 0)


DOCUMENTS = [document for _, document in PAIRS]


# --- learning ----------------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_finds_the_documents(base: str, tmp_path: Path) -> None:
    """On a toy set the loss falls by more than half, and dev's MRR rises well above the random model's."""
    trained = train(ROWS, dev_set(PAIRS), DOCUMENTS, settings(base, epochs=8), tmp_path / "model")
    third = len(trained.losses) // 3
    assert np.mean(trained.losses[-third:]) < np.mean(trained.losses[:third]) / 2
    assert trained.dev[0].step == 0
    assert max(score.mrr for score in trained.dev) > trained.dev[0].mrr + 0.2
    assert trained.rows == {"ranking": len(PAIRS)}
    assert trained.pairs == 8 * trained.steps


def test_measuring_a_forward_leaves_nothing_behind(base: str) -> None:
    """In bf16 a node keeps its own output: held by a hook, that is a circle that nothing frees, weights and all."""

    def forward(model: SentenceTransformer, count: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            features = model.preprocess(["rotate my key"] * count)
            return model(features)["sentence_embedding"].float()

    def measured() -> weakref.ref[torch.nn.Parameter]:
        model = load(Path(base), "cpu")
        forwards = [(4, partial(forward, model, 1)), (12, partial(forward, model, 3))]
        assert measure(model, forwards, recomputed=False).fixed > 0
        return weakref.ref(next(model.parameters()))

    weight = measured()
    gc.collect()
    assert weight() is None


def test_every_kind_of_row_trains(base: str, tmp_path: Path) -> None:
    """A mixed night: pairs, triplets and scored pairs each have their batches, and all losses are numbers."""
    rows = table(
        *[(query, document, [], None) for query, document in PAIRS[:24]],
        *[(query, document, [PAIRS[0][1], PAIRS[1][1]], None) for query, document in PAIRS[24:40]],
        *[(query, document, [], n % 5 / 4) for n, (query, document) in enumerate(PAIRS[40:])],
    )
    trained = train(rows, None, [], settings(base, epochs=1, loss="triplet"), tmp_path / "model")
    assert trained.rows == {"ranking": 24, "triplet": 16, "cosent": 32}
    assert trained.steps == 3 + 2 + 4
    assert all(math.isfinite(loss) for loss in trained.losses)


def test_the_same_seed_gives_the_same_bytes(base: str, tmp_path: Path) -> None:
    """Two runs with one seed save identical folders, file by file; another seed gives other weights."""
    folders = [tmp_path / name for name in ("one", "two", "other")]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        train(ROWS, dev_set(PAIRS), DOCUMENTS, settings(base, seed=seed), folder, commit=7)
    one, two, _ = ({path.relative_to(f): path.read_bytes() for path in f.rglob("*") if path.is_file()} for f in folders)
    assert one == two
    assert fingerprint(folders[0]) != fingerprint(folders[2])


def test_packed_and_padded_runs_have_the_same_losses(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does, with attention text by text in its kernel's place: it changes the time, not the training."""
    training = settings(base, precision="bf16")
    plain = train(ROWS, None, [], training, tmp_path / "plain")
    monkeypatch.setattr(hardware, "attends_by_text", lambda _: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", by_text)
    fast = train(ROWS, None, [], training, tmp_path / "fast")
    assert (fast.packed, plain.packed) == (True, False)
    assert fast.padded_tokens == fast.tokens == plain.tokens < plain.padded_tokens
    np.testing.assert_allclose(fast.losses, plain.losses, rtol=5e-2)


def test_quick_trains_the_upper_half_only(base: str, tmp_path: Path) -> None:
    """Embeddings and the first of two layers keep their bytes, the second layer does not, and the loss falls."""
    trained = train(ROWS, None, [], settings(base, quick=True), tmp_path / "model")
    before, after = load(Path(base)).state_dict(), load(tmp_path / "model").state_dict()
    changed = {name.split("model.")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("encoder.layer.1.") for name in changed)
    assert trained.losses[-1] < trained.losses[0]


def test_mined_negatives_are_trained_on(base: str, tmp_path: Path) -> None:
    """Two per row are found among the training documents, counted, and make more candidates: a higher first loss."""
    plain = train(ROWS, None, [], settings(base), tmp_path / "plain")
    trained = train(ROWS, None, [], settings(base, hard_negatives=2), tmp_path / "mined")
    assert plain.mined == 0
    assert 0 < trained.mined <= 2 * len(PAIRS)
    assert trained.losses[0] > plain.losses[0]
    assert f"| mined negatives | {trained.mined} |" in (tmp_path / "mined" / "README.md").read_text()


def test_a_model_that_cannot_be_packed_trains_padded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MPNet falls back by itself and learns all the same."""
    monkeypatch.setattr(hardware, "attends_by_text", lambda _: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", by_text)
    mpnet = str(tiny_models.save(tmp_path / "base", "mpnet"))
    trained = train(ROWS, None, [], settings(mpnet, precision="bf16"), tmp_path / "model")
    assert not trained.packed
    assert trained.losses[-1] < trained.losses[0]


def test_the_distance_from_base_is_that_of_the_saved_weights(base: str, tmp_path: Path) -> None:
    """Computed anew from both folders by another library; going on from a version adds to what that one had moved."""
    first = train(ROWS, None, [], settings(base), tmp_path / "first")
    start = Start("v1", tmp_path / "first")
    second = train(ROWS, None, [], settings(base), tmp_path / "second", start=start)
    before, after = (load_file(folder / "model.safetensors") for folder in (Path(base), tmp_path / "second"))
    moved = np.concatenate([(after[name] - before[name]).ravel() for name in before]).astype(np.float64)
    size = np.concatenate([before[name].ravel() for name in before]).astype(np.float64)
    assert second.distance_from_base == pytest.approx(np.linalg.norm(moved) / np.linalg.norm(size), rel=1e-5)
    assert second.losses[0] < first.losses[0]
    assert (first.started_from, second.started_from) == ("base", "v1")
    assert "Started from: v1" in (tmp_path / "second" / "README.md").read_text()


def test_a_start_of_another_architecture_is_refused(base: str, tmp_path: Path) -> None:
    """A version whose parameters are not the base model's is named, before anything is trained."""
    other = tiny_models.save(tmp_path / "other", "distilbert")
    with pytest.raises(TrainingError, match="version v1 has other parameters than base model"):
        train(ROWS, None, [], settings(base), tmp_path / "m", start=Start("v1", other))
    with pytest.raises(TrainingError, match="version v2: there is no folder"):
        train(ROWS, None, [], settings(base), tmp_path / "m", start=Start("v2", tmp_path / "nowhere"))


# --- when to stop ------------------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_saved(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The saved model has the best dev MRR of the run: scored again from its folder it ranks as it did then."""
    monkeypatch.setattr("tasks.training.loop._DEV_SHARE", 10)  # enough for dev to be all of it, not a sample
    pairs = PAIRS[::4]
    documents = [document for _, document in pairs]
    trained = train(ROWS, dev_set(pairs), documents, settings(base, epochs=6), tmp_path / "model")
    best = max(trained.dev[1:], key=lambda score: score.mrr)
    assert trained.best_step in {score.step for score in trained.dev if score.mrr == best.mrr}
    saved = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    similarities = saved.encode([query for query, _ in pairs]) @ saved.encode(documents).T
    ranks = (similarities >= np.diag(similarities)[:, None]).sum(axis=1)
    assert float(np.mean(1 / ranks)) == pytest.approx(best.mrr, abs=1e-6)


def test_no_gain_on_dev_stops_early(base: str, tmp_path: Path) -> None:
    """Dev labels at random: after three evaluations without a gain it stops, and says so."""
    wrong = dev_set(PAIRS)
    shuffled = np.random.default_rng(0).permutation(len(PAIRS))
    random = EvaluationSet(wrong.queries, [np.array([n]) for n in shuffled], wrong.slices, wrong.golden, 0)
    trained = train(ROWS, random, DOCUMENTS, settings(base, epochs=30), tmp_path / "model")
    assert trained.stopped == "no better dev MRR in 3 evaluations"
    assert trained.steps < trained.planned_steps
    best = max(score.mrr for score in trained.dev[1:])
    assert all(score.mrr < best for score in trained.dev[-3:])


def test_max_minutes_stops_cleanly_with_the_best_so_far(base: str, tmp_path: Path) -> None:
    """Out of time after the first step: scored once more, saved, and the reason is given."""
    trained = train(ROWS, dev_set(PAIRS), DOCUMENTS, settings(base, max_minutes=1e-6), tmp_path / "model")
    assert trained.steps == trained.best_step == 1
    assert trained.stopped is not None
    assert "max_minutes" in trained.stopped
    assert [score.step for score in trained.dev] == [0, 1]
    assert SentenceTransformer(str(tmp_path / "model"), device="cpu").encode("a").shape == (tiny_models.WIDTH,)


def test_max_cost_stops_cleanly(base: str, tmp_path: Path) -> None:
    """At a dollar a second a tenth of a cent is spent after the first step."""
    changes = {"price_per_hour": 3600, "max_cost": 0.001}
    trained = train(ROWS, None, [], settings(base, **changes), tmp_path / "model")
    assert trained.steps == trained.best_step == 1
    assert trained.stopped == "max_cost (0.001) reached"


def test_few_dev_queries_pick_nothing(base: str, tmp_path: Path) -> None:
    """Seven dev queries are chance: the last step's model is taken."""
    trained = train(ROWS, dev_set(PAIRS[:7]), DOCUMENTS, settings(base), tmp_path / "model")
    assert trained.dev == ()
    assert trained.best_step == trained.steps == trained.planned_steps


def test_progress_and_estimate_are_reported(base: str, tmp_path: Path) -> None:
    """Each step is reported with its loss; before them the expected duration, at the given price per hour."""
    seen: list[tuple[int, int, float]] = []
    expected: list[Estimate] = []
    trained = train(
        ROWS,
        None,
        [],
        settings(base, price_per_hour=3600),
        tmp_path / "model",
        on_progress=lambda *step: seen.append(step),
        on_estimate=expected.append,
    )
    assert seen == [(n + 1, trained.planned_steps, loss) for n, loss in enumerate(trained.losses)]
    assert expected == [trained.estimate]
    assert expected[0].dollars == pytest.approx(expected[0].seconds)
    assert trained.dollars == pytest.approx(trained.seconds)


def test_out_of_memory_halves_the_buckets_and_goes_on(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory runs out above 100 tokens at once: smaller buckets with cached gradients end with the same loss curve."""
    undisturbed = train(ROWS, None, [], settings(base, epochs=1), tmp_path / "undisturbed")
    from tasks.training.embedder import Embedder

    forward = Embedder.forward

    def short_of_memory(self: Embedder, texts: Any, chunk: Any) -> torch.Tensor:
        if torch.is_grad_enabled() and texts.lengths[chunk].sum() > 100:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return forward(self, texts, chunk)

    monkeypatch.setattr(Embedder, "forward", short_of_memory)
    trained = train(ROWS, None, [], settings(base, epochs=1), tmp_path / "model")
    assert trained.cached
    assert trained.bucket_tokens in {64, 128}
    assert f"at most {trained.bucket_tokens} tokens" in caplog.text
    np.testing.assert_allclose(trained.losses, undisturbed.losses, rtol=2e-3)


def test_bf16_is_decided_by_the_processor_and_the_measurement_only_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processor cannot, never; where it can, unless the median of interleaved runs says it is slower."""
    cpu = torch.device("cpu")
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    times = iter([1.0, 0.5] * 5 + [1.0, 9.0] * 4)  # a busy moment in four of the nine rounds
    monkeypatch.setattr(hardware, "_cpu_seconds", lambda *_, **__: next(times))
    assert hardware.bf16_pays(cpu)
    monkeypatch.setattr(hardware, "_cpu_seconds", lambda *_, bf16: 1.1 if bf16 else 1.0)
    assert not hardware.bf16_pays(cpu)
    monkeypatch.setattr(hardware, "_cpu_seconds", lambda *_, bf16: 0.1 if bf16 else 1.0)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    assert not hardware.bf16_pays(cpu)


def test_other_errors_are_not_taken_for_memory() -> None:
    """Only what says that memory ran out is answered with smaller buckets."""
    assert hardware.out_of_memory(MemoryError())
    assert hardware.out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not hardware.out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_memory_is_told_from_other_errors_of_a_gpus_libraries() -> None:
    """Libraries and driver say in their own words that they could not allocate; a wrong index is another matter."""
    for said in (
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory",
    ):
        assert hardware.out_of_memory(RuntimeError(said))
    for said in ("CUDA error: device-side assert triggered", "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"):
        assert not hardware.out_of_memory(RuntimeError(said))


def test_a_pool_that_asks_for_a_gpu_does_not_train_without_one(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused with what to look at; without the request the CPU does it, and the run says so."""
    monkeypatch.setenv("RATCHET_REQUIRE_GPU", "1")
    assert "sees none: see what nvidia-smi says" in refused(base, tmp_path / "m")
    monkeypatch.delenv("RATCHET_REQUIRE_GPU")
    assert train(ROWS, None, [], settings(base, epochs=1), tmp_path / "m").device.startswith("cpu")


def test_training_leaves_the_precision_of_matrix_products_alone(base: str, tmp_path: Path) -> None:
    """What is scored after it in the same process is what a fresh process serves: no TF32 is left on."""
    before = torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32
    train(ROWS, None, [], settings(base, epochs=1), tmp_path / "m")
    assert (torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32) == before == ("highest", False)


@pytest.mark.parametrize(
    ("capability", "bf16", "expected"), [((9, 0), True, "bf16"), ((7, 5), False, "fp16"), ((6, 1), False, "fp32")]
)
def test_the_precision_of_a_gpu_follows_from_its_generation(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], bf16: bool, expected: str
) -> None:
    """An H100 in bf16, a T4 in fp16, a P40, whose fp16 is slower than its fp32, in fp32."""
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: bf16)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    assert hardware.half(torch.device("cuda")) == expected


def test_the_schedule_rises_and_falls_linearly() -> None:
    """Ten steps, warmup 0.2: half, full, then down by ninths to one ninth, never zero on a step that is taken."""
    rates = [_schedule(step, 10, 0.2) for step in range(1, 11)]
    assert rates == pytest.approx([1 / 2, 1, *(n / 9 for n in range(8, 0, -1))])
    assert [_schedule(step, 2, 0.0) for step in (1, 2)] == pytest.approx([2 / 3, 1 / 3])
    assert _schedule(1, 1, 0.1) == 1


def test_evaluations_are_even_and_end_with_the_last_step() -> None:
    """Four in an epoch, two more per further epoch, never more than steps."""
    assert _evaluation_steps(32, 1) == [8, 16, 24, 32]
    assert _evaluation_steps(60, 2) == [10, 20, 30, 40, 50, 60]
    assert _evaluation_steps(2, 1) == [1, 2]


# --- the artefact ------------------------------------------------------------------------------------------------


def run_real(folder: Path) -> Trained:
    """One step on the real model with its defaults."""
    return train(ROWS.slice(0, 8), None, [], Training(batch_size=8, max_length=32), folder, commit=3)


def test_the_saved_folder_serves_as_the_base_does(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 after a step: data only, the base's length, pooling and normalisation, cut at any dimension."""
    folder = tmp_path / "model"
    trained = run_real(folder)
    check_folder(folder)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".safetensors", ".json", ".txt", ".md"}
    base, saved = load(resolve_model(BUNDLED_MODEL)), SentenceTransformer(str(folder), device="cpu")
    assert saved.max_seq_length == base.max_seq_length == 256
    assert [type(module) for module in saved] == [type(module) for module in base]
    assert saved[1].get_config_dict() == base[1].get_config_dict()
    assert saved.prompts == base.prompts
    texts = ["rotate my key", "word " * 400]
    vectors = saved.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert not np.allclose(vectors, base.encode(texts), atol=1e-4)
    for dim in trained.dims:
        cut = SentenceTransformer(str(folder), device="cpu", truncate_dim=dim).encode(texts)
        np.testing.assert_allclose(cut, vectors[:, :dim], atol=1e-6)


def test_the_saved_settings_do_not_depend_on_training(tmp_path: Path) -> None:
    """Neither the training length nor the attention kernel is left in the saved settings."""
    folder = tmp_path / "model"
    run_real(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert (tokenizer["truncation"], tokenizer["padding"]) == (None, None)
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 256
    assert "attn" not in (folder / "config.json").read_text()


def test_the_model_card_says_what_was_done(tmp_path: Path) -> None:
    """Base model and licence, data commit, counts, recipe and versions; no folder of this machine, no time."""
    run_real(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    for fact in (
        BUNDLED_MODEL,
        "license: apache-2.0",
        "commit 3",
        "| ranking | 8 |",
        "`learning_rate` | 0.0002",
        "torch 2",
    ):
        assert fact in card
    assert str(tmp_path) not in card


def test_the_card_of_a_folder_names_no_path(base: str, tmp_path: Path) -> None:
    """A base model given as a folder appears by its last part only, with its licence as not stated."""
    train(ROWS, None, [], settings(base), tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "`model`, licence not stated by it" in card
    assert str(Path(base).parent) not in card


# --- bad input ---------------------------------------------------------------------------------------------------


def refused(base: str, folder: Path, rows: pa.Table = ROWS, **changes: Any) -> str:
    """The message with which training refuses to start; nothing may have been saved."""
    with pytest.raises(TrainingError) as error:
        train(rows, None, [], settings(base, **changes), folder)
    assert not folder.exists()
    return str(error.value)


def test_no_rows(base: str, tmp_path: Path) -> None:
    """An empty train side is named."""
    assert "no rows on the train side" in refused(base, tmp_path / "m", ROWS.slice(0, 0))


def test_missing_columns(base: str, tmp_path: Path) -> None:
    """Columns that are not there are named."""
    assert "['score']" in refused(base, tmp_path / "m", ROWS.drop_columns(["score"]))


def test_nodes_without_a_place_to_meet(base: str, tmp_path: Path) -> None:
    """Several nodes need an address; its name is in the message."""
    assert "RATCHET_RENDEZVOUS" in refused(base, tmp_path / "m", nodes=2)


def test_one_document_for_all(base: str, tmp_path: Path) -> None:
    """Nothing can be ranked when every row has the same document, in whatever spelling."""
    rows = table(("rotate key", "a b", [], None), ("list users", "A  B", [], None))
    assert "the same document" in refused(base, tmp_path / "m", rows)


def test_triplet_loss_without_negatives(base: str, tmp_path: Path) -> None:
    """The triplet loss on request needs rows with a negative."""
    assert "no row on the train side has a negative" in refused(base, tmp_path / "m", loss="triplet")


def test_dimensions_above_the_models(base: str, tmp_path: Path) -> None:
    """Both the dimensions and the model's are in the message."""
    message = refused(base, tmp_path / "m", matryoshka_dims=(64, 48, 16))
    assert "[64, 48]" in message
    assert "32" in message


def test_unknown_base_models(tmp_path: Path) -> None:
    """A package that is not installed and a folder that is not there are named."""
    assert "pkg:no_such_package" in refused("pkg:no_such_package", tmp_path / "m")
    assert "/no/such/folder" in refused("/no/such/folder", tmp_path / "m")


def test_base_models_with_code_or_pickles(base: str, tmp_path: Path) -> None:
    """Remote code and pickled weights are refused before anything is loaded."""
    import shutil

    code, pickled, broken = (Path(shutil.copytree(base, tmp_path / name)) for name in ("code", "pickled", "broken"))
    config = json.loads((code / "config.json").read_text()) | {"auto_map": {"AutoModel": "modeling.Model"}}
    (code / "config.json").write_text(json.dumps(config))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    (broken / "model.safetensors").write_bytes(b"\x00" * 100)
    assert "auto_map" in refused(str(code), tmp_path / "m")
    assert "pickle" in refused(str(pickled), tmp_path / "m")
    assert "not a safetensors file" in refused(str(broken), tmp_path / "m")


def test_a_folder_that_is_not_empty(base: str, tmp_path: Path) -> None:
    """An existing model is never mixed with a new one."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TrainingError, match="not empty"):
        train(ROWS, None, [], settings(base), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_loss_that_is_no_number(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has diverged is an error that names the step, never a saved model."""
    monkeypatch.setattr("tasks.training.loop.batch_loss", lambda _batch, queries, *_: queries.sum() * math.nan)
    assert "the loss is nan at step 1" in refused(base, tmp_path / "m")


def test_vectors_that_are_no_numbers(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that have become NaN are found when dev is scored, and nothing is saved."""

    def ruin(parameters: list[torch.nn.Parameter], _limit: float) -> None:
        parameters[0].data.fill_(math.nan)

    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", ruin)
    with pytest.raises(TrainingError, match="after step 1 the model's vectors cannot be ranked"):
        train(ROWS, dev_set(PAIRS), DOCUMENTS, settings(base, batch_size=72, epochs=1), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_examples_count_documents_by_key() -> None:
    """Two spellings are one document."""
    assert Examples(table(("q", "A b", [], None), ("r", "a  B", [], None))).distinct_documents == 1


def test_a_device_that_cannot_multiply_is_found_before_a_night(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `ratchet doctor` tries: a product in every precision on this machine; a device that is not there raises."""
    for precision in ("fp32", "bf16", "fp16"):
        hardware.try_out(torch.device("cpu"), precision)
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda one, _: one)
    with pytest.raises(RuntimeError, match="multiplies matrices of ones wrongly"):
        hardware.try_out(torch.device("cpu"), "fp32")
