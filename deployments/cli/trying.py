"""Commands for one's own data, before anything is set up: pairs from exports, a first comparison, settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deployments.cli.common import CliError, SetOption, UsageError, console, hush, parameters, say
from deployments.terminal.text import escape


def try_pairs(
    path: Annotated[Path, typer.Argument(help="A file of labelled pairs, or a folder of such files.")],
    corpus: Annotated[
        Path | None, typer.Option(help="Further documents to search: a file or folder of rows with a text.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to keep the fine-tuned model in; must not exist.")] = None,
    settings: SetOption = None,
) -> None:
    """Say whether fine-tuning on a file of pairs would help: Recall@10 before and after, without any server."""
    hush()
    from deployments.terminal import show
    from tasks import trial
    from tasks.config import Checks, Gate, Training
    from tasks.encoding import ModelError
    from tasks.training import TrainingError

    given = parameters(settings or [])
    for needed in (path, corpus):
        if needed is not None and not needed.exists():
            raise UsageError(f"there is no file or folder {needed}")
    if out is not None and out.exists():
        raise UsageError(f"{out} already exists: name a new directory")
    try:
        labels = trial.read(path, corpus)
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
            on_step=say,
        )
    except (trial.TrialError, TrainingError, ModelError) as error:
        raise CliError(str(error)) from error
    show.to(console, show.trial(found))
    if out is not None:
        console.print(f"Model      {escape(str(out))}: SentenceTransformer({str(out)!r})")


def init(
    file: Annotated[Path, typer.Argument(help="Where to; must not exist.")] = Path("ratchet.toml"),
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
    export: Annotated[Path, typer.Argument(help="Export of Label Studio (JSON) or Argilla (records.to_json).")],
    out: Annotated[Path, typer.Argument(help="Pairs as JSON lines, for `ratchet try` or pairs/; must not exist.")],
    query: Annotated[str, typer.Option(help="Name of the query's field.")] = "query",
    document: Annotated[str, typer.Option(help="Name of the document's field.")] = "document",
    question: Annotated[
        str | None, typer.Option(help="Name of the question that was answered. Default: any.", show_default=False)
    ] = None,
    relevant: Annotated[str, typer.Option(help="Answer that means: this document answers this query.")] = "relevant",
) -> None:
    """Turn an export of Label Studio or Argilla into pairs."""
    from tasks.parsing import exports

    try:
        found = exports.convert(export.read_bytes(), exports.Fields(query, document, question, relevant))
        with out.open("xb") as file:
            file.write(found.body)
    except exports.ConvertError as error:
        raise CliError(f"{export}: {error}") from error
    except FileExistsError:
        raise UsageError(f"{out} already exists and is not overwritten: name another file") from None
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    console.print(
        f"{found.pairs:,} pairs of {found.queries:,} queries in {escape(str(out))}, from {found.judged:,} judged "
        f"documents; {found.undecided:,} without a majority, {found.alone:,} queries without a relevant document"
    )
