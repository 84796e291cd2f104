"""What `ratchet deploy` sets up, read from one TOML file: store, schedules, thresholds of alerts, and their channels.

The file holds no secret: a channel says which environment variable holds its address or key, and that is read
when `ratchet deploy` runs.
"""

from __future__ import annotations

import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal
from zoneinfo import available_timezones

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from tasks.config import Gate, Parameters, Watch

FILE: Final = Path("ratchet.toml")
"""Where the settings are looked for when nobody says where they are: the current folder."""

AlertName = Literal[
    "regressed",
    "blocked",
    "failed",
    "late",
    "missing",
    "stale",
    "gpu-pool",
    "drifted",
    "wrong-promotion",
    "pending",
    "guard",
    "waiting",
    "unpublished",
]
"""The alerts that a channel can be limited to; `deployments.server.automations` says when each is sent."""

_ENVIRONMENT_NAME: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"
_MAIL_ADDRESS: Final = r"^[^\s@,;<>]+@[^\s@,;<>]+$"
_CHANNEL_NAME: Final = r"^[a-z0-9]+(-[a-z0-9]+)*$"


class SettingsError(Exception):
    """The settings cannot be used; the message names the file, the key and the reason."""


class StoreSettings(Parameters):
    """Where the data, the models and the runs are."""

    url: str | None = Field(
        None,
        description="Address of the store, s3://bucket/prefix. Left out: what RATCHET_STORE says where a worker runs.",
    )

    @field_validator("url")
    @classmethod
    def _is_normalised(cls, value: str | None) -> str | None:
        """As events carry it: an automation that named the store otherwise would never fire."""
        from tasks.storage import StoreError, normalise

        try:
            return None if value is None else normalise(value)
        except StoreError as error:
            raise ValueError(str(error)) from error


class Schedule(Parameters):
    """When runs start. A schedule that was paused in the Prefect UI stays paused."""

    cron: str = Field("30 3 * * *", description="When the night starts, as five cron fields.")
    timezone: str = Field(
        "UTC",
        description="Time zone of both schedules, such as Europe/Berlin. Between 01:00 and 03:00 local time many zones "
        "have hours that come twice or never, twice a year: choose another hour there.",
    )
    watch_cron: str = Field("15 * * * *", description="When production is watched, as five cron fields.")

    @field_validator("cron", "watch_cron")
    @classmethod
    def _is_cron(cls, value: str) -> str:
        from cronsim import CronSim, CronSimError  # what Prefect reads schedules with

        try:
            CronSim(value, datetime.now(UTC))
        except CronSimError as error:
            raise ValueError(f"{value!r} is not a cron expression such as '30 3 * * *': {error}") from error
        if len(value.split()) != 5:
            raise ValueError(f"{value!r} must have five fields, such as '30 3 * * *'")
        return value

    @field_validator("timezone")
    @classmethod
    def _is_timezone(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError(f"{value!r} is not an IANA time zone such as Europe/Berlin")
        return value


class Alerts(Parameters):
    """How long to wait before an alert; what counts as drifted or stale is in the section `watch`."""

    late_minutes: float = Field(
        30, description="Minutes after which a night that was due and has not started is late.", ge=0.2, le=1440
    )
    missing_hours: float = Field(
        26,
        description="Hours without any completed night after which one is missing: longer than from night to night.",
        ge=0.003,  # the ten seconds that Prefect asks for
        le=24 * 400,
    )
    heartbeat_minutes: float = Field(
        10,
        description="Minutes without a sign of life after which a running run counts as crashed. Below nine minutes "
        "an outage of the Prefect server would crash healthy runs.",
        ge=9,
        le=1440,
    )
    pending_minutes: float = Field(
        60,
        description="Minutes that a run may take from a worker's pick-up to its start (an image may have to be pulled "
        "first) before it counts as crashed.",
        ge=0.2,
        le=1440,
    )


class Channel(Parameters):
    """Somewhere that alerts are sent to."""

    kind: Literal["slack", "teams", "pagerduty", "email", "smtp", "webhook"] = Field(
        description="slack: an incoming webhook; teams: a Power Automate workflow; pagerduty: Events API v2; email: "
        "by way of SendGrid; smtp: mail by a server of yours; webhook: POST of JSON with subject and body to any "
        "address."
    )
    secret_env: str = Field(
        description="Name of the environment variable that holds the secret: the address of a slack, teams or webhook "
        "channel, the integration key of pagerduty, the API key of SendGrid, the mail server of smtp: "
        "smtps://user:password@host (TLS) or smtp://user:password@host (STARTTLS). Never the secret itself.",
        pattern=_ENVIRONMENT_NAME,
    )
    only: tuple[AlertName, ...] = Field((), description="Alerts that this channel gets. Empty: all of them.")
    sender: str | None = Field(
        None, description="email and smtp only: the address that mails come from.", pattern=_MAIL_ADDRESS
    )
    recipients: tuple[Annotated[str, Field(pattern=_MAIL_ADDRESS)], ...] = Field(
        (), description="email and smtp only: the addresses that mails go to."
    )

    @model_validator(mode="after")
    def _mails_have_addresses(self) -> Channel:
        mails = self.kind in {"email", "smtp"}
        if mails and not (self.sender and self.recipients):
            raise ValueError(f"a channel of kind {self.kind} needs `sender` and `recipients`")
        if not mails and (self.sender or self.recipients):
            raise ValueError(f"`sender` and `recipients` are for channels of kind email and smtp, not {self.kind}")
        return self

    def gets(self, alert: AlertName) -> bool:
        """Whether this channel is told of an alert."""
        return not self.only or alert in self.only


class IndexSettings(Parameters):
    """The index of documents that follows production (docs/targets.md)."""

    target: str | None = Field(
        None,
        description="Where the index is: lancedb:FOLDER, or postgresql://user@host/database#schema.view, without a "
        "password. Left out: no index follows by itself, and `ratchet reindex` uses a LanceDB folder in RATCHET_WORK.",
    )
    secret_env: str | None = Field(
        None,
        description="postgresql only: name of the environment variable that holds the password. `ratchet deploy` puts "
        "it into the Prefect block ratchet-index. Left out: PGPASSWORD or a pgpass file where the worker runs.",
        pattern=_ENVIRONMENT_NAME,
    )

    @field_validator("target")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        from tasks.index.targets import TargetError, check_address

        try:
            return None if value is None else check_address(value)
        except TargetError as error:
            raise ValueError(str(error)) from error


class Settings(Parameters):
    """The whole file."""

    store: StoreSettings = Field(default_factory=StoreSettings, description="Where data, models and runs are.")
    schedule: Schedule = Field(default_factory=Schedule, description="When runs start.")
    alerts: Alerts = Field(default_factory=Alerts, description="How long to wait before an alert.")
    gate: Gate = Field(default_factory=Gate, description="When a candidate of retrain/nightly may replace production.")
    watch: Watch = Field(default_factory=Watch, description="When production counts as drifted or stale.")
    index: IndexSettings = Field(
        default_factory=IndexSettings, description="The index of documents that follows production."
    )
    channels: dict[str, Channel] = Field(
        default_factory=dict, description="Where alerts go, by a name of small letters, digits and dashes."
    )

    @field_validator("channels")
    @classmethod
    def _are_block_names(cls, channels: dict[str, Channel]) -> dict[str, Channel]:
        for name in channels:
            if not re.fullmatch(_CHANNEL_NAME, name):
                raise ValueError(
                    f"{name!r} is not a valid channel name: use lowercase letters, digits and single dashes"
                )
        return channels


def load(file: Path | None = None) -> Settings:
    """The settings in a file; without a name, those of `ratchet.toml` here, or the defaults where there is none.

    Raises SettingsError with one line for every mistake: the file, the key, the reason.
    """
    path = file or FILE
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if file is None:
            return Settings()
        raise SettingsError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    try:
        return Settings.model_validate(found)
    except ValidationError as error:
        # never the value: somebody may have written the secret where the name of its variable belongs
        problems = error.errors(include_input=False, include_url=False)
        raise SettingsError("\n".join(f"{path}: {_words(problem)}" for problem in problems)) from error


def _words(problem: ErrorDetails) -> str:
    """The setting that is wrong, and why."""
    said = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        said = "unknown settings are not permitted; `ratchet init` writes a file with all that there are"
    elif problem["loc"][-1] == "secret_env":
        said = "name the environment variable that holds the secret, never the secret itself"
    return f"{'.'.join(map(str, problem['loc']))}: {said}"
