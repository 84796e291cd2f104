"""Judgements of an object by query: which documents people called relevant, and which not."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tasks.config import Limits
from tasks.parsing.unpacking import RefusedError

_MOST_BYTES: Final = 128 << 20
"""Bytes of documents judged not relevant that are kept while an object is read."""


class Judged:
    """What the judged rows of an object say together, gathered before any of them is taken.

    The documents that are not relevant to a query become negatives of each of its relevant ones. What was judged both
    ways is neither. Queries and documents are known by 64 bits of their hash, so that a row takes 25 bytes.
    """

    def __init__(self) -> None:
        self._asked, self._said, self._verdicts, self._places = array("Q"), array("Q"), array("b"), array("q")
        self._texts = bytearray()
        self._ends = array("q", [0])
        self._answered = self._refused_by = array("Q")
        self._refused = array("q")
        self._both: set[tuple[int, int]] = set()
        self.relevant = self.irrelevant = self.unjudged = 0
        self.left_out = 0
        """Negatives that were left out, because a row may have only so many."""

    def note(self, query: Any, document: str, *, relevant: bool) -> None:
        """Note one judgement. Raises RefusedError when there are too many to keep."""
        self._asked.append(_key(query))
        self._said.append(_digest(document))
        self._verdicts.append(relevant)
        self._places.append(-1 if relevant else len(self._ends) - 1)
        if not relevant:
            self._texts += document.encode(errors="surrogatepass")
            self._ends.append(len(self._texts))
            if len(self._texts) > _MOST_BYTES:
                raise RefusedError(
                    f"more than {_MOST_BYTES >> 20} MiB of documents judged not relevant",
                    "write several smaller objects, each query in one of them",
                )

    def settle(self, limits: Limits) -> None:
        """Bring together what was noted of each query.

        Raises RefusedError when negatives, repeated for every relevant document of their query, are too long.
        """
        asked, said = np.asarray(self._asked), np.asarray(self._said)
        if not len(asked):
            return
        verdicts, places = np.asarray(self._verdicts, dtype=bool), np.asarray(self._places)
        order = np.lexsort((places, said, asked))
        asked, said, verdicts, places = asked[order], said[order], verdicts[order], places[order]
        starts = np.flatnonzero(np.r_[True, (asked[1:] != asked[:-1]) | (said[1:] != said[:-1])])
        yes, no = np.logical_or.reduceat(verdicts, starts), np.logical_or.reduceat(~verdicts, starts)
        both = starts[yes & no]
        self._both = set(zip(asked[both].tolist(), said[both].tolist(), strict=True))
        answered, refused = asked[starts[yes & ~no]], asked[starts[no & ~yes]]
        first = places[starts[no & ~yes]]
        order = np.lexsort((first, refused))
        refused, first = refused[order], first[order]
        self._check_size(answered, refused, first, limits)
        self._answered, self._refused_by = _array("Q", answered), _array("Q", refused)
        self._refused = _array("q", first)

    def _check_size(
        self, answered: npt.NDArray[Any], refused: npt.NDArray[Any], places: npt.NDArray[Any], limits: Limits
    ) -> None:
        ends = np.asarray(self._ends)
        sums = np.concatenate([[0], np.cumsum(ends[places + 1] - ends[places])])
        sizes = sums[np.searchsorted(refused, answered, "right")] - sums[np.searchsorted(refused, answered, "left")]
        if np.minimum(sizes, limits.max_line_bytes).sum() > limits.max_decompressed_bytes:
            raise RefusedError(
                f"with the negatives of each query, more than {limits.max_decompressed_bytes} bytes",
                "write fewer judged documents for each query",
            )

    def fault(self, query: Any, documents: Iterable[str], relevant: bool | None) -> str | None:
        """Why a judged row cannot be taken."""
        if relevant is None:
            return "no judgement"
        asked = _key(query)
        if self._both and any((asked, _digest(text)) in self._both for text in documents):
            return "judged both relevant and not relevant"
        if not relevant and bisect_left(self._answered, asked) == bisect_right(self._answered, asked):
            return "judged not relevant, and no document of the object is relevant to its query"
        return None

    def count(self, *, relevant: bool) -> None:
        """Count a row that was used."""
        self.relevant += relevant
        self.irrelevant += not relevant

    def negatives(self, query: Any, limits: Limits, taken: Sequence[str]) -> list[str]:
        """The documents judged not relevant to a query, as many as a row may have besides those it has."""
        asked = _key(query)
        start, end = bisect_left(self._refused_by, asked), bisect_right(self._refused_by, asked)
        found: list[str] = []
        size = 0
        for place in self._refused[start:end]:
            size += self._ends[place + 1] - self._ends[place]
            if len(found) + len(taken) >= limits.max_negatives or size > limits.max_line_bytes:
                self.left_out += end - start - len(found)
                break
            found.append(self._texts[self._ends[place] : self._ends[place + 1]].decode(errors="surrogatepass"))
        return [text for text in found if text not in taken]


def _array(code: str, values: npt.NDArray[Any]) -> array[int]:
    found: array[int] = array(code)
    found.frombytes(values.tobytes())
    return found


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def _key(query: Any) -> int:
    """The same for queries that differ in case or blanks only."""
    return _digest(" ".join(str(query).casefold().split()))
