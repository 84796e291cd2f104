"""What a model's folder may hold, lack, or have wrong: variations of one tiny BERT (`model_zoo`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from tests.model_zoo import (
    Kind,
    adapter,
    architecture,
    plain,
    pooled,
    sentence,
    small_config,
    tokenizer,
    transformer,
)
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


def _in_a_folder(model: Path) -> None:
    """The transformer in a folder of its own, as releases before 1.0 saved it."""
    inner = model / "0_Transformer"
    inner.mkdir()
    for path in [*model.iterdir()]:
        if path.is_file() and path.name != "modules.json":
            path.rename(inner / path.name)
    modules = json.loads((model / "modules.json").read_text())
    modules[0]["path"] = inner.name
    for module in modules:
        module["type"] = "sentence_transformers.models." + module["type"].rpartition(".")[2]
    (model / "modules.json").write_text(json.dumps(modules))


def _linked(folder: Path, *, dangling: bool = False) -> Path:
    """A snapshot in the hub's cache: links to files that are named by their hashes."""
    made, snapshot = architecture("bert")(folder), folder / "snapshots" / "0123"
    for number, path in enumerate(sorted(path for path in made.rglob("*") if path.is_file())):
        blob, link = folder / "blobs" / str(number), snapshot / path.relative_to(made)
        for needed in (blob.parent, link.parent):
            needed.mkdir(parents=True, exist_ok=True)
        path.rename(blob)
        link.symlink_to(blob)
        if dangling and path.suffix == ".safetensors":
            blob.unlink()
    return snapshot


def _slow_tokenizer(model: Path) -> None:
    """A vocabulary alone, as a tokenizer in Python saves it."""
    words = sorted(AutoTokenizer.from_pretrained(model).get_vocab().items(), key=lambda word: word[1])
    (model / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in words))
    (model / "tokenizer.json").unlink()


def _exported(*names: str) -> Change:
    """Weights for other runtimes in the place of safetensors."""

    def change(model: Path) -> None:
        (model / "model.safetensors").unlink()
        for name in names:
            (model / name).parent.mkdir(exist_ok=True)
            (model / name).write_bytes(b"weights")

    return change


def _adapter_alone(folder: Path) -> Path:
    """What peft saves: settings of the adapter and its weights."""
    model = adapter(folder)
    for path in [*model.iterdir()]:
        if path.is_file() and not path.name.startswith("adapter"):
            path.unlink()
    return model


def _as_saved_by_model2vec(folder: Path) -> Path:
    """Static embeddings in model2vec's own layout: half precision, a weight per word, words that share a row."""
    tokens = tokenizer()
    folder.mkdir(parents=True)
    tokens.save_pretrained(folder)
    torch.manual_seed(4)
    rows = {"embeddings": torch.randn(50, WIDTH).half(), "weights": torch.rand(len(tokens))}
    save_file(rows | {"mapping": torch.arange(len(tokens)) % 50}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", "normalize": True}))
    modules = [("StaticEmbedding", "."), ("Normalize", "1_Normalize")]
    listed = [{"path": path, "type": f"sentence_transformers.models.{name}"} for name, path in modules]
    listed = [{"idx": place, "name": str(place), **one} for place, one in enumerate(listed)]
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


def _plain(**settings: Any) -> Callable[[Path], Path]:
    """A maker of a folder of transformers alone with other settings."""

    def make(folder: Path) -> Path:
        edited("config.json", **settings)(plain(folder))
        return folder / "plain-0"

    return make


FOLDERS: tuple[Kind, ...] = (
    Kind("transformer in a folder of its own", changed(_in_a_folder), fast=False),
    Kind("links of the hub's cache", _linked, fast=False),
    Kind("a link to a file that is not there", partial(_linked, dangling=True), "a link to a file that is not there"),
    Kind("vocab.txt without tokenizer.json", changed(_slow_tokenizer), fast=False),
    Kind(
        "limit beyond BERT's positions",
        changed(edited("sentence_bert_config.json", max_seq_length=4096)),
        note="the limit is lowered to its positions",
    ),
    Kind(
        "limit that is a text",
        changed(edited("sentence_bert_config.json", max_seq_length="40")),
        "max_seq_length is '40': set it to a number of tokens",
    ),
    Kind("model2vec's own folder", _as_saved_by_model2vec, fast=False),
    Kind("truncation on the left", changed(edited("tokenizer_config.json", truncation_side="left")), fast=False),
    Kind("dtype float16 in its settings", changed(edited("config.json", dtype="float16")), fast=False),
    Kind("torch_dtype bfloat16 in its settings", changed(edited("config.json", torch_dtype="bfloat16")), fast=False),
    Kind(
        "FlashAttention-2 in its settings, not installed",
        changed(edited("sentence_bert_config.json", model_args={"attn_implementation": "flash_attention_2"})),
        "cannot be loaded.*Take `attn_implementation` out of",
    ),
    Kind(
        "similarity of an unknown name",
        changed(edited("config_sentence_transformers.json", similarity_fn_name="dot_product")),
        "similarity_fn_name is 'dot_product', which the library ignores",
        note="it would compare by the cosine",
    ),
    Kind(
        "truncate_dim that is a text",
        changed(edited("config_sentence_transformers.json", truncate_dim="16")),
        "truncate_dim is '16': set it to a number",
    ),
    Kind(
        "int8 weights without settings",
        tensors(lambda found: {name: one.to(torch.int8) for name, one in found.items()}),
        "holds weights as I8, which were quantised",
    ),
    Kind(
        "fp8 weights without settings",
        tensors(lambda found: {name: one.to(torch.float8_e4m3fn) for name, one in found.items()}),
        "holds weights as F8_E4M3, which were quantised",
        fast=False,
    ),
    Kind(
        "quantised by the settings of the module",
        changed(edited("sentence_bert_config.json", model_args={"load_in_8bit": True})),
        "says that the weights are quantised",
    ),
    Kind(
        "ONNX and OpenVINO alone",
        changed(_exported("onnx/model.onnx", "openvino/openvino_model.xml", "openvino/openvino_model.bin")),
        "holds weights for ONNX and OpenVINO alone",
        note="name the model that they were made from",
    ),
    Kind(
        "GGUF alone", changed(_exported("model.Q4_0.gguf")), r"holds weights for GGUF \(llama.cpp\) alone", fast=False
    ),
    Kind(
        "pytorch_model.bin beside TensorFlow's and Flax's weights",
        changed(_exported("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack")),
        "pytorch_model.bin may hold a pickle.*safetensors",
        fast=False,
    ),
    Kind("LoRA adapter as peft saves it", _adapter_alone, "belongs to an adapter.*merge"),
    Kind("ColBERT as a plain folder", _plain(architectures=["HF_ColBERT"]), "is a late-interaction model", fast=False),
    Kind(
        "remote code, though the architecture is known",
        changed(edited("config.json", auto_map={"AutoModel": "org/name--modeling.Model"})),
        r"asks for remote code.*itself knows its architecture \(model_type\), remove",
    ),
    Kind(
        "prompts that are a list",
        changed(edited("config_sentence_transformers.json", prompts=["query: "])),
        "cannot be loaded.*save it again",
        fast=False,
    ),
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
