"""A model folder and texts to vectors: loading, identity, numeric paths, and the cache of vectors."""

from tasks.encoding.cache import CachedEncoder, VectorCache, text_hash
from tasks.encoding.encoder import (
    BF16,
    FP32,
    PLAIN,
    Encoder,
    ModelEncoder,
    NumericPath,
    Progress,
    Role,
    VectorError,
    by_budget,
    encode,
    prompt_for,
)
from tasks.encoding.identity import fingerprint, weights_hash
from tasks.encoding.model import ModelError, check_folder, load, resolve_model
from tasks.encoding.numeric_path import PARITY, Measurement, choose_path, fastest, measure_paths

__all__ = [
    "BF16",
    "FP32",
    "PARITY",
    "PLAIN",
    "CachedEncoder",
    "Encoder",
    "Measurement",
    "ModelEncoder",
    "ModelError",
    "NumericPath",
    "Progress",
    "Role",
    "VectorCache",
    "VectorError",
    "by_budget",
    "check_folder",
    "choose_path",
    "encode",
    "fastest",
    "fingerprint",
    "load",
    "measure_paths",
    "prompt_for",
    "resolve_model",
    "text_hash",
    "weights_hash",
]
