"""The scores of a night: candidate and production on the same queries and documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tasks import runs
from tasks.config import Gate, Training
from tasks.night.reading import JUDGED, cached, dataset_of, model_folder
from tasks.records import Moved, MovedQuery, Scored, SideScored
from tasks.runs import Run
from tasks.storage import Store

if TYPE_CHECKING:
    from tasks.dataset import Dataset
    from tasks.encoding import CachedEncoder, ModelEncoder, Progress
    from tasks.scoring import Exposure
    from tasks.scoring.movers import Moved as MovedRow

_SHOWN: Final = 5
"""Queries of each kind, gained and lost, that the report shows with what they returned."""

_CUT: Final = 300
"""Characters of a query that are shown."""


def score(  # noqa: PLR0913 # a step takes what `runs/<run_id>/` does not hold
    store: Store,
    run_id: str,
    commit: int,
    candidate: str,
    production: str | None,
    training: Training,
    gate: Gate,
    work: Path,
    on_progress: Progress | None = None,
) -> Scored:
    """Score the candidate, and what serves or the base model, on the same test queries and documents.

    Includes the serving check: the published candidate in a fresh process must give the vectors that were scored.
    """
    from tasks import encoding, scoring
    from tasks.scoring import guards, movers, serving
    from tasks.scoring.judging import to_judge

    run = Run(store, run_id)

    def scored() -> Scored:
        data = dataset_of(store, commit)
        versions: dict[str, str | None] = {scoring.CANDIDATE: candidate, scoring.PRODUCTION: production}
        if production is not None:  # where production started: its vectors are in the cache since it was the baseline
            versions[scoring.BASE] = None
        folders = {side: model_folder(store, version, training.base_model, work) for side, version in versions.items()}
        # one numeric path for both: a rounding that only one side has would be a difference between them
        texts = [*data.test.queries, *data.documents]
        models = {side: encoding.load(folder) for side, folder in folders.items()}
        path = encoding.choose_path(list(models.values()), texts)
        encoders = {side: encoding.ModelEncoder.of(folders[side], models[side], path) for side in versions}
        spread = _spread(store, {versions[side]: one for side, one in encoders.items()}, data, training, work)
        sides = {
            side: scoring.score_side(
                data.test, data.documents, cached(store, encoder, work), training.matryoshka_dims, on_progress
            )
            for side, encoder in encoders.items()
        }
        exposure = _exposure(store, data, production)
        table = scoring.per_query_table(data.test, {side: sides[side] for side in JUDGED}, exposure)
        run.put(runs.PER_QUERY, table)
        judged = {side: cached(store, encoders[side], work) for side in JUDGED}
        run.put(runs.TO_JUDGE, to_judge(data.test, data.documents, list(judged.values()), gate.seed))
        records = {
            side: SideScored(
                version=versions[side],
                fingerprint=encoders[side].fingerprint,
                documents=encoders[side].documents,
                scores=result.means_over(
                    ~exposure.near_duplicate
                ),  # of the queries that decide, as the differences are
                by_dimension={str(dim): means for dim, means in result.by_dimension.items()},
            )
            for side, result in sides.items()
        }
        moved = _moved(table, data, judged)
        guarded = guards.score(run, judged, data.train["query"].to_pylist(), work, on_progress)
        two, trained = (folders[scoring.CANDIDATE], folders[scoring.PRODUCTION]), run.find(runs.CANDIDATE)
        found = scoring.reindexing(*two, models[scoring.CANDIDATE], data.documents, path)
        encoding.put_aside(models.values())  # the serving check's fresh process loads two models of its own
        problems = serving.check_serving(
            store,
            candidate,
            sides[scoring.CANDIDATE].sample,
            baseline=folders[scoring.PRODUCTION],
            max_slowdown=gate.max_serving_slowdown,
            path=path,
        )
        return Scored(
            candidate=records[scoring.CANDIDATE],
            production=records[scoring.PRODUCTION],
            base=records.get(scoring.BASE),
            counts={**data.counts, "excluded": data.test.excluded},
            moved=moved,
            serving=[*scoring.broken_promise(trained.side if trained else "both", found), *problems],
            reindexing=found,
            numeric_path=path.name,
            by_similarity=movers.by_similarity(table),
            guards=guarded,
            on_ray=spread,
        )

    return run.once(runs.SCORED, scored)


def _spread(
    store: Store, encoders: Mapping[str | None, ModelEncoder], data: Dataset, training: Training, work: Path
) -> str:
    """Fill the cache of vectors on Ray where that is asked for; says what it saved."""
    if not training.scoring_workers:
        return ""
    from tasks import index

    saved = index.prefill(
        store, encoders, data.documents, base=training.base_model, work=work, workers=training.scoring_workers
    )
    return str(saved or "")


def _exposure(store: Store, data: Dataset, production: str | None) -> Exposure:
    """What training has seen of each test query: the candidate's training, and that of the version in production.

    Which documents a version was trained on is not known where no run of ours promoted it; then only the candidate's.
    """
    import numpy as np

    from data_checks import leaks
    from tasks import scoring
    from tasks.splits import document_key

    nearest = leaks.nearest_training_query(data.test.queries, data.train["query"].to_pylist())
    trained = [data.trained_documents]
    if (commit := promoted_with(store, production)) is not None:
        before = dataset_of(store, commit)
        known = {document_key(before.documents[place]) for place in np.flatnonzero(before.trained_documents)}
        trained.append(np.array([document_key(text) in known for text in data.documents], dtype=bool))
    return scoring.Exposure(nearest, leaks.near_duplicates(nearest), scoring.new_documents(data.test, *trained))


def promoted_with(store: Store, production: str | None) -> int | None:
    """The commit with which what serves was promoted; None where no run of ours promoted it, or its log is gone."""
    from tasks import registry
    from tasks.intake import commit_log

    promotions = (one for one in reversed(registry.history(store)) if one.action == "promotion")
    run = next((one.run_id for one in promotions if one.version == production), None)
    taken = Run(store, run).find(runs.TAKEN) if run is not None else None
    return taken.commit if taken is not None and taken.log in {"", commit_log.identity(store)} else None


def _moved(per_query: bytes, data: Dataset, encoders: Mapping[str, CachedEncoder]) -> Moved:
    """The queries that lost and gained most, and what each returned with production and with the candidate."""
    from tasks.scoring import movers

    lost, gained = movers.moved(per_query, _SHOWN)
    return Moved(lost=_shown(lost, data, encoders), gained=_shown(gained, data, encoders))


def _shown(rows: Sequence[MovedRow], data: Dataset, encoders: Mapping[str, CachedEncoder]) -> list[MovedQuery]:
    from tasks import scoring

    place = {query: row for row, query in enumerate(data.test.queries)}
    places = [place[row.query] for row in rows]
    before, after = (
        scoring.returned(data.test, data.documents, encoders[side], places)
        for side in (scoring.PRODUCTION, scoring.CANDIDATE)
    )
    metrics = ("recall_at_10", "mrr")
    return [
        MovedQuery(
            query=row.query[:_CUT],
            slice=row.slice,
            before={name: row.before[name] for name in metrics},
            after={name: row.after[name] for name in metrics},
            returned_before=first,
            returned_after=second,
        )
        for row, first, second in zip(rows, before, after, strict=True)
    ]
