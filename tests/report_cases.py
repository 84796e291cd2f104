"""Nights as the report shows them, one for each verdict: figures of the size that the demonstration gives."""

from __future__ import annotations

import math
from typing import Any

from tasks.config import Checks, Delta, Gate, GuardResult, Model, Outcome, Training, Verdict
from tasks.records import (
    Audited,
    Band,
    DevScore,
    Drift,
    Estimate,
    Moved,
    MovedQuery,
    Reindexing,
    Returned,
    Suspect,
    Trained,
    UploadAudit,
)
from tasks.report import Material
from tasks.report.material import NightRow, ObjectRow, SliceRow

VERDICTS: tuple[Verdict, ...] = ("promoted", "held", "regressed", "blocked", "skipped", "failed")

_BASE = {"recall_at_10": 0.8444, "mrr": 0.6108, "ndcg_at_10": 0.6620, "map": 0.6071}
_SERVING = {"recall_at_10": 0.9156, "mrr": 0.7433, "ndcg_at_10": 0.7815, "map": 0.7402}
_BETTER = {"recall_at_10": 0.9422, "mrr": 0.7873, "ndcg_at_10": 0.8219, "map": 0.7851}
_LIKE = {"recall_at_10": 0.9200, "mrr": 0.7391, "ndcg_at_10": 0.7802, "map": 0.7377}
_WORSE = {"recall_at_10": 0.6711, "mrr": 0.4102, "ndcg_at_10": 0.4655, "map": 0.4063}

_CANDIDATES: dict[str, dict[str, float]] = {"promoted": _BETTER, "held": _LIKE, "regressed": _WORSE}
_REASONS: dict[Verdict, list[str]] = {
    "promoted": [
        "Recall@10 rose from 0.9156 to 0.9422 (+0.0080 to +0.0453 at 99%).",
        "MRR rose from 0.7433 to 0.7873 (+0.0210 to +0.0670 at 99%).",
        "Version 5a1f0c3d9b2e serves since 2026-11-24 03:34 UTC, as change 3.",
    ],
    "held": [
        "Recall@10 rose from 0.9156 to 0.9200 by +0.0044, but not significantly (-0.0087 to +0.0175 at 99%).",
        "MRR fell from 0.7433 to 0.7391 by -0.0042, but not significantly (-0.0172 to +0.0089 at 99%).",
        "With 225 test queries a gain of 0.0274 in Recall@10 would have shown on 8 of 10 nights.",
    ],
    "regressed": [
        "Recall@10 fell from 0.9156 to 0.6711 (-0.3176 to -0.1714 at 99%).",
        "MRR fell from 0.7433 to 0.4102 (-0.4284 to -0.2378 at 99%).",
        "The candidate is worse, so production stays.",
    ],
    "blocked": [
        "Document is present: 3 of 1,504 rows, first in pairs/dt=2026-11-24/export.csv line 212; expected no row. "
        "A pair without a document cannot be trained on."
    ],
    "skipped": ["No new pairs have arrived since run 20261123T033000Z-4f1c22aa (held)."],
    "failed": ["StoreError: s3://search/ratchet/log/000000000008.json: connection refused"],
}


_GUARDS = [
    GuardResult(
        name="general",
        verdict="falls",
        reasons=["Guard set 'general' (50 queries) falls in MRR by 8.10 points, beyond chance."],
        queries=50,
        documents=2919,
        before={"recall_at_10": 0.84, "mrr": 0.651},
        after={"recall_at_10": 0.82, "mrr": 0.57},
        deltas={
            "recall_at_10": Delta(value=-0.02, low=-0.0681, high=0.0281, confidence=0.99),
            "mrr": Delta(value=-0.081, low=-0.1571, high=-0.0049, confidence=0.99),
        },
        trained=3,
    ),
    GuardResult(name="<b>|broken", verdict="not judged", reasons=["Guard set '<b>|broken' cannot be read: empty."]),
]


def outcome(verdict: Verdict) -> Outcome:
    """A night that ended so."""
    scored = verdict in _CANDIDATES
    deltas = {}
    if scored:
        for name, value in _CANDIDATES[verdict].items():
            gain = value - _SERVING[name]
            spread = 0.012 + abs(gain) / 4
            deltas[name] = Delta(value=gain, low=gain - spread, high=gain + spread, confidence=0.99)
    return Outcome(
        run_id="20261124T033000Z-0123abcd",
        verdict=verdict,
        reasons=_REASONS[verdict],
        commit=8,
        counts={"accepted": 1504, "rejected": 3, "golden": 0, "new": 240, "train": 1189, "dev": 90, "test": 225}
        if verdict != "failed"
        else {},
        candidate=Model(version="5a1f0c3d9b2e", scores=_CANDIDATES[verdict]) if scored else None,
        production=Model(version="c0ffee112233", scores=_SERVING) if scored else None,
        base=Model(version=None, scores=_BASE) if scored else None,
        deltas=deltas,
        guards=_GUARDS if verdict == "held" else [],
        production_before="c0ffee112233",
        production_after="5a1f0c3d9b2e" if verdict == "promoted" else "c0ffee112233",
        guidance="1,504 pairs: enough to fine-tune. Recall@10 of production is above the target of 0.90 already, so "
        "that more fine-tuning may not pay."
        if scored
        else "",
        seconds={"begin": 0.1, "intake": 0.6, "checks": 7.9, "fine-tuning and scoring": 118.4, "verdict": 0.4}
        if scored
        else {"begin": 0.1, "intake": 0.3},
        cost={"training_seconds": 48.6, "dollars": 0.0101} if scored else {},
        report="s3://search/ratchet/runs/20261124T033000Z-0123abcd/report.html",
        started_at="2026-11-24T03:30:00Z",
        finished_at="2026-11-24T03:32:11Z",
        reason="nightly",
    )


def material(verdict: Verdict) -> Material:
    """What such a night left to be shown."""
    checks = [
        {
            "check": "Document is present",
            "severity": "critical",
            "result": "failed" if verdict == "blocked" else "ok",
            "observed": "3 of 1,504 rows" if verdict == "blocked" else "0 of 1,504 rows",
        },
        {"check": "Enough pairs", "severity": "critical", "result": "ok", "observed": "1,504"},
        {"check": "Share of duplicates", "severity": "warning", "result": "ok", "observed": "0 of 1,504 rows"},
    ]
    data: dict[str, Any] = {
        "objects": [ObjectRow("pairs/dt=2026-11-24/export.csv", 240, 3)],
        "rejected": {"no document": 2, "the text is blank": 1},
    }
    if verdict == "failed":
        return Material()
    if verdict == "skipped":
        return Material(history=_history(verdict))
    data |= {
        "checks": checks,
        "measures": {
            "query_chars_median": 48.0, "query_chars_p95": 117.0,
            "document_chars_median": 236.0, "document_chars_p95": 1204.0,
        },
        "languages": {"en": 0.984, "de": 0.016},
        "history": _history(verdict),
        "parameters": {
            "training": Training().model_dump(mode="json"),
            "gate": Gate().model_dump(mode="json"),
            "checks": Checks().model_dump(mode="json"),
        },
        "versions": {"python": "3.11.7", "torch": "2.13.0", "sentence-transformers": "6.2.0"},
    }  # fmt: skip
    if verdict == "blocked":
        return Material(**data)
    recalls = {"base": _BASE, "production": _SERVING, "candidate": _CANDIDATES[verdict]}
    return Material(
        by_dimension={
            side: {
                str(dim): {"recall_at_10": scores["recall_at_10"] - (9.0 if side == "base" else 4.5) / dim}
                for dim in (384, 256, 128, 64, 32)
            }
            for side, scores in recalls.items()
        },
        training=Trained(
            steps=18, planned_steps=19, stopped=None, best_step=15, rows={"pairs": 1189}, pairs=1152, mined=0,
            precision="bf16", packed=True, bucket_tokens=1024, cached=False, tokens=90_000, padded_tokens=95_000,
            resumed=0, started_from="base", distance_from_base=0.0213, dims=(384, 256, 128, 64, 32),
            estimate=Estimate(50.0, 0.0), seconds=49.0, dollars=0.0, peak_memory=1 << 30,
            losses=tuple(9.5 * math.exp(-step / 9) + 2.1 + 0.3 * math.sin(5 * step) for step in range(18)),
            dev=tuple(
                DevScore(step, 0.84 + 0.1 * (1 - math.exp(-step / 6)), 0.6 + 0.011 * step) for step in (0, 5, 10, 15)
            ),
        ),
        slices=[
            SliceRow("slice ec2", 61, judged=True, recall_at_10=-0.0164, mrr=0.0121),
            SliceRow("slice dynamodb", 12, judged=False, recall_at_10=0.0, mrr=0.1250),
            SliceRow("slice s3", 88, judged=True, recall_at_10=0.0455, mrr=0.0528),
        ],
        more_slices=4,
        by_similarity=[
            Band(0.0, 0.5, 40, {"recall_at_10": 0.012, "mrr": 0.031}),
            Band(0.5, 0.6, 0, {}),
            Band(0.9, 1.0, 21, {"recall_at_10": 0.095, "mrr": 0.142}),
        ],
        judged_since=5,
        moved=Moved([_moved(1.0, 0.0385)], [_moved(0.0667, 1.0), _moved(0.25, 1.0)]),
        numeric_path="bf16",
        audit=_audited(),
        drift=Drift(since="20261120T033000Z-0123abcd", least=0.9999999, changed=["tokenizers 0.22.0 to 0.22.1"]),
        reindexing=Reindexing("moves", 12_400, 180.0),
        **data,
    )  # fmt: skip


def _history(verdict: Verdict) -> list[NightRow]:
    scored: list[tuple[Verdict, dict[str, float]]] = [
        ("promoted", {"recall_at_10": 0.8866, "mrr": 0.6911}),
        ("held", {"recall_at_10": 0.8899, "mrr": 0.6950}),
        ("promoted", {"recall_at_10": 0.9100, "mrr": 0.7388}),
        ("held", {"recall_at_10": 0.9140, "mrr": 0.7402}),
    ]
    if verdict in _CANDIDATES:
        scored.append((verdict, _BETTER if verdict == "promoted" else _SERVING))
    return [
        NightRow(f"202611{19 + day}T033000Z-0123abcd", ended, served["recall_at_10"], served["mrr"])
        for day, (ended, served) in enumerate(scored, 1)
    ]


def _moved(before: float, after: float) -> MovedQuery:
    documents = [
        "Adds or overwrites one or more tags for the specified Amazon EC2 resource or resources. Each resource can "
        "have a maximum of 50 tags.",
        "Describes the specified tags for your EC2 resources.",
        "Deletes the specified set of tags from the specified set of resources.",
    ]
    first, second = (
        [Returned(text, place == (0 if rank > 0.5 else -1)) for place, text in enumerate(documents)]
        for rank in (before, after)
    )
    return MovedQuery(
        query="To add a tag to a resource: this example adds the tag Stack=production to the specified image",
        slice="ec2",
        before={"mrr": before, "recall_at_10": float(before >= 0.1)},
        after={"mrr": after, "recall_at_10": float(after >= 0.1)},
        returned_before=first,
        returned_after=second,
    )


def _audited() -> Audited:
    """One upload of which a fifth is wrong, one that is right, and one of its labels."""
    why = "For 21 of 200 pairs another document fits far better than the labelled one."
    return Audited(
        pairs=1189,
        counts={"upload": 1, "label": 17},
        shown=[
            Suspect("upload", "pairs/dt=2026-11-24/export.csv", 0, "", "", "", why),
            Suspect(
                "label", "pairs/dt=2026-11-24/export.csv", 17, "How do I tag an <image>?", "Deletes a subnet.",
                "Adds tags to a resource | or several.", "The document is found at rank 912.", "pairs/b.csv", 3,
            ),
        ],
        uploads=[
            UploadAudit("pairs/dt=2026-11-24/export.csv", 200, 0.21, True, why, 0.004),
            UploadAudit("pairs/dt=2026-11-23/export.csv", 200, 0.0, False, why),
            UploadAudit("labeller bob", 30, None, False, "30 pairs are too few to judge; it takes 50."),
        ],
        too_small=2,
    )  # fmt: skip
