"""Real labelled data that every installation has: search in the documentation of AWS's own API.

botocore carries, for each service, worked examples (title and description, written by people) and the documentation of
every operation. What an example is about is the operation that it calls: so the example is a query, and the plain
text of that operation's documentation is the document to find. The documentation of operations without an example is
what a search has to tell it from. Nothing is generated, and the same botocore gives the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import orjson

from tasks.storage import Store, StoreError

_BLOCKS: Final = frozenset(
    {"p", "li", "ul", "ol", "dl", "dt", "dd", "note", "important", "caution", "br", "div", "pre", "table"}
)
"""Elements that end a word: without a space between them, two paragraphs would run together."""


@dataclass(frozen=True)
class DemoData:
    """The two objects of the demonstration, as JSON lines, and how many rows each has."""

    pairs: bytes
    corpus: bytes
    n_pairs: int
    n_corpus: int

    def upload(self, store: Store) -> None:
        """Put both objects into the store under names that follow from their content.

        Doing it again changes nothing. Raises StoreError when a name is taken by other bytes.
        """
        for folder, body in (("pairs", self.pairs), ("corpus", self.corpus)):
            key = f"{folder}/aws-{hashlib.sha256(body).hexdigest()[:16]}.jsonl"
            if store.put_if_absent(key, body) is None:
                raise StoreError(f"{store.uri(key)} holds other bytes than its name says")


def build(root: Path | None = None) -> DemoData:
    """Read the worked examples and the documentation of every service that has examples.

    `root` is botocore's `data` folder. Rows: `{"query", "document", "slice"}` with the service as slice, and
    `{"text", "slice"}`; no text is empty and no row is there twice. An old version of a service is not a second source
    of documents: its examples belong to the operation as the latest version documents it.
    """
    pairs: dict[tuple[str, str], bytes] = {}
    corpus: dict[str, bytes] = {}
    for service in sorted(path for path in (root or _botocore_data()).iterdir() if path.is_dir()):
        examples = list(_examples(service))
        if not examples:
            continue
        documents = _documents(service)
        for operation, query in examples:
            document = documents.get(operation, "")
            if query and document and query != document:
                row = {"query": query, "document": document, "slice": service.name}
                pairs.setdefault((query, document), orjson.dumps(row))
        for document in documents.values():
            if document:
                corpus.setdefault(document, orjson.dumps({"text": document, "slice": service.name}))
    for _, document in pairs:
        corpus.pop(document, None)
    return DemoData(b"\n".join(pairs.values()) + b"\n", b"\n".join(corpus.values()) + b"\n", len(pairs), len(corpus))


def _botocore_data() -> Path:
    spec = importlib.util.find_spec("botocore")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package botocore is missing: install the project's dependencies")
    return Path(spec.origin).parent / "data"


def _examples(service: Path) -> Iterator[tuple[str, str]]:
    """Each worked example of a service, over all its versions: operation, and title with description."""
    for path in sorted(service.glob("*/examples-1.json*")):
        for operation, examples in sorted(_read(path).get("examples", {}).items()):
            for example in examples:
                parts = (plain_text(example.get(name, "")).rstrip(".:") for name in ("title", "description"))
                yield operation, ". ".join(part for part in parts if part)


def _documents(service: Path) -> dict[str, str]:
    """The plain text of each operation's documentation, in the latest version of a service."""
    latest = max(service.glob("*/service-2.json*"))
    operations = _read(latest)["operations"]
    return {name: plain_text(operation.get("documentation", "")) for name, operation in sorted(operations.items())}


def _read(path: Path) -> dict[str, Any]:
    body = path.read_bytes()
    return dict(orjson.loads(gzip.decompress(body) if path.suffix == ".gz" else body))


class _Text(HTMLParser):
    """Collects the text of an HTML fragment."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 - the interface
        if tag in _BLOCKS:
            self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in _BLOCKS:
            self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def plain_text(html: str) -> str:
    """The text of an HTML fragment on one line: entities resolved, white space collapsed."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    return " ".join("".join(parser.parts).split())
