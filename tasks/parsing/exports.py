"""Exports of labelling tools to pairs: judgements "does this document answer this query?" by people.

- Label Studio, export JSON (https://labelstud.io/guide/task_format): the texts are in a task's `data`, each annotation
  has a `result` of type `choices`. Cancelled annotations do not count. JSON_MIN: texts and answers beside each other.
- Argilla 2, `dataset.records.to_json(path)`: the texts are in a record's `fields`, the answers in
  `responses[question]`, one for each annotator. Drafts and discarded responses do not count.
- `to_judge.jsonl` of a run, once judged: a query, a document and `relevant` (true, false, or null where nobody judged)
  a line.

A query's relevant documents become its pairs; the documents that people judged not relevant to it become the negatives
of each. A document with as many votes for as against says nothing, and is left out. Every answer has to be one whose
meaning is known or said: nothing counts as a vote against only because it is not the answer for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from tasks.parsing.values import judge

MAX_NEGATIVES: Final = 100
"""Negatives that a row may have (`tasks.config.Limits.max_negatives`)."""

_SHOWN: Final = 8
"""Names and reasons that a message lists."""

_DOES_NOT_COUNT: Final = frozenset({"draft", "discarded"})
_OF_LABEL_STUDIO: Final = ("annotation_id", "annotator", "lead_time", "created_at", "updated_at", "id")


_JUDGED: Final = "relevant"
"""The field of a line of `to_judge.jsonl` that people fill in."""


class ConvertError(Exception):
    """The export is not one that is understood; the message says which part of it."""


@dataclass(frozen=True)
class Fields:
    """What the labelling project calls things.

    `question` is the `from_name` of Label Studio's choices or Argilla's question (None: the only one there is).
    `relevant`, `irrelevant` and `skipped` are answers, in any case; those that say it in plain words (relevant, yes,
    not relevant, no, unsure, ...) need not be named.
    """

    query: str = "query"
    document: str = "document"
    question: str | None = None
    relevant: tuple[str, ...] = ()
    irrelevant: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


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
    left_out: tuple[str, ...]
    """Tasks or records that could not be read, with the reason."""
    answers: dict[str, str]
    """Every answer that was found, and what it was taken for."""


@dataclass(frozen=True)
class _Task:
    """One query with one document, and the answers to each question about them."""

    query: str
    document: str
    answers: dict[str, list[str]]


class _TaskError(Exception):
    """One task cannot be used; the message says why."""


def convert(export: bytes, fields: Fields) -> Converted:
    """Turn an export into pairs; a task that is broken costs itself.

    Raises ConvertError when it is not an export of these tools, names other fields, asks several questions of which
    none is chosen, has answers whose meaning is not known, or would make no pair.
    """
    tasks, left_out = _tasks(export, fields)
    question = _question(tasks, fields)
    meaning = _meanings(Counter(answer for task in tasks for answer in task.answers.get(question, ())), fields)
    votes: dict[str, dict[str, Counter[bool]]] = {}
    for task in tasks:
        counter = votes.setdefault(task.query, {}).setdefault(task.document, Counter())
        said = (meaning[answer] for answer in task.answers.get(question, ()))
        counter.update(relevant for relevant in said if relevant is not None)
    return _pairs(votes, left_out, {answer: _NAMED[relevant] for answer, relevant in meaning.items()})


_NAMED: Final = {True: "relevant", False: "not relevant", None: "no judgement"}


def _tasks(export: bytes, fields: Fields) -> tuple[list[_Task], tuple[str, ...]]:
    try:
        items = orjson.loads(export)
    except ValueError as error:
        items = _lines(export, error)
    if isinstance(items, dict) and _JUDGED in items:  # a single line
        items = [items]
    if not isinstance(items, list):
        raise ConvertError("the export is not a list of tasks (Label Studio) or records (Argilla)")
    tasks: list[_Task] = []
    left_out: list[str] = []
    for number, item in enumerate(items, 1):
        try:
            _check_judgement(item, number)
            tasks.append(_read(item, fields))
        except _TaskError as error:
            left_out.append(f"item {number} {error}")
    if not tasks:
        raise ConvertError(left_out[0] if left_out else "the export has no tasks")
    return tasks, tuple(left_out)


def _lines(export: bytes, error: ValueError) -> list[Any]:
    """The lines of a judged `to_judge.jsonl`; ConvertError where they are not JSON either."""
    try:
        return [orjson.loads(line) for line in export.splitlines() if line.strip()]
    except ValueError:
        raise ConvertError(f"the export is not JSON: {error}") from error


def _check_judgement(item: Any, number: int) -> None:
    """Refuse words in a judged `to_judge.jsonl`: they may mean anything."""
    if isinstance(item, dict) and _is_line(item) and not isinstance(item[_JUDGED], bool | None):
        raise ConvertError(f"line {number} has {item[_JUDGED]!r} as {_JUDGED}; judgements are true, false or null")


def _is_line(item: dict[str, Any]) -> bool:
    return _JUDGED in item and not {"data", "fields", "annotation_id", "lead_time"} & item.keys()


def _question(tasks: Sequence[_Task], fields: Fields) -> str:
    """The question that is meant."""
    asked = dict.fromkeys(name for task in tasks for name, answers in task.answers.items() if answers)
    named = ", ".join(list(asked)[:_SHOWN])
    if fields.question is not None:
        if fields.question not in asked:
            raise ConvertError(f"the export has no answer to question {fields.question!r}; it has {named or 'none'}")
        return fields.question
    if not asked:
        raise ConvertError("the export has no answer to any question")
    if len(asked) > 1:
        raise ConvertError(
            f"the export answers several questions: {named}; name the one that says whether the document is relevant, "
            "with --question"
        )
    return next(iter(asked))


def _meanings(answers: Counter[str], fields: Fields) -> dict[str, bool | None]:
    """What each answer means. Raises ConvertError that lists all of them when that is not known of one."""
    said: dict[str, bool | None] = dict.fromkeys(map(_folded, fields.skipped))
    said |= dict.fromkeys(map(_folded, fields.irrelevant), False) | dict.fromkeys(map(_folded, fields.relevant), True)
    found: dict[str, bool | None] = {}
    unknown: list[str] = []
    for answer in answers:
        try:
            found[answer] = said[_folded(answer)] if _folded(answer) in said else _judge(answer, fields)
        except ValueError:
            unknown.append(answer)
    absent = [name for name in fields.relevant if _folded(name) not in map(_folded, answers)]
    if unknown or (absent and True not in found.values()):
        listed = "; ".join(
            f"{answer!r} ({count}): {_shown(answer, found)}" for answer, count in answers.most_common(20)
        )
        raise ConvertError(
            f"the answers are {listed}. Say what each means, with --relevant, --not-relevant or --skip, once for each"
        )
    return found


def _judge(answer: str, fields: Fields) -> bool | None:
    """What an answer says in plain words; where answers for were named, there are no others."""
    found = judge(answer)
    if found and fields.relevant and answer != str(True):
        raise ValueError
    return found


def _shown(answer: str, found: dict[str, bool | None]) -> str:
    return _NAMED[found[answer]] if answer in found else "not known"


def _folded(answer: str) -> str:
    return " ".join(answer.casefold().split())


def _pairs(votes: dict[str, dict[str, Counter[bool]]], left_out: tuple[str, ...], answers: dict[str, str]) -> Converted:
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
    if not lines:
        said = ", ".join(f"{answer!r} ({meaning})" for answer, meaning in answers.items())
        raise ConvertError(f"no document has more answers for than against it, so there is no pair; answers: {said}")
    return Converted(b"".join(lines), len(lines), len(votes), judged, undecided, alone, left_out, answers)


def _read(item: Any, fields: Fields) -> _Task:
    """Query, document and answers of one task or record."""
    if not isinstance(item, dict):
        raise _TaskError("is not an object")
    if "annotations" in item and "data" in item:
        texts, answers = item["data"], _grouped(_label_studio(item))
    elif "responses" in item and "fields" in item:
        texts, answers = item["fields"], _grouped(_argilla(item))
    elif "annotation_id" in item or "lead_time" in item:
        texts, answers = item, _grouped(_label_studio_min(item, fields))
    elif _is_line(item):
        texts, answers = item, {_JUDGED: [] if item[_JUDGED] is None else [str(item[_JUDGED])]}
    else:
        raise _TaskError(
            "has neither `data` and `annotations` (Label Studio) nor `fields` and `responses` (Argilla) "
            f"nor {_JUDGED!r} (the to_judge.jsonl of a run)"
        )
    found = []
    for name in (fields.query, fields.document):
        text = texts.get(name) if isinstance(texts, dict) else None
        if not isinstance(text, str) or not text.strip():
            there = ", ".join(sorted(map(str, texts))[:_SHOWN]) if isinstance(texts, dict) else "nothing"
            raise _TaskError(f"has no text {name!r}; it has {there}")
        found.append(text)
    return _Task(found[0], found[1], answers)


def _grouped(answers: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for question, answer in answers:
        found.setdefault(question, []).append(answer)
    return found


def _label_studio(task: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for annotation in _dicts(task["annotations"]):
        if annotation.get("was_cancelled"):
            continue
        for result in _dicts(annotation.get("result")):
            value = result.get("value")
            if result.get("type") == "choices" and isinstance(value, dict):
                yield str(result.get("from_name")), _one_choice(value.get("choices"))


def _label_studio_min(task: dict[str, Any], fields: Fields) -> Iterator[tuple[str, str]]:
    for name, value in task.items():
        if name in (*_OF_LABEL_STUDIO, fields.query, fields.document) or fields.question not in (None, name):
            continue
        if isinstance(value, dict) and "choices" in value:
            yield name, _one_choice(value["choices"])
        elif isinstance(value, str | int | bool):
            yield name, str(value)


def _one_choice(choices: Any) -> str:
    """The one answer of an annotator; several at once are an answer of their own, which has to be given a meaning."""
    if isinstance(choices, str):
        return choices
    if not isinstance(choices, list) or not choices:
        raise _TaskError("has an annotation without a choice")
    return " + ".join(map(str, choices))


def _argilla(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    responses = record["responses"]
    if responses is not None and not isinstance(responses, dict):
        raise _TaskError("has responses that are not by question")
    for question, given in (responses or {}).items():
        for response in _dicts(given):
            value = response.get("value")
            if value is not None and response.get("status") not in _DOES_NOT_COUNT:
                yield question, " + ".join(map(str, value)) if isinstance(value, list) else str(value)


def _dicts(values: Any) -> list[dict[str, Any]]:
    """The objects of a list; none where there is none."""
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise _TaskError("has annotations that are not a list of objects")
    return values
