"""Texts to vectors, once per model and text, exactly as the model will be served.

"As served" means what `SentenceTransformer.encode_query` and `encode_document` do with the saved model: its own
prompts, `max_seq_length`, pooling, `truncate_dim`. Only the order of the work differs: texts are tokenised once,
sorted by length and forwarded in batches that hold about the same number of tokens, so that hardly any padding is
computed, each batch by one thread, so that on a CPU no thread waits for another inside a batch.

Models are data, never code: a folder with pickled weights, Python files or a request for remote code is refused.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import mmap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np

from tasks.threads import one_thread_each

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

_TOKENISED_TOGETHER: Final = 256
"""Texts per call of the tokenizer, of similar length: its padding is thrown away again."""

PARITY: Final = 0.9999
"""Least cosine between a path's vector and that of the plain fp32 `encode`, over the sample it is judged by.

bf16 under autocast reaches 0.99997 on all-MiniLM-L6-v2; int8 reaches 0.96, which changes verdicts."""

_WORTHWHILE: Final = 1.3
"""Times by which a path of less precision must be faster: far enough from both 1 and the factor of 2 that CPUs with
bf16 dot products show, so that the choice, and with it the cache, does not flip from night to night."""

_SAMPLE: Final = 32
"""Texts by which the numeric path is chosen."""

_ROUNDS: Final = 3
"""Times that each path is timed, on every other text of the sample."""


class ModelError(Exception):
    """A model cannot be used: it is missing, not to be trusted, or its vectors are not usable."""


class VectorError(ModelError):
    """A model gave a vector that is not finite or has no direction; names the model and the text's index."""

    def __init__(self, model: str, index: int) -> None:
        super().__init__(f"{model} gives no usable vector (NaN, infinite or zero) for the text at index {index}")
        self.model = model
        self.index = index


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
    check_folder(folder)
    from sentence_transformers import SentenceTransformer

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
    """Tensors by name and where their bytes start: 8 bytes length, JSON, data (the safetensors format).

    Without `position_ids`, a range of numbers that older versions of transformers saved and newer ones leave out.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ModelError(f"{path} is truncated or no safetensors file")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: found for name, found in header.items() if not name.endswith("position_ids")}, 8 + length


# --- numeric paths -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NumericPath:
    """One way to compute vectors, the same for both models of a comparison.

    Attributes:
        name: what reports and cache keys call it.
        token_budget: tokens per batch, padding included; None leaves batching to the library's own `encode`.
        bf16: matrix products in bfloat16 under autocast; sums, softmax, normalisation and pooling stay float32.
    """

    name: str
    token_budget: int | None
    bf16: bool = False


PLAIN: Final = NumericPath("plain-fp32", None)
FP32: Final = NumericPath("fp32", 1024)
BF16: Final = NumericPath("bf16", 1024, bf16=True)

_ACCELERATED: Final = 32
"""Times the budget of a batch on anything but a CPU, most of which a small batch leaves idle. Not measured."""


@dataclass(frozen=True)
class Measurement:
    """What a numeric path did on the sample.

    Attributes:
        path: the path.
        texts_per_second: of the first model, and on a CPU of CPU time; 0 for plain, never chosen for its speed.
        least_cosine: the least cosine of any model's vector to that of plain fp32.
    """

    path: NumericPath
    texts_per_second: float
    least_cosine: float


def measure_paths(models: Sequence[SentenceTransformer], sample: Sequence[str]) -> list[Measurement]:
    """Encode a few texts of the sample with every model on every path; plain fp32 comes first and is the reference.

    The texts are spread evenly over the sample's lengths, for padding and rounding both depend on length.
    """
    by_length = sorted(set(sample), key=lambda text: (len(text), text))
    step = max(1.0, len(by_length) / _SAMPLE)
    texts = [by_length[int(place)] for place in np.arange(0, len(by_length), step)]
    if not texts or not models:
        raise ValueError(f"a numeric path is chosen on texts and models, got {len(texts)} and {len(models)}")
    found: list[Measurement] = []
    reference: list[np.ndarray] = []
    for path in (PLAIN, FP32, BF16):
        vectors = [encode(model, texts, "document", path=path) for model in models]  # also prepares the kernels
        reference = reference or vectors
        least = float(np.min([(a * b).sum(axis=1).min() for a, b in zip(vectors, reference, strict=True)]))
        found.append(Measurement(path, 0.0, least))
    # CPU time, in turns, the best of each: what else runs on the machine must not change the choice
    clock = time.process_time if models[0].device.type == "cpu" else time.perf_counter
    seconds = dict.fromkeys((FP32, BF16), float("inf"))
    for _ in range(_ROUNDS):
        for path in seconds:
            start = clock()
            encode(models[0], texts[::2], "document", path=path)
            seconds[path] = min(seconds[path], clock() - start)
    rates = {path: len(texts[::2]) / spent for path, spent in seconds.items()}
    return [replace(one, texts_per_second=rates.get(one.path, 0.0)) for one in found]


def choose_path(models: Sequence[SentenceTransformer], sample: Sequence[str], *, parity: float = PARITY) -> NumericPath:
    """The fastest numeric path whose vectors agree with plain fp32 for every model; measured in a few seconds.

    Choose once per night, with both models and real texts, and pass the value to every `encode`.
    """
    return fastest(measure_paths(models, sample), parity)


def fastest(measured: Sequence[Measurement], parity: float = PARITY) -> NumericPath:
    """bf16 where it holds parity and clearly pays, else fp32 in batches by budget where that agrees, else plain."""
    by_path = {measurement.path: measurement for measurement in measured}
    holding = {path for path, measurement in by_path.items() if measurement.least_cosine >= parity}
    if FP32 not in holding:
        return PLAIN
    if BF16 in holding and by_path[BF16].texts_per_second >= _WORTHWHILE * by_path[FP32].texts_per_second:
        return BF16
    return FP32


# --- encoding ------------------------------------------------------------------------------------------------


class Encoder(Protocol):
    """Turns texts into unit vectors, and says under which key vectors like these may be kept."""

    @property
    def dimension(self) -> int:
        """Components of a vector."""

    def key(self, role: Role) -> str:
        """Hex digest of everything but the text that a vector depends on."""

    def encode(self, texts: Sequence[str], role: Role, *, on_progress: Progress | None = None) -> np.ndarray:
        """Float32 unit vectors of shape (n_texts, dimension)."""


@dataclass(frozen=True)
class ModelEncoder:
    """A loaded model on one numeric path; `fingerprint` is that of the folder it was loaded from."""

    model: SentenceTransformer
    fingerprint: str
    path: NumericPath

    @classmethod
    def open(cls, folder: Path, path: NumericPath, *, device: str | None = None) -> ModelEncoder:
        """Load a model's folder and take its fingerprint."""
        return cls(load(folder, device), fingerprint(folder), path)

    @property
    def dimension(self) -> int:
        """Components of a vector."""
        return _dimension(self.model)

    def key(self, role: Role) -> str:
        """Hex digest of model, numeric path, role, prompt, lengths, device and the libraries' versions.

        Prompt and lengths are those of the loaded model: changed in memory, they change the key.
        """
        import sentence_transformers
        import torch
        import transformers

        facts = {
            "fingerprint": self.fingerprint,
            "path": self.path.name,
            "role": role,
            "prompt": prompt_for(self.model, role),
            "max_length": self.model.max_seq_length,
            "dimension": self.dimension,
            "device": self.model.device.type,
            "versions": [module.__version__ for module in (torch, transformers, sentence_transformers)],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def encode(self, texts: Sequence[str], role: Role, *, on_progress: Progress | None = None) -> np.ndarray:
        """Float32 unit vectors of shape (n_texts, dimension). Raises VectorError."""
        name = f"model {self.fingerprint[:12]}"
        return encode(self.model, texts, role, path=self.path, on_progress=on_progress, name=name)


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
    name: str = "the model",
) -> np.ndarray:
    """Encode texts as the model will be served; returns float32 unit vectors of shape (n_texts, dimension).

    A model that is not a plain text encoder (images, several towers, static embeddings) goes through the library's
    own `encode` on any path. `on_progress(done, total)` is called after each batch.

    Raises VectorError naming `name` and the index of the first text whose vector is not finite or is zero.
    """
    vectors = np.empty((len(texts), _dimension(model)), np.float32)
    done = 0
    # one autocast for all batches: it converts each weight once and keeps it until it ends
    with _settings(model, path):
        for start in range(0, len(texts), _SLAB):
            for rows, batch in _encode_slab(model, texts[start : start + _SLAB], role, path):
                vectors[start + rows] = batch
                done += len(rows)
                if on_progress is not None:
                    on_progress(done, len(texts))
    return _unit(vectors, name)


def _dimension(model: SentenceTransformer) -> int:
    dimension = model.get_embedding_dimension()
    if dimension is None:
        raise ModelError("the model does not say how many dimensions its vectors have")
    return int(dimension)


def _unit(vectors: np.ndarray, name: str) -> np.ndarray:
    """Divide each row by its length; after a model's own Normalize module this changes only rounding."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if len(bad):
        raise VectorError(name, int(bad[0]))
    vectors /= norms
    return vectors


def _encode_slab(
    model: SentenceTransformer, texts: Sequence[str], role: Role, path: NumericPath
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (indices of texts, their vectors) until every text has one."""
    import torch

    prompt = prompt_for(model, role)
    tokens = None if path.token_budget is None else _tokenise(model, texts, role, prompt)
    if tokens is None or path.token_budget is None:
        library = model.encode_query if role == "query" else model.encode_document
        for start in range(0, len(texts), _TOKENISED_TOGETHER):
            found = library(list(texts[start : start + _TOKENISED_TOGETHER]), show_progress_bar=False)
            yield np.arange(start, start + len(found)), found
        return
    model.eval()
    lengths = np.array([len(ids) for ids in tokens.columns["input_ids"]])

    def forward(rows: np.ndarray) -> np.ndarray:
        with _settings(model, path):  # each thread's own
            return _forward(model, tokens.padded(rows))

    if model.device.type != "cpu":
        for rows in by_budget(lengths, _ACCELERATED * path.token_budget):
            yield rows, forward(rows)
        return
    batches = list(by_budget(lengths, path.token_budget))
    # within one more level of autocast, leaving it after a batch does not throw away the converted weights
    with one_thread_each(torch.autocast_increment_nesting) as pool:
        yield from zip(batches, pool.map(forward, batches), strict=True)


@contextmanager
def _settings(model: SentenceTransformer, path: NumericPath) -> Iterator[None]:
    """No gradients, and the path's precision."""
    import torch

    with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=path.bf16):
        yield


def by_budget(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Group texts of similar length so that each group, padded, holds at most `budget` tokens (or is one text).

    The longest come first: if memory does not suffice, that shows at once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size


@dataclass(frozen=True)
class _Tokens:
    """Texts as the model's inputs, one tensor of shape (length,) per text and input, and what to pad each with."""

    columns: dict[str, list[torch.Tensor]]
    padding: dict[str, int]
    shared: dict[str, Any]

    def padded(self, rows: np.ndarray) -> dict[str, Any]:
        """Inputs of some texts, each of shape (len(rows), longest of them)."""
        from torch.nn.utils.rnn import pad_sequence

        batch = {
            name: pad_sequence([values[row] for row in rows], batch_first=True, padding_value=self.padding[name])
            for name, values in self.columns.items()
        }
        return batch | self.shared


def _tokenise(model: SentenceTransformer, texts: Sequence[str], role: Role, prompt: str) -> _Tokens | None:
    """Tokenise each text once, without padding; None where the model is not a plain text encoder.

    The model's own `preprocess` does the work, so prompts, truncation and special tokens are the served ones.
    """
    pad = getattr(model.tokenizer, "pad_token_id", None)
    if not isinstance(pad, int):
        return None
    tokens = _Tokens({}, {"input_ids": pad, "attention_mask": 0, "token_type_ids": 0}, {})
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(order), _TOKENISED_TOGETHER):
        rows = order[start : start + _TOKENISED_TOGETHER]
        batch = model.preprocess([texts[row] for row in rows], prompt=prompt or None, task=role)
        if not _is_plain_text(batch):
            return None
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        for name, values in batch.items():
            if name not in tokens.padding:
                tokens.shared[name] = values
                continue
            column = tokens.columns.setdefault(name, [values] * len(texts))
            for row, line, length in zip(rows, values, lengths, strict=True):
                column[row] = line[:length]
    return tokens


def _is_plain_text(batch: dict[str, Any]) -> bool:
    """Whether a preprocessed batch can be cut and padded anew: token ids and masks only, padded on the right."""
    import torch

    mask = batch.get("attention_mask")
    return (
        {"input_ids", "attention_mask"} <= set(batch)
        and set(batch) <= {"input_ids", "attention_mask", "token_type_ids", "modality", "prompt_length"}
        and batch.get("modality", "text") == "text"
        and isinstance(mask, torch.Tensor)
        and bool((mask[:, 1:] <= mask[:, :-1]).all())
    )


def _forward(model: SentenceTransformer, inputs: dict[str, Any]) -> np.ndarray:
    """One batch through the model, cut to its `truncate_dim`; float32 of shape (batch, dimension)."""
    import torch

    on_device = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
    }
    vectors: torch.Tensor = model(on_device)["sentence_embedding"]
    return vectors[:, : model.truncate_dim].float().cpu().numpy()
