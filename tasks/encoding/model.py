"""Model names resolved to folders, and folders loaded."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from tasks.config import MODEL_FILES
from tasks.encoding.folder import ModelError, check_folder, is_model
from tasks.encoding.tokens import Role

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

PACKAGE_PREFIX: Final = "pkg:"
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]

LEAST_VERSIONS: Final = {"sentence-transformers": "6.0", "transformers": "5.0"}
"""With earlier ones a saved model does not load: its folder names classes that they do not have."""

_NO_LIMIT: Final = 1 << 31
"""Tokenizers without a limit, and static embeddings, name 1e30 or infinity."""

_HUB_FILES: Final = sorted(f"*{kind}" for kind in MODEL_FILES)


def resolve_model(name: str) -> Path:
    """The folder of a model that is named by package, folder or hub id, checked with `check_folder`.

    `pkg:<package>` is the one folder with a model inside an installed package (which is not imported); anything
    that exists as a folder is that folder; `org/name` or `org/name@revision` is taken from the hub or, without a
    connection, from its local cache: only the kinds of file that a model consists of.

    Raises ModelError saying what was looked for, and where.
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
    found = [folder for folder in (root, *sorted(root.iterdir())) if is_model(folder)]
    if len(found) != 1:
        names = ", ".join(folder.name for folder in found) or "none"
        raise ModelError(f"{PACKAGE_PREFIX}{package}: expected one folder with a model in {root}, found {names}")
    return found[0]


def _hub_folder(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=_HUB_FILES))
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{name} is not a folder, and was found neither on the hub nor in its local cache "
            f"({type(error).__name__}). Name a folder, or {PACKAGE_PREFIX}<package> for a model that an "
            "installed package ships"
        ) from error


def load(folder: Path, device: str | None = None, *, seed: int = 0) -> SentenceTransformer:
    """Load a saved model in float32, from its own files only: no hub, no remote code, no pickle.

    `device` defaults to the best there is: CUDA, MPS, ... or the CPU. A text limit beyond the positions that the model
    has is lowered to them. `seed` is of the parameters that no file holds (a pooler that nobody uses, as a rule), which
    the library draws at random.

    Raises ModelError when the folder does not pass `check_folder`, or the library cannot load it.
    """
    check_folder(folder)
    import torch
    from sentence_transformers import SentenceTransformer

    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = SentenceTransformer(
                str(folder),
                device=device,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True, "dtype": "float32"},
            )
    except Exception as error:  # the library raises whatever a broken file leads to
        raise ModelError(f"{folder} cannot be loaded: {_first_line(error)}{_remedy(error)}") from error
    for module in transformers_of(model):
        if module.tokenizer is not None:
            _check_tokenizer(module.tokenizer, folder)
        _check_length(module.max_seq_length, folder)
        _limit_length(module)
    return model.float()


def _check_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Refuse a tokenizer that cannot pad, or that the library made up since its files are missing."""
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"the tokenizer in {folder} has no padding token, so texts of different length cannot be encoded "
            "together: set one (tokenizer.pad_token = tokenizer.eos_token) and save the model again"
        )
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ModelError(
            f"the tokenizer in {folder} knows no words: its files (tokenizer.json, or a vocabulary) are missing. Copy "
            "them from where the model comes from"
        )


def _check_length(length: Any, folder: Path) -> None:
    """Refuse a limit that is no number of tokens, of which the library makes no limit, or fails."""
    if length is not None and not (isinstance(length, (int, float)) and length >= 1):
        raise ModelError(
            f"{folder}: max_seq_length is {length!r}: set it to a number of tokens and save the model again"
        )


@dataclass(frozen=True)
class Served:
    """What a search must know about a model's vectors.

    Attributes:
        dimension: components of a vector.
        normalisation: "l2" where vectors have length 1.
        prompts: what is put before a text, by name; empty ones left out.
        max_length: tokens beyond which a text is cut; None: never.
        similarity: the function by which its vectors are to be compared.
        requires: the least versions of the libraries that load it.
    """

    dimension: int
    normalisation: Literal["l2", "none"]
    prompts: dict[str, str]
    max_length: int | None
    similarity: Similarity
    requires: dict[str, str] = field(default_factory=lambda: dict(LEAST_VERSIONS))

    def described(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def served(model: SentenceTransformer) -> Served:
    """What a loaded model says of its vectors. Raises ModelError where it does not say how long they are."""
    dimension = model.get_embedding_dimension()
    if dimension is None:
        raise ModelError("the model does not say how many dimensions its vectors have")
    length = model.max_seq_length
    return Served(
        dimension=int(dimension),
        normalisation="l2" if any(_normalises(module) for module in model) else "none",
        prompts={name: prompt for name, prompt in model.prompts.items() if prompt},
        max_length=None if length is None or length >= _NO_LIMIT else int(length),
        similarity=model.similarity_fn_name,
    )


def _normalises(module: Any) -> bool:
    """Whether a module gives vectors of length 1: of a router each route must."""
    if type(module).__name__ == "Router":
        return all(any(_normalises(inner) for inner in route) for route in module.sub_modules.values())
    return type(module).__name__ == "Normalize"


def transformers_of(model: SentenceTransformer) -> list[Transformer]:
    """Every transformer of a model: one as a rule, none in a static embedding, several behind a router."""
    from sentence_transformers.sentence_transformer.modules import Transformer

    return [module for module in model.modules() if isinstance(module, Transformer)]


def reads_by_transformer(model: SentenceTransformer, role: Role) -> bool:
    """Whether a transformer reads the texts of a role, otherwise a table of words (static embeddings, bag of words)."""
    from sentence_transformers.sentence_transformer.modules import Router, Transformer

    first = next(iter(model))
    if isinstance(first, Router) and role in first.sub_modules:
        first = next(first.sub_modules[role].children())
    return isinstance(first, (Transformer, Router))


def _limit_length(module: Transformer) -> None:
    """Lower a text limit to the positions for which a transformer has learned embeddings.

    Models that count positions from their padding id + 1 (RoBERTa and its kin) have that many less than their settings
    say; without a limit in the tokenizer the library takes the settings' number.
    """
    for part in module.model.modules():
        table, padding = getattr(part, "position_embeddings", None), getattr(part, "padding_idx", None)
        rows = getattr(table, "num_embeddings", None)
        if isinstance(rows, int):
            limit = rows - padding - 1 if isinstance(padding, int) else rows
            if module.max_seq_length is None or module.max_seq_length > limit:
                module.max_seq_length = limit


def _first_line(error: Exception) -> str:
    """The type and the first line of an error from a library, which may be pages long."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:500].rstrip('.')}"


def _remedy(error: Exception) -> str:
    """What to do about an error of the library in loading a model."""
    text = str(error)
    if "FlashAttention" in text or "flash_attn" in text:
        return ". Take `attn_implementation` out of its config.json and sentence_bert_config.json"
    if isinstance(error, ImportError):
        return ". Install what it names where the night runs, or take another model"
    return ". Load it with SentenceTransformer and save it again, download it again, or take another model"
