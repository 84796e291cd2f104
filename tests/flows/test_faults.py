"""A night survives what breaks around it: processes, the Prefect API, the store, the disk.

Each of these nights ends as the undisturbed one does, or, where it had to fail, the next one does: promoted once, with
the same scores, every pair taken in once, ledger and pointer agreeing, and no checkpoint left behind.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate

from deployments.server import automations, drain
from deployments.server.settings import Settings
from deployments.stack import guard, local
from tasks import encoding, registry
from tasks.config import Outcome
from tasks.scoring import serving
from tests.browser import require_program
from tests.flows.conftest import client_of
from tests.flows.nights import (
    OFTEN,
    QUICK,
    Night,
    children,
    final,
    has_checkpoint,
    new_night,
    processes,
    trains,
    wait_for,
)
from tests.flows.outage import Line, line

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(1800)]


class Site:
    """A stack whose runs reach API and store by lines that can be cut, and whose workers can be killed."""

    def __init__(self, stack: local.Stack, client: SyncPrefectClient, api: Line, s3: Line) -> None:
        self.stack, self.client, self.api, self.s3 = stack, client, api, s3
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        for name, pid in stack.services.items():
            if name.startswith("worker-"):  # those know no line
                process = psutil.Process(pid)
                process.terminate()
                process.wait(60)

    def start_worker(self, pool: str, **settings: str) -> None:
        """Start the only worker of a pool; what it runs has the same settings."""
        environment = {
            **os.environ,
            **self.stack.environment(),
            guard.MARK: self.stack.mark,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_API_URL": f"http://127.0.0.1:{self.api.port}/api",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.s3.port}",
            **settings,
        }
        with (self.stack.logs() / f"{pool}-of-faults.log").open("ab") as log:
            self.workers[pool] = subprocess.Popen(
                [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"],
                cwd=self.stack.state, env=environment, start_new_session=True,
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def stop_worker(self, pool: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to the worker of a pool, and wait until it is gone."""
        self.workers[pool].send_signal(number)
        self.workers[pool].wait(60)

    def kill(self, run: UUID) -> None:
        """Kill -9 the process of a flow run."""
        found = processes(self.stack, run)
        assert found
        for process in found:
            process.kill()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A stack of this module's own, since its workers are killed; both pools have a worker."""
    with ExitStack() as opened:
        stack = opened.enter_context(local.running(tmp_path_factory.mktemp("faults") / "state"))
        opened.enter_context(client_of(stack))
        client = opened.enter_context(get_client(sync_client=True))
        api = opened.enter_context(line(int(urlsplit(stack.api_url).port or 0)))
        s3 = opened.enter_context(line(int(urlsplit(stack.s3_endpoint).port or 0)))
        found = Site(stack, client, api, s3)
        found.start_worker("cpu")
        found.start_worker("gpu")
        yield found
        for pool in found.workers:
            found.stop_worker(pool)


@pytest.fixture(scope="module")
def reference(site: Site) -> Outcome:
    """What a night comes to that nothing disturbs."""
    night = new_night(site.stack)
    run = night.start(reason="undisturbed")
    assert final(site.client, run) == "Completed"
    return night.assert_promoted(run)


@pytest.fixture
def night(site: Site, reference: Outcome) -> Night:
    """A night to disturb."""
    return new_night(site.stack)


def _assert_as_if_nothing_had_happened(outcome: Outcome, reference: Outcome) -> None:
    """The same data, scores and decision; a training that went on from a checkpoint may differ by roundings."""
    assert outcome.candidate is not None
    assert reference.candidate is not None
    assert outcome.counts == reference.counts
    for metric, value in reference.candidate.scores.items():
        assert outcome.candidate.scores[metric] == pytest.approx(value, abs=0.02), metric


def test_the_store_and_the_api_are_away(site: Site, night: Night, reference: Outcome) -> None:
    """S3 for a minute in intake, training and promotion, whose reply is lost; the API for 90 s in training."""
    taking_in = site.s3.at(b"/07.jsonl ", partial(site.s3.cut, 60))
    promoting = site.s3.at(f"PUT /ratchet/{night.store.prefix}production.json".encode(), partial(site.s3.cut, 60))
    training = site.s3.at(b"/checkpoints/", partial(site.s3.cut, 60))
    run = night.start(OFTEN, reason="the store and the API are away")
    wait_for("the outage in training", training.came.is_set)
    going_on = site.s3.at(b"/checkpoints/", partial(site.api.cut, 90))
    wait_for("the training to go on", going_on.came.is_set)
    publishing = site.s3.at(f"PUT /ratchet/{night.store.prefix}models/".encode(), partial(site.s3.cut, 30))
    assert final(site.client, run, 600) == "Completed"
    assert all(moment.came.is_set() for moment in (taking_in, publishing, promoting))
    _assert_as_if_nothing_had_happened(night.assert_promoted(run), reference)
    assert [child.state_name for child in children(site.client, run)] == ["Completed"]


def test_workers_are_drained_and_killed(site: Site, reference: Outcome) -> None:
    """Drained, a worker ends its training in peace; what falls due waits for the next, whose kill -9 it outlives."""
    first, second = new_night(site.stack), new_night(site.stack)
    run = first.start(reason="the worker is drained")
    trains(site.client, run)
    assert drain.drain("gpu", patience=300, settle=2.0) == []
    site.stop_worker("gpu")
    assert final(site.client, run) == "Completed"
    _assert_as_if_nothing_had_happened(first.assert_promoted(run), reference)
    assert [child.state_name for child in children(site.client, run)] == ["Completed"]

    run = second.start(reason="the worker is killed")
    wait_for("the fine-tuning to be due", lambda: children(site.client, run))
    assert drain.resume("gpu")
    site.start_worker("gpu")
    trains(site.client, run)
    site.stop_worker("gpu", signal.SIGKILL)
    assert final(site.client, run) == "Completed"
    site.start_worker("gpu")
    _assert_as_if_nothing_had_happened(second.assert_promoted(run), reference)
    assert [child.state_name for child in children(site.client, run)] == ["Completed"]


def test_the_training_is_killed_and_then_its_worker_too(site: Site, night: Night, reference: Outcome) -> None:
    """Kill -9 on the training, then on the next one and its worker: each is followed by one that goes on from there."""
    with _quick_to_crash_silent_runs(site):
        run = night.start(OFTEN, reason="the training is killed twice")
        site.kill(has_checkpoint(site.client, night, run, child=1).id)
        second = has_checkpoint(site.client, night, run, child=2)
        site.stop_worker("gpu", signal.SIGKILL)
        site.kill(second.id)
        site.start_worker("gpu")
        assert final(site.client, run, 600) == "Completed"
    _assert_as_if_nothing_had_happened(night.assert_promoted(run), reference)
    assert [child.state_name for child in children(site.client, run)] == ["Crashed", "Crashed", "Completed"]
    (trained,) = [entry.key for entry in night.store.entries("runs/") if entry.key.endswith("/train.json")]
    assert json.loads(night.store.get(trained).body)["resumed"] > 0


def test_the_night_itself_is_killed_and_run_again(site: Site, night: Night, reference: Outcome) -> None:
    """Kill -9 on the night while its training goes on elsewhere: the next night waits for the GPU, and promotes."""
    run = night.start(reason="the night is killed")
    orphan = trains(site.client, run)
    site.kill(run)
    assert final(site.client, run) == "Crashed"
    night.assert_sound(promotions=0)
    again = night.start(reason="run again")
    assert final(site.client, again) == "Completed"
    assert final(site.client, orphan.id) == "Completed"
    _assert_as_if_nothing_had_happened(night.assert_promoted(again), reference)


@contextmanager
def _quick_to_crash_silent_runs(site: Site) -> Iterator[None]:
    """Runs say twice a minute that they live, and silence counts after 75 s: below the bounds, which are for people."""
    default = Settings()
    quick = default.model_copy(update={"alerts": default.alerts.model_copy(update={"heartbeat_minutes": 1.25})})
    template = site.client.read_work_pool("gpu").base_job_template
    job = template["job_configuration"]
    often = {**template, "job_configuration": {**job, "env": {**job["env"], "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}}}
    site.client.update_work_pool("gpu", WorkPoolUpdate(base_job_template=often))
    automations.apply(quick, {})
    try:
        yield
    finally:
        automations.apply(default, {})
        site.client.update_work_pool("gpu", WorkPoolUpdate(base_job_template=template))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own with room for vectors, and not for a model."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    mount, umount = require_program("mount"), require_program("umount")
    mounted = subprocess.run([mount, "-t", "tmpfs", "-o", "size=64m", "none", folder], check=False)
    if mounted.returncode != 0:
        pytest.skip("no file system may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run([umount, "--lazy", folder], check=True)


def test_the_disk_is_full(site: Site, night: Night, reference: Outcome, small_disk: Path, tmp_path: Path) -> None:
    """The night fails and says why, production is the same bytes, and the next night, with room, promotes."""
    version = _serve_the_base_model(night, tmp_path / "model")
    before = night.store.get("production.json").body
    site.stop_worker("gpu")
    site.start_worker("gpu", RATCHET_WORK=str(small_disk / "work"), TMPDIR=str(small_disk))
    run = night.start(reason="the disk is full")
    assert final(site.client, run) == "Failed"
    outcome = night.outcome(run)
    assert outcome.verdict == "failed"
    assert "No space left on device" in outcome.reasons[0]
    assert night.store.get("production.json").body == before
    night.assert_sound(promotions=1)

    site.stop_worker("gpu")
    site.start_worker("gpu")
    run = night.start(reason="there is room again")
    assert final(site.client, run) == "Completed"
    outcome = night.assert_promoted(run, promotions=2)
    assert outcome.production_before == version
    _assert_as_if_nothing_had_happened(outcome, reference)


def _serve_the_base_model(night: Night, folder: Path) -> str:
    """Put the base model itself into production; returns its version."""
    shutil.copytree(encoding.resolve_model(QUICK.base_model), folder, ignore=shutil.ignore_patterns(".git*"))
    version = registry.publish(night.store, folder, serving.describe(folder, ()))
    scores = {"recall_at_10": 0.5, "mrr": 0.5}
    registry.promote(night.store, version, None, run_id="by hand", who="test", reason="to begin with", scores=scores)
    return version
