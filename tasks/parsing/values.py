"""What the cells of a column say as a whole: judgements, scores, lists that are spelt as text."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

NOTHING: Final = "\\N"
"""How MySQL and Hive write that there is no value."""

_DISTINCT: Final = 24
"""Distinct values of a column that are remembered: more than any scale of judgements has."""

_LONGEST_WORD: Final = 60

_NUMBER: Final = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)

_ODD: Final = re.compile(r"""\[\s*['"{].*\]\s*|\{\s*['"].*\}\s*""", re.DOTALL)

_YES: Final = frozenset(
    {
        *("relevant", "yes", "y", "true", "t", "positive", "pos", "accept", "accepted", "correct", "match", "right"),
        *("is relevant", "duplicate"),
    }
)
_NO: Final = frozenset(
    {
        *("not relevant", "non relevant", "nonrelevant", "irrelevant", "notrelevant", "no", "n", "false", "f"),
        *("negative", "neg", "reject", "rejected", "incorrect", "not correct", "no match", "not match", "mismatch"),
        *("wrong", "is not relevant", "unrelated", "not duplicate", "not a match"),
    }
)
_UNDECIDED: Final = frozenset(
    {
        *("", "ignore", "ignored", "skip", "skipped", "unsure", "not sure", "unknown", "undecided", "n/a", "none"),
        *("null", "nan", "\\n"),
    }
)
_TELLING: Final = (_YES | _NO) - {"yes", "y", "true", "t", "no", "n", "false", "f", "right", "wrong", "pos", "neg"}
"""Words that are judgements whatever the column is called."""


def number(text: str) -> float | None:
    """The number that a cell spells, in ASCII digits; None where it spells none."""
    return float(text) if _NUMBER.fullmatch(text) else None


def _word(value: str) -> str:
    return re.sub(r"[\s_\-]+", " ", value).strip().casefold()


def judge(value: Any) -> bool | None:
    """Whether a value says relevant or not relevant; None where it says neither. Raises ValueError for any other."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = _word(value)
        if word in _YES or word in _NO:
            return word in _YES
        if word in _UNDECIDED:
            return None
        value = number(value)
    if isinstance(value, int | float) and value in {0, 1, -1}:
        return value == 1
    raise ValueError


@dataclass
class Column:
    """What is known of the values of one column."""

    name: str
    """As it is written in the first row that has it."""
    values: dict[Any, int] = field(default_factory=dict)
    """Distinct short values in order, with how often each came; numbers spelt as texts are texts."""
    many: bool = False
    """Whether there are more of them, or long ones."""
    missing: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    texts: int = 0
    lists: int = 0
    objects: int = 0
    spelt: int = 0
    """Texts that spell a list of texts with something in it."""
    spelt_empty: int = 0
    odd: int = 0
    """Texts that look like a list or an object, and spell no list of texts."""

    def add(self, value: Any) -> None:
        """Take a value into account."""
        kind = type(value)
        if kind is str:
            self._add_text(value)
        elif value is None:
            self.missing += 1
        elif kind is list:
            self.lists += 1
            self.objects += bool(value) and type(value[0]) is dict
        elif kind is dict:
            self.objects += 1
        else:
            self._add_number(value)
            self._remember(value)

    def _add_text(self, value: str) -> None:
        if not value or value.isspace() or value == NOTHING:
            self.missing += 1
            return
        self.texts += 1
        if value[0] in "[{":
            items = spelt_list(value)
            self.spelt += bool(items)
            self.spelt_empty += items == []
            self.odd += items is None and _ODD.fullmatch(value) is not None
        if len(value) > _LONGEST_WORD:
            self.many = True
            return
        spelt = number(value)
        if spelt is not None:
            self._add_number(spelt)
        if not self.many:
            self._remember(value)

    def _add_number(self, value: float) -> None:
        if value < self.low:
            self.low = value
        if value > self.high:
            self.high = value

    def _remember(self, value: Any) -> None:
        if value in self.values:
            self.values[value] += 1
        elif len(self.values) < _DISTINCT:
            self.values[value] = 1
        else:
            self.many = True

    @property
    def is_empty(self) -> bool:
        """Whether no row has a value."""
        return not (self.values or self.many or self.lists or self.objects)

    @property
    def holds_lists(self) -> bool:
        """Whether every text of it spells a list."""
        return bool(self.spelt) and self.spelt + self.spelt_empty == self.texts

    def shown(self) -> str:
        """Some of its values, for a message."""
        some = [str(value)[:30] for value in list(self.values)[:6]]
        if self.lists or self.objects:
            some.append("lists" if self.lists else "objects")
        return ", ".join(some) + (", ..." if self.many or len(self.values) > len(some) else "")

    def range(self) -> str:
        """From which number to which it goes; empty where it holds no numbers."""
        if self.low >= self.high:
            return f"{self.low:g}" if self.low == self.high else ""
        return f"{self.low:g} to {self.high:g}"


def judges(column: Column) -> bool:
    """Whether every value of a column could be a judgement, or a grade of a few."""
    if column.many or column.is_empty or column.lists or column.objects:
        return False
    return all(_is_grade(value) for value in column.values)


def _is_grade(value: Any) -> bool:
    try:
        judge(value)
    except ValueError:
        found = number(value) if isinstance(value, str) else value
        return found is not None and float(found).is_integer() and -1 <= found <= 10
    return True


def tells(column: Column) -> bool:
    """Whether the words of a column are judgements whatever it is called: relevant, not relevant, accept, reject."""
    words = {_word(value) for value in column.values if isinstance(value, str)}
    return not column.many and bool(words & _TELLING) and words <= _YES | _NO | _UNDECIDED


def spelt_list(cell: str) -> list[str] | None:
    """The texts of a list that a cell spells, in JSON or as Python prints it; None where it spells none."""
    cell = cell.strip()
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    try:
        found = orjson.loads(cell)
    except ValueError:
        found = _python_list(cell)
    return found if isinstance(found, list) and all(isinstance(item, str) for item in found) else None


def _python_list(cell: str) -> Any:
    """A list in Python's notation; None where texts stand side by side without a comma, as NumPy prints them."""
    try:
        found = ast.literal_eval(cell)
        texts = sum(token.type == tokenize.STRING for token in tokenize.generate_tokens(io.StringIO(cell).readline))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError):
        return None
    return found if isinstance(found, list) and len(found) == texts else None
