"""Ending exactly the processes of a stack, also when their owner is killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deployments.stack import guard

_STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"

_OWNER = """
import os, subprocess, sys, time
guard, mark, name = sys.argv[1:]
# the owner keeps the pipe's other end for as long as it lives
process = subprocess.Popen([sys.executable, guard, mark], stdin=subprocess.PIPE, start_new_session=True)
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
parent = [sys.executable, "-c", f"import subprocess; subprocess.run({sleep!r})"]
subprocess.Popen(parent, env={**os.environ, name: mark}, start_new_session=True)
print(flush=True)
time.sleep(600)
"""


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[str]:
    """A mark of this test's own; nothing that carries it outlives the test."""
    yield f"{tmp_path}:test"
    guard.end(f"{tmp_path}:", grace=0.1)


def _start(mark: str, code: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, guard.MARK: mark}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _wait_until(count: int, mark: str) -> None:
    deadline = time.monotonic() + 30
    while len(guard.marked(mark)) != count and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(guard.marked(mark)) == count


def test_a_process_that_ignores_the_request_is_killed(mark: str) -> None:
    """SIGTERM is a request; what does not follow it within the grace is killed all the same."""
    stubborn = _start(mark, _STUBBORN)
    assert guard.end(mark, grace=0.2) == 1
    assert not psutil.pid_exists(stubborn.pid)


def test_only_processes_with_the_mark_are_ended(mark: str) -> None:
    """Another stack's processes, whose mark starts differently, are left alone."""
    ours, others = _start(mark, _STUBBORN), _start(f"other{mark}", _STUBBORN)
    try:
        guard.end(mark, grace=0.1)
        assert not psutil.pid_exists(ours.pid)
        assert others.poll() is None
    finally:
        others.kill()
        others.wait()


def test_the_guard_ends_everything_when_the_owner_is_killed(mark: str) -> None:
    """The owner had no last word after kill -9, so the guard ends children and grandchildren, in whatever session."""
    command = [sys.executable, "-c", _OWNER, guard.__file__, mark, guard.MARK]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    owner.stdout.readline()
    _wait_until(2, mark)
    guards = [child for child in psutil.Process(owner.pid).children() if guard.__file__ in child.cmdline()]
    owner.kill()
    owner.wait()
    _wait_until(0, mark)
    for process in guards:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.wait(10)
    assert len(guards) == 1
