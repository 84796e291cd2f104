"""What people are told: the text of each alert, and that nothing in the data can make it say or do anything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.blocks.abstract import NotificationBlock

from deployments.server import channels
from deployments.server.settings import Channel
from tasks import alerts, scoring
from tasks.config import Delta, GuardResult, Model, Outcome, Pending, Refused
from tasks.intake import take_in
from tasks.publishing import Result
from tasks.report import Evidence, Fallen, evidence
from tasks.report.messages import LONGEST, message, plain, quote
from tasks.runs import Run
from tasks.storage import Store
from tasks.watch import Seen, Standstill
from tasks.watch.messages import news

HOSTILE = [
    "<!channel> <!here|all> <@U123> <https://evil.example|your bank>",
    "[click](https://evil.example) ![x](http://evil.example/a.png)",
    "@channel @everyone @here mailto:a@b.c https://evil.example www.evil.example",
    "`code` ``` *bold* _it_ ~no~",
    "{{ address }} {% for x in y %} {# #} ${HOME} {{ event.payload }}",
    "line\nbreak\r\x1b[31mred\x00\u202eright to left\u2028\u200b",
    "x" * 5_000,
    "\ud800",
    "",
]

OUTCOME = Outcome(
    run_id="20261102T033000Z-00000000",
    verdict="regressed",
    reasons=["Recall@10 fell."],
    commit=3,
    candidate=Model(version="c" * 16, scores={"recall_at_10": 0.71, "mrr": 0.52}),
    production=Model(version="p" * 16, scores={"recall_at_10": 0.8, "mrr": 0.6}),
    deltas={
        "recall_at_10": Delta(value=-0.09, low=-0.12, high=-0.05, confidence=0.99),
        "mrr": Delta(value=-0.08, low=-0.11, high=-0.04, confidence=0.99),
    },
    production_after="p" * 16,
    report="s3://bucket/runs/20261102T033000Z-00000000/report.html",
)

EXPECTED = """\
Candidate cccccccccccccccc is significantly worse than version pppppppppppppppp. It was not promoted.
Recall@10: 0.800 to 0.710, -9.0 points (-12.0 to -5.0 with 99% confidence each)
MRR: 0.600 to 0.520, -8.0 points (-11.0 to -4.0 with 99% confidence each)
Worst slices:
- `slice docs` (40 queries): MRR -20.0 points, Recall@10 -25.0 points
Worst queries, with the rank of the first right document:
- `how do I reset it`: 1, now 4
- `where is it`: 2, now not found
New data since run r0, the last good night: 2 objects, 110 rows, 3 rejected.
- `pairs/b.jsonl`: 100 rows, 3 rejected
- `pairs/a.jsonl`: 10 rows, 0 rejected
Production is pppppppppppppppp, as before.
Run: http://127.0.0.1:4200/runs/flow-run/1
Report: s3://bucket/runs/20261102T033000Z-00000000/report.html"""


def test_a_regression_says_all_that_is_needed_at_four_in_the_morning() -> None:
    """Model, both metrics of both with intervals, slices, queries, new data, links."""
    found = Evidence(
        slices=[("slice docs", 40, {"recall_at_10": -0.25, "mrr": -0.2})],
        queries=[Fallen("how do I reset it", 1.0, 0.25), Fallen("where is it", 0.5, 0.0)],
        since="r0",
        objects=[("pairs/a.jsonl", 10, 0), ("pairs/b.jsonl", 100, 3)],
    )
    said = message(OUTCOME, found, "http://127.0.0.1:4200/runs/flow-run/1")
    assert said.title == "Ratchet: the new model is worse than production"
    assert said.text == EXPECTED
    assert not set(said.text) & set("<>|")


def test_a_regression_names_the_objects_that_were_not_taken() -> None:
    """Unreadable and refused ones, with the reason: they may be why the model is worse."""
    pending = Pending(key="pairs/locked.jsonl", reason="AccessDenied")
    refused = Refused(key="pairs/junk.csv", reason="UTF-16 text: save it as UTF-8", rows=500)
    said = message(OUTCOME.model_copy(update={"pending": [pending], "refused": [refused]}), Evidence(), None)
    assert "- `pairs/locked.jsonl` could not be read: AccessDenied" in said.text
    assert "- `pairs/junk.csv` was refused: UTF-16 text: save it as UTF-8" in said.text


def test_a_regression_without_evidence_is_told_all_the_same() -> None:
    """Also with no score at all."""
    bare = OUTCOME.model_copy(update={"candidate": None, "production": None, "deltas": {}, "report": None})
    said = message(bare, Evidence(), None)
    assert "Recall@10: not known." in said.text
    assert f"Run: {OUTCOME.run_id}" in said.text


def test_a_long_message_is_cut_and_keeps_its_end() -> None:
    """As much as 3,000 characters hold, and always what serves and where to look."""
    found = Evidence(
        queries=[Fallen("word " * 100, 1.0, 0.1)] * 100, objects=[(f"pairs/{'x' * 900}{i}", 1, 0) for i in range(900)]
    )
    said = message(OUTCOME, found, "http://127.0.0.1:4200/runs/flow-run/1")
    assert len(said.text) <= LONGEST
    assert "(More in the report.)" in said.text
    assert said.text.endswith("report.html")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_are_plain(text: str) -> None:
    """Nothing notifies, links, breaks out of the quotes, or is a placeholder; one line, of bounded length."""
    quoted = quote(text)
    assert quoted[0] == quoted[-1] == "`"
    assert len(quoted) <= 122 + 120  # the invisible breaks in addresses come on top
    assert not set(quoted[1:-1]) & set("`<>[]{}\n\r\x00\x1b\u202e\u2028")
    assert "://" not in quoted
    assert "@c" not in quoted
    quoted.encode()


@given(st.text())
def test_any_text_becomes_one_plain_line(text: str) -> None:
    """Whatever it is; and plain text stays plain."""
    once = plain(text)
    assert not set(once) & set("`<>[]{}\n\r\t\x00")
    once.encode()


def _posted(block: NotificationBlock, body: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a block would post to its service, as JSON."""
    import requests

    sent: list[Any] = []

    def request(_session: requests.Session, **named: Any) -> requests.Response:
        sent.append(json.loads(named["data"]))
        reply = requests.Response()
        reply.status_code, reply._content = 200, b"ok"
        return reply

    monkeypatch.setattr(requests.Session, "request", request)
    with block.raise_on_failure():
        block.notify(body=body, subject="Ratchet: a title")
    (one,) = sent
    return one


_FLOW = (
    "https://prod-01.westeurope.logic.azure.com:443/workflows/0123456789abcdef0123456789abcdef/triggers/manual/paths/"
    "invoke?api-version=2016-06-01&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig=0123456789abcdef0123456789abcdef0123456789a"
)


@pytest.mark.parametrize(
    ("kind", "secret"),
    [
        ("slack", "https://hooks.slack.com/services/T0AAAAAAA/B0AAAAAAA/abcdefghijklmnopqrstuvwx"),
        ("teams", _FLOW),
        ("pagerduty", "0123456789abcdef0123456789abcdef"),
        ("email", "SG.0123456789abcdef"),
    ],
)
def test_what_each_channel_posts(kind: Any, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The services can't be reached here: what Prefect's blocks would send them holds the text, and no mention."""
    address = {"sender": "ratchet@example.com", "recipients": ("ops@example.com",)} if kind == "email" else {}
    block = channels.build("x", Channel(kind=kind, secret_env="X", **address), secret)
    found = Evidence(queries=[Fallen(text, 1.0, 0.5) for text in HOSTILE[:5]])
    body = message(OUTCOME, found, "http://127.0.0.1:4200/runs/flow-run/1").text
    posted = json.dumps(_posted(block, body, monkeypatch), ensure_ascii=False)
    assert "is significantly worse than version" in posted.replace("%20", " ")
    assert "a title" in posted
    for hostile in ("<!", "<@", "<http", "](", "{{"):
        assert hostile not in posted


def test_evidence_of_a_night(store: Store) -> None:
    """The worst slices and queries of the run's own files, and the objects since the last night that was good."""
    held = OUTCOME.model_copy(update={"run_id": "20261101T033000Z-00000000", "verdict": "held", "commit": 1})
    Run(store, held.run_id).put_outcome(held)
    for place in range(3):
        store.put(f"pairs/{place}.jsonl", b'{"query": "a", "document": "b"}\n' * (place + 1))
        take_in(store, writer="test")
    slices = {
        name: {"queries": 40, "judged": True, "values": {"recall_at_10": value, "mrr": 0.0}}
        for name, value in (("a", 0.1), ("b", -0.3), ("c", -0.1), ("d", -0.2), ("e", -0.4))
    }
    folder = f"runs/{OUTCOME.run_id}"
    store.put(f"{folder}/decision.json", json.dumps({"verdict": "regressed", "reasons": [], "slices": slices}).encode())
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"query": ["same", "worse", "better"], "slice": [None] * 3, "golden": [False] * 3}
    for side, mrr in ((scoring.PRODUCTION, [1.0, 1.0, 0.1]), (scoring.CANDIDATE, [1.0, 0.2, 1.0])):
        columns |= {f"{side}_mrr": mrr, f"{side}_recall_at_10": [1.0] * 3}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    store.put(f"{folder}/per_query.parquet", sink.getvalue().to_pybytes())

    found = evidence.gather(store, OUTCOME)
    assert [name for name, *_ in found.slices] == ["e", "b", "d"]
    assert found.queries == [Fallen("worse", 1.0, 0.2)]
    assert found.since == "20261101T033000Z-00000000"
    assert found.objects == [("pairs/1.jsonl", 2, 0), ("pairs/2.jsonl", 3, 0)]


def test_standstill_is_told_again_at_every_multiple() -> None:
    """14 nights, then 28: the identity under which it is told once changes in between, and only then."""

    def told(nights: int) -> str:
        (one,) = news(Seen(version="v", says="", standstill=[Standstill("nights", nights, 14)], change=3))
        assert f"No promotion for {nights} nights" in one.message.text
        return one.identity

    assert told(14) == told(27) != told(28)
    (base,) = news(Seen(version=None, says="", standstill=[Standstill("days", 31.2, 30)]))
    assert base.message.text.startswith("The base model has served for 31 days (limit 30).")


def test_an_object_that_three_nights_could_not_read_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before; then by the same event every night, on whose id the server acts once; another object has its own."""
    sent: list[Any] = []
    monkeypatch.setattr(alerts, "_deliver", sent.append)
    seen = Pending(key="pairs/<!channel>.jsonl", reason="cannot read it: AccessDenied", nights=2, since="run-1")
    for nights in (2, 3, 4):
        pending = [
            seen.model_copy(update={"nights": nights}),
            seen.model_copy(update={"key": "b", "nights": nights - 1}),
        ]
        outcome = Outcome(run_id=f"run-{nights}", verdict="held", reasons=[], commit=1, pending=pending)
        alerts.announce_pending("s3://b", outcome, "https://prefect/run")
    assert [event.event for event in sent] == ["ratchet.objects.pending"] * 3
    assert [event.payload["key"] for event in sent] == [seen.key, seen.key, "b"]
    assert sent[0].id == sent[1].id != sent[2].id
    text = sent[0].payload["message"]
    assert "could not be read for 3 nights in a row" in text
    assert "AccessDenied" in text
    assert "<" not in text
    assert "https://prefect/run" in text


def test_a_guard_set_that_cannot_be_judged_is_told_once_for_a_streak(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same event every night; one that falls is no news of this kind."""
    sent: list[Any] = []
    monkeypatch.setattr(alerts, "_deliver", sent.append)
    why = "Guard set 'general' cannot be read: guard/general/: there is no corpus.jsonl <!channel>"
    guards = [
        GuardResult(name="general", verdict="not judged", reasons=[why]),
        GuardResult(name="b", verdict="falls"),
    ]
    for night in ("run-2", "run-3"):
        outcome = Outcome(run_id=night, verdict="held", reasons=[], commit=1, guards=guards)
        alerts.announce_guards("s3://b", outcome, {"general": "run-1"}, "https://prefect/run")
    assert [event.event for event in sent] == ["ratchet.guard.unjudged"] * 2
    assert sent[0].id == sent[1].id
    text = sent[0].payload["message"]
    assert "there is no corpus.jsonl" in text
    assert "nothing is promoted" in text
    assert "<" not in text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_a_registry_answers_is_plain_in_the_alert(hostile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes from outside; tried again the same event is sent, so the server tells it once."""
    sent: list[Any] = []
    monkeypatch.setattr(alerts, "_deliver", sent.append)
    for _ in range(2):
        alerts.announce_unpublished("s3://b", Result("mlflow", "search", "c" * 32, 3, error=f"answer: {hostile}"))
    text = sent[0].payload["message"]
    assert sent[0].id == sent[1].id
    assert sent[0].event == "ratchet.publishing.failed"
    assert "version cccc" in text
    assert not set("<>[]|{}") & set(text)
    assert len(text) <= LONGEST
