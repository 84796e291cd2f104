"""What a model's folder must be before anything in it is loaded: data, complete, and a text embedding model.

Only the files that loading reads are looked at. A repository may hold much more (training scripts, exports for other
runtimes), which changes no vector and runs no code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tasks.config import MODEL_FILES

_PICKLES: Final = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".h5"}
_CODE: Final = re.compile(r"(modeling|configuration|tokenization|.*processing|custom)[\w-]*\.py")
"""Modules that the settings of a model can ask transformers to import."""

_EXPORTS: Final = {
    ".onnx": "ONNX",
    ".xml": "OpenVINO",
    ".gguf": "GGUF (llama.cpp)",
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".tflite": "TensorFlow Lite",
}
"""How weights of other runtimes end, which cannot be trained."""

_QUANTISED: Final = {"I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2"}
"""Types of tensors that mean nothing without scales: loaded as they are they give other vectors, and no error."""

_SIMILARITIES: Final = {"cosine", "dot", "euclidean", "manhattan"}

_WITHOUT_CODE: Final = (
    "If transformers itself knows its architecture (model_type), remove the code and every auto_map, otherwise take "
    "another model"
)

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
_OTHER_HEADS: Final = {"sequence-classification": "CrossEncoder", "fill-mask": "SparseEncoder"}
"""`transformer_task` of the first module -> `model_type`."""

_OTHER_TASKS: Final = {
    "ForSequenceClassification": "a cross-encoder or classifier",
    "Classification": "a classifier",
    "ColBERT": "a late-interaction model (ColBERT), which gives a vector per token",
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
    without their base model, exports for other runtimes, quantised weights, settings that the library would ignore,
    other kinds of model, or no weights.
    """
    files = read_files(folder) if folder.is_dir() else []
    if exported := _exports(folder, files):
        raise ModelError(
            f"{folder} holds weights for {exported} alone, which cannot be trained: name the model that they were made "
            "from, with its weights as safetensors"
        )
    for path in files:
        _check_file(path)
    if not is_model(folder):
        raise ModelError(f"{folder} holds no model: it has neither modules.json nor config.json")
    for path, kind, inner in _modules(folder):
        if not kind.startswith("sentence_transformers."):
            raise ModelError(
                f"{path} names a class from elsewhere: {kind!r}; models are loaded as data only: take another"
            )
        _check_activation(kind, inner)
    _check_kind(folder)
    _check_settings(folder)
    if not any(path.suffix == ".safetensors" for path in files):
        raise ModelError(f"{folder} holds no weights as safetensors: load the model, and save it again")


def _exports(folder: Path, files: Sequence[Path]) -> str:
    """The runtimes for which a folder holds its only weights, by their names."""
    weights = {*_PICKLES - {".h5"}, ".safetensors"}
    if any(path.suffix in weights and not path.name.startswith("openvino") for path in files):
        return ""
    found = (path.suffix for level in ("*", "*/*") for path in folder.glob(level))
    return " and ".join(sorted({_EXPORTS[suffix] for suffix in found if suffix in _EXPORTS}))


def is_model(folder: Path) -> bool:
    """Whether a folder looks like a model at all."""
    return (folder / "modules.json").is_file() or (folder / "config.json").is_file()


def read_files(folder: Path) -> list[Path]:
    """The files that loading may read, sorted: those directly in the model's folder and in its modules' folders.

    Links to nothing are among them, unless it is only a card that is lacking.
    """
    folders = dict.fromkeys([folder, *_module_folders(folder)])
    every = [inner for one in folders for inner in (one, one / _TEMPLATES) if inner.is_dir()]
    return sorted(path for one in every for path in one.iterdir() if path.is_file() or _leads_nowhere(path))


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists() and path.suffix in MODEL_FILES - {".md"}


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


def tensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """Tensors of a safetensors file by name, and where their bytes start: 8 bytes length, JSON, data.

    Without `position_ids`, a range of numbers that older versions of transformers saved and newer ones leave out.
    Raises ModelError where the file has another format.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length)) if length <= path.stat().st_size else None
        except ValueError:
            header = None
    if not isinstance(header, dict) or not all(isinstance(found, dict) for found in header.values()):
        raise ModelError(f"{path} is truncated, or not a safetensors file: download it again")
    header.pop("__metadata__", None)
    return {name: found for name, found in header.items() if not name.endswith("position_ids")}, 8 + length


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


def _check_activation(kind: str, folder: Path) -> None:
    """Refuse an activation function that the library replaces by another, with no more than a warning."""
    function = json_object(folder / "config.json").get("activation_function")
    if kind.endswith("Dense") and function is not None and not str(function).startswith("torch."):
        raise ModelError(
            f"{folder / 'config.json'} names an activation function from elsewhere: {function!r}; the library would "
            "take Tanh instead. Name a class of torch.nn"
        )


def _check_settings(folder: Path) -> None:
    """Refuse settings of the vectors that the library ignores, or fails on when they are used."""
    path = folder / "config_sentence_transformers.json"
    settings = json_object(path)
    similarity, dimension = settings.get("similarity_fn_name"), settings.get("truncate_dim")
    if similarity is not None and similarity not in _SIMILARITIES:
        raise ModelError(
            f"{path}: similarity_fn_name is {similarity!r}, which the library ignores: it would compare by the cosine. "
            f"Set it to one of {', '.join(sorted(_SIMILARITIES))}"
        )
    if dimension is not None and not (type(dimension) is int and dimension > 0):
        raise ModelError(f"{path}: truncate_dim is {dimension!r}: set it to a number of dimensions, or null")


def _check_file(path: Path) -> None:
    """Refuse one file that loading may read."""
    if _leads_nowhere(path):
        raise ModelError(f"{path} is a link to a file that is not there: download the model again")
    if _CODE.fullmatch(path.name):
        raise ModelError(f"{path} is code; models are loaded as data only. {_WITHOUT_CODE}")
    if path.suffix in _PICKLES and not any(path.parent.glob("*.safetensors")):
        raise ModelError(f"{path} may hold a pickle, which can run code when read; save the model as safetensors")
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ModelError(
                f"{path} is a git-lfs pointer, not the file itself: run `git lfs install` and `git lfs pull` there"
            )
    if path.suffix == ".safetensors" and (
        types := _QUANTISED & {str(tensor.get("dtype")) for tensor in tensors_header(path)[0].values()}
    ):
        raise ModelError(
            f"{path} holds weights as {', '.join(sorted(types))}, which were quantised and cannot be trained: name the "
            "model that was quantised"
        )
    if path.suffix == ".json" and "auto_map" in json_object(path):
        raise ModelError(f"{path} asks for remote code (auto_map); models are loaded as data only. {_WITHOUT_CODE}")
    if path.name in {"config.json", "sentence_bert_config.json"} and _says_quantised(json_object(path)):
        raise ModelError(
            f"{path} says that the weights are quantised, which cannot be trained: name the model that was quantised"
        )
    if path.name == "adapter_config.json":
        raise ModelError(
            f"{path} belongs to an adapter (LoRA), which is not a model without its base: merge it into the base model "
            "(peft: merge_and_unload), save the whole model, and name that folder"
        )


def _says_quantised(settings: dict[str, Any]) -> bool:
    """Whether settings of a transformer, or what they pass on to it, ask for quantised weights."""
    passed_on = [settings.get(name) for name in ("model_args", "model_kwargs")]
    every = [settings, *(one for one in passed_on if isinstance(one, dict))]
    return any({"quantization_config", "load_in_8bit", "load_in_4bit"} & one.keys() for one in every)


def _check_kind(folder: Path) -> None:
    """Refuse what is not a text embedding model, by what it says of itself."""
    settings = folder / "config_sentence_transformers.json"
    kind = str(json_object(settings).get("model_type", "SentenceTransformer"))
    for _, type_, _ in _modules(folder):
        kind = next((other for prefix, other in _OTHER_MODULES.items() if type_.startswith(prefix)), kind)
    task = json_object(folder / "sentence_bert_config.json").get("transformer_task")
    kind = _OTHER_HEADS.get(str(task), kind)
    if kind != "SentenceTransformer":
        raise ModelError(f"{folder} is {_OTHER_MODELS.get(kind, f'a {kind}')}; Ratchet trains text embedding models")
    if (folder / "modules.json").is_file():
        return
    architectures = json_object(folder / "config.json").get("architectures") or []
    for architecture in map(str, architectures):
        for end, what in _OTHER_TASKS.items():
            if architecture.endswith(end):
                raise ModelError(f"{folder} is {what} ({architecture}); Ratchet trains text embedding models")
