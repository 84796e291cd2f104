"""What a model's folder may hold, lack, or have wrong: variations of one tiny BERT (`model_zoo`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from tests.model_zoo import Kind, architecture, pooled, sentence, small_config, tokenizer, transformer
from tests.tiny_models import WIDTH

Change = Callable[[Path], None]
Tensors = dict[str, torch.Tensor]


def changed(change: Change) -> Callable[[Path], Path]:
    """A maker of a BERT's folder to which something was done."""

    def make(folder: Path) -> Path:
        model = architecture("bert")(folder)
        change(model)
        return model

    return make


def edited(name: str, **values: Any) -> Change:
    """Change values of a JSON file."""

    def change(model: Path) -> None:
        path = model / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))

    return change


def tensors(change: Callable[[Tensors], Tensors]) -> Callable[[Path], Path]:
    """A maker of a BERT whose weights are others."""

    def apply(model: Path) -> None:
        weights = model / "model.safetensors"
        save_file(change(load_file(weights)), weights, metadata={"format": "pt"})

    return changed(apply)


def _poisoned(found: Tensors) -> Tensors:
    found["embeddings.word_embeddings.weight"][-1] = torch.nan
    return found


def _sharded(model: Path) -> None:
    inner = AutoModel.from_pretrained(model)
    (model / "model.safetensors").unlink()
    inner.save_pretrained(model, max_shard_size="30KB")


def _shard_missing(model: Path) -> None:
    _sharded(model)
    max(model.glob("model-*.safetensors")).unlink()


def _pickled(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def _cut(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-500])


def _without_tokenizer(model: Path) -> None:
    for path in (*model.glob("token*"), *model.glob("vocab*")):
        path.unlink()


def _older(version: str) -> Change:
    """Settings and names of classes as an earlier release saved them."""

    def change(model: Path) -> None:
        modules = json.loads((model / "modules.json").read_text())
        for module in modules:
            module["type"] = "sentence_transformers.models." + module["type"].rpartition(".")[2]
        pooling = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
        settings = {"__version__": {"sentence_transformers": version, "transformers": "4.6.1", "pytorch": "1.8.1"}}
        for name, content in (
            ("modules.json", modules),
            ("1_Pooling/config.json", pooling),
            ("config_sentence_transformers.json", settings),
            ("sentence_bert_config.json", {"max_seq_length": 40, "do_lower_case": False}),
        ):
            (model / name).write_text(json.dumps(content))

    return change


def _language_model(kind: Any, name: str, **size: Any) -> Callable[[Path], Path]:
    """A maker of a plain folder with the head of a language model, whose weights are tied to the embeddings."""

    def make(folder: Path) -> Path:
        tokens = tokenizer()
        torch.manual_seed(0)
        kind.from_config(small_config(name, tokens, tie_word_embeddings=True, **size)).save_pretrained(folder / "plain")
        tokens.save_pretrained(folder / "plain")
        return folder / "plain"

    return make


def _words_added(folder: Path) -> Path:
    """A word is added to the tokenizer, and no row to the embeddings."""
    tokens = tokenizer()
    rows = len(tokens)
    tokens.add_tokens(["kubernetes"])
    return sentence(folder, transformer(folder, "bert", tokens, vocab_size=rows), Pooling(WIDTH, "mean"), Normalize())


FOLDERS: tuple[Kind, ...] = (
    Kind("weights in several files", changed(_sharded), fast=False),
    Kind("folder of sentence-transformers 2.0", changed(_older("2.0.0")), fast=False),
    Kind("folder of sentence-transformers 5.1", changed(_older("5.1.0")), fast=False),
    Kind("no modules.json", changed(lambda model: (model / "modules.json").unlink()), fast=False, note="mean-pooled"),
    Kind(
        "masked language model, tied weights",
        _language_model(AutoModelForMaskedLM, "bert"),
        note="weights that no file holds and no vector needs are the same at every loading",
    ),
    Kind(
        "causal language model, tied weights",
        _language_model(AutoModelForCausalLM, "qwen2", num_key_value_heads=2),
        fast=False,
    ),
    Kind("fp64 weights", tensors(lambda found: {name: one.double() for name, one in found.items()}), fast=False),
    Kind(
        "weights of a layer are missing",
        tensors(lambda found: {name: one for name, one in found.items() if "layer.1" not in name}),
        "loaded twice.*lack weights that the library then draws at random",
        note="the files are incomplete",
    ),
    Kind("NaN in the row of a rare word", tensors(_poisoned), "word_embeddings.weight holds NaN"),
    Kind(
        "weights all zero",
        tensors(lambda found: {name: torch.zeros_like(one) for name, one in found.items()}),
        "gives no usable vector",
        fast=False,
    ),
    Kind("weights of another shape", changed(edited("config.json", intermediate_size=96)), "cannot be loaded"),
    Kind("safetensors cut off", changed(_cut), "cannot be loaded.*not fully covered", note="download it again"),
    Kind("one of several weight files is missing", changed(_shard_missing), "cannot be loaded.*No such file"),
    Kind("pytorch_model.bin alone", changed(_pickled), "may hold a pickle.*safetensors", note="save it as safetensors"),
    Kind(
        "quantised weights",
        changed(edited("config.json", quantization_config={"quant_method": "gptq", "bits": 4})),
        "says that the weights are quantised",
        note="name the model that was quantised",
    ),
    Kind("no tokenizer", changed(_without_tokenizer), "knows no words: its files", note="copy its files"),
    Kind("words added to the tokenizer alone", _words_added, "its vocabulary larger than its embeddings"),
    Kind("config.json cut off", changed(lambda model: _head(model / "config.json")), "config.json is not JSON"),
    Kind("unknown architecture", changed(edited("config.json", model_type="wonder")), "cannot be loaded.*wonder"),
    Kind("no settings of the pooling", changed(lambda model: shutil.rmtree(model / "1_Pooling")), "cannot be loaded"),
    Kind(
        "pooling of another width",
        changed(edited("1_Pooling/config.json", embedding_dimension=48)),
        "gives 32 dimensions as query, and says that it has 48",
    ),
    Kind("no pooling", lambda folder: sentence(folder, transformer(folder, "bert")), "Has it no Pooling module"),
    Kind(
        "prompt by default that is not there",
        changed(edited("config_sentence_transformers.json", default_prompt_name="other")),
        "cannot be loaded.*'other'",
        fast=False,
    ),
    Kind(
        "truncate_dim after Normalize, similarity dot",
        pooled("mean", truncate_dim=16, similarity_fn_name="dot"),
        "similarity function is 'dot'",
        fast=False,
    ),
)


def _head(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])
