"""The Prefect UI as an operator meets it, with a real night that is started from its form: takes about five minutes."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Final

from deployments import demo
from deployments.server.settings import Settings
from deployments.stack import local
from tasks.storage import Store
from tests import prefect_ui
from tests.browser import chromium
from tests.flows.receiver import receiving
from tests.screenshots import shrink

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

_NIGHT: Final = 20 * 60
"""Seconds that the night may take."""

_EVENT: Final = "ratchet.night.promoted"

_SETTINGS: Final = Settings.model_validate({"channels": {"ops": {"kind": "webhook", "secret_env": "OPS"}}})


def take(folder: Path) -> None:
    """Write `ui-<page>.png`: deployments, form, run, report, events, automations."""
    with TemporaryDirectory() as temporary, local.running(Path(temporary) / "state", on_step=print) as stack:
        stack.adopt()
        from deployments.server import deploy

        demo.build().upload(Store.open(stack.store()))
        with receiving() as hook:
            deploy.deploy(_SETTINGS, environment={**stack.environment(), "OPS": hook.url})
            photograph(stack, folder)


def photograph(stack: local.Stack, folder: Path) -> None:
    """Go the way of a person who starts a night by hand, and take a picture of each page."""
    with chromium() as browser, prefect_ui.signed_in(browser, stack, Path(gettempdir())) as page:
        page.set_viewport_size({"width": 1280, "height": 520})
        page.goto(f"{stack.ui_url}/v2/deployments")
        _picture(page, folder / "ui-deployments.png", page.get_by_role("link", name="nightly", exact=True))

        page.set_viewport_size({"width": 1280, "height": 1130})
        prefect_ui.open_form(page, stack, "nightly")
        page.get_by_label("Run Name").fill("first-labels-of-november")
        prefect_ui.enter(page, "reason", "The first labels of November are in")
        _picture(page, folder / "ui-form.png", page.get_by_label("Epochs"))
        prefect_ui.submit(page)
        page.wait_for_url("**/runs/flow-run/*")
        run = page.url.partition("?")[0]
        page.goto("about:blank")  # the timeline on its page is drawn all the time, which takes a core without a GPU
        _wait_for_end(stack, run.rpartition("/")[2])
        page.goto(run)
        page.get_by_text("Completed", exact=True).first.wait_for()
        page.get_by_role("tab", name="Artifacts").click()
        page.set_viewport_size({"width": 1280, "height": 1080})
        _picture(page, folder / "ui-run.png", page.get_by_text("chart-scores"))

        page.get_by_role("link").filter(has_text="report").click()
        page.locator("a[href*='/artifact/']").click()
        page.set_viewport_size({"width": 1280, "height": 1000})
        _picture(page, folder / "ui-report.png", page.get_by_role("heading", name="Promoted: "))

        page.goto(f'{stack.ui_url}/v2/events?events=["ratchet.*"]')
        for _ in range(12):  # the span of time that is listed ends before the latest events
            if page.get_by_text(_EVENT).count():
                break
            page.wait_for_timeout(10_000)
            page.reload(wait_until="networkidle")
        _picture(page, folder / "ui-events.png", page.get_by_text(_EVENT))
        page.goto(f"{stack.ui_url}/v2/automations")
        _picture(page, folder / "ui-automations.png", page.get_by_text("ratchet: regressed"))


def _wait_for_end(stack: local.Stack, run: str) -> None:
    """Wait until the night has ended and its event is in the list of events, which is written a little later."""
    deadline = time.monotonic() + _NIGHT
    with prefect_ui.api(stack) as api:

        def ended() -> bool:
            wanted = {"filter": {"event": {"name": [_EVENT]}}}
            going_on = api.get(f"flow_runs/{run}").json()["state_type"] in {"SCHEDULED", "PENDING", "RUNNING"}
            return not going_on and bool(api.post("events/filter", json=wanted).json()["events"])

        while not ended():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the night has not ended with {_EVENT} within {_NIGHT} s")
            time.sleep(2)


def _picture(page: Page, file: Path, ready: Locator) -> None:
    """Take a picture of what can be seen, when `ready` is there and charts and lists have come to rest."""
    ready.first.wait_for()
    page.wait_for_timeout(3_000)
    page.screenshot(path=file, animations="disabled")
    shrink(file, 128)  # greys that are close to each other
