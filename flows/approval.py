"""Waiting for a person: a flow run of its own that is paused, with a form in the UI, until there is an answer.

It is a run of its own since a pause gives up the place that a night holds among the runs of its deployment, and
Prefect 3.8.8 ends a run that has lost its place. The answer that counts is the one in the store (`tasks.approval`), so
the wait looks there as well: it ends by `ratchet approve`, and while the Prefect API is away. Prefect's own
`pause_flow_run` would do neither.
"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final, Literal, cast
from uuid import UUID, uuid4

import httpx
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort
from prefect.input import RunInput
from prefect.input.run_input import Keyset, keyset_from_paused_state
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Paused, Running
from prefect.utilities.engine import propose_state_sync
from pydantic import Field, ValidationError

from tasks import approval, steps
from tasks.config import Approval
from tasks.records import Question
from tasks.registry import store_time
from tasks.storage import Store, StoreError

_POLL_SECONDS: Final = 5.0
_AFTER: Final = timedelta(hours=1)
"""How much longer Prefect would wait than this does: so the night ends here, not by Prefect's own time limit."""


class Answer(RunInput):
    """The form."""

    decision: Literal["approve", "reject"] = Field(description="approve: the candidate serves from now on.")
    name: str = Field(
        min_length=1,
        max_length=approval.LONGEST_NAME,
        description="Your name, for the ledger. Nobody checks it: everyone here has the same password.",
    )
    comment: str = Field("", max_length=approval.LONGEST_COMMENT, description="Why; for ledger and report.")


@flow(name="approval", flow_run_name="approve-{run_id}")
def wait_for_approval(store: str, run_id: str, question: Question) -> Approval:
    """Wait until a person approves or rejects the candidate of a night, or the time is over.

    The process of the night waits as well; the GPU pool is free.

    Args:
        store: Where the answer is kept: s3://bucket/prefix.
        run_id: The night's run.
        question: What people are told and asked.

    Returns:
        The content of `runs/<run_id>/approval.json`.
    """
    opened = Store.open(store)
    steps.tell_waiting(store, run_id, question)
    get_run_logger().info("waiting until %s for: ratchet approve %s", question.until, run_id)
    pause = _Pause(question)
    ends = time.monotonic() + (question.until - store_time(opened)).total_seconds()
    while True:
        try:
            found = approval.find(opened, run_id) or _from_form(opened, run_id, pause)
            if found is None and time.monotonic() >= ends:
                found = approval.expire(opened, run_id)
        except StoreError:
            if time.monotonic() >= ends:
                raise
            get_run_logger().warning("the store does not answer; still waiting", exc_info=True)
            found = None
        if found is not None:
            break
        time.sleep(min(_POLL_SECONDS, max(0.0, ends - time.monotonic())))
    pause.end()
    get_run_logger().info("%s", found)
    return found


def _from_form(store: Store, run_id: str, pause: _Pause) -> Approval | None:
    """The answer that the form was sent with, once it is in the store; another one that is there before it counts."""
    given = pause.answer()
    if given is None:
        return None
    decision: Literal["approved", "rejected"] = "approved" if given.decision == "approve" else "rejected"
    try:
        return approval.answer(store, run_id, decision, by=given.name, comment=given.comment)
    except approval.ApprovalError as error:
        get_run_logger().warning("the answer from the form does not count: %s", error)
        pause.again()
        return approval.find(store, run_id)


class _Pause:
    """The question in the Prefect UI; nothing here fails while the API is away."""

    def __init__(self, question: Question) -> None:
        self._form = Answer.with_initial_data(description=question.form)
        self._until = question.until + _AFTER
        self._keyset: Keyset | None = None

    def answer(self) -> Answer | None:
        """The form as it was sent; asks where that has not been done, or what was sent is not an answer."""
        with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
            if self._keyset is None:
                self._keyset = self._ask(client)
                return None
            state = client.read_flow_run(UUID(flow_run.id)).state
            if state is None or not state.is_running():
                return None
            try:
                return cast(Answer, self._form.load(self._keyset))  # its synchronous face is untyped
            except ValidationError:
                get_run_logger().warning("the form came without an answer")
                self.again()
        return None

    def again(self) -> None:
        """Ask anew: what was sent does not count."""
        self._keyset = None

    def end(self) -> None:
        """Let the run go on where the answer came another way."""
        with suppress(httpx.HTTPError, Abort), get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(flow_run.id)).state
            if state is not None and state.is_paused():
                propose_state_sync(client, Running(), flow_run_id=UUID(flow_run.id))

    def _ask(self, client: SyncPrefectClient) -> Keyset:
        """Pause this run under a key of its own, which no earlier attempt has used."""
        seconds = max(1, int((self._until - datetime.now(self._until.tzinfo)).total_seconds()))
        state: State[Any] = Paused(timeout_seconds=seconds, reschedule=False, pause_key=uuid4().hex)
        keyset = keyset_from_paused_state(state)
        state.state_details.run_input_keyset = cast(dict[str, str], keyset)
        self._form.save(keyset)  # before the pause: whoever sees that finds the form
        with suppress(Abort):
            propose_state_sync(client, state, flow_run_id=UUID(flow_run.id))
        return keyset
