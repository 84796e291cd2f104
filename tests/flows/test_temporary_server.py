"""The server that Prefect starts for `ratchet run` where none is configured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.places import ROOT

pytestmark = pytest.mark.stack

_RUN = """
import httpx, threading
from deployments.server.temporary import private_server
with private_server():
    from prefect import flow
    from prefect.client.orchestration import get_client
    @flow
    def probe():
        with get_client(sync_client=True) as client:
            url = str(client.api_url)
            seen = []
            thread = threading.Thread(target=lambda: seen.append(len(get_client(sync_client=True).read_flows())))
            thread.start()
            thread.join()
            guess = httpx.post(url + "block_documents/filter", json={}, auth=("ratchet", "guess"), trust_env=False)
            anonymous = httpx.post(url + "block_documents/filter", json={}, trust_env=False)
            print("SEEN", anonymous.status_code, guess.status_code, len(client.read_flows()), *seen)
    probe()
import os
print("AFTER", os.environ.get("PREFECT_API_AUTH_STRING"))
"""


def test_it_asks_for_a_password_that_only_this_process_knows(tmp_path: Path) -> None:
    """Blocks hold the secrets of channels: another user of the machine is refused, the run's own threads are not."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", _RUN],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={
            **environment,
            "PREFECT_HOME": str(tmp_path),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "240",
        },
    )  # fmt: skip
    assert "SEEN 401 401 1 1" in done.stdout, done.stdout + done.stderr
    assert "AFTER None" in done.stdout
