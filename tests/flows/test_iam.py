"""The policies of `deployments/iam/`, enforced by a real server: each role does its own work, and nothing else.

SeaweedFS reads the same policy documents as AWS (allow, deny, wildcards in resources, the condition on `s3:prefix`),
so what is tried here are the files themselves, with bucket and prefix filled in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import boto3
import pytest
from botocore.exceptions import ClientError

from deployments.stack import local, seaweedfs
from flows.retrain import retrain
from tasks import registry
from tasks.intake import quarantined, take_in
from tasks.storage import Store
from tests.flows.nights import FAST, fill
from tests.models import published

POLICIES: Final = Path(__file__).parents[2] / "deployments" / "iam"
ROLES: Final = ("trainer", "labeller", "consumer")
PREFIX: Final = "search"
OTHERS: Final = "searching"
"""Another team's prefix in the same bucket, which begins with the same letters."""


def _policy(role: str) -> str:
    return (POLICIES / f"{role}.json").read_text().replace("BUCKET", "ratchet").replace("PREFIX", PREFIX)


def _identity(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "credentials": [{"accessKey": f"key-{name}", "secretKey": f"secret-{name}"}], **more}


def _settings(server: seaweedfs.S3Server, role: str) -> dict[str, str]:
    """What a process of this role has in its environment."""
    return {
        **server.environment(),
        "AWS_ACCESS_KEY_ID": f"key-{role}",
        "AWS_SECRET_ACCESS_KEY": f"secret-{role}",
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweedfs.S3Server]:
    """A server that knows an owner and the three roles."""
    folder = tmp_path_factory.mktemp("iam")
    config = {
        "identities": [
            _identity("owner", actions=["Admin", "Read", "Write", "List", "Tagging"]),
            *(_identity(role, actions=[], policyNames=[role]) for role in ROLES),
        ],
        "policies": [{"name": role, "content": _policy(role)} for role in ROLES],
    }
    (folder / "s3.json").write_text(json.dumps(config))
    with seaweedfs.running(folder) as running:
        yield running


@pytest.fixture(scope="module")
def roles(server: seaweedfs.S3Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """The store as each role sees it, with something of every kind in it."""
    stores = {
        role: Store(
            f"s3://ratchet/{PREFIX}",
            boto3.client(
                "s3",
                endpoint_url=server.endpoint,
                aws_access_key_id=f"key-{role}",
                aws_secret_access_key=f"secret-{role}",
                region_name="us-east-1",
            ),
        )
        for role in ("owner", *ROLES)
    }
    owner = stores["owner"]
    owner.create_bucket()
    owner.put("pairs/a.jsonl", b'{"query": "how", "document": "so"}\n{"query": ""}\n')
    owner.put("golden/a.jsonl", b'{"query": "why", "document": "because"}\n')
    Store(f"s3://ratchet/{OTHERS}", owner._client).put("pairs/a.jsonl", b"not yours")
    take_in(owner, writer="first")
    version = published(owner, tmp_path_factory.mktemp("model"), b"first")
    registry.promote(owner, version, None, run_id="first", who="owner", reason="first", scores={})
    owner.put("runs/first/outcome.json", b"{}")
    owner.put("cache/vectors/a", b"vectors")
    return stores


@contextmanager
def _refused() -> Iterator[None]:
    """What is tried is refused by the server, and not for another reason."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 # the store wraps some refusals, boto3 the others
        yield
    chain: BaseException | None = caught.value
    while chain is not None and not isinstance(chain, ClientError):
        chain = chain.__cause__
    assert isinstance(chain, ClientError), caught.value
    assert chain.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def _keys(store: Store) -> set[str]:
    return {entry.key for entry in store.entries("")}


FOREIGN_TO_LABELLERS = (
    "production.json",
    "split.json",
    "log/000000000001.json",
    "batches/x.parquet",
    "models/x/manifest.json",
    "promotions/000000000002.json",
    "runs/x/outcome.json",
    "cache/x",
    "quarantine/000000000001.jsonl",
)


@pytest.mark.parametrize("key", FOREIGN_TO_LABELLERS)
def test_labellers_change_nothing_but_labels(roles: dict[str, Store], key: str) -> None:
    """Neither made nor replaced nor deleted: above all production.json, which stays the same bytes."""
    before = roles["owner"].get("production.json").body
    for write in (
        lambda: roles["labeller"].put(key, b"{}"),
        lambda: roles["labeller"].put_if_absent(key, b"{}"),
        lambda: roles["labeller"]._client.delete_object(Bucket="ratchet", Key=f"{PREFIX}/{key}"),
        lambda: roles["labeller"]._client.create_multipart_upload(Bucket="ratchet", Key=f"{PREFIX}/{key}"),
    ):
        with _refused():
            write()
    assert roles["owner"].get("production.json").body == before


def test_labellers_upload_correct_and_see_what_was_rejected(roles: dict[str, Store]) -> None:
    """A corrected file replaces the one before; the rows that were rejected are there to read."""
    labeller = roles["labeller"]
    labeller.put("pairs/dt=2026-11-24/b.jsonl", b'{"query": "where"}\n')
    labeller.put("pairs/dt=2026-11-24/b.jsonl", b'{"query": "where", "document": "there"}\n')
    labeller.put("golden/b.jsonl", b'{"query": "who", "document": "they"}\n')
    assert {entry.key for entry in labeller.entries("pairs/")} >= {"pairs/a.jsonl", "pairs/dt=2026-11-24/b.jsonl"}
    (rejected,) = labeller.entries("quarantine/")
    assert b'"line":2' in labeller.get(rejected.key).body
    for read in (lambda: labeller.get("production.json"), lambda: _keys(labeller)):
        with _refused():
            read()
    with _refused():  # a deleted label could not be told from one that never was
        labeller._client.delete_object(Bucket="ratchet", Key=f"{PREFIX}/pairs/a.jsonl")


@pytest.mark.parametrize("key", ["pairs/a.jsonl", "golden/a.jsonl", *FOREIGN_TO_LABELLERS])
def test_consumers_change_nothing(roles: dict[str, Store], key: str) -> None:
    """A service that searches can neither poison what is trained on nor move production."""
    for write in (
        lambda: roles["consumer"].put(key, b"{}"),
        lambda: roles["consumer"]._client.delete_object(Bucket="ratchet", Key=f"{PREFIX}/{key}"),
    ):
        with _refused():
            write()


def test_consumers_fetch_what_serves_and_see_no_data(roles: dict[str, Store], tmp_path: Path) -> None:
    """Production's verified files, and no label, no run, no quarantine."""
    folder = registry.pull_production(roles["consumer"], tmp_path / "model")
    assert (folder / "model.safetensors").read_bytes() == b"first"
    for key in ("pairs/a.jsonl", "runs/first/outcome.json", "log/000000000001.json"):
        with _refused():
            roles["consumer"].get(key)
    with _refused():
        list(roles["consumer"].entries("pairs/"))


@pytest.mark.parametrize("folder", ["pairs", "golden", "corpus"])
def test_the_trainer_never_touches_labels(roles: dict[str, Store], folder: str) -> None:
    """A training job that was taken over can't plant labels, nor remove those that would unmask it."""
    for write in (
        lambda: roles["trainer"].put(f"{folder}/a.jsonl", b"{}"),
        lambda: roles["trainer"]._client.delete_object(Bucket="ratchet", Key=f"{PREFIX}/{folder}/a.jsonl"),
    ):
        with _refused():
            write()


@pytest.mark.parametrize("key", ["production.json", "promotions/000000000001.json", "log/000000000001.json"])
def test_the_trainer_deletes_no_record(roles: dict[str, Store], key: str) -> None:
    """What says which model served when, and which rows were taken in, only grows."""
    with _refused():
        roles["trainer"]._client.delete_object(Bucket="ratchet", Key=f"{PREFIX}/{key}")


@pytest.mark.parametrize("role", ROLES)
def test_no_role_sees_the_neighbours(roles: dict[str, Store], role: str) -> None:
    """A prefix that begins like ours is another's."""
    neighbours = Store(f"s3://ratchet/{OTHERS}", roles[role]._client)
    with _refused():
        neighbours.get("pairs/a.jsonl")
    if role != "trainer":  # it may list the bucket: without that S3 answers 403, not 404, for a key that is missing
        with _refused():
            list(neighbours.entries("pairs/"))


def test_the_doctor_tells_rights_that_no_night_needs(roles: dict[str, Store]) -> None:
    """The trainer's are just enough; the owner's and, of what it may, the labeller's are named; nothing is changed."""
    before = _keys(roles["owner"])
    assert roles["trainer"].excess() == []
    assert roles["labeller"].excess() == ["write to pairs/", "write to golden/", "write to corpus/"]
    assert roles["consumer"].excess() == []
    owners = roles["owner"].excess()
    assert {"write to pairs/", "remove from log/", "remove from promotions/"} <= set(owners)
    assert {"read outside the prefix", "write outside the prefix"} <= set(owners)
    assert _keys(roles["owner"]) == before


def test_the_trainer_does_everything_a_night_writes(roles: dict[str, Store], tmp_path: Path) -> None:
    """Intake, checkpoints, publishing, promotion, rollback, retention, and the probe of conditional writes."""
    trainer = roles["trainer"]
    assert trainer.probe() == []
    take_in(trainer, writer="second")
    assert list(quarantined(trainer))
    checkpoint = "runs/second/checkpoints/000000000001-x.safetensors"
    trainer.put(checkpoint, b"")
    trainer.delete([checkpoint])
    assert not list(trainer.entries("runs/second/checkpoints/"))
    before = registry.read_production(trainer)
    assert before is not None
    version = published(trainer, tmp_path / "model", b"second")
    change = registry.promote(trainer, version, before.etag, run_id="second", who="t", reason="better", scores={})
    assert change.version == version
    assert registry.rollback(trainer, run_id="third", who="t", reason="worse").version == before.version


@pytest.mark.slow
@pytest.mark.stack
@pytest.mark.timeout(900)
def test_the_trainer_runs_a_night(
    server: seaweedfs.S3Server, roles: dict[str, Store], on_stack: local.Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole one, with the real model, and one that is skipped: from intake to promotion on the trainer's keys."""
    owner = roles["owner"]
    for key in _keys(owner):
        owner.delete([key])
    fill(owner)
    for name, value in _settings(server, "trainer").items():
        monkeypatch.setenv(name, value)
    outcome = retrain(store=owner.url, training=FAST)
    assert outcome.verdict == "promoted", outcome.reasons
    assert json.loads(owner.get("production.json").body)["version"] == outcome.production_after
    assert retrain(store=owner.url, training=FAST).verdict == "skipped"
