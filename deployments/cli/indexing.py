"""Commands on the index: let it follow what serves."""

from __future__ import annotations

from typing import Annotated

import typer

from deployments.cli.common import StateOption, StoreOption, connect, console
from deployments.terminal.text import escape

TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="lancedb:FOLDER or postgresql://user@host/database. Default: LanceDB in RATCHET_WORK.",
        show_default=False,
    ),
]


def reindex(
    target: TargetOption = None,
    store: StoreOption = None,
    state: StateOption = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Actors of Ray that encode; 0: this process alone. Default: by GPUs and cores."),
    ] = None,
    min_recall: Annotated[
        float, typer.Option(min=0, max=1, help="Least share of the 10 nearest documents that the index must find.")
    ] = 0.95,
    drop_previous: Annotated[
        bool, typer.Option("--drop-previous", help="Delete the index that served before too: after `ratchet forget`.")
    ] = False,
    base_model: Annotated[
        str | None,
        typer.Option(help="Model that serves before a promotion. Default: what the last night started from."),
    ] = None,
) -> None:
    """Build the index with the model in production beside the one that serves, verify it, and switch."""
    opened = connect(state, store)
    from deployments.server.temporary import private_server
    from flows.reindex import reindex as flow

    with private_server():
        found = flow(
            store=opened.url,
            target=target,
            workers=workers,
            min_recall=min_recall,
            drop_previous=drop_previous,
            base_model=base_model,
        )
    serves = "the base model" if found.model == "base" else f"version {found.model}"
    console.print(f"index {found.index} serves {escape(serves)}: {found.documents:,} documents")
    console.print(
        f"{found.encoded:,} texts encoded, {found.loaded:,} shards loaded, recall {found.recall:.1%} of exact search"
    )
    if found.rejected:
        console.print(f"{found.rejected:,} rows are not documents and were left out, such as")
        for line in found.rejections[:3]:
            console.print(f"  {escape(line)}")
    if found.left_out:
        console.print(f"not taken as metadata: {escape(found.left_out)}")
