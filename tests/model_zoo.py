"""One tiny random model for each architecture and feature that sentence-transformers has, as real folders.

A kind is either trained, saved, published and served like any base model, or refused before the first step with the
message that is given here. `docs/models.md` is made from this table.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    LayerNorm,
    Module,
    Normalize,
    Pooling,
    Router,
    StaticEmbedding,
    Transformer,
)
from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PhobertTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5EncoderModel,
)

from tasks.config import BUNDLED_MODEL
from tasks.encoding import resolve_model
from tests.tiny_models import SAMPLE, WIDTH

CHAT = (
    "{% for message in messages %}<{{ message['role'] }}> {% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %} {% endfor %}"
)


@dataclass(frozen=True)
class Kind:
    """One row of the table: what it is, how to make it, and the message with which it is refused (None: it works)."""

    name: str
    make: Callable[[Path], Path]
    refused: str | None = None
    fast: bool = True
    note: str = ""


@cache
def _trained_tokenizer() -> PreTrainedTokenizerBase:
    original = AutoTokenizer.from_pretrained(resolve_model(BUNDLED_MODEL))
    return original.train_new_from_iterator([SAMPLE], vocab_size=300, show_progress=False)


def tokenizer(**changes: Any) -> PreTrainedTokenizerBase:
    """A small WordPiece tokenizer that no other test changes."""
    return AutoTokenizer.from_pretrained(_saved_tokenizer(), **changes)


@cache
def _saved_tokenizer() -> str:
    import tempfile

    folder = tempfile.mkdtemp(prefix="tokenizer-")
    _trained_tokenizer().save_pretrained(folder)
    return folder


def transformer(
    folder: Path, architecture: str, tokens: Any = None, length: int | None = 40, **size: Any
) -> Transformer:
    """A random transformer of 2 layers and 4 heads, as the module that reads it."""
    tokens = tokens or tokenizer()
    config = AutoConfig.for_model(
        architecture,
        **{
            "hidden_size": WIDTH,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "vocab_size": len(tokens),
            "pad_token_id": tokens.pad_token_id,
        }
        | size,
    )
    torch.manual_seed(0)
    model = T5EncoderModel(config) if architecture == "t5" else AutoModel.from_config(config)
    return wrap(folder, model, tokens, length)


def wrap(folder: Path, model: Any, tokens: Any, length: int | None) -> Transformer:
    """A transformers model and a tokenizer, through a folder, as a module of sentence-transformers."""
    plain = folder / f"plain-{len(list(folder.iterdir())) if folder.exists() else 0}"
    model.save_pretrained(plain)
    tokens.save_pretrained(plain)
    return Transformer(str(plain), **({} if length is None else {"max_seq_length": length}))


def sentence(folder: Path, *modules: Any, **settings: Any) -> Path:
    """Save modules as a sentence-transformers folder."""
    SentenceTransformer(modules=list(modules), device="cpu", **settings).save(
        str(folder / "model"), create_model_card=False
    )
    return folder / "model"


def architecture(name: str, pooling: str = "mean", **size: Any) -> Callable[[Path], Path]:
    """A maker of an encoder with pooling and normalised vectors."""

    def make(folder: Path) -> Path:
        return sentence(folder, transformer(folder, name, **size), Pooling(WIDTH, pooling), Normalize())

    return make


def decoder(name: str, template: str = "", side: str = "left", **size: Any) -> Callable[[Path], Path]:
    """A maker of a causal model with last-token pooling; `template` says where its chat template lies."""

    def make(folder: Path) -> Path:
        tokens = tokenizer(padding_side=side)
        if template:
            tokens.chat_template = CHAT
        heads = {"num_key_value_heads": 2, "head_dim": 8}
        module = transformer(folder, name, tokens, **(heads if name != "gpt2" else {}) | size)
        model = sentence(folder, module, Pooling(WIDTH, "lasttoken"), Normalize(), prompts={"query": "find: "})
        if template == "tokenizer_config.json":
            (model / "chat_template.jinja").unlink()
            _edit(model / "tokenizer_config.json", chat_template=CHAT)
        return model

    return make


def _edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))


# --- tokenizers, lengths, weights ----------------------------------------------------------------------------


def phobert(folder: Path) -> Path:
    """RoBERTa with PhoBERT's tokenizer, whose byte pairs are in `bpe.codes`."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(set(SAMPLE.replace(" ", "")))
    (folder / "vocab.txt").write_text("".join(f"{letter}{end} 1\n" for letter in letters for end in ("@@", "")))
    (folder / "bpe.codes").write_text("a b</w> 1\nt h 1\n")
    tokens = PhobertTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes"))
    module = transformer(folder, "roberta", tokens)
    return sentence(folder, module, Pooling(WIDTH, "mean"), Normalize())


def without_length(folder: Path) -> Path:
    """XLM-R whose tokenizer has no limit: the settings say two positions more than there are."""
    module = transformer(folder, "xlm-roberta", length=None, max_position_embeddings=34)
    return sentence(folder, module, Pooling(WIDTH, "mean"), Normalize())


def without_padding(folder: Path) -> Path:
    """A tokenizer without a padding token, as many decoders have it."""
    backend = tokenizer().backend_tokenizer
    backend.no_padding()
    module = transformer(folder, "bert", PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))
    return sentence(folder, module, Pooling(WIDTH, "mean"), Normalize())


def weights_in(dtype: torch.dtype) -> Callable[[Path], Path]:
    """A maker of a BERT saved in half precision."""

    def make(folder: Path) -> Path:
        module = transformer(folder, "bert")
        module.model.to(dtype)
        return sentence(folder, module, Pooling(WIDTH, "mean"), Normalize())

    return make


def pointer(folder: Path) -> Path:
    """A clone without git-lfs: pointers in the place of weights."""
    model = architecture("bert")(folder)
    (model / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 90868376\n"
    )
    return model


def adapter(folder: Path) -> Path:
    """A LoRA adapter as peft saves it: its settings, and none of the base model's weights."""
    model = architecture("bert")(folder)
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    (model / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "bert"}))
    return model


def repository(folder: Path) -> Path:
    """A whole repository, like that of all-MiniLM-L6-v2: scripts and exports for other runtimes beside the model."""
    model = architecture("bert")(folder)
    (model / "train_script.py").write_text("raise SystemExit")
    (model / "pytorch_model.bin").write_bytes(b"never read")
    for name in ("onnx/model.onnx", "openvino/openvino_model.bin", "openvino/openvino_model.xml"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(b"never read")
    return model


# --- modules -------------------------------------------------------------------------------------------------


def pooled(
    pooling: str, *further: Callable[[], Module], normalise: bool = True, **settings: Any
) -> Callable[[Path], Path]:
    """A maker of a BERT with other modules after it."""

    def make(folder: Path) -> Path:
        torch.manual_seed(1)
        modules = [Pooling(WIDTH, pooling), *(one() for one in further), *([Normalize()] if normalise else [])]
        return sentence(folder, transformer(folder, "bert"), *modules, **settings)

    return make


def without_prompt(folder: Path) -> Path:
    """Pooling over the text alone, without its prompt (`include_prompt=False`)."""
    pooling = Pooling(WIDTH, "mean", include_prompt=False)
    prompts = {"query": "the query is: ", "document": "text: "}
    return sentence(folder, transformer(folder, "bert"), pooling, Normalize(), prompts=prompts)


def routed_heads(folder: Path) -> Path:
    """One encoder, and after pooling another Dense layer for queries than for documents."""
    torch.manual_seed(2)
    router = Router.for_query_document([Dense(WIDTH, WIDTH)], [Dense(WIDTH, WIDTH)])
    return sentence(folder, transformer(folder, "bert"), Pooling(WIDTH, "mean"), router, Normalize())


def two_towers(first: str) -> Callable[[Path], Path]:
    """A maker of a router over two encoders, of which `first` is named first."""

    def make(folder: Path) -> Path:
        towers = {role: [transformer(folder, "bert"), Pooling(WIDTH, "mean")] for role in ("query", "document")}
        torch.manual_seed(3)
        for parameter in towers["query"][0].parameters():
            parameter.data.add_(0.02 * torch.randn(parameter.shape))
        order = [first, *(role for role in towers if role != first)]
        return sentence(folder, Router({role: towers[role] for role in order}, default_route=first), Normalize())

    return make


def static(folder: Path) -> Path:
    """Static embeddings, as model2vec makes them."""
    torch.manual_seed(4)
    return sentence(folder, StaticEmbedding(tokenizer(), embedding_dim=WIDTH), Normalize())


def static_queries(folder: Path) -> Path:
    """A router with static embeddings for queries and an encoder for documents."""
    torch.manual_seed(5)
    documents = [transformer(folder, "bert"), Pooling(WIDTH, "mean")]
    router = Router.for_query_document([StaticEmbedding(tokenizer(), embedding_dim=WIDTH)], documents)
    return sentence(folder, router, Normalize())


def plain(folder: Path) -> Path:
    """A folder of transformers alone, which is mean-pooled."""
    transformer(folder, "bert")
    return folder / "plain-0"


def similar_by(name: str, normalise: bool) -> Callable[[Path], Path]:
    """A maker of a BERT with another similarity function."""
    return pooled("mean", normalise=normalise, similarity_fn_name=name)


# --- other models --------------------------------------------------------------------------------------------


def cross_encoder(folder: Path) -> Path:
    """A reranker, saved by the library's own class."""
    CrossEncoder(str(_classifier(folder)), device="cpu").save_pretrained(str(folder / "model"))
    return folder / "model"


def _classifier(folder: Path) -> Path:
    tokens = tokenizer()
    config = AutoConfig.for_model(
        "bert",
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=len(tokens),
        num_labels=1,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "classifier")
    tokens.save_pretrained(folder / "classifier")
    return folder / "classifier"


def splade(folder: Path) -> Path:
    """A sparse encoder, saved by the library's own class."""
    transformer(folder, "bert")
    modules = [MLMTransformer(str(folder / "plain-0")), SpladePooling()]
    SparseEncoder(modules=modules, device="cpu").save_pretrained(str(folder / "model"))
    return folder / "model"


def _rope(**more: Any) -> dict[str, Any]:
    return {"max_position_embeddings": 128, **more}


KINDS: tuple[Kind, ...] = (
    Kind("BERT", architecture("bert")),
    Kind("RoBERTa", architecture("roberta")),
    Kind("XLM-R", architecture("xlm-roberta")),
    Kind("ALBERT", architecture("albert", embedding_size=16), fast=False),
    Kind("ELECTRA", architecture("electra", embedding_size=WIDTH), fast=False),
    Kind("MPNet", architecture("mpnet")),
    Kind("DistilBERT", architecture("distilbert", dim=WIDTH, hidden_dim=64, n_layers=2, n_heads=4), fast=False),
    Kind("DeBERTa-v2", architecture("deberta-v2", relative_attention=True, pos_att_type=["p2c", "c2p"]), fast=False),
    Kind("ModernBERT", architecture("modernbert")),
    Kind("RoFormer", architecture("roformer", embedding_size=WIDTH), fast=False),
    Kind("T5 encoder", architecture("t5", d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4)),
    Kind("nomic_bert (RoPE)", architecture("nomic_bert", **_rope())),
    Kind("gte (RoPE)", architecture("gte", **_rope()), fast=False),
    Kind("EuroBERT (RoPE)", architecture("eurobert", **_rope(num_key_value_heads=2, head_dim=8)), fast=False),
    Kind("jina_embeddings_v3 (RoPE)", architecture("jina_embeddings_v3", **_rope()), fast=False),
    Kind("Gemma3", decoder("gemma3_text", side="right", sliding_window=16), fast=False),
    Kind("GPT-2", decoder("gpt2", side="right"), fast=False),
    Kind("Qwen2", decoder("qwen2"), fast=False),
    Kind(
        "Qwen3, chat template as chat_template.jinja",
        decoder("qwen3", "chat_template.jinja"),
        note="last token, padding on the left, a prompt for queries",
    ),
    Kind("Qwen3, chat template in tokenizer_config.json", decoder("qwen3", "tokenizer_config.json")),
    Kind("RoBERTa with PhoBERT's tokenizer (bpe.codes)", phobert),
    Kind("XLM-R without a limit in its tokenizer", without_length, note="the limit is lowered to its positions"),
    Kind("plain transformers folder", plain, fast=False),
    Kind("cls pooling", pooled("cls"), fast=False),
    Kind("max pooling", pooled("max"), fast=False),
    Kind("last-token pooling", pooled("lasttoken"), fast=False),
    Kind("weighted pooling", pooled("weightedmean"), fast=False),
    Kind("Dense", pooled("mean", lambda: Dense(WIDTH, 24)), fast=False),
    Kind("LayerNorm", pooled("mean", lambda: LayerNorm(WIDTH)), fast=False),
    Kind("no Normalize", pooled("mean", normalise=False)),
    Kind("truncate_dim", pooled("mean", normalise=False, truncate_dim=16), note="trained and scored at that dimension"),
    Kind("include_prompt=False", without_prompt),
    Kind("fp16 weights", weights_in(torch.float16)),
    Kind("bf16 weights", weights_in(torch.bfloat16), fast=False),
    Kind("router after pooling: a Dense head per role", routed_heads),
    Kind("router over two towers, query first", two_towers("query"), fast=False),
    Kind("router over two towers, document first", two_towers("document")),
    Kind("router with static embeddings for queries", static_queries),
    Kind("static embeddings (model2vec)", static, note="a text without a known token has no vector"),
    Kind("whole repository with scripts and exports", repository),
    Kind("similarity dot, normalised vectors", similar_by("dot", True), fast=False),
    Kind("similarity euclidean, normalised vectors", similar_by("euclidean", True), fast=False),
    Kind(
        "similarity dot",
        similar_by("dot", False),
        "similarity function is 'dot'",
        note="add a Normalize module, or use the cosine",
    ),
    Kind("similarity euclidean", similar_by("euclidean", False), "similarity function is 'euclidean'"),
    Kind("similarity manhattan", similar_by("manhattan", True), "similarity function is 'manhattan'", fast=False),
    Kind("cross-encoder", cross_encoder, "a cross-encoder, which scores pairs", note="gives no vectors"),
    Kind("classifier as a plain folder", _classifier, "a cross-encoder or classifier", fast=False),
    Kind("SPLADE", splade, r"a sparse encoder \(SPLADE\)"),
    Kind("git-lfs pointer as weights", pointer, "is a git-lfs pointer.*git lfs pull", note="`git lfs pull`"),
    Kind(
        "tokenizer without padding token",
        without_padding,
        "has no padding token.*tokenizer.pad_token",
        note="set one, and save it again",
    ),
    Kind(
        "LoRA adapter without its base",
        adapter,
        "belongs to an adapter.*merge",
        note="merge it into its base model first",
    ),
)


def copied(source: Path, target: Path) -> Path:
    """A copy of a made model that a test may change."""
    shutil.copytree(source, target)
    return target
