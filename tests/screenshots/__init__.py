"""Pictures of what people see, made with the system's Chromium: `python -m tests.screenshots [SUBJECT ...]`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def shrink(picture: Path, colours: int = 48) -> None:
    """Few colours, so that a repository can hold many pictures; text stays sharp."""
    with Image.open(picture) as found:
        found.convert("RGB").quantize(colours, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            picture, optimize=True
        )
