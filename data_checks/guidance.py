"""When to fine-tune at all: rules of thumb as a pure function, with their reasons."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from tasks.config import Checks

Action = Literal["skip", "fine-tune-with-warning", "fine-tune"]

ANY_LANGUAGE = "multilingual"
"""Stands among a model's languages for one that was trained on many."""

UNDETERMINED = "und"
"""ISO 639-2 code of a text whose language could not be told."""


@dataclass(frozen=True)
class Guidance:
    """What to do with this much data, and why."""

    action: Action
    reasons: tuple[str, ...]

    @property
    def text(self) -> str:
        """The reasons as one paragraph."""
        return " ".join(self.reasons)


def guide(
    pairs: int,
    *,
    baseline_recall: float | None,
    target: float = 0.90,
    languages: Mapping[str, float],
    supported: Collection[str] | None,
    rule: Checks,
) -> Guidance:
    """Say whether to fine-tune on `pairs` distinct pairs.

    `baseline_recall` is Recall@10 of the model that serves now (None: not measured yet), `languages` the share of
    each language in the data, `supported` the languages of the base model (None: unknown).

    Below `rule.min_pairs` a model off the shelf is the better choice, up to `rule.warn_pairs` a gain is likely to
    be too small to tell from chance, from there on fine-tuning usually pays. Only the number of pairs decides the
    action; recall and languages add advice.
    """
    reasons: list[str] = []
    action: Action
    if pairs < rule.min_pairs:
        action = "skip"
        reasons.append(
            f"{pairs:,} distinct pairs are fewer than {rule.min_pairs:,}: use a model off the shelf, and collect more."
        )
    elif pairs < rule.warn_pairs:
        action = "fine-tune-with-warning"
        reasons.append(
            f"{pairs:,} distinct pairs are enough to try but fewer than {rule.warn_pairs:,}: the gain may be small, "
            "and the test set too small to show it."
        )
    else:
        action = "fine-tune"
        reasons.append(f"{pairs:,} distinct pairs: usually enough for fine-tuning to pay.")
    if baseline_recall is not None and baseline_recall >= target:
        reasons.append(
            f"Recall@10 is already {baseline_recall:.3f}, at or above the target of {target:.2f}: "
            "fine-tuning may not pay."
        )
    foreign = foreign_languages(languages, supported)
    if sum(foreign.values()) > rule.max_foreign_share:
        named = ", ".join(f"{code} {share:.0%}" for code, share in foreign.items())
        reasons.append(
            f"The base model does not support the language of {sum(foreign.values()):.0%} of the texts ({named}): "
            "start from a multilingual model, such as intfloat/multilingual-e5-small or BAAI/bge-m3."
        )
    elif supported is None and any(code not in ("en", UNDETERMINED) for code in languages):
        reasons.append("The base model's card names no languages: whether it supports those of the data is unknown.")
    return Guidance(action, tuple(reasons))


def foreign_languages(languages: Mapping[str, float], supported: Collection[str] | None) -> dict[str, float]:
    """Shares of the languages that the model is not made for, largest first; empty when that is unknown."""
    if supported is None or ANY_LANGUAGE in supported:
        return {}
    foreign = {code: share for code, share in languages.items() if code not in {*supported, UNDETERMINED}}
    return dict(sorted(foreign.items(), key=lambda item: (-item[1], item[0])))
