"""Which side (train, dev, test) a query is on, for ever.

A side is a pure function of the query's normalised key and of a salt in the store. So it never changes, the
order of arrival does not matter, rewordings of case, order and punctuation stay together, and no earlier
candidate can have trained on tonight's test.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import unicodedata
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from tasks.storage import Store

Side: TypeAlias = Literal["train", "dev", "test"]

SPLIT_KEY: Final = "split.json"

RULE: Final = 1
"""Version of `query_key`. To change anything that changes a key would move queries between the sides of every
store there is: a new rule needs a new number, and stores keep the one they were made with."""

STOP_WORDS: Final = frozenset(
    """
    a about am an and any are as at be been being but by can could did do does for from had has have he her
    him his how i if im in into is it its ive me my of on or our please she should so some than that the their
    them then there these they this those to was we were what whats when where which who whom whose why
    will with would you your
    """.split()  # noqa: SIM905 (ninety quoted words are harder to read than a paragraph)
)
"""English words of grammar. Words that change what is asked ("not", "without", "before") are not among them."""

_APOSTROPHES: Final = "'\u2019\u02bc"


class SplitError(Exception):
    """The split kept in the store cannot be used; the message says why."""


def document_key(text: str) -> str:
    """Texts with the same key are one document: NFKC, casefold, white space collapsed.

    Both foldings are stable (Unicode's stability policy): a later version of Unicode, or of Python, does not
    change the key of a text whose characters exist today.
    """
    return " ".join(_fold(text).split())


def query_key(text: str) -> str:
    """Key under which rewordings of one query meet: folded, no punctuation, no stop words, token set sorted.

    Where that leaves nothing, less is taken away, so that different queries do not collapse into one: "who are
    you" keeps its stop words, "???" its punctuation.
    """
    words = set(_fold(text).translate(_WORDS).split())
    return " ".join(sorted(words - STOP_WORDS or words)) or document_key(text)


def _fold(text: str) -> str:
    """NFKC and casefold, and NFKC again, since folding can take a text out of normal form."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


class _Words(dict[int, str | None]):
    """A table for `str.translate` that leaves words and spaces, filled as characters are met.

    Letters, marks and digits stay (category M too, or the vowels of Hindi would be cut out); apostrophes and
    invisible format characters vanish ("don't" is "dont"); everything else separates words.
    """

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        category = unicodedata.category(character)
        if character in _APOSTROPHES or category == "Cf":
            self[code] = None
        else:
            self[code] = character if category[0] in "LMN" else " "
        return self[code]


_WORDS: Final = _Words()


@dataclass(frozen=True)
class Split:
    """The split of one store: its salt, and the shares of queries for dev and test (the rest trains)."""

    salt: str
    dev: float = 0.05
    test: float = 0.15

    def __post_init__(self) -> None:
        if not (isinstance(self.salt, str) and self.salt):
            raise SplitError(f"a split needs a salt, got {self.salt!r}")
        if not (self.dev >= 0 and self.test > 0 and self.dev + self.test < 1):
            raise SplitError(f"shares of dev ({self.dev}) and test ({self.test}) must leave something to train on")

    def side(self, query: str) -> Side:
        """The side of a query, by the place of its key."""
        return self.side_of_key(query_key(query))

    def side_of_key(self, key: str) -> Side:
        """The side of a key that `query_key` gave."""
        place = self.place(key)
        if place < self.test:
            return "test"
        return "dev" if place < self.test + self.dev else "train"

    def place(self, key: str) -> float:
        """Where a key falls in [0, 1): a hash of salt and key, even over all keys."""
        digest = hashlib.blake2b(f"{self.salt}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64


def load_split(store: Store) -> Split:
    """Read the split of a store, made on first use and never changed after; of racing first uses one wins.

    Where it was lost, it is put back as the log has it. Raises SplitError when what is stored is not a split, was made
    by another rule, or is lost although it was used: guessing would move queries from one side to another.
    """
    blob = store.find(SPLIT_KEY)
    if blob is None:
        new = _recorded(store) or Split(secrets.token_hex(16))
        if store.put_if_absent(SPLIT_KEY, json.dumps(as_fields(new)).encode()) is not None:
            return new
        blob = store.get(SPLIT_KEY)
    return _parse(store.uri(SPLIT_KEY), blob.body)


def as_fields(split: Split) -> dict[str, Any]:
    """A split as it is stored."""
    return {"rule": RULE, **asdict(split)}


def _parse(uri: str, body: bytes) -> Split:
    try:
        stored = json.loads(body)
        rule, split = stored["rule"], Split(stored["salt"], float(stored["dev"]), float(stored["test"]))
    except (ValueError, KeyError, TypeError, SplitError) as error:
        raise SplitError(f"{uri} is not a split: {error!r}") from error
    if rule != RULE:
        raise SplitError(f"{uri} was made by rule {rule}, this is rule {RULE}")
    return split


def _recorded(store: Store) -> Split | None:
    """The split as the last entry of the log has it; None for a store that has not used one yet."""
    entries = sorted(entry.key for entry in store.entries("log/"))
    if not entries:
        return None
    recorded = json.loads(store.get(entries[-1]).body).get("split")
    if recorded:
        return _parse(store.uri(entries[-1]), json.dumps(recorded).encode())
    if any(entry.key.endswith("/checks.json") for entry in store.entries("runs/")):
        raise SplitError(
            f"{store.uri(SPLIT_KEY)} is missing, and a new one would make training queries test queries: restore it "
            "from the bucket's versions"
        )
    return None  # an older version took objects in before it made the split
