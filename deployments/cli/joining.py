"""The command of a further machine that helps to train."""

from __future__ import annotations

from typing import Annotated

import typer

from deployments.cli.common import CliError, StateOption, StoreOption, UsageError, connect, console, say


def join(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="The night's run; its folder in the store.")],
    store: StoreOption = None,
    state: StateOption = None,
    minutes: Annotated[float, typer.Option(min=0.0, help="How long to wait for the run to begin training.")] = 60.0,
) -> None:
    """Help to train a run with training.nodes above 1, as one of its machines; needs RATCHET_RENDEZVOUS (host:port).

    Ends when the training has: the candidate is in the store, published by whichever machine led.
    """
    import os

    from flows.context import work_folder
    from tasks import night
    from tasks.training import TrainingError

    if not os.environ.get("RATCHET_RENDEZVOUS"):
        raise UsageError("RATCHET_RENDEZVOUS is not set: use the host:port of the run's other machines")
    say(f"waiting for run {run_id} to begin training")
    try:
        candidate = night.join(connect(state, store), run_id, work_folder(), seconds=60 * minutes)
    except (TrainingError, TimeoutError) as error:
        raise CliError(str(error)) from error
    console.print(f"candidate {candidate.version}: {candidate.steps} steps")
