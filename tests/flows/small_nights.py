"""Nights that are real in everything but size: a tiny random encoder, a few hundred real pairs, half a minute."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun

from deployments import demo, follow, local
from tasks import registry
from tasks.config import Checks, Gate, Outcome, Training
from tasks.storage import Store
from tests import tiny_models

_SPLIT = b'{"rule": 1, "salt": "the same sides on every run of these tests", "dev": 0.01, "test": 0.15}'
"""Hardly any dev: nothing stops the training early, so there is time to break something in it."""

_PAIRS = 500


@dataclass(frozen=True)
class SmallNight:
    """A store with pairs and the settings of a night that promotes; the same pairs and weights every time."""

    store: Store
    training: Training
    gate: Gate = Gate(confidence=0.9, min_test_queries=30, resamples=1_000, max_serving_slowdown=100)  # noqa: RUF009 - frozen
    # a random encoder finds all texts much alike
    checks: Checks = Checks(max_leaked_share=1.0)  # noqa: RUF009 - frozen

    def parameters(self, **more: Any) -> dict[str, Any]:
        """What the deployment of the night is started with."""
        models = {"training": self.training, "gate": self.gate, "checks": self.checks}
        return {
            "store": self.store.url,
            **{name: model.model_dump(mode="json") for name, model in models.items()},
        } | more

    def start(self, **more: Any) -> uuid.UUID:
        """Start the night by its deployment."""
        return follow.start("retrain/nightly", self.parameters(**more))

    def outcome(self, run: uuid.UUID) -> Outcome:
        """What a run came to."""
        found = follow.find_outcome(self.store, run)
        assert found is not None, "the run left no outcome"
        return found

    def assert_sound(self, promotions: int = 1) -> str | None:
        """Pointer and ledger agree, without gap or double, and what serves is whole; returns its version."""
        changes = registry.history(self.store)
        assert [change.promotion for change in changes] == list(range(1, promotions + 1))
        production = registry.read_production(self.store)
        if production is None:
            return None
        registry.hold(self.store, production.version)
        return production.version


def small_night(stack: local.Stack, folder: Path, epochs: int = 40) -> SmallNight:
    """A new store on the stack, with its pairs; more `epochs` leave more time."""
    store = Store.open(stack.store(f"small-{uuid.uuid4().hex}"))
    rows = [json.loads(line) for line in demo.build().pairs.splitlines()]
    rows = [rows[len(rows) * i // _PAIRS] for i in range(_PAIRS)]
    cut = ({**row, "document": row["document"][:160]} for row in rows)
    store.put("split.json", _SPLIT)
    store.put("pairs/a.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in cut))
    model = folder / "model"
    training = Training(
        base_model=str(model if model.exists() else tiny_models.save(folder)),
        epochs=epochs,
        batch_size=16,
        learning_rate=3e-3,
        max_length=32,
        matryoshka_dims=(16,),
        precision="fp32",
        checkpoint_minutes=0.05,
    )
    return SmallNight(store, training)


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


def trains(client: SyncPrefectClient, night: SmallNight, run: uuid.UUID, child: int = 1) -> FlowRun:
    """Wait until fine-tuning number `child` of a night is in the middle of its training."""
    checkpoints: set[str] = set()

    def found() -> FlowRun | None:
        nonlocal checkpoints
        runs = children(client, run)
        if len(runs) < child or runs[child - 1].state_name != "Running":
            checkpoints = keys()
            return None
        return runs[child - 1] if keys() - checkpoints else None

    def keys() -> set[str]:
        (folder,) = [name for name in night.store.folders("runs/") if name.endswith(f"-{run.hex[:8]}")] or [""]
        return {entry.key for entry in night.store.entries(f"runs/{folder}/checkpoints/")} if folder else set()

    return wait_for("the training", found)


def final(client: SyncPrefectClient, run: uuid.UUID, seconds: float = 420.0) -> str:
    """Wait until a run has ended; returns the name of its state."""

    def ended() -> str | None:
        state = client.read_flow_run(run).state
        return state.name if state is not None and state.is_final() else None

    return str(wait_for(f"the end of run {run}", ended, seconds))
