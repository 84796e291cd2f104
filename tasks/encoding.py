"""Texts to vectors, once per model and text, exactly as the model will be served.

"As served" means what `SentenceTransformer.encode_query` and `encode_document` do with the saved model: its own
prompts, `max_seq_length`, pooling, `truncate_dim`. Only the order of the work differs: texts are tokenised once,
sorted by length and forwarded in batches that hold about the same number of tokens, so that hardly any padding is
computed.

Models are data, never code: a folder with pickled weights, Python files or a request for remote code is refused.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

Role = Literal["query", "document"]
Progress = Callable[[int, int], None]

PACKAGE_PREFIX: Final = "pkg:"
_HUB_FILES: Final = ["*.safetensors", "*.json", "*.txt"]
_PICKLES: Final = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".h5"}
_NOT_THE_MODEL: Final = {"manifest.json", "data_config.json", "trainer_state.json", "training_args.json"}
"""JSON that may lie in a model's folder and changes no vector."""

_DESCRIPTIVE: Final = {"__version__", "_name_or_path", "name_or_path", "transformers_version"}
"""Keys of a model's JSON that say who saved it and from where, and change no vector."""

_SLAB: Final = 16_384
"""Texts tokenised and sorted at a time: enough to leave no padding, little enough to bound memory."""


class ModelError(Exception):
    """A model cannot be used: it is missing, not to be trusted, or gives vectors that are no numbers."""


# --- which model ---------------------------------------------------------------------------------------------


def resolve_model(name: str) -> Path:
    """The folder of a model that is named by package, folder or hub id, checked with `check_folder`.

    `pkg:<package>` is the one folder with a model inside an installed package (which is not imported); anything
    that exists as a folder is that folder; `org/name` or `org/name@revision` is taken from the hub or, without a
    connection, from its local cache: safetensors, JSON and text files only.

    Raises ModelError in words for people: what was looked for, and where.
    """
    if name.startswith(PACKAGE_PREFIX):
        folder = _package_folder(name.removeprefix(PACKAGE_PREFIX))
    elif Path(name).expanduser().is_dir():
        folder = Path(name).expanduser().resolve()
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder {name}")
    else:
        folder = _hub_folder(name)
    check_folder(folder)
    return folder


def _package_folder(package: str) -> Path:
    """The folder with a model inside an installed package: the package's own, or one directly below it."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"{PACKAGE_PREFIX}{package}: no package named {package!r} is installed")
    root = Path(next(iter(spec.submodule_search_locations)))
    found = [folder for folder in (root, *sorted(root.iterdir())) if _is_model(folder)]
    if len(found) != 1:
        names = ", ".join(folder.name for folder in found) or "none"
        raise ModelError(f"{PACKAGE_PREFIX}{package}: expected one folder with a model in {root}, found {names}")
    return found[0]


def _is_model(folder: Path) -> bool:
    return (folder / "modules.json").is_file() or (folder / "config.json").is_file()


def _hub_folder(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=_HUB_FILES))
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{name} is no folder, and as a model of the hub it could not be had: neither from the hub nor from the "
            f"local cache ({type(error).__name__}). Name a folder, or {PACKAGE_PREFIX}<package> for a model that an "
            "installed package ships"
        ) from error


def check_folder(folder: Path) -> None:
    """Refuse a model that would have to be trusted: only weights as safetensors, JSON and text are data.

    Raises ModelError naming the file: Python files, `auto_map` (remote code), a module class from outside
    sentence-transformers, pickled weights without safetensors beside them, or no weights at all.
    """
    if not _is_model(folder):
        raise ModelError(f"{folder} holds no model: neither modules.json nor config.json")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    safe = {path.parent for path in files if path.suffix == ".safetensors"}
    for path in files:
        if path.suffix == ".py":
            raise ModelError(f"{path} is code; models are loaded as data only")
        if path.suffix in _PICKLES and path.parent not in safe:
            raise ModelError(f"{path} may hold a pickle, which can run code when read; save the model as safetensors")
        if path.suffix == ".json" and "auto_map" in _json_object(path):
            raise ModelError(f"{path} asks for remote code (auto_map); models are loaded as data only")
    if (folder / "modules.json").is_file():
        for module in _json(folder / "modules.json"):
            if not str(module.get("type", "")).startswith("sentence_transformers."):
                raise ModelError(f"{folder / 'modules.json'} names a class from elsewhere: {module.get('type')!r}")
    if not safe:
        raise ModelError(f"{folder} holds no weights as safetensors")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error


def _json_object(path: Path) -> dict[str, Any]:
    found = _json(path)
    return found if isinstance(found, dict) else {}


def load(folder: Path, device: str | None = None) -> SentenceTransformer:
    """Load a saved model in float32, from its own files only: no hub, no remote code, no pickle.

    `device` defaults to the best there is: CUDA, MPS, ... or the CPU.
    """
    from sentence_transformers import SentenceTransformer

    check_folder(folder)
    return SentenceTransformer(
        str(folder),
        device=device,
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={"use_safetensors": True, "dtype": "float32"},
    )


# --- identity ------------------------------------------------------------------------------------------------


def fingerprint(folder: Path) -> str:
    """SHA-256 (hex) of everything in a model's folder that changes a vector.

    Weights (by tensor), and every JSON and text file: architecture, tokenizer, pooling, modules, prompts,
    lengths. Not the model card, the path, or the versions of who saved it, so the same model under two paths has
    one fingerprint.
    """
    digest = hashlib.sha256(weights_hash(folder).encode())
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".json", ".txt"} and path.is_file() and path.name not in _NOT_THE_MODEL:
            digest.update(f"\n{path.relative_to(folder).as_posix()}\n".encode())
            digest.update(hashlib.sha256(_canonical(path)).digest())
    return digest.hexdigest()


def _canonical(path: Path) -> bytes:
    """A file's meaning: JSON without layout, order of keys, and what only describes; text as it is."""
    if path.suffix != ".json":
        return path.read_bytes()
    content = _json(path)
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in _DESCRIPTIVE}
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def weights_hash(folder: Path) -> str:
    """SHA-256 (hex) of a model's tensors: folder, name, type, shape, bytes; not of how they are laid out in files.

    Two models with one weights hash are the same model to a reader of their vectors, unless settings differ.
    """
    digest = hashlib.sha256()
    tensors = sorted((path.parent, name, path) for path in folder.rglob("*.safetensors") for name in _header(path)[0])
    for parent, name, path in tensors:
        header, start = _header(path)
        found = header[name]
        first, last = found["data_offsets"]
        label = [parent.relative_to(folder).as_posix(), name, found["dtype"], found["shape"]]
        digest.update(json.dumps(label).encode())
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as body:
            digest.update(memoryview(body)[start + first : start + last])
    return digest.hexdigest()


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Tensors by name and where their bytes start: 8 bytes length, JSON, data (the safetensors format)."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ModelError(f"{path} is truncated or no safetensors file")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


# --- numeric paths -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NumericPath:
    """How vectors are computed: `plain` is the library's own encode; others by token budget, in `dtype`."""

    name: str
    dtype: str = "float32"
    token_budget: int = 1024
    plain: bool = False


PLAIN: Final = NumericPath("plain", plain=True)
FP32: Final = NumericPath("fp32")


# --- encoding ------------------------------------------------------------------------------------------------


def prompt_for(model: SentenceTransformer, role: Role) -> str:
    """The prompt that `encode_query` or `encode_document` would put before each text; empty for none."""
    names = ["query"] if role == "query" else ["document", "passage", "corpus"]
    name = next((name for name in names if name in model.prompts), model.default_prompt_name)
    return (model.prompts.get(name) or "") if name is not None else ""


def encode(
    model: SentenceTransformer,
    texts: Sequence[str],
    role: Role,
    *,
    path: NumericPath = FP32,
    on_progress: Progress | None = None,
) -> np.ndarray:
    """Encode texts as the model will be served; returns float32 unit vectors of shape (n_texts, dimension).

    `on_progress(done, total)` is called after each batch. Raises ModelError naming the first text whose vector is
    not finite or has no direction.
    """
    total = len(texts)
    vectors = np.empty((total, _dimension(model)), np.float32)
    done = 0
    for start in range(0, total, _SLAB):
        for rows, batch in _batches(model, texts[start : start + _SLAB], role, path):
            vectors[start + rows] = batch
            done += len(rows)
            if on_progress is not None:
                on_progress(done, total)
    return _unit(vectors, str(model.model_card_data.base_model or "the model"))


def _dimension(model: SentenceTransformer) -> int:
    dimension = model.get_embedding_dimension()
    if dimension is None:
        raise ModelError("the model does not say how many dimensions its vectors have")
    return int(dimension)


def _unit(vectors: np.ndarray, name: str) -> np.ndarray:
    """Divide each row by its length; the model's own Normalize module, where there is one, changes nothing here."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if len(bad):
        raise ModelError(
            f"{name} gives no usable vector for {len(bad)} of {len(vectors)} texts, first at index {bad[0]}"
        )
    return np.asarray(vectors / norms, np.float32)


def _batches(
    model: SentenceTransformer, texts: Sequence[str], role: Role, path: NumericPath
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (indices of texts, their vectors) until every text has one."""
    prompt = prompt_for(model, role)
    features = None if path.plain else _tokenise(model, texts, role, prompt)
    if features is None:
        encode_role = model.encode_query if role == "query" else model.encode_document
        for start in range(0, len(texts), 256):
            rows = np.arange(start, min(start + 256, len(texts)))
            yield rows, encode_role(list(texts[start : start + 256]), show_progress_bar=False)
        return
    from torch.nn.utils.rnn import pad_sequence

    model.eval()
    lengths = np.array([len(ids) for ids in features["input_ids"]])
    extra: dict[str, Any] = {"modality": "text"} | ({"prompt_length": features["prompt_length"]} if prompt else {})
    padding = {"input_ids": model.tokenizer.pad_token_id or 0, "attention_mask": 0, "token_type_ids": 0}
    for rows in _by_budget(lengths, path.token_budget):
        batch = {
            name: pad_sequence([values[i] for i in rows], batch_first=True, padding_value=padding[name])
            for name, values in features.items()
            if name in padding
        }
        yield rows, _forward(model, {name: value.to(model.device) for name, value in batch.items()} | extra)


def _by_budget(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Group texts of similar length so that each group, padded, holds at most `budget` tokens (or one text)."""
    order = np.argsort(-lengths, kind="stable")  # longest first: memory is needed, or missing, at once
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size


def _tokenise(model: SentenceTransformer, texts: Sequence[str], role: Role, prompt: str) -> dict[str, Any] | None:
    """Token ids, attention mask, ... per text, without padding; None where the model is not a plain text encoder.

    The model's own `preprocess` does the work, so prompts, truncation and special tokens are the served ones.
    """
    columns: dict[str, Any] = {}
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), 256):
        rows = order[start : start + 256]
        batch = model.preprocess([texts[i] for i in rows], prompt=prompt or None, task=role)
        if not _is_plain_text(model, batch):
            return None
        keep = batch["attention_mask"].bool()
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            if name in batch:
                column = columns.setdefault(name, [None] * len(texts))
                for row, values, real in zip(rows, batch[name], keep, strict=True):
                    column[row] = values[real]
        columns["prompt_length"] = batch.get("prompt_length")
    return columns


def _is_plain_text(model: SentenceTransformer, batch: dict[str, Any]) -> bool:
    """Whether a preprocessed batch can be cut and padded anew: ids and masks only, padded on the right."""
    import torch

    known = {"input_ids", "attention_mask", "token_type_ids", "modality", "prompt_length"}
    mask = batch.get("attention_mask")
    return (
        {"input_ids", "attention_mask"} <= set(batch) <= known
        and batch.get("modality", "text") == "text"
        and isinstance(mask, torch.Tensor)
        and bool((mask[:, 1:] <= mask[:, :-1]).all())
        and getattr(model.tokenizer, "pad_token_id", None) is not None
    )


def _forward(model: SentenceTransformer, features: dict[str, Any]) -> np.ndarray:
    """One batch through the model, cut to its `truncate_dim`; float32 of shape (batch, dimension)."""
    import torch

    with torch.inference_mode():
        vectors: torch.Tensor = model(features)["sentence_embedding"]
    return vectors[:, : model.truncate_dim].float().cpu().numpy()
