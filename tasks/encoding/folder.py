"""What a model's folder must be before anything in it is loaded: data, complete, and a text embedding model.

Only the files that loading reads are looked at. A repository may hold much more (training scripts, exports for other
runtimes), which changes no vector and runs no code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_PICKLES: Final = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".h5"}
_CODE: Final = re.compile(r"(modeling|configuration|tokenization|.*processing|custom)[\w-]*\.py")
"""Modules that the settings of a model can ask transformers to import."""

_MODULE_FOLDER: Final = re.compile(r"\d+_\w+")
_TEMPLATES: Final = "additional_chat_templates"
_POINTER: Final = b"version https://git-lfs.github.com/spec/"
_OTHER_MODELS: Final = {
    "CrossEncoder": "a cross-encoder, which scores pairs of texts and gives no vectors",
    "SparseEncoder": "a sparse encoder (SPLADE), whose vectors are as long as its vocabulary",
    "MultiVectorEncoder": "a late-interaction model (ColBERT), which gives a vector per token",
}
"""`model_type` of sentence-transformers -> what such a model is."""

_OTHER_MODULES: Final = {
    "sentence_transformers.cross_encoder.": "CrossEncoder",
    "sentence_transformers.sparse_encoder.": "SparseEncoder",
    "sentence_transformers.multi_vector_encoder.": "MultiVectorEncoder",
}
_OTHER_TASKS: Final = {
    "ForSequenceClassification": "a cross-encoder or classifier",
    "ForTokenClassification": "a token classifier",
    "ForQuestionAnswering": "an extractive question-answering model",
    "ForMultipleChoice": "a multiple-choice model",
}
"""How the architecture of a plain transformers folder may end, and what that is."""


class ModelError(Exception):
    """A model cannot be used: it is missing, not to be trusted, or its vectors are not usable."""


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not a text embedding model made of data only.

    Raises ModelError naming the file and the remedy: code, a request for remote code (`auto_map`), a module class from
    outside sentence-transformers, pickled weights without safetensors beside them, pointers of git-lfs, adapters
    without their base model, other kinds of model, or no weights.
    """
    if not is_model(folder):
        raise ModelError(f"{folder} holds no model: it has neither modules.json nor config.json")
    for path in read_files(folder):
        _check_file(path)
    for path, kind in _module_types(folder):
        if not kind.startswith("sentence_transformers."):
            raise ModelError(f"{path} names a class from elsewhere: {kind!r}; models are loaded as data only")
    _check_kind(folder)
    if not any(path.suffix == ".safetensors" for path in read_files(folder)):
        raise ModelError(f"{folder} holds no weights as safetensors")


def is_model(folder: Path) -> bool:
    """Whether a folder looks like a model at all."""
    return (folder / "modules.json").is_file() or (folder / "config.json").is_file()


def read_files(folder: Path) -> list[Path]:
    """The files that loading may read, sorted: those directly in the model's folder and in its modules' folders."""
    folders = dict.fromkeys([folder, *_module_folders(folder)])
    every = [inner for one in folders for inner in (one, one / _TEMPLATES) if inner.is_dir()]
    return sorted(path for one in every for path in one.iterdir() if path.is_file())


def read_json(path: Path) -> Any:
    """A JSON file's content. Raises ModelError where it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error


def json_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is no such file, or it holds something else."""
    found = read_json(path) if path.is_file() else None
    return found if isinstance(found, dict) else {}


def _modules(folder: Path) -> Iterator[tuple[Path, str, Path]]:
    """Every module that `modules.json` and the settings of routers name: where, the class, and its folder."""
    listing = folder / "modules.json"
    if not listing.is_file():
        return
    modules = read_json(listing)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelError(f"{listing} is not a list of modules")
    for module in modules:
        inner = _inside(folder, listing, str(module.get("path", "")))
        yield listing, str(module.get("type", "")), inner
        yield from _routed(inner)


def _routed(folder: Path) -> Iterator[tuple[Path, str, Path]]:
    """The modules of a router in a folder, if one is there."""
    for settings in (folder / "router_config.json", folder / "config.json"):
        types = json_object(settings).get("types")
        if isinstance(types, dict):
            for name, kind in types.items():
                yield settings, str(kind), _inside(folder, settings, name)


def _inside(folder: Path, source: Path, name: str) -> Path:
    if name.startswith("/") or ".." in Path(name).parts:
        raise ModelError(f"{source} names {name!r}, which lies outside the model's folder")
    return folder / name


def _module_folders(folder: Path) -> Iterator[Path]:
    """Folders of modules, listed or named like one."""
    yield from (inner for _, _, inner in _modules(folder))
    yield from (path for path in sorted(folder.iterdir()) if path.is_dir() and _MODULE_FOLDER.fullmatch(path.name))


def _module_types(folder: Path) -> list[tuple[Path, str]]:
    return [(source, kind) for source, kind, _ in _modules(folder)]


def _check_file(path: Path) -> None:
    """Refuse one file that loading may read."""
    if _CODE.fullmatch(path.name):
        raise ModelError(f"{path} is code; models are loaded as data only")
    if path.suffix in _PICKLES and not any(path.parent.glob("*.safetensors")):
        raise ModelError(f"{path} may hold a pickle, which can run code when read; save the model as safetensors")
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ModelError(
                f"{path} is a git-lfs pointer, not the file itself: run `git lfs install` and `git lfs pull` there"
            )
    if path.suffix == ".json" and "auto_map" in json_object(path):
        raise ModelError(f"{path} asks for remote code (auto_map); models are loaded as data only")
    if path.name == "config.json" and "quantization_config" in json_object(path):
        raise ModelError(
            f"{path} says that the weights are quantised, which cannot be trained: name the model that was quantised"
        )
    if path.name == "adapter_config.json":
        raise ModelError(
            f"{path} belongs to an adapter (LoRA), which is not a model without its base: merge it into the base model "
            "(peft: merge_and_unload), save the whole model, and name that folder"
        )


def _check_kind(folder: Path) -> None:
    """Refuse what is not a text embedding model, by what it says of itself."""
    settings = folder / "config_sentence_transformers.json"
    kind = str(json_object(settings).get("model_type", "SentenceTransformer"))
    for _, type_ in _module_types(folder):
        kind = next((other for prefix, other in _OTHER_MODULES.items() if type_.startswith(prefix)), kind)
    if kind != "SentenceTransformer":
        raise ModelError(f"{folder} is {_OTHER_MODELS.get(kind, f'a {kind}')}; Ratchet trains text embedding models")
    if (folder / "modules.json").is_file():
        return
    architectures = json_object(folder / "config.json").get("architectures") or []
    for architecture in map(str, architectures):
        for end, what in _OTHER_TASKS.items():
            if architecture.endswith(end):
                raise ModelError(f"{folder} is {what} ({architecture}); Ratchet trains text embedding models")
