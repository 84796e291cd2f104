"""Exports of labelling tools: the examples in the documentation, votes, and what is not understood."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployments.stack.local import ROOT
from tasks.parsing import parse
from tasks.parsing.beir import convert_folder
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
    assert set(found.answers.values()) == {"relevant", "not relevant"}


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


def _argilla(*answers: dict[str, list[str] | None], document: str | None = "a document") -> bytes:
    """One record per argument: the answers to each question."""
    records = [
        {
            "fields": {"query": "a question", "document": document and f"{document} {number}"},
            "responses": {
                question: None if values is None else [{"value": value} for value in values]
                for question, values in given.items()
            },
        }
        for number, given in enumerate(answers)
    ]
    return json.dumps(records).encode()


def test_several_questions_have_to_be_chosen_from() -> None:
    """Answers to other questions are no votes against; the error names the questions."""
    export = _argilla({"relevance": ["relevant"], "fluency": ["bad"], "toxic": ["no"]}, {"relevance": ["not relevant"]})
    with pytest.raises(ConvertError, match=r"several questions: relevance, fluency, toxic; .* --question"):
        convert(export, Fields())
    assert _rows(convert(export, Fields(question="relevance")).body) == [
        {"query": "a question", "document": "a document 0", "negative": ["a document 1"]}
    ]


def test_answers_are_mapped_by_what_they_say_or_by_the_user() -> None:
    """Case does not matter; a grade between is neither for nor against until somebody says so."""
    export = _argilla({"q": ["Relevant"]}, {"q": ["Not Relevant"]}, {"q": ["unsure"]})
    assert len(_rows(convert(export, Fields()).body)) == 1
    graded = _argilla({"q": ["highly relevant"]}, {"q": ["somewhat relevant"]}, {"q": ["not relevant"]})
    with pytest.raises(
        ConvertError, match="'highly relevant' \\(1\\): relevant; 'somewhat relevant' \\(1\\): not known"
    ):
        convert(graded, Fields(relevant=("highly relevant",)))
    with pytest.raises(ConvertError, match="Say what each means"):
        convert(graded, Fields())
    found = convert(graded, Fields(relevant=("Highly Relevant",), skipped=("somewhat relevant",)))
    assert _rows(found.body)[0]["negative"] == ["a document 2"]
    also = convert(graded, Fields(relevant=("highly relevant", "somewhat relevant")))
    assert [row["document"] for row in _rows(also.body)] == ["a document 0", "a document 1"]


def test_named_answers_are_the_only_ones_for() -> None:
    """Who says that `highly relevant` counts has not said that `relevant` does."""
    export = _argilla({"q": ["highly relevant"]}, {"q": ["relevant"]})
    with pytest.raises(ConvertError, match="'relevant' \\(1\\): not known"):
        convert(export, Fields(relevant=("highly relevant",)))


def test_an_export_without_a_relevant_document_is_an_error() -> None:
    """An empty file would look like success."""
    with pytest.raises(ConvertError, match="there is no pair; answers: 'no' \\(not relevant\\)"):
        convert(_argilla({"q": ["no"]}), Fields())


def test_a_bad_task_costs_itself() -> None:
    """A text that is null, annotations that are null or of another shape: left out with their reason."""
    task = json.loads((EXAMPLES / "label-studio.json").read_text())
    bad = [
        {**task[0], "data": {"query": None, "document": "d"}},
        {**task[0], "annotations": None},
        {**task[0], "annotations": "x"},
        7,
    ]
    found = convert(json.dumps([*bad, *task]).encode(), Fields())
    assert found.body == convert(json.dumps(task).encode(), Fields()).body
    assert [reason.partition(" has")[0] for reason in found.left_out] == ["item 1", "item 3", "item 4 is not an object"]


def test_drafts_do_not_count_and_label_studios_small_export_is_read() -> None:
    """Argilla keeps drafts and discarded answers; JSON_MIN has the answer beside the texts."""
    record = json.loads(_argilla({"q": ["yes", "no"]}, {"q": ["yes"]}))
    record[0]["responses"]["q"][0]["status"] = "discarded"
    assert [row["document"] for row in _rows(convert(json.dumps(record).encode(), Fields()).body)] == ["a document 1"]
    small = [
        {"id": 1, "query": "q", "document": f"d{number}", "relevance": answer, "annotator": 1, "annotation_id": number,
         "lead_time": 1.5, "created_at": "2026-01-01", "updated_at": "2026-01-01"}
        for number, answer in enumerate(["Relevant", "Irrelevant"])
    ]  # fmt: skip
    assert _rows(convert(json.dumps(small).encode(), Fields()).body) == [
        {"query": "q", "document": "d0", "negative": ["d1"]}
    ]


def test_a_folder_in_beir_layout_is_joined(tmp_path: Path) -> None:
    """Titles before texts, scores of 0 as negatives; of several qrels one has to be chosen."""
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "1", "title": "Title", "text": "text"}\n{"_id": "2", "title": "", "text": "other"}\n'
    )
    (tmp_path / "queries.jsonl").write_text('{"_id": "7", "text": "a question"}\n')
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n7\t1\t2\n7\t2\t0\n")
    wanted = [{"query": "a question", "document": "Title text", "negative": ["other"]}]
    assert _rows(b"".join(convert_folder(tmp_path))) == wanted
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n7\t9\t1\n")
    with pytest.raises(ConvertError, match=r"has test\.tsv, train\.tsv: name one of them"):
        list(convert_folder(tmp_path))
    assert _rows(b"".join(convert_folder(tmp_path / "qrels" / "train.tsv"))) == wanted
    with pytest.raises(ConvertError, match=r"qrels/test\.tsv line 2 judges '9', which is not in the corpus"):
        list(convert_folder(tmp_path / "qrels" / "test.tsv"))


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
