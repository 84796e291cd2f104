"""The OpenMetrics text format, version 1.0.0: families of samples, and how they are written down.

https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

CONTENT_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_SUFFIX: Final = {"counter": "_total", "info": "_info", "gauge": ""}


@dataclass(frozen=True)
class Family:
    """Samples of one name. A counter's samples end in `_total`, an info's in `_info`; that is not part of `name`.

    Attributes:
        name: Ends in `_<unit>`, where there is a unit.
        samples: Labels and value.
    """

    name: str
    type: Literal["counter", "gauge", "info"]
    help: str
    samples: Sequence[tuple[Mapping[str, str], float]]
    unit: str = ""

    def lines(self) -> Iterable[str]:
        """The family as lines; none where it has no samples."""
        if not self.samples:
            return
        yield f"# TYPE {self.name} {self.type}"
        if self.unit:
            yield f"# UNIT {self.name} {self.unit}"
        yield f"# HELP {self.name} {_escaped(self.help)}"
        for labels, value in self.samples:
            inside = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
            yield f"{self.name}{_SUFFIX[self.type]}{f'{{{inside}}}' if inside else ''} {_number(value)}"


def text_of(families: Iterable[Family]) -> str:
    """The whole exposition."""
    return "\n".join([*(line for family in families for line in family.lines()), "# EOF\n"])


def _escaped(text: str) -> str:
    """A label's value or a help text; control characters and lone surrogates, which no reader wants, are replaced."""
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
    return "".join(char if char.isprintable() else "\ufffd" for char in escaped)


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
