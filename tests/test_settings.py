"""The settings of a deployment: what a file may say, and what it says back when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from deployments.places import DEPLOYMENTS
from deployments.server import deploy
from deployments.server.settings import Settings, SettingsError, load
from tasks.config import Gate


def _load(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "ratchet.toml"
    file.write_text(text)
    return load(file)


def test_an_empty_file_is_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is no file at all, unless one was named."""
    assert _load(tmp_path, "") == Settings()
    monkeypatch.chdir(tmp_path / "..")
    assert load() == Settings()
    with pytest.raises(SettingsError, match=r"none\.toml does not exist"):
        load(tmp_path / "none.toml")


def test_every_section_is_read(tmp_path: Path) -> None:
    """Each of the sections with one value that is not its default."""
    settings = _load(
        tmp_path,
        """
        store.url = "s3://bucket/search"
        schedule = {cron = "0 4 * * 1-5", timezone = "Europe/Berlin"}
        alerts.late_minutes = 45
        index = {target = "postgresql://ratchet@db/search#team.documents", secret_env = "INDEX_PASSWORD"}
        watch.max_nights = 7
        [channels.on-call]
        kind = "pagerduty"
        secret_env = "PAGERDUTY_KEY"
        only = ["failed", "late"]
        """,
    )
    assert settings.store.url == "s3://bucket/search"
    assert (settings.schedule.cron, settings.schedule.timezone) == ("0 4 * * 1-5", "Europe/Berlin")
    assert (settings.alerts.late_minutes, settings.watch.max_nights) == (45, 7)
    assert settings.index.target == "postgresql://ratchet@db/search#team.documents"
    channel = settings.channels["on-call"]
    assert (channel.gets("failed"), channel.gets("regressed")) == (True, False)


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        ("store.url = 'https://x'", "store.url", "a store is named s3://bucket/prefix"),
        ("schedule.cron = '30 25 * * *'", "schedule.cron", "not a cron expression"),
        ("schedule.cron = '0 30 3 * * *'", "schedule.cron", "cron"),
        ("schedule.timezone = 'Mars'", "schedule.timezone", "IANA"),
        ("alerts.heartbeat_minutes = 2", "alerts.heartbeat_minutes", "greater than or equal to 9"),
        ("alert.late_minutes = 2", "alert", "not permitted"),
        ("watch.windows = 1", "watch", "windows_below (2) is above windows (1)"),
        ("[channels.'On Call']\nkind = 'slack'\nsecret_env = 'X'", "channels", "not a valid channel name"),
        ("[channels.ops]\nkind = 'fax'\nsecret_env = 'X'", "channels.ops.kind", "'slack', 'teams'"),
        ("[channels.ops]\nkind = 'slack'\nsecret_env = 'https://a/b'", "ops.secret_env", "never the secret itself"),
        ("[schedule]\ncrn = '* * * * *'", "schedule.crn", "`ratchet init` writes"),
        ("[channels.ops]\nkind = 'email'\nsecret_env = 'X'", "channels.ops", "needs `sender` and `recipients`"),
        ("[channels.ops]\nkind = 'slack'\nsecret_env = 'X'\nsender = 'a@b.c'", "channels.ops", "kind email and smtp"),
        ("[channels.ops]\nkind = 'slack'\nsecret_env = 'X'\nonly = ['all']", "channels.ops.only.0", "'regressed'"),
        ("index.target = 'mysql://u@h/d'", "index.target", "a target is lancedb:FOLDER or postgresql://"),
        ("index.target = 'postgresql://u@h/d#documents'", "index.target", "write schema.view"),
        ("= 3", "not TOML", "line 1"),
    ],
)
def test_a_mistake_names_file_key_and_reason(tmp_path: Path, text: str, key: str, reason: str) -> None:
    """One line that says where to look and what is wrong."""
    with pytest.raises(SettingsError) as raised:
        _load(tmp_path, text)
    message = str(raised.value)
    assert str(tmp_path / "ratchet.toml") in message
    assert key in message
    assert reason in message


def test_a_secret_in_the_file_is_refused_and_never_repeated(tmp_path: Path) -> None:
    """An address where the name of its variable belongs: the message does not spread it further."""
    secret = "https://hooks.slack.com/services/T0/B0/hunter2"
    with pytest.raises(SettingsError) as raised:
        _load(tmp_path, f"[channels.ops]\nkind = 'slack'\nsecret_env = '{secret}'")
    assert "channels.ops.secret_env" in str(raised.value)
    assert "hunter2" not in str(raised.value)
    with pytest.raises(SettingsError, match=r"index.target: the address of the target holds a password") as raised:
        _load(tmp_path, "index.target = 'postgresql://ratchet:hunter2@db/search'")
    assert "hunter2" not in str(raised.value)


def test_every_field_is_described() -> None:
    """The descriptions are the comments of the file that `ratchet init` writes."""

    def models(model: type[BaseModel]) -> list[type[BaseModel]]:
        found = [model]
        for field in model.model_fields.values():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                found += models(field.annotation)
        return found

    from deployments.server.settings import Channel

    for model in [*models(Settings), Channel]:
        assert all(field.description for field in model.model_fields.values()), model


def test_the_gate_of_scheduled_nights_is_in_the_file() -> None:
    """What differs from the defaults goes to retrain/nightly alone; without it that has no such parameter."""
    for gate, expected in ((Gate(), None), (Gate(approval_hours=12), {"approval_hours": 12.0})):
        wanted = deploy.read(DEPLOYMENTS, Settings(gate=gate))
        given = {one["entrypoint"]: one["parameters"].get("gate") for one in wanted["deployments"]}
        assert given.pop("flows.retrain.retrain") == expected
        assert set(given.values()) == {None}
