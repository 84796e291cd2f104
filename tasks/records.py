"""What each step of a run leaves in the run's folder, one frozen record per file; `tasks.runs` reads and writes them.

Fields that a later version adds need a default, so that runs written by an earlier one can still be read; fields that
this version does not know are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.config import Checks, Gate, Index, Limits, Pending, Refused, Training

Precision = Literal["fp32", "bf16", "fp16"]
Side = Literal["both", "query"]


@dataclass(frozen=True)
class Settings:
    """`parameters.json`: the settings that a run was started with, by group."""

    training: Training = field(default_factory=Training)
    gate: Gate = field(default_factory=Gate)
    checks: Checks = field(default_factory=Checks)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Asked:
    """`rollback.json`: the number of the change that was in force when a rollback was asked for."""

    leaving: int | None


@dataclass(frozen=True)
class Begun:
    """`begin.json`: what served when the run began, and where the last concluded run ended.

    Attributes:
        version, etag: Of production; None where nothing was in production.
        last_commit: Commit of the last concluded run; 0 before the first.
        last_run: That run and its verdict, for people.
    """

    version: str | None
    etag: str | None
    last_commit: int
    last_run: str | None


@dataclass(frozen=True)
class Taken:
    """`intake.json`: the commit that fixes the run's data, how many of its pairs are new, and counts of rows.

    Attributes:
        removed: Objects that are gone, or hold no rows any more, since the last night.
        since: Commit after which rows are new; 0 where the log was started again. None in runs of older versions.
        log: Which log the commit is of.
        pending, refused: Objects that could not be read, and of which nothing was taken.
        remarks: What the outcome says besides its reasons.
        blocked: Why nothing was taken in before a person has confirmed it; empty where that is not so.
    """

    commit: int
    new: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    removed: int = 0
    since: int | None = None
    log: str = ""
    pending: list[Pending] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    blocked: str = ""


@dataclass(frozen=True)
class Waiting:
    """`waiting.json`: a candidate that passed the gate waits for a person, by the store's clock."""

    candidate: str
    since: datetime
    until: datetime


@dataclass(frozen=True)
class Question:
    """What people are asked: until when, the Markdown of the form, and the text of the alert."""

    until: datetime
    form: str
    message: str


@dataclass(frozen=True)
class Published:
    """`published-<target>.json`: a change of production is known to a registry outside, and where it is found there."""

    name: str
    version: str | None
    promotion: int
    where: str
    at: datetime


class CheckSummary(BaseModel):
    """The verdict of the data checks and what they measured; the single findings are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    verdict: Literal["ok", "blocked", "skipped"]
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    guidance: str = ""
    counts: dict[str, int] = {}
    measures: dict[str, float | None] = {}
    languages: dict[str, float] = {}


@dataclass(frozen=True)
class Checked:
    """`checks.json`, and `leaks.json` once the leak check is added: the checks as they stand, and as table rows.

    Attributes:
        result: The verdict and what was measured.
        table: One row per check, as text.
        sides: Rows per side of the split; empty where the checks did not pass.
        supported_languages: Languages that the base model names; None where it names none.
    """

    result: CheckSummary
    table: Sequence[Mapping[str, str]]
    sides: Mapping[str, int] = field(default_factory=dict)
    supported_languages: Sequence[str] | None = None


@dataclass(frozen=True)
class Plan:
    """From which weights to start, on which rows, and why.

    Attributes:
        start: "base", or the version whose weights are gone on from.
        since: Rows of later commits are new to that version; 0 from base, which trains on all.
        why: One sentence for the report.
        side: What is trained; `both` where a full fine-tuning is due, whatever the settings say.
    """

    start: str
    since: int
    why: str
    side: Side = "both"


@dataclass(frozen=True)
class Started:
    """`start.json`: all that another attempt, or another node, has to know to train the same."""

    commit: int
    production: str | None
    training: Training
    plan: Plan


@dataclass(frozen=True)
class Estimate:
    """What a training will take, measured before it on one of its batches; memory of a step in bytes, 0: unknown."""

    seconds: float
    dollars: float
    memory: int = 0


@dataclass(frozen=True)
class DevScore:
    """Dev scores after `step` steps (0: the model started from)."""

    step: int
    recall_at_10: float
    mrr: float


@dataclass(frozen=True)
class Cut:
    """What a limit of length does to the documents: the share that is cut, and how many are the same afterwards."""

    limit: int
    share: float
    equal: int


@dataclass(frozen=True)
class Cuts:
    """Of the documents, in training and when the model serves; without a limit there, nothing is cut."""

    training: Cut
    serving: Cut | None = None

    @property
    def warnings(self) -> list[str]:
        """What to know about documents that no model can tell apart."""
        limits = {"in training": self.training, "when the model serves": self.serving}
        return [
            f"{cut.equal:,} documents begin alike, and are the same text {where}, where they are cut at {cut.limit} "
            "tokens: no training can tell them apart. Divide them, put what differs first, or raise the limit"
            + (" (training.max_length)." if cut is self.training else ".")
            for where, cut in limits.items()
            if cut is not None and cut.equal
        ]

    def __str__(self) -> str:
        served = "nothing" if self.serving is None else f"{self.serving.share:.1%}, at {self.serving.limit} tokens"
        return (
            f"in training {self.training.share:.1%} of the documents, at {self.training.limit} tokens; served {served}"
        )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a fine-tuning run did.

    Attributes:
        steps, planned_steps: Optimiser steps done, and those of the full run.
        pairs: Rows that went through, repeats over epochs counted.
        rows: Rows of the train side, by the loss that they train.
        mined: Hard negatives that were added to the rows.
        started_from: "base", or the version whose weights it went on from.
        distance_from_base: Relative L2 distance of the saved weights from the base model's.
        losses: Loss of each step (the sum over Matryoshka dimensions).
        dev: Dev scores, the first those of the model started from; empty without enough dev queries.
        best_step: The step whose weights were saved.
        resumed: The step of the checkpoint from which it went on; 0 if it began at the beginning.
        stopped: Why it ended before `planned_steps`; None if it did not.
        dims: Matryoshka dimensions trained, the full one first.
        precision, packed, bucket_tokens, cached: How it was computed.
        tokens, padded_tokens: Tokens encoded, and computed for them with padding.
        estimate: What it was expected to take; seconds, dollars: what it took.
        peak_memory: Bytes.
        device: What computed it, by name; empty in runs of older versions.
        cuts: Documents that were cut; None in runs of older versions, and where none was encoded.
        side: What was trained.
        alpha: Share of the way from the weights started from to the tuned ones that was saved.
        averaged: Dev MRR by that share, where averages were tried.
    """

    steps: int
    planned_steps: int
    pairs: int
    rows: dict[str, int]
    mined: int
    started_from: str
    distance_from_base: float
    losses: tuple[float, ...]
    dev: tuple[DevScore, ...]
    best_step: int
    resumed: int
    stopped: str | None
    dims: tuple[int, ...]
    precision: Precision
    packed: bool
    bucket_tokens: int
    cached: bool
    tokens: int
    padded_tokens: int
    estimate: Estimate
    seconds: float
    dollars: float
    peak_memory: int
    device: str = ""
    cuts: Cuts | None = None
    side: Side = "both"
    alpha: float = 1.0
    averaged: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """Of `train.json`, what a later run asks: where the version came from."""

    version: str
    started_from: str
    base: str
    commit: int
    side: Side = "both"

    @property
    def full(self) -> bool:
        """Whether both sides were trained, from the base model."""
        return self.started_from == "base" and self.side == "both"


@dataclass(frozen=True, kw_only=True)
class Candidate(Trained):
    """`train.json`: the candidate's version, the commit and base model it was trained on, and how it was trained."""

    version: str
    commit: int
    base: str
    started_why: str


@dataclass(frozen=True)
class Returned:
    """One document that a test query found."""

    text: str
    relevant: bool


@dataclass(frozen=True)
class MovedQuery:
    """A test query whose rank changed: its metrics and the nearest documents with production and the candidate."""

    query: str
    slice: str | None
    before: Mapping[str, float]
    after: Mapping[str, float]
    returned_before: Sequence[Returned]
    returned_after: Sequence[Returned]


@dataclass(frozen=True)
class Moved:
    """The test queries that lost and gained most, the largest change first."""

    lost: Sequence[MovedQuery] = ()
    gained: Sequence[MovedQuery] = ()


@dataclass(frozen=True)
class SideScored:
    """One model on the test set. `version` None: the base model.

    `scores` are means by metric over the queries that decide (those that nearly repeat a training query do not),
    `by_dimension` means over all queries for each Matryoshka dimension. `documents` is the identity of its document
    vectors; None in runs of older versions.
    """

    version: str | None
    fingerprint: str
    scores: dict[str, float]
    by_dimension: dict[str, dict[str, float]]
    documents: str | None = None


@dataclass(frozen=True)
class Band:
    """Test queries to which training came about equally near, and the mean gains of the decisive metrics on them.

    Attributes:
        low, high: Bounds of how similar the most similar training query is, from 0 to 1.
    """

    low: float
    high: float
    queries: int
    gains: dict[str, float]


@dataclass(frozen=True)
class GuardScored:
    """A guard set as both sides were scored on it; or why it could not be read.

    Attributes:
        name: Of its folder under `guard/`.
        digest: Of its files, by their names and ETags.
        problem: Why it could not be read; empty where it was scored.
        trained: Queries that are training queries of the candidate as well.
    """

    name: str
    digest: str
    problem: str = ""
    queries: int = 0
    documents: int = 0
    trained: int = 0


@dataclass(frozen=True)
class Reindexing:
    """What becomes of an index of documents when the candidate serves.

    Attributes:
        index: Whether it stays as it is.
        documents: All documents of the night: what has to be encoded where it moves.
        per_second: Documents that this machine encodes in a second, measured on a few.
    """

    index: Index
    documents: int
    per_second: float

    @property
    def hours(self) -> float:
        """Hours in which this machine encodes all documents."""
        return self.documents / self.per_second / 3600


@dataclass(frozen=True, kw_only=True)
class Scored:
    """`scores.json`: both sides on one test set.

    Attributes:
        candidate, production: The two that are compared; production is the base model where nothing serves.
        base: The base model, where production is another one.
        counts: Rows and documents of the test.
        moved: Queries that changed most.
        serving: What is wrong with the published candidate when it is served; empty where nothing is.
        numeric_path: How vectors were computed.
        by_similarity: The gain by how near training came to a query, the farthest first.
        guards: The guard sets that both were scored on.
        reindexing: What becomes of an index; None in runs of older versions.
        on_ray: What encoding on Ray came to; empty where the process of the run encoded.
    """

    candidate: SideScored
    production: SideScored
    base: SideScored | None = None
    counts: dict[str, int]
    moved: Moved
    serving: Sequence[str]
    numeric_path: str
    by_similarity: Sequence[Band] = ()
    guards: Sequence[GuardScored] = ()
    reindexing: Reindexing | None = None
    on_ray: str = ""

    @property
    def sides(self) -> dict[str, SideScored]:
        """The sides by name, in the order in which people read them."""
        named = {"base": self.base, "production": self.production, "candidate": self.candidate}
        return {name: side for name, side in named.items() if side is not None}


SuspectKind = Literal["upload", "label", "false negative", "contradiction", "similar queries", "similar documents"]


@dataclass(frozen=True)
class Suspect:
    """A label that people should look at: a line of `suspects.jsonl`. Texts are cut.

    Attributes:
        object, line: The row; of an upload line 0.
        other: The text that speaks against it: what is found instead, the negative, the near duplicate.
        other_object, other_line: Its row, where another row has it.
    """

    kind: SuspectKind
    object: str
    line: int
    query: str
    document: str
    other: str
    why: str
    other_object: str = ""
    other_line: int = 0


@dataclass(frozen=True)
class UploadAudit:
    """How one upload, source or labeller looked.

    Attributes:
        share: Share of its labels that look drawn at random; None where it could not be judged.
        named: Whether that is more than chance and honest slips explain.
        without: How much higher MRR on dev queries is when a linear adapter is fitted without it; None if not tried.
    """

    name: str
    pairs: int
    share: float | None
    named: bool
    why: str
    without: float | None = None


@dataclass(frozen=True, kw_only=True)
class Audited:
    """`audit.json`: what the night says of its labels and of its machine; no verdict depends on it.

    Attributes:
        pairs: Training pairs that were looked at.
        counts: Suspects by kind; of some kinds `suspects.jsonl` has the first thousand only.
        shown: The first of each kind.
        uploads: The newest uploads that were judged.
        too_small: New uploads that were too small to be judged.
        failed: Why there is no audit; empty where there is one.
    """

    pairs: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    shown: Sequence[Suspect] = ()
    uploads: Sequence[UploadAudit] = ()
    too_small: int = 0
    failed: str = ""


@dataclass(frozen=True)
class Canary:
    """`watch/canary/<fingerprint>.json`: vectors of the canary's texts, as production gave them when it was first seen.

    Attributes:
        environment: Versions and processors by name.
        vectors: Float32, little endian, row by row, in base 64.
    """

    version: str | None
    run_id: str
    environment: dict[str, str]
    dimension: int
    vectors: str


@dataclass(frozen=True)
class Drift:
    """`canary.json`: the canary's texts, encoded anew, beside their stored vectors; no verdict depends on it.

    Attributes:
        since: The run that stored them.
        least: The least cosine of a text's two vectors.
        drifted: Texts beyond numeric noise.
        changed: Versions and processors that have changed.
        warning: What to do; empty where nothing drifted.
        failed: Why they were not compared; empty where they were.
    """

    since: str = ""
    least: float = 1.0
    drifted: int = 0
    changed: Sequence[str] = ()
    warning: str = ""
    failed: str = ""
