"""Clicks to pairs: exports in the schema of User Behavior Insights (OpenSearch), for training only.

Of `ubi_queries` are read `query_id`, `user_query` and `query_response_hit_ids`; of `ubi_events` `action_name`
(`impression` or `click`), `query_id`, `event_attributes.object.object_id` and `event_attributes.position.ordinal`
(https://docs.opensearch.org/docs/search-plugins/ubi/schemas).

People click what is shown first. So clicks are compared with those that the places where a document was shown get on
average: clicks over expected clicks (Zhang and Jones, Comparing Click Logs and Editorial Labels for Training Query
Rewriting, 2007), as in OpenSearch's Search Relevance. The mean rate of clicks at a place stands for how likely people
look there; it is biased, as good documents stand first. So the pairs are marked `train_only`: no verdict rests on them.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from tasks.parsing.exports import MAX_NEGATIVES, ConvertError

IMPRESSIONS: Final = 10
"""Times that a document must have been shown for a query before its clicks say anything."""

_CLICKS: Final = 3
"""Searches that clicked a relevant document, at least ..."""

_ABOVE: Final = 1.0
"""... and how many standard deviations (of a Poisson count) above what is expected. Without it three pairs in ten of a
simulated search were wrong (tests/test_ubi.py): of many documents that do not fit some are lucky."""

_IGNORED: Final = 3.0
"""Expected clicks from which a document that got none is a negative: by chance that happens to one in 20."""

_ACTIONS: Final = ("impression", "click")


@dataclass(frozen=True)
class Clicks:
    """JSON lines for `pairs/`, and what came of the export."""

    body: bytes
    pairs: int
    queries: int
    negatives: int
    impressions: int
    clicks: int
    too_seldom: int
    """Documents of a query that were shown too seldom to say anything."""
    without_text: int
    """Documents that were judged, and have no text."""
    left_out: Mapping[str, int]
    """Events that were not used, by reason."""
    rates: Mapping[int, float]
    """Clicks by impressions at each place."""


@dataclass
class _Shown:
    """One document for one query."""

    places: Counter[int] = field(default_factory=Counter)
    clicks: int = 0


def convert(
    queries: Iterator[dict[str, Any]],
    events: Iterator[dict[str, Any]],
    documents: Mapping[str, str],
    least: int = IMPRESSIONS,
) -> Clicks:
    """Turn searches and what people did with them into pairs.

    Of several impressions or clicks of a document within one search one counts, and a click is an impression. Queries
    are put together up to case and white space. With at least `least` impressions a document is relevant when it has
    three clicks, and more than expected at its places by a standard deviation; it is a negative when it has none, and
    three are expected.

    Args:
        queries: Documents of `ubi_queries`.
        events: Documents of `ubi_events`.
        documents: Texts by `object_id`.
        least: Impressions of a document for a query.

    Raises ConvertError where there are no searches, no clicks, or no pair.
    """
    asked = {str(one["query_id"]): one for one in queries if one.get("query_id") and _text(one.get("user_query"))}
    if not asked:
        raise ConvertError("there is no search with query_id and user_query in ubi_queries")
    seen, left_out = _seen(asked, events)
    if not any(clicked for _, clicked in seen.values()):
        raise ConvertError(
            "there is no click that belongs to a search: is action_name `click`, are the query_ids the same?"
        )
    shown: Counter[int] = Counter()
    clicked_at: Counter[int] = Counter()
    found: dict[str, dict[str, _Shown]] = defaultdict(lambda: defaultdict(_Shown))
    texts: dict[str, Counter[str]] = defaultdict(Counter)
    for (search, document), (place, clicked) in seen.items():
        text = str(asked[search]["user_query"]).strip()
        key = " ".join(text.casefold().split())
        texts[key][text] += 1
        shown[place] += 1
        clicked_at[place] += clicked
        found[key][document].places[place] += 1
        found[key][document].clicks += clicked
    rates = {place: clicked_at[place] / count for place, count in sorted(shown.items())}
    lines, negatives, seldom, lacking = _rows(found, texts, rates, documents, least)
    if not lines:
        raise ConvertError(
            f"no document was shown {least} times for a query and clicked as often as expected: take a longer period, "
            "or lower --min-impressions"
        )
    return Clicks(
        body=b"".join(lines),
        pairs=len(lines),
        queries=len(found),
        negatives=negatives,
        impressions=shown.total(),
        clicks=clicked_at.total(),
        too_seldom=seldom,
        without_text=lacking,
        left_out=left_out,
        rates=rates,
    )


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _seen(
    asked: Mapping[str, dict[str, Any]], events: Iterator[dict[str, Any]]
) -> tuple[dict[tuple[str, str], tuple[int, bool]], Counter[str]]:
    """For each search and document the best place where it was shown, and whether it was clicked."""
    seen: dict[tuple[str, str], tuple[int, bool]] = {}
    left_out: Counter[str] = Counter()
    for event in events:
        action, search = event.get("action_name"), str(event.get("query_id"))
        if action not in _ACTIONS:
            continue
        document = _at(event, "event_attributes", "object", "object_id")
        if search not in asked or document is None:
            left_out["no such search in ubi_queries" if search not in asked else "no object_id"] += 1
            continue
        place = _place(event, asked[search], str(document))
        if place is None:
            left_out["no position, and not among the hits of its search"] += 1
            continue
        before = seen.get((search, str(document)), (place, False))
        seen[search, str(document)] = min(place, before[0]), before[1] or action == "click"
    return seen, left_out


def _place(event: Mapping[str, Any], search: Mapping[str, Any], document: str) -> int | None:
    """Where the document was shown: as the event says, else by its place among the hits, from 1."""
    ordinal = _at(event, "event_attributes", "position", "ordinal")
    if isinstance(ordinal, int | float) and not isinstance(ordinal, bool) and ordinal >= 0:
        return int(ordinal)
    hits = [str(hit) for hit in search.get("query_response_hit_ids") or ()]
    return hits.index(document) + 1 if document in hits else None


def _at(record: Mapping[str, Any], *path: str) -> Any:
    """A value in nested objects, or under its path with dots, as flat exports have it."""
    if ".".join(path) in record:
        return record[".".join(path)]
    value: Any = record
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _rows(
    found: Mapping[str, Mapping[str, _Shown]],
    texts: Mapping[str, Counter[str]],
    rates: Mapping[int, float],
    documents: Mapping[str, str],
    least: int,
) -> tuple[list[bytes], int, int, int]:
    """The pairs as JSON lines; how many negatives; documents that were shown too seldom; and those without a text."""
    lines: list[bytes] = []
    negatives = seldom = lacking = 0
    for key, of_query in sorted(found.items()):
        right, wrong = [], []
        for document, one in sorted(of_query.items()):
            expected = sum(rates[place] * count for place, count in one.places.items())
            if one.places.total() < least:
                seldom += 1
            elif document not in documents:
                lacking += 1
            elif one.clicks >= max(_CLICKS, expected + _ABOVE * math.sqrt(expected)):
                right.append(documents[document])
            elif not one.clicks and expected >= _IGNORED:
                wrong.append(documents[document])
        negatives += len(wrong[:MAX_NEGATIVES]) if right else 0
        query = max(texts[key].items(), key=lambda item: (item[1], item[0]))[0]
        for text in right:
            row: dict[str, Any] = {"query": query, "document": text, "source": "clicks", "train_only": True}
            row |= {"negative": wrong[:MAX_NEGATIVES]} if wrong else {}
            lines.append(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return lines, negatives, seldom, lacking


# --- files ---------------------------------------------------------------------------------------------------


def find(names: list[str], part: str) -> str | None:
    """The file of an export that holds `ubi_queries` or `ubi_events`, by its name; None where there is none."""
    return next((name for name in sorted(names) if name.rpartition("/")[2].startswith(part)), None)


def records(name: str, body: bytes) -> Iterator[dict[str, Any]]:
    """The documents in a file: JSON lines, a JSON array, the answer of a search, or Parquet; `_source` is unpacked.

    Raises ConvertError that names the file, and the line where there is one.
    """
    read: Callable[[bytes], Iterator[Any]] = _parquet if name.endswith(".parquet") else _json
    try:
        for number, record in enumerate(read(body), 1):
            inner = record.get("_source", record) if isinstance(record, dict) else None
            if not isinstance(inner, dict):
                raise ConvertError(f"{name}: record {number} is not an object")
            yield inner
    except ValueError as error:
        raise ConvertError(f"{name} is neither JSON nor Parquet: {error}") from error


def _json(body: bytes) -> Iterator[Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        yield from (orjson.loads(line) for line in body.splitlines() if line.strip())
        return
    if isinstance(value, dict) and isinstance(value.get("hits"), dict):
        value = value["hits"].get("hits", [])
    yield from value if isinstance(value, list) else [value]


def _parquet(body: bytes) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(pa.BufferReader(body)).iter_batches(10_000):
        yield from batch.to_pylist()


def texts(name: str, body: bytes) -> dict[str, str]:
    """Texts by id of a file of documents; a title goes before its text. Raises ConvertError for one without either."""
    from tasks.parsing.shapes import join_title

    found = {}
    for number, record in enumerate(records(name, body), 1):
        identity = record.get("id", record.get("_id"))
        if identity is None or not _text(record.get("text")):
            raise ConvertError(f"{name}: document {number} has no id or no text")
        found[str(identity)] = str(join_title(record.get("title"), record["text"]))
    return found
