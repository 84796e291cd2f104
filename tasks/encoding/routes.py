"""Which modules of a saved model encode a role, read from the folder's own files without loading them.

A model is a list of modules; a router among them takes one list of modules for queries and another for documents.
Followed through, each role has a pipeline of its own, whose parts may be shared with the other's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tasks.config import MODEL_FILES
from tasks.encoding.folder import ModelError, json_object, read_json
from tasks.encoding.tokens import Role

TEMPLATES: Final = "additional_chat_templates"
SENTENCE_SETTINGS: Final = "config_sentence_transformers.json"
MODULES: Final = "modules.json"
ROUTER: Final = "router_config.json"

_NOT_OF_A_MODULE: Final = {
    *(MODULES, SENTENCE_SETTINGS, ROUTER, "manifest.json"),
    *("data_config.json", "trainer_state.json", "training_args.json"),
}
"""Files of a model's folder that belong to no module, although the first module may lie in the same folder."""


@dataclass(frozen=True)
class Part:
    """One module of a pipeline: its class, as the model's settings name it, and the folder with its files."""

    type: str
    folder: Path

    @property
    def name(self) -> str:
        """The class without its package, which has changed between releases of the library."""
        return self.type.rpartition(".")[2]

    def files(self) -> list[Path]:
        """The files that the module is loaded from, sorted; some modules have none."""
        folders = [one for one in (self.folder, self.folder / TEMPLATES) if one.is_dir()]
        found = [path for one in folders for path in one.iterdir() if path.is_file() and path.suffix in MODEL_FILES]
        return sorted(path for path in found if path.suffix != ".md" and path.name not in _NOT_OF_A_MODULE)


def pipeline(folder: Path, role: Role) -> list[Part]:
    """The modules through which texts of a role go, in order.

    Raises ModelError where the folder does not say: it lists no modules, or its router has no route for the role.
    """
    if not (folder / MODULES).is_file():
        raise ModelError(
            f"{folder} has no {MODULES}: load it with SentenceTransformer and save it again, which writes its modules"
        )
    return [part for module in read_json(folder / MODULES) for part in _parts(folder, module, role)]


def _parts(folder: Path, module: dict[str, Any], role: Role) -> Iterator[Part]:
    part = Part(str(module["type"]), folder / str(module["path"]))
    if part.name not in {"Router", "Asym"}:
        yield part
        return
    settings = json_object(part.folder / ROUTER) or json_object(part.folder / "config.json")
    types, structure = settings.get("types", {}), settings.get("structure", {})
    for name in structure.get(_route(settings, role, part.folder), ()):
        yield Part(str(types[name]), part.folder / name)


def _route(settings: dict[str, Any], role: Role, folder: Path) -> str:
    """The route that the library takes for a text of a role: an explicit mapping, else the one named like the role."""
    mappings = settings.get("parameters", {}).get("route_mappings") or {}
    keys = [str(key) for key in ((role, "text"), (role, None), (None, "text"), (None, None))]
    route = next((mappings[key] for key in keys if key in mappings), role)
    if route not in settings.get("structure", {}):
        raise ModelError(f"{folder / ROUTER} has no route for a {role}: Ratchet needs `query` and `document`")
    return str(route)
