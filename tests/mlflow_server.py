"""A real MLflow server on loopback: the code of mlflow-skinny, with its database and artefacts in a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.stack import seaweedfs


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """The address of a server for the length of a `with` block; its log is in the folder."""
    (port,) = seaweedfs.free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "DO_NOT_TRACK": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    try:
        _await(process, url, folder)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with its workers; what it holds goes with the folder
        process.wait()


def _await(process: subprocess.Popen[bytes], url: str, folder: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"the MLflow server did not start: {(folder / 'log').read_text()[-2000:]}")
