"""Small random models of several architectures, saved as sentence-transformers folders: real in all but size."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoConfig, AutoModel, AutoTokenizer

from tasks.config import BUNDLED_MODEL
from tasks.encoding import resolve_model

Architecture = Literal["bert", "roberta", "distilbert", "mpnet", "electra", "modernbert"]

WIDTH = 32

SAMPLE = "a pangram to learn letters from: the quick brown fox jumps over the lazy dog 0 1 2 3 4 5 6 7 8 9 . , ? !"


def save(folder: Path, architecture: Architecture = "bert", pooling: str = "mean", max_length: int = 48) -> Path:
    """Save a random encoder of 2 layers, 4 heads and 32 dimensions, with a small tokenizer like all-MiniLM-L6-v2's."""
    original = AutoTokenizer.from_pretrained(resolve_model(BUNDLED_MODEL))
    tokenizer = original.train_new_from_iterator([SAMPLE], vocab_size=300, show_progress=False)
    size: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
    }
    if architecture == "distilbert":
        size |= {"dim": WIDTH, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
    if architecture == "electra":
        size |= {"embedding_size": WIDTH}
    torch.manual_seed(0)
    plain = folder / "transformer"
    AutoModel.from_config(AutoConfig.for_model(architecture, **size)).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    transformer = Transformer(str(plain), max_seq_length=max_length)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"), create_model_card=False)
    return folder / "model"
