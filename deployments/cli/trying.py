"""Commands for one's own data, before anything is set up: pairs from exports, a first comparison, settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.cli.common import CliError, SetOption, UsageError, console, hush, parameters, say
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
    """Say whether fine-tuning on a file of pairs would help: Recall@10 before and after, without any server."""
    hush()
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
    """Write a commented ratchet.toml with every setting of `ratchet deploy`, to be filled in."""
    from deployments.server import settings_file as settings

    try:
        settings.write(file)
    except FileExistsError:
        raise UsageError(f"{file} already exists and is not overwritten: name another file, or edit this one") from None
    except OSError as error:
        raise CliError(f"{file} cannot be written: {error.strerror}") from error
    console.print(f"wrote {escape(str(file))}; next: edit it, then `ratchet deploy --dry-run`")


def convert(
    export: Annotated[
        Path,
        typer.Argument(
            help="Export of Label Studio (JSON) or Argilla (records.to_json), the judged to_judge.jsonl of a run, "
            "or a folder in BEIR layout, or one qrels/NAME.tsv of it."
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
        list[str] | None, typer.Option(help="Answer that means: this document answers this query; may be repeated.")
    ] = None,
    not_relevant: Annotated[
        list[str] | None, typer.Option(help="Answer that means: it does not; may be repeated.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Answer that says neither; may be repeated.")] = None,
) -> None:
    """Turn an export of Label Studio or Argilla, judged lines, or a folder in BEIR layout into pairs."""
    from tasks.parsing import beir, exports

    answers = (tuple(relevant or ()), tuple(not_relevant or ()), tuple(skip or ()))
    try:
        if export.is_dir() or export.suffix == ".tsv":
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


def _said(found: Converted, out: Path) -> Iterator[str]:
    yield (
        f"{found.pairs:,} pairs of {found.queries:,} queries in {out}, from {found.judged:,} judged documents; "
        f"{found.undecided:,} without a majority, {found.alone:,} queries without a relevant document"
    )
    yield "answers: " + "; ".join(f"{answer} is {meaning}" for answer, meaning in found.answers.items())
    if found.left_out:
        yield f"{len(found.left_out):,} left out:"
        yield from (f"  {reason}" for reason in found.left_out[:20])
