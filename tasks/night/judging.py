"""The verdict of a night; production is not changed by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic_core import to_json

from tasks import runs
from tasks.config import TARGETS, Checks, Delta, Gate, GuardResult, Model, Verdict
from tasks.night.reading import JUDGED
from tasks.runs import Run
from tasks.storage import Store, StoreError


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
    candidate, production = (scoring.read_side(table, side, scored.sides[side].fingerprint) for side in JUDGED)
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
        guards=list(guarded),
        guidance=guidance.text,
        cost={"training_seconds": trained.seconds, "dollars": trained.dollars},
    )


def _noticed(run: Run, verdict: Verdict) -> list[str]:
    """Which upload probably made a night regress, and whether vectors drift; nothing where that cannot be read."""
    from tasks.report.labels import blamed

    try:
        found, drift = run.find(runs.AUDITED), run.find(runs.DRIFT)
    except StoreError:
        return []  # it is not part of the verdict
    said = blamed(found) if found is not None and verdict == "regressed" else []
    return [*said, *([drift.warning] if drift is not None and drift.warning else [])]


def _held(store: Store, version: str) -> list[str]:
    """Why a candidate may not serve although it may be better: a person rolled it back."""
    from tasks import registry

    found = registry.find_held(store, version, registry.read_manifest(store, version).weights)
    return [f"The candidate is not promoted: {found}."] if found else []


def hold(store: Store, run_id: str, why: str) -> str:
    """Write into the decision that it was not carried out, so that it never says more than the outcome; returns why."""
    from tasks.gate import Decision

    run = Run(store, run_id)
    decision = run.find(runs.File(runs.DECISION, Decision))
    if decision is not None:
        run.put(runs.DECISION, to_json(replace(decision, verdict="held", reasons=(why, *decision.reasons)), indent=2))
    return why
