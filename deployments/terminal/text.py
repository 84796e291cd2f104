"""Text from data, made safe for a terminal.

Keys, reasons, names and rows are chosen by others. A terminal obeys escape sequences in them: they move the cursor,
hide lines, or write to the clipboard (OSC 52). Nothing is printed before it went through `printable`.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from rich import markup
from rich.console import Console
from rich.segment import Segment

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType

_KEPT: Final = frozenset("\n\t")
_JOINERS: Final = frozenset("\u200c\u200d")
"""Format characters that Persian, Indic scripts and emoji are written with."""

_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Control, format (direction overrides, invisible characters), surrogates, line and paragraph separators."""


def printable(text: str) -> str:
    r"""The text with every control character written out (`\x1b`), so that it is seen and not obeyed.

    Newlines and tabs stay. Lone surrogates are written out too, so that the result can be encoded.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(char) if _is_unsafe(char) else char for char in text)


def is_safe(text: str) -> bool:
    """Whether a text holds nothing that a terminal would obey."""
    return (text.isascii() and text.isprintable()) or not any(map(_is_unsafe, text))


def escape(text: str, *, lines: bool = False) -> str:
    """A text from data as it goes into a console's markup: printable, and no markup of its own.

    A newline is written out, since it would forge a line of the output, unless the text may have several `lines`.
    """
    return markup.escape(printable(text if lines else text.replace("\n", "\\n")))


class SafeConsole(Console):
    """A console that writes out control characters in whatever it prints, also where `escape` was forgotten.

    Its width is the one at the time of printing: rich alone keeps COLUMNS as it was at import.
    """

    def __init__(self, *, width: int | None = None, height: int | None = None, **named: Any) -> None:
        super().__init__(width=width, height=height, **named)
        self._width, self._height = width, height

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of something; those of the console's own control codes stay as they are."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def sanitise_logs() -> None:
    """Write out control characters in every log record of this process, exceptions included."""
    make = logging.getLogRecordFactory()
    if getattr(make, "is_safe", False):
        return

    def safe(*args: Any, **named: Any) -> logging.LogRecord:
        record = make(*args, **named)
        record.msg, record.args = printable(record.getMessage()), ()
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = printable(logging.Formatter().formatException(record.exc_info))
        return record

    safe.is_safe = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(safe)


def _is_unsafe(char: str) -> bool:
    return char not in _KEPT and char not in _JOINERS and unicodedata.category(char) in _UNSAFE


def _shown(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
