"""Exports of labelling tools to pairs: judgements "does this document answer this query?" by people.

- Label Studio, export JSON (https://labelstud.io/guide/task_format): the texts are in a task's `data`, each annotation
  has a `result` of type `choices`. Cancelled annotations do not count.
- Argilla 2, `dataset.records.to_json(path)`: the texts are in a record's `fields`, the answers in
  `responses[question]`, one for each annotator.
- `to_judge.jsonl` of a run, once judged: a query, a document and `relevant` (true, false, or null where nobody judged)
  a line.

A query's relevant documents become its pairs; the documents that people judged not relevant to it become the negatives
of each. A document with as many votes for as against says nothing, and is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

MAX_NEGATIVES: Final = 100
"""Negatives that a row may have (`tasks.config.Limits.max_negatives`)."""


_JUDGED: Final = "relevant"
"""The field of a line of `to_judge.jsonl` that people fill in."""


class ConvertError(Exception):
    """The export is not one that is understood; the message says which part of it."""


@dataclass(frozen=True)
class Fields:
    """What the labelling project calls things.

    `question` is the `from_name` of Label Studio's choices or Argilla's question (None: any), and `relevant` the answer
    that means "this document answers this query".
    """

    query: str = "query"
    document: str = "document"
    question: str | None = None
    relevant: str = "relevant"


@dataclass(frozen=True)
class Converted:
    """JSON lines for `pairs/`, and what came of the export."""

    body: bytes
    pairs: int
    queries: int
    judged: int
    undecided: int
    """Documents without a majority."""
    alone: int
    """Queries to which no document is relevant: they make no pair."""


def convert(export: bytes, fields: Fields) -> Converted:
    """Turn an export into pairs. Raises ConvertError when it is none of the three, or names other fields."""
    try:
        items = orjson.loads(export)
    except ValueError as error:
        items = _lines(export, error)
    if isinstance(items, dict) and _JUDGED in items:  # a single line
        items = [items]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ConvertError("the export is not a list of tasks (Label Studio) or records (Argilla)")
    votes: dict[str, dict[str, Counter[bool]]] = {}
    for number, item in enumerate(items, 1):
        texts, answers = _read(item, number, fields)
        counter = votes.setdefault(texts[0], {}).setdefault(texts[1], Counter())
        counter.update(answer == fields.relevant for answer in answers)
    if not any(counter for documents in votes.values() for counter in documents.values()):
        asked = f"question {fields.question!r}" if fields.question else "any question"
        raise ConvertError(f"the export has no answer to {asked}")
    return _pairs(votes)


def _lines(export: bytes, error: ValueError) -> list[Any]:
    """The lines of a judged `to_judge.jsonl`; ConvertError where they are not JSON either."""
    try:
        return [orjson.loads(line) for line in export.splitlines() if line.strip()]
    except ValueError:
        raise ConvertError(f"the export is not JSON: {error}") from error


def _pairs(votes: dict[str, dict[str, Counter[bool]]]) -> Converted:
    lines: list[bytes] = []
    judged = undecided = alone = 0
    for query, documents in votes.items():
        judged += sum(1 for counter in documents.values() if counter)
        undecided += sum(1 for counter in documents.values() if counter and counter[True] == counter[False])
        right = [document for document, counter in documents.items() if counter[True] > counter[False]]
        wrong = [document for document, counter in documents.items() if counter[True] < counter[False]]
        alone += not right
        for document in right:
            row: dict[str, Any] = {"query": query, "document": document}
            if wrong:
                row["negative"] = wrong[:MAX_NEGATIVES]
            lines.append(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return Converted(b"".join(lines), len(lines), len(votes), judged, undecided, alone)


def _read(item: dict[str, Any], number: int, fields: Fields) -> tuple[tuple[str, str], list[str]]:
    """Query and document of one task or record, and the answers that people gave."""
    if "annotations" in item and "data" in item:
        kind, texts, answers = "task", item["data"], list(_label_studio(item, fields))
    elif "responses" in item and "fields" in item:
        kind, texts, answers = "record", item["fields"], list(_argilla(item, fields))
    elif _JUDGED in item:
        kind, texts, answers = "line", item, [fields.relevant if item[_JUDGED] else ""] * (item[_JUDGED] is not None)
        if item[_JUDGED] is not None and not isinstance(item[_JUDGED], bool):
            raise ConvertError(f"line {number} has {item[_JUDGED]!r} as {_JUDGED}; judgements are true, false or null")
    else:
        raise ConvertError(
            f"item {number} has neither `data` and `annotations` (Label Studio) nor `fields` and `responses` (Argilla) "
            f"nor {_JUDGED!r} (the to_judge.jsonl of a run)"
        )
    for name in (fields.query, fields.document):
        if not isinstance(texts, dict) or not isinstance(texts.get(name), str):
            there = ", ".join(sorted(map(str, texts))) if isinstance(texts, dict) else "nothing"
            raise ConvertError(f"{kind} {number} has no text {name!r}; it has {there}")
    return (texts[fields.query], texts[fields.document]), answers


def _label_studio(task: dict[str, Any], fields: Fields) -> Iterator[str]:
    for annotation in task["annotations"]:
        if annotation.get("was_cancelled"):
            continue
        for result in annotation.get("result", ()):
            if result.get("type") == "choices" and fields.question in (None, result.get("from_name")):
                yield from result["value"]["choices"][:1]


def _argilla(record: dict[str, Any], fields: Fields) -> Iterator[str]:
    for question, responses in record["responses"].items():
        if fields.question in (None, question):
            yield from (str(response["value"]) for response in responses if response.get("value") is not None)
