"""What an audit says in the outcome and in alerts of a night that regressed: which upload probably hurt it."""

from __future__ import annotations

from tasks.records import Audited, UploadAudit


def blamed(audited: Audited) -> list[str]:
    """One sentence for each upload, source or labeller that is named; else one that none is, and why that may be."""
    named = [_sentence(one) for one in audited.uploads if one.named]
    if named:
        return named
    if audited.failed:
        return [f"The labels were not audited: {audited.failed}"]
    judged = sum(one.share is not None for one in audited.uploads)
    small = f", {audited.too_small:,} more are too small to judge" if audited.too_small else ""
    return [f"No upload stands out by its labels ({judged:,} judged{small})."]


def _sentence(one: UploadAudit) -> str:
    gain = "" if one.without is None else f" Without it a linear adapter gains {one.without:+.4f} MRR on dev queries."
    return (
        f"Probably hurt by {one.name}: about {one.share or 0:.0%} of its labels look drawn at random. {one.why}{gain}"
    )
