"""The process that publishes one job: `python -m tasks.publishing.send FOLDER`.

The folder holds `job.json` and the files; `reply.json` or `error.txt` is left there. Addresses and tokens come from the
environment, by the names that the clients of MLflow and Hugging Face give them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tasks.publishing.job import Job


def main(folder: Path) -> int:
    """Publish; returns the exit status."""
    job = Job(**json.loads((folder / "job.json").read_text()))
    try:
        if job.target == "mlflow":
            from tasks.publishing import to_mlflow

            where = to_mlflow.publish(job, folder)
        else:
            from tasks.publishing import to_huggingface

            where = to_huggingface.publish(job, folder)
    except Exception as error:  # noqa: BLE001 # the message is all that leaves this process
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}")
        return 1
    (folder / "reply.json").write_text(json.dumps({"where": where}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
