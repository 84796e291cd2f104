"""Runs that people start: what the form shows, what it refuses, what happens to a second run, and cancelling."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.schedules import CronSchedule
from prefect.states import Cancelling
from prefect.utilities.callables import parameter_schema

from deployments.stack import local
from flows.retrain import retrain
from flows.rollback import rollback
from tasks.runs import run_id
from tests.flows.nights import children, final, new_night, processes, trains, wait_for

NUMERIC = {"integer", "number"}
BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}


def _types(field: dict[str, Any]) -> list[dict[str, Any]]:
    """What a field may be, null left out."""
    return [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]


def _groups() -> list[tuple[str, dict[str, Any]]]:
    schema = parameter_schema(retrain).model_dump()
    return [("retrain", schema["properties"]), *((n, d["properties"]) for n, d in schema["definitions"].items())]


@pytest.mark.parametrize(("group", "fields"), _groups(), ids=[name for name, _ in _groups()])
def test_every_field_of_the_form_says_what_it_is(group: str, fields: dict[str, dict[str, Any]]) -> None:
    """A description, a place and a default each; numbers have bounds, places are counted from 0 without a gap."""
    assert sorted(field["position"] for field in fields.values()) == list(range(len(fields)))
    definitions = parameter_schema(retrain).model_dump()["definitions"]
    for name, field in fields.items():
        referred = definitions.get(field.get("$ref", "").rpartition("/")[2], {})
        described = field.get("description") or referred.get("description")
        assert described, f"{group}.{name}"
        assert described.endswith("."), f"{group}.{name}: {described}"
        assert "default" in field, f"{group}.{name}"
        for kind in _types(field):
            if kind.get("type") in NUMERIC:
                assert BOUNDS & set(kind), f"{group}.{name} has no bounds"
                for bound in BOUNDS & set(kind):  # said in words as well: the form shows none
                    assert f"{kind[bound]:,}".removesuffix(".0") in field["description"], f"{group}.{name}"


def test_the_form_begins_with_the_reason_and_shows_the_groups_in_order() -> None:
    """The reason is one field, and the first; four groups are models, each a card with its own description."""
    fields = parameter_schema(retrain).model_dump()["properties"]
    groups = ["training", "gate", "checks", "limits"]
    assert list(fields) == ["reason", "force", "store", "fine_tune_deployment", *groups]
    assert [name for name, field in fields.items() if "$ref" in field] == groups
    assert (fields["reason"]["minLength"], fields["reason"]["default"]) == (1, "manual")
    assert parameter_schema(rollback).model_dump()["properties"]["reason"]["minLength"] == 1


# --- on the stack ------------------------------------------------------------------------------------------------


@pytest.fixture
def client(on_stack: local.Stack) -> Iterator[SyncPrefectClient]:
    """A client of the stack's server."""
    with get_client(sync_client=True) as client:
        yield client


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"training": {"epochs": 0}}, "0 is less than the minimum of 1"),
    ({"training": {"learning_rate": 1.0}}, "1.0 is greater than the maximum of 0.1"),
    ({"training": {"loss": "hope"}}, "'hope' is not one of"),
    ({"gate": {"confidence": 0.5}}, "0.5 is less than or equal to the minimum of 0.5"),
    ({"checks": {"min_pairs": "many"}}, "'many' is not of type 'integer'"),
    ({"training": {"epoch": 1}}, "'epoch' was unexpected"),
    ({"force": "perhaps"}, "'perhaps' is not of type 'boolean'"),
    ({"reason": ""}, "'' "),
]


@pytest.mark.stack
@pytest.mark.parametrize(("parameters", "words"), WRONG, ids=[str(wrong) for wrong, _ in WRONG])
def test_the_api_refuses_a_wrong_value(client: SyncPrefectClient, parameters: dict[str, Any], words: str) -> None:
    """409 with the reason, and no run is made of it."""
    nightly = client.read_deployment_by_name("retrain/nightly")
    with pytest.raises(httpx.HTTPStatusError) as refused:
        client.create_flow_run_from_deployment(nightly.id, parameters=parameters)
    assert refused.value.response.status_code == 409
    assert words in refused.value.response.json()["detail"]


CHANGES = [
    # zone, first day looked at, hours (UTC) at which 03:30 there begins on the five days from it
    ("Europe/Berlin", datetime(2027, 3, 26, tzinfo=UTC), ["02:30", "02:30", "01:30", "01:30", "01:30"]),
    ("Europe/Berlin", datetime(2026, 10, 23, tzinfo=UTC), ["01:30", "01:30", "02:30", "02:30", "02:30"]),
    ("America/New_York", datetime(2027, 3, 12, tzinfo=UTC), ["08:30", "08:30", "07:30", "07:30", "07:30"]),
    ("UTC", datetime(2027, 3, 26, tzinfo=UTC), ["03:30"] * 5),
]


@pytest.mark.stack
@pytest.mark.parametrize(("zone", "first", "hours"), CHANGES, ids=[f"{z} {d:%Y-%m}" for z, d, _ in CHANGES])
def test_one_night_a_day_where_clocks_change(
    client: SyncPrefectClient, zone: str, first: datetime, hours: list[str]
) -> None:
    """The server plans one run a day at 03:30 local time on both sides of a change, and no two share a run id."""
    flow = client.create_flow_from_name(f"dst-{uuid.uuid4().hex[:8]}")
    deployment = client.create_deployment(
        flow_id=flow,
        name="nightly",
        schedules=[{"schedule": CronSchedule(cron="30 3 * * *", timezone=zone), "active": True}],  # type: ignore[list-item]
    )
    try:
        window = {"start_time": first.isoformat(), "end_time": (first + timedelta(days=5)).isoformat(), "min_runs": 6}
        client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment}, json=window)
        found = client.request(
            "POST",
            "/flow_runs/filter",
            json={"deployments": {"id": {"any_": [str(deployment)]}}, "sort": "EXPECTED_START_TIME_ASC"},
        ).json()
    finally:
        client.request("DELETE", "/deployments/{id}", path_params={"id": deployment})
    runs = [(datetime.fromisoformat(run["expected_start_time"]), run["id"]) for run in found]
    runs = [(at, identity) for at, identity in runs if first <= at < first + timedelta(days=5)]
    assert [f"{at.astimezone(UTC):%H:%M}" for at, _ in runs] == hours
    assert {f"{at.astimezone(ZoneInfo(zone)):%H:%M}" for at, _ in runs} == {"03:30"}
    ids = [run_id(at, identity) for at, identity in runs]
    assert len(set(ids)) == 5
    assert ids == sorted(ids), "a later night has a later id, whatever the clocks on the wall say"


def test_the_hour_that_comes_twice_gives_two_ids() -> None:
    """02:30 on 25 October 2026 in Berlin, first in summer and then in winter time: an hour apart, in order."""
    berlin = ZoneInfo("Europe/Berlin")
    summer = datetime(2026, 10, 25, 2, 30, tzinfo=berlin)
    winter = summer.replace(fold=1)
    same = "0" * 32
    assert run_id(summer, same) == "20261025T003000Z-00000000"
    assert run_id(winter, same) == "20261025T013000Z-00000000"


@pytest.mark.stack
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cancelling_a_night_stops_its_training(on_stack: local.Stack, client: SyncPrefectClient) -> None:
    """A second night is refused; cancelled, the training is gone within a minute, and the next night promotes."""
    night = new_night(on_stack)
    run = night.start(reason="to be cancelled")
    child = trains(client, run)
    second = night.start(reason="too soon")
    assert final(client, second) == "Cancelled"
    assert children(client, second) == []
    assert client.read_flow_run(run).state_name == "Running", "the first goes on"
    client.set_flow_run_state(run, Cancelling(message="cancelled by a person"))  # what the button in the UI does
    wait_for("the end of the child's process", lambda: not processes(on_stack, child.id), 60)
    assert final(client, run) == "Cancelled"
    assert final(client, child.id) == "Cancelled"
    night.assert_sound(promotions=0)
    following = night.start(reason="once more")
    assert final(client, following) == "Completed"
    night.assert_promoted(following)
    serving = night.store.get("production.json").body
    again = night.start(reason="cancelled beside production", force=True)
    child = trains(client, again)
    client.set_flow_run_state(again, Cancelling(message="cancelled by a person"))
    wait_for("the end of the child's process", lambda: not processes(on_stack, child.id), 60)
    assert night.store.get("production.json").body == serving
    night.assert_sound(promotions=1)
