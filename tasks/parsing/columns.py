"""What each column of an object is, decided from all names and from the whole of each column before a row is taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tasks.parsing import names as known
from tasks.parsing.names import Pair, plain
from tasks.parsing.unpacking import RefusedError
from tasks.parsing.values import Column, judge, judges, number, tells

_MOST_COLUMNS: Final = 1_000
"""Columns that are looked at: names made up for every row must not fill the memory."""

_NOT_TEXTS: Final = ("score", "scores", "id", "ids", "idx", "rank", "ranks", "count", "source", "sources", "type")
"""Last words of names of columns that say something about negatives and hold none."""

_IF_NOT: Final = "rename or remove the column if it says something else"


class Columns(NamedTuple):
    """The names under which one row holds its parts; empty or None where there is no such part."""

    query: str | None
    document: str
    negatives: tuple[str, ...] = ()
    score: str | None = None
    slice: str | None = None
    source: str | None = None
    labeller: str | None = None
    train_only: str | None = None
    scored: bool = False
    """Whether every row needs a score."""
    constant: bool = False
    """Whether the score is the same in all rows, and says nothing."""
    title: str | None = None
    judgement: str | None = None
    spelt: frozenset[str] = frozenset()
    """Columns whose texts may spell lists."""
    lists: frozenset[str] = frozenset()
    """Columns that may hold several texts, or objects with a title and a text."""
    shaped: bool = False
    """Whether a row is more than its query, one document, and lists of negatives."""

    @property
    def others(self) -> list[str]:
        """The names that are there, but for query and document."""
        said = (self.source, self.labeller, self.train_only)
        names = (*self.negatives, self.score, self.slice, *said, self.title, self.judgement)
        return [name for name in names if name is not None]


@dataclass(frozen=True)
class Plan:
    """What the columns of an object are."""

    kind: str
    used: dict[str, str]
    """Columns as they are written, with what they are."""
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    roles: dict[str, str]
    """What a column is by its plain name, but for query and document, which may differ from row to row."""
    spelt: frozenset[str]
    lists: frozenset[str]
    constant: bool

    @property
    def judged(self) -> bool:
        """Whether a column judges the rows."""
        return "judgement" in self.roles.values()

    def columns(self, row: Sequence[str]) -> Columns | str:
        """What the names of a row hold, or why the row cannot be taken."""
        written: dict[str, str] = {}
        for name in row:
            if plain(name) in written and self._matters(plain(name)):
                return f"{plain(name)} is there twice"
            written[plain(name)] = name
        pair = known.find_pair(_claiming(written.keys()), self.kind)
        if isinstance(pair, str):
            return pair

        def one(role: str) -> str | None:
            return next(
                (written[name] for name, found in self.roles.items() if found == role and name in written), None
            )

        if self.judged and one("judgement") is None:
            return "no judgement, though other rows have one"
        negatives = tuple(written[name] for name, role in self.roles.items() if role == "negatives" and name in written)
        parts = [*negatives, written[pair.document]]
        spelt = frozenset(name for name in parts if plain(name) in self.spelt)
        lists = frozenset(name for name in parts if plain(name) in self.lists)
        score = one("score")
        if pair.symmetric and not self.judged and score is None:
            return f"{pair.query} and {pair.document} without a score"
        return Columns(
            query=None if pair.query is None else written[pair.query],
            document=written[pair.document],
            negatives=negatives,
            score=score,
            slice=one("slice"),
            source=one("source"),
            labeller=one("labeller"),
            train_only=one("train_only"),
            scored=pair.symmetric and not self.judged,
            constant=self.constant,
            title=one("title"),
            judgement=one("judgement"),
            spelt=spelt,
            lists=lists,
            shaped=bool(spelt or lists or one("title") or self.judged),
        )

    def _matters(self, name: str) -> bool:
        return name in self.roles or name in known.QUERIES or name in known.DOCUMENTS


def _claiming(names: Iterable[str]) -> set[str]:
    """The names that may be query or document: of Prodigy's, `answer` is what the annotator said of the whole row."""
    found = set(names)
    return found - {"answer"} if found & {"_input_hash", "_task_hash"} else found


@dataclass
class Survey:
    """The columns of an object, gathered row by row before it is decided what they are."""

    kind: str
    columns: dict[str, Column] = field(default_factory=dict)
    """By plain name, in order of appearance."""
    pairs: dict[Pair, None] = field(default_factory=dict)
    missing: str | None = None
    """What the first row without query or document lacks."""
    more: bool = False

    def watch(self, row: Sequence[str], *, texts: bool = False) -> list[tuple[str, Column]]:
        """Note the names of a row; returns those whose values have to be looked at, which `texts` makes more.

        Raises RefusedError when the names are ambiguous.
        """
        by_plain = {plain(name): name for name in row}
        pair = known.find_pair(_claiming(by_plain), self.kind)
        skipped: set[str | None] = set()
        if isinstance(pair, str):
            self.missing = self.missing or pair
        else:
            self.pairs[pair] = None
            skipped = {pair.query}
            if not texts and pair.document in {"document", "text", "passage"}:
                skipped.add(pair.document)
        watched = []
        for name, written in by_plain.items():
            if name not in self.columns:
                if len(self.columns) >= _MOST_COLUMNS:
                    self.more = True
                    continue
                self.columns[name] = Column(written)
            if name not in skipped:
                watched.append((written, self.columns[name]))
        return watched

    def decide(self) -> Plan:
        """What the columns are. Raises RefusedError when that is not clear, or what they hold is not understood."""
        known.refuse_foreign({column.name for column in self.columns.values()}, set(self.columns), self.kind)
        if self.columns and not self.pairs:
            raise RefusedError(self.missing or "no columns", f"its columns are {self._named()}; {_EXPECTED[self.kind]}")
        return _Decision(self).plan()

    def _named(self) -> str:
        names = [column.name[:40] for column in self.columns.values()]
        return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


_PAIR_EXPECTED: Final = "expected are query and document, or question and answer, or anchor and positive"
_EXPECTED: Final = {
    "pair": _PAIR_EXPECTED,
    "golden": _PAIR_EXPECTED,
    "corpus": "expected is text, with or without title",
}


class _Decision:
    """What becomes of the columns of a survey."""

    def __init__(self, survey: Survey) -> None:
        self._survey = survey
        self._columns = {name: column for name, column in survey.columns.items() if not column.is_empty}
        self._texts = [name for pair in survey.pairs for name in (pair.query, pair.document) if name is not None]
        self._documents = {pair.document for pair in survey.pairs}
        self._notes: list[str] = []
        self._constant = False

    def plan(self) -> Plan:
        roles: dict[str, str] = {}
        if self._survey.kind != "corpus":
            self._check_documents()
            roles |= self._judgement()
            roles |= self._score(judged=bool(roles))
            roles |= dict.fromkeys(self._negatives(), "negatives")
            if "slice" in self._columns:
                roles["slice"] = "slice"
            roles |= {name: name for name in ("source", "labeller") if self._names_few(name)}
            roles |= {name: name for name in ("train_only",) if name in self._columns}
        roles |= self._title()
        if self._survey.kind != "corpus":
            for name in self._unknown(roles):
                self._check_unknown(self._columns[name], name)
        used = self._used(roles)
        ignored = [column.name for name, column in self._survey.columns.items() if column.name not in used]
        if self._survey.more:
            ignored.append(f"all beyond the first {_MOST_COLUMNS}")
        parts = {*self._documents, *(name for name, role in roles.items() if role == "negatives")}
        spelt = {name for name in parts if self._is_spelt(name)}
        lists = {name for name in parts if name in known.LISTS or known.is_negatives(name)}
        return Plan(
            kind=self._survey.kind,
            used=used,
            ignored=tuple(ignored),
            notes=tuple(self._notes),
            roles=roles,
            spelt=frozenset(spelt),
            lists=frozenset(name for name in lists if name in known.LISTS or self._survey.columns[name].objects),
            constant=self._constant,
        )

    def _names_few(self, name: str) -> bool:
        """Whether `source` or `labeller` holds a few words, such as clicks and experts, which are judged apart."""
        column = self._columns.get(name)
        if column is None or column.many or column.lists or column.objects:
            return False
        return column.texts > 0 and column.low == float("inf")

    def _used(self, roles: dict[str, str]) -> dict[str, str]:
        columns = self._survey.columns
        found = {}
        for pair in self._survey.pairs:
            if pair.query is not None:
                found[columns[pair.query].name] = "query"
            found[columns[pair.document].name] = "document"
        return found | {columns[name].name: role for name, role in roles.items()}

    def _unknown(self, roles: dict[str, str]) -> Iterator[str]:
        return (name for name in self._columns if name not in roles and name not in self._texts)

    def _check_documents(self) -> None:
        """Refuse judgements that are where a document should be, such as Prodigy's accept and reject."""
        for name in self._documents:
            column = self._columns.get(name)
            if column is not None and judges(column) and column.texts:
                raise RefusedError(
                    f"{column.name} holds judgements or numbers ({column.shown()}), not documents",
                    "name the column of documents document, and the judgements label",
                )

    def _judgement(self) -> dict[str, str]:
        found = [name for name in self._columns if name in known.JUDGEMENTS]
        prodigy = not {"_input_hash", "_task_hash"}.isdisjoint(self._survey.columns)
        answer = self._columns.get("answer")
        if answer is not None and "answer" not in self._documents and (prodigy or tells(answer)):
            found.append("answer")
        if not found:
            return {}
        if len(found) > 1:
            written = " and ".join(self._columns[name].name for name in found)
            raise RefusedError(f"{written} could each be the judgement", "keep one of them, and name it label")
        self._check_judgements(self._columns[found[0]])
        return {found[0]: "judgement"}

    def _check_judgements(self, column: Column) -> None:
        """Refuse what is not a judgement of two kinds."""
        answers: set[bool | None] = set()
        unknown = column.many or bool(column.lists or column.objects)
        for value in column.values:
            try:
                answers.add(judge(value))
            except ValueError:
                unknown = True
        if unknown or (column.low < 0 and 0 in _numbers(column)):
            span = f"{column.range()} ({column.shown()})" if column.range() else column.shown()
            raise RefusedError(
                f"{column.name} holds {span}; expected is 1 or relevant, and 0 or not relevant",
                f"map it to 1 and 0, or write it as a score from 0 to 1 instead; {_IF_NOT}",
            )
        if True not in answers:
            raise RefusedError(
                f"no row is judged relevant: {column.name} holds only {column.shown()}",
                "a query needs a document that is relevant to it",
            )
        if False not in answers:
            self._notes.append(f"{column.name} judges every row as relevant")

    def _score(self, *, judged: bool) -> dict[str, str]:
        found = [name for name in self._columns if name in known.SCORES]
        if not found:
            return {}
        written = " and ".join(self._columns[name].name for name in found)
        if len(found) > 1:
            raise RefusedError(f"{written} could each be the score", "keep one of them, and name it score")
        column = self._columns[found[0]]
        if column.low < 0 or column.high > 1:
            raise RefusedError(
                f"{written} holds {column.range()}; expected is 0 to 1",
                f"scale the whole column to 0 to 1, where 0.5 and more is relevant; {_IF_NOT}",
            )
        scores = _numbers(column)
        rows = sum(column.values.values())
        if len(scores) == 1 and not column.many and (rows > 1 or scores == {1.0}):
            self._settle_constant(column, judged=judged)
        elif judged:
            raise RefusedError(
                f"a judgement and {written} both say how relevant a document is",
                f"keep one of them; {_IF_NOT}",
            )
        return {found[0]: "score"}

    def _settle_constant(self, column: Column, *, judged: bool) -> None:
        """A score that is the same in all rows compares nothing."""
        if column.low < 0.5 and not judged:
            raise RefusedError(
                f"{column.name} is {column.low:g} in every row: no document is said to be relevant",
                "remove the column if the rows are pairs that belong together",
            )
        self._constant = True
        self._notes.append(f"{column.name} is {column.low:g} in every row, which is no score")

    def _negatives(self) -> list[str]:
        found = [name for name in self._survey.columns if known.is_negatives(name)]
        for name in found:
            column = self._survey.columns[name]
            if not (column.is_empty or column.texts or column.lists or column.objects):
                raise RefusedError(f"{column.name} holds {column.shown()}, not texts", _IF_NOT)
        return found

    def _title(self) -> dict[str, str]:
        found = [name for name in known.TITLES if name in self._columns]
        pairs = self._survey.pairs
        if not found or all(pair.symmetric for pair in pairs):
            return {}
        written = " and ".join(self._columns[name].name for name in found)
        if len(found) > 1:
            raise RefusedError(f"{written} could each be the title of the document", "keep one of them")
        if not self._documents.isdisjoint({"answer", "response"}):
            raise RefusedError(
                f"{written} could belong to the question or to the answer", "remove it, or name the answer document"
            )
        if any(self._columns[name].lists for name in self._documents if name in self._columns):
            raise RefusedError(
                f"{written} beside a list of documents", "give each document its title, or remove the column"
            )
        return {found[0]: "title"}

    def _is_spelt(self, name: str) -> bool:
        """Whether texts of a column may spell lists. Raises RefusedError where some do and others do not."""
        column = self._columns.get(name)
        if column is None:
            return False
        if (column.odd and column.odd == column.texts) or (column.spelt and not column.holds_lists):
            raise RefusedError(
                f"{column.name} holds lists or objects that are spelt as text, and not all of them can be read",
                'write lists as JSON, such as ["first text", "second text"]',
            )
        return bool(column.spelt or column.spelt_empty)

    def _check_unknown(self, column: Column, name: str) -> None:
        """Refuse what may change the meaning of the rows, and cannot be used."""
        if tells(column) or (judges(column) and (known.may_judge(name) or name == "answer")):
            raise RefusedError(
                f"{column.name} may hold judgements ({column.shown()})",
                "name it label, with 1 for relevant and 0 for not relevant; " + _IF_NOT,
            )
        texts = column.texts or column.lists or column.objects
        if known.may_be_negatives(name) and texts and name.rpartition("_")[2] not in _NOT_TEXTS:
            raise RefusedError(f"{column.name} may hold negatives", f"name it negatives; {_IF_NOT}")


def _numbers(column: Column) -> set[float]:
    found = {number(value) if isinstance(value, str) else value for value in column.values}
    return {float(value) for value in found if value is not None}
