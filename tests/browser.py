"""The system's Chromium, for tests of pages as people see them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

ARGUMENTS = (
    "--no-sandbox",  # as root there is none; pages are our own, on loopback
    "--disable-gpu",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # what a page asks of outside fails at once
    "--disable-quic",
    "--no-first-run",
    "--lang=en-US",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def require_program(*names: str) -> str:
    """Path of the first of these programs; without any the test is skipped, or fails where all must be there.

    The continuous integration sets RATCHET_ALL_PROGRAMS and installs them; on other machines Chromium and Java are
    optional, and the skipped tests are named with the reason.
    """
    for name in names:
        if found := shutil.which(name):
            return found
    missing = f"needs {' or '.join(names)}, which is not installed"
    if os.environ.get("RATCHET_ALL_PROGRAMS"):
        pytest.fail(missing)
    pytest.skip(missing)


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium (a Playwright `Browser`) for the length of a `with` block."""
    path = require_program("chromium", "chromium-browser", "google-chrome")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()
