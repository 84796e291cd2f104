"""Several processes: the same training as one, and a killed worker that is started again from the checkpoint."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file, save_file

from tasks import night
from tasks.storage import Store
from tasks.training import Checkpoints, TrainingError, train
from tests import tiny_models
from tests.test_start import upload
from tests.test_training import DOCUMENTS, PAIRS, ROWS, dev_set, settings


def workers() -> list[int]:
    """Process ids of the training workers that this test run has started."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child.pid)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_train_as_one_does(tmp_path: Path, processes: int) -> None:
    """Two and four gloo processes: every row once, all negatives, so the loss curve and dev scores of one process."""
    base = str(tiny_models.save(tmp_path / "base"))
    alone = train(ROWS, dev_set(PAIRS), DOCUMENTS, settings(base), tmp_path / "alone")
    steps: list[int] = []
    together = train(
        ROWS,
        dev_set(PAIRS),
        DOCUMENTS,
        settings(base, processes=processes),
        tmp_path / "together",
        on_progress=lambda step, *_: steps.append(step),
    )
    assert steps == list(range(1, alone.steps + 1))
    assert (together.pairs, together.tokens) == (alone.pairs, alone.tokens)
    np.testing.assert_allclose(together.losses, alone.losses, rtol=5e-3)
    assert [score.mrr for score in together.dev] == pytest.approx([score.mrr for score in alone.dev], abs=0.05)
    assert {path.name for path in (tmp_path / "together").iterdir()} == {p.name for p in (tmp_path / "alone").iterdir()}


@pytest.mark.slow
def test_a_killed_worker_is_started_again_from_the_checkpoint(store: Store, tmp_path: Path) -> None:
    """SIGKILL to one of two workers in mid-run: both go on from the last checkpoint, to the undisturbed loss curve."""
    base = str(tiny_models.save(tmp_path / "base"))
    alone = train(ROWS, None, [], settings(base), tmp_path / "alone")
    steps: list[int] = []
    killed: list[int] = []

    def kill_one(step: int, *_: object) -> None:
        steps.append(step)
        if step >= 8 and not killed:
            killed.append(workers()[-1])
            os.kill(killed[0], signal.SIGKILL)

    training = settings(base, processes=2, checkpoint_minutes=1e-9)
    checkpoints = Checkpoints(store, "runs/one/checkpoints/")
    trained = train(ROWS, None, [], training, tmp_path / "model", checkpoints=checkpoints, on_progress=kill_one)
    assert killed
    assert 8 <= trained.resumed < trained.steps
    assert steps[-1] == trained.steps == alone.steps
    np.testing.assert_allclose(trained.losses, alone.losses, rtol=5e-3)


NODE = """
import json, sys
from pathlib import Path
from tasks import night
from tasks.storage import Store
if __name__ == "__main__":
    url, work = sys.argv[1:]
    found = night.join(Store.open(url), "20261101T000000Z-00000000", Path(work), seconds=60)
    print(json.dumps(found["losses"]))
"""


@pytest.mark.slow
def test_two_nodes_train_as_one_process_does(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two launchers with a process each meet at an address: one loss curve, one candidate, the same result on both.

    This node runs the night's step, the other joins by the run's id; it keeps its models elsewhere.
    """
    base = str(tiny_models.save(tmp_path / "base"))
    commit = upload(store, "a", PAIRS)
    alone = night.train(store, "20261101T000000Z-11111111", commit, settings(base), tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RATCHET_RENDEZVOUS", f"127.0.0.1:{free.getsockname()[1]}")
    (tmp_path / "node.py").write_text(NODE)
    (tmp_path / "other").mkdir()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, str(tmp_path / "node.py"), store.url, str(tmp_path / "other")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as other:
        together = night.train(store, "20261101T000000Z-00000000", commit, settings(base, nodes=2), tmp_path)
        output = other.communicate(timeout=120)[0]
    assert other.returncode == 0
    assert json.loads(output.splitlines()[-1]) == together["losses"]
    np.testing.assert_allclose(together["losses"], alone["losses"], rtol=5e-3)
    assert (together["pairs"], together["tokens"]) == (alone["pairs"], alone["tokens"])
    assert set(store.folders("models/")) == {alone["version"], together["version"]}


@pytest.mark.slow
def test_an_error_of_all_is_reported_at_once(tmp_path: Path) -> None:
    """A base model with a NaN among its weights: the loss is no number in any process, and none is started again."""
    base = tiny_models.save(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["embeddings.LayerNorm.weight"][0] = float("nan")
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        train(ROWS, None, [], settings(str(base), processes=2), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_failure_in_the_workers_is_the_runs(store: Store, tmp_path: Path) -> None:
    """What fails in every attempt (a bucket for checkpoints that is not there) ends the run with an error, no model."""
    base = str(tiny_models.save(tmp_path / "base"))
    nowhere = Checkpoints(Store.open("s3://no-such-bucket/prefix"), "runs/one/checkpoints/")
    with pytest.raises(TrainingError, match="2 processes failed"):
        train(ROWS, None, [], settings(base, processes=2), tmp_path / "model", checkpoints=nowhere)
    assert not (tmp_path / "model").exists()
