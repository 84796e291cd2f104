"""The steps of a night as plain functions on a store: read, one call of the logic, write into the run's folder.

Whatever a step found is stored once and read by later steps and later attempts (`Run.once`), on whichever machine
they run; so a night that was interrupted anywhere continues where it stopped. Heavy libraries are imported in the step
that needs them: a night with nothing new loads none of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from pydantic_core import to_json

from tasks import memory, report, runs
from tasks.config import (
    TARGETS,
    Checks,
    Delta,
    Gate,
    GuardResult,
    Index,
    Limits,
    Model,
    Outcome,
    Pending,
    Refused,
    Training,
    Verdict,
)
from tasks.records import (
    Audited,
    Begun,
    Candidate,
    Checked,
    CheckSummary,
    Drift,
    Estimate,
    Moved,
    MovedQuery,
    Plan,
    Scored,
    Settings,
    SideScored,
    Started,
    Taken,
)
from tasks.report import material
from tasks.runs import Run
from tasks.storage import Store, StoreError

if TYPE_CHECKING:
    import pyarrow as pa

    from data_checks.findings import ChecksResult
    from tasks.dataset import Dataset
    from tasks.encoding import CachedEncoder, ModelEncoder, Progress, VectorCache
    from tasks.intake import Pending as Unread
    from tasks.registry import Announce, Change
    from tasks.report.charts import Chart
    from tasks.scoring import Exposure
    from tasks.scoring.movers import Moved as MovedRow

_GIVEN_UP: Final = timedelta(days=7)
"""A run may wait for a GPU for a day, and be tried again by hand after a weekend."""

_PUBLISHING: Final = 600.0
"""Seconds within which the node that leads a training has saved and published what came of it."""
_JUDGED: Final = ("candidate", "production")
_SHOWN: Final = 5
"""Queries of each kind, gained and lost, that the report shows with what they returned."""

_LATEST: Final = 20
"""Runs that are looked at for one on the log as it is, after it was started anew."""

_NAMED: Final = 5
"""Objects of a kind that an outcome's reasons name."""

_BASE_BYTES: Final = 400 << 20
_TIMES_ROWS: Final = 4
"""Memory of the data checks: the libraries, and so many times what the rows take. A million rows of 200 characters
(310 MiB) were checked in 1.1 GiB."""

_MOST_REFUSED: Final = 100
"""Refused objects that an outcome lists."""

_CUT: Final = 300
"""Characters of a query that are shown."""


@dataclass(frozen=True)
class Judged:
    """A night's verdict with its reasons, and what the outcome says besides."""

    verdict: Verdict
    reasons: Sequence[str]
    candidate: Model | None = None
    production: Model | None = None
    base: Model | None = None
    deltas: Mapping[str, Delta] = field(default_factory=dict)
    guards: Sequence[GuardResult] = ()
    guidance: str = ""
    cost: Mapping[str, float] = field(default_factory=dict)


def begin(store: Store, run_id: str, settings: Settings | None = None, announce: Announce | None = None) -> Begun:
    """Complete an interrupted promotion, and note what serves and which commit the last night concluded on.

    `settings` are kept for the run's report; `announce` is told of a promotion whose process died before it did so.
    """
    from tasks.registry import settle, silently

    run = Run(store, run_id)
    if settings is not None:
        run.once(runs.SETTINGS, lambda: settings)

    production = settle(
        store, announce or silently
    )  # at every attempt: also at one after a crash between pointer and ledger

    def begun() -> Begun:
        last = runs.last_concluded(store, before=run_id)
        return Begun(
            version=production.version if production else None,
            etag=production.etag if production else None,
            last_commit=last.commit if last else 0,
            last_run=f"{last.run_id} ({last.verdict})" if last else None,
        )

    return run.once(runs.BEGUN, begun)


def take_in(
    store: Store, run_id: str, last_commit: int, limits: Limits | None = None, on_progress: Progress | None = None
) -> Taken:
    """Commit every object that is new and every removal, and count what the night has to work with."""
    from tasks import intake

    def taken() -> Taken:
        found = intake.take_in(store, writer=run_id, limits=limits, full=True, on_progress=on_progress)
        last = runs.last_concluded(store, before=run_id)
        log = intake.commit_log.identity(store)
        since = _last_commit(store, run_id, log) if _is_another_log(store, last, log) else last_commit
        since = since if since <= found.commit else 0
        changes = intake.changes(store, since, found.commit)
        counts = intake.counts(store, found.commit)
        del counts["corpus"]  # the corpus of a night is its distinct documents, which are not known yet
        pending = _pending(found.pending, last, run_id)
        refused = [Refused(key=r.key, reason=r.reason, rows=r.rows) for r in intake.refused(store, found.commit)]
        return Taken(
            found.commit,
            changes.new_pairs,
            {**counts, "new": changes.new_pairs, **({"removed": changes.removed} if changes.removed else {})},
            removed=changes.removed,
            since=since,
            log=log,
            pending=pending,
            refused=refused[:_MOST_REFUSED],
            remarks=[
                *_remarks(pending, refused, found.ignored, found.future),
                *_first(intake.decisions(store, since, found.commit), "decisions about columns"),
            ],
            blocked=found.blocked,
        )

    return Run(store, run_id).once(runs.TAKEN, taken)


def _is_another_log(store: Store, last: Outcome | None, log: str) -> bool:
    """Whether the log of the last night was deleted since; not known of nights of older versions."""
    taken = None if last is None else Run(store, last.run_id).find(runs.TAKEN)
    return taken is not None and taken.log not in {"", log}


def _last_commit(store: Store, run_id: str, log: str) -> int:
    """The commit of the latest concluded run on this log, among the latest runs; 0 where there is none."""
    for run in islice(runs.backwards(store, before=run_id), _LATEST):
        taken = run.find(runs.TAKEN)
        if taken is not None and taken.log == log and runs.concluded(run.outcome):
            return taken.commit
    return 0


def _pending(found: Sequence[Unread], last: Outcome | None, run_id: str) -> list[Pending]:
    """The objects that could not be read, with the nights in a row that could not."""
    before = {object_.key: object_ for object_ in (last.pending if last else ())}
    pending = []
    for unread in found:
        known = before.get(unread.key, Pending(key=unread.key, reason="", nights=0, since=run_id))
        update = {"reason": unread.reason, "nights": known.nights + 1}
        pending.append(known.model_copy(update=update))
    return pending


def _remarks(
    pending: Sequence[Pending], refused: Sequence[Refused], ignored: Sequence[str], future: Sequence[str]
) -> list[str]:
    """What an outcome says about the objects of its store, besides its verdict."""
    lines = [f"Could not be read for {p.nights} night{'s' * (p.nights != 1)}: {p.key}: {p.reason}." for p in pending]
    remarks = _first(lines, "objects could not be read")
    lines = [f"Refused: {one.key} (about {one.rows:,} row{'s' * (one.rows != 1)}): {one.reason}." for one in refused]
    remarks += _first(lines, "objects are refused")
    if ignored:
        remarks.append(f"Ignored as side files: {ignored[0]}{f' and {len(ignored) - 1:,} more' * (len(ignored) > 1)}.")
    if future:
        remarks.append(f"Partitions of the future: {', '.join(future[:_NAMED])}. Is a clock wrong?")
    return remarks


def _first(lines: Sequence[str], what: str) -> list[str]:
    more = len(lines) - _NAMED
    return [*lines[:_NAMED], *([f"{more:,} more {what}."] if more > 0 else [])]


def check(store: Store, run_id: str, commit: int, since: int, base_model: str, checks: Checks) -> Checked:
    """Run the data checks on everything up to the commit, and divide the rows where they pass."""
    from data_checks import data_docs, languages, run
    from tasks import dataset, encoding, intake, splits

    def checked() -> Checked:
        supported = languages.model_languages(encoding.resolve_model(base_model))
        rejected = intake.counts(store, commit)["rejected"]
        room = max(1, (memory.available() - _BASE_BYTES) // _TIMES_ROWS)
        try:
            rows = intake.read_rows(store, commit, most_bytes=room)
        except intake.TooLargeError as error:
            result = run.too_large(str(error), commit=commit, rejected=rejected)
            Run(store, run_id).put(runs.DATA_DOCS, data_docs.render(result).encode())
            return _checked(result)
        result = run.run_checks(rows, rejected=rejected, rule=checks, commit=commit, since=since, supported=supported)
        # rows that did not pass are not fit to be divided: a text may be missing
        sides = dataset.sizes(rows, splits.load_split(store)) if result.verdict == "ok" else {}
        Run(store, run_id).put(runs.DATA_DOCS, data_docs.render(result).encode())
        return _checked(result, sides, None if supported is None else sorted(supported))

    return Run(store, run_id).once(runs.CHECKED, checked)


def check_leaks(store: Store, run_id: str, commit: int, checks: Checks) -> Checked:
    """Add to the checks how many test queries the train side nearly repeats: too many make the test worthless."""
    from data_checks import findings, leaks, run

    def checked() -> Checked:
        data = _dataset(store, commit)
        leaked = leaks.near_duplicates(leaks.nearest_training_query(data.test.queries, data.train["query"].to_pylist()))
        before = findings.ChecksResult.model_validate(Run(store, run_id).read(runs.CHECKED).result.model_dump())
        return _checked(run.check_leaks(before, leaked, data.test.queries, checks))

    return Run(store, run_id).once(runs.LEAKS, checked)


def train(
    store: Store,
    run_id: str,
    commit: int,
    training: Training,
    work: Path,
    on_progress: Progress | None = None,
    *,
    production: str | None = None,
    on_estimate: Callable[[Estimate], None] | None = None,
) -> Candidate:
    """Fine-tune on the commit's train side and publish the candidate: its version and how the training went.

    `production` is the version that served when the run began. With several nodes each calls this, as long as the run
    has no result: the one whose process leads publishes, the others wait for what it writes.
    """
    from tasks import encoding, registry
    from tasks import training as trainer
    from tasks.scoring import serving
    from tasks.training import Checkpoints, Rendezvous

    run = Run(store, run_id)

    def trained() -> Candidate:
        data = _dataset(store, commit)
        base = encoding.fingerprint(encoding.resolve_model(training.base_model))
        plan, rows = _plan(run, commit, production, base, data.train, training)
        went_on = plan.start != trainer.BASE
        start = trainer.Start(plan.start, _model(store, plan.start, "", work)) if went_on else trainer.FROM_BASE
        against = None
        if plan.side == "query":
            serves = _model(store, production, training.base_model, work)
            against = trainer.known_documents(serves, data.documents, rows, _vectors(store, work))
        with TemporaryDirectory(dir=work) as temporary:
            folder = Path(temporary) / "candidate"
            result = trainer.train(
                rows,
                data.dev,
                data.documents,
                training.model_copy(update={"side": plan.side}),
                folder,
                start=start,
                against=against,
                commit=commit,
                on_progress=on_progress and (lambda step, steps, _loss: on_progress(step, steps)),
                on_estimate=on_estimate,
                checkpoints=Checkpoints(store, run.key(runs.CHECKPOINTS)),
                rendezvous=Rendezvous.from_environment(training.nodes, run_id),
            )
            if not folder.exists():
                return _awaited(run, runs.CANDIDATE, _PUBLISHING)
            version = registry.publish(store, folder, serving.describe(folder, result.dims[1:]))
            return Candidate(version=version, commit=commit, base=base, started_why=plan.why, **vars(result))

    return run.once(runs.CANDIDATE, trained)


def join(store: Store, run_id: str, work: Path, *, seconds: float) -> Candidate:
    """Take part in the training of a run on another machine: the same call, with what that wrote when it began.

    Needs RATCHET_RENDEZVOUS as it is set there. Raises TimeoutError when the run has not begun to train in time.
    """
    started = _awaited(Run(store, run_id), runs.STARTED, seconds)
    return train(store, run_id, started.commit, started.training, work, production=started.production)


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
        data = _dataset(store, commit)
        versions: dict[str, str | None] = {scoring.CANDIDATE: candidate, scoring.PRODUCTION: production}
        if production is not None:  # where production started: its vectors are in the cache since it was the baseline
            versions[scoring.BASE] = None
        folders = {side: _model(store, version, training.base_model, work) for side, version in versions.items()}
        # one numeric path for both: a rounding that only one side has would be a difference between them
        texts = [*data.test.queries, *data.documents]
        models = {side: encoding.load(folder) for side, folder in folders.items()}
        path = encoding.choose_path(list(models.values()), texts)
        encoders = {side: encoding.ModelEncoder.of(folders[side], models[side], path) for side in versions}
        spread = _spread(store, {versions[side]: one for side, one in encoders.items()}, data, training, work)
        sides = {
            side: scoring.score_side(
                data.test, data.documents, _cached(store, encoder, work), training.matryoshka_dims, on_progress
            )
            for side, encoder in encoders.items()
        }
        exposure = _exposure(store, data, production)
        table = scoring.per_query_table(data.test, {side: sides[side] for side in _JUDGED}, exposure)
        run.put(runs.PER_QUERY, table)
        judged = {side: _cached(store, encoders[side], work) for side in _JUDGED}
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


def audit(
    store: Store, run_id: str, commit: int, candidate: str, production: str | None, training: Training, work: Path
) -> Audited:
    """Look for wrong labels, with the models and the numeric path of the scores, and keep what is suspicious."""
    from tasks import audit as labels
    from tasks import dataset, encoding, intake, scoring, splits

    run = Run(store, run_id)

    def audited() -> Audited:
        rows = intake.read_rows(store, commit)
        scored, trained, good = run.read(runs.SCORED), run.read(runs.CANDIDATE), runs.last_good(store, run_id)
        path = encoding.path_named(scored.numeric_path)
        versions = {scoring.CANDIDATE: candidate, scoring.PRODUCTION: production, scoring.BASE: None}
        folders = {side: _model(store, versions[side], training.base_model, work) for side in scored.sides}
        encoders = {
            side: _cached(store, encoding.ModelEncoder.open(folder, path), work) for side, folder in folders.items()
        }
        data = dataset.build(rows, splits.load_split(store))
        since = good.commit if good is not None and good.commit < commit else 0
        found, suspects = labels.look(
            labels.Night(rows, data, encoders, since, training.hard_negatives, trained.started_from, training.seed)
        )
        run.put(runs.SUSPECTS, suspects)
        return found

    return run.once(runs.AUDITED, audited)


def canary(store: Store, run_id: str, production: str | None, training: Training, work: Path) -> Drift:
    """Encode the canary's texts with what serves, or the base model, and compare them with its first vectors."""
    from tasks import encoding
    from tasks.audit import canary as bird

    run = Run(store, run_id)

    def drift() -> Drift:
        model = encoding.load(_model(store, production, training.base_model, work))
        return bird.check(store, run_id, model, run.read(runs.SCORED).production.fingerprint, production)

    return run.once(runs.DRIFT, drift)


def canary_failed(store: Store, run_id: str, why: str) -> None:
    """Note that the canary was not asked, so that the report says so."""
    Run(store, run_id).once(runs.DRIFT, lambda: Drift(failed=why))


def audit_failed(store: Store, run_id: str, why: str) -> None:
    """Note that a night has no audit of its labels, so that its report says so."""
    Run(store, run_id).once(runs.AUDITED, lambda: Audited(failed=why))


def _noticed(run: Run, verdict: Verdict) -> list[str]:
    """Which upload probably made a night regress, and whether vectors drift; nothing where that cannot be read."""
    from tasks.report.labels import blamed

    try:
        found, drift = run.find(runs.AUDITED), run.find(runs.DRIFT)
    except StoreError:
        return []  # it is no part of the verdict
    said = blamed(found) if found is not None and verdict == "regressed" else []
    return [*said, *([drift.warning] if drift is not None and drift.warning else [])]


def judge(store: Store, run_id: str, gate: Gate, checks: Checks) -> Judged:
    """Decide on what was scored, and write the decision. Production is not changed by it."""
    from data_checks.findings import ChecksResult
    from data_checks.guidance import guide
    from tasks import scoring
    from tasks.gate import decide
    from tasks.scoring import guards

    run = Run(store, run_id)
    checked = ChecksResult.model_validate(run.read(runs.LEAKS).result.model_dump())
    if checked.verdict != "ok":
        return Judged(checked.verdict, checked.reasons)
    scored, trained = run.read(runs.SCORED), run.read(runs.CANDIDATE)
    table = store.get(run.key(runs.PER_QUERY)).body
    candidate, production = (scoring.read_side(table, side, scored.sides[side].fingerprint) for side in _JUDGED)
    guarded = guards.judge(run, scored, gate)
    vetoes = [*scored.serving, *guards.vetoes(guarded), *_held(store, trained.version)]
    decision = decide(candidate, production, gate, vetoes=vetoes)
    run.put(runs.DECISION, to_json(decision, indent=2))
    guidance = guide(
        checked.counts["distinct_pairs"],
        baseline_recall=scored.production.scores["recall_at_10"],
        target=TARGETS["recall_at_10"],
        languages=checked.languages,
        supported=run.read(runs.CHECKED).supported_languages,
        rule=checks,
    )
    models = {name: Model(version=side.version, scores=side.scores) for name, side in scored.sides.items()}
    return Judged(
        decision.verdict,
        [*decision.reasons, *_noticed(run, decision.verdict)],
        candidate=models["candidate"],
        production=models["production"],
        base=models.get("base"),
        deltas=decision.deltas,
        guards=guarded,
        guidance=guidance.text,
        cost={"training_seconds": trained.seconds, "dollars": trained.dollars},
    )


def _held(store: Store, version: str) -> list[str]:
    """Why a candidate may not serve although it may be better: a person rolled it back."""
    from tasks import registry

    found = registry.find_held(store, version, registry.read_manifest(store, version).weights)
    return [f"The candidate is not promoted: {found}."] if found else []


def promote(
    store: Store,
    run_id: str,
    candidate: Model,
    etag: str | None,
    *,
    who: str,
    reason: str,
    announce: Announce | None = None,
) -> tuple[Change | None, str]:
    """Let the candidate serve in the place of exactly what it was compared with.

    Returns the change of production and why it may be trusted to be the only one; or None and why there was none.
    """
    from tasks.registry import ProductionChangedError, RefusedError, silently
    from tasks.registry import promote as move

    version = str(candidate.version)
    approval = Run(store, run_id).find(runs.APPROVAL)
    if approval is not None and approval.answer != "approved":
        return None, hold(store, run_id, f"{approval}.")
    if approval is not None and (changed := _guards_changed(store, run_id)):  # it may have waited for hours
        return None, hold(store, run_id, changed)
    try:
        change = move(
            store,
            version,
            etag,
            run_id=run_id,
            who=who,
            reason=reason,
            scores=candidate.scores,
            announce=announce or silently,
            approval=approval,
            base_documents=_base_documents(Run(store, run_id)),
        )
    except (ProductionChangedError, RefusedError) as error:
        return None, hold(store, run_id, f"The candidate was better, but was not promoted: {error}.")
    return change, _promoted(change)


def _guards_changed(store: Store, run_id: str) -> str:
    """Which guard sets are not as they were scored; nothing where an earlier attempt of this run has promoted."""
    from tasks.scoring import guards

    scored = Run(store, run_id).find(runs.SCORED)
    found = guards.changed(store, scored.guards if scored else ())
    return " ".join(guards.vetoes(found)) if found and stands(store, run_id)[1] is None else ""


def _base_documents(run: Run) -> str | None:
    """The identity of the base model's documents: what an index is built with where no version serves."""
    scored = run.find(runs.SCORED)
    sides = (scored.base, scored.production) if scored else ()
    return next((side.documents for side in sides if side and side.version is None), None)


def _promoted(change: Change) -> str:
    return f"Version {change.version} serves since {change.at:%Y-%m-%d %H:%M} UTC, as change {change.promotion}."


def leaving(store: Store) -> int | None:
    """The number of the change that is in force now; None where nothing was ever promoted."""
    from tasks.registry import read_production

    production = read_production(store)
    return production.promotion if production else None


def stands(store: Store, run_id: str) -> tuple[str | None, str | None]:
    """What serves now, and, where this run has promoted it or what served before it, the sentence that says so.

    For a run that broke off: what it says of production follows from production.
    """
    from tasks import registry

    changes = registry.history(store)
    made = [change for change in changes if (change.run_id, change.action) == (run_id, "promotion")]
    return (changes[-1].version if changes else None), (_promoted(made[-1]) if made else None)


def hold(store: Store, run_id: str, why: str) -> str:
    """Write into the decision that it was not carried out, so that it never says more than the outcome; returns why."""
    from tasks.gate import Decision

    run = Run(store, run_id)
    decision = run.find(runs.File(runs.DECISION, Decision))
    if decision is not None:
        run.put(runs.DECISION, to_json(replace(decision, verdict="held", reasons=(why, *decision.reasons)), indent=2))
    return why


def write_report(store: Store, outcome: Outcome) -> str:
    """Write the report of a night that has not ended, for those who have to decide; returns it as Markdown."""
    gathered = material.gather(store, outcome)
    Run(store, outcome.run_id).put(runs.REPORT, report.html(outcome, gathered).encode())
    return report.markdown(outcome, gathered)


def conclude(store: Store, outcome: Outcome, *, details: bool = True) -> tuple[Outcome, str, list[Chart]]:
    """Write the report and the outcome; returns the outcome as written, the report as Markdown, and its charts.

    Without details the report holds what the outcome says, and nothing else is read from the store.

    After a verdict the training's checkpoints are of no more use; after a failure the next attempt needs them. Those
    of other runs are not looked at here: a run without a verdict may be under way (see `retire`).
    """
    run = Run(store, outcome.run_id)
    outcome = outcome.model_copy(update={"report": store.uri(run.key(runs.REPORT)), "index": _index(store, outcome)})
    gathered = material.gather(store, outcome) if details else material.Material()
    run.put(runs.REPORT, report.html(outcome, gathered).encode())
    run.put_outcome(outcome)
    if outcome.verdict != "failed":
        store.delete([entry.key for entry in store.entries(run.key(runs.CHECKPOINTS))])
    return outcome, report.markdown(outcome, gathered), report.charts_of(outcome, gathered)


def _index(store: Store, outcome: Outcome) -> Index | None:
    """What the ledger says of an index at the promotion that this run made; None where it made none."""
    from tasks import registry

    if outcome.verdict != "promoted":
        return None
    try:
        last = registry.read_production(store)
        changes = [last] if last and last.run_id == outcome.run_id else registry.history(store)
        made = [change for change in changes if change.run_id == outcome.run_id]
    except registry.RegistryError:  # the outcome says what serves as far as it is known, and must be written
        return None
    return made[-1].index if made else None


@dataclass(frozen=True)
class Retired:
    """What `retire` has deleted, or would delete."""

    versions: Sequence[str]
    checkpoints: Sequence[str]
    """Runs whose checkpoints are left over."""
    vectors: Sequence[str] = ()
    """Keys of vectors of indexes."""


def retire(
    store: Store, *, keep: int | None = None, ledger_entries: int | None = None, dry_run: bool = False
) -> Retired:
    """Delete the versions and vectors of indexes that nothing needs, and the checkpoints of abandoned runs.

    Kept is what serves, what the ledger's last entries name, what a run without a verdict uses, and the last `keep`
    candidates. A run without a verdict counts as given up when nothing was written in its folder for a week.
    """
    from tasks import index, registry

    now = registry.store_time(store)
    left = [run for run in runs.unfinished(store) if _idle(run, now)]
    found = {run.run_id: [entry.key for entry in store.entries(run.key(runs.CHECKPOINTS))] for run in left}
    leftover = {run_id: keys for run_id, keys in found.items() if keys}
    if not dry_run:
        for keys in leftover.values():
            store.delete(keys)
    versions = registry.retire(
        store,
        keep=keep or registry.KEEP,
        ledger_entries=ledger_entries or registry.LEDGER_ENTRIES,
        in_use=lambda: versions_in_use(store),
        dry_run=dry_run,
    )
    vectors = index.retire(store, ledger_entries=ledger_entries, dry_run=dry_run)
    return Retired(versions, sorted(leftover), vectors)


def tidy(store: Store, work: Path) -> list[str]:
    """Delete what was pulled to this machine and neither serves, nor served before, nor is used by a run."""
    from tasks import registry

    production = registry.read_production(store)
    serves = {production.version, production.previous} if production else set()
    kept = {version for version in serves if version} | versions_in_use(store)
    return registry.tidy(work / "models", kept, now=time.time())


def versions_in_use(store: Store) -> set[str]:
    """Versions that runs without a verdict have made, compare with, or started from."""
    from tasks import registry

    now = registry.store_time(store)
    found: set[str | None] = set()
    for run in runs.unfinished(store):
        if not _idle(run, now):
            begun, candidate, started = run.find(runs.BEGUN), run.find(runs.CANDIDATE), run.find(runs.STARTED)
            found |= {begun.version if begun else None, candidate.version if candidate else None}
            found |= {started.production, started.plan.start} if started else set()
    return {version for version in found if version}


def _idle(run: Run, now: datetime) -> bool:
    """Whether nothing was written in a run's folder for a week, by the store's clock."""
    written = max((entry.modified for entry in run.store.entries(run.key(""))), default=now)
    return now - written > _GIVEN_UP


# --- what several steps need ---------------------------------------------------------------------------------


def _checked(
    result: ChecksResult, sides: Mapping[str, int] | None = None, supported: Sequence[str] | None = None
) -> Checked:
    summary = CheckSummary.model_validate(result.model_dump(mode="json"))
    return Checked(summary, result.table(), sides or {}, supported)


def _dataset(store: Store, commit: int) -> Dataset:
    """What the commit trains on and is judged by: the same on every machine and at every attempt."""
    from tasks import dataset, intake, splits

    return dataset.build(intake.read_rows(store, commit), splits.load_split(store))


def _plan(
    run: Run, commit: int, production: str | None, base: str, train: pa.Table, training: Training
) -> tuple[Plan, pa.Table]:
    """Where to start and on which rows; decided once, and kept with all that a further node has to know."""
    from tasks.training import plan

    def decided() -> Started:
        chosen = plan.choose(run.store, run.run_id, production, base, train, training)
        return Started(commit, production, training, chosen)

    started = run.once(runs.STARTED, decided)
    return started.plan, plan.rows(train, started.plan, training)


def _awaited(run: Run, file: runs.File[runs.T], seconds: float) -> runs.T:
    """What another machine writes into a file of the run; TimeoutError when it has not in time."""
    last = time.monotonic() + seconds
    while (found := run.find(file)) is None:
        if time.monotonic() > last:
            where = run.store.uri(run.key(file.name))
            raise TimeoutError(f"{where} has not been written in {seconds:g} s by the machine that should")
        time.sleep(1)
    return found


def _exposure(store: Store, data: Dataset, production: str | None) -> Exposure:
    """What training has seen of each test query: the candidate's training, and that of the version in production.

    Which documents a version was trained on is not known where no run of ours promoted it; then only the candidate's.
    """
    import numpy as np

    from data_checks import leaks
    from tasks import registry, scoring
    from tasks.intake import commit_log
    from tasks.splits import document_key

    nearest = leaks.nearest_training_query(data.test.queries, data.train["query"].to_pylist())
    trained = [data.trained_documents]
    promotions = (one for one in reversed(registry.history(store)) if one.action == "promotion")
    run = next((one.run_id for one in promotions if one.version == production), None)
    taken = Run(store, run).find(runs.TAKEN) if run is not None else None
    if taken is not None and taken.log in {"", commit_log.identity(store)}:
        before = _dataset(store, taken.commit)
        known = {document_key(before.documents[place]) for place in np.flatnonzero(before.trained_documents)}
        trained.append(np.array([document_key(text) in known for text in data.documents], dtype=bool))
    return scoring.Exposure(nearest, leaks.near_duplicates(nearest), scoring.new_documents(data.test, *trained))


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


def _model(store: Store, version: str | None, base_model: str, work: Path) -> Path:
    """The verified folder of a published version, or of the base model where there is none."""
    from tasks import encoding, registry

    if version is None:
        return encoding.resolve_model(base_model)
    return registry.pull(store, version, work / "models" / version)


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


def _cached(store: Store, encoder: ModelEncoder, work: Path) -> CachedEncoder:
    """An encoder that takes every text that its model ever encoded from the cache."""
    from tasks.encoding import CachedEncoder

    return CachedEncoder(encoder, _vectors(store, work))


def _vectors(store: Store, work: Path) -> VectorCache:
    """The vectors that are kept from night to night."""
    from tasks.encoding import VectorCache

    return VectorCache(work / "vectors", store)
