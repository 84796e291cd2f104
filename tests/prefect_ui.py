"""The Prefect UI in a browser, as a person with the password meets it: for tests of it, and for pictures.

While Playwright's synchronous API is in use, this thread has a running event loop, and those of Prefect's functions
that are synchronous or not as needed would not do their work: talk to the API by httpx in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx

from deployments.stack import local

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

PATIENCE: Final = 20_000
"""Milliseconds that any one step may take."""


def api(stack: local.Stack) -> httpx.Client:
    """A client of the stack's Prefect API that knows its password, and needs no event loop."""
    user, _, password = stack.password_file.read_text().strip().partition(":")
    return httpx.Client(base_url=f"{stack.api_url}/", auth=(user, password), timeout=60, trust_env=False)


@contextmanager
def signed_in(browser: Browser, stack: local.Stack, folder: Path, **options: Any) -> Iterator[Page]:
    """A page of the UI, signed in by its own form; `options` are those of Playwright's `new_page`.

    Where something goes wrong in the `with` block, the page as it was is in `folder`, and the error says where.
    """
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 1000}} | options)
    page.set_default_timeout(PATIENCE)
    try:
        sign_in(page, stack, stack.password_file.read_text().strip())
        page.wait_for_url("**/dashboard**")
        yield page
    except Exception as error:
        picture = folder / "failed.png"
        page.screenshot(path=picture)
        error.add_note(f"the page at {page.url} is in {picture}")
        raise
    finally:
        page.close()


def sign_in(page: Page, stack: local.Stack, password: str) -> None:
    """Answer the question for the password."""
    page.goto(stack.ui_url)
    page.locator("input[type=password]").fill(password)
    page.get_by_role("button", name="Login").click()


def open_form(page: Page, stack: local.Stack, deployment: str) -> None:
    """Go from the list of deployments to the form of *Run*."""
    page.goto(f"{stack.ui_url}/v2/deployments")
    page.get_by_role("link", name=deployment, exact=True).click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()
    page.get_by_role("button", name="Submit").wait_for()


def field(page: Page, name: str) -> Locator:
    """The part of the form that is about one parameter: its name, its description, and what takes its value."""
    title = page.get_by_text(f"{name} (Optional)", exact=True)
    return title.locator("xpath=ancestor::div[.//input or .//textarea or .//*[@role='tab' or @role='switch']][1]")


def enter(page: Page, name: str, value: str) -> None:
    """Type the value of a parameter; one that may be left out is first said to be given."""
    found = field(page, name)
    if (given := found.get_by_role("tab").filter(has_not_text="None")).count():
        given.click()
    found.locator("input, textarea").fill(value)


def submit(page: Page, *, presses: int = 3, patience: float = PATIENCE) -> None:
    """Start the run, and go to its page; pressed again where nothing has come of it within `patience` milliseconds.

    A server under load may not take it at the first press. Nor may the form of Prefect 3.8.8 after a refusal: it looks
    at the errors of the press before, unless they have been cleared meanwhile.
    """
    from playwright.sync_api import TimeoutError as NothingHappensError

    started = page.get_by_role("link", name="View run")
    for press in range(1, presses + 1):
        page.get_by_role("button", name="Submit").click()
        try:
            started.wait_for(timeout=patience)
            break
        except NothingHappensError:
            if press == presses:
                raise
    started.click()
