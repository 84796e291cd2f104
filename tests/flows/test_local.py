"""The local stack: what runs, who may use it, and that nothing of it is ever left behind."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import boto3
import httpx
import psutil
import pytest

from deployments.stack import guard, local
from tests import prefect_ui
from tests.flows.nights import wait_for

pytestmark = pytest.mark.stack

PROBE = Path(__file__).with_name("probe.yaml")

_OWNER = """
import sys, time
from pathlib import Path
from deployments.stack import local
with local.running(Path(sys.argv[1]), deployments=Path(sys.argv[2])):
    time.sleep(600)
"""


def _listening(stack: local.Stack) -> set[str]:
    """Addresses on which the stack's processes accept connections."""
    return {
        connection.laddr.ip
        for process in guard.marked(stack.mark)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_every_service_runs(stack: local.Stack) -> None:
    """Two servers and one worker for each pool, found again by whoever looks at the folder."""
    assert set(stack.running()) == {"server", "s3", "worker-cpu", "worker-gpu"}
    assert all(stack.running().values())
    assert local.find(stack.state) == stack


def test_everything_listens_on_loopback_only(stack: local.Stack) -> None:
    """No port of the stack can be reached from another machine."""
    assert _listening(stack) == {"127.0.0.1"}


def test_the_prefect_api_asks_for_the_password(stack: local.Stack) -> None:
    """Without it, or with another, nothing is read: only a look at the health needs none."""
    url = f"{stack.api_url}/deployments/filter"
    assert httpx.post(url, json={}, trust_env=False).status_code == 401
    assert httpx.post(url, json={}, auth=("ratchet", "guess"), trust_env=False).status_code == 401
    with prefect_ui.api(stack) as api:
        assert api.post("deployments/filter", json={}).status_code == 200


def test_the_store_refuses_strangers(stack: local.Stack) -> None:
    """Neither listing nor writing without a signature."""
    address = f"{stack.s3_endpoint}/{local.BUCKET}"
    assert httpx.get(address, trust_env=False).status_code == 403
    assert httpx.put(f"{address}/pairs/a.jsonl", content=b"{}", trust_env=False).status_code == 403


def test_the_other_ports_of_the_store_ask_for_no_key(stack: local.Stack) -> None:
    """Why they are on loopback here, and in a network of their own in `compose.yaml`: a stranger's write is served.

    When an upgrade of SeaweedFS changes that, the documents may say so.
    """
    _, _, _, filer, _ = stack.s3_ports
    key = f"{uuid.uuid4().hex}/production.json"
    address = f"http://127.0.0.1:{filer}/buckets/{local.BUCKET}/{key}"
    assert httpx.put(address, content=b"planted", trust_env=False).status_code == 201
    environment = stack.environment()
    client = boto3.client(
        "s3",
        endpoint_url=stack.s3_endpoint,
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    assert client.get_object(Bucket=local.BUCKET, Key=key)["Body"].read() == b"planted"
    assert httpx.delete(address, trust_env=False).status_code == 204


def test_state_is_for_its_owner_and_secrets_are_in_no_log(stack: local.Stack) -> None:
    """The folder is closed to others; the passwords are in their own files and in environments, nowhere else."""
    assert stack.state.stat().st_mode & 0o777 == 0o700
    assert stack.password_file.stat().st_mode & 0o777 == 0o600
    environment = stack.environment()
    secrets = (environment["PREFECT_API_AUTH_STRING"].partition(":")[2], environment["AWS_SECRET_ACCESS_KEY"])
    readable = [*stack.logs().iterdir(), stack.state / "stack.json", stack.state / "ports.json"]
    for path in readable:
        text = path.read_text(errors="replace")
        assert not any(secret in text for secret in secrets), path
    for process in guard.marked(stack.mark):
        assert not any(secret in " ".join(process.cmdline()) for secret in secrets), process
    with prefect_ui.api(stack) as api:
        assert not any(secret in api.post("deployments/filter", json={}).text for secret in secrets)


def test_a_second_stack_beside_a_running_one_is_refused(stack: local.Stack) -> None:
    """The message says which process has it and where its UI is."""
    with pytest.raises(local.AlreadyRunningError) as refused, local.running(stack.state):
        pass
    assert stack.ui_url in str(refused.value)
    assert str(stack.pid) in str(refused.value)
    assert all(stack.running().values())


def test_the_nightly_schedule_yields_a_run_in_the_future(stack: local.Stack) -> None:
    """A server whose scheduler fails looks healthy: only a scheduled run shows that nights will come."""
    with prefect_ui.api(stack) as api:
        nightly = api.get("deployments/name/retrain/nightly").json()
        assert [(schedule["slug"], schedule["schedule"]["timezone"]) for schedule in nightly["schedules"]] == [
            ("nightly", "UTC")
        ]
        chosen = {
            "deployments": {"id": {"any_": [nightly["id"]]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        }
        runs = wait_for("a scheduled run", lambda: api.post("flow_runs/filter", json=chosen).json())
        assert all(run["expected_start_time"][11:16] == "03:30" for run in runs)


def test_nights_do_not_overlap_and_gpu_work_queues(stack: local.Stack) -> None:
    """A second night at once is cancelled, a second fine-tuning waits: as the deployments say."""
    with prefect_ui.api(stack) as api:
        for name, strategy in (("retrain/nightly", "CANCEL_NEW"), ("fine-tune/gpu", "ENQUEUE")):
            deployment = api.get(f"deployments/name/{name}").json()
            assert deployment["global_concurrency_limit"]["limit"] == 1
            assert deployment["concurrency_options"]["collision_strategy"] == strategy


@pytest.mark.slow
def test_a_killed_stack_leaves_nothing_and_starts_again(tmp_path: Path) -> None:
    """After kill -9 in the middle of a run all processes end, and nothing is in the way of a new start.

    The interrupted run is concluded, so that the only place of its deployment is free; addresses and password stay.
    """
    state = tmp_path / "a state"
    owner = subprocess.Popen([sys.executable, "-c", _OWNER, str(state), str(PROBE)], cwd=local.ROOT)
    try:
        stack = wait_for("the stack", lambda: local.find(state))
        with prefect_ui.api(stack) as api:
            interrupted = _run(api, "probe/cpu", 600)
            wait_for("the run", lambda: _state(api, interrupted) == "RUNNING")
            wait_for("the run's own child", lambda: len(guard.marked(stack.mark)) >= 6)
        owner.kill()
        owner.wait()
        wait_for("the processes to end", lambda: not guard.marked(f"{state.resolve()}:"))
    finally:
        owner.kill()
        owner.wait()
    assert local.find(state) is None
    with local.running(state, deployments=PROBE) as again:
        assert (again.api_url, again.s3_endpoint) == (stack.api_url, stack.s3_endpoint)
        with prefect_ui.api(again) as api:
            assert _state(api, interrupted) == "CRASHED"
            for deployment in ("probe/cpu", "probe/gpu"):
                following = _run(api, deployment, 0)
                wait_for(
                    "the next run", lambda run=following: _state(api, run) not in {"SCHEDULED", "PENDING", "RUNNING"}
                )
                assert _state(api, following) == "COMPLETED"
    assert guard.marked(f"{state.resolve()}:") == []


def _run(api: httpx.Client, deployment: str, seconds: float) -> str:
    found = api.get(f"deployments/name/{deployment}").json()
    created = api.post(f"deployments/{found['id']}/create_flow_run", json={"parameters": {"seconds": seconds}})
    return str(created.raise_for_status().json()["id"])


def _state(api: httpx.Client, run: str) -> str:
    return str(api.get(f"flow_runs/{run}").raise_for_status().json()["state_type"])
