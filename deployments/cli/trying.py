"""Commands for one's own data, before anything is set up: pairs from exports, a first comparison, settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.cli.common import CliError, SetOption, UsageError, console, parameters, say
from deployments.cli.reading import describe
from deployments.terminal.text import escape

if TYPE_CHECKING:
    from tasks.parsing.exports import Converted


def try_pairs(
    path: Annotated[Path, typer.Argument(help="A file of labelled pairs, or a folder of such files.")],
    corpus: Annotated[
        Path | None, typer.Option(help="Additional documents to search: a file or folder of rows with a text.")
    ] = None,
    guard: Annotated[
        list[Path] | None,
        typer.Option(help="Folder in BEIR layout on which the model must not get worse; may be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to keep the fine-tuned model in; must not exist.")] = None,
    settings: SetOption = None,
) -> None:
    """Find out whether fine-tuning on your pairs helps: Recall@10 before and after, without any server."""
    from deployments.terminal import show
    from tasks import trial
    from tasks.config import Checks, Gate, Limits, Training
    from tasks.encoding import ModelError
    from tasks.scoring import guards
    from tasks.scoring.serving import MachineError
    from tasks.training import TrainingError

    given = parameters(settings or [])
    for needed in (path, corpus, *(guard or ())):
        if needed is not None and not needed.exists():
            raise UsageError(f"there is no file or folder {needed}")
    if out is not None and out.exists():
        raise UsageError(f"{out} already exists: name a new directory")
    try:
        guarded = [guards.read_folder(folder, Limits()) for folder in guard or ()]
        labels = trial.read(path, corpus)
        for understood in labels.understood:
            if understood.ignored or understood.notes or understood.irrelevant:
                for line in describe(understood):
                    console.print(f"{escape(understood.object.partition('/')[2])}: {escape(line)}")
        if labels.rejected:
            console.print(f"{len(labels.rejected):,} rows were rejected:")
            show.to(console, show.rejected(labels.rejected))
            console.print()
        found = trial.compare(
            labels,
            given.get("training", Training()),
            given.get("gate", Gate()),
            given.get("checks", Checks()),
            out=out,
            guarded=guarded,
            on_step=say,
        )
    except (trial.TrialError, guards.GuardError, TrainingError, ModelError, MachineError) as error:
        raise CliError(str(error)) from error
    show.to(console, show.trial(found))
    if out is not None:
        console.print(f"Model      {escape(str(out))}: SentenceTransformer({str(out)!r})")


def init(
    file: Annotated[Path, typer.Argument(help="File to write; must not exist.")] = Path("ratchet.toml"),
) -> None:
    """Write a commented ratchet.toml with every setting of `ratchet deploy`."""
    from deployments.server import settings_file as settings

    try:
        settings.write(file)
    except FileExistsError:
        raise UsageError(f"{file} already exists and is not overwritten: name another file, or edit this one") from None
    except OSError as error:
        raise CliError(f"{file} cannot be written: {error.strerror}") from error
    console.print(f"wrote {escape(str(file))}; next: edit it, then `ratchet deploy --dry-run`")


def convert(  # noqa: PLR0913 - each is an option of the command
    export: Annotated[
        Path,
        typer.Argument(
            help="Export of Label Studio (JSON) or Argilla (records.to_json), the judged to_judge.jsonl of a run, "
            "a folder in BEIR layout, or one qrels/NAME.tsv of it; or a folder with ubi_queries and ubi_events."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Pairs as JSON lines, for `ratchet try` or pairs/; must not exist.")],
    query: Annotated[str, typer.Option(help="Name of the query's field.")] = "query",
    document: Annotated[str, typer.Option(help="Name of the document's field.")] = "document",
    question: Annotated[
        str | None,
        typer.Option(help="Name of the question that was answered. Default: the only one.", show_default=False),
    ] = None,
    relevant: Annotated[
        list[str] | None,
        typer.Option(
            help="Answer that means: this document answers this query; may be repeated. "
            "For clicks: action_name of a click. [default: click, click_through]",
            show_default=False,
        ),
    ] = None,
    not_relevant: Annotated[
        list[str] | None, typer.Option(help="Answer that means: it does not; may be repeated.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Answer that says neither; may be repeated.")] = None,
    documents: Annotated[
        Path | None, typer.Option(help="For clicks: the documents' `id` and `text`, as JSON lines or Parquet.")
    ] = None,
    min_impressions: Annotated[
        int, typer.Option(min=1, help="For clicks: times that a document must have been shown for a query.")
    ] = 10,
) -> None:
    """Make pairs of an export of Label Studio or Argilla, judged lines, a folder in BEIR layout, or clicks (UBI)."""
    from tasks.parsing import beir, exports, ubi_files

    answers = (tuple(relevant or ()), tuple(not_relevant or ()), tuple(skip or ()))
    try:
        if export.is_dir() and ubi_files.find(export, "ubi_"):
            body, said = _clicks(export, documents, min_impressions, answers[0], out)
        elif export.is_dir() or export.suffix == ".tsv":
            pairs = list(beir.convert_folder(export))
            body, said = b"".join(pairs), [f"{len(pairs):,} pairs in {out}"]
        else:
            found = exports.convert(export.read_bytes(), exports.Fields(query, document, question, *answers))
            body, said = found.body, list(_said(found, out))
        with out.open("xb") as file:
            file.write(body)
    except exports.ConvertError as error:
        raise CliError(f"{export}: {error}") from error
    except FileExistsError:
        raise UsageError(f"{out} already exists and is not overwritten: name another file") from None
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    for line in said:
        console.print(escape(line))


def _clicks(
    folder: Path, documents: Path | None, least: int, clicks: tuple[str, ...], out: Path
) -> tuple[bytes, list[str]]:
    """Pairs of an export of User Behavior Insights, and what is said of them."""
    from tasks.parsing import ubi, ubi_files

    if documents is None:
        raise UsageError("clicks name documents by their id: say with --documents where their texts are")
    parts = {part: ubi_files.find(folder, part) for part in ("ubi_queries", "ubi_events")}
    for part, paths in parts.items():
        if not paths:
            raise UsageError(f"{folder} has no file whose name begins with {part}")
    queries, events = map(ubi_files.read, parts.values())
    found = ubi.convert(queries, events, ubi_files.texts(documents), least, clicks or ubi.CLICKS)
    rates = ", ".join(f"{rate:.1%} at {place}" for place, rate in list(found.rates.items())[:10])
    said = [
        f"{found.pairs:,} pairs in {out}, for training only (train_only); {found.negatives:,} negatives",
        f"{found.impressions:,} impressions and {found.clicks:,} clicks of {found.queries:,} queries; clicks: {rates}",
        f"{found.too_seldom:,} documents were shown too seldom, {found.without_text:,} have no text",
    ]
    if found.from_hits:
        said.append(f"{found.from_hits:,} searches have no impressions: what they found counts as shown")
    return found.body, [*said, *ubi.reasons(found.left_out)]


def _said(found: Converted, out: Path) -> Iterator[str]:
    yield (
        f"{found.pairs:,} pairs of {found.queries:,} queries in {out}, from {found.judged:,} judged documents; "
        f"{found.undecided:,} without a majority, {found.alone:,} queries without a relevant document"
    )
    yield "answers: " + "; ".join(f"{answer} is {meaning}" for answer, meaning in found.answers.items())
    if found.left_out:
        yield f"{len(found.left_out):,} left out:"
        yield from (f"  {reason}" for reason in found.left_out[:20])
