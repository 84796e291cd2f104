"""A whole night as in production: PostgreSQL behind the Prefect server, a password before API and UI."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from rich.console import Console

from deployments.stack import guard, local
from deployments.terminal import follow
from tasks.storage import Store
from tests import postgres
from tests.flows.conftest import client_of
from tests.flows.nights import FAST, fill

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]


def _ask(database: postgres.Postgres, question: str) -> list[Any]:
    """Rows of the server's own database."""

    async def ask() -> list[Any]:
        connection = await asyncpg.connect(database.dsn())
        try:
            return list(await connection.fetch(question))
        finally:
            await connection.close()

    return asyncio.run(ask())


def _nights(database: postgres.Postgres) -> list[tuple[str, str]]:
    """Flow and state of every run of a night; what watches production by the hour may have run as well."""
    rows = _ask(
        database,
        "select flow.name, state_type::text from flow_run join flow on flow.id = flow_run.flow_id "
        "where flow.name in ('retrain', 'fine-tune') and state_type::text != 'SCHEDULED' order by 1",
    )
    return [(name, state) for name, state in rows]


def test_a_night_with_postgresql_and_a_password(tmp_path: Path) -> None:
    """The night promotes, its runs are rows of PostgreSQL, strangers read nothing, and a restart loses nothing."""
    state = tmp_path / "state"
    with postgres.running() as database:
        with local.running(state, database=database.url) as stack, client_of(stack):
            store = Store.open(stack.store("night"))
            fill(store)
            parameters = {
                "store": store.url,
                "training": FAST.model_dump(mode="json"),
                "fine_tune_deployment": "fine-tune/gpu",
                "reason": "on PostgreSQL",
            }
            outcome = follow.night(Console(), store, "retrain/nightly", parameters)
            assert outcome.verdict == "promoted", outcome.reasons
            assert json.loads(store.get("production.json").body)["version"] == outcome.production_after

            _asks_for_the_password(stack)
            _tells_no_secret(stack, database)
        assert _nights(database) == [("fine-tune", "COMPLETED"), ("retrain", "COMPLETED")]
        assert not (state / "prefect" / "prefect.db").exists()

        with local.running(state, database=database.url) as again, client_of(again):
            assert _nights(database) == [("fine-tune", "COMPLETED"), ("retrain", "COMPLETED")]
            assert follow.night(Console(), store, "retrain/nightly", parameters).verdict == "skipped"


def _asks_for_the_password(stack: local.Stack) -> None:
    """Every part of the server that shows or changes anything: the API, its documents, the settings of the UI."""
    origin = "{0.scheme}://{0.netloc}".format(urlsplit(stack.api_url))
    with httpx.Client(trust_env=False) as stranger:
        for method, path in (
            ("POST", "/api/flow_runs/filter"),
            ("POST", "/api/block_documents/filter"),
            ("GET", "/api/admin/settings"),
            ("DELETE", "/api/work_pools/gpu"),
        ):
            reply = stranger.request(method, origin + path)
            assert reply.status_code == 401, (path, reply.status_code)
        user, _, password = stack.environment()["PREFECT_API_AUTH_STRING"].partition(":")
        assert stranger.get(origin + "/api/admin/version", auth=(user, password)).status_code == 200


def _tells_no_secret(stack: local.Stack, database: postgres.Postgres) -> None:
    """The database's password is known to the server alone: no log, argument, worker or reply of the API has it."""
    texts = [path.read_text(errors="replace") for path in stack.logs().iterdir()]
    for process in guard.marked(stack.mark):
        texts.append(" ".join(process.cmdline()))
        if process.pid == stack.services["worker-gpu"]:
            texts.append(str(process.environ()))
    user, _, password = stack.environment()["PREFECT_API_AUTH_STRING"].partition(":")
    texts.append(httpx.get(f"{stack.api_url}/admin/settings", auth=(user, password), trust_env=False).text)
    assert not any(database.password in text for text in texts)
