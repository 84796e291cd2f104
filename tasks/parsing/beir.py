"""A folder in BEIR layout to texts and judgements: `corpus.jsonl`, `queries.jsonl` and `qrels/*.tsv`.

As BEIR's own archives are, and as such sets lie on the Hugging Face hub (NanoBEIR, MTEB): each part a file, or a folder
of files, of JSON lines (packed with gzip or Zstandard or not) or Parquet, with the columns `_id`, `title` and `text`;
qrels with `query-id`, `corpus-id` and `score`, of which a missing score says relevant. Qrels may lack a header, and may
have TREC's four columns. As in BEIR's evaluation a score above 0 makes a document relevant, and of several files of
qrels `test` is the one that counts. Whatever is not understood raises: nothing is left out in silence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from tasks.config import Limits
from tasks.parsing.exports import MAX_NEGATIVES, ConvertError
from tasks.parsing.parquet import read_columns
from tasks.parsing.shapes import join_title
from tasks.parsing.unpacking import DamagedError, RefusedError, Text

Files = Mapping[str, Callable[[], bytes]]
"""What a folder holds: by its path in there, what reads a file."""

_LINES: Final = tuple(f"{ending}{packing}" for ending in (".jsonl", ".tsv") for packing in ("", ".gz", ".zst"))
_TEXTS: Final = (*(ending for ending in _LINES if ending.startswith(".jsonl")), ".parquet")
_QRELS: Final = (*(ending for ending in _LINES if ending.startswith(".tsv")), *_TEXTS)
"""Endings of files, of qrels the preferred ones first: a set that comes in several formats says the same in each."""

_PART: Final = re.compile(r"-\d{5}-of-\d{5}$")
"""What the hub adds to the name of a split."""

_IDS: Final = frozenset({"_id", "id"})
_QUERY: Final = frozenset({"query-id", "query_id", "qid"})
_DOCUMENT: Final = frozenset({"corpus-id", "corpus_id", "doc-id", "doc_id", "docid", "pid"})
_SCORE: Final = frozenset({"score", "rel", "relevance", "label"})

_EVERYTHING: Final = Limits(
    max_object_bytes=1 << 40,
    max_line_bytes=1 << 30,
    max_object_rows=1 << 40,
    max_decompressed_bytes=1 << 40,
    max_compression_ratio=1e9,
)
"""For a folder that somebody converts on the own machine."""


class LayoutError(Exception):
    """A folder is not a sound set in BEIR layout; the message names the file, the line and what is wrong with it."""


@dataclass(frozen=True)
class BeirSet:
    """Texts by id, and the score of each judged document by query. Every id of `scores` has a text."""

    queries: dict[str, str]
    documents: dict[str, str]
    scores: dict[str, dict[str, float]]


def belongs(name: str) -> bool:
    """Whether a file, by its path in the folder, is part of the set; others, such as README.md, are not looked at."""
    first, _, rest = name.partition("/")
    endings = _QRELS if first.partition(".")[0] == "qrels" else _TEXTS
    return first.partition(".")[0] in {"corpus", "queries", "qrels"} and (rest or first).endswith(endings)


def inside(names: Iterable[str]) -> str:
    """Under which folder a set lies: none, or the only one that holds such files, as in an unpacked archive."""
    names = list(names)
    if any(map(belongs, names)):
        return ""
    tops = {top for top, _, rest in (name.partition("/") for name in names) if belongs(rest)}
    return f"{tops.pop()}/" if len(tops) == 1 else ""


def read_set(files: Files, limits: Limits, *, qrels: str | None = None, judged_only: bool = False) -> BeirSet:
    """The whole set, checked.

    Args:
        files: What the folder holds.
        limits: Caps on each file.
        qrels: The file of qrels that counts; None: `test`, or the only one.
        judged_only: Whether documents without a judgement are left out.

    Raises:
        LayoutError: Something is missing, damaged, unknown or contradictory.
    """
    names = [name for name in files if belongs(name)]
    judgements = _Judgements()
    for name in [qrels] if qrels is not None else _only_split(names):
        judgements.add(files, name, limits)
    if not judgements.scores:
        raise LayoutError("qrels hold no judgement")
    queries = _Texts("queries", files, _files_of(names, "queries"), limits, set(judgements.scores))
    documents = _Texts(
        "corpus", files, _files_of(names, "corpus"), limits, judgements.documents if judged_only else None
    )
    for place, query, document in judgements.first_places():
        queries.require(query, place)
        documents.require(document, place)
    return BeirSet(queries.found, documents.found, judgements.scores)


def local_files(folder: Path) -> Files:
    """The files of a folder on this machine that belong to a set."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    top = inside(paths)
    files = {name.removeprefix(top): path.read_bytes for name, path in paths.items() if name.startswith(top)}
    return {name: read for name, read in files.items() if belongs(name)}


def convert_folder(path: Path) -> Iterator[bytes]:
    """Pairs as JSON lines: a score above 0 makes a document relevant, 0 a negative.

    `path` is a folder in BEIR layout with one file of qrels, or that file in such a folder.

    Raises ConvertError when the folder is not in this layout, or there are several qrels.
    """
    folder = path if path.is_dir() else path.parent.parent
    files = local_files(folder)
    splits = _splits(files)
    if path.is_dir() and len(splits) > 1:  # what is tested on must not be trained on by accident
        named = ", ".join(sorted(name.rpartition("/")[2] for names in splits.values() for name in names))
        raise ConvertError(f"{folder} has {named}: name one of them instead of the folder")
    chosen = None if path.is_dir() else path.relative_to(folder).as_posix()
    if chosen is not None and chosen not in files:
        raise ConvertError(f"{path} is not in BEIR layout: its folder must be qrels/, beside corpus.jsonl")
    try:
        found = read_set(files, _EVERYTHING, qrels=chosen, judged_only=True)
    except LayoutError as error:
        raise ConvertError(f"{folder} is not in BEIR layout: {error}") from error
    for query, documents in found.scores.items():
        wrong = [found.documents[document] for document, score in documents.items() if score <= 0][:MAX_NEGATIVES]
        for document, score in documents.items():
            if score > 0:
                row: dict[str, Any] = {"query": found.queries[query], "document": found.documents[document]}
                yield orjson.dumps(row | ({"negative": wrong} if wrong else {}), option=orjson.OPT_APPEND_NEWLINE)


# --- which files -------------------------------------------------------------------------------------------------


def _files_of(names: Iterable[str], part: str) -> list[str]:
    """The files of corpus or queries: one beside the folder of qrels, or those in a folder of their own."""
    found = sorted(name for name in names if name.partition("/")[0].partition(".")[0] == part)
    if not found:
        raise LayoutError(f"there is no {part}.jsonl")
    whole = [name for name in found if "/" not in name]
    endings = {_ending(name, _TEXTS) for name in found}
    if len(whole) > 1 or (whole and len(found) > 1) or len(endings) > 1:
        raise LayoutError(f"{' and '.join(found[:3])} each hold the {part}: keep one of them")
    return found


def _splits(names: Iterable[str]) -> dict[str, list[str]]:
    """Files of qrels by the name of their split; of a split that comes in several formats, the first."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in sorted(names):
        if name.partition("/")[0].partition(".")[0] == "qrels":
            ending = _ending(name, _QRELS)
            split = _PART.sub("", name.rpartition("/")[2].removesuffix(ending))
            found.setdefault(split, {}).setdefault(ending, []).append(name)
    return {split: formats[min(formats, key=_QRELS.index)] for split, formats in found.items()}


def _only_split(names: Iterable[str]) -> list[str]:
    splits = _splits(names)
    if not splits:
        raise LayoutError("there is no qrels/test.tsv")
    if "test" not in splits and len(splits) > 1:
        listed = ", ".join(name for split in splits.values() for name in split)
        raise LayoutError(f"of {listed} none is named test: keep the one that counts")
    return splits.get("test") or next(iter(splits.values()))


def _ending(name: str, endings: tuple[str, ...]) -> str:
    return next(ending for ending in endings if name.endswith(ending))


# --- what is in them ---------------------------------------------------------------------------------------------


class _Texts:
    """The texts of corpus or queries by id, and the ids that have none."""

    def __init__(self, part: str, files: Files, names: Iterable[str], limits: Limits, wanted: set[str] | None) -> None:
        self.found: dict[str, str] = {}
        self._part = part
        self._blank: dict[str, str] = {}
        for name in names:
            for where, row in _rows(files, name, _IDS | {"title", "text"}, limits):
                self._add(where, row, wanted)

    def _add(self, where: str, row: Mapping[str, Any], wanted: set[str] | None) -> None:
        known = _id(_first(row, _IDS))
        text, title = row.get("text"), row.get("title")
        if text is None and title and self._part == "corpus":
            text = ""
        if known is None or not isinstance(text, str) or not isinstance(title, str | None):
            raise LayoutError(f"{where} has no _id and text")
        whole = join_title(title, text) if self._part == "corpus" else text
        if known in self.found and self.found[known] != whole:
            raise LayoutError(f"{where} gives the _id {known!r} to another text once more")
        if not whole.strip():
            self._blank[known] = where
        elif wanted is None or known in wanted:
            self.found[known] = whole

    def require(self, known: str, place: str) -> None:
        """Raise LayoutError where a judgement names an id that has no text."""
        if known in self._blank:
            raise LayoutError(f"{place} judges {known!r}, whose text is blank ({self._blank[known]})")
        if known not in self.found:
            raise LayoutError(f"{place} judges {known!r}, which is not in the {self._part}")


@dataclass
class _Judgements:
    """Scores by query and document, and the line that first judged each query and each document."""

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    documents: set[str] = field(default_factory=set)
    _places: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, files: Files, name: str, limits: Limits) -> None:
        """Take the judgements of a file."""
        read = _tsv_judgements if name.endswith(_LINES) and ".tsv" in name else _row_judgements
        for where, query, document, score in read(files, name, limits):
            judged = self.scores.setdefault(query, {})
            if not judged or document not in self.documents:
                self._places.append((where, query, document))
            if judged.setdefault(document, score) != score:
                raise LayoutError(f"{where} judges {query!r} and {document!r} once more, with another score")
            self.documents.add(document)

    def first_places(self) -> Iterator[tuple[str, str, str]]:
        """Place, query and document of each judgement that names one of them for the first time."""
        return iter(self._places)


_Judgement = tuple[str, str, str, float]


def _tsv_judgements(files: Files, name: str, limits: Limits) -> Iterator[_Judgement]:
    """Judgements of a table, with a header or without, or as TREC writes them: query, 0, document, score."""
    order: tuple[int, int, int | None] | None = None
    for number, raw in _lines(files, name, limits):
        where = f"{name} line {number}"
        cells = _cells(where, raw)
        if not any(cells):
            continue
        if order is None:
            order = _header(cells)
            if order is not None:
                continue
            order = (0, 2, 3) if len(cells) == 4 else (0, 1, 2)
        score = _score(cells[order[2]] if order[2] is not None and order[2] < len(cells) else None)
        query, document = (cells[place] if place < len(cells) else "" for place in order[:2])
        if not query or not document or (score is None and order[2] is not None):
            raise LayoutError(f"{where} is not query-id, corpus-id, score")
        yield where, query, document, 1.0 if score is None else score


def _cells(where: str, raw: bytes) -> list[str]:
    try:
        line = raw.decode()
    except UnicodeDecodeError as error:
        raise LayoutError(f"{where} is not UTF-8") from error
    return [cell.strip() for cell in line.rstrip("\r\n").split("\t")] if "\t" in line else line.split()


def _header(cells: list[str]) -> tuple[int, int, int | None] | None:
    """Which columns hold query, document and score, where a line names them; None where it does not."""
    names = [cell.lower() for cell in cells]
    found = [[place for place, name in enumerate(names) if name in known] for known in (_QUERY, _DOCUMENT, _SCORE)]
    if not found[0] or not found[1]:
        return None
    return found[0][0], found[1][0], found[2][0] if found[2] else None


def _row_judgements(files: Files, name: str, limits: Limits) -> Iterator[_Judgement]:
    """Judgements of rows with names; without a score each says that a document is relevant."""
    for where, row in _rows(files, name, _QUERY | _DOCUMENT | _SCORE, limits):
        query, document = (_id(_first(row, known)) for known in (_QUERY, _DOCUMENT))
        given = _first(row, _SCORE)
        score = 1.0 if given is None else _score(given)
        if query is None or document is None or score is None:
            raise LayoutError(f"{where} is not query-id, corpus-id, score")
        yield where, query, document, score


def _first(row: Mapping[str, Any], names: frozenset[str]) -> Any:
    return next((row[name] for name in sorted(names) if row.get(name) is not None), None)


def _id(value: Any) -> str | None:
    """An id as a text; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).strip() or None


def _score(value: Any) -> float | None:
    """A finite score; None where it is none."""
    try:
        score = float(value)
    except (TypeError, ValueError):
        return None
    return score if math.isfinite(score) else None


def _rows(files: Files, name: str, columns: frozenset[str], limits: Limits) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of JSON lines or Parquet with the place of each."""
    if name.endswith(".parquet"):
        try:
            for number, values in read_columns(_body(files, name, limits), columns, limits):
                yield f"{name} row {number}", values
        except RefusedError as error:
            raise LayoutError(f"{name}: {error}") from error
        return
    for number, line in _lines(files, name, limits):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            row = orjson.loads(line)
        except ValueError as error:
            raise LayoutError(f"{where} is not JSON") from error
        if not isinstance(row, dict):
            raise LayoutError(f"{where} is not a JSON object")
        yield where, row


def _lines(files: Files, name: str, limits: Limits) -> Iterator[tuple[int, bytes]]:
    """Every line by its number."""
    packing = next((ending[1:] for ending in (".gz", ".zst") if name.endswith(ending)), "")
    text = Text(_body(files, name, limits), packing)
    number = 0
    try:
        text.inspect(limits)
        for lines in text.lines(limits.max_line_bytes):
            for line in lines:
                number += 1
                if len(line) > limits.max_line_bytes:
                    raise LayoutError(f"{name} line {number} is longer than {limits.max_line_bytes} bytes")
                yield number, line
    except (RefusedError, DamagedError) as error:
        raise LayoutError(f"{name}: {error}") from error


def _body(files: Files, name: str, limits: Limits) -> bytes:
    body = files[name]()
    if len(body) > limits.max_object_bytes:
        raise LayoutError(f"{name} is larger than {limits.max_object_bytes} bytes")
    return body
