"""A query encoder trained alone: taken from a model that serves, and put back beside that model's documents.

What is trained is a plain model of one pipeline. What is saved is a router of sentence-transformers with two routes:
`query` has the tuned modules, `document` copies of the very files that encode what serves, so that an index stays.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from tasks.encoding import (
    CachedEncoder,
    ModelEncoder,
    ModelError,
    Role,
    VectorCache,
    choose_path,
    document_identity,
    load,
    pipeline,
)
from tasks.encoding.routes import MODULES, ROUTER, SENTENCE_SETTINGS, Part
from tasks.training.corpus import Documents

_ROUTER_TYPE: Final = "sentence_transformers.base.modules.router.Router"


def known_documents(
    folder: Path, documents: Sequence[str], rows: pa.Table, cache: VectorCache | None = None
) -> Documents:
    """The vectors of the corpus and of the rows' documents and negatives, by the document side of a saved model.

    Taken from the cache; what it lacks is encoded once, as it is for scoring. Raises ModelError.
    """
    own = [rows["document"].to_pylist(), *(found or () for found in rows["negatives"].to_pylist())]
    texts = list(dict.fromkeys([*documents, *(text for some in own for text in some)]))
    model = load(folder)
    path = choose_path([model], texts)
    encoder: ModelEncoder | CachedEncoder = ModelEncoder.of(folder, model, path)
    if cache is not None:
        encoder = CachedEncoder(encoder, cache)
    return Documents(folder, document_identity(folder), texts, encoder.encode(texts, "document"))


def encoder_of(folder: Path, role: Role, target: Path) -> Path:
    """The modules of one role as a plain model in a new folder; returns the folder.

    Raises ModelError where the modules cannot be told, or do not begin with a transformer.
    """
    parts = pipeline(folder, role)
    if not parts or parts[0].name != "Transformer":
        first = parts[0].name if parts else "nothing"
        raise ModelError(
            f"{folder} encodes a {role} with {first}: training.side 'query' trains transformers; use 'both'"
        )
    target.mkdir(parents=True)
    modules = []
    for place, part in enumerate(parts):
        name = f"{place}_{part.name}" if place else ""
        _copy(part, target / name)
        modules.append({"idx": place, "name": str(place), "path": name, "type": part.type})
    _write(target / MODULES, modules)
    _write_settings(folder, target)
    return target


def join(queries: Path, documents: Path, target: Path) -> None:
    """Write a router into a new folder: the modules of one model for queries, those of another for documents.

    Prompts and similarity are those of the model for documents. The files of its modules are copied as they are.
    """
    target.mkdir(parents=True)
    types: dict[str, str] = {}
    structure: dict[str, list[str]] = {}
    sources: tuple[tuple[Role, Path], ...] = (("query", queries), ("document", documents))
    for role, source in sources:
        structure[role] = []
        for place, part in enumerate(pipeline(source, role)):
            name = f"{role}_{place}_{part.name}"
            types[name] = part.type
            structure[role].append(name)
            _copy(part, target / name)
    parameters = {"default_route": "document", "allow_empty_key": True, "route_mappings": {}}
    _write(target / ROUTER, {"types": types, "structure": structure, "parameters": parameters})
    _write(target / MODULES, [{"idx": 0, "name": "0", "path": "", "type": _ROUTER_TYPE}])
    _write_settings(documents, target)


def _copy(part: Part, target: Path) -> None:
    """The files of a module, byte for byte."""
    for path in part.files():
        place = target / path.relative_to(part.folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def _write_settings(source: Path, target: Path) -> None:
    """Prompts and similarity of a model, for another."""
    if (source / SENTENCE_SETTINGS).is_file():
        shutil.copyfile(source / SENTENCE_SETTINGS, target / SENTENCE_SETTINGS)
    else:
        _write(target / SENTENCE_SETTINGS, {"model_type": "SentenceTransformer"})


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
