"""Writes the pages of the documentation that follow from the code (`python -m tests.docs`), and reads the others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from deployments.server import settings
from tasks.config import Checks, Gate, Limits, Training

DOCS: Final = Path(__file__).parent.parent / "docs"

_SIGNS: Final = {"Ge": ("ge", "≥"), "Gt": ("gt", ">"), "Le": ("le", "≤"), "Lt": ("lt", "<")}

_GROUPS: Final[tuple[tuple[str, type[BaseModel], str], ...]] = (
    ("training", Training, "How a candidate is fine-tuned: the form of *Run*, `--set training.NAME=VALUE`."),
    (
        "gate",
        Gate,
        "When a candidate may replace production: the form of *Run*, `--set gate.NAME=VALUE`; "
        "`ratchet.toml`, section `gate`, for scheduled nights.",
    ),
    ("checks", Checks, "What the data must be like: the form of *Run*, `--set checks.NAME=VALUE`."),
    ("limits", Limits, "What one uploaded object may be: the form of *Run*, `--set limits.NAME=VALUE`."),
    ("store", settings.StoreSettings, "`ratchet.toml`, section `store`."),
    ("schedule", settings.Schedule, "`ratchet.toml`, section `schedule`."),
    ("alerts", settings.Alerts, "`ratchet.toml`, section `alerts`."),
    ("watch", settings.Watch, "`ratchet.toml`, section `watch`."),
    ("index", settings.IndexSettings, "`ratchet.toml`, section `index`."),
    ("channels.NAME", settings.Channel, "`ratchet.toml`, one section for each channel."),
)


def parameters() -> str:
    """The page of all parameters: name, default, bounds and meaning, from the models that check them."""
    parts = ["# Parameters", "", "Written from the code by `python -m tests.docs`; a test compares them.", ""]
    for name, model, where in _GROUPS:
        parts += [f"## {name}", "", where, "", "| name | default | bounds | meaning |", "|---|---|---|---|"]
        parts += [
            f"| `{field}` | {_default(info)} | {_bounds(info)} | {_cell(info.description or '')} |"
            for field, info in model.model_fields.items()
        ]
        parts.append("")
    return "\n".join(parts)


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "*required*"
    value = info.default
    return "none" if value in (None, ()) else f"`{list(value) if isinstance(value, tuple) else value}`"


def _bounds(info: FieldInfo) -> str:
    found = [(type(rule).__name__, rule) for rule in info.metadata]
    return ", ".join(f"{_SIGNS[kind][1]} {getattr(rule, _SIGNS[kind][0]):g}" for kind, rule in found if kind in _SIGNS)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


_PLACES: Final = {
    "number": r"\d{12}",
    "sha256": "[0-9a-f]{64}",
    "version": "(?:[0-9a-f]{32}|[0-9a-f]{16})",
    "run_id": r"\d{8}T\d{6}Z-[0-9a-f]{8}",
    "index": "[0-9a-f]{32}",
    "shard": r"\d\d-[0-9a-f]{5}-[0-9a-f]{64}",
    "path": ".+",
}
"""What the placeholders of the store's page stand for."""


def undescribed(keys: Iterable[str]) -> list[str]:
    """The keys that no row of the table of all objects in `docs/store.md` stands for."""
    _, _, table = (DOCS / "store.md").read_text().partition("| object |")
    cells = re.findall(r"^\| (`[^|]+`) \|", table, re.MULTILINE)
    described = [re.compile(_pattern(name)) for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    return [key for key in keys if not any(pattern.fullmatch(key) for pattern in described)]


def _pattern(name: str) -> str:
    parts = re.split(r"<(\w+)>", name)
    return "".join(_PLACES[part] if number % 2 else re.escape(part) for number, part in enumerate(parts))


if __name__ == "__main__":
    (DOCS / "parameters.md").write_text(parameters())
