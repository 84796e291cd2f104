"""Nights on real labels with the real encoder, small enough for tests and with a wide margin at the gate.

What people wrote about operations of AWS, and the documentation of these operations, cut to its beginning: a search
that the base model does half right and a fine-tuned one nearly right. So a night promotes on every machine.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun

from deployments import demo
from deployments.demo.tour import SPLIT, cut
from deployments.stack import guard, local
from deployments.terminal import follow
from tasks import intake, registry
from tasks.config import Outcome, Training
from tasks.intake import commit_log
from tasks.storage import Store

PAIRS: Final = 1_000
CHARS: Final = 240
"""Documents are cut to their first characters: so a search among all of them is hard enough, and quickly scored."""

FAST: Final = Training(max_length=64, precision="fp32")
"""On shorter texts than the default, and not in a precision that is measured first: a busy machine would sway that."""

QUICK: Final = FAST.model_copy(update={"max_length": 32, "quick": True})
"""Half the layers on the beginnings of texts: a quarter of the time, for nights whose scores are not looked at."""

OFTEN: Final = QUICK.model_copy(update={"checkpoint_minutes": 0.05})
"""With a checkpoint after every few steps: a third of a gigabyte each time, so only where one is needed."""

_OBJECTS: Final = 20


def fill(store: Store, *, objects: int = 1, corpus: bool = True) -> list[bytes]:
    """Put split, pairs and further documents of a first night into a store; returns the pairs, one JSON line each."""
    data = demo.build()
    every = cut(data.pairs, "document", CHARS)
    pairs = [every[len(every) * i // PAIRS] for i in range(PAIRS)]
    store.put("split.json", SPLIT)
    for number in range(objects):
        store.put(f"pairs/dt=2026-11-22/{number:02d}.jsonl", b"".join(pairs[number::objects]))
    if corpus:
        store.put("corpus/a.jsonl", b"".join(cut(data.corpus, "text", CHARS)))
    return pairs


@dataclass(frozen=True)
class Night:
    """A store with pairs that nobody has taken in yet, which make a night that promotes."""

    store: Store
    pairs: list[bytes]

    def start(self, training: Training = QUICK, **more: Any) -> uuid.UUID:
        """Start a night on this store by its deployment."""
        parameters = {"store": self.store.url, "training": training.model_dump(mode="json"), **more}
        return follow.start("retrain/nightly", parameters)

    def outcome(self, run: uuid.UUID) -> Outcome:
        """What a run came to."""
        found = follow.find_outcome(self.store, run)
        assert found is not None, "the run left no outcome"
        return found

    def assert_sound(self, promotions: int) -> None:
        """Pointer and ledger agree, without gap or double, and what serves is whole."""
        changes = registry.history(self.store)
        assert [change.promotion for change in changes] == list(range(1, promotions + 1))
        production = registry.read_production(self.store)
        if production is None:
            assert promotions == 0
            return
        ledger = self.store.get(f"promotions/{promotions:012d}.json").body
        assert ledger == self.store.get("production.json").body
        registry.hold(self.store, production.version)

    def assert_promoted(self, run: uuid.UUID, promotions: int = 1) -> Outcome:
        """The run promoted, and the store is as after a night that nothing disturbed; returns the outcome."""
        outcome = self.outcome(run)
        assert outcome.verdict == "promoted", outcome.reasons
        self.assert_sound(promotions)
        change = registry.history(self.store)[-1]
        assert (change.run_id, change.version) == (outcome.run_id, outcome.production_after)
        self._assert_taken_in_once(outcome.commit)
        assert not [entry.key for entry in self.store.entries("runs/") if "/checkpoints/" in entry.key]
        return outcome

    def _assert_taken_in_once(self, commit: int) -> None:
        """Every pair is a row of the commit once, and every object belongs to one commit."""
        rows = intake.read_rows(self.store, commit).select(["kind", "query", "document"]).to_pylist()
        taken = sorted((row["query"], row["document"]) for row in rows if row["kind"] == "pair")
        assert taken == sorted((row["query"], row["document"]) for row in map(json.loads, self.pairs))
        last = commit_log.load(self.store).commit
        sources = [source.key for one in commit_log.read(self.store, range(1, last + 1)) for source in one.objects]
        assert len(sources) == len(set(sources))


def new_night(stack: local.Stack) -> Night:
    """A new store on the stack, with pairs in several objects and no further documents."""
    store = Store.open(stack.store(f"night-{uuid.uuid4().hex}"))
    return Night(store, fill(store, objects=_OBJECTS, corpus=False))


def wait_for(what: str, found: Callable[[], Any], seconds: float = 300.0) -> Any:
    """The first truthy answer of `found`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.25)
    pytest.fail(f"waited {seconds:.0f} s in vain for {what}")


def children(client: SyncPrefectClient, run: uuid.UUID) -> list[FlowRun]:
    """The fine-tunings that a night started, oldest first."""
    chosen = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [run]}})
    return sorted(client.read_flow_runs(flow_run_filter=chosen), key=lambda child: str(child.created))


def trains(client: SyncPrefectClient, run: uuid.UUID) -> FlowRun:
    """Wait until the fine-tuning of a night has taken its first training steps."""

    def found() -> FlowRun | None:
        for child in children(client, run):
            chosen = {"flow_run_id": {"any_": [child.id]}, "key": {"any_": ["training"]}}
            bars = client.read_artifacts(artifact_filter=ArtifactFilter.model_validate(chosen))
            if any(isinstance(bar.data, float | int) and bar.data > 0 for bar in bars):
                return child
        return None

    return wait_for("the training", found)


def has_checkpoint(client: SyncPrefectClient, night: Night, run: uuid.UUID, child: int) -> FlowRun:
    """Wait until fine-tuning number `child` of a night has written a checkpoint of its own."""
    before: set[str] = set()

    def found() -> FlowRun | None:
        nonlocal before
        runs = children(client, run)
        if len(runs) < child or runs[child - 1].state_name != "Running":
            before = keys()
            return None
        return runs[child - 1] if keys() - before else None

    def keys() -> set[str]:
        found = night.store.entries("runs/")
        return {entry.key for entry in found if f"-{run.hex[:8]}/checkpoints/" in entry.key}

    return wait_for("a checkpoint", found)


def final(client: SyncPrefectClient, run: uuid.UUID, seconds: float = 420.0) -> str:
    """Wait until a run has ended; returns the name of its state."""

    def ended() -> str | None:
        state = client.read_flow_run(run).state
        return state.name if state is not None and state.is_final() else None

    return str(wait_for(f"the end of run {run}", ended, seconds))


def processes(stack: local.Stack, run: uuid.UUID) -> list[psutil.Process]:
    """The processes of a flow run."""
    found = []
    for process in guard.marked(stack.mark):
        try:
            if process.environ().get("PREFECT__FLOW_RUN_ID", "").replace("-", "") == run.hex:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found
