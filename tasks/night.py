"""The steps of a night as plain functions on a store: read, one call of the logic, write under `runs/<run_id>/`.

Whatever a step found is stored once and read by later steps and later attempts (`runs.once`), on whichever machine
they run; so a night that was interrupted anywhere goes on where it stopped. Heavy libraries are imported in the step
that needs them: a night with nothing new loads none of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import orjson
from pydantic_core import to_json

from tasks import report, runs
from tasks.config import TARGETS, Checks, Gate, Limits, Model, Outcome, Training
from tasks.report import material
from tasks.storage import Store

if TYPE_CHECKING:
    import pyarrow as pa

    from tasks.dataset import Dataset
    from tasks.encoding import CachedEncoder, ModelEncoder
    from tasks.registry import Change
    from tasks.report.charts import Chart
    from tasks.training import Plan

_CHECKPOINTS: Final = "checkpoints/"
_PUBLISHING: Final = 600.0
"""Seconds within which the node that leads a training has saved and published what came of it."""
_JUDGED: Final = ("candidate", "production")
_SHOWN: Final = 5
"""Queries of each kind, gained and lost, that the report shows with what they returned."""

_CUT: Final = 300
"""Characters of a query that are shown."""

Progress = Callable[[int, int], None]
"""Called with how much of how much is done."""


def begin(store: Store, run_id: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Complete an interrupted promotion, and note what serves and which commit the last night concluded on.

    `parameters` are the run's settings by group, kept for its report.
    """
    from tasks.registry import settle

    if parameters:
        runs.once(store, f"runs/{run_id}/parameters.json", lambda: dict(parameters))

    production = settle(store)  # at every attempt: also at one after a crash between pointer and ledger

    def begun() -> dict[str, Any]:
        last = runs.last_concluded(store, before=run_id)
        return {
            "version": production.version if production else None,
            "etag": production.etag if production else None,
            "last_commit": last.commit if last else 0,
            "last_run": f"{last.run_id} ({last.verdict})" if last else None,
        }

    return runs.once(store, f"runs/{run_id}/begin.json", begun)


def take_in(
    store: Store, run_id: str, last_commit: int, limits: Limits | None = None, on_progress: Progress | None = None
) -> dict[str, Any]:
    """Commit every object that is new, and count what the night has to work with."""
    from tasks import intake

    def taken() -> dict[str, Any]:
        commit = intake.take_in(store, writer=run_id, limits=limits, on_progress=on_progress).commit
        new = intake.new_pairs(store, last_commit, commit)
        counts = intake.counts(store, commit)
        del counts["corpus"]  # the corpus of a night is its distinct documents, which are not known yet
        return {"commit": commit, "new": new, "counts": {**counts, "new": new}}

    return runs.once(store, f"runs/{run_id}/intake.json", taken)


def check(store: Store, run_id: str, commit: int, since: int, base_model: str, rule: Checks) -> dict[str, Any]:
    """Run the data checks on everything up to the commit: a `ChecksResult`, its table, and rows per side."""
    from data_checks import data_docs, languages, run
    from tasks import dataset, encoding, intake, splits

    def checked() -> dict[str, Any]:
        rows = intake.read_rows(store, commit)
        supported = languages.model_languages(encoding.resolve_model(base_model))
        rejected = intake.counts(store, commit)["rejected"]
        result = run.run_checks(rows, rejected=rejected, rule=rule, commit=commit, since=since, supported=supported)
        # rows that did not pass are not fit to be divided: a text may be missing
        sides = dataset.build(rows, splits.load_split(store)).counts if result.verdict == "ok" else {}
        store.put(f"runs/{run_id}/data_docs.html", data_docs.render(result).encode())
        return {
            "result": result.model_dump(mode="json"),
            "table": result.table(),
            "sides": sides,
            "supported_languages": None if supported is None else sorted(supported),
        }

    return runs.once(store, f"runs/{run_id}/checks.json", checked)


def check_leaks(
    store: Store,
    run_id: str,
    commit: int,
    base_model: str,
    rule: Checks,
    work: Path,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Add to the checks how many test queries the train side nearly repeats: too many make the test worthless."""
    from data_checks import findings, leaks, run
    from tasks import encoding

    def checked() -> dict[str, Any]:
        data = _dataset(store, commit)
        base = encoding.ModelEncoder.open(encoding.resolve_model(base_model), encoding.FP32)
        encoder = _cached(store, base, work)
        asked, trained = data.test.queries, data.train["query"].to_pylist()
        vectors = encoder.encode([*asked, *trained], "query", on_progress=on_progress)
        leaked = leaks.leaked_queries(vectors[: len(asked)], vectors[len(asked) :])
        before = findings.ChecksResult.model_validate(_result(store, run_id, "checks")["result"])
        result = run.check_leaks(before, leaked, data.test.queries, rule)
        return {"result": result.model_dump(mode="json"), "table": result.table()}

    return runs.once(store, f"runs/{run_id}/leaks.json", checked)


def train(
    store: Store,
    run_id: str,
    commit: int,
    training: Training,
    work: Path,
    on_progress: Progress | None = None,
    *,
    production: str | None = None,
) -> dict[str, Any]:
    """Fine-tune on the commit's train side and publish the candidate: its version and how the training went.

    `production` is the version that served when the run began. With several nodes each calls this, as long as the run
    has no result: the one whose process leads publishes, the others wait for what it writes.
    """
    from tasks import encoding, registry
    from tasks import training as trainer
    from tasks.scoring import serving
    from tasks.training import Checkpoints, Rendezvous

    def trained() -> dict[str, Any]:
        data = _dataset(store, commit)
        base = encoding.fingerprint(encoding.resolve_model(training.base_model))
        plan, rows = _start(store, run_id, commit, production, base, data.train, training)
        went_on = plan.start != trainer.BASE
        start = trainer.Start(plan.start, _model(store, plan.start, "", work)) if went_on else trainer.FROM_BASE
        with TemporaryDirectory(dir=work) as temporary:
            folder = Path(temporary) / "candidate"
            result = trainer.train(
                rows,
                data.dev,
                data.documents,
                training,
                folder,
                start=start,
                commit=commit,
                on_progress=on_progress and (lambda step, steps, _loss: on_progress(step, steps)),
                checkpoints=Checkpoints(store, f"runs/{run_id}/{_CHECKPOINTS}"),
                rendezvous=Rendezvous.from_environment(training.nodes, run_id),
            )
            if not folder.exists():
                return _awaited(store, f"runs/{run_id}/train.json", _PUBLISHING)
            version = registry.publish(store, folder, serving.describe(folder, result.dims[1:]))
            return {"version": version, "commit": commit, "base": base, "started_why": plan.why, **asdict(result)}

    return runs.once(store, f"runs/{run_id}/train.json", trained)


def join(store: Store, run_id: str, work: Path, *, seconds: float) -> dict[str, Any]:
    """Take part in the training of a run on another machine: the same call, with what that wrote when it began.

    Needs RATCHET_RENDEZVOUS as it is set there. Raises TimeoutError when the run has not begun to train in time.
    """
    begun = _awaited(store, f"runs/{run_id}/start.json", seconds)
    training = Training.model_validate(begun["training"])
    return train(store, run_id, begun["commit"], training, work, production=begun["production"])


def score(
    store: Store,
    run_id: str,
    commit: int,
    candidate: str,
    production: str | None,
    training: Training,
    gate: Gate,
    work: Path,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the candidate, and what serves or the base model, on the same test queries and documents.

    Includes the serving check: the published candidate in a fresh process must give the vectors that were scored.
    """
    from tasks import encoding, scoring
    from tasks.scoring import serving

    def scored() -> dict[str, Any]:
        data = _dataset(store, commit)
        versions: dict[str, str | None] = {scoring.CANDIDATE: candidate, scoring.PRODUCTION: production}
        if production is not None:  # where production started: its vectors are in the cache since it was the baseline
            versions[scoring.BASE] = None
        folders = {side: _model(store, version, training.base_model, work) for side, version in versions.items()}
        # one numeric path for both: a rounding that only one side has would be a difference between them
        texts = [*data.test.queries, *data.documents]
        models = {side: encoding.load(folder) for side, folder in folders.items()}
        prints = {side: encoding.fingerprint(folder) for side, folder in folders.items()}
        path = encoding.choose_path(list(models.values()), texts)
        encoders = {side: encoding.ModelEncoder(models[side], prints[side], path) for side in versions}
        sides = {
            side: scoring.score_side(
                data.test, data.documents, _cached(store, encoder, work), training.matryoshka_dims, on_progress
            )
            for side, encoder in encoders.items()
        }
        table = scoring.per_query_table(data.test, {side: sides[side] for side in _JUDGED})
        store.put(f"runs/{run_id}/per_query.parquet", table)
        return {
            "moved": _moved(table, data, {side: _cached(store, encoders[side], work) for side in _JUDGED}),
            "counts": {**data.counts, "excluded": data.test.excluded},
            "serving": serving.check_serving(
                store,
                candidate,
                sides[scoring.CANDIDATE].sample,
                baseline=folders[scoring.PRODUCTION],
                max_slowdown=gate.max_serving_slowdown,
                path=path,
            ),
            "numeric_path": path.name,
            **{
                side: {
                    "version": versions[side],
                    "fingerprint": prints[side],
                    "scores": result.means,
                    "by_dimension": {str(dim): means for dim, means in result.by_dimension.items()},
                }
                for side, result in sides.items()
            },
        }

    return runs.once(store, f"runs/{run_id}/scores.json", scored)


def judge(store: Store, run_id: str, gate: Gate, rule: Checks) -> dict[str, Any]:
    """Decide on what was scored: `verdict`, `reasons`, and `facts` for the outcome. Nothing is changed by it."""
    from data_checks.findings import ChecksResult
    from data_checks.guidance import guide
    from tasks import scoring
    from tasks.gate import decide

    checks = ChecksResult.model_validate(_result(store, run_id, "leaks")["result"])
    if checks.verdict != "ok":
        return {"verdict": checks.verdict, "reasons": list(checks.reasons), "facts": {}}
    found, trained = _result(store, run_id, "scores"), _result(store, run_id, "train")
    table = store.get(f"runs/{run_id}/per_query.parquet").body
    candidate, production = (scoring.read_side(table, side, found[side]["fingerprint"]) for side in _JUDGED)
    decision = decide(candidate, production, gate)
    store.put(f"runs/{run_id}/decision.json", to_json(decision, indent=2))
    verdict, reasons = decision.verdict, list(decision.reasons)
    if verdict == "promoted" and found["serving"]:
        verdict, reasons = "held", ["The candidate is better, but does not serve as it was scored.", *found["serving"]]
    guidance = guide(
        checks.counts["distinct_pairs"],
        baseline_recall=found[scoring.PRODUCTION]["scores"]["recall_at_10"],
        target=TARGETS["recall_at_10"],
        languages=checks.languages,
        supported=_result(store, run_id, "checks")["supported_languages"],
        rule=rule,
    )
    models: dict[str, Any] = {
        side: Model(version=found[side]["version"], scores=found[side]["scores"])
        for side in (*_JUDGED, scoring.BASE)
        if side in found
    }
    facts: dict[str, Any] = {
        **models,
        "deltas": decision.deltas,
        "guidance": guidance.text,
        "cost": {"training_seconds": trained["seconds"], "dollars": trained["dollars"]},
    }
    return {"verdict": verdict, "reasons": reasons, "facts": facts}


def promote(
    store: Store, run_id: str, candidate: Model, etag: str | None, *, who: str, reason: str
) -> tuple[Change | None, str]:
    """Let the candidate serve in the place of exactly what it was compared with.

    Returns the change of production and why it may be trusted to be the only one; or None and why there was none.
    """
    from tasks.registry import ProductionChangedError, RefusedError
    from tasks.registry import promote as move

    version = str(candidate.version)
    try:
        change = move(store, version, etag, run_id=run_id, who=who, reason=reason, scores=candidate.scores)
    except (ProductionChangedError, RefusedError) as error:
        return None, f"The candidate was better, but was not promoted: {error}."
    return change, f"Version {version} serves since {change.at:%Y-%m-%d %H:%M} UTC, as change {change.promotion}."


def conclude(store: Store, outcome: Outcome) -> tuple[Outcome, str, list[Chart]]:
    """Write the report and the outcome; returns the outcome as written, the report as Markdown, and its charts.

    After a verdict the training's checkpoints are of no more use, nor are those of runs before it that were cancelled,
    killed or failed: the data they had is part of this one. After a failure the next attempt needs them.
    """
    folder = f"runs/{outcome.run_id}"
    outcome = outcome.model_copy(update={"report": store.uri(f"{folder}/report.html")})
    found = material.gather(store, outcome)
    store.put(f"{folder}/report.html", report.html(outcome, found).encode())
    runs.write_outcome(store, outcome)
    if outcome.verdict != "failed":
        for run in (outcome.run_id, *runs.interrupted(store, before=outcome.run_id)):
            store.delete([entry.key for entry in store.entries(f"runs/{run}/{_CHECKPOINTS}")])
    return outcome, report.markdown(outcome, found), report.charts_of(outcome, found)


# --- what several steps need ---------------------------------------------------------------------------------


def _dataset(store: Store, commit: int) -> Dataset:
    """What the commit trains on and is judged by: the same on every machine and at every attempt."""
    from tasks import dataset, intake, splits

    return dataset.build(intake.read_rows(store, commit), splits.load_split(store))


def _start(
    store: Store,
    run_id: str,
    commit: int,
    production: str | None,
    base: str,
    train: pa.Table,
    training: Training,
) -> tuple[Plan, pa.Table]:
    """Where to start and on which rows; decided once, and kept with all that a further node has to know."""
    from tasks.training import plan as start

    def decided() -> dict[str, Any]:
        chosen = start.choose(store, run_id, production, base, train, training)
        settings = training.model_dump(mode="json")
        return {"commit": commit, "production": production, "training": settings, "plan": asdict(chosen)}

    plan = start.Plan(**runs.once(store, f"runs/{run_id}/start.json", decided)["plan"])
    return plan, start.rows(train, plan, training)


def _awaited(store: Store, key: str, seconds: float) -> dict[str, Any]:
    """What another machine writes under `key`; TimeoutError when it has not in time."""
    last = time.monotonic() + seconds
    while not (found := runs.find_json(store, key)):
        if time.monotonic() > last:
            raise TimeoutError(f"{store.uri(key)} has not been written in {seconds:g} s by the machine that should")
        time.sleep(1)
    return found


def _moved(per_query: bytes, data: Dataset, encoders: Mapping[str, CachedEncoder]) -> dict[str, Any]:
    """The queries that lost and gained most, and what each returned with production and with the candidate."""
    from tasks import scoring
    from tasks.scoring import movers

    lost, gained = movers.moved(per_query, _SHOWN)
    place = {query: row for row, query in enumerate(data.test.queries)}
    rows = [place[found.query] for found in (*lost, *gained)]
    shown = {side: scoring.returned(data.test, data.documents, encoder, rows) for side, encoder in encoders.items()}
    described = [
        {
            "query": found.query[:_CUT],
            "slice": found.slice,
            "before": {name: found.before[name] for name in ("recall_at_10", "mrr")},
            "after": {name: found.after[name] for name in ("recall_at_10", "mrr")},
            "returned_before": before,
            "returned_after": after,
        }
        for found, before, after in zip((*lost, *gained), shown["production"], shown["candidate"], strict=True)
    ]
    return {"lost": described[: len(lost)], "gained": described[len(lost) :]}


def _model(store: Store, version: str | None, base_model: str, work: Path) -> Path:
    """The verified folder of a published version, or of the base model where there is none."""
    from tasks import encoding, registry

    if version is None:
        return encoding.resolve_model(base_model)
    return registry.pull(store, version, work / "models" / version)


def _cached(store: Store, encoder: ModelEncoder, work: Path) -> CachedEncoder:
    """An encoder that takes every text that its model ever encoded from the cache."""
    from tasks.encoding import CachedEncoder, VectorCache

    return CachedEncoder(encoder, VectorCache(work / "vectors", store))


def _result(store: Store, run_id: str, step: str) -> dict[str, Any]:
    """What an earlier step of this run found; MissingKeyError when it has not run."""
    return dict(orjson.loads(store.get(f"runs/{run_id}/{step}.json").body))
