"""Whole nights with everything real: S3 server, Prefect server, both workers, all-MiniLM-L6-v2, labels people made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from rich.console import Console

from deployments import demo
from deployments.demo.tour import cut, shuffled
from deployments.stack import local
from deployments.terminal import follow
from flows.retrain import retrain
from tasks import night, registry
from tasks.config import Outcome
from tasks.report import evidence, messages
from tasks.storage import Store
from tests import docs
from tests.flows.nights import CHARS, FAST, PAIRS, fill
from tests.flows.receiver import Receiver

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Promoted:
    """A store after its first night, and what that night came to."""

    stack: local.Stack
    store: Store
    outcome: Outcome
    pairs: list[bytes]


@pytest.fixture(scope="module")
def promoted(on_stack: local.Stack) -> Promoted:
    """The first night, run by its deployment: the parent on pool cpu, the fine-tuning on pool gpu."""
    store = Store.open(on_stack.store(f"night-{uuid.uuid4().hex}"))
    pairs = fill(store)
    parameters = {
        "store": store.url,
        "training": FAST.model_dump(mode="json"),
        "fine_tune_deployment": "fine-tune/gpu",
        "reason": "first night",
    }
    outcome = follow.night(Console(), store, "retrain/nightly", parameters)
    return Promoted(on_stack, store, outcome, pairs)


def test_the_first_night_promotes_a_real_gain(promoted: Promoted) -> None:
    """Recall@10 and MRR both rise over the base model, by more than chance, and the candidate serves."""
    outcome = promoted.outcome
    assert outcome.verdict == "promoted", outcome.reasons
    assert outcome.candidate is not None
    assert outcome.production is not None
    assert outcome.production.version is None
    assert outcome.production_before is None
    assert outcome.production_after == outcome.candidate.version
    for metric in ("recall_at_10", "mrr"):
        delta = outcome.deltas[metric]
        assert delta.value == pytest.approx(outcome.candidate.scores[metric] - outcome.production.scores[metric])
        assert 0 < delta.low <= delta.value <= delta.high
    counts = outcome.counts
    assert counts["accepted"] == PAIRS
    assert counts["train"] > counts["test"] >= 50
    assert counts["corpus"] > PAIRS
    pointer = json.loads(promoted.store.get("production.json").body)
    assert pointer["version"] == outcome.candidate.version
    assert (pointer["promotion"], pointer["previous"], pointer["run_id"]) == (1, None, outcome.run_id)
    assert pointer["fingerprint"]["dimension"] == 384
    assert promoted.store.get("promotions/000000000001.json").body == promoted.store.get("production.json").body


def test_the_fine_tuning_ran_on_the_gpu_pool(promoted: Promoted) -> None:
    """The API knows one completed fine-tune run on pool gpu that belongs to this night, and the report of the night."""
    with get_client(sync_client=True) as client:
        runs = [
            run
            for run in client.read_flow_runs(flow_run_filter=FlowRunFilter())
            if run.parameters.get("run_id") == promoted.outcome.run_id and run.work_pool_name
        ]
        artifacts = client.read_artifacts(artifact_filter=ArtifactFilter.model_validate({"key": {"any_": ["report"]}}))
    (run,) = runs
    assert (run.work_pool_name, run.state_name) == ("gpu", "Completed")
    report = next(found for found in artifacts if promoted.outcome.run_id in (found.description or ""))
    assert "Promoted" in str(report.data)
    assert "| Recall@10 |" in str(report.data)


def test_every_object_that_the_night_left_is_described(promoted: Promoted) -> None:
    """The page on the store knows each key, and the night wrote each kind of file that a promotion leaves."""
    keys = [entry.key for entry in promoted.store.entries("")]
    assert docs.undescribed(keys) == []
    folder = f"runs/{promoted.outcome.run_id}/"
    assert {key.removeprefix(folder) for key in keys if key.startswith(folder)} == {
        *("parameters.json", "begin.json", "intake.json", "checks.json", "data_docs.html", "leaks.json", "start.json"),
        *("train.json", "scores.json", "per_query.parquet", "decision.json", "outcome.json", "report.html"),
        *("to_judge.jsonl", "audit.json", "suspects.jsonl", "canary.json"),
    }


def test_what_serves_gives_the_vectors_that_were_scored(promoted: Promoted, tmp_path: Path) -> None:
    """A plain SentenceTransformer on the pulled folder gives the vectors kept in the cache by the scoring."""
    from sentence_transformers import SentenceTransformer

    from tasks.encoding import BF16, FP32, PLAIN, ModelEncoder, VectorCache, text_hash

    folder = registry.pull_production(promoted.store, tmp_path / "model")
    scores = json.loads(promoted.store.get(f"runs/{promoted.outcome.run_id}/scores.json").body)
    path = next(path for path in (PLAIN, FP32, BF16) if path.name == scores["numeric_path"])
    encoder = ModelEncoder.open(folder, path)
    kept = VectorCache(tmp_path / "vectors", promoted.store).open(encoder.key("document"), encoder.dimension)
    documents = [json.loads(line)["document"] for line in promoted.pairs[:20]]
    scored = np.empty((len(documents), encoder.dimension), np.float32)
    kept.read([text_hash(text) for text in documents], scored, np.arange(len(documents)))
    served = SentenceTransformer(str(folder), device="cpu").encode(documents, normalize_embeddings=True)
    assert np.sum(scored * served, axis=1).min() > 0.999


def test_no_credential_is_to_be_seen(promoted: Promoted) -> None:
    """Neither the key nor the password is in parameters, logs of runs, logs of services, artifacts or the store."""
    environment = promoted.stack.environment()
    secrets = [environment["AWS_SECRET_ACCESS_KEY"], environment["PREFECT_API_AUTH_STRING"].split(":")[1]]
    with get_client(sync_client=True) as client:
        seen: list[Any] = [run.model_dump_json() for run in client.read_flow_runs()]
        seen += [log.message for log in client.read_logs(limit=200)]
        seen += [artifact.model_dump_json() for artifact in client.read_artifacts()]
    seen += [path.read_text(errors="replace") for path in promoted.stack.logs().iterdir()]
    folder = f"runs/{promoted.outcome.run_id}/"
    seen += [promoted.store.get(entry.key).body.decode(errors="replace") for entry in promoted.store.entries(folder)]
    assert not any(secret in text for secret in secrets for text in seen)


def test_a_night_with_nothing_new_loads_no_model(promoted: Promoted) -> None:
    """The second night is skipped without importing what trains, encodes or checks."""
    code = (
        "import sys; from flows.retrain import retrain; outcome = retrain(store=sys.argv[1]);"
        "heavy = {'torch', 'sentence_transformers', 'great_expectations', 'pandas'} & set(sys.modules);"
        "print('end', outcome.verdict, sorted(heavy))"
    )
    environment: dict[str, str] = {}
    promoted.stack.adopt(environment)
    run = subprocess.run(
        [sys.executable, "-c", code, promoted.store.url],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert run.stdout.splitlines()[-1] == "end skipped []"


def test_the_same_model_again_is_held(promoted: Promoted) -> None:
    """Forced on the same data and settings, training gives the model that serves; that is no improvement."""
    before = promoted.store.get("production.json").body
    outcome = retrain(store=promoted.store.url, training=FAST, force=True)
    assert outcome.verdict == "held"
    assert outcome.candidate is not None
    assert outcome.candidate.version == promoted.outcome.production_after
    assert promoted.store.get("production.json").body == before


@pytest.mark.slow
def test_a_night_goes_on_from_production_with_what_is_new(promoted: Promoted) -> None:
    """The model that serves learns the new rows and a share of the old; the verdict is the gate's, as on any night."""
    production = registry.read_production(promoted.store)
    assert production is not None
    known = set(promoted.pairs)
    new = [row for row in cut(demo.build().pairs, "document", CHARS) if row not in known][:150]
    promoted.store.put("pairs/dt=2026-11-22/b.jsonl", b"".join(new))
    outcome = retrain(store=promoted.store.url, training=FAST.model_copy(update={"start_from": "production"}))
    trained = json.loads(promoted.store.get(f"runs/{outcome.run_id}/train.json").body)
    assert trained["started_from"] == production.version
    assert trained["distance_from_base"] > 0
    assert sum(trained["rows"].values()) < outcome.counts["train"], "all rows were trained on again"
    assert outcome.verdict in ("promoted", "held"), outcome.reasons
    assert outcome.candidate is not None
    now = registry.read_production(promoted.store)
    assert now is not None
    assert now.version == (outcome.candidate.version if outcome.verdict == "promoted" else production.version)


@pytest.mark.slow
def test_shuffled_labels_regress_and_are_told(promoted: Promoted, hook: Receiver) -> None:
    """Every label twice as often wrong as right: the candidate regresses, production stays, and one alert says so."""
    before = promoted.store.get("production.json").body
    for copy in range(2):
        promoted.store.put(f"pairs/dt=2026-11-23/{copy}.jsonl", shuffled(promoted.pairs, seed=copy))
    outcome = retrain(store=promoted.store.url, training=FAST.model_copy(update={"epochs": 2}))
    assert outcome.verdict == "regressed", outcome.reasons
    assert outcome.deltas["mrr"].high < 0 or outcome.deltas["recall_at_10"].high < 0
    assert promoted.store.get("production.json").body == before

    message = hook.once(lambda one: outcome.run_id in one.body)
    expected = messages.message(outcome, evidence.gather(promoted.store, outcome), _run_url(promoted.stack, outcome))
    assert (message.subject, message.body) == (expected.title, expected.text)
    assert message.subject == "Ratchet: the new model is worse than production"
    assert outcome.candidate is not None
    assert outcome.production is not None
    serving, lines = outcome.production_before, message.body.splitlines()
    assert lines[0] == (
        f"Candidate {outcome.candidate.version} is significantly worse than version {serving}. It was not promoted."
    )
    for label, metric in (("Recall@10", "recall_at_10"), ("MRR", "mrr")):
        was, became = outcome.production.scores[metric], outcome.candidate.scores[metric]
        assert f"{label}: {was:.3f} to {became:.3f}, {100 * (became - was):+.1f} points (" in message.body
    assert "Worst queries, with the rank of the first right document:" in lines
    assert "- `pairs/dt=2026-11-23/0.jsonl`: 1,000 rows, 0 rejected" in lines
    assert f"Production is {serving}, as before." in lines
    assert lines[-1] == f"Report: {outcome.report}"


def _run_url(stack: local.Stack, outcome: Outcome) -> str:
    """Where the run is in the UI: its id begins with what the run's folder ends in."""
    start = outcome.run_id.rpartition("-")[2]
    with get_client(sync_client=True) as client:
        (found,) = [run.id for run in client.read_flow_runs() if run.id.hex.startswith(start)]
    return follow.address(stack.ui_url, found)


@pytest.mark.slow
def test_production_that_changed_meanwhile_is_never_replaced(
    promoted: Promoted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Somebody promotes by hand between the scoring and the promotion: theirs stays."""
    store = Store.open(promoted.stack.store(f"night-{uuid.uuid4().hex}"))
    fill(store)
    folder = registry.pull_production(promoted.store, tmp_path / "model")
    description = registry.read_production(promoted.store)
    assert description is not None
    judged = night.judge

    def judge_late(*arguments: Any) -> night.Judged:
        found = judged(*arguments)
        from tasks.scoring import describe

        (folder / "README.md").write_text("by hand")
        version = registry.publish(store, folder, describe(folder, (256, 128, 64, 32)))
        registry.promote(
            store, version, None, run_id="by hand", who="colleague", reason="a colleague was faster", scores={}
        )
        return found

    monkeypatch.setattr(night, "judge", judge_late)
    outcome = retrain(store=store.url, training=FAST)
    assert outcome.verdict == "held"
    assert "production changed" in outcome.reasons[0]
    assert json.loads(store.get("production.json").body)["run_id"] == "by hand"
    assert len(registry.history(store)) == 1
