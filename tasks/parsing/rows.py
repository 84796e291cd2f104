"""What a row is, and what makes a row one that is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import pyarrow as pa

from tasks.config import Limits
from tasks.parsing.columns import Columns
from tasks.parsing.judged import Judged
from tasks.parsing.shapes import Shape, shape_of
from tasks.parsing.understood import Understood
from tasks.parsing.values import NOTHING, judge

KINDS: Final = {"pairs": "pair", "golden": "golden", "corpus": "corpus"}
"""What the rows of an object are, by the first folder of its key."""

PARSED: Final = pa.schema(
    [
        ("query", pa.string()),
        ("document", pa.string()),
        ("negatives", pa.list_(pa.string())),
        ("score", pa.float64()),
        ("slice", pa.string()),
        ("source", pa.string()),
        ("labeller", pa.string()),
        ("train_only", pa.bool_()),
        ("line", pa.int64()),
    ]
)
"""Columns of the rows that parsing accepts."""

SHOWN_CHARS: Final = 200
"""Characters of a rejected row that its record keeps."""

_UNSEEN: Final = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
"""Characters that are not white space and yet show nothing."""

_SUSPECT: Final = _UNSEEN + NOTHING[0]
"""First characters of texts that may hold nothing."""

_FLAGS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "none": None, "": None}
"""What a cell of `train_only` may say; an empty one says nothing."""

_MOST_DOCUMENTS: Final = 1_000
"""Documents that one row may hold."""

_MOST_COPIED: Final = 16 << 20
"""Characters that one row with several documents may come to."""


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
    source: list[str | None] = field(default_factory=list)
    labeller: list[str | None] = field(default_factory=list)
    train_only: list[bool | None] = field(default_factory=list)
    line: list[int] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    size: int = 0
    """Characters of the rows since the last chunk that hold more than their line does."""
    judged: Judged = field(default_factory=Judged)

    def __post_init__(self) -> None:
        self.kind = kind_of(self.key)

    def __len__(self) -> int:
        return len(self.line) + len(self.rejected)

    def add(self, line: int, row: Mapping[str, Any], columns: Columns) -> str | None:
        """Accept a row, or say why not."""
        if columns.shaped:
            return self._add_shaped(line, row, columns)
        query = None if columns.query is None else row[columns.query]
        negatives: list[str] = []
        for name in columns.negatives:
            value = row[name]
            if value is not None and value != NOTHING:
                negatives += value if type(value) is list else (value,)
        return self._accept(line, query, row[columns.document], negatives, row, columns)

    def note(self, row: Mapping[str, Any], columns: Columns) -> None:
        """Note what a judged row says, before any row of the object is added."""
        relevant, shape = judge(row[columns.judgement or ""]), shape_of(row, columns)
        if relevant is None or isinstance(shape, str) or self._first_fault(shape):
            return
        for document in shape.documents:
            self.judged.note(shape.query, document, relevant=relevant)

    def _add_shaped(self, line: int, row: Mapping[str, Any], columns: Columns) -> str | None:
        shape = shape_of(row, columns)
        reason = shape if isinstance(shape, str) else self._first_fault(shape)
        if reason is not None or isinstance(shape, str):
            return reason
        negatives = shape.negatives
        if columns.judgement is not None:
            relevant = judge(row[columns.judgement])
            reason = self.judged.fault(shape.query, shape.documents, relevant)
            if relevant is None:
                self.judged.unjudged += 1
            if reason is not None:
                return reason
            self.judged.count(relevant=bool(relevant))
            if not relevant:
                return None
            negatives = [*negatives, *self.judged.negatives(shape.query, self.limits, taken=negatives)]
        if len(shape.documents) > _MOST_DOCUMENTS:
            return f"more than {_MOST_DOCUMENTS} documents"
        size = sum(map(len, negatives)) + len(shape.query or "")
        if len(shape.documents) * size > _MOST_COPIED:
            return f"{len(shape.documents)} documents with {len(negatives)} negatives are too long together"
        for document in shape.documents:
            reason = self._accept(line, shape.query, document, negatives, row, columns)
            if reason is not None:
                return reason  # the first one says so already: nothing has been accepted
            self.size += size + len(document)
        return None

    def _first_fault(self, shape: Shape) -> str | None:
        """What is wrong with the first text of a row that cannot be taken."""
        most = self.limits.max_text_chars
        faults = (fault("document", text, most) for text in shape.documents)
        reason = next((reason for reason in faults if reason), None)
        return reason if reason or self.kind == "corpus" else fault("query", shape.query, most)

    def _accept(
        self, line: int, query: Any, document: Any, negatives: list[str], row: Mapping[str, Any], columns: Columns
    ) -> str | None:
        """Add one pair, or say why not."""
        most = self.limits.max_text_chars
        # the usual texts are sound: two calls of fault for every row would cost a tenth of the time
        suspect = type(document) is not str or not document or document.isspace() or document[0] in _SUSPECT
        if suspect or len(document) > most or "\0" in document:
            reason = fault("document", document, most)
            if reason is not None:
                return reason
        if columns.query is not None:
            suspect = type(query) is not str or not query or query.isspace() or query[0] in _SUSPECT
            if suspect or len(query) > most or "\0" in query:
                reason = fault("query", query, most)
                if reason is not None:
                    return reason
        score = None if columns.score is None else row[columns.score]
        cut = None if columns.slice is None else row[columns.slice]
        if negatives or score is not None or cut is not None or columns.scored or columns.train_only:
            reason = self._other_fault(negatives, score, cut, columns) or self._flag_fault(row, columns)
            if reason is not None:
                return reason
        self.query.append(query)
        self.document.append(document)
        self.negatives.append(negatives)
        self.score.append(None if columns.constant else score)
        self.slice.append(cut)
        self.source.append(None if columns.source is None else _name(row[columns.source]))
        self.labeller.append(None if columns.labeller is None else _name(row[columns.labeller]))
        self.train_only.append(None if columns.train_only is None else _FLAGS.get(str(row[columns.train_only]).lower()))
        self.line.append(line)
        return None

    def _other_fault(self, negatives: list[str], score: Any, cut: Any, columns: Columns) -> str | None:
        """What is wrong with the optional parts of a row."""
        if len(negatives) > self.limits.max_negatives:
            return f"more than {self.limits.max_negatives} negatives"
        for text in negatives:
            reason = fault("negative", text, self.limits.max_text_chars)
            if reason is not None:
                return reason
        if score is not None:
            if type(score) is not float and type(score) is not int:
                return "score is not a number"
            if not 0.0 <= score <= 1.0:
                return "score is not within 0 to 1"
        elif columns.scored:
            return "no score"
        return None if cut is None else fault("slice", cut, self.limits.max_text_chars)

    def _flag_fault(self, row: Mapping[str, Any], columns: Columns) -> str | None:
        """What is wrong with the mark that a row is for training only."""
        if columns.train_only is None:
            return None
        flag = str(row[columns.train_only]).lower()
        if flag not in _FLAGS:
            return "train_only is neither true nor false"
        return "for training only, but in golden/" if self.kind == "golden" and _FLAGS[flag] else None

    def reject(self, line: int, reason: str, text: str | bytes) -> None:
        """Record a row that is not taken, with the start of its text."""
        if isinstance(text, bytes):
            # a character is at most four bytes: enough for all that are shown
            text = text[: 4 * SHOWN_CHARS].decode(errors="replace")
        self.rejected.append(Rejected(self.key, line, reason, text[:SHOWN_CHARS].strip("\r\n")))

    def chunk(self) -> Chunk:
        """Everything since the last chunk."""
        arrays = [pa.array(getattr(self, part.name), part.type) for part in PARSED]
        done = Chunk(pa.RecordBatch.from_arrays(arrays, schema=PARSED), self.rejected)
        self.query, self.document, self.negatives, self.score = [], [], [], []
        self.slice, self.source, self.labeller, self.train_only, self.line = [], [], [], [], []
        self.rejected, self.size = [], 0
        return done


def _name(cell: Any) -> str | None:
    """Who or what a label comes from, where a cell says so."""
    return cell if type(cell) is str and cell.strip() else None


def fault(part: str, text: object, most: int) -> str | None:
    """What is wrong with a text, or None."""
    if text is None or text == NOTHING:
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
