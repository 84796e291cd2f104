"""A week of nights on the embedded stack, each of which ends in another way, on real labels.

The labels are those of the demonstration (`demo.py`), fewer and with documents cut short, so that the week takes some
minutes on two cores. A part of them lies under `golden/`, as labels that only trusted people write: those are always
tested on, so a few hundred pairs give a test that is sure of its verdicts, and no poisoned upload can move it. The
split's salt is fixed: every tour tests the same queries, and which verdict a night must end in is known.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from tempfile import TemporaryDirectory
from typing import Any, Final

from rich.console import Console

from deployments.demo import data as demo
from deployments.server.settings import Channel, Settings
from deployments.stack import local
from deployments.terminal import follow, show
from deployments.terminal.text import escape
from tasks.config import Outcome, Verdict
from tasks.storage import Store

SPLIT: Final = b'{"rule": 1, "salt": "the same sides on every run of these tests", "dev": 0.05, "test": 0.15}'
PAIRS: Final = 500
_FEW: Final = 60
LATE: Final = 10
GOLDEN: Final = 250
CORPUS: Final = 600
"""Further documents that the right ones must be told from."""

CHARS: Final = 160
"""Documents are cut to their first characters: a search among all of them is hard enough, and quickly scored."""

TRAINING: Final = {"start_from": "production", "max_length": 48, "batch_size": 32, "learning_rate": 4e-4}
"""Each night continues from what serves with what is new: a minute or less, even without a GPU."""

POISON: Final = "pairs/dt=thursday/a.jsonl"

_ADDRESS_IN: Final = "RATCHET_TOUR_WEBHOOK"
"""Environment variable of this process that holds the address of the tour's own receiver."""

_ALERT_SECONDS: Final = 60.0


class TourError(Exception):
    """A day of the tour did not end as it must; the message says which, and how it ended."""


@dataclass(frozen=True)
class Day:
    """One day: what happens before its night, how the night must end, and what to look at in the UI."""

    name: str
    story: str
    verdict: Verdict
    look: str
    upload: Callable[[Store], object] = lambda _: None
    training: dict[str, Any] = field(default_factory=dict)
    """What differs from `TRAINING` in this night."""


def play(console: Console, stack: local.Stack, store: Store) -> None:
    """Play the week on an empty store of a running stack that this process is pointed at.

    Raises TourError when a night ends otherwise than it must, or its alert does not arrive.
    """
    from tasks.registry import history, read_production

    console.print(f"\nWatch it in the UI as well: {stack.ui_url}")
    console.print(f"It asks for a password, which is the line in {escape(str(stack.password_file))}\n")
    _say(console, "Before the week", "The model off the shelf, all-MiniLM-L6-v2, is put into production by hand.")
    store.put("split.json", SPLIT)
    first = _first_version(store)
    with _receiver() as (address, received), _alerting(address):
        for day in _days():
            _say(console, day.name, day.story)
            before = store.get("production.json").body
            day.upload(store)
            outcome = _night(console, stack, store, day)
            if (store.get("production.json").body == before) == (day.verdict == "promoted"):
                raise TourError(f"{day.name}: production.json is not what a {day.verdict} night leaves")
            if day.verdict == "regressed":
                _show_alert(console, received, outcome)
    _say(console, "Sunday", "Somebody liked the old results better, and goes back to them: rollback/manual.")
    run = follow.start("rollback/manual", {"store": store.url, "reason": "the tour wants the old model back"})
    final = follow.follow(console, run)
    serves = read_production(store)
    if final != "Completed" or serves is None or serves.version != first:
        raise TourError(f"Sunday: the rollback ended {final}, and {serves and serves.version} serves, not {first}")
    show.to(console, show.ledger(history(store)))
    _look(console, follow.address(stack.ui_url, run), "the same can be started there by Deployments, rollback, Run.")


def _days() -> list[Day]:
    """The nights of the week, in order."""
    pairs, golden, corpus = _texts()

    def monday(store: Store) -> None:
        store.put("corpus/aws.jsonl", b"".join(corpus))
        store.put("golden/aws.jsonl", b"".join(golden))
        store.put("pairs/dt=monday/a.jsonl", b"".join(pairs[:_FEW]))

    return [
        Day(
            "Monday",
            f"{_FEW} labelled pairs have arrived, and {GOLDEN} that are only ever tested on (golden/).",
            "skipped",
            "Artifacts: the data checks one by one, and the report, which says from how many pairs on training pays.",
            monday,
        ),
        Day(
            "Tuesday",
            f"{PAIRS - _FEW} more pairs have arrived.",
            "promoted",
            "Artifacts: the scores of both models with intervals, the losses, the queries that gained and lost most.",
            lambda store: store.put("pairs/dt=tuesday/a.jsonl", b"".join(pairs[_FEW:PAIRS])),
        ),
        Day(
            "Wednesday",
            "Nobody has labelled anything.",
            "skipped",
            "a run of some seconds: no model was loaded, no fine-tuning started.",
        ),
        Day(
            "Thursday",
            f"A broken export has arrived: {PAIRS} right queries, each with the document of another.",
            "regressed",
            "production is as it was, to the byte. Automations, 'ratchet: regressed', is what sent the alert.",
            lambda store: store.put(POISON, shuffled(pairs[:PAIRS])),
        ),
        Day(
            "Friday",
            f"The broken object was overwritten with {LATE} right pairs: few, so they are trained on gently.",
            "held",
            "Artifacts, report: how large a gain this test can see, and how many queries would show this one.",
            lambda store: store.put(POISON, b"".join(pairs[PAIRS:])),
            {"learning_rate": 2e-5},
        ),
    ]


def _night(console: Console, stack: local.Stack, store: Store, day: Day) -> Outcome:
    """Run one night by its deployment, and say where to look; TourError when its verdict is not the day's."""
    parameters = {"store": store.url, "reason": f"tour: {day.name}", "training": {**TRAINING, **day.training}}
    run = follow.start("retrain/nightly", parameters)
    final = follow.follow(console, run)
    outcome = follow.find_outcome(store, run)
    if outcome is None:
        raise TourError(f"{day.name} should end {day.verdict}; its run ended {final}, without a verdict")
    show.to(console, show.outcome(outcome))
    if outcome.verdict != day.verdict:
        raise TourError(
            f"{day.name} should end {day.verdict} but ended {outcome.verdict}: {' '.join(outcome.reasons)} "
            f"(run {outcome.run_id})"
        )
    report = stack.state / "tour" / f"{day.name.lower()}.html"
    report.parent.mkdir(exist_ok=True)
    report.write_bytes(store.get(f"runs/{outcome.run_id}/report.html").body)
    _look(console, follow.address(stack.ui_url, run), day.look)
    console.print(f"Report     {escape(str(report))} (open it in a browser)")
    return outcome


def _look(console: Console, address: str, what: str) -> None:
    console.print(f"[bold]Look[/]       {escape(address)}")
    console.print(f"           {escape(what)}")


def _texts() -> tuple[list[bytes], list[bytes], list[bytes]]:
    """The demonstration's pairs, those of `golden/`, and further documents: JSON lines, spread over all services."""
    data = demo.build()
    labelled = _spread(cut(data.pairs, "document"), GOLDEN + PAIRS + LATE)
    random.Random(1).shuffle(labelled)  # noqa: S311 - no secret, the same in every tour
    return labelled[GOLDEN:], labelled[:GOLDEN], _spread(cut(data.corpus, "text"), CORPUS)


def _spread(rows: Sequence[bytes], count: int) -> list[bytes]:
    """So many rows, at equal distances."""
    return [rows[len(rows) * number // count] for number in range(count)]


def cut(body: bytes, column: str, chars: int = CHARS) -> list[bytes]:
    """JSON lines with one column cut to its first characters."""
    rows = (json.loads(line) for line in body.splitlines())
    return [json.dumps({**row, column: row[column][:chars]}).encode() + b"\n" for row in rows]


def shuffled(pairs: Sequence[bytes], seed: int = 0) -> bytes:
    """The same queries, each with another query's document."""
    rows = [json.loads(line) for line in pairs]
    documents = [row["document"] for row in rows]
    random.Random(seed).shuffle(documents)  # noqa: S311 - no secret, the same in every tour
    mixed = ({**row, "document": document} for row, document in zip(rows, documents, strict=True))
    return b"".join(json.dumps(row).encode() + b"\n" for row in mixed)


def _first_version(store: Store) -> str:
    """Publish the base model and let it serve; returns its version."""
    from tasks import encoding, registry
    from tasks.config import BUNDLED_MODEL
    from tasks.scoring import serving

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
    from deployments.server import deploy, settings

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
    console.print(escape(f"{alert['subject']}\n{alert['body']}", lines=True), style="red")


def _say(console: Console, day: str, story: str) -> None:
    console.rule(f"[bold]{escape(day)}[/]")
    console.print(escape(story))
