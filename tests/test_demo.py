"""The demonstration's data: real labels, clean text, the same bytes every time."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest

from deployments import demo
from tasks.storage import Store, StoreError


def _rows(body: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in body.splitlines()]


def _service(
    root: Path, name: str, version: str, operations: dict[str, str], examples: dict[str, list[dict[str, str]]]
) -> None:
    folder = root / name / version
    folder.mkdir(parents=True)
    documented = {operation: {"documentation": html} for operation, html in operations.items()}
    (folder / "service-2.json.gz").write_bytes(gzip.compress(orjson.dumps({"operations": documented})))
    (folder / "examples-1.json").write_bytes(orjson.dumps({"examples": examples}))


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>Deletes a bucket.</p><p>It must be empty.</p>", "Deletes a bucket. It must be empty."),
        ("<ul><li>one</li><li>two</li></ul>", "one two"),
        ("the <code>Delete</code>d <b>key</b>s", "the Deleted keys"),
        ("a &lt;b&gt; &amp; c&nbsp;d", "a <b> & c d"),
        ("<p/>", ""),
        ("5 < 6 and\n\n  so on", "5 < 6 and so on"),
    ],
)
def test_html_becomes_plain_text(html: str, text: str) -> None:
    """Blocks end words, inline marks do not, entities are resolved, white space is one space."""
    assert demo.plain_text(html) == text


def test_examples_are_labelled_with_their_operations_documentation(tmp_path: Path) -> None:
    """Title and description find their operation's text; the text of the other operation is corpus."""
    operations = {"Make": "<p>Makes a thing.</p>", "Break": "<p>Breaks it.</p>", "Silent": ""}
    examples = {
        "Make": [{"title": "To make.", "description": "This example makes."}, {"title": "", "description": ""}],
        "Silent": [{"title": "To be silent"}],
        "Gone": [{"title": "To call what is documented no more"}],
    }
    _service(tmp_path, "things", "2020-01-01", operations, examples)
    data = demo.build(tmp_path)
    assert _rows(data.pairs) == [
        {"query": "To make. This example makes", "document": "Makes a thing.", "slice": "things"}
    ]
    assert _rows(data.corpus) == [{"text": "Breaks it.", "slice": "things"}]
    assert (data.n_pairs, data.n_corpus) == (1, 1)


def test_old_versions_of_a_service_add_examples_not_documents(tmp_path: Path) -> None:
    """The same operation, documented twice with small differences, would be two right answers of which one counts."""
    _service(tmp_path, "things", "2019-01-01", {"Make": "Old words."}, {"Make": [{"title": "From the old"}]})
    _service(tmp_path, "things", "2020-01-01", {"Make": "New words."}, {"Make": [{"title": "From the new"}]})
    data = demo.build(tmp_path)
    assert [(row["query"], row["document"]) for row in _rows(data.pairs)] == [
        ("From the old", "New words."),
        ("From the new", "New words."),
    ]
    assert data.n_corpus == 0


def test_the_installed_data_is_large_enough_and_clean() -> None:
    """Enough pairs for a sure verdict, no empty text, no row twice, no document both labelled and in the corpus."""
    data = demo.build()
    pairs, corpus = _rows(data.pairs), _rows(data.corpus)
    assert data.n_pairs == len(pairs) > 1_000
    assert data.n_corpus == len(corpus) > 1_000
    assert all(row["query"].strip() and row["document"].strip() for row in pairs)
    assert len({(row["query"], row["document"]) for row in pairs}) == len(pairs)
    assert not {row["document"] for row in pairs} & {row["text"] for row in corpus}
    assert demo.build() == data


def test_uploading_again_changes_nothing(store: Store) -> None:
    """Names follow from the content: a second upload, as after a kill, meets its own objects."""
    data = demo.DemoData(b'{"query":"a","document":"b"}\n', b'{"text":"c"}\n', 1, 1)
    data.upload(store)
    before = list(store.entries(""))
    data.upload(store)
    assert list(store.entries("")) == before
    assert sorted(entry.key.split("/")[0] for entry in before) == ["corpus", "pairs"]


def test_uploading_over_other_bytes_is_refused(store: Store) -> None:
    """A name that holds other bytes than it says is an error, never data for the night."""
    data = demo.DemoData(b'{"query":"a","document":"b"}\n', b'{"text":"c"}\n', 1, 1)
    data.upload(store)
    key = next(entry.key for entry in store.entries("pairs/"))
    store.put(key, b"cut")
    with pytest.raises(StoreError, match="other bytes"):
        data.upload(store)
