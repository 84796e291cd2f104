"""The audit of a night's labels: what it looks at, with which models, and what it keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from tasks.audit import blame, negatives, ranks, subset, texts
from tasks.audit.sample import Sample, choose
from tasks.dataset import Dataset
from tasks.encoding import Encoder
from tasks.records import Audited, Suspect, UploadAudit

Ints = NDArray[np.int64]

_QUERIES: Final = 20_000
"""Training queries among which near duplicates are sought; of more a sample."""

_KEPT: Final = 1_000
"""Suspects of a kind that are kept."""

_SHOWN: Final = 5
"""Suspects of a kind that the report shows."""

_NEAR: Final = 0.95
"""Cosine from which two documents are compared word by word."""

_GROUPS: Final = 20
"""Sources or labellers that are judged, the largest first."""

_GROUPED: Final = ("source", "labeller")
"""Optional columns whose values are judged like uploads."""


@dataclass(frozen=True)
class Night:
    """What a night trained on, and with what.

    Attributes:
        rows: All rows of the commit (schema `tasks.intake.ROWS`).
        data: The same, divided.
        encoders: By side: "candidate", "production", and "base" where production is another model.
        since: Commit after which an upload is new.
        mined: Hard negatives that were mined for each pair, with the model of the side `start`.
        start: "base" or "production".
        seed: Of every draw.
    """

    rows: pa.Table
    data: Dataset
    encoders: Mapping[str, Encoder]
    since: int
    mined: int
    start: str
    seed: int


def look(night: Night) -> tuple[Audited, bytes]:
    """Look at the labels of a night; returns the audit, and every suspect as JSON lines."""
    train = night.data.train
    sample = choose(train, night.since, night.seed)
    if not len(sample.rows):
        return Audited(too_small=sample.too_small), b""
    vectors = _Vectors(night, sample)
    uploads = _uploads(vectors)
    found: dict[str, list[Suspect]] = {}
    counts: dict[str, int] = {}
    for suspects in (
        _named(uploads),
        _hopeless(vectors),
        _false_negatives(vectors),
        texts.contradictions(night.rows),
        texts.similar_queries(train, sample.rows, _some(train.num_rows, _QUERIES, night.seed)),
        _similar_documents(vectors),
    ):
        for one in suspects:
            counts[one.kind] = counts.get(one.kind, 0) + 1
            if counts[one.kind] <= _KEPT:
                found.setdefault(one.kind, []).append(one)
    every = [one for kind in found.values() for one in kind]
    audited = Audited(
        pairs=len(sample.rows),
        counts=counts,
        shown=[one for kind in found.values() for one in kind[:_SHOWN]],
        uploads=uploads,
        too_small=sample.too_small,
    )
    return audited, b"".join(orjson.dumps(one, option=orjson.OPT_APPEND_NEWLINE) for one in every)


class _Vectors:
    """The pairs and documents that are looked at, with their vectors by side."""

    def __init__(self, night: Night, sample: Sample) -> None:
        self.night, self.sample, self.train = night, sample, night.data.train
        self.subset = subset.choose(night.data, sample.rows, night.seed)
        asked = self.train["query"].take(pa.array(sample.rows)).to_pylist()
        self.queries = {side: encoder.encode(asked, "query") for side, encoder in night.encoders.items()}
        self.documents = {
            side: encoder.encode(self.subset.texts, "document") for side, encoder in night.encoders.items()
        }
        self.untrained = "base" if "base" in night.encoders else "production"


def _uploads(vectors: _Vectors) -> list[UploadAudit]:
    """Judge the newest uploads, and what the columns `source` and `labeller` name where there are any."""
    sample, chosen = vectors.sample, vectors.subset
    documents, own = np.unique(chosen.own, return_inverse=True)
    query_id = vectors.train["query_id"].to_numpy()[sample.rows]
    known = [(key, number) for key, found in zip(query_id, chosen.answers, strict=True) for number in found]
    keys, numbers = (np.array(part, np.int64) for part in zip(*known, strict=True))
    inside = np.isin(numbers, documents)
    labels = blame.Labels(
        queries=vectors.queries[vectors.untrained],
        documents=vectors.documents[vectors.untrained][documents],
        document=own.astype(np.int64),
        query_id=query_id,
        answers=np.unique(keys[inside] * len(documents) + np.searchsorted(documents, numbers[inside])),
    )
    found = _judged(vectors, labels, {upload.name: upload.pairs for upload in sample.uploads})
    for column in _GROUPED:
        found += _judged(vectors, labels, _groups(vectors, column))
    return found


def _groups(vectors: _Vectors, column: str) -> dict[str, Ints]:
    """The pairs that each value of an optional column names; empty where it names fewer than two."""
    if column not in vectors.train.column_names:
        return {}
    values = vectors.train[column].take(pa.array(vectors.sample.rows)).to_pylist()
    groups: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        if value is not None:
            groups.setdefault(f"{column} {value}", []).append(place)
    largest = sorted(groups.items(), key=lambda one: (-len(one[1]), one[0]))[:_GROUPS]
    return {name: np.array(places, np.int64) for name, places in largest} if len(groups) > 1 else {}


def _judged(vectors: _Vectors, labels: blame.Labels, groups: Mapping[str, Ints]) -> list[UploadAudit]:
    judgements = blame.judge(labels, list(groups.values()), vectors.night.seed)
    return [
        UploadAudit(name, one.pairs, one.share, one.named, one.why, _without(vectors, labels, own, named=one.named))
        for (name, own), one in zip(groups.items(), judgements, strict=True)
    ]


def _without(vectors: _Vectors, labels: blame.Labels, pairs: Ints, *, named: bool) -> float | None:
    """What dev scores gain without an upload that is named; None where nothing is there to score."""
    dev, chosen = vectors.night.data.dev, vectors.subset
    if not named or not len(chosen.dev):
        return None
    asked = vectors.night.encoders[vectors.untrained].encode([dev.queries[i] for i in chosen.dev], "query")
    return blame.without(labels, pairs, asked, vectors.documents[vectors.untrained], chosen.relevant)


def _named(uploads: Sequence[UploadAudit]) -> Iterator[Suspect]:
    return (Suspect("upload", one.name, 0, "", "", "", one.why) for one in uploads if one.named)


def _hopeless(vectors: _Vectors) -> list[Suspect]:
    """Pairs whose document no model finds, those first above which another stands out most."""
    chosen = vectors.subset
    found = {
        side: ranks.rank(vectors.queries[side], vectors.documents[side], chosen.own, chosen.answers)
        for side in vectors.queries
    }
    untrained = found[vectors.untrained]
    lost = np.flatnonzero(ranks.hopeless(untrained, list(found.values()), len(chosen.texts)))
    return [
        Suspect(
            "label",
            *texts.row_of(vectors.train, int(vectors.sample.rows[place])),
            chosen.texts[untrained.best[place]][: texts.CUT],
            f"The document is found at rank {untrained.above[place] + 1:,} of {len(chosen.texts):,}, by the candidate "
            f"at {found['candidate'].above[place] + 1:,}; another one is far nearer.",
        )
        for place in lost[np.argsort(-untrained.gap[lost], kind="stable")].tolist()
    ]


def _false_negatives(vectors: _Vectors) -> Iterator[Suspect]:
    night, rows, chosen = vectors.night, vectors.sample.rows, vectors.subset
    yield from negatives.given(vectors.train, rows, chosen, vectors.queries, vectors.documents)
    if night.mined:
        start = night.start if night.start in vectors.queries else vectors.untrained
        sides = [(vectors.queries[side], vectors.documents[side]) for side in (start, "candidate")]
        trained = np.flatnonzero(night.data.trained_documents[chosen.places])
        yield from negatives.mined(vectors.train, rows, chosen, sides[0], sides[1], trained, night.mined)


def _similar_documents(vectors: _Vectors) -> Iterator[Suspect]:
    """Documents of pairs that another document nearly repeats: the nearest by vector, compared by their words."""
    chosen, found = vectors.subset, vectors.documents[vectors.untrained]
    near = []
    for place, own in enumerate(chosen.own.tolist()):
        cosines = found @ found[own]
        cosines[chosen.answers[place]] = 0.0
        best = int(cosines.argmax())
        near.append([best] if cosines[best] >= _NEAR else [])
    return texts.similar_documents(
        vectors.night.data, vectors.sample.rows, chosen.own, near, chosen.answers, chosen.places
    )


def _some(count: int, most: int, seed: int) -> Ints:
    """At most so many of the numbers below `count`, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most]).astype(np.int64)
