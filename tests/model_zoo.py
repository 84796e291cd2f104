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
    CNN,
    LSTM,
    BoW,
    Dense,
    Dropout,
    LayerNorm,
    Module,
    Normalize,
    Pooling,
    Router,
    StaticEmbedding,
    Transformer,
    WeightedLayerPooling,
    WordEmbeddings,
)
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer
from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ByT5Tokenizer,
    PhobertTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5EncoderModel,
)
from transformers.activations import GELUActivation

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
    config = small_config(architecture, tokens, **size)
    torch.manual_seed(0)
    model = T5EncoderModel(config) if architecture == "t5" else AutoModel.from_config(config)
    return wrap(folder, model, tokens, length)


def small_config(architecture: str, tokens: Any, **size: Any) -> Any:
    """Settings of an architecture with 2 layers, 4 heads and 32 dimensions; `size` is of those with other names."""
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "vocab_size": len(tokens),
        "pad_token_id": tokens.pad_token_id,
    }
    named = {name: value for name, value in (sizes | size).items() if value is not None}
    return AutoConfig.for_model(architecture, **named)


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


_MARKS = ["<pad>", "<unk>", "<s>", "</s>"]


def made_by(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of another kind, trained on the sample: unigram, bytes, words, or BPE that drops what it lacks."""
    options: dict[str, Any] = {"special_tokens": _MARKS, "show_progress": False, "vocab_size": 100}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model, trainer, split = {
        "unigram": (
            models.Unigram(),
            trainers.UnigramTrainer(unk_token="<unk>", **options),
            pre_tokenizers.Metaspace(),
        ),
        "bytes": (
            models.BPE(),
            trainers.BpeTrainer(initial_alphabet=alphabet, **options | {"vocab_size": 400}),
            pre_tokenizers.ByteLevel(),
        ),
        "words": (
            models.WordLevel(unk_token="<unk>"),
            trainers.WordLevelTrainer(**options),
            pre_tokenizers.Whitespace(),
        ),
        "dropping": (models.BPE(), trainers.BpeTrainer(**options), pre_tokenizers.Whitespace()),
    }[kind]
    made = Tokenizer(model)
    made.pre_tokenizer = split
    made.train_from_iterator([SAMPLE], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>")


def with_tokenizer(kind: str, name: str) -> Callable[[Path], Path]:
    """A maker of an encoder with such a tokenizer."""

    def make(folder: Path) -> Path:
        return sentence(folder, transformer(folder, name, made_by(kind)), Pooling(WIDTH, "mean"), Normalize())

    return make


def bytes_alone(folder: Path) -> Path:
    """ByT5: no vocabulary, a token per byte."""
    size = {"d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    module = transformer(folder, "t5", ByT5Tokenizer(), **size)
    return sentence(folder, module, Pooling(WIDTH, "mean"), Normalize())


# --- modules -------------------------------------------------------------------------------------------------


def pooled(
    pooling: str | tuple[str, ...], *further: Callable[[], Module], normalise: bool = True, **settings: Any
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


def static_without_marks(folder: Path) -> Path:
    """Static embeddings in which unknown words and marks count for nothing, and no Normalize."""
    torch.manual_seed(4)
    tokens = made_by("words")
    weights = torch.randn(len(tokens), WIDTH)
    weights[: len(_MARKS)] = 0
    return sentence(folder, StaticEmbedding(tokens, embedding_weights=weights))


_WORDS = ["[PAD]", *dict.fromkeys(SAMPLE.replace(":", "").split())]


def word_vectors(*further: Callable[[], Module], width: int = WIDTH) -> Callable[[Path], Path]:
    """A maker of word vectors (GloVe), mean-pooled, with other modules before that."""

    def make(folder: Path) -> Path:
        torch.manual_seed(6)
        words = WordEmbeddings(WhitespaceTokenizer(_WORDS), torch.randn(len(_WORDS), WIDTH), update_embeddings=True)
        return sentence(folder, words, *(one() for one in further), Pooling(width, "mean"), Normalize())

    return make


def bag_of_words(folder: Path) -> Path:
    """Counts of words, and a Dense layer over them."""
    torch.manual_seed(7)
    return sentence(folder, BoW(_WORDS), Dense(len(_WORDS), WIDTH, bias=False), Normalize())


def layers_weighted(folder: Path) -> Path:
    """A weighted mean of the layers' outputs, pooled."""
    inner = transformer(folder, "bert", output_hidden_states=True)
    weighted = WeightedLayerPooling(WIDTH, num_hidden_layers=2, layer_start=1)
    return sentence(folder, inner, weighted, Pooling(WIDTH, "mean"), Normalize())


def convolved(folder: Path) -> Path:
    """Convolutions over the tokens, which see padding."""
    torch.manual_seed(8)
    return sentence(folder, transformer(folder, "bert"), CNN(WIDTH, 16, [1, 3]), Pooling(WIDTH, "mean"), Normalize())


def routed(query: Callable[[Path], list[Module]], document: Callable[[Path], list[Module]]) -> Callable[[Path], Path]:
    """A maker of a router over two different towers."""

    def make(folder: Path) -> Path:
        return sentence(folder, Router.for_query_document(query(folder), document(folder)), Normalize())

    return make


def tower(pooling: str = "mean", tokens: str = "", **size: Any) -> Callable[[Path], list[Module]]:
    """A maker of one tower of a router."""

    def make(folder: Path) -> list[Module]:
        inner = transformer(folder, "bert", made_by(tokens) if tokens else None, **size)
        return [inner, Pooling(size.get("hidden_size", WIDTH), pooling)]

    return make


def named_routes(query: str, document: str, *, mapped: bool = False) -> Callable[[Path], Path]:
    """A maker of a router over two towers by other names, with or without saying which is for what."""

    def make(folder: Path) -> Path:
        towers = {query: tower()(folder), document: tower()(folder)}
        mappings = {("query", None): query, ("document", None): document} if mapped else None
        return sentence(folder, Router(towers, default_route=document, route_mappings=mappings), Normalize())

    return make


def one_tower(folder: Path) -> Path:
    """A router whose routes are the same modules."""
    shared = tower()(folder)
    return sentence(folder, Router({"query": shared, "document": shared}), Normalize())


def dense_over_tokens(folder: Path) -> Path:
    """A Dense layer before pooling."""
    names = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    dense = Dense(WIDTH, 16, **names)
    return sentence(folder, transformer(folder, "bert"), dense, Pooling(16, "mean"), Normalize())


def prompted(prompts: dict[str, str], length: int = 40, **settings: Any) -> Callable[[Path], Path]:
    """A maker of a BERT with prompts."""

    def make(folder: Path) -> Path:
        inner = transformer(folder, "bert", length=length)
        return sentence(folder, inner, Pooling(WIDTH, "mean"), Normalize(), prompts=prompts, **settings)

    return make


def gemma(folder: Path) -> Path:
    """Like EmbeddingGemma: attention in both directions, two Dense layers, long prompts."""
    size = {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16, "use_bidirectional_attention": True}
    dense = [
        Dense(one, other, bias=False, activation_function=torch.nn.Identity())
        for one, other in ((WIDTH, 64), (64, WIDTH))
    ]
    prompts = {"query": "task: search result | query: ", "document": "title: none | text: "}
    inner = transformer(folder, "gemma3_text", **size)
    return sentence(folder, inner, Pooling(WIDTH, "mean"), *dense, Normalize(), prompts=prompts)


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


def _mobile() -> dict[str, Any]:
    return {"embedding_size": WIDTH, "intra_bottleneck_size": 16, "true_hidden_size": 16}


def _both_sides() -> dict[str, Any]:
    sides = ("encoder", "decoder")
    of_side = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}
    return {"d_model": WIDTH} | {f"{side}_{name}": size for side in sides for name, size in of_side.items()}


def _experts() -> dict[str, Any]:
    return {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}


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
    Kind("CamemBERT", architecture("camembert"), fast=False),
    Kind("XLM", architecture("xlm", emb_dim=WIDTH, n_layers=2, n_heads=4), fast=False),
    Kind("XLNet", architecture("xlnet", max_position_embeddings=None, d_inner=64, d_head=8), fast=False),
    Kind("Longformer", architecture("longformer", attention_window=8), fast=False),
    Kind("BigBird", architecture("big_bird"), fast=False),
    Kind("MobileBERT", architecture("mobilebert", **_mobile()), fast=False),
    Kind("DeBERTa", architecture("deberta", relative_attention=True, pos_att_type=["p2c", "c2p"]), fast=False),
    Kind("BART", architecture("bart", **_both_sides()), fast=False, note="the decoder's output, as the library has it"),
    Kind("ERNIE", architecture("ernie"), fast=False),
    Kind("Mamba", architecture("mamba", "lasttoken", state_size=4), fast=False),
    Kind("Llama", decoder("llama"), fast=False),
    Kind("Mistral", decoder("mistral"), fast=False),
    Kind("Gemma2", decoder("gemma2"), fast=False),
    Kind("OPT", decoder("opt", side="right"), fast=False),
    Kind("BLOOM", decoder("bloom", side="right"), fast=False),
    Kind("Qwen3, mixture of experts", decoder("qwen3_moe", **_experts()), fast=False),
    Kind("EmbeddingGemma's modules", gemma, fast=False),
    Kind("RemBERT", architecture("rembert", input_embedding_size=16, output_embedding_size=16), fast=False),
    Kind("ESM (RoPE)", architecture("esm", mask_token_id=4, position_embedding_type="rotary"), fast=False),
    Kind("X-MOD", architecture("xmod", languages=["en_XX"], default_language="en_XX"), fast=False),
    Kind("mBART", architecture("mbart", **_both_sides()), fast=False),
    Kind("GPT-NeoX", decoder("gpt_neox", side="right"), fast=False),
    Kind("Falcon", architecture("falcon", "lasttoken"), fast=False),
    Kind("Phi-3", decoder("phi3"), fast=False),
    Kind("OLMo 2", decoder("olmo2"), fast=False),
    Kind("Cohere", decoder("cohere"), fast=False),
    Kind("Mixtral", decoder("mixtral", num_local_experts=4), fast=False),
    Kind(
        "LFM2, convolutions and attention",
        decoder("lfm2", side="right", block_ff_dim=64, layer_types=["conv", "full_attention"]),
        fast=False,
    ),
    Kind("RWKV", architecture("rwkv", "lasttoken"), fast=False),
    Kind("YOSO", architecture("yoso"), "alone and together", fast=False),
    Kind("unigram tokenizer", with_tokenizer("unigram", "xlm-roberta"), fast=False),
    Kind("byte-level BPE", with_tokenizer("bytes", "roberta"), fast=False),
    Kind("tokenizer of whole words", with_tokenizer("words", "bert"), fast=False),
    Kind("ByT5, no vocabulary", bytes_alone, fast=False),
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
    Kind("router, another pooling per role", routed(tower("cls"), tower()), fast=False),
    Kind("router, another tokenizer per role", routed(tower(tokens="bytes"), tower()), fast=False),
    Kind("router, another limit per role", routed(tower(length=12), tower()), fast=False),
    Kind("router whose routes are mapped", named_routes("ask", "find", mapped=True), fast=False),
    Kind(
        "router whose routes have other names",
        named_routes("query", "passage"),
        "No route found.*Name its routes `query` and `document`",
    ),
    Kind("router whose routes share their modules", one_tower, fast=False),
    Kind("router with static embeddings for queries", static_queries),
    Kind("static embeddings (model2vec)", static),
    Kind(
        "static embeddings, nothing for unknown words",
        static_without_marks,
        note="a text without a known word scores 0 with everything",
    ),
    Kind("word vectors", word_vectors(), note="the same"),
    Kind("word vectors and an LSTM", word_vectors(lambda: LSTM(WIDTH, 16)), fast=False),
    Kind("bag of words and a Dense layer", bag_of_words, fast=False),
    Kind("weighted layers", layers_weighted, fast=False),
    Kind("Dense over the tokens", dense_over_tokens, fast=False),
    Kind("Normalize before Dense", pooled("mean", Normalize, lambda: Dense(WIDTH, 24)), fast=False),
    Kind(
        "Dense with an activation function from elsewhere",
        pooled("mean", lambda: Dense(WIDTH, 24, activation_function=GELUActivation())),
        "names an activation function from elsewhere",
        note="the library would take Tanh instead",
    ),
    Kind("Dropout", pooled("mean", lambda: Dropout(0.3)), fast=False),
    Kind("cls and mean pooling, Dense", pooled(("cls", "mean"), lambda: Dense(2 * WIDTH, WIDTH)), fast=False),
    Kind("prompts query and passage", prompted({"query": "query: ", "passage": "passage: "}), fast=False),
    Kind(
        "prompts of other names, one by default",
        prompted({"retrieval": "retrieve: ", "sts": "same: "}, default_prompt_name="retrieval"),
        fast=False,
    ),
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
    Kind(
        "tokenizer that drops unknown characters",
        with_tokenizer("dropping", "bert"),
        "gives no usable vector.*does its tokenizer drop what it does not know",
        note="such a text alone breaks it in serving, too",
    ),
    Kind(
        "prompt as long as the limit",
        prompted({"query": "the quick brown fox " * 4}, 12),
        "gives every query the same vector.*prompt leave room",
    ),
    Kind("convolutions over tokens", convolved, "alone and together.*layers that see padding", fast=False),
    Kind("FNet", architecture("fnet"), "alone and together.*layers that see padding", fast=False),
    Kind(
        "router, another width per role",
        routed(tower(hidden_size=16), tower()),
        "gives 32 dimensions as document, and says that it has 16",
        fast=False,
    ),
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
