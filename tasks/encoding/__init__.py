"""A model folder and texts to vectors: loading, identity, numeric paths, and the cache of vectors."""

from tasks.encoding.cache import CachedEncoder, VectorCache, text_hash
from tasks.encoding.device import moved, out_of_memory, put_aside, release
from tasks.encoding.encoder import (
    BF16,
    FP16,
    FP32,
    PATHS,
    PLAIN,
    ROLES,
    Encoder,
    ModelEncoder,
    NumericPath,
    Progress,
    VectorError,
    by_budget,
    encode,
)
from tasks.encoding.folder import ModelError, check_folder
from tasks.encoding.identity import document_identity, fingerprint, weights_hash
from tasks.encoding.model import LEAST_VERSIONS, Served, load, resolve_model, served, transformers_of
from tasks.encoding.numeric_path import PARITY, Measurement, choose_path, fastest, least_cosine, measure_paths
from tasks.encoding.routes import pipeline
from tasks.encoding.tokens import Padding, Role, Tokens, padding, prompt_for, tokenise

__all__ = [
    "BF16",
    "FP16",
    "FP32",
    "LEAST_VERSIONS",
    "PARITY",
    "PATHS",
    "PLAIN",
    "ROLES",
    "CachedEncoder",
    "Encoder",
    "Measurement",
    "ModelEncoder",
    "ModelError",
    "NumericPath",
    "Padding",
    "Progress",
    "Role",
    "Served",
    "Tokens",
    "VectorCache",
    "VectorError",
    "by_budget",
    "check_folder",
    "choose_path",
    "document_identity",
    "encode",
    "fastest",
    "fingerprint",
    "least_cosine",
    "load",
    "measure_paths",
    "moved",
    "out_of_memory",
    "padding",
    "pipeline",
    "prompt_for",
    "put_aside",
    "release",
    "resolve_model",
    "served",
    "text_hash",
    "tokenise",
    "transformers_of",
    "weights_hash",
]
