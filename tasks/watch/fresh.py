"""The serving model on labels that it never saw: what the hourly watch does on a store.

Labels are fresh until a model that serves was trained on them, that is, those of all commits after the one that the
serving version was trained on. They are taken in like any others, exactly once, by whichever run comes first; a night
counts as new what came since the night before, whichever run took it in.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tasks import runs
from tasks.config import DECISIVE, Limits, Watch, metric_label
from tasks.records import Settings
from tasks.runs import Run
from tasks.storage import Store
from tasks.watch.confirmation import Confirmation, compare, confirm
from tasks.watch.drift import Standstill, Window, drift_began, measure, standstill

if TYPE_CHECKING:
    import pyarrow as pa

    from tasks.dataset import Dataset, EvaluationSet
    from tasks.encoding import NumericPath, Progress
    from tasks.registry import Production

_MIN_DOCUMENTS: Final = 5
"""Documents that a window's queries must ask for: labels for one topic say little about the others."""

_TRAINABLE: Final = ("held", "regressed", "blocked", "failed")
"""Verdicts of nights that had something to train on, and did not promote."""


class Seen(BaseModel):
    """What one look at production came to."""

    model_config = ConfigDict(extra="forbid")

    version: str | None
    """What serves; None: nothing was ever promoted, the base model serves."""
    says: str
    windows: list[Window] = []
    """The latest windows of this version, oldest first."""
    drifted_since: int | None = None
    """First commit of the window with which production began to count as drifted."""
    confirmation: Confirmation | None = None
    """The last look at its promotion, on labels that neither it nor the version before was trained on."""
    told: dict[str, float] = {}
    """The gain that its night told, by decisive metric."""
    standstill: list[Standstill] = []
    change: int = 0
    """Number of the last change of production."""


def take_in(store: Store, run_id: str, limits: Limits | None = None, on_progress: Progress | None = None) -> int:
    """Commit every object that is new; returns the last commit."""
    from tasks import intake

    return intake.take_in(store, writer=run_id, limits=limits, on_progress=on_progress).commit


def look(store: Store, run_id: str, commit: int, watch: Watch, work: Path, on_progress: Progress | None = None) -> Seen:
    """Score what serves on the fresh labels up to a commit, when there are enough, and say how it stands.

    A window is written once, under the first commit that was not in a window yet; of two looks at once one counts.
    """
    from tasks import registry

    production = registry.read_production(store)
    stands = _standstill(store, production, watch)
    if production is None:
        return Seen(version=None, says="Nothing is in production: there is nothing to watch.", standstill=stands)
    version = production.version
    seen = Seen(version=version, says="", standstill=stands, change=production.promotion)
    if version is None:
        return seen.model_copy(update={"says": "The base model serves: there is nothing to watch."})
    origin = _origin(store, version)
    if origin is None:
        return seen.model_copy(
            update={"says": f"It is not known what version {version} was trained on: nothing is scored."}
        )
    windows = _windows(store, version)
    after = windows[-1].last if windows else origin.commit
    fresh = _Fresh(store, production, origin, after, commit)
    window, says = fresh.window(watch, work, run_id, on_progress)
    windows += [window] if window else []
    began = drift_began(windows, watch)
    confirmation = confirm([(window.first, window.before) for window in windows if window.before])
    return seen.model_copy(
        update={
            "says": says + _confirmed(confirmation, origin),
            "windows": windows[-watch.windows :],
            "drifted_since": None if began is None else windows[began].first,
            "confirmation": confirmation,
            "told": origin.told,
        }
    )


@dataclass(frozen=True)
class _Origin:
    """Where the version that serves comes from: the run that promoted it, and what that run knew.

    `before` is the version that served before it; None: the base model. `told` is the gain that the run told.
    """

    run: Run
    commit: int
    before: str | None
    told: dict[str, float]

    @property
    def base_folder(self) -> Path | None:
        """The base model that the run's settings name; None where it is not to be had here, as without the hub."""
        from tasks.encoding import ModelError, resolve_model

        settings = self.run.find(runs.SETTINGS) or Settings()
        try:
            return resolve_model(settings.training.base_model)
        except ModelError:
            return None


@dataclass(frozen=True)
class _Fresh:
    """The labels of the commits after `after`, up to `upto`, for what serves."""

    store: Store
    production: Production
    origin: _Origin
    after: int
    upto: int

    def window(self, watch: Watch, work: Path, run_id: str, on_progress: Progress | None) -> tuple[Window | None, str]:
        """Their window and what there is to say; None: too few queries or documents."""
        from tasks import dataset, intake, splits

        few = "{} queries with fresh labels; {} make a window, which counts neither way until then."
        # one cheap look at the log: most hours end here
        labels = intake.new_pairs(self.store, self.after, self.upto)
        if labels < watch.min_queries:
            return None, few.format(f"At most {labels:,}", f"{watch.min_queries:,}")
        known, rows = (intake.read_rows(self.store, commit) for commit in (self.origin.commit, self.upto))
        data = dataset.build(_unseen(known, rows, self.after), splits.load_split(self.store))
        if len(data.test) < watch.min_queries:
            return None, few.format(f"{len(data.test):,}", f"{watch.min_queries:,}")
        documents = len(np.unique(_clusters(data.test)))
        if documents < _MIN_DOCUMENTS:
            return None, (
                f"{len(data.test):,} queries with fresh labels, all for {documents} documents; a window needs "
                f"{_MIN_DOCUMENTS}, since one document says little about others."
            )
        found = self._scored(data, watch, work, run_id, on_progress)
        key = f"{_folder(found.version)}{found.first:012d}.json"
        window = runs.once(self.store, key, Window, lambda: found)
        return window, f"{window.queries:,} queries with fresh labels: {_figures(window)}."

    def _scored(self, data: Dataset, watch: Watch, work: Path, run_id: str, on_progress: Progress | None) -> Window:
        """Score what serves, the version before it and the base model on the same queries."""
        from tasks import registry, scoring
        from tasks.encoding import CachedEncoder, ModelEncoder, VectorCache

        path, cache = _numeric_path(self.origin.run), VectorCache(work / "vectors", self.store)

        def score(folder: Path | None) -> dict[str, NDArray[np.float64]] | None:
            if folder is None:
                return None
            # documents that were encoded at promotion come from the cache, if it is on the same numeric path
            encoder = CachedEncoder(ModelEncoder.open(folder, path), cache)
            return scoring.score_side(data.test, data.documents, encoder, on_progress=on_progress).per_query

        def pulled(version: str) -> Path:
            return registry.pull_to_work(self.store, version, work)

        version = str(self.production.version)
        serving, base = score(pulled(version)) or {}, score(self.origin.base_folder)
        before = base if self.origin.before is None else score(pulled(self.origin.before))
        clusters = _clusters(data.test)
        measured = measure(serving, self.production.scores, watch, clusters)
        return Window(
            version=version,
            first=self.after + 1,
            last=self.upto,
            queries=len(data.test),
            scores=measured.scores,
            at_most=measured.at_most,
            promoted=dict(self.production.scores),
            below=measured.below,
            base={name: float(base[name].mean()) for name in DECISIVE} if base else {},
            before=compare(serving, before, self.origin.before, clusters) if before else None,
            run_id=run_id,
            at=runs.now(),
        )


def _clusters(test: EvaluationSet) -> NDArray[np.int64]:
    """The lowest relevant document of each query: queries for one document rise and fall together."""
    return np.array([np.min(relevant) for relevant in test.relevant], dtype=np.int64)


def _confirmed(found: Confirmation | None, origin: _Origin) -> str:
    """The gain of the promotion, estimated again, beside what was reported."""
    if found is None:
        return ""
    gains = ", ".join(
        f"{metric_label(name)} {100 * gain:+.1f} points"
        + (f" (at promotion {100 * origin.told[name]:+.1f})" if name in origin.told else "")
        for name, gain in found.gains.items()
    )
    before = f"version {found.version}" if found.version else "the base model"
    return f" Compared with {before} on {found.queries:,} fresh queries: {gains}."


def _unseen(known: pa.Table, rows: pa.Table, after: int) -> pa.Table:
    """Rows that make `dataset.build` test the fresh queries, among the documents of promotion and their own.

    The corpus is that of the promotion and the fresh documents, no more: a corpus that has grown makes every model
    look worse. Queries that the model was trained or tested on, in any wording, are not asked again.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from tasks.splits import query_key

    asked = known.filter(pc.not_equal(known["kind"], "corpus"))["query"]
    old = {query_key(query) for query in pc.unique(asked).to_pylist()}
    is_fresh = pc.and_(pc.greater(rows["commit"], after), pc.equal(rows["kind"], "pair"))
    fresh = rows.filter(is_fresh)
    fresh = fresh.filter(pa.array([query_key(query) not in old for query in fresh["query"].to_pylist()], pa.bool_()))
    kind = rows.schema.get_field_index("kind")
    documents = known.set_column(kind, rows.schema.field(kind), pa.repeat("corpus", len(known)).cast(pa.string()))
    # golden: tested on, whichever side the split would put them on
    questions = fresh.set_column(kind, rows.schema.field(kind), pa.repeat("golden", len(fresh)).cast(pa.string()))
    return pa.concat_tables([documents, questions]).combine_chunks()


def _origin(store: Store, version: str) -> _Origin | None:
    """Where a version comes from; None where no run of ours promoted it."""
    from tasks import registry
    from tasks.intake import commit_log

    for change in reversed(registry.history(store)):
        if (change.version, change.action) == (version, "promotion"):
            run = Run(store, change.run_id)
            taken, outcome = run.find(runs.TAKEN), run.outcome
            deltas = outcome.deltas if outcome else {}
            told: dict[str, float] = {name: deltas[name].value for name in DECISIVE if name in deltas}
            known = taken is not None and taken.log in {"", commit_log.identity(store)}  # else the log is another one
            return None if taken is None or not known else _Origin(run, taken.commit, change.previous, told)
    return None


def _numeric_path(run: Run) -> NumericPath:
    from tasks.encoding import BF16, FP32, PLAIN

    scored = run.find(runs.SCORED)
    name = scored.numeric_path if scored is not None else ""
    return {path.name: path for path in (PLAIN, FP32, BF16)}.get(name, FP32)


def _folder(version: str) -> str:
    return f"watch/{version}/"


def _windows(store: Store, version: str) -> list[Window]:
    """Every window of a version, oldest first."""
    keys = sorted(entry.key for entry in store.entries(_folder(version)))
    return [Window.model_validate_json(store.get(key).body) for key in keys]


def _standstill(store: Store, production: Production | None, watch: Watch) -> list[Standstill]:
    """By the store's clock: that of the machine which promoted, or of this one, may be far ahead or behind."""
    from tasks import registry

    now = registry.store_time(store)
    since = registry.serving_since(store, production).astimezone(UTC) if production else None
    days = (now - since).total_seconds() / 86_400 if since else None
    return standstill(_nights(store, since, now) if watch.max_nights else 0, days, watch)


def _nights(store: Store, since: datetime | None, now: datetime) -> int:
    """Nights after a moment that had something to train on and did not promote."""
    nights = 0
    tomorrow = f"{now.astimezone(UTC) + timedelta(days=1):%Y%m%dT%H%M%SZ}"
    for run in runs.backwards(store):
        if run.run_id > tomorrow:
            continue  # a machine whose clock was ahead gave this name: when it ran is not known
        if since is not None and run.run_id < f"{since:%Y%m%dT%H%M%SZ}":
            break
        outcome = run.outcome
        nights += outcome is not None and outcome.verdict in _TRAINABLE
    return nights


def _figures(window: Window) -> str:
    """The decisive metrics of a window beside those at promotion."""
    return ", ".join(
        f"{metric_label(name)} {window.scores[name]:.3f} (at promotion {window.promoted[name]:.3f}"
        f"{', significantly lower' if name in window.below else ''}"
        + (f"; {window.scores[name] - window.base[name]:+.3f} over the base model)" if name in window.base else ")")
        for name in DECISIVE
    )
