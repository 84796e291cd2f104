"""The policies of `deployments/iam/`, enforced by a real server: each role does its own work, and nothing else.

SeaweedFS reads the same policy documents as AWS (allow, deny, wildcards in resources, the condition on `s3:prefix`),
so what is tried here are the files themselves, with bucket and prefix filled in.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import boto3
import pytest
from botocore.exceptions import ClientError

from deployments import access, doctor
from deployments.places import ROOT
from deployments.stack import local, seaweedfs
from flows.retrain import retrain
from tasks import approval, registry
from tasks.config import Watch
from tasks.intake import quarantined, take_in
from tasks.registry.retention import retire
from tasks.scoring import serving
from tasks.storage import Store
from tasks.watch import fresh
from tests import tiny_models
from tests.flows.nights import FAST, fill
from tests.models import published

ROLES: Final = access.ROLES
PREFIX: Final = "search"
OTHERS: Final = "searching"
"""Another team's prefix in the same bucket, which begins with the same letters."""


def _policy(role: str) -> str:
    return (access.POLICIES / f"{role}.json").read_text().replace("BUCKET", "ratchet").replace("PREFIX", PREFIX)


def _identity(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "credentials": [{"accessKey": f"key-{name}", "secretKey": f"secret-{name}"}], **more}


def _settings(server: seaweedfs.S3Server, role: str) -> dict[str, str]:
    """What a process of this role has in its environment."""
    return {
        **server.environment(),
        "AWS_ACCESS_KEY_ID": f"key-{role}",
        "AWS_SECRET_ACCESS_KEY": f"secret-{role}",
    }


def _client(server: seaweedfs.S3Server, role: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=f"key-{role}",
        aws_secret_access_key=f"secret-{role}",
        region_name="us-east-1",
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model."""
    return tiny_models.save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweedfs.S3Server]:
    """A server that knows an owner and the roles."""
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
            _client(server, role),
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
    owner.put("cache/probe/a", b"left over")
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
    "golden/b.jsonl",
    "guard/scifact/queries.jsonl",
    "documents/a.jsonl",
    "watch/x/000000000001.json",
    "releases/000000000001-x.json",
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
    assert {entry.key for entry in labeller.entries("pairs/")} >= {"pairs/a.jsonl", "pairs/dt=2026-11-24/b.jsonl"}
    (rejected,) = labeller.entries("quarantine/")
    assert b'"line":2' in labeller.get(rejected.key).body
    for read in (
        lambda: labeller.get("production.json"),
        lambda: labeller.get("golden/a.jsonl"),
        lambda: _keys(labeller),
    ):
        with _refused():
            read()
    with _refused():  # a deleted label could not be told from one that never was
        labeller._client.delete_object(Bucket="ratchet", Key=f"{PREFIX}/pairs/a.jsonl")


def test_curators_write_what_is_tested_on_and_nothing_else(roles: dict[str, Store]) -> None:
    """Golden pairs, guard sets and documents; neither labels nor anything that a night has written."""
    curator = roles["curator"]
    for key in ("golden/b.jsonl", "guard/scifact/queries.jsonl", "documents/a.jsonl"):
        curator.put(key, b"{}")
        assert curator.get(key).body == b"{}"
    for key in ("pairs/a.jsonl", "corpus/a.jsonl", "production.json", "promotions/000000000002.json", "log/x.json"):
        with _refused():
            curator.put(key, b"{}")
    for key in ("golden/b.jsonl", "guard/scifact/queries.jsonl", "documents/a.jsonl"):
        roles["owner"].delete([key])


def test_approvers_answer_once_and_change_nothing_else(roles: dict[str, Store]) -> None:
    """They read what a night found, answer for one that waits, and move neither labels nor production."""
    approver, run = roles["approver"], "20261128T033000Z-0123abcd"
    with pytest.raises(approval.ApprovalError, match="there is no run"):
        approval.answer(approver, run, "approved", by="Ada")
    approval.ask(roles["trainer"], run, "candidate", 1.0)
    given = approval.answer(approver, run, "approved", by="Ada")
    assert approval.find(roles["trainer"], run) == given
    with pytest.raises(approval.ApprovalError, match="has its answer already"):
        approval.answer(approver, run, "rejected", by="Ada")
    for key in ("pairs/a.jsonl", "production.json", f"runs/{run}/outcome.json", "log/x.json", "models/x/manifest.json"):
        with _refused():
            approver.put(key, b"{}")
    for key in ("pairs/a.jsonl", "log/000000000001.json"):
        with _refused():
            approver.get(key)


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


@pytest.mark.parametrize("folder", ["pairs", "golden", "corpus", "guard", "documents"])
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
    if role not in {
        "trainer",
        "eraser",
    }:  # they may list it all: without that S3 answers 403, not 404, for a key that is missing
        with _refused():
            list(neighbours.entries("pairs/"))


def test_the_doctor_tells_rights_that_no_night_needs(roles: dict[str, Store]) -> None:
    """The trainer's are exactly those of the table; the owner's and the others' are named; nothing is changed."""
    before = _keys(roles["owner"])
    assert (access.lacking(roles["trainer"]), access.excess(roles["trainer"])) == ([], [])
    assert access.excess(roles["labeller"]) == ["write to pairs/", "write to corpus/"]
    assert access.excess(roles["curator"]) == ["write to golden/", "write to guard/", "write to documents/"]
    assert access.excess(roles["consumer"]) == []
    assert {"write watch/*", "write log/*", "delete cache/*", "read pairs/*"} <= set(access.lacking(roles["consumer"]))
    owners = access.excess(roles["owner"])
    assert {"write to pairs/", "remove from log/", "remove from promotions/"} <= set(owners)
    assert {"read outside the prefix", "write outside the prefix"} <= set(owners)
    assert access.lacking(roles["owner"]) == []
    assert _keys(roles["owner"]) == before


def test_the_doctor_tells_a_right_that_is_missing(roles: dict[str, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each right of the table by itself: a policy without `watch/*` was called ok, and failed when there was news."""
    trainer = roles["trainer"]
    for refused in (*access.writable("trainer"), "production.json"):
        key = refused.replace("*", access._PROBE)
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "may_write", lambda probed, refused=key, **_: probed != refused)
            patch.setattr(trainer, "may_upload", lambda probed, refused=key: probed != refused)
            assert access.lacking(trainer) == [f"write {refused}"]
            (finding,) = [one for one in [doctor._rights(trainer)] if not one.sound]
            assert f"may not write {refused}" in finding.text


def test_the_trainer_watches_what_serves(roles: dict[str, Store], model: Path, tmp_path: Path) -> None:
    """A window is written, and that its alert was sent: the watch fails for want of rights just when there is news."""
    trainer, owner = roles["trainer"], roles["owner"]

    def pairs(first: int) -> bytes:
        rows = ({"query": f"where is part {i}", "document": f"shelf {i}"} for i in range(first, first + 30))
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)

    owner.delete(["production.json", *(entry.key for entry in owner.entries("promotions/"))])  # no model that loads
    run = "20261101T033000Z-00000000"
    owner.put("pairs/watch.jsonl", pairs(0))
    commit = take_in(trainer, writer=run).commit
    trainer.put(f"runs/{run}/intake.json", json.dumps({"commit": commit}).encode())
    version = registry.publish(trainer, model, serving.describe(model, ()))
    scores = {"recall_at_10": 1.0, "mrr": 1.0}
    registry.promote(trainer, version, None, run_id=run, who="t", reason="t", scores=scores)
    owner.put("pairs/fresh.jsonl", pairs(1_000))
    seen = fresh.look(trainer, "watch", fresh.take_in(trainer, "watch"), Watch(min_queries=10), tmp_path)
    assert len(seen.windows) == 1
    assert [entry.key for entry in owner.entries(f"watch/{version}/")]
    assert trainer.put_if_absent("watch/told/test.json", b"{}") is not None


def test_retention_deletes_on_the_trainers_keys(roles: dict[str, Store], tmp_path: Path) -> None:
    """Candidates that never served go; what serves stays, whole."""
    trainer = roles["trainer"]
    gone = [published(trainer, tmp_path / f"{i}", b"candidate %d" % i) for i in range(3)]
    retired = retire(trainer, keep=1, ledger_entries=2, now=datetime.now(UTC) + timedelta(days=2))
    assert len(set(gone) & set(retired)) >= 2
    serves = registry.read_production(trainer)
    assert serves is not None
    assert registry.verify(roles["owner"], serves.version)


def test_the_consumers_example_follows_every_promotion(roles: dict[str, Store], tmp_path: Path) -> None:
    """`docs/examples/rebuild_index.py` on the consumer's keys: built, up to date, and built anew by the ledger."""
    spec = importlib.util.spec_from_file_location("rebuild_index", ROOT / "docs" / "examples" / "rebuild_index.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    trainer = roles["trainer"]

    def promoted(architecture: tiny_models.Architecture) -> str:
        folder = tiny_models.save(tmp_path / architecture, architecture)
        version = registry.publish(trainer, folder, serving.describe(folder, ()))
        serves = registry.read_production(trainer)
        registry.promote(
            trainer, version, serves.etag if serves else None, run_id=architecture, who="t", reason="t", scores={}
        )
        return version

    for architecture in ("bert", "distilbert"):
        version = promoted(architecture)  # type: ignore[arg-type] # two of the literals
        assert example.rebuild(roles["consumer"], ["iron", "copper"], tmp_path / "index")
        assert json.loads((tmp_path / "index" / "index.json").read_text())["version"] == version
        assert not example.rebuild(roles["consumer"], ["iron", "copper"], tmp_path / "index")


def test_the_bucket_policy_refuses_only_what_the_code_never_does(server: seaweedfs.S3Server, tmp_path: Path) -> None:
    """Every write of intake, publishing, promotion, rollback and retention carries the condition that it asks for.

    The server here does not know the condition keys, so the policy is read by the few lines of `_denied`.
    """
    policy = json.loads((access.POLICIES / f"{access.APPEND_ONLY}.json").read_text().replace("PREFIX", "policy"))
    store = Store("s3://ratchet/policy", _client(server, "owner"))
    writes: list[tuple[str, set[str]]] = []

    def note(params: dict[str, Any], model: Any, **_: Any) -> None:
        headers = {name.lower() for name in params["headers"]} & {"if-match", "if-none-match"}
        writes.append((f"policy/{params['url_path'].split('/policy/')[1]}", headers))

    for operation in ("PutObject", "CompleteMultipartUpload"):
        store._client.meta.events.register(f"before-call.s3.{operation}", note)
    store.put("pairs/a.jsonl", b'{"query": "how", "document": "so"}\n{"query": ""}\n')
    assert store.probe() == []
    take_in(store, writer="first")
    before = None
    for weights in (b"first", b"second"):
        version = published(store, tmp_path / weights.decode(), weights)
        registry.promote(store, version, before, run_id="r", who="o", reason="r", scores={})
        before = getattr(registry.read_production(store), "etag", None)
    registry.rollback(store, run_id="third", who="o", reason="worse")
    for number in range(3):
        published(store, tmp_path / f"{number}", b"%d" % number)
    assert retire(store, keep=1, ledger_entries=2, now=datetime.now(UTC) + timedelta(days=2))
    store.put_if_absent("split.json", b"{}")
    written = {key.split("/")[1] for key, _ in writes}
    assert {"log", "batches", "quarantine", "models", "production.json", "promotions"} <= written
    assert [key for key, headers in writes if _denied(policy, key, headers)] == []
    for key in ("log/000000000001.json", "promotions/000000000001.json", "batches/x.parquet", "split.json"):
        assert _denied(policy, f"policy/{key}", set())
        assert _denied(policy, f"policy/{key}", {"if-match"})  # nor replaced by somebody who has read it
        assert not _denied(policy, f"policy/{key}", {"if-none-match"})
    for key in ("production.json", "models/x/model.safetensors"):
        assert _denied(policy, f"policy/{key}", set())
        assert not _denied(policy, f"policy/{key}", {"if-match"})
    assert not _denied(policy, "policy/cache/x", set())


def _denied(policy: dict[str, Any], key: str, headers: set[str]) -> bool:
    """Whether a policy with the conditions of ours denies an upload of a key with these conditional headers."""
    for statement in policy["Statement"]:
        (nulls,) = [found for name, found in statement["Condition"].items() if name == "Null"]
        lacks = all(name.removeprefix("s3:") not in headers for name, value in nulls.items() if value == "true")
        matches = any(fnmatchcase(f"arn:aws:s3:::BUCKET/{key}", pattern) for pattern in statement["Resource"])
        if statement["Effect"] == "Deny" and matches and lacks:
            return True
    return False


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
