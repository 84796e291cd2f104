"""The report of a promoted, a held, a regressed and a blocked night: light, dark, on a phone, and printed."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from tasks.report import html
from tests.browser import chromium
from tests.report_cases import material, outcome
from tests.screenshots import shrink

_LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 900, "height": 1200}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 900, "height": 1200}, "color_scheme": "dark"},
    "narrow": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
}


def take(folder: Path) -> None:
    """Write `report-<verdict>-<look>.png`, the whole page of each."""
    with TemporaryDirectory() as pages, chromium() as browser:
        for verdict in ("promoted", "held", "regressed", "blocked"):
            page_file = Path(pages) / f"{verdict}.html"
            page_file.write_text(html(outcome(verdict), material(verdict)), encoding="utf-8")
            for look, options in _LOOKS.items():
                page = browser.new_page(**options)
                page.goto(page_file.as_uri())
                picture = folder / f"report-{verdict}-{look}.png"
                page.screenshot(path=picture, full_page=True)
                page.close()
                shrink(picture)
        with Image.open(folder / "report-promoted-light.png") as whole:
            whole.crop((0, 0, whole.width, 860)).save(folder / "report.png", optimize=True)
