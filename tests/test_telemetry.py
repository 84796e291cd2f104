"""What other tools are told: metrics as a Prometheus parser reads them, lineage as a receiver on loopback gets it."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from typer.testing import CliRunner

from deployments.cli import app
from deployments.exporter import Exporter
from tasks import registry, telemetry
from tasks.config import Outcome
from tasks.runs import Run
from tasks.storage import Store, StoreError
from tasks.telemetry import Metrics, lineage
from tasks.telemetry.events import Lineage
from tasks.telemetry.openmetrics import Family, text_of
from tests.http_servers import serving
from tests.lineage import Receiver, receiving, unconfigured
from tests.models import published
from tests.report_cases import VERDICTS, outcome

Sample = tuple[str, tuple[tuple[str, str], ...]]


def read(text: str) -> dict[Sample, float]:
    """Every sample of a text by name and labels, as the parser of Prometheus' own client reads it."""
    families = list(text_string_to_metric_families(text))
    assert text.endswith("# EOF\n")
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def night(store: Store, number: int, verdict: Any, **facts: Any) -> Outcome:
    """Leave the outcome of a night in the store."""
    ended = f"2026-11-{number:02d}T03:32:11Z"
    update = {"run_id": f"202611{number:02d}T033000Z-0123abcd", "finished_at": ended, **facts}
    made = outcome(verdict).model_copy(update=update)
    Run(store, made.run_id).put_outcome(made)
    return made


# --- metrics -------------------------------------------------------------------------------------------------


def test_hostile_labels_and_odd_numbers_are_read_back() -> None:
    """Quotes, backslashes and newlines are escaped; what a terminal would obey is replaced; so is half a character."""
    labels = {"kind": 'a "quoted" \\ back\nslash', "other": "\x1b]52;c;x\x07 \ud800"}
    family = Family("ratchet_odd", "gauge", 'Help with "quotes"\nand \\.', [(labels, 1.5), ({}, float("nan"))])
    text = text_of([family, Family("ratchet_empty", "gauge", "No sample.", [])])
    found = read(text)
    assert ("ratchet_odd", (("kind", labels["kind"]), ("other", "\ufffd]52;c;x\ufffd \ufffd"))) in found
    assert len(found) == 2
    assert text.isprintable() or not set(text) & set("\x1b\x07\r")
    for value, written in ((float("inf"), "+Inf"), (float("-inf"), "-Inf"), (3.0, "3"), (0.1, "0.1")):
        assert f" {written}\n" in text_of([Family("ratchet_odd", "gauge", "x", [({}, value)])])


def test_the_metrics_of_a_store_say_what_its_nights_came_to(store: Store, tmp_path: Path) -> None:
    """One night of each verdict, two that were held; the last one is compared, and its version serves."""
    for number, verdict in enumerate(["held", *VERDICTS], 1):
        night(store, number, verdict)
    last = night(store, 9, "promoted", cost={"training_seconds": 40.0, "dollars": 0.5})
    version = published(store, tmp_path, b"weights")
    registry.promote(store, version, None, run_id=last.run_id, who="w", reason="r", scores={})

    found = read(Metrics(store).text())

    def value(name: str, **labels: str) -> float:
        return found[name, tuple(sorted(labels.items()))]

    counted = {verdict: value("ratchet_runs_total", verdict=verdict) for verdict in VERDICTS}
    assert counted == {"promoted": 2, "held": 2, "regressed": 1, "blocked": 1, "skipped": 1, "failed": 1}
    assert value("ratchet_last_run_info", run_id=last.run_id, verdict="promoted") == 1
    assert value("ratchet_last_run_end_timestamp_seconds") == datetime(2026, 11, 9, 3, 32, 11, tzinfo=UTC).timestamp()
    assert value("ratchet_last_run_step_seconds", step="checks") == 7.9
    assert value("ratchet_last_run_rows", kind="accepted") == 1504
    assert value("ratchet_last_run_rows", kind="rejected") == 3
    assert value("ratchet_last_run_cost_dollars") == 0.5
    # four nights cost what the example says, one half a dollar
    assert value("ratchet_training_cost_dollars_total") == pytest.approx(4 * 0.0101 + 0.5)
    assert value("ratchet_score", metric="recall_at_10", side="candidate") == 0.9422
    assert value("ratchet_score", metric="mrr", side="production") == 0.7433
    assert value("ratchet_score", metric="mrr", side="base") == 0.6108
    delta = last.deltas["mrr"]
    bounds = [value(f"ratchet_score_delta{bound}", metric="mrr") for bound in ("", "_low", "_high")]
    assert bounds == [delta.value, delta.low, delta.high]
    assert value("ratchet_production_info", version=version, action="promotion", run_id=last.run_id) == 1
    assert value("ratchet_production_changes_total") == 1
    age = value("ratchet_production_age_seconds")
    assert 0 <= age < 600
    began = datetime.fromtimestamp(value("ratchet_production_start_timestamp_seconds"), UTC)
    assert abs(datetime.now(UTC) - began - timedelta(seconds=age)) < timedelta(seconds=60)


def test_an_empty_store_has_metrics_and_so_has_one_with_a_damaged_outcome(store: Store) -> None:
    """Nothing is in production, and no run has ended: there are no samples of either."""
    assert {name for name, _ in read(Metrics(store).text())} == {
        "ratchet_runs_total",
        "ratchet_training_cost_dollars_total",
    }
    night(store, 1, "held")
    store.put("runs/20261102T033000Z-0123abcd/outcome.json", b"{")
    assert read(Metrics(store).text())["ratchet_runs_total", (("verdict", "held"),)] == 1


def test_a_run_that_failed_and_was_made_again_leaves_no_counter_falling(store: Store) -> None:
    """Counted for ever, by one process and, through the text in the store, by the next one; outcomes are read once."""
    night(store, 1, "held")
    night(store, 2, "failed")
    metrics = Metrics(store)
    failed = ("ratchet_runs_total", (("verdict", "failed"),))
    assert read(metrics.text())[failed] == 1
    telemetry.write_metrics(store)
    night(store, 2, "held")
    store.put("runs/20261101T033000Z-0123abcd/outcome.json", b"not looked at again")
    for text in (metrics.text(), Metrics(store).text()):
        assert read(text)[failed] == 1
    assert read(metrics.text())["ratchet_runs_total", (("verdict", "held"),)] == 2


def test_a_fast_clock_is_not_the_last_run(store: Store) -> None:
    """A run that was named, and ended, in the future is the last one only where there is no other."""
    ahead = night(store, 1, "held", run_id="20991101T033000Z-0123abcd", finished_at="2099-11-01T03:32:11Z")
    labels = (("run_id", ahead.run_id), ("verdict", "held"))
    assert ("ratchet_last_run_info", labels) in read(Metrics(store).text())
    night(store, 1, "skipped")
    assert ("ratchet_last_run_info", labels) not in read(Metrics(store).text())


# --- at an address -------------------------------------------------------------------------------------------


@contextmanager
def exporting(text: Callable[[], str], token: str | None = None) -> Iterator[str]:
    """An exporter on loopback; its address."""
    exporter = Exporter(("127.0.0.1", 0), text, token)
    with serving(exporter):
        yield f"http://127.0.0.1:{exporter.server_address[1]}"


def ask(url: str, token: str | None = None) -> tuple[int, str, str]:
    """Status, content type and text of an answer."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as reply:
            return reply.status, reply.headers["Content-Type"], reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def test_prometheus_reads_the_metrics_at_an_address(store: Store) -> None:
    """By the content type of the format; nothing else is served, and a fresh text is not made again."""
    night(store, 1, "held")
    texts = []

    def text() -> str:
        texts.append(Metrics(store).text())
        return texts[-1]

    with exporting(text) as url:
        status, kind, body = ask(f"{url}/metrics")
        assert status == 200
        assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert read(body)["ratchet_runs_total", (("verdict", "held"),)] == 1
        assert ask(f"{url}/metrics?x=1")[2] == body
        assert len(texts) == 1
        assert ask(f"{url}/")[0] == 404
        assert ask(f"{url}/../etc/passwd")[0] == 404


def test_with_a_token_only_those_who_send_it_read() -> None:
    """A wrong one, none, and one with other letters are refused before the store is asked."""
    with exporting(lambda: "# EOF\n", "a-token-of-some-length") as url:
        assert ask(f"{url}/metrics")[0] == 401
        assert ask(f"{url}/metrics", "a-token-of-some-lengt")[0] == 401
        assert ask(f"{url}/metrics", "\xe4\xf6")[0] == 401
        assert ask(f"{url}/metrics", "a-token-of-some-length")[0] == 200


def test_a_store_that_is_away_is_an_error_and_not_old_numbers() -> None:
    """Prometheus then says that the target is down; the next request tries again."""
    answers = iter([StoreError("cannot list s3://b/runs/"), None])

    def text() -> str:
        error = next(answers)
        if error:
            raise error
        return "# EOF\n"

    with exporting(text) as url:
        assert ask(f"{url}/metrics") == (503, "text/plain; charset=utf-8", "cannot list s3://b/runs/\n")
        assert ask(f"{url}/metrics")[0] == 200


def test_the_command_prints_them_and_listens_beyond_this_machine_only_with_a_token(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no address, and a token that anybody would guess, are bad usage."""
    night(store, 1, "held")
    monkeypatch.setenv("RATCHET_STORE", store.url)
    monkeypatch.delenv("RATCHET_METRICS_TOKEN", raising=False)
    said = CliRunner().invoke(app, ["metrics"], catch_exceptions=False)
    assert read(said.stdout)["ratchet_runs_total", (("verdict", "held"),)] == 1

    def refused(listen: str) -> str:
        return str(CliRunner().invoke(app, ["metrics", "--listen", listen]).exception)

    for listen in ("0.0.0.0:9464", "[::]:9464", "10.0.0.1:9464", "example.org:9464"):
        assert "set RATCHET_METRICS_TOKEN" in refused(listen)
    for listen in ("", "host", "127.0.0.1:", "127.0.0.1:65536", "1:-1"):
        assert "[HOST:]PORT" in refused(listen)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refused(str(port)) == f"cannot listen on {port}: Address already in use"
    monkeypatch.setenv("RATCHET_METRICS_TOKEN", "short")
    assert "at least 16" in refused("127.0.0.1:9464")


# --- lineage -------------------------------------------------------------------------------------------------


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    """A receiver that OPENLINEAGE_URL names."""
    with receiving(tmp_path) as found:
        yield found


@pytest.fixture
def nowhere(tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """No configuration of OpenLineage."""
    with unconfigured(tmp_path) as patch:
        yield patch


def test_a_run_is_a_start_and_an_end_with_what_it_read_and_made(receiver: Receiver) -> None:
    """One run id in both; pairs of the commit and production go in, the candidate and the new production come out."""
    store = Store("s3://bucket/team", None)
    made = outcome("promoted")
    lineage.started(store, made.run_id)
    lineage.ended(store, made)
    start, end = receiver.events
    assert receiver.paths == {"/api/v1/lineage"}
    assert (start["eventType"], end["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == end["run"]["runId"]
    assert (start["inputs"], start["outputs"]) == ([], [])
    for event in (start, end):
        assert event["job"]["namespace"] == "ratchet"
        assert event["job"]["name"] == "retrain"
        assert event["job"]["facets"]["jobType"]["processingType"] == "BATCH"
        assert event["run"]["facets"]["nominalTime"]["nominalStartTime"] == "2026-11-24T03:30:00+00:00"
        assert event["schemaURL"].startswith("https://openlineage.io/spec/")
        assert datetime.fromisoformat(event["eventTime"]).tzinfo is not None
    pairs, production = end["inputs"]
    assert (pairs["namespace"], pairs["name"]) == ("s3://bucket", "team/pairs")
    assert pairs["facets"]["version"]["datasetVersion"] == "8"
    assert pairs["inputFacets"]["inputStatistics"]["rowCount"] == 1504
    assert production["name"] == "team/models/c0ffee112233"
    candidate, pointer = end["outputs"]
    assert candidate["name"] == "team/models/5a1f0c3d9b2e"
    assert pointer["name"] == "team/production.json"
    assert pointer["facets"]["lifecycleStateChange"]["lifecycleStateChange"] == "OVERWRITE"
    tags = {tag["key"]: tag["value"] for tag in end["run"]["facets"]["tags"]["tags"]}
    assert tags["verdict"] == "promoted"


@pytest.mark.parametrize(
    ("verdict", "state", "inputs", "outputs"),
    [
        ("held", "COMPLETE", 2, 1),
        ("regressed", "COMPLETE", 2, 1),
        ("skipped", "COMPLETE", 1, 0),
        ("blocked", "ABORT", 1, 0),
        ("failed", "FAIL", 0, 0),
    ],
)
def test_each_verdict_is_a_state(receiver: Receiver, verdict: Any, state: str, inputs: int, outputs: int) -> None:
    """A candidate that does not serve is an output all the same; of a run that stopped the reason is told."""
    made = outcome(verdict)
    lineage.ended(Store("s3://bucket", None), made)
    (event,) = receiver.events
    assert event["eventType"] == state
    assert (len(event["inputs"]), len(event["outputs"])) == (inputs, outputs)
    said = event["run"]["facets"].get("errorMessage", {}).get("message", "")
    assert said == (" ".join(made.reasons) if state in {"ABORT", "FAIL"} else "")


def test_a_run_that_is_cancelled_is_aborted(receiver: Receiver) -> None:
    """What it would have come to is not known."""
    lineage.cancelled(Store("s3://bucket", None), outcome("held").run_id)
    assert receiver.states == ["ABORT"]


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (None, "COMPLETE", ""),
        (RuntimeError("no power"), "FAIL", "RuntimeError: no power"),
        (KeyboardInterrupt(), "ABORT", ""),
    ],
)
def test_any_other_run_is_told_as_well(receiver: Receiver, error: BaseException | None, state: str, said: str) -> None:
    """By the name of its job; what it had read and made by then is told, and no user of a database is."""
    run_id = outcome("held").run_id
    with (
        suppress(RuntimeError, KeyboardInterrupt),
        telemetry.told(Store("s3://b/team", None), "reindex", run_id) as told,
    ):
        told.reads_model("c0ffee112233")
        told.reads_model(None)
        told.fills("postgresql://ann@db.example.org/search", "docs_1", 40)
        told.fills("lancedb:/data/index", "docs_1", 40)
        if error:
            raise error
    start, end = receiver.events
    assert (start["eventType"], end["eventType"], end["job"]["name"]) == ("START", state, "reindex")
    assert start["run"]["runId"] == end["run"]["runId"]
    assert end["run"]["facets"].get("errorMessage", {}).get("message", "") == said
    assert [(one["namespace"], one["name"]) for one in end["inputs"]] == [("s3://b", "team/models/c0ffee112233")]
    assert [(one["namespace"], one["name"]) for one in end["outputs"]] == [
        ("postgres://db.example.org:5432", "search.docs_1"),
        ("file", "/data/index/docs_1"),
    ]
    assert [one["outputFacets"]["outputStatistics"]["rowCount"] for one in end["outputs"]] == [40, 40]


@pytest.mark.usefixtures("nowhere")
def test_a_file_names_the_transport(tmp_path: Path) -> None:
    """As the client's documentation has it: openlineage.yml where the worker runs."""
    log = tmp_path / "events.json"
    (tmp_path / "openlineage.yml").write_text(f"transport:\n  type: file\n  log_file_path: {log}\n  append: true\n")
    lineage.started(Store("s3://bucket", None), outcome("held").run_id)
    assert json.loads(log.read_text())["eventType"] == "START"


def test_without_a_configuration_nothing_is_sent(
    nowhere: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Nor printed, which is what the client does by itself; nor where a person disabled it."""
    caplog.set_level("INFO")
    for name, value in (("UNRELATED", "1"), ("OPENLINEAGE_CONFIG", "/nowhere.yml"), ("OPENLINEAGE_DISABLED", "true")):
        nowhere.setenv(name, value)
        lineage.started(Store("s3://bucket", None), outcome("held").run_id)
    assert not any("eventType" in text for text in (*capfd.readouterr(), caplog.text))


def test_a_receiver_that_does_not_answer_is_not_waited_for(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The call returns while the receiver still keeps the request."""
    monkeypatch.setattr(lineage, "_SECONDS", 0.01)
    receiver.answers.clear()
    lineage.started(Store("s3://bucket", None), outcome("held").run_id)
    assert "no longer waited for" in caplog.text
    assert receiver.events == []


def test_a_receiver_that_is_away_costs_nothing_but_a_line(
    nowhere: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody listens there; and a configuration that makes no sense is no reason to end either."""
    nowhere.setattr(lineage, "_SECONDS", 0.5)
    nowhere.setenv("OPENLINEAGE_URL", "http://127.0.0.1:9")
    lineage.started(Store("s3://bucket", None), outcome("held").run_id)
    assert "lineage of this run" in caplog.text
    caplog.clear()
    nowhere.setenv("OPENLINEAGE__TRANSPORT", '{"type": "no such transport"}')
    lineage.ended(Store("s3://bucket", None), outcome("held"))
    assert "was not sent" in caplog.text


@pytest.mark.parametrize(
    ("target", "namespace"),
    [
        ("postgresql://ann@a.example,b.example:5433/search", "postgres://a.example,b.example:5433"),
        ("postgresql://a.example:5432,b.example:5433/search", "postgres://a.example:5432,b.example:5433"),
        ("postgresql://[::1]/search", "postgres://[::1]:5432"),
        ("postgresql:///search", "postgres://localhost:5432"),
    ],
)
def test_any_address_of_a_target_is_noted(target: str, namespace: str) -> None:
    """A reindex that has switched does not fail by what is told of it: several hosts have no single port."""
    told = Lineage(Store("s3://bucket", None), "reindex", outcome("held").run_id)
    told.fills(target, "docs_1", 40)
    assert [(one.namespace, one.name) for one in told.outputs] == [(namespace, "search.docs_1")]
