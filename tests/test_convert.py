"""Exports of labelling tools: the examples in the documentation, votes, and what is not understood."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployments.stack.local import ROOT
from tasks.parsing import parse
from tasks.parsing.exports import ConvertError, Fields, convert

EXAMPLES = ROOT / "docs" / "examples"
PASSWORD = "Open Settings, choose Security, press Reset password."
INVOICE = "Invoices are sent on the first of each month."


def _rows(body: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in body.splitlines()]


def test_label_studio() -> None:
    """Two relevant documents make two pairs, the refused one is a negative, a cancelled annotation says nothing."""
    found = convert((EXAMPLES / "label-studio.json").read_bytes(), Fields())
    assert _rows(found.body) == [
        {"query": "reset my password", "document": PASSWORD, "negative": [INVOICE]},
        {"query": "when do I get my bill", "document": INVOICE},
    ]
    assert (found.judged, found.undecided, found.alone) == (3, 0, 0)


def test_argilla() -> None:
    """Two of three say relevant: so it is. One against one says nothing, and leaves its query without a pair."""
    found = convert((EXAMPLES / "argilla.json").read_bytes(), Fields(question="relevance"))
    assert _rows(found.body) == [{"query": "reset my password", "document": PASSWORD, "negative": [INVOICE]}]
    assert (found.judged, found.undecided, found.alone) == (3, 1, 1)


def test_judged_lines_of_a_run() -> None:
    """True and false make a pair with a negative, null says nothing; one line alone is read as well."""
    lines = [
        {"query": "bill", "document": INVOICE, "relevant": True},
        {"query": "bill", "document": PASSWORD, "relevant": False},
        {"query": "login", "document": PASSWORD, "relevant": None},
    ]
    found = convert("\n".join(map(json.dumps, lines)).encode(), Fields())
    assert _rows(found.body) == [{"query": "bill", "document": INVOICE, "negative": [PASSWORD]}]
    assert (found.judged, found.queries, found.alone) == (2, 2, 1)
    assert convert(json.dumps(lines[0]).encode(), Fields(relevant="yes")).pairs == 1


def test_a_judgement_is_true_or_false() -> None:
    """A word may mean anything: the line is named."""
    lines = '{"query": "a", "document": "b", "relevant": true}\n{"query": "a", "document": "c", "relevant": "no"}'
    with pytest.raises(ConvertError, match="line 2 has 'no' as relevant; judgements are true, false or null"):
        convert(lines.encode(), Fields())
    with pytest.raises(ConvertError, match="no answer"):
        convert(b'{"query": "a", "document": "b", "relevant": null}', Fields())


@pytest.mark.parametrize("name", ["label-studio.json", "argilla.json"])
def test_what_is_written_is_what_intake_reads(name: str) -> None:
    """Every row is accepted."""
    found = convert((EXAMPLES / name).read_bytes(), Fields())
    chunks = list(parse("pairs/a.jsonl", found.body))
    assert sum(chunk.rows.num_rows for chunk in chunks) == found.pairs
    assert not any(chunk.rejected for chunk in chunks)


@pytest.mark.parametrize(
    ("export", "fields", "said"),
    [
        ("{", Fields(), "not JSON"),
        ("{}", Fields(), "not a list"),
        ('[{"id": 1}]', Fields(), "item 1 has neither"),
        ((EXAMPLES / "argilla.json").read_text(), Fields(query="q"), "no text 'q'; it has document, query"),
        ((EXAMPLES / "argilla.json").read_text(), Fields(question="other"), "no answer to question 'other'"),
    ],
    ids=["broken", "no list", "neither", "other field", "other question"],
)
def test_what_is_not_understood_is_said(export: str, fields: Fields, said: str) -> None:
    """The message names the place and what is missing."""
    with pytest.raises(ConvertError, match=said):
        convert(export.encode(), fields)


def _fails(*_: object) -> None:
    raise OSError("disk full")


def test_the_consumer_rebuilds_only_when_vectors_change(  # type: ignore[no-untyped-def]
    store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of the documentation on a real store: built, left alone, and built anew for another model."""
    import importlib.util

    from tasks import registry
    from tasks.scoring import serving
    from tests import tiny_models

    spec = importlib.util.spec_from_file_location("rebuild_index", EXAMPLES / "rebuild_index.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    etag = None
    for run, pooling in (("one", "mean"), ("two", "cls")):
        (tmp_path / run).mkdir()
        folder = tiny_models.save(tmp_path / run, pooling=pooling)
        version = registry.publish(store, folder, serving.describe(folder))
        registry.promote(store, version, etag, run_id=run, who="test", reason="test", scores={})
        production = registry.read_production(store)
        assert production is not None
        etag = production.etag
        with monkeypatch.context() as patch:
            patch.setattr(example.np, "save", _fails)
            with pytest.raises(OSError, match="disk full"):
                example.rebuild(store, ["a", "b"], tmp_path / "index")
        assert example.rebuild(store, ["a", "b"], tmp_path / "index")  # one failed attempt is in the way of nothing
        assert not example.rebuild(store, ["a", "b"], tmp_path / "index")
        assert version in (tmp_path / "index").readlink().name
