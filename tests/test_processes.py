"""Several processes: the same training as one, and a killed worker that is started again from the checkpoint."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from tasks import night
from tasks.storage import Store
from tasks.training import Checkpoints, Start, TrainingError, fine_tune, hardware, train
from tasks.training.job import Job
from tasks.training.rendezvous import Nodes, Rendezvous, RendezvousError
from tests import model_zoo, tiny_models
from tests.test_start import upload
from tests.test_training import DOCUMENTS, PAIRS, ROWS, dev_set, settings


def workers() -> list[int]:
    """Process ids of the training workers that this test run has started."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "tasks.training.worker" in child.cmdline():
                found.append(child.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def listening() -> set[str]:
    """Addresses at which this process and the training processes that it started accept connections."""
    return {
        connection.laddr.ip
        for process in [psutil.Process(), *map(psutil.Process, workers())]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


AUDIT = """
import os, sys
def hook(event, arguments):
    if event == "pickle.find_class":
        with open(os.environ["RATCHET_TEST_UNPICKLED"], "a") as file:
            file.write(f"{os.getpid()} {arguments}\\n")
if "tasks.training.worker" in sys.orig_argv:
    sys.addaudithook(hook)
    with open(os.environ["RATCHET_TEST_UNPICKLED"] + ".seen", "a") as file:
        file.write(f"{os.getpid()}\\n")
"""


@pytest.fixture
def unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in which every training process notes each class that it unpickles."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(AUDIT)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("RATCHET_TEST_UNPICKLED", str(tmp_path / "unpickled"))
    return tmp_path / "unpickled"


def test_on_one_machine_nothing_listens_beyond_loopback_and_nothing_is_unpickled(
    tmp_path: Path, unpickled: Path
) -> None:
    """Looked at during every step, in the launcher and in both processes."""
    base = str(tiny_models.save(tmp_path / "base"))
    addresses: list[set[str]] = []
    training = settings(base, processes=2, epochs=1)
    trained = train(
        ROWS, dev_set(PAIRS), DOCUMENTS, training, tmp_path / "m", on_progress=lambda *_: addresses.append(listening())
    )
    assert len(addresses) == trained.steps
    assert any(addresses)  # the processes do talk to each other
    assert set().union(*addresses) <= {"127.0.0.1", "::1"}
    assert len((tmp_path / "unpickled.seen").read_text().split()) == 2  # they were watched
    assert not unpickled.exists()


def test_the_machines_meet_on_the_named_address_only(tmp_path: Path) -> None:
    """The first opens the port there; the second joins it, and both see all failures; a third is one too many."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = Rendezvous(2, f"127.0.0.1:{free.getsockname()[1]}", "one")
    with ThreadPoolExecutor() as pool:
        first, second = sorted(pool.map(Nodes, [where, where]), key=lambda nodes: nodes.node)
    assert (first.node, second.node) == (0, 1)
    assert listening() == {"127.0.0.1"}
    assert {first.interface_of, second.interface_of} == {"127.0.0.1"}
    second.report_failure(0)
    assert first.failed(0)
    assert not first.failed(1)
    with pytest.raises(RendezvousError, match="one is too many"):
        Nodes(where, seconds=1)
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(lambda nodes: nodes.finish(1), [first, second])) == [True, True]
    second.leave()
    with pytest.raises(RendezvousError, match="given up"):
        first.failed(2)


def test_a_rendezvous_at_which_nobody_answers(tmp_path: Path) -> None:
    """An address of another machine that does not answer, and one without a port, are errors that name it."""
    base = str(tiny_models.save(tmp_path / "base"))
    for endpoint, message in (("nobody", "'nobody' is not an address"), ("127.0.0.1:x", "use host:port")):
        with pytest.raises(TrainingError, match=message):
            train(ROWS, None, [], settings(base, nodes=2), tmp_path / "m", rendezvous=Rendezvous(2, endpoint, "one"))
    with pytest.raises(RendezvousError, match=r"1 of 2 machines came within 0\.1 s"):
        Nodes(Rendezvous(2, "127.0.0.1:0", "one"), seconds=0.1)


def test_more_processes_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is started, with both numbers; as many as there are GPUs are let through."""
    base = str(tiny_models.save(tmp_path / "base"))
    monkeypatch.setattr(hardware, "gpus", lambda: 2)
    with pytest.raises(TrainingError, match="processes is 3, but this machine has 2 GPU"):
        train(ROWS, None, [], settings(base, processes=3), tmp_path / "model")
    monkeypatch.setattr(fine_tune, "_launched", lambda *_: "launched")
    assert train(ROWS, None, [], settings(base, processes=2), tmp_path / "model") == "launched"


def test_a_job_crosses_to_another_process_whole(tmp_path: Path, store: Store) -> None:
    """Rows, dev, settings and where to keep what: read again they are what was written; files hold data only."""
    training = settings(str(tmp_path), seed=7, processes=2)
    checkpoints = Checkpoints(store, "runs/one/checkpoints/")
    job = Job(ROWS, dev_set(PAIRS), DOCUMENTS, training, Start("v1", tmp_path), tmp_path / "m", 3, checkpoints, 1.5)
    folder = tmp_path / "job"
    folder.mkdir()
    job.write(folder)
    found = Job.read(folder)
    assert found.rows.equals(ROWS)
    assert found.dev is not None
    assert job.dev is not None
    assert found.dev.queries == job.dev.queries
    assert [places.tolist() for places in found.dev.relevant] == [places.tolist() for places in job.dev.relevant]
    assert (found.documents, found.training, found.start, found.folder) == (DOCUMENTS, training, job.start, job.folder)
    assert (found.commit, found.began) == (3, 1.5)
    assert found.checkpoints is not None
    assert (found.checkpoints.url, found.checkpoints.prefix) == (store.url, "runs/one/checkpoints/")
    assert {path.suffix for path in folder.iterdir()} == {".json", ".parquet"}


@pytest.mark.slow
def test_hard_negatives_are_those_of_one_process(tmp_path: Path) -> None:
    """Each process encodes its share, the leader finds them: as many, and the same loss curve."""
    base = str(tiny_models.save(tmp_path / "base"))
    alone = train(ROWS, None, [], settings(base, hard_negatives=2, epochs=1), tmp_path / "alone")
    training = settings(base, hard_negatives=2, epochs=1, processes=2)
    together = train(ROWS, None, [], training, tmp_path / "together")
    assert together.mined == alone.mined > 0
    np.testing.assert_allclose(together.losses, alone.losses, rtol=5e-3)


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
    print(json.dumps(found.losses))
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
    assert json.loads(output.splitlines()[-1]) == list(together.losses)
    np.testing.assert_allclose(together.losses, alone.losses, rtol=5e-3)
    assert (together.pairs, together.tokens) == (alone.pairs, alone.tokens)
    assert set(store.folders("models/")) == {alone.version, together.version}


@pytest.mark.slow
def test_an_error_of_all_is_reported_at_once(tmp_path: Path) -> None:
    """DeBERTa cannot be computed in bf16, which every process finds when it is asked for: none is started again."""
    base = model_zoo.architecture("deberta", relative_attention=True, pos_att_type=["p2c", "c2p"])(tmp_path / "base")
    with pytest.raises(TrainingError, match="precision 'bf16' does not suit this base model"):
        train(ROWS, None, [], settings(str(base), processes=2, precision="bf16"), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_failure_in_the_workers_is_the_runs(store: Store, tmp_path: Path) -> None:
    """What fails in every attempt (a bucket for checkpoints that is not there) ends the run with an error, no model."""
    base = str(tiny_models.save(tmp_path / "base"))
    nowhere = Checkpoints(Store.open("s3://no-such-bucket/prefix"), "runs/one/checkpoints/")
    with pytest.raises(TrainingError, match="2 processes failed"):
        train(ROWS, None, [], settings(base, processes=2), tmp_path / "model", checkpoints=nowhere)
    assert not (tmp_path / "model").exists()
