"""A flow that only waits, for tests of the stack itself."""

from __future__ import annotations

import subprocess
import sys
import time

from prefect import flow


@flow(name="probe")
def probe(seconds: float = 0.0) -> None:
    """Wait, with a child process of its own beside it."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        time.sleep(seconds)
        child.kill()
