"""Training queries alone: the loss over all documents, the router that is saved, and the documents it leaves alone."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from tasks.encoding import FP32, ModelEncoder, ModelError, document_identity, fingerprint, load, pipeline
from tasks.storage import Store, file_sha256
from tasks.training import Checkpoints, Start, Trained, train
from tasks.training.averaging import average
from tasks.training.corpus import Corpus, Documents
from tasks.training.examples import Batch, Examples, order
from tasks.training.query_side import encoder_of, join, known_documents
from tests import model_zoo, tiny_models
from tests.test_training import DOCUMENTS, PAIRS, ROWS, dev_set, settings


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with one encoder for both roles."""
    return tiny_models.save(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The candidate of a training of its queries alone."""
    folder = tmp_path_factory.mktemp("tuned") / "model"
    trained = train(ROWS, dev_set(PAIRS), DOCUMENTS, settings(str(base), side="query"), folder)
    assert (trained.side, trained.cuts) == ("query", None)
    assert trained.dev[-1].mrr > trained.dev[0].mrr
    return folder


# --- the loss ------------------------------------------------------------------------------------------------


def rows(*found: tuple[str, str, list[str]]) -> pa.Table:
    """Rows without scores: query, document, negatives."""
    queries, documents, negatives = zip(*found, strict=True)
    return pa.table(
        {
            "query": pa.array(queries, pa.string()),
            "document": pa.array(documents, pa.string()),
            "negatives": pa.array(negatives, pa.list_(pa.string())),
            "score": pa.array([None] * len(found), pa.float64()),
        }
    )


def batch_of(examples: Examples, size: int = 64) -> Batch:
    """The first batch of the first epoch."""
    return next(iter(order(1, size, 0, examples)))


def unit(*angles: float) -> np.ndarray:
    """Vectors of length 1 in the plane, by their angle in degrees."""
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def corpus(examples: Examples, vectors: np.ndarray, texts: list[str], **more: Any) -> Corpus:
    """Documents with given vectors, at their one dimension."""
    known = Documents(Path(), "x", texts, vectors)
    return Corpus(known, examples, (vectors.shape[1],), 0, **more)


def test_a_known_positive_is_no_negative() -> None:
    """Cosines 1, 0.5 and 0 to three documents, both first ones answer: only the third is ranked against."""
    examples = Examples(rows(("q", "a", []), ("q", "b", [])))
    of = corpus(examples, unit(0, 60, 90), ["a", "b", "c"])
    batch = dataclasses.replace(
        batch_of(examples),
        queries=np.array([0]),
        documents=np.array([0]),
        positives=np.array([0]),
        masked=np.zeros((1, 1), bool),
    )
    loss = of.loss(batch, torch.from_numpy(unit(0)), 0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-20)), abs=1e-6)


def test_another_spelling_of_the_answer_is_no_negative() -> None:
    """The corpus holds it as "B" too: what counts is the document, not how it is written."""
    examples = Examples(rows(("q", "b", [])))
    of = corpus(examples, unit(0, 0, 90), ["b", " B", "c"])
    loss = of.loss(batch_of(examples), torch.from_numpy(unit(0)), 0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-20)), abs=1e-6)


def test_every_document_is_ranked_against_and_explicit_negatives_with_them() -> None:
    """Cosine 1 to the answer, 0.5 to a document of no row and to a row's own negative."""
    examples = Examples(rows(("q", "a", ["n"])))
    of = corpus(examples, unit(0, 60, -60), ["a", "other", "n"])
    loss = of.loss(batch_of(examples), torch.from_numpy(unit(0)), 0)
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-10)), rel=1e-3)


def _random(count: int, seed: int) -> tuple[Examples, np.ndarray, list[str], torch.Tensor]:
    rng = np.random.default_rng(seed)
    texts = [f"d{number}" for number in range(count)]
    examples = Examples(rows(*((f"q{number}", texts[number], [texts[-1 - number]]) for number in range(6))))
    vectors = rng.standard_normal((count, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return examples, vectors, texts, torch.from_numpy(rng.standard_normal((6, 8)).astype(np.float32))


def test_a_sample_that_holds_everything_is_the_full_softmax() -> None:
    """Up to the limit the values are the same; above it, another sample at every step, the same again at the same."""
    examples, vectors, texts, queries = _random(40, 1)
    batch = batch_of(examples)
    full, exact, sampled = (corpus(examples, vectors, texts, cells=cells) for cells in (1 << 20, 6 * 40, 6 * 20))
    expected = full.loss(batch, queries, 0)
    assert torch.equal(exact.loss(batch, queries, 5), expected)
    found = [sampled.loss(batch, queries, step).item() for step in (0, 1, 0)]
    assert found[0] == found[2]
    assert found[0] != found[1]


def test_the_sum_of_a_sample_is_right_on_average() -> None:
    """Over 100 samples of half the documents, the mean loss is that of the full softmax, within 2%."""
    examples, vectors, texts, queries = _random(60, 2)
    batch = dataclasses.replace(batch_of(examples, 2), masked=np.zeros((1, 1), bool))
    single = queries[: len(batch.queries)] * 0.1
    full = corpus(examples, vectors * 1.0, texts).loss(batch, single, 0)
    few = corpus(examples, vectors, texts, cells=30 * len(batch.queries))
    mean = np.mean([few.loss(batch, single, step).item() for step in range(100)])
    assert mean == pytest.approx(full.item(), rel=0.02)


# --- what is saved -------------------------------------------------------------------------------------------


def files_of(folder: Path) -> list[tuple[str, str, str]]:
    """Module, file and SHA-256 of everything that encodes documents."""
    return [
        (part.name, path.relative_to(part.folder).as_posix(), file_sha256(path))
        for part in pipeline(folder, "document")
        for path in part.files()
    ]


def test_plain_sentence_transformers_serves_what_is_scored(base: Path, tuned: Path) -> None:
    """Both roles; documents are the base model's, bit by bit, queries are not."""
    served = SentenceTransformer(str(tuned), device="cpu")
    scored = ModelEncoder.open(tuned, FP32, device="cpu")
    texts = [query for query, _ in PAIRS[:8]]
    plain = SentenceTransformer(str(base), device="cpu")
    np.testing.assert_allclose(served.encode_query(texts), scored.encode(texts, "query"), atol=2e-6)
    np.testing.assert_allclose(served.encode_document(texts), scored.encode(texts, "document"), atol=2e-6)
    assert np.array_equal(served.encode_document(texts), plain.encode_document(texts))
    assert not np.allclose(served.encode_query(texts), plain.encode_query(texts), atol=1e-2)


def test_the_documents_side_is_byte_for_byte_what_served(base: Path, tuned: Path) -> None:
    """Every file of every module, weights and tokenizer among them; the identity says so, the fingerprint differs."""
    assert files_of(tuned) == files_of(base)
    assert any(name == "model.safetensors" for _, name, _ in files_of(tuned))
    assert document_identity(tuned) == document_identity(base)
    assert fingerprint(tuned) != fingerprint(base)


def test_no_document_is_encoded_when_all_vectors_are_known(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is asked for documents by the rehearsal only, on texts of its own."""
    known = known_documents(base, DOCUMENTS, ROWS)
    asked: list[str] = []
    original = SentenceTransformer.preprocess

    def spy(self: SentenceTransformer, inputs: list[str], *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("task") == "document":
            asked.extend(inputs)
        return original(self, inputs, *args, **kwargs)

    monkeypatch.setattr(SentenceTransformer, "preprocess", spy)
    training = settings(str(base), side="query", epochs=1)
    train(ROWS, dev_set(PAIRS), DOCUMENTS, training, tmp_path / "model", against=known)
    assert asked
    assert not {*DOCUMENTS} & {*asked}


@pytest.mark.slow
def test_what_was_promoted_on_the_query_side_is_trained_further(tuned: Path, base: Path, tmp_path: Path) -> None:
    """From its own queries, or anew from the encoder of its documents; either way the documents stay."""
    training = settings(str(base), side="query", epochs=1)
    known = known_documents(tuned, DOCUMENTS, ROWS)
    on = train(ROWS, None, DOCUMENTS, training, tmp_path / "on", start=Start("v", tuned), against=known)
    anew = train(ROWS, None, DOCUMENTS, training, tmp_path / "anew", against=known)
    assert on.losses[0] < anew.losses[0]
    assert files_of(tmp_path / "on") == files_of(tmp_path / "anew") == files_of(base)


def test_every_loss_trains_queries_alone(base: Path, tmp_path: Path) -> None:
    """Scored pairs and triplets take the documents' vectors as they are; mined negatives are found among them."""
    scored = rows(*((query, document, []) for query, document in PAIRS[:8]))
    place = scored.column_names.index("score")
    scored = scored.set_column(place, "score", pa.array(np.linspace(0, 1, 8)))
    triplets = rows(*((query, document, [PAIRS[0][1]]) for query, document in PAIRS[1:9]))
    both = pa.concat_tables([scored, triplets])
    training = settings(str(base), side="query", epochs=1, loss="triplet", hard_negatives=1, average_weights=True)
    trained = train(both, None, DOCUMENTS, training, tmp_path / "model")
    assert set(trained.rows) == {"cosent", "triplet"}
    assert files_of(tmp_path / "model") == files_of(base)


@pytest.mark.slow
@pytest.mark.parametrize("make", [model_zoo.routed_heads, model_zoo.two_towers("document")])
def test_models_that_share_modules_or_have_two_towers_are_taken_apart(make: Any, tmp_path: Path) -> None:
    """Queries get copies of what was shared; documents keep the files."""
    made = make(tmp_path / "base")
    train(ROWS, None, DOCUMENTS, settings(str(made), side="query", epochs=1), tmp_path / "model")
    served, before = (SentenceTransformer(str(one), device="cpu") for one in (tmp_path / "model", made))
    assert np.array_equal(served.encode_document(DOCUMENTS[:4]), before.encode_document(DOCUMENTS[:4]))


@pytest.mark.parametrize(
    ("make", "said"),
    [(model_zoo.static, "encodes a document with StaticEmbedding"), (model_zoo.plain, "has no modules.json")],
)
def test_a_model_that_cannot_be_taken_apart_is_refused_before_the_first_step(
    make: Any, said: str, tmp_path: Path
) -> None:
    """With what to do instead, and nothing left behind."""
    training = settings(str(make(tmp_path / "base")), side="query")
    with pytest.raises(ModelError, match=said):
        train(ROWS, None, DOCUMENTS, training, tmp_path / "model", on_progress=lambda *_: pytest.fail("a step"))
    assert not (tmp_path / "model").exists()


def test_prompts_of_both_roles_are_kept(tmp_path: Path) -> None:
    """They belong to the model that serves; pooling leaves the prompt out as before."""
    made = model_zoo.without_prompt(tmp_path / "base")
    queries = encoder_of(made, "query", tmp_path / "queries")
    join(queries, made, tmp_path / "joined")
    before, after = load(made, "cpu"), load(tmp_path / "joined", "cpu")
    assert after.prompts == before.prompts
    assert np.array_equal(after.encode_query(DOCUMENTS[:4]), before.encode_query(DOCUMENTS[:4]))


@pytest.mark.slow
def test_two_processes_train_queries_as_one_does(base: Path, tmp_path: Path) -> None:
    """The documents reach them as files; the losses are the same, and what is saved has the same documents."""
    known = known_documents(base, DOCUMENTS, ROWS)
    one, two = (
        train(
            ROWS, dev_set(PAIRS), DOCUMENTS, settings(str(base), side="query", epochs=1, processes=count),
            tmp_path / str(count), against=known,
        )
        for count in (1, 2)
    )  # fmt: skip
    np.testing.assert_allclose(two.losses, one.losses, rtol=1e-4)
    assert [score.mrr for score in two.dev] == pytest.approx([score.mrr for score in one.dev], abs=1e-3)
    assert files_of(tmp_path / "2") == files_of(base)


# --- going on, and averages ----------------------------------------------------------------------------------


def test_a_resumed_training_of_queries_gives_the_same_bytes(store: Store, base: Path, tmp_path: Path) -> None:
    """Stopped by an error at step 5 of 9, gone on by another call: the same weights as undisturbed."""
    training = settings(str(base), side="query", epochs=1, checkpoint_minutes=1e-9)
    known = known_documents(base, DOCUMENTS, ROWS)
    checkpoints = Checkpoints(store, "runs/one/checkpoints/")

    def tune(folder: str, kept: Checkpoints | None = None, on_progress: Any = None) -> Trained:
        return train(
            ROWS, dev_set(PAIRS), DOCUMENTS, training, tmp_path / folder,
            against=known, checkpoints=kept, on_progress=on_progress,
        )  # fmt: skip

    def fail(step: int, *_: object) -> None:
        if step == 5:
            raise KeyboardInterrupt

    tune("undisturbed")
    with pytest.raises(KeyboardInterrupt):
        tune("model", checkpoints, fail)
    assert tune("model", checkpoints).resumed == 4
    weights = "query_0_Transformer/model.safetensors"
    assert (tmp_path / "model" / weights).read_bytes() == (tmp_path / "undisturbed" / weights).read_bytes()


def test_a_checkpoint_is_of_certain_documents() -> None:
    """Other documents, or those of another model, are another run."""
    examples, vectors, texts, _ = _random(12, 3)
    known = Documents(Path(), "x", texts, vectors)
    others = [dataclasses.replace(known, identity="y"), dataclasses.replace(known, texts=[*texts[:-1], "d11 "])]
    prints = [Corpus(one, examples, (8,), 0).fingerprint for one in (known, known)]
    assert prints[0] == prints[1]
    examples = Examples(rows(("q0", "d0", [])))
    assert len({Corpus(one, examples, (8,), 0).fingerprint for one in (known, *others)}) == 3


@pytest.mark.slow
def test_an_average_is_chosen_on_dev_and_lies_on_the_way(base: Path, tmp_path: Path) -> None:
    """Too high a learning rate, so that less of it is better: what is saved is the best, and where dev saw it."""
    training = settings(str(base), side="query", learning_rate=3e-2, epochs=1, average_weights=True)
    found = train(ROWS, dev_set(PAIRS), DOCUMENTS, training, tmp_path / "model")
    assert found.averaged.keys() == {"1", "0.75", "0.5"}
    assert found.averaged[f"{found.alpha:g}"] == max(found.averaged.values())
    plain = train(
        ROWS,
        dev_set(PAIRS),
        DOCUMENTS,
        settings(str(base), side="query", learning_rate=3e-2, epochs=1),
        tmp_path / "plain",
    )
    assert (plain.alpha, plain.averaged) == (1.0, {})
    start, tuned, saved = (
        load_file(folder / name)
        for folder, name in (
            (base, "model.safetensors"),
            (tmp_path / "plain", "query_0_Transformer/model.safetensors"),
            (tmp_path / "model", "query_0_Transformer/model.safetensors"),
        )
    )
    for name, tensor in saved.items():
        torch.testing.assert_close(
            tensor, start[name] + found.alpha * (tuned[name] - start[name]), rtol=1e-5, atol=1e-6
        )


def test_averages_by_hand() -> None:
    """A quarter of the way from 2 to 6 is 3; whole numbers are not averaged."""
    started = {"w": torch.tensor([2.0]), "ids": torch.tensor([1])}
    tuned = {"w": torch.tensor([6.0]), "ids": torch.tensor([5])}
    found = average(started, tuned, 0.25)
    assert (found["w"].item(), found["ids"].item()) == (3.0, 5)
    assert average(started, tuned, 1.0) == tuned
