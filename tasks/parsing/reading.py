"""The way every object is read: decide what its columns are, then take its rows one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from tasks.config import Limits
from tasks.parsing.columns import Columns, Plan, Survey
from tasks.parsing.rows import Chunk, Rows
from tasks.parsing.understood import Understood

_CHUNK_SIZE = 8 << 20
"""Characters of rows that hold more than their line does, after which a chunk is closed."""


Record: TypeAlias = tuple[int, Mapping[str, Any], Columns | str, str | bytes | None]
"""One row as it is written: its line, its cells by name, what they are or why there is no row, and its bytes if it has
some of its own. A plain tuple, because a named one for every row would cost a tenth of the time."""


class Source(Protocol):
    """An object of one format, which can be read several times."""

    @property
    def format(self) -> str:
        """What it was recognised as."""

    def survey(self, survey: Survey) -> None:
        """Look at every row once. Raises RefusedError when none may be taken."""

    def records(self, plan: Plan) -> Iterator[Record | None]:
        """Every row in order; None where a chunk may be closed."""


@dataclass
class Reading:
    """An object as it is read."""

    key: str
    limits: Limits
    source: Source
    rows: Rows = field(init=False)
    plan: Plan | None = None

    def __post_init__(self) -> None:
        self.rows = Rows(self.key, self.limits)

    def chunks(self) -> Iterator[Chunk]:
        """The rows of the object. Raises RefusedError, before the first chunk, when none of them can be taken."""
        survey = Survey(self.rows.kind)
        self.source.survey(survey)
        plan = self.plan = survey.decide()
        rows, add, reject = self.rows, self.rows.add, self.rows.reject
        if plan.judged:
            self._note(plan)
        for record in self.source.records(plan):
            if record is None:
                yield rows.chunk()
                continue
            line, cells, columns, raw = record
            reason = columns if type(columns) is str else add(line, cells, columns)  # type: ignore[arg-type]
            if reason is not None:
                reject(line, reason, _shown(cells) if raw is None else raw)
            if rows.size > _CHUNK_SIZE:
                yield rows.chunk()
        yield rows.chunk()

    @property
    def used(self) -> bool:
        """Whether rows were used without being accepted or rejected."""
        return bool(self.rows.judged.irrelevant)

    def understood(self, accepted: int, rejected: int) -> Understood:
        """What was made of the object, when all of it was read."""
        plan, judged = self.plan, self.rows.judged
        notes = list(plan.notes) if plan else []
        if judged.left_out:
            notes.append(f"{judged.left_out} negatives were left out: a row may have {self.limits.max_negatives}")
        return Understood(
            object=self.key,
            format=self.source.format,
            used=plan.used if plan else {},
            ignored=plan.ignored if plan else (),
            accepted=accepted,
            rejected=rejected,
            relevant=judged.relevant,
            irrelevant=judged.irrelevant,
            unjudged=judged.unjudged,
            notes=tuple(notes),
        )

    def _note(self, plan: Plan) -> None:
        """Gather what is judged, before any row is taken."""
        for record in self.source.records(plan):
            if record is not None and not isinstance(record[2], str):
                self.rows.note(record[1], record[2])
        self.rows.judged.settle(self.limits)


def _shown(cells: Mapping[str, Any]) -> str:
    """The cells of a row that has no line of its own."""
    return ", ".join(f"{name}: {value}" for name, value in cells.items())
