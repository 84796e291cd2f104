"""Pairs in local files to "would fine-tuning help me?": a comparison with the base model, without any server.

The parser, the data checks, the split, the training, the ranking and the gate are those of a night; nothing is stored.
Only how queries are held out differs where there are few of them. A night tests on 15 of 100 queries, of 50 that is 7,
which can show nothing. So with fewer than `_ENOUGH_QUERIES` the queries are cross-validated: divided into five folds by
their key, each fold is tested with a model that was trained on the other four, and all queries count.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks import dataset, intake
from tasks.config import TARGETS, Checks, Gate, GuardResult, Limits, Training
from tasks.dataset import EvaluationSet
from tasks.gate import Decision, Scores, decide
from tasks.pace import Pace, duration
from tasks.parsing import KINDS, Chunk, Rejected, Understood, is_ignored, parse, refuse_unread
from tasks.records import Cuts, Trained
from tasks.splits import Side, Split, document_key

if TYPE_CHECKING:
    from data_checks.findings import ChecksResult
    from tasks.dataset import Dataset
    from tasks.scoring.guards import GuardSet

_ENOUGH_QUERIES: Final = 1_000
"""Queries from which the ordinary split has a test side (150 queries) that can show a usual gain."""

_FEWEST_QUERIES: Final = 10
"""Below it a fold holds a query or none, and a comparison is an anecdote."""

FOLDS: Final = 5

_FEW_DOCUMENTS: Final = 1_000
"""Documents below which Recall@10 says little about a search among more."""

_FEW_STEPS: Final = 20
"""Optimiser steps below which the learning rate has hardly risen and fallen again."""

_SALT: Final = "ratchet try"
"""The split of a trial: the same files give the same folds, today and tomorrow."""


class TrialError(Exception):
    """A comparison cannot be made; the message says what is missing."""


@dataclass(frozen=True)
class Labels:
    """What the files hold: accepted rows (schema `tasks.intake.ROWS`) and rejected ones."""

    rows: pa.Table
    rejected: list[Rejected]
    understood: list[Understood]
    """What the reader made of each file."""


@dataclass(frozen=True)
class Trial:
    """Base model and fine-tuned model on the same held-out queries; `base` and `tuned` are means by metric."""

    checks: ChecksResult
    guidance: str
    folds: int
    """Models that were trained, each tested on the queries that it has not seen; 1: the split of a night."""
    steps: int
    """Optimiser steps of one training."""
    trained: int
    """Rows of one training (with folds: the mean)."""
    queries: int
    """Queries that were tested."""
    documents: int
    base: dict[str, float]
    tuned: dict[str, float]
    decision: Decision
    cuts: Cuts | None = None
    guards: Sequence[GuardResult] = ()

    @property
    def cautions(self) -> list[str]:
        """Reasons why the figures are weaker than they look."""
        found = []
        if self.folds > 1:
            found.append(
                f"With fewer than {_ENOUGH_QUERIES:,} queries all of them are tested, in {self.folds} folds. "
                "The models share most of their training rows, so the true uncertainty is somewhat larger than the "
                "intervals say."
            )
        if self.documents < _FEW_DOCUMENTS:
            found.append(
                f"Finding one of {self.documents:,} documents among ten is easy; add the documents that your search "
                "really has, with --corpus, for figures that you would see there."
            )
        unlike = self.cuts.warnings if self.cuts is not None else []
        found += unlike
        if self.steps < _FEW_STEPS and not unlike:
            found.append(
                f"So few steps ({self.steps}) hardly change a model; with so few rows try more passes, such as "
                f"--set training.epochs={-(-_FEW_STEPS // self.steps)}."
            )
        return found


@dataclass(frozen=True)
class Fold(Split):
    """One part of a cross-validation: a query is on the test side when its place falls into fold `number`.

    Without dev: it would take queries away from where they are few, and the last step is taken instead. A `number`
    outside the folds leaves everything to train on.
    """

    number: int = 0

    def side_of_key(self, key: str) -> Side:
        """The side of a key that `query_key` gave."""
        return "test" if int(self.place(key) * FOLDS) == self.number else "train"


def read(path: Path, corpus: Path | None = None, limits: Limits | None = None) -> Labels:
    """Read a file or a folder of files as intake would: a broken row costs itself, not its neighbours.

    In a folder, files under `golden/` and `corpus/` are what they are in a store, all others hold pairs. `corpus`
    names further documents to search.

    Raises TrialError when there is no such file, or no row could be taken.
    """
    caps = limits or Limits()
    batches: list[pa.RecordBatch] = []
    rejected: list[Rejected] = []
    understood: list[Understood] = []
    for file, key in (*_files(path, "pairs"), *(_files(corpus, "corpus") if corpus else ())):
        for chunk in parse_file(file, key, caps):
            batches.append(intake.with_origin(key, chunk.rows))
            rejected += chunk.rejected
            understood += [chunk.understood] if chunk.understood is not None else []
    table = pa.Table.from_batches(batches, intake.BATCH)
    if not pc.any(pc.equal(table["kind"], "pair")).as_py():
        raise TrialError(f"no labelled pair in {path}{_first(rejected)}")
    return Labels(
        table.append_column(intake.ROWS.field("commit"), pa.repeat(pa.scalar(1, pa.int64()), table.num_rows)),
        rejected,
        understood,
    )


def parse_file(file: Path, key: str, limits: Limits) -> Iterator[Chunk]:
    """Parse a local file as if it were the object `key`; one that is larger than the limits allow is not read."""
    refused = refuse_unread(key, file.stat().st_size, limits)
    yield from [refused] if refused is not None else parse(key, file.read_bytes(), limits)


def key_of(file: Path, kind: str | None, folder: Path | None) -> str:
    """The key that a file would have in a store.

    Args:
        file: The file, in `folder` where that is given.
        kind: The first folder of the key; None: the folder of its path that has such a name, or the file's own name
            where it is one (`corpus.jsonl`), else `pairs`.
        folder: What was named, if not the file itself.
    """
    name = file.relative_to(folder).as_posix() if folder else file.name
    if kind is not None:
        return f"{kind}/{name}"
    parents = list(file.parts[:-1])
    while parents:
        if parents[-1] in KINDS:
            return "/".join(file.parts[len(parents) - 1 :])
        parents.pop()
    stem = file.name.partition(".")[0].lower()
    return f"{stem if stem in KINDS else 'pairs'}/{name}"


def _first(rejected: Sequence[Rejected]) -> str:
    """The first reason, and where it is: what is wrong with a whole file has no line."""
    if not rejected:
        return ": it holds no file of pairs"
    row = rejected[0]
    return f": {row.object.partition('/')[2]}{f' line {row.line}' if row.line else ''}: {row.reason}"


def _files(path: Path, kind: str) -> Iterator[tuple[Path, str]]:
    """The files of a path with the key that each would have in a store."""
    if path.is_file():
        yield path, f"{kind}/{path.name}"
        return
    if not path.is_dir():
        raise TrialError(f"there is no file or folder {path}")
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        key = name if kind == "pairs" and name.partition("/")[0] in KINDS else f"{kind}/{name}"
        if file.is_file() and not is_ignored(key) and not name.startswith("."):
            yield file, key


def compare(
    labels: Labels,
    training: Training,
    gate: Gate,
    rule: Checks,
    *,
    out: Path | None = None,
    guarded: Sequence[GuardSet] = (),
    on_step: Callable[[str], None] = lambda _: None,
) -> Trial:
    """Fine-tune and compare with the base model on queries that the fine-tuned model has not seen.

    With `out` the model is kept there: the one that was scored or, where queries were cross-validated, one more that is
    trained on all rows. A set of `guarded` on which the first of the fine-tuned models falls holds it, as in a night.

    Raises:
        TrialError: The data checks block, or there are too few queries.
        tasks.training.TrainingError, tasks.encoding.ModelError: The settings or the base model do not do.
    """
    from data_checks import languages
    from data_checks.guidance import guide
    from data_checks.run import run_checks
    from tasks import encoding
    from tasks.ranking import summary

    supported = languages.model_languages(encoding.resolve_model(training.base_model))
    on_step("checking the rows")
    # how few pairs are too few is for the reader to judge here: the guidance says what a night would do
    checks = run_checks(
        labels.rows,
        rejected=sum(made.rejected for made in labels.understood if not made.object.startswith("corpus/")),
        rule=rule.model_copy(update={"min_pairs": 2}),
        commit=1,
        supported=supported,
    )
    if checks.verdict != "ok":
        raise TrialError(f"the data checks do not pass: {' '.join(checks.reasons)}")
    parts = _parts(labels.rows)
    with TemporaryDirectory() as work:
        folders = [Path(work) / str(number) for number in range(len(parts))]
        runs: list[Trained] = []
        for number, (part, folder) in enumerate(zip(parts, folders, strict=True), 1):
            of = f", fold {number} of {len(parts)}" if len(parts) > 1 else ""
            on_step(f"fine-tuning on {part.train.num_rows:,} rows{of}")
            runs.append(_train(part, training, folder, on_step))
        on_step("scoring both models on the queries held out")
        base, tuned, results, vetoes = _score(parts, folders, training.base_model, gate, guarded, on_step)
        if out is not None and len(parts) == 1:
            shutil.copytree(folders[0], out)
        elif out is not None:
            whole = dataset.build(labels.rows, Fold(_SALT, number=FOLDS))
            on_step(f"fine-tuning on {whole.train.num_rows:,} rows, for the model to keep")
            _train(whole, training, out, on_step)
            vetoes += _check_kept(out, parts[0], training.base_model, gate)
    return Trial(
        checks=checks,
        guidance=guide(
            checks.counts["distinct_pairs"],
            baseline_recall=summary(base.per_query)["recall_at_10"],
            target=TARGETS["recall_at_10"],
            languages=checks.languages,
            supported=supported,
            rule=rule,
        ).text,
        folds=len(parts),
        steps=runs[0].steps,
        cuts=runs[0].cuts,
        trained=sum(part.train.num_rows for part in parts) // len(parts),
        queries=len(base.queries),
        documents=len(parts[0].documents),
        base=summary(base.per_query),
        tuned=summary(tuned.per_query),
        decision=decide(tuned, base, gate, vetoes=vetoes),
        guards=results,
    )


def _parts(rows: pa.Table) -> list[Dataset]:
    """The split of a night, or the parts of a cross-validation; every query is on the test side of one part only."""
    asked = rows.filter(pc.not_equal(rows["kind"], "corpus"))["query"]
    queries = len(dataset.encode_texts(asked, document_key).first)
    if queries < _FEWEST_QUERIES:
        raise TrialError(f"{queries} distinct queries are too few to compare anything: collect at least 50")
    if queries >= _ENOUGH_QUERIES:
        return [dataset.build(rows, Split(_SALT))]
    parts: list[Dataset] = []
    tested: set[str] = set()
    for number in range(FOLDS):
        part = dataset.build(rows, Fold(_SALT, number=number))
        # golden queries are on the test side of every part; all models leave them out, so the first may answer
        new = np.flatnonzero([query not in tested for query in part.test.queries])
        tested.update(part.test.queries)
        if len(new) and part.train.num_rows:
            parts.append(replace(part, test=part.test.take(new)))
    if not parts:
        raise TrialError("no query is both labelled as answered and fit to be held out: is every score below 0.5?")
    return parts


def _train(part: Dataset, training: Training, folder: Path, say: Callable[[str], None]) -> Trained:
    """Fine-tune on the train side of a part, and say how long it will take."""
    from tasks import training as trainer

    pace = Pace("training steps", say)
    return trainer.train(
        part.train,
        part.dev,
        part.documents,
        training,
        folder,
        on_progress=lambda step, steps, _loss: pace(step, steps),
        on_estimate=lambda estimate: say(f"training will take about {duration(estimate.seconds)}"),
    )


def _check_kept(kept: Path, part: Dataset, base_model: str, gate: Gate) -> list[str]:
    """Why the model that was trained on all rows must not serve. Nothing was scored with it: it must repeat itself."""
    from tasks import encoding, scoring

    encoder = encoding.ModelEncoder.open(kept, encoding.FP32)
    queries, documents = part.test.queries[: scoring.SAMPLE], part.documents[: scoring.SAMPLE]
    sample = scoring.Sample(queries, encoder.encode(queries, "query"), documents, encoder.encode(documents, "document"))
    reasons = scoring.check_saved(
        kept,
        sample,
        scoring.describe(kept),
        baseline=encoding.resolve_model(base_model),
        max_slowdown=gate.max_serving_slowdown,
    )
    return [f"the model to keep: {reason}" for reason in reasons]


def _score(
    parts: Sequence[Dataset],
    folders: Sequence[Path],
    base_model: str,
    gate: Gate,
    guarded: Sequence[GuardSet],
    say: Callable[[str], None],
) -> tuple[Scores, Scores, list[GuardResult], list[str]]:
    """Scores of the base model and of the fine-tuned ones over the tests of all parts, and why these must not serve.

    The serving check and the guard sets look at the first of them: the others were trained in the same way.
    """
    from data_checks.leaks import near_duplicates, nearest_training_query
    from tasks import encoding, scoring
    from tasks.scoring import guards

    documents = parts[0].documents  # which text is which document does not depend on the split
    test = EvaluationSet.concatenate([part.test for part in parts])
    origin = encoding.resolve_model(base_model)
    models = [encoding.load(folder) for folder in (origin, folders[0])]
    # one numeric path for both: a rounding that only one side has would be a difference between them; to find out
    # which is the fastest takes longer than to encode what is cross-validated
    path = encoding.FP32 if len(parts) > 1 else encoding.choose_path(models, [*test.queries, *documents])
    base = encoding.ModelEncoder(models[0], encoding.fingerprint(origin), path)
    before = scoring.score_side(test, documents, base, on_progress=Pace("texts encoded", say))
    tuned: list[scoring.SideScores] = []
    exposures = []
    for part, folder in zip(parts, folders, strict=True):
        encoder = encoding.ModelEncoder.open(folder, path)
        tuned.append(scoring.score_side(part.test, documents, encoder, on_progress=Pace("texts encoded", say)))
        nearest = nearest_training_query(part.test.queries, part.train["query"].to_pylist())
        new = scoring.new_documents(part.test, part.trained_documents)
        exposures.append(scoring.Exposure(nearest, near_duplicates(nearest), new))
    exposure = scoring.Exposure(
        *(
            np.concatenate([getattr(one, part) for one in exposures])
            for part in ("similarity", "near_duplicate", "new_document")
        )
    )
    serving = scoring.check_saved(
        folders[0],
        tuned[0].sample,
        scoring.describe(folders[0]),
        baseline=origin,
        max_slowdown=gate.max_serving_slowdown,
        path=path,
    )
    first = encoding.ModelEncoder(models[1], encoding.fingerprint(folders[0]), path)
    sides = {scoring.CANDIDATE: first, scoring.PRODUCTION: base}
    results = guards.try_out(guarded, sides, parts[0].train["query"].to_pylist(), gate)
    pooled = replace(
        tuned[0],
        per_query={name: np.concatenate([side.per_query[name] for side in tuned]) for name in tuned[0].per_query},
    )
    table = scoring.per_query_table(test, {scoring.PRODUCTION: before, scoring.CANDIDATE: pooled}, exposure)
    prints = "+".join(encoding.fingerprint(folder) for folder in folders)
    return (
        scoring.read_side(table, scoring.PRODUCTION, base.fingerprint),
        scoring.read_side(table, scoring.CANDIDATE, prints),
        results,
        [*serving, *guards.vetoes(results)],
    )
