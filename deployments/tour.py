"""A week of nights on the embedded stack, each of which ends in another way, on real labels.

The labels are those of the demonstration (`demo.py`), the documents cut short so that a night takes a minute or two.
The split's salt is fixed: so every tour tests the same queries, and which verdict a night must end in is known.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from tempfile import TemporaryDirectory
from typing import Any, Final

from rich.console import Console
from rich.markup import escape

from deployments import demo, follow, local, show
from deployments.settings import Channel, Settings
from tasks.config import Outcome, Verdict
from tasks.storage import Store

SPLIT: Final = b'{"rule": 1, "salt": "the same sides on every run of these tests", "dev": 0.05, "test": 0.15}'
PAIRS: Final = 1_000
FEW: Final = 60
CHARS: Final = 240
"""Documents are cut to their first characters: a search among all of them is hard enough, and quickly scored."""

FAST: Final = {"max_length": 64, "precision": "fp32"}
POISONED: Final = ("pairs/dt=thursday/a.jsonl", "pairs/dt=thursday/b.jsonl")

_ADDRESS_IN: Final = "RATCHET_TOUR_WEBHOOK"
"""Environment variable of this process that holds the address of the tour's own receiver."""

_ALERT_SECONDS: Final = 60.0


class TourError(Exception):
    """A day of the tour did not end as it must; the message says which, and how it ended."""


@dataclass(frozen=True)
class Day:
    """One day: what happens before its night, how the night must end, and where to look at it."""

    name: str
    story: str
    verdict: Verdict
    look: str
    upload: Callable[[Store], object] = lambda _: None
    training: dict[str, Any] | None = None


def play(console: Console, stack: local.Stack, store: Store) -> None:
    """Play the week on an empty store of a running stack that this process is pointed at.

    Raises TourError when a night ends otherwise than it must, or its alert does not arrive.
    """
    from tasks.registry import read_production

    pairs, corpus = _texts()
    store.put("split.json", SPLIT)
    _say(console, "Before the week", "all-MiniLM-L6-v2 is put into production by hand, so there is a way back to it.")
    first = _first_version(store)
    with _receiver() as (address, received), _alerting(address):
        for day in _days(pairs, corpus):
            _say(console, day.name, day.story)
            before = store.get("production.json").body
            day.upload(store)
            outcome = _night(console, store, day)
            if (store.get("production.json").body == before) == (day.verdict == "promoted"):
                raise TourError(f"{day.name}: production.json is not as a night that is {day.verdict} leaves it")
            if day.verdict == "regressed":
                _show_alert(console, received, outcome)
            console.print(f"[bold]Look[/]       {escape(stack.ui_url)} {day.look}")
            console.print(f"           report: {escape(outcome.report or '')}")
    _say(console, "Sunday", "Somebody liked the old results better: rolled back, by the deployment rollback/manual.")
    run = follow.start("rollback/manual", {"store": store.url, "reason": "the tour wants the old model back"})
    final = follow.follow(console, run)
    serves = read_production(store)
    if final != "Completed" or serves is None or serves.version != first:
        raise TourError(f"Sunday: the rollback ended {final}, and {serves and serves.version} serves, not {first}")
    console.print(f"[bold]Look[/]       {escape(stack.ui_url)} Deployments, rollback: who, when and why")
    from tasks.registry import history

    show.to(console, show.ledger(history(store)))


def _days(pairs: Sequence[bytes], corpus: bytes) -> list[Day]:
    """The nights of the week, in order."""

    def poison(store: Store) -> None:
        for seed, key in enumerate(POISONED):
            store.put(key, _shuffled(pairs[:PAIRS], seed))

    def mend(store: Store) -> None:
        for number, key in enumerate(POISONED):
            store.put(key, b"".join(pairs[PAIRS + 5 * number : PAIRS + 5 * (number + 1)]))

    def start(store: Store) -> None:
        store.put("corpus/aws.jsonl", corpus)
        store.put("pairs/dt=monday/a.jsonl", b"".join(pairs[:FEW]))

    return [
        Day(
            "Monday", f"{FEW} labelled pairs have arrived.", "skipped",
            "Runs, the latest retrain: its report says why so few pairs are better not trained on.", start,
        ),
        Day(
            "Tuesday", f"{PAIRS - FEW} more pairs have arrived.", "promoted",
            "Runs, the latest retrain, Artifacts: scores of both models, differences with intervals.",
            lambda store: store.put("pairs/dt=tuesday/a.jsonl", b"".join(pairs[FEW:PAIRS])),
        ),
        Day(
            "Wednesday", "Nobody has labelled anything.", "skipped",
            "Runs, the latest retrain: a few seconds long, no model was loaded.",
        ),
        Day(
            "Thursday", "A broken export has arrived: right queries, each with the document of another.", "regressed",
            "Automations, 'ratchet: regressed': what sent the alert above. Production is the same to the byte.",
            poison, {"epochs": 2},
        ),
        Day(
            "Friday", "The broken objects were overwritten with right ones, ten pairs in all.", "held",
            "Runs, the latest retrain, Artifacts: how many test queries would be needed to tell the models apart.",
            mend,
        ),
    ]  # fmt: skip


def _night(console: Console, store: Store, day: Day) -> Outcome:
    """Run one night by its deployment; TourError when its verdict is not the day's."""
    outcome = follow.night(
        console,
        store,
        "retrain/nightly",
        {"store": store.url, "reason": f"tour: {day.name}", "training": {**FAST, **(day.training or {})}},
    )
    show.to(console, show.outcome(outcome))
    if outcome.verdict != day.verdict:
        raise TourError(
            f"{day.name} must end {day.verdict} and ended {outcome.verdict}: {' '.join(outcome.reasons)} "
            f"(run {outcome.run_id})"
        )
    return outcome


def _texts() -> tuple[list[bytes], bytes]:
    """The demonstration's pairs, one JSON line each, spread over all services; and its further documents."""
    data = demo.build()
    every = _cut(data.pairs, "document")
    wanted = PAIRS + 10
    return [every[len(every) * i // wanted] for i in range(wanted)], b"".join(_cut(data.corpus, "text"))


def _cut(body: bytes, column: str) -> list[bytes]:
    rows = (json.loads(line) for line in body.splitlines())
    return [json.dumps({**row, column: row[column][:CHARS]}).encode() + b"\n" for row in rows]


def _shuffled(pairs: Sequence[bytes], seed: int) -> bytes:
    """The same queries, each with another query's document."""
    rows = [json.loads(line) for line in pairs]
    documents = [row["document"] for row in rows]
    random.Random(seed).shuffle(documents)  # noqa: S311 - no secret, the same in every tour
    mixed = ({**row, "document": document} for row, document in zip(rows, documents, strict=True))
    return b"".join(json.dumps(row).encode() + b"\n" for row in mixed)


def _first_version(store: Store) -> str:
    """Publish the base model and let it serve; returns its version."""
    from tasks import encoding, registry, serving
    from tasks.config import BUNDLED_MODEL

    with TemporaryDirectory() as folder:
        encoding.load(encoding.resolve_model(BUNDLED_MODEL)).save(folder, create_model_card=False)
        version = registry.publish(store, Path(folder), serving.describe(Path(folder)))
    registry.promote(store, version, None, run_id="tour", who="tour", reason="the model off the shelf", scores={})
    return version


# --- the alert -------------------------------------------------------------------------------------------


@contextmanager
def _receiver() -> Iterator[tuple[str, Queue[dict[str, str]]]]:
    """A webhook on loopback for the length of the tour: its address, and what it was sent."""
    received: Queue[dict[str, str]] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            received.put(json.loads(body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing: what arrives is shown where the tour is at."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/alerts", received
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def _alerting(address: str) -> Iterator[None]:
    """Add a channel to the stack's alerts, as `ratchet deploy` would, and take it away again."""
    from deployments import deploy, settings

    usual = settings.load()
    channel = Channel(kind="webhook", secret_env=_ADDRESS_IN, only=("regressed",))
    deploy.deploy(_with(usual, channel), environment={**os.environ, _ADDRESS_IN: address})
    try:
        yield
    finally:
        deploy.deploy(usual, environment=os.environ)


def _with(usual: Settings, channel: Channel) -> Settings:
    return usual.model_copy(update={"channels": {**usual.channels, "tour": channel}})


def _show_alert(console: Console, received: Queue[dict[str, str]], outcome: Outcome) -> None:
    """Print the alert as the webhook got it; TourError when none about this run arrives within a minute."""
    try:
        alert = received.get(timeout=_ALERT_SECONDS)
    except Empty:
        raise TourError(f"no alert about run {outcome.run_id} has arrived in {_ALERT_SECONDS:.0f} s") from None
    if outcome.run_id not in alert["body"]:
        raise TourError(f"the alert is not about run {outcome.run_id}: {alert['subject']}")
    console.print("\n[bold]Alert[/]      the webhook of the tour was sent this:")
    console.print(escape(f"{alert['subject']}\n{alert['body']}"), style="red")


def _say(console: Console, day: str, story: str) -> None:
    console.rule(f"[bold]{escape(day)}[/]")
    console.print(escape(story))
