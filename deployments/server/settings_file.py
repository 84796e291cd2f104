"""The first `ratchet.toml`: every setting with what it means, written from the model that reads it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from deployments.server.settings import Channel, Settings

_WIDTH: Final = 100

_HEAD: Final = """\
What `ratchet deploy` sets up. Every value below is the default: change what you need, delete what you do not.
The file holds no secret; it may be committed."""

_EXAMPLES: Final[dict[str, Any]] = {
    "url": "s3://bucket/prefix",
    "sender": "ratchet@example.org",
    "recall_non_inferior_above": 0.95,
    "approval_hours": 12.0,
    "target": "postgresql://ratchet@db.example.org/search",
    "secret_env": "INDEX_PASSWORD",
}
"""Values for settings that have no default, in lines that are comments."""


def toml() -> str:
    """The settings with their defaults and descriptions; parses back to `Settings()`."""
    lines = [*_comment(_HEAD)]
    for name, field in Settings.model_fields.items():
        section = field.get_default(call_default_factory=True, validated_data={})
        lines.append("")
        if isinstance(section, BaseModel):
            lines += [*_comment(field.description or ""), f"[{name}]", *_fields(section)]
        else:
            lines += [*_comment(field.description or ""), *_example(name)]
    return "\n".join(lines) + "\n"


def write(file: Path) -> None:
    """Write the file, never over one that is there (FileExistsError)."""
    with file.open("x", encoding="utf-8") as opened:
        opened.write(toml())


def _fields(section: BaseModel) -> Iterator[str]:
    """The settings of a section, each after its description."""
    for name, field in type(section).model_fields.items():
        yield from _comment(field.description or "")
        value = getattr(section, name)
        yield f"{name} = {_value(value)}" if value is not None else f"# {name} = {_value(_EXAMPLES[name])}"


def _example(name: str) -> Iterator[str]:
    """A channel in comments: there is no default, since only the reader knows where alerts should go."""
    values: dict[str, Any] = {"kind": "slack", "secret_env": "SLACK_WEBHOOK_URL"}
    yield f"# [{name}.team]"
    for key, field in Channel.model_fields.items():
        yield from _comment(field.description or "", indent="#   ")
        yield f"# {key} = {_value(values.get(key, _default(key, field)))}"


def _default(name: str, field: FieldInfo) -> Any:
    return field.default if field.default is not None else _EXAMPLES[name]


def _value(value: Any) -> str:
    """A value as TOML; texts, numbers, switches and lists are written as in JSON."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _comment(text: str, indent: str = "# ") -> list[str]:
    return [
        line for part in text.split("\n") for line in textwrap.wrap(indent + part, _WIDTH, subsequent_indent=indent)
    ]
