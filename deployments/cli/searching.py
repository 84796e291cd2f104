"""The command that asks the index."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.cli.common import CliError, StateOption, StoreOption, UsageError, connect, console, say, state_folder
from deployments.cli.indexing import TargetOption
from deployments.cli.stack import DEMO
from deployments.stack import local
from deployments.terminal.text import escape

if TYPE_CHECKING:
    from tasks.storage import Store


def search(
    question: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="How many documents to show.")] = 5,
    target: TargetOption = None,
    store: StoreOption = None,
    state: StateOption = None,
) -> None:
    """Compare what production finds with what the model before it finds, side by side.

    Without a store it asks the main store of the local stack, or the demo's where nothing serves there; a stack that
    does not run is started as far as the search needs it.
    """
    if not question.strip() or any("\ud800" <= char <= "\udfff" for char in question):
        raise UsageError("ask a question: it is empty, or not UTF-8")
    from deployments.terminal import hits
    from flows.context import work_folder
    from tasks.index import open_target
    from tasks.index.comparison import compare

    with _opened(state, store) as opened:
        work = work_folder()
        found_in = open_target(target, store=opened.url, work=work)
        with contextlib.closing(found_in), _with_store(opened):
            found = compare(opened, found_in, question, k, work, say)
    console.print(f"[dim]{escape(opened.url)}, {escape(found_in.address)}[/]\n")
    console.print(hits.comparison(found))
    for note in hits.notes(found):
        console.print(note)


@contextlib.contextmanager
def _with_store(store: Store) -> Iterator[None]:
    """Where there is no index yet, say how to make one for this store."""
    from tasks.index.targets import NoIndexError

    try:
        yield
    except NoIndexError as error:
        raise CliError(
            f"{store.url} has no index yet: run `ratchet reindex --store {store.url}`, with the same --target"
        ) from error


@contextlib.contextmanager
def _opened(state: Path | None, store: str | None) -> Iterator[Store]:
    """The store that is meant; where it is that of a local stack that does not run, with its S3 server meanwhile."""
    folder = state_folder(state)
    on_stack = store is None and not os.environ.get("RATCHET_STORE")
    with contextlib.ExitStack() as stack:
        if on_stack and local.find(folder) is None and local.has_store(folder):
            stack.enter_context(local.store_alone(folder))
            yield _of_stack()
        else:
            opened = connect(state, store)
            yield _of_stack() if on_stack else opened


def _of_stack() -> Store:
    """The main store of the local stack, or the demo's where nothing serves in the main one."""
    from tasks.registry import read_production
    from tasks.storage import Store

    main, demo = (Store.open(local.store_url(name)) for name in ("main", DEMO))
    return demo if read_production(main) is None and read_production(demo) is not None else main
