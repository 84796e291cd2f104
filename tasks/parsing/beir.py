"""A folder in BEIR layout to pairs: `corpus.jsonl`, `queries.jsonl` and `qrels/*.tsv` (query-id, corpus-id, score)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from tasks.parsing.exports import MAX_NEGATIVES, ConvertError
from tasks.parsing.shapes import join_title


def convert_folder(path: Path) -> Iterator[bytes]:
    """Pairs as JSON lines: a score above 0 makes a document relevant, as in BEIR's evaluation, 0 a negative.

    `path` is a folder in BEIR layout with one file of qrels, or that file in such a folder.

    Raises ConvertError when the folder is not in this layout, or there are several qrels.
    """
    folder = path if path.is_dir() else path.parent.parent
    if not all((folder / name).exists() for name in ("corpus.jsonl", "queries.jsonl", "qrels")):
        raise ConvertError(f"{folder} is not in BEIR layout: corpus.jsonl, queries.jsonl and qrels/")
    judged = _judged(_only(folder / "qrels") if path.is_dir() else path)
    wanted = {document for documents in judged.values() for document in documents}
    queries = _texts(folder / "queries.jsonl", set(judged))
    texts = _texts(folder / "corpus.jsonl", wanted)
    lacking = [name for name in (*judged, *wanted) if name not in queries and name not in texts]
    if lacking:
        raise ConvertError(f"{len(lacking)} ids of the qrels have no text, such as {lacking[0]!r}")
    for query, documents in judged.items():
        wrong = [texts[document] for document, score in documents.items() if score <= 0][:MAX_NEGATIVES]
        for document, score in documents.items():
            if score > 0:
                row: dict[str, Any] = {"query": queries[query], "document": texts[document]}
                yield orjson.dumps(row | ({"negative": wrong} if wrong else {}), option=orjson.OPT_APPEND_NEWLINE)


def _only(folder: Path) -> Path:
    files = sorted(folder.glob("*.tsv"))
    if len(files) != 1:
        named = ", ".join(file.name for file in files) or "no .tsv"
        raise ConvertError(f"{folder} has {named}: name one of them instead of the folder")
    return files[0]


def _judged(path: Path) -> dict[str, dict[str, float]]:
    """Scores by query and document."""
    found: dict[str, dict[str, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
            if number == 1 and row[-1:] == ["score"]:
                continue
            try:
                query, document, score = row
                found.setdefault(query, {})[document] = float(score)
            except ValueError as error:
                raise ConvertError(f"{path} line {number} is not query-id, corpus-id, score") from error
    return found


def _texts(path: Path, wanted: set[str]) -> dict[str, str]:
    """Texts by id, titles before them; only those that are wanted."""
    found: dict[str, str] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = orjson.loads(line)
                if row["_id"] in wanted:
                    found[row["_id"]] = join_title(row.get("title"), row["text"])
            except (ValueError, KeyError, TypeError) as error:
                raise ConvertError(f"{path} line {number} has no _id and text") from error
    return found
