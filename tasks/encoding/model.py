"""Model names and folders: resolved, checked, loaded.

Models are data, never code: a folder with pickled weights, Python files or a request for remote code is refused.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PACKAGE_PREFIX: Final = "pkg:"
_HUB_FILES: Final = ["*.safetensors", "*.json", "*.txt"]
_PICKLES: Final = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".h5"}


class ModelError(Exception):
    """A model cannot be used: it is missing, not to be trusted, or its vectors are not usable."""


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
        for module in read_json(folder / "modules.json"):
            if not str(module.get("type", "")).startswith("sentence_transformers."):
                raise ModelError(f"{folder / 'modules.json'} names a class from elsewhere: {module.get('type')!r}")
    if not safe:
        raise ModelError(f"{folder} holds no weights as safetensors")


def read_json(path: Path) -> Any:
    """A JSON file's content. Raises ModelError where it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error


def _json_object(path: Path) -> dict[str, Any]:
    found = read_json(path)
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
