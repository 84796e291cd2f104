"""What makes a model the same model: hashes of everything in its folder that changes a vector."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tasks.config import MODEL_FILES
from tasks.encoding.folder import ModelError, json_object, read_files, read_json, tensors_header
from tasks.encoding.routes import SENTENCE_SETTINGS, pipeline
from tasks.encoding.tokens import DOCUMENT_PROMPTS

_NOT_THE_MODEL: Final = {"manifest.json", "data_config.json", "trainer_state.json", "training_args.json"}
"""JSON that may lie in a model's folder and changes no vector."""

_SETTINGS: Final = MODEL_FILES - {".safetensors", ".md"}

_DESCRIPTIVE: Final = {
    *("__version__", "_name_or_path", "name_or_path", "transformers_version"),
    *("is_local", "local_files_only", "special_tokens_map_file", "tokenizer_file"),
}
"""Keys of a model's JSON that say who saved it, from where and whether offline, and change no vector."""


def fingerprint(folder: Path) -> str:
    """SHA-256 (hex) of everything in a model's folder that changes a vector.

    Weights (by tensor), and every other file that loading reads: architecture, tokenizer, pooling, modules, prompts,
    lengths. Not the model card, the path, or the versions of who saved it, so the same model under two paths has
    one fingerprint.
    """
    digest = hashlib.sha256(weights_hash(folder).encode())
    for path in read_files(folder):
        if path.suffix in _SETTINGS and path.name not in _NOT_THE_MODEL:
            digest.update(f"\n{path.relative_to(folder).as_posix()}\n".encode())
            digest.update(hashlib.sha256(_canonical(path)).digest())
    return digest.hexdigest()


def document_identity(folder: Path) -> str:
    """SHA-256 (hex) of everything in a model's folder that changes the vector of a document.

    Of a router only the modules that documents go through: a model that was trained on the query side alone has the
    identity of the model whose documents it was trained against, and an index of one serves the other. Tensors count
    wherever they lie, then each module's class and settings (tokenizer and limit of length among them), the prompt for
    documents, the similarity, and the dimension that vectors are cut to. A folder whose modules cannot be followed has
    an identity that changes with everything in it.
    """
    try:
        parts = pipeline(folder, "document")
    except ModelError:
        return hashlib.sha256(f"whole {fingerprint(folder)}".encode()).hexdigest()
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps([part.name]).encode())
        files = part.files()
        _update_by_tensors(digest, part.folder, [path for path in files if path.suffix == ".safetensors"])
        for path in files:
            if path.suffix in _SETTINGS:
                digest.update(f"\n{path.relative_to(part.folder).as_posix()}\n".encode())
                digest.update(hashlib.sha256(_canonical(path)).digest())
    settings = json_object(folder / SENTENCE_SETTINGS)
    digest.update(json.dumps([_document_prompt(settings), settings.get("similarity_fn_name") or "cosine"]).encode())
    if settings.get("truncate_dim"):
        digest.update(json.dumps(settings["truncate_dim"]).encode())
    return digest.hexdigest()


def _document_prompt(settings: dict[str, Any]) -> str:
    """What a saved model puts before a document, as `prompt_for` says of a loaded one."""
    prompts = settings.get("prompts") or {}
    names = (*DOCUMENT_PROMPTS, settings.get("default_prompt_name"))
    return str(next((prompts[name] for name in names if name in prompts), None) or "")


def _canonical(path: Path) -> bytes:
    """A file's meaning: JSON without layout, order of keys, and what only describes; text as it is."""
    if path.suffix != ".json":
        return path.read_bytes()
    content = read_json(path)
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in _DESCRIPTIVE}
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def weights_hash(folder: Path) -> str:
    """SHA-256 (hex) of a model's tensors: folder, name, type, shape, bytes; not of how they are laid out in files.

    Two models with one weights hash are the same model to a reader of their vectors, unless settings differ.
    """
    digest = hashlib.sha256()
    _update_by_tensors(digest, folder, [path for path in read_files(folder) if path.suffix == ".safetensors"])
    return digest.hexdigest()


def _update_by_tensors(digest: Any, folder: Path, weights: Sequence[Path]) -> None:
    """Add the tensors of weight files below a folder to a hash, by folder and name."""
    tensors = sorted((path.parent, name, path) for path in weights for name in tensors_header(path)[0])
    for parent, name, path in tensors:
        header, start = tensors_header(path)
        found = header[name]
        first, last = found["data_offsets"]
        label = [parent.relative_to(folder).as_posix(), name, found["dtype"], found["shape"]]
        digest.update(json.dumps(label).encode())
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as body:
            digest.update(memoryview(body)[start + first : start + last])
