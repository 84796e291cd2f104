"""What the names of columns say: which holds the query, which its document, and which bear on the meaning otherwise."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

from tasks.parsing.unpacking import RefusedError

QUERIES: Final = ("query", "anchor", "question")

_STRONG: Final = (
    *("document", "positive", "pos", "pos_doc", "positives", "positive_passages", "positive_ctxs", "positive_passage"),
    *("positive_document", "positive_documents", "positive_doc", "positive_docs", "pos_docs"),
    *("relevant_document", "relevant_passage"),
)
"""Names that only a relevant document has."""

_WEAK: Final = ("answer", "passage", "text", "context", "doc", "response")
"""Names of a document where no other name claims to be it."""

DOCUMENTS: Final = frozenset((*_STRONG, *_WEAK))

LISTS: Final = frozenset(_STRONG) - {"document"}
"""Columns of documents that may hold several of them, as texts or as objects with title and text."""

_EXACT: Final = (("query", "document"), ("anchor", "positive"))

_SYMMETRIC: Final = (
    *(("sentence1", "sentence2"), ("text_a", "text_b"), ("sentence_a", "sentence_b"), ("sentence_1", "sentence_2")),
    *(("text1", "text2"), ("text_1", "text_2"), ("question1", "question2"), ("question_1", "question_2")),
)
"""Two texts of the same kind: without a score or a judgement nothing says that they belong together."""

TITLES: Final = ("title", "document_title", "doc_title", "passage_title")
SCORES: Final = ("score", "similarity", "similarity_score", "relevance_score", "relatedness_score")
JUDGEMENTS: Final = frozenset(
    {
        *("label", "labels", "relevance", "relevant", "is_relevant", "isrelevant", "relevancy", "relevance_label"),
        *("rating", "grade", "judgement", "judgment", "relevance_judgement", "relevance_judgment", "relevance_grade"),
        *("relevance_rating", "rel", "qrel", "verdict", "annotation", "gold", "gold_label", "match", "is_match"),
        *("is_positive", "is_correct", "correct", "accepted", "is_accepted", "is_duplicate", "duplicate", "stars"),
        *("is_answer", "is_selected"),
    }
)

_NEGATIVES: Final = re.compile(
    r"(hard_)?(negatives?|negs?)(_(docs?|documents?|passages?|ctxs?|texts?))?(_?\d+)?|hard_negatives?_ctxs?"
)

_JUDGING: Final = frozenset(
    {
        *("label", "labels", "relevance", "relevant", "relevancy", "rating", "grade", "judgement", "judgment", "rel"),
        *("qrel", "qrels", "verdict", "correct", "accepted", "match", "duplicate", "gold", "target", "vote", "votes"),
        *("feedback", "thumbs", "useful", "helpful", "clicked", "selected", "approved", "positive", "class", "stars"),
        *("negative", "negatives", "neg", "irrelevant", "rejected", "incorrect", "wrong", "bad", "nonrelevant"),
    }
)
"""Words in a name that say that a column may judge the row, or reverse what it says."""

_NEGATIVE_WORDS: Final = frozenset({"negative", "negatives", "neg", "negs"})


class Pair(NamedTuple):
    """The plain names of query (None in a corpus) and document."""

    query: str | None
    document: str
    symmetric: bool = False
    """Whether every row needs a score or a judgement."""


def plain(name: str) -> str:
    """A name without what does not matter: case, blanks around it, hyphens, blanks and capitals between its words."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\s\-]+", "_", name).lower()


def is_negatives(name: str) -> bool:
    """Whether a plain name is one of a column of negatives."""
    return _NEGATIVES.fullmatch(name) is not None


def may_judge(name: str) -> bool:
    """Whether a plain name could be that of a judgement."""
    return not _JUDGING.isdisjoint(re.split(r"[_.]", name))


def may_be_negatives(name: str) -> bool:
    """Whether a plain name could be that of negatives."""
    return not _NEGATIVE_WORDS.isdisjoint(re.split(r"[_.]", name))


def find_pair(names: AbstractSet[str], kind: str) -> Pair | str:
    """Which of the plain names hold query and document, or what is missing.

    Raises RefusedError when several could be one of them.
    """
    if kind == "corpus":
        return _find_text(names)
    queries = [name for name in QUERIES if name in names]
    strong = [name for name in _STRONG if name in names]
    documents = strong or [name for name in _WEAK if name in names]
    for query, document in _EXACT:
        if query in names and document in names and (query == "query" or len(queries) == 1):
            if len(strong) > 1:
                raise _ambiguous("document", strong)
            return Pair(query, document)
    if queries and documents:
        if len(queries) > 1:
            raise _ambiguous("query", queries)
        if len(documents) > 1:
            raise _ambiguous("document", documents)
        return Pair(queries[0], documents[0])
    for query, document in _SYMMETRIC:
        if query in names and document in names:
            return Pair(query, document, symmetric=True)
    return _missing(names, queries, strong)


def _find_text(names: AbstractSet[str]) -> Pair | str:
    for name in ("text", "document", "passage", "contents"):
        if name in names:
            return Pair(None, name)
    return "no text"


def _ambiguous(part: str, names: list[str]) -> RefusedError:
    return RefusedError(
        f"{' and '.join(names)} could each be the {part}",
        f"rename the one that is to {part}, and remove or rename the others",
    )


def _missing(names: AbstractSet[str], queries: list[str], strong: list[str]) -> str:
    if queries:
        return f"{queries[0]} without document"
    if strong:
        return f"{strong[0]} without query"
    for first, second in _SYMMETRIC:
        if first in names or second in names:
            present, lacking = (first, second) if first in names else (second, first)
            return f"{present} without {lacking}"
    return "neither query and document nor another spelling of them"


# --- what other programs write -----------------------------------------------------------------------------

_CONVERT: Final = "export it as JSON, and turn that into pairs with `ratchet convert`"
_ARGILLA: Final = re.compile(r".+[.\-](responses|suggestion)([.\-].*)?")


def refuse_foreign(raw: AbstractSet[str], names: AbstractSet[str], kind: str) -> None:
    """Raise RefusedError for the files of other programs that hold no pairs as they are.

    Args:
        raw: Names as they are written.
        names: The same as `plain` gives them.
        kind: What the object's rows should be.
    """
    foreign = _labelling_tool(raw, names) or ("" if kind == "corpus" else _other_layout(names))
    if kind == "corpus" and {"query_id", "corpus_id"} <= names:
        foreign = _QRELS
    if foreign:
        recognised, _, remedy = foreign.partition(": ")
        raise RefusedError(recognised, remedy)


def _labelling_tool(raw: AbstractSet[str], names: AbstractSet[str]) -> str:
    if "annotation_id" in names or {"lead_time", "annotator"} <= names or {"annotations", "data"} <= names:
        return f"an export of Label Studio: {_CONVERT}"
    lower = {name.strip().lower() for name in raw}
    if {"fields", "responses"} <= names or "_server_id" in names or any(map(_ARGILLA.fullmatch, lower)):
        return "an export of Argilla: write it with `dataset.records.to_json(path)`, and use `ratchet convert`"
    prodigy = {"_input_hash", "_task_hash"} & names
    if prodigy and not {"accept", "options", "spans"}.isdisjoint(names):
        return (
            "an export of Prodigy with choices or spans: write the chosen answer into a column label, 1 for relevant "
            "and 0 for not relevant"
        )
    if prodigy and isinstance(find_pair(names - {"answer"}, "pair"), str):
        return "an export of Prodigy, without query and document: write them into columns of these names"
    return ""


_QRELS: Final = (
    "relevance judgements by id (qrels), without texts: `ratchet convert FOLDER pairs.jsonl` joins a folder in BEIR "
    "layout"
)


def _other_layout(names: AbstractSet[str]) -> str:
    if {"query_id", "corpus_id"} <= names or {"qid", "pid"} <= names or {"query_id", "doc_id"} <= names:
        return "" if names & set(QUERIES) else _QRELS
    if {"_id", "text"} <= names and not names & set(QUERIES):
        return (
            "texts with ids (corpus or queries in BEIR layout), without pairs: put a corpus under corpus/; "
            "`ratchet convert FOLDER pairs.jsonl` joins queries, corpus and qrels"
        )
    if {"premise", "hypothesis"} <= names:
        return "premise and hypothesis (inference, not search): write query and document where one answers the other"
    if "set" in names and not names & set(QUERIES):
        return "a set of texts, none of which is said to be the query: write pairs with query and document"
    if "texts" in names and not names & set(QUERIES):
        return "texts without names: write them as anchor, positive and negative_1, negative_2, ..."
    if {"chosen", "rejected"} <= names:
        return "preferences (chosen and rejected): write query, document and negative"
    if "messages" in names or "conversations" in names:
        return "conversations: write query and document"
    return ""
