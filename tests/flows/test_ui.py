"""A night that a person starts in the Prefect UI: the form, what it refuses, the run, its verdict, its report."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from deployments.stack import local
from tasks.config import Gate, Training
from tasks.runs import Run
from tasks.storage import Store
from tests import prefect_ui
from tests.browser import chromium

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

PATIENCE = prefect_ui.PATIENCE
BELOW = "0.5 is less than or equal to the minimum of 0.5"


def _refuses(page: Page, name: str, wrong: str, words: str) -> None:
    """Submitted with a wrong value, the form stays and says why at the field: in the browser's words or its own."""
    prefect_ui.enter(page, name, wrong)
    page.get_by_role("button", name="Submit").click()
    said = page.get_by_label(name).evaluate("box => box.validationMessage")
    if said:
        assert words in said
    else:
        expect(page.get_by_text(words, exact=True)).to_be_visible(timeout=PATIENCE)
    assert page.url.partition("?")[0].endswith("/run")


def test_a_night_from_the_form_to_its_report(stack: local.Stack, tmp_path: Path) -> None:
    """Two wrong values are refused in the page; with right ones the run goes, and its report gives the verdict."""
    name, reason = f"by-hand-{uuid.uuid4().hex[:8]}", "Tried from the form"
    environment = stack.environment()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            if key.startswith("AWS_"):
                patch.setenv(key, value)
        store = Store.open(stack.store(f"ui-{uuid.uuid4().hex}"))
    rows = ({"query": f"part {i}", "document": f"made of iron {i}"} for i in range(20))
    store.put("pairs/a.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))

    with chromium() as browser, prefect_ui.signed_in(browser, stack, tmp_path) as page, prefect_ui.api(stack) as api:

        def runs() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = api.post(
                "flow_runs/filter", json={"flow_runs": {"name": {"any_": [name]}}}
            ).json()
            return found

        prefect_ui.open_form(page, stack, "nightly")
        _shows(page, "Epochs", Training.model_fields["epochs"].description)
        _shows(page, "Confidence", Gate.model_fields["confidence"].description)
        page.get_by_label("Run Name").fill(name)
        _refuses(page, "Epochs", "0", "greater than or equal to 1")
        prefect_ui.enter(page, "Epochs", "2")
        _refuses(page, "Confidence", "0.5", BELOW)
        prefect_ui.enter(page, "Confidence", "0.95")
        prefect_ui.enter(page, "reason", reason)
        prefect_ui.enter(page, "store", store.url)
        assert runs() == []
        prefect_ui.submit(page, patience=8_000)
        (run,) = runs()
        parameters = run["parameters"]
        assert (parameters["training"]["epochs"], parameters["gate"]["confidence"]) == (2, 0.95)
        assert (parameters["reason"], parameters["fine_tune_deployment"]) == (reason, "fine-tune/gpu")

        page.wait_for_url(f"**/runs/flow-run/{run['id']}**")
        expect(page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=90_000)
        expect(page.get_by_text("skipped", exact=True).first).to_be_visible(timeout=PATIENCE)  # a tag beside its name
        page.get_by_role("tab", name="Artifacts").click()
        page.get_by_role("link").filter(has_text="report").click()
        page.wait_for_url("**/artifacts/key/report")
        # the reports of all nights are listed here: the server knows which one is this run's
        wanted = {"artifacts": {"key": {"any_": ["report"]}, "flow_run_id": {"any_": [run["id"]]}}}
        (report,) = api.post("artifacts/filter", json=wanted).json()
        page.locator(f"a[href$='/artifact/{report['id']}']").first.click()
        heading = page.get_by_role("heading", name=re.compile("^Skipped: "))  # its description says so in small letters
        expect(heading).to_be_visible(timeout=PATIENCE)
        expect(page.locator("main")).to_contain_text(reason, timeout=PATIENCE)

    folder = f"{store.folders('runs/')[0]}"
    outcome = Run(store, folder).outcome
    assert outcome is not None
    assert (outcome.verdict, outcome.reason) == ("skipped", reason)


def _shows(page: Page, name: str, description: str | None) -> None:
    assert description
    assert description in prefect_ui.field(page, name).inner_text()
