"""Clicks to pairs: exports in the schema of User Behavior Insights (OpenSearch), for training only.

Of `ubi_queries` are read `query_id`, `user_query`, `client_id` and `query_response_hit_ids`; of `ubi_events`
`action_name` (`impression` or `click`), `query_id`, `client_id`, `event_attributes.object.object_id` and
`event_attributes.position.ordinal` (https://docs.opensearch.org/docs/search-plugins/ubi/schemas).

People click what is shown first. So clicks are compared with those that the places where a document was shown get on
average: clicks over expected clicks (Zhang and Jones, Comparing Click Logs and Editorial Labels for Training Query
Rewriting, 2007), as in OpenSearch's Search Relevance. The mean rate of clicks at a place stands for how likely people
look there; it is biased, as good documents stand first. So the pairs are marked `train_only`: no verdict rests on them.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from tasks.parsing.exports import MAX_NEGATIVES, ConvertError
from tasks.parsing.ubi_files import is_text, name_of

IMPRESSIONS: Final = 10
"""Times that a document must have been shown for a query before its clicks say anything."""

CLICKS: Final = ("click", "click_through")
"""Names that the schema has for the action that is a click."""

_CLIENTS: Final = 3
"""Clients that clicked a relevant document, at least. And its clicks are ..."""

_ABOVE: Final = 1.0
"""... this many standard deviations (of a Poisson count) above what is expected. Without it three pairs in ten of a
simulated search were wrong (tests/test_ubi.py): of many documents that do not fit some are lucky."""

_IGNORED: Final = 3.0
"""Expected clicks from which a document that got none is a negative: by chance that happens to one in 20."""

_MOST_OF_A_CLIENT: Final = 10
"""Searches of one client for a query that count: a robot, or a person who searches again and again, is one voice."""


@dataclass(frozen=True)
class Clicks:
    """JSON lines for `pairs/`, and what came of the export."""

    body: bytes
    pairs: int
    queries: int
    negatives: int
    impressions: int
    clicks: int
    from_hits: int
    """Searches without an event of an impression, whose hits count as shown."""
    too_seldom: int
    """Documents of a query that were shown too seldom to say anything."""
    without_text: int
    """Documents that were judged, and have no text."""
    left_out: Mapping[str, int]
    """Records that were not used, by reason."""
    rates: Mapping[int, float]
    """Clicks by impressions at each place, from 1."""


@dataclass
class _Search:
    """What somebody asked for, who did (None: it is not said), and the places of the hits, from 1."""

    query: str
    client: str | None
    places: dict[str, int]

    @property
    def key(self) -> str:
        """The same for queries that differ in case, white space or the form of letters only."""
        return " ".join(unicodedata.normalize("NFKC", self.query).casefold().split())


class _Event(NamedTuple):
    """A document that was shown in a search, or clicked, and its place as the event has it, from 0 or from 1."""

    search: str
    document: str
    click: bool
    ordinal: int | None


@dataclass
class _Shown:
    """One document for one query, over all searches."""

    places: Counter[int] = field(default_factory=Counter)
    clicked: Counter[int] = field(default_factory=Counter)
    """Clicks by place."""
    clients: Counter[str] = field(default_factory=Counter)
    """Searches of each client."""
    clickers: set[str] = field(default_factory=set)


def convert(
    queries: Iterable[Mapping[str, Any]],
    events: Iterable[Mapping[str, Any]],
    documents: Mapping[str, str],
    least: int = IMPRESSIONS,
    clicks: Sequence[str] = CLICKS,
) -> Clicks:
    """Turn searches and what people did with them into pairs.

    Of several impressions or clicks of a document within one search one counts, and a click is an impression. Where a
    search with clicks has no event of an impression, or no search has one, its hits count as shown. With at least
    `least` impressions a document is relevant when three clients clicked it, and clicks exceed what is expected at its
    places by a standard deviation; it is a negative when it has none, and three are expected.

    Args:
        queries: Documents of `ubi_queries`.
        events: Documents of `ubi_events`.
        documents: Texts by `object_id`.
        least: Impressions of a document for a query.
        clicks: Names of the action that is a click.

    Raises ConvertError where there are no searches, no clicks, or no pair.
    """
    left_out: Counter[str] = Counter()
    asked = _asked(queries, left_out)
    if not asked:
        raise ConvertError("there is no search with query_id and user_query in ubi_queries")
    used = list(_events(events, asked, {name.casefold() for name in clicks}, left_out))
    seen = _seen(used, asked, left_out)
    if not any(clicked for _, clicked in seen.values()):
        raise ConvertError(
            f"no click belongs to a search: are the query_ids the same, and is the action called {' or '.join(clicks)} "
            f"(else name it with --relevant)? {'; '.join(reasons(left_out))}"
        )
    from_hits = _add_hits(seen, used, asked)
    if all(clicked for _, clicked in seen.values()):
        raise ConvertError("nothing was shown that was not clicked: export impressions or query_response_hit_ids")
    found = _by_query(seen, asked, left_out)
    of_each = [one for of_query in found.values() for one in of_query.values()]
    shown = sum((one.places for one in of_each), Counter[int]())
    clicked = sum((one.clicked for one in of_each), Counter[int]())
    rates = {place: clicked[place] / count for place, count in sorted(shown.items())}
    rows, negatives, seldom, lacking = _rows(found, _wordings(seen, asked), rates, documents, least)
    if not rows:
        raise ConvertError(
            f"no document was shown {least} times for a query and clicked more than expected, by {_CLIENTS} clients: "
            "take a longer period, or lower --min-impressions"
            + (f"; {lacking:,} documents have no text in the file of --documents" if lacking else "")
        )
    return Clicks(
        body=b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows),
        pairs=len(rows),
        queries=len(found),
        negatives=negatives,
        impressions=shown.total(),
        clicks=clicked.total(),
        from_hits=from_hits,
        too_seldom=seldom,
        without_text=lacking,
        left_out=left_out,
        rates=rates,
    )


def reasons(left_out: Mapping[str, int]) -> list[str]:
    """What was left out and why, the most frequent first."""
    return [f"{count:,} left out: {reason}" for reason, count in Counter(left_out).most_common(20)]


def _asked(queries: Iterable[Mapping[str, Any]], left_out: Counter[str]) -> dict[str, _Search]:
    """The searches by query_id: one that is there twice only where both are of the same query."""
    asked: dict[str, _Search] = {}
    several, paged = set(), set()
    for one in queries:
        identity, query = name_of(one.get("query_id")), one.get("user_query")
        if identity is None or not is_text(query):
            left_out["a search without query_id or user_query"] += 1
            continue
        search = _Search(str(query).strip(), name_of(one.get("client_id")), _places(one))
        before = asked.setdefault(identity, search)
        if before.key != search.key:
            several.add(identity)
        if before.places and search.places and before.places != search.places:
            paged.add(identity)
        before.places = before.places or search.places
    for identity in paged:  # which page was the first is not known
        asked[identity].places = {}
    for identity in several:
        left_out["a query_id of several queries"] += 1
        del asked[identity]
    return asked


def _places(search: Mapping[str, Any]) -> dict[str, int]:
    """The places of a search's hits, from 1."""
    hits = search.get("query_response_hit_ids")
    names = [name_of(hit) for hit in hits] if isinstance(hits, list) else []
    return {name: place for place, name in reversed(list(enumerate(names, 1))) if name is not None}


def _events(
    events: Iterable[Mapping[str, Any]], asked: Mapping[str, _Search], clicks: set[str], left_out: Counter[str]
) -> Iterator[_Event]:
    """The events that say something of a document of a search; the others are counted."""
    for event in events:
        action = str(event.get("action_name")).strip().casefold()
        search = name_of(event.get("query_id"))
        document = name_of(_at(event, "event_attributes", "object", "object_id"))
        if action != "impression" and action not in clicks:
            left_out[f"the action {action[:100]}"] += 1
        elif search is None or search not in asked:
            left_out["no query_id" if search is None else "no such search in ubi_queries"] += 1
        elif document is None:
            left_out["no object_id"] += 1
        else:
            asked[search].client = asked[search].client or name_of(event.get("client_id"))
            yield _Event(search, document, action in clicks, _ordinal(event))


def _ordinal(event: Mapping[str, Any]) -> int | None:
    """The place that an event says, from 0 or from 1."""
    found = _at(event, "event_attributes", "position", "ordinal")
    if isinstance(found, Mapping):  # as version 1.0.0 of the schema has it
        found = found.get("index")
    name = name_of(found) or ""
    return int(name) if name.isascii() and name.isdecimal() else None


def _at(record: Mapping[str, Any], *path: str) -> Any:
    """A value in nested objects, or under its path with dots, as flat exports have it."""
    if ".".join(path) in record:
        return record[".".join(path)]
    value: Any = record
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _seen(
    events: Sequence[_Event], asked: Mapping[str, _Search], left_out: Counter[str]
) -> dict[tuple[str, str], tuple[int, bool]]:
    """For each search and document the best place where it was shown, from 1, and whether it was clicked."""
    first = _first(events, asked)
    seen: dict[tuple[str, str], tuple[int, bool]] = {}
    for event in events:
        place = asked[event.search].places.get(event.document)
        if event.ordinal is not None and event.ordinal >= first:
            place = event.ordinal - first + 1
        if place is None:
            left_out["no position, and not among the hits of its search"] += 1
            continue
        best, clicked = seen.get((event.search, event.document), (place, False))
        seen[event.search, event.document] = min(place, best), clicked or event.click
    return seen


def _first(events: Sequence[_Event], asked: Mapping[str, _Search]) -> int:
    """The number of the first place, 0 or 1: as the places of hits tell, else 0 where an event has it."""
    given = [event for event in events if event.ordinal is not None]
    apart = Counter(
        event.ordinal - asked[event.search].places[event.document]
        for event in given
        if event.ordinal is not None and event.document in asked[event.search].places
    )
    if apart[0] != apart[-1]:
        return int(apart[0] > apart[-1])
    return 0 if any(event.ordinal == 0 for event in given) else 1


def _add_hits(
    seen: dict[tuple[str, str], tuple[int, bool]], events: Sequence[_Event], asked: Mapping[str, _Search]
) -> int:
    """Take hits as shown where no event says what was; returns in how many searches."""
    told = {event.search for event in events if not event.click}
    silent = {event.search for event in events} - told if told else asked.keys()
    for search in silent:
        for document, place in asked[search].places.items():
            seen.setdefault((search, document), (place, False))
    return sum(1 for search in silent if asked[search].places)


def _by_query(
    seen: Mapping[tuple[str, str], tuple[int, bool]], asked: Mapping[str, _Search], left_out: Counter[str]
) -> dict[str, dict[str, _Shown]]:
    """What was shown and clicked, by query and document. Where all is of one client it says nothing of people."""
    several = len({search.client for search in asked.values()}) > 1
    found: dict[str, dict[str, _Shown]] = defaultdict(lambda: defaultdict(_Shown))
    for (name, document), (place, clicked) in seen.items():
        search = asked[name]
        one = found[search.key][document]
        client = (several and search.client) or f"search {name}"
        if one.clients[client] == _MOST_OF_A_CLIENT:
            left_out["one client's further searches for the same"] += 1
            continue
        one.clients[client] += 1
        one.places[place] += 1
        one.clicked[place] += clicked
        if clicked:
            one.clickers.add(client)
    return found


def _wordings(seen: Iterable[tuple[str, str]], asked: Mapping[str, _Search]) -> dict[str, str]:
    """The most frequent wording of each query."""
    wordings: dict[str, Counter[str]] = defaultdict(Counter)
    for search in dict.fromkeys(search for search, _ in seen):
        wordings[asked[search].key][asked[search].query] += 1
    return {key: max(counts.items(), key=lambda item: (item[1], item[0]))[0] for key, counts in wordings.items()}


def _rows(
    found: Mapping[str, Mapping[str, _Shown]],
    wordings: Mapping[str, str],
    rates: Mapping[int, float],
    documents: Mapping[str, str],
    least: int,
) -> tuple[list[dict[str, Any]], int, int, int]:
    """The pairs; how many negatives; documents that were shown too seldom; and those without a text."""
    rows: list[dict[str, Any]] = []
    negatives = seldom = lacking = 0
    for key, of_query in sorted(found.items()):
        right, wrong = [], []
        for document, one in sorted(of_query.items()):
            expected = sum(rates[place] * count for place, count in one.places.items())
            clicks = one.clicked.total()
            if one.places.total() < least:
                seldom += 1
            elif document not in documents:
                lacking += 1
            elif len(one.clickers) >= _CLIENTS and clicks >= expected + _ABOVE * math.sqrt(expected):
                right.append(documents[document])
            elif not clicks and expected >= _IGNORED:
                wrong.append(documents[document])
        negatives += len(wrong[:MAX_NEGATIVES]) if right else 0
        for text in right:
            row: dict[str, Any] = {"query": wordings[key], "document": text, "source": "clicks", "train_only": True}
            rows.append(row | ({"negative": wrong[:MAX_NEGATIVES]} if wrong else {}))
    return rows, negatives, seldom, lacking
