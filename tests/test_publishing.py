"""What serves, made known to a real MLflow server and to a stub of a hub; and what is left alone when that fails."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import to_json
from typer.testing import CliRunner

from deployments.cli import app, versions
from deployments.cli.common import CliError, UsageError
from tasks import registry, runs
from tasks.config import Approval, Delta, Gate, Model, Outcome, Training
from tasks.publishing import Result, Targets, publish
from tasks.records import Settings
from tasks.runs import Run
from tasks.storage import Store
from tests import hub, mlflow_server
from tests.http_servers import serving
from tests.models import published

HUB = Targets(huggingface="team/search")
MLFLOW = Targets(mlflow="search")


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server."""
    with mlflow_server.running(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture
def a_hub() -> Iterator[hub.Hub]:
    """A stub of a hub."""
    with hub.running() as running:
        yield running


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "NO_PROXY": "127.0.0.1", **more}


def _at(found: hub.Hub, token: str = hub.TOKEN) -> dict[str, str]:
    return _environment(HF_ENDPOINT=found.url, HF_TOKEN=token)


def _run_id(number: int) -> str:
    return f"2026112{number}T033000Z-0000000{number}"


def _promote(store: Store, folder: Path, number: int) -> str:
    """A night that promotes a version with the weights `number`, and all that it leaves in its folder."""
    version = published(store, folder / str(number), b"weights %d" % number)
    run = Run(store, _run_id(number))
    run.once(runs.SETTINGS, lambda: Settings(training=Training(epochs=number), gate=Gate()))
    run.put(runs.REPORT, b"<html>report %d</html>" % number)
    scores = {"recall_at_10": 0.9, "mrr": 0.7 + number / 100}
    run.put_outcome(
        Outcome(
            run_id=run.run_id,
            verdict="promoted",
            reasons=["better"],
            commit=number,
            counts={"train": 100},
            candidate=Model(version=version, scores=scores),
            production=Model(version=None, scores={"mrr": 0.5}),
            deltas={"mrr": Delta(value=0.2, low=0.1, high=0.3, confidence=0.99)},
        )
    )
    before = registry.read_production(store)
    registry.promote(
        store,
        version,
        before.etag if before else None,
        run_id=run.run_id,
        who="night",
        reason=f"reason {number}",
        scores=scores,
        approval=Approval(answer="approved", by="Ada", at=registry.store_time(store)),
    )
    return version


def _publish(store: Store, targets: Targets, environment: dict[str, str], **more: Any) -> Result:
    (result,) = publish(store, targets, environment=environment, **more)
    return result


def _served(store: Store) -> dict[str, bytes]:
    """The bytes of what decides: the pointer, the ledger, the outcomes."""
    keys = [entry.key for entry in store.entries("") if entry.key.startswith(("production", "promotions/"))]
    keys += [entry.key for entry in store.entries("runs/") if entry.key.endswith("outcome.json")]
    return {key: store.get(key).body for key in keys}


# --- MLflow ----------------------------------------------------------------------------------------------


def test_a_version_and_a_rollback_arrive_in_mlflow(store: Store, tmp_path: Path, mlflow: str) -> None:
    """Two promotions, a rollback to the first, then to the base model: the alias follows, with all that is known."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow, registry_uri=mlflow)
    environment = _environment(MLFLOW_TRACKING_URI=mlflow)
    first = _promote(store, tmp_path, 1)
    assert _publish(store, MLFLOW, environment).where == "models:/search/1"
    second = _promote(store, tmp_path, 2)
    assert _publish(store, MLFLOW, environment).where == "models:/search/2"

    serving = client.get_model_version_by_alias("search", "production")
    assert (serving.version, serving.tags["ratchet.version"]) == ("2", second)
    assert serving.tags["ratchet.approved_by"] == "Ada"
    run = client.get_run(str(serving.run_id))
    assert run.data.metrics == pytest.approx(
        {
            "recall_at_10": 0.9, "mrr": 0.72, "before.mrr": 0.5,
            "gain.mrr": 0.2, "gain.mrr.low": 0.1, "gain.mrr.high": 0.3,
        }
    )  # fmt: skip
    assert (run.data.params["training.epochs"], run.data.params["counts.train"]) == ("2", "100")
    assert run.data.tags["ratchet.run_id"] == _run_id(2)
    folder = Path(client.download_artifacts(str(serving.run_id), "", str(tmp_path)))
    assert (folder / "report.html").read_bytes() == b"<html>report 2</html>"
    assert (folder / "model" / "model.safetensors").read_bytes() == b"weights 2"
    assert (folder / "model" / "manifest.json").read_bytes() == store.get(f"models/{second}/manifest.json").body

    registry.rollback(store, first, run_id="20261130T000000Z-0000000a", who="a person", reason="worse for us")
    assert _publish(store, MLFLOW, environment).where == "models:/search/1"
    assert client.get_model_version_by_alias("search", "production").version == "1"
    registry.rollback(store, registry.BASE, run_id="20261130T000000Z-0000000b", who="a person", reason="worse still")
    assert "the base model serves" in _publish(store, MLFLOW, environment).where
    assert client.get_registered_model("search").aliases == {}
    assert len(client.search_model_versions("name = 'search'")) == 2


def test_publishing_again_makes_no_second_version(store: Store, tmp_path: Path, mlflow: str) -> None:
    """A second call asks nothing; by hand all is found there; an interrupted try is gone on with."""
    from mlflow import MlflowClient

    targets = Targets(mlflow="it's again")
    client = MlflowClient(tracking_uri=mlflow, registry_uri=mlflow)
    environment = _environment(MLFLOW_TRACKING_URI=mlflow)
    version = _promote(store, tmp_path, 3)  # no other test publishes this one
    experiment = client.create_experiment(targets.mlflow)
    interrupted = client.create_run(experiment, tags={"ratchet.version": version})  # and there the process died
    result = _publish(store, targets, environment)
    assert (result.error, result.before) == ("", False)
    assert _publish(store, targets, _environment(MLFLOW_TRACKING_URI="http://127.0.0.1:9")).before  # nothing is asked
    again = _publish(store, targets, environment, again=True)
    assert (again.where, again.before) == (result.where, False)
    # two that did not see each other, as when two publish at once: the first version counts, for both
    source, run_id = f"{interrupted.info.artifact_uri}/model", interrupted.info.run_id
    client.create_model_version(targets.mlflow, source, run_id, tags={"ratchet.version": version})
    assert _publish(store, targets, environment, again=True).where == result.where
    (only,) = client.search_model_versions(f"tag.`ratchet.version` = '{version}'")
    (run,) = client.search_runs([experiment])
    assert only.run_id == run.info.run_id == interrupted.info.run_id
    assert run.data.metrics["mrr"] == pytest.approx(0.73)


# --- Hugging Face ----------------------------------------------------------------------------------------


def test_a_version_and_a_rollback_arrive_at_the_hub(store: Store, tmp_path: Path, a_hub: hub.Hub) -> None:
    """One commit each with exactly the verified files, a tag with the version's name, a new repository private."""
    first = _promote(store, tmp_path, 1)
    result = _publish(store, HUB, _at(a_hub))
    assert result.error == ""
    repository = a_hub.repositories["team/search"]
    assert repository.private
    files = {e.key.removeprefix(f"models/{first}/"): store.get(e.key).body for e in store.entries(f"models/{first}/")}
    assert repository.files == files
    assert {"README.md", "manifest.json", "model.safetensors"} <= set(files)
    assert result.where == f"team/search@{repository.head}"
    assert repository.tags == {first: repository.head}

    repository.commits[-1] = {**repository.files, "old.bin": b"pickle", ".gitattributes": b"*.safetensors filter=lfs"}
    second = _promote(store, tmp_path, 2)
    assert _publish(store, HUB, _at(a_hub)).error == ""
    assert repository.files == {
        **files,
        "model.safetensors": b"weights 2",
        ".gitattributes": b"*.safetensors filter=lfs",
    } | {"manifest.json": store.get(f"models/{second}/manifest.json").body}
    assert set(repository.tags) == {first, second}

    registry.rollback(store, first, run_id="20261130T000000Z-0000000a", who="a person", reason="worse for us")
    assert _publish(store, HUB, _at(a_hub)).error == ""
    assert repository.files["model.safetensors"] == b"weights 1"
    assert repository.messages[-1] == f"Version {first}: rollback 3"
    count = len(repository.commits)
    registry.rollback(store, registry.BASE, run_id="20261130T000000Z-0000000b", who="a person", reason="worse still")
    assert "stays as it is" in _publish(store, HUB, _at(a_hub)).where
    assert len(repository.commits) == count


def test_publishing_again_makes_no_second_commit(store: Store, tmp_path: Path, a_hub: hub.Hub) -> None:
    """A second call asks nothing; by hand it finds that all is there."""
    _promote(store, tmp_path, 1)
    first = _publish(store, HUB, _at(a_hub))
    asked = len(a_hub.asked)
    assert _publish(store, HUB, _at(a_hub)).before
    assert len(a_hub.asked) == asked
    assert _publish(store, HUB, _at(a_hub), again=True).where == first.where
    assert len(a_hub.repositories["team/search"].commits) == 2  # the hub's own first one, and ours


# --- what may go wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "settings", "words"),
    [
        (MLFLOW, {"MLFLOW_TRACKING_URI": "http://user:hunter22@127.0.0.1:9"}, "is MLFLOW_TRACKING_URI right"),
        (MLFLOW, {"MLFLOW_TRACKING_URI": "http://user:p@hunter22@127.0.0.1:9"}, "is MLFLOW_TRACKING_URI right"),
        (MLFLOW, {"MLFLOW_TRACKING_URI": ""}, "MLFLOW_TRACKING_URI must be the address of an MLflow server"),
        (MLFLOW, {"MLFLOW_TRACKING_URI": "sqlite:///x.db"}, "MLFLOW_TRACKING_URI must be the address"),
        (HUB, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hunter22"}, "is HF_ENDPOINT right"),
        (HUB, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": ""}, "HF_TOKEN is not set"),
    ],
)
def test_a_registry_that_is_away_costs_an_error_and_nothing_else(
    store: Store, tmp_path: Path, targets: Targets, settings: dict[str, str], words: str
) -> None:
    """The error says what, without a secret; pointer, ledger and outcome keep their bytes, and nothing is noted."""
    _promote(store, tmp_path, 1)
    before = _served(store)
    result = _publish(store, targets, _environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="0", **settings))
    assert words in result.error
    assert "hunter22" not in result.error
    assert _served(store) == before
    assert not [entry.key for entry in store.entries("runs/") if "published-" in entry.key]


@pytest.mark.parametrize(
    ("part", "status", "remedy"),
    [
        ("/api/repos/create", 401, "HF_TOKEN must be valid, and allowed to write to team/search"),
        ("/commit/main", 403, "HF_TOKEN must be valid, and allowed to write to team/search"),  # a protected branch
        ("/commit/main", 409, "the next run tries again"),
        ("/objects/batch", 429, "the next run tries again"),  # after an hour, it says
        ("/tag/", 500, "the next run tries again"),
        ("/preupload/", 404, "is HF_ENDPOINT right, and its server up?"),
        (
            "/api/repos/create",
            200,
            "is HF_ENDPOINT right, and its server up?",
        ),  # and says nothing that a hub would
    ],
)
def test_a_hub_that_refuses_is_told_with_a_remedy(
    store: Store, tmp_path: Path, a_hub: hub.Hub, part: str, status: int, remedy: str
) -> None:
    """Its answer repeats the token, which is not told; the next try publishes, with one commit."""
    _promote(store, tmp_path, 1)
    before = _served(store)
    a_hub.refused = part, status
    refused = _publish(store, HUB, _at(a_hub), seconds=6 if status == 429 else 60)
    assert refused.error.endswith(f"; {remedy}")
    assert hub.TOKEN not in refused.error
    assert _served(store) == before
    a_hub.refused = "", 0
    assert _publish(store, HUB, _at(a_hub)).error == ""
    assert len(a_hub.repositories["team/search"].commits) == 2


@pytest.mark.parametrize(
    ("status", "headers", "remedy"),
    [
        (401, {}, "MLFLOW_TRACKING_TOKEN must be valid, and allowed to write to search"),
        (429, {"Retry-After": "3600"}, "the next run tries again"),
        (302, {"Location": "http://169.254.169.254/"}, "is MLFLOW_TRACKING_URI right, and its server up?"),
    ],
)
def test_an_mlflow_server_that_refuses_is_told_with_a_remedy(
    store: Store, tmp_path: Path, status: int, headers: dict[str, str], remedy: str
) -> None:
    """It is not waited for as long as it wishes, and not followed to where it points."""
    _promote(store, tmp_path, 1)

    class Refuses(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    settings = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.server_port}", "MLFLOW_TRACKING_TOKEN": "hunter22"}
    with serving(server):
        refused = _publish(store, MLFLOW, _environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", **settings))
    assert refused.error.endswith(f"; {remedy}")
    assert "hunter22" not in refused.error


def test_a_registry_that_never_answers_is_left_in_time(store: Store, tmp_path: Path) -> None:
    """It takes the connection and says nothing: the process that waits is ended."""
    _promote(store, tmp_path, 1)
    before = _served(store)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        result = _publish(store, HUB, _environment(HF_ENDPOINT=url, HF_TOKEN="x" * 9), seconds=3)
    assert result.error == "it was not done within 3 s; last: no message; the next run tries again"
    assert _served(store) == before


def test_a_damaged_version_is_not_published(store: Store, tmp_path: Path, a_hub: hub.Hub) -> None:
    """What does not verify leaves the store by no door, and that is told like any other failure."""
    version = _promote(store, tmp_path, 1)
    store.put(f"models/{version}/model.safetensors", b"Weights 1")
    assert "another sha256" in _publish(store, HUB, _at(a_hub)).error
    assert a_hub.asked == []


def test_a_change_that_comes_meanwhile_is_published_after_it(
    store: Store, tmp_path: Path, a_hub: hub.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second promotion while the first is on its way: what the hub has in the end is what serves."""
    _promote(store, tmp_path, 1)
    read, meanwhile = registry.read_production, [2]
    versions: list[str] = []

    def later(of: Store) -> registry.Production | None:
        found = read(of)
        if meanwhile:
            versions.append(_promote(store, tmp_path, meanwhile.pop()))
        return found

    monkeypatch.setattr(registry, "read_production", later)
    result = _publish(store, HUB, _at(a_hub))
    assert [result.promotion, result.version] == [2, *versions]
    assert a_hub.repositories["team/search"].files["model.safetensors"] == b"weights 2"
    note = Run(store, _run_id(2)).read(runs.PUBLISHED_HUGGINGFACE)
    assert to_json(asdict(note)) == store.get(f"runs/{_run_id(2)}/published-huggingface.json").body


def test_nothing_is_published_where_nothing_serves(store: Store, a_hub: hub.Hub) -> None:
    """An empty store, and no target."""
    assert list(publish(store, HUB, environment=_at(a_hub))) == []
    assert list(publish(store, Targets(), environment={})) == []
    assert a_hub.asked == []


def _command(store: Store, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    with CliRunner().isolation() as (out, _, _), monkeypatch.context() as patch:
        patch.setattr(versions.console, "_file", None)
        app([*arguments, "--store", store.url], standalone_mode=False)
        return out.getvalue().decode()


def test_the_commands_publish(store: Store, tmp_path: Path, a_hub: hub.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ratchet rollback` does so too, and goes through where the hub is away; then `ratchet publish` says why."""
    with pytest.raises(UsageError, match="nowhere to publish"):
        _command(store, monkeypatch, "publish")
    settings = {"RATCHET_HF_REPO": "team/search", "HF_ENDPOINT": a_hub.url, "HF_TOKEN": hub.TOKEN}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert "there is nothing to publish" in _command(store, monkeypatch, "publish")
    first, second = _promote(store, tmp_path, 1), _promote(store, tmp_path, 2)
    said = _command(store, monkeypatch, "publish")
    assert f"huggingface: version {second} is team/search@" in said
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    said = _command(store, monkeypatch, "rollback", "--reason", "odd results")
    assert f"version {first} serves again" in said
    assert f"huggingface: version {first} not published: ConnectError" in said
    assert "`ratchet publish`" in said
    with pytest.raises(CliError, match="not everything was published"):
        _command(store, monkeypatch, "publish")
