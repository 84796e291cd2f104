"""How far a long step is, where nobody has a terminal open on it: systemd, containers, `make demo > log`."""

from __future__ import annotations

import itertools
import logging

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks import steps


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by ten seconds at every step, which looks twice; no Prefect server and no run to log for."""
    ticks = itertools.count(0.0, 5.0)
    monkeypatch.setattr("tasks.steps.time.monotonic", lambda: next(ticks))
    monkeypatch.setattr(steps, "get_run_logger", lambda: logging.getLogger("night"))
    monkeypatch.setattr(steps, "create_progress_artifact", lambda *_, **__: None)


@pytest.mark.usefixtures("clock")
def test_without_a_terminal_a_line_every_half_minute_says_how_far_and_how_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Ten seconds a step: of 100 steps a line after steps 3 and 6, with the time that the others will take."""
    caplog.set_level(logging.INFO, "night")
    with steps.Progress("training", "Training steps") as progress:
        for done in range(1, 8):
            progress(done, 100)
    assert caplog.messages == [
        "Training steps: 3 of 100, about 16 min left",
        "Training steps: 6 of 100, about 16 min left",
    ]


@pytest.mark.usefixtures("clock")
def test_what_was_done_before_the_first_report_says_nothing_of_the_speed(caplog: pytest.LogCaptureFixture) -> None:
    """A training that goes on from step 90: ten seconds a step, not ninety steps in the first ten seconds."""
    caplog.set_level(logging.INFO, "night")
    with steps.Progress("training", "Training steps") as progress:
        for done in range(90, 94):
            progress(done, 100)
    assert caplog.messages == ["Training steps: 92 of 100, about 80 s left"]


@pytest.mark.usefixtures("clock")
def test_a_step_without_an_end_in_sight_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing done yet, or nothing to do: no line, and no division by zero."""
    caplog.set_level(logging.INFO, "night")
    with steps.Progress("intake", "Objects read") as progress:
        for _ in range(7):
            progress(0, 0)
    assert caplog.messages == []


@pytest.mark.usefixtures("clock")
def test_progress_is_sent_to_the_server_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a thread of its own, which must not turn to another server, or start one."""
    servers: list[str | None] = []
    monkeypatch.setattr(steps, "create_progress_artifact", lambda *_, **__: "artifact")
    monkeypatch.setattr(steps, "update_progress_artifact", lambda *_, **__: servers.append(PREFECT_API_URL.value()))
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), steps.Progress("a", "A") as progress:
        progress(1, 2)
    assert servers == ["http://127.0.0.1:9/api"] * 2
