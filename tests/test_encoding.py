"""Encoding with the real all-MiniLM-L6-v2: which models are trusted, what identifies one, and parity with serving."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import encoding
from tasks.config import BUNDLED_MODEL
from tasks.encoding import BF16, FP32, PLAIN, Measurement, ModelEncoder, ModelError, VectorError
from tests import tiny_models
from tests.tiny_models import Architecture

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TEXTS = [
    "How do I make a bucket private?",
    "Deletes the bucket. All objects in it must be deleted first.",
    "",
    "x",
    "naïve café 日本語 🎉",
    "token " * 400,  # longer than the model's 256 tokens: cut as in serving
    *(f"Operation {i} lists the {'very ' * (3 * i)}old backups of a cluster" for i in range(20)),
]


@pytest.fixture(scope="module")
def folder() -> Path:
    """The real model that a package ships."""
    return encoding.resolve_model(BUNDLED_MODEL)


@pytest.fixture(scope="module")
def model(folder: Path) -> SentenceTransformer:
    """The real model, loaded once; tests that change it change a copy of the folder instead."""
    return encoding.load(folder, "cpu")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the model's folder that a test may change; the weights are linked, and unlinked to be changed."""
    target = tmp_path / "copy"
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("model.safetensors"))
    (target / "model.safetensors").symlink_to(folder / "model.safetensors")
    return target


def _edit(path: Path, **values: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | values))


# --- which model ---------------------------------------------------------------------------------------------


def test_a_package_that_ships_a_model_is_found_without_importing_it(folder: Path) -> None:
    """`pkg:` leads to the folder inside the package."""
    assert folder.name == "model"
    assert (folder / "model.safetensors").is_file()


def test_a_folder_is_itself(copy: Path) -> None:
    """A path that exists is the model."""
    assert encoding.resolve_model(str(copy)) == copy.resolve()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pkg:no_such_package", "no package named 'no_such_package'"),
        ("pkg:a.b/c", "no package named"),
        ("pkg:pytest", "expected one folder with a model"),
        ("/no/such/folder", "there is no folder /no/such/folder"),
        ("./nor/this", "there is no folder"),
        ("a/b/c", "there is no folder"),
    ],
)
def test_a_model_that_is_not_there_is_named(name: str, message: str) -> None:
    """The error says what was looked for."""
    with pytest.raises(ModelError, match=message):
        encoding.resolve_model(name)


def test_a_hub_id_that_cannot_be_had_says_what_else_to_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without hub and without cache the message offers a folder or a package."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"no-one/nothing.*local cache.*pkg:<package>"):
        encoding.resolve_model("no-one/nothing")


def test_a_hub_id_in_the_local_cache_needs_no_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    """A snapshot as the hub's client keeps it is used offline."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--org--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(revision)
    shutil.copytree(folder, cached / "snapshots" / revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert encoding.resolve_model("org/tiny") == cached / "snapshots" / revision
    assert encoding.resolve_model(f"org/tiny@{revision}") == cached / "snapshots" / revision


def _add_code(folder: Path) -> None:
    (folder / "modeling.py").write_text("raise SystemExit")


def _ask_for_remote_code(folder: Path) -> None:
    _edit(folder / "config.json", auto_map={"AutoModel": "modeling.Evil"})


def _ask_for_a_remote_tokenizer(folder: Path) -> None:
    _edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tok.Evil", None]})


def _pickle_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def _pickle_a_dense_layer(folder: Path) -> None:
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def _name_a_foreign_class(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {"idx": 3, "path": "", "type": "os.system"}]))


def _leave_out_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _garble_the_weights(folder: Path) -> None:
    header = b'{"weight": 5}'
    (folder / "model.safetensors").unlink()  # it may be a link to the installed package's own file
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def _remove_it(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_garble_the_weights, "is truncated, or not a safetensors file"),
        (_remove_it, "holds no model"),
        (_add_code, r"modeling\.py is code"),
        (_ask_for_remote_code, r"config\.json asks for remote code"),
        (_ask_for_a_remote_tokenizer, r"tokenizer_config\.json asks for remote code"),
        (_pickle_the_weights, r"pytorch_model\.bin may hold a pickle"),
        (_pickle_a_dense_layer, r"2_Dense.*may hold a pickle"),
        (_name_a_foreign_class, r"class from elsewhere: 'os\.system'"),
        (_leave_out_the_weights, "no weights as safetensors"),
    ],
)
def test_a_model_that_would_have_to_be_trusted_is_refused(
    copy: Path, change: Callable[[Path], None], message: str
) -> None:
    """By resolving and by loading alike, and the file is named."""
    encoding.check_folder(copy)
    change(copy)
    for use in (lambda: encoding.resolve_model(str(copy)), lambda: encoding.load(copy)):
        with pytest.raises(ModelError, match=message):
            use()


def test_a_folder_that_is_not_there_holds_no_model(tmp_path: Path) -> None:
    """A word, and no error of the file system."""
    with pytest.raises(ModelError, match="holds no model"):
        encoding.load(tmp_path / "nowhere")


def test_pickled_weights_beside_safetensors_are_only_left_unread(copy: Path) -> None:
    """Many hub models hold both; the safetensors are what is loaded."""
    (copy / "pytorch_model.bin").write_bytes(b"not even a pickle")
    vectors = encoding.encode(encoding.load(copy, "cpu"), TEXTS[:1], "query")
    assert np.isfinite(vectors).all()


# --- identity ------------------------------------------------------------------------------------------------


def test_the_fingerprint_does_not_see_path_model_card_layout_or_author(folder: Path, copy: Path) -> None:
    """What changes no vector changes no fingerprint."""
    (copy / "README.md").write_text("another model card")
    (copy / "manifest.json").write_text("{}")
    (copy / "config.json").write_text(json.dumps(json.loads((copy / "config.json").read_text()), indent=8))
    _edit(copy / "config.json", transformers_version="9.9", _name_or_path="elsewhere")
    assert encoding.fingerprint(copy) == encoding.fingerprint(folder)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 128}),
        ("config_sentence_transformers.json", {"prompts": {"query": "query: "}}),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}),
        ("tokenizer_config.json", {"do_lower_case": False}),
        ("config.json", {"hidden_act": "relu"}),
    ],
)
def test_the_fingerprint_sees_every_setting_of_serving(
    folder: Path, copy: Path, file: str, values: dict[str, object]
) -> None:
    """The weights stay the same, the model does not."""
    _edit(copy / file, **values)
    assert encoding.fingerprint(copy) != encoding.fingerprint(folder)
    assert encoding.weights_hash(copy) == encoding.weights_hash(folder)


def test_the_fingerprint_sees_one_changed_bit_of_the_weights(folder: Path, copy: Path) -> None:
    """The last byte of the last tensor counts."""
    body = bytearray((folder / "model.safetensors").read_bytes())
    body[-1] ^= 1
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").write_bytes(body)
    assert encoding.weights_hash(copy) != encoding.weights_hash(folder)
    assert encoding.fingerprint(copy) != encoding.fingerprint(folder)


def test_saving_a_model_again_keeps_its_weights_hash(model: SentenceTransformer, folder: Path, tmp_path: Path) -> None:
    """The library rewrites every file of a folder; the tensors are the same, and so is their hash."""
    model.save(str(tmp_path / "again"), create_model_card=False)
    assert encoding.weights_hash(tmp_path / "again") == encoding.weights_hash(folder)


def test_truncated_weights_are_named(copy: Path) -> None:
    """A file cut inside its header is no surprise deep in a library."""
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").write_bytes(b"\xff\xff\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(ModelError, match=r"model\.safetensors is truncated"):
        encoding.fingerprint(copy)


# --- parity with serving -------------------------------------------------------------------------------------


def test_fp32_gives_the_vectors_of_the_librarys_encode(model: SentenceTransformer) -> None:
    """Sorting and batching by budget change nothing but the last bits: empty, long and non-Latin texts included."""
    expected = model.encode(TEXTS)
    for role in ("query", "document"):
        found = encoding.encode(model, TEXTS, role)
        assert found.dtype == np.float32
        assert found.shape == (len(TEXTS), 384)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_bf16_holds_the_stated_parity(model: SentenceTransformer) -> None:
    """Cosine to plain fp32 of at least 0.9999 for each text, on any CPU: emulated or not, bf16 rounds the same."""
    expected = model.encode(TEXTS)
    found = encoding.encode(model, TEXTS, "document", path=BF16)
    cosines = (found * expected).sum(axis=1)
    assert cosines.min() >= encoding.PARITY
    assert cosines.min() < 1 - 1e-6, "this path was not computed in bf16"


@pytest.mark.parametrize("path", [PLAIN, FP32, BF16])
def test_encoding_twice_gives_the_same_bits(model: SentenceTransformer, path: encoding.NumericPath) -> None:
    """Same texts, same path, same bytes."""
    texts = TEXTS[:8]
    assert np.array_equal(
        encoding.encode(model, texts, "document", path=path), encoding.encode(model, texts, "document", path=path)
    )


@pytest.mark.parametrize("architecture", ["roberta", "distilbert", "mpnet", "electra", "modernbert"])
def test_other_architectures_keep_parity_on_every_path(architecture: Architecture, tmp_path: Path) -> None:
    """Small random models of other shapes: fp32 to the last bits, and whatever is chosen within the stated parity."""
    other = encoding.load(tiny_models.save(tmp_path, architecture), "cpu")
    texts = ["fox", "", "the lazy dog", *("the quick brown fox " * i for i in range(1, 16))]
    np.testing.assert_allclose(
        encoding.encode(other, texts, "document"), other.encode(texts, normalize_embeddings=True), atol=1e-6
    )
    chosen = encoding.choose_path([other], texts)
    found = encoding.encode(other, texts, "document", path=chosen)
    assert (found * other.encode(texts, normalize_embeddings=True)).sum(axis=1).min() >= encoding.PARITY


def test_vectors_do_not_depend_on_the_number_of_threads(model: SentenceTransformer) -> None:
    """Each batch is computed by one thread, so more of them change no bit; and the setting is as before."""
    import torch

    texts = TEXTS * 3
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(encoding.encode(model, texts, "document", path=BF16))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(*found)


def test_prompts_length_and_truncation_are_those_of_serving(copy: Path) -> None:
    """A model with prompts for each role, 16 tokens and 64 dimensions is encoded as the library serves it."""
    _edit(copy / "sentence_bert_config.json", max_seq_length=16)
    prompts = {"query": "Represent this question: ", "document": "Represent this passage: "}
    _edit(copy / "config_sentence_transformers.json", prompts=prompts, truncate_dim=64)
    changed = encoding.load(copy, "cpu")
    queries = encoding.encode(changed, TEXTS, "query")
    documents = encoding.encode(changed, TEXTS, "document")
    assert queries.shape == (len(TEXTS), 64)
    np.testing.assert_allclose(queries, changed.encode_query(TEXTS, normalize_embeddings=True), atol=1e-6)
    np.testing.assert_allclose(documents, changed.encode_document(TEXTS, normalize_embeddings=True), atol=1e-6)
    assert np.abs(queries - documents).max() > 0.01, "the prompts made no difference"


def test_a_prompt_that_is_left_out_of_pooling_stays_left_out(copy: Path) -> None:
    """Models that pool without the prompt's tokens (`include_prompt: false`) need its length in every batch."""
    _edit(copy / "config_sentence_transformers.json", prompts={"query": "Represent this question: "})
    _edit(copy / "1_Pooling" / "config.json", include_prompt=False)
    changed = encoding.load(copy, "cpu")
    np.testing.assert_allclose(encoding.encode(changed, TEXTS, "query"), changed.encode_query(TEXTS), atol=1e-6)


def test_a_model_without_normalize_still_gives_unit_vectors(copy: Path) -> None:
    """Ranking is by cosine, whatever the model's own scale is."""
    modules = json.loads((copy / "modules.json").read_text())
    (copy / "modules.json").write_text(json.dumps(modules[:2]))
    changed = encoding.load(copy, "cpu")
    assert np.abs(np.linalg.norm(changed.encode(TEXTS[:4]), axis=1) - 1).max() > 0.01
    found = encoding.encode(changed, TEXTS[:4], "query")
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_no_texts_give_no_vectors(model: SentenceTransformer) -> None:
    """The shape keeps the dimension."""
    assert encoding.encode(model, [], "query").shape == (0, 384)


def test_progress_counts_every_text_once_and_ends_at_all(model: SentenceTransformer) -> None:
    """Rising, and complete at the end."""
    seen: list[tuple[int, int]] = []
    encoding.encode(model, TEXTS, "query", on_progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (len(TEXTS), len(TEXTS))


def test_a_vector_that_is_no_number_names_model_and_text(folder: Path) -> None:
    """One poisoned token embedding: the error names the model and the first text that holds the token."""
    import torch

    poisoned = encoding.load(folder, "cpu")
    token = poisoned.tokenizer.convert_tokens_to_ids("bucket")
    with torch.no_grad():
        poisoned[0].model.embeddings.word_embeddings.weight[token] = torch.nan
    encoder = ModelEncoder(poisoned, "f" * 64, FP32)
    with pytest.raises(VectorError, match=r"model ffffffffffff .* index 2") as caught:
        encoder.encode(["a queue", "a cluster", "a bucket", "another bucket"], "document")
    assert caught.value.index == 2


@pytest.mark.parametrize("similarity", ["dot", "euclidean", "manhattan"])
def test_vectors_that_are_compared_otherwise_than_by_the_cosine_are_refused(folder: Path, similarity: str) -> None:
    """Wherever vectors are taken; of vectors of length 1 only the Manhattan distance ranks otherwise."""
    import torch

    other = encoding.load(folder, "cpu")
    other.similarity_fn_name = similarity
    encoder = ModelEncoder(other, "f" * 64, FP32)
    if similarity != "manhattan":
        assert encoder.encode(["a queue"], "query").shape == (1, 384)
        other[-1] = torch.nn.Identity()  # in the place of Normalize
    with pytest.raises(ModelError, match=rf"model ffffffffffff: its similarity function is '{similarity}'"):
        encoder.encode(["a queue", "a bucket"], "document")


# --- batches by token budget ---------------------------------------------------------------------------------


def test_batches_hold_a_budget_of_tokens_longest_first() -> None:
    """Lengths 10, 4, 4, 2, 1 at 8 tokens: the ten alone (too long), both fours, then two and one."""
    batches = encoding.by_budget(np.array([4, 1, 10, 4, 2]), 8)
    assert [batch.tolist() for batch in batches] == [[2], [0, 3], [4, 1]]


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 600))
def test_every_text_is_in_one_batch_and_no_batch_is_over_budget(lengths: list[int], budget: int) -> None:
    """Padded to its longest, a batch of several texts never exceeds the budget."""
    batches = list(encoding.by_budget(np.array(lengths, int), budget))
    assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


# --- the choice of a numeric path ----------------------------------------------------------------------------


def _measured(*rows: tuple[encoding.NumericPath, float, float]) -> list[Measurement]:
    return [Measurement(path, speed, cosine) for path, speed, cosine in rows]


@pytest.mark.parametrize(
    ("fp32", "bf16", "chosen"),
    [
        ((2.0, 1.0), (4.0, 0.99997), BF16),
        ((2.0, 1.0), (4.0, 0.9998), FP32),  # parity fails
        ((2.0, 1.0), (2.5, 0.99997), FP32),  # does not pay enough to give up precision
        ((2.0, 0.99), (4.0, 0.99), PLAIN),  # batches by budget are wrong for this model
        ((2.0, float("nan")), (4.0, float("nan")), PLAIN),
        ((2.0, 0.99), (4.0, 0.99997), PLAIN),  # the batches are wrong, whatever bf16 makes of it
    ],
)
def test_the_fastest_path_that_holds_parity_is_chosen(
    fp32: tuple[float, float], bf16: tuple[float, float], chosen: encoding.NumericPath
) -> None:
    """Speed never buys a path below parity; NaN is below parity."""
    assert encoding.fastest(_measured((PLAIN, 1.0, 1.0), (FP32, *fp32), (BF16, *bf16))) == chosen


def test_measuring_takes_every_path_on_real_texts(model: SentenceTransformer) -> None:
    """Plain fp32 agrees with itself, batches by budget agree with it, bf16 holds parity."""
    measured = {m.path: m for m in encoding.measure_paths([model], TEXTS[:8])}
    assert set(measured) == {PLAIN, FP32, BF16}
    assert measured[FP32].least_cosine == pytest.approx(1, abs=1e-6)
    assert encoding.PARITY <= measured[BF16].least_cosine < 1
    assert encoding.choose_path([model], TEXTS[:4], parity=2.0) == PLAIN


def test_a_path_is_chosen_on_texts() -> None:
    """Without a sample there is nothing to judge by."""
    with pytest.raises(ValueError, match="got 0 and 0"):
        encoding.measure_paths([], [])


# --- keys ----------------------------------------------------------------------------------------------------


def test_keys_differ_with_all_that_changes_a_vector(folder: Path) -> None:
    """Model, path, role, prompt, length, truncation: each gives a key of its own; the same again the same key."""
    loaded = encoding.load(folder, "cpu")
    encoder = ModelEncoder(loaded, "a", FP32)
    keys = [encoder.key("query"), encoder.key("document")]
    assert encoder.key("query") == keys[0]
    keys += [ModelEncoder(loaded, "b", FP32).key("query"), ModelEncoder(loaded, "a", BF16).key("query")]
    loaded.max_seq_length = 128
    keys.append(encoder.key("query"))
    loaded.prompts["query"] = "query: "
    keys.append(encoder.key("query"))
    loaded.truncate_dim = 64
    keys.append(encoder.key("query"))
    assert len(set(keys)) == len(keys)


def test_open_takes_the_fingerprint_of_the_folder_it_loads(folder: Path) -> None:
    """Vectors are never filed under another model's name."""
    assert ModelEncoder.open(folder, FP32, device="cpu").fingerprint == encoding.fingerprint(folder)
