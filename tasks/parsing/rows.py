"""What a row is: which column holds what, and what makes a row one that is taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, NamedTuple

import pyarrow as pa

from tasks.config import Limits
from tasks.parsing.understood import Understood
from tasks.parsing.unpacking import RefusedError

KINDS: Final = {"pairs": "pair", "golden": "golden", "corpus": "corpus"}
"""What the rows of an object are, by the first folder of its key."""

PARSED: Final = pa.schema(
    [
        ("query", pa.string()),
        ("document", pa.string()),
        ("negatives", pa.list_(pa.string())),
        ("score", pa.float64()),
        ("slice", pa.string()),
        ("line", pa.int64()),
    ]
)
"""Columns of the rows that parsing accepts."""

SPELLINGS: Final = (
    ("query", "document"),
    ("anchor", "positive"),
    ("question", "answer"),
    ("sentence1", "sentence2"),
    ("text_a", "text_b"),
)
"""Names of query and document; the first pair of which a row has both is the one that counts."""

SCORED: Final = frozenset({"sentence1", "text_a"})
"""Spellings of scored pairs: without a score nothing says that the two texts belong together."""

SHOWN_CHARS: Final = 200
"""Characters of a rejected row that its record keeps."""

_UNSEEN: Final = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
"""Characters that are no white space and yet show nothing."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was not taken: which (line 0: the whole object), why, and the start of its text."""

    object: str
    line: int
    reason: str
    text: str


class Chunk(NamedTuple):
    """Some rows of an object in order (schema PARSED), and the rows among them that were rejected."""

    rows: pa.RecordBatch
    rejected: list[Rejected]
    understood: Understood | None = None
    """What was made of the whole object; the last chunk of an object has it, and no other."""


def kind_of(key: str) -> str:
    """The kind of an object's rows: "pair", "golden" or "corpus". Raises KeyError for any other folder."""
    return KINDS[key.partition("/")[0]]


# --- which column is what --------------------------------------------------------------------------------


class Columns(NamedTuple):
    """The names under which a row holds its parts; empty or None where there is no such part."""

    query: str | None
    document: str
    negatives: tuple[str, ...]
    score: str | None
    slice: str | None
    scored: bool
    """Whether every row needs a score."""


def find_columns(names: Sequence[str], kind: str) -> Columns:
    """Which of the names hold what. Case and blanks around a name do not matter; other columns are left alone.

    Raises RefusedError when a part is missing, or there twice.
    """
    found: dict[str, str] = {}
    for name in names:
        plain = name.strip().lower()
        if plain in found and plain in _KNOWN:
            raise RefusedError(f"{plain} is there twice")
        found[plain] = name
    if kind == "corpus":
        if "text" not in found and "document" not in found:
            raise RefusedError("no text")
        return Columns(None, found["text"] if "text" in found else found["document"], (), None, None, scored=False)
    query, document = next((pair for pair in SPELLINGS if found.keys() >= set(pair)), (None, None))
    if query is None or document is None:
        raise RefusedError(_what_is_missing(found.keys()))
    if query in SCORED and "score" not in found:
        raise RefusedError(f"{query} and {document} without a score")
    negatives = tuple(found[name] for name in ("negative", "negatives") if name in found)
    scored = query in SCORED
    return Columns(found[query], found[document], negatives, found.get("score"), found.get("slice"), scored)


_KNOWN: Final = frozenset(chain(*SPELLINGS, ("negative", "negatives", "score", "slice", "text")))


def _what_is_missing(names: Iterable[str]) -> str:
    present = set(names)
    for query, document in SPELLINGS:
        if query in present:
            return f"{query} without {document}"
        if document in present:
            return f"{document} without {query}"
    return "neither query and document nor another spelling of them"


# --- one row ---------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """Rows of one object as they are gathered: accepted ones by column, rejected ones by record."""

    key: str
    limits: Limits
    kind: str = ""
    query: list[str | None] = field(default_factory=list)
    document: list[str] = field(default_factory=list)
    negatives: list[list[str]] = field(default_factory=list)
    score: list[float | None] = field(default_factory=list)
    slice: list[str | None] = field(default_factory=list)
    line: list[int] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kind = kind_of(self.key)

    def __len__(self) -> int:
        return len(self.line) + len(self.rejected)

    def add(self, line: int, row: Mapping[str, Any], columns: Columns) -> str | None:
        """Accept a row, or say why not."""
        document = row[columns.document]
        most = self.limits.max_text_chars
        # _fault spelt out, because two calls for every row cost a tenth of the time
        suspect = type(document) is not str or not document or document.isspace() or document[0] in _UNSEEN
        if suspect or len(document) > most or "\0" in document:
            reason = _fault("document", document, most)
            if reason is not None:
                return reason
        query = None
        if columns.query is not None:
            query = row[columns.query]
            suspect = type(query) is not str or not query or query.isspace() or query[0] in _UNSEEN
            if suspect or len(query) > most or "\0" in query:
                reason = _fault("query", query, most)
                if reason is not None:
                    return reason
        negatives: list[str] = []
        for name in columns.negatives:
            value = row[name]
            if value is not None:
                negatives += value if type(value) is list else (value,)
        if negatives:
            if len(negatives) > self.limits.max_negatives:
                return f"more than {self.limits.max_negatives} negatives"
            for text in negatives:
                reason = _fault("negative", text, most)
                if reason is not None:
                    return reason
        score = None if columns.score is None else row[columns.score]
        if score is not None:
            if type(score) is not float and type(score) is not int:
                return "score is not a number"
            if not 0.0 <= score <= 1.0:
                return "score is not within 0 to 1"
        elif columns.scored:
            return "no score"
        cut = None if columns.slice is None else row[columns.slice]
        if cut is not None:
            reason = _fault("slice", cut, most)
            if reason is not None:
                return reason
        self.query.append(query)
        self.document.append(document)
        self.negatives.append(negatives)
        self.score.append(score)
        self.slice.append(cut)
        self.line.append(line)
        return None

    def reject(self, line: int, reason: str, text: str | bytes) -> None:
        """Record a row that is not taken, with the start of its text."""
        if isinstance(text, bytes):
            # a character is at most four bytes: enough for all that are shown
            text = text[: 4 * SHOWN_CHARS].decode(errors="replace")
        self.rejected.append(Rejected(self.key, line, reason, text[:SHOWN_CHARS].strip("\r\n")))

    def chunk(self) -> Chunk:
        """Everything since the last chunk."""
        columns = [self.query, self.document, self.negatives, self.score, self.slice, self.line]
        arrays = [pa.array(column, part.type) for column, part in zip(columns, PARSED, strict=True)]
        done = Chunk(pa.RecordBatch.from_arrays(arrays, schema=PARSED), self.rejected)
        self.query, self.document, self.negatives, self.score, self.slice, self.line = [], [], [], [], [], []
        self.rejected = []
        return done


def _fault(part: str, text: object, most: int) -> str | None:
    """What is wrong with a text, or None."""
    if text is None:
        return f"no {part}"
    if type(text) is not str:
        return f"{part} is not a text"
    if not text.strip().strip(_UNSEEN):
        return f"empty {part}"
    if len(text) > most:
        return f"{part} longer than {most} characters"
    if "\0" in text:
        return f"NUL in {part}"
    return None
