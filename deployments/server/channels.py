"""The channels of alerts as Prefect blocks: the secret is in the block on the server, and nowhere else.

The kinds are those that any Prefect server knows. None of its blocks is for SMTP, but the one for Slack hands any other
address to the library apprise as it is, and that sends mail. Addresses and keys are read from the environment of the
process that runs `ratchet deploy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, urlencode, urlsplit
from uuid import UUID

from deployments.server.settings import Channel

if TYPE_CHECKING:
    from prefect.blocks.abstract import NotificationBlock

PREFIX: Final = "ratchet-"
"""Before a channel's name in the name of its block: the others on the server are not ours."""

_MAIL_PORTS: Final = {"smtps": 465, "smtp": 587}
_LOCAL: Final = frozenset({"localhost", "127.0.0.1"})


class ChannelError(Exception):
    """A channel cannot be set up; the message names it and the environment variable that is missing or wrong."""


@dataclass(frozen=True)
class Block:
    """A channel's block on the server; `document` is None while it is only planned."""

    document: UUID | None
    changes: list[str]


def ensure(name: str, channel: Channel, environment: Mapping[str, str], *, dry_run: bool) -> Block:
    """Create or update the block of a channel; the same block again changes nothing.

    Where the secret's variable is not set, a block that exists is left as it is: a threshold can be edited
    by somebody who has no secrets. Raises ChannelError when there is none either, or the secret is not of the right
    form; the message never holds it.
    """
    secret = environment.get(channel.secret_env)
    existing = _find(name, channel)
    if not secret:
        if existing is None:
            raise ChannelError(
                f"channel {name}: the environment variable {channel.secret_env} is not set, so there is no "
                f"{_called(channel)} to make"
            )
        return Block(existing._block_document_id, [])
    wanted = build(name, channel, secret)
    what = f"block {PREFIX}{name}"
    if existing is None:
        lines = [f"{what}: new, {_called(channel)}"]
    else:
        # the fields alone: a block also carries what it has connected to
        lines = [
            f"{what}: {field} changes"  # never the values: most of them are secrets
            for field in type(wanted).model_fields
            if getattr(existing, field) != getattr(wanted, field)
        ]
    if lines and not dry_run:
        return Block(wanted.save(f"{PREFIX}{name}", overwrite=True), lines)  # type: ignore[arg-type] # an id, in its synchronous face
    return Block(existing._block_document_id if existing is not None else None, lines)


def build(name: str, channel: Channel, secret: str) -> NotificationBlock:
    """The block of a channel, not yet on a server. Raises ChannelError when the secret is not of the right form."""
    try:
        fields = _fields(name, channel, secret)
        block: NotificationBlock = _type(channel)(**fields)
    except (ValueError, TypeError):
        # without the cause: it would show what was given
        raise ChannelError(
            f"channel {name}: what {channel.secret_env} holds is not what a {_called(channel)} takes"
        ) from None
    return block


def _fields(name: str, channel: Channel, secret: str) -> dict[str, Any]:
    """The fields of a channel's block. Raises ValueError when the secret is not of the right form."""
    fields: dict[str, Any]
    match channel.kind:
        case "slack":
            fields = {"url": secret, "notify_type": "warning"}
        case "teams":
            fields = {"url": secret, "notify_type": "warning", "include_image": False}
        case "pagerduty":
            # the Events API asks for the integration key alone; the block wants another one, and sends it as a header
            fields = {"integration_key": secret, "api_key": secret, "notify_type": "failure", "component": "Ratchet"}
            fields |= {"include_image": False}
        case "email":
            fields = {"api_key": secret, "sender_email": channel.sender, "to_emails": list(channel.recipients)}
            fields |= {"notify_type": "warning"}
        case "smtp":
            fields = {"url": _mail_address(channel, secret), "notify_type": "warning"}
        case "webhook":
            fields = {
                "name": f"{PREFIX}{name}",
                "url": "{{ address }}",  # the address of a webhook is its password
                "secrets": {"address": secret},
                "json_data": {"subject": "{{ subject }}", "body": "{{ body }}"},
            }
    return fields


def _mail_address(channel: Channel, secret: str) -> str:
    """The mail server with sender and recipients, as apprise takes them. Raises ValueError for another address.

    Mails go out encrypted, and to a server whose certificate is valid; only one on the same machine that asks for no
    password is spoken to in the clear.
    """
    server = urlsplit(secret.strip())
    host, user, password = server.hostname or "", server.username or "", server.password or ""
    more = server.path.strip("/") or server.query or server.fragment
    if server.scheme not in _MAIL_PORTS or not host or more or bool(user) != bool(password):
        raise ValueError("not the address of a mail server")
    port = server.port or _MAIL_PORTS[server.scheme]
    mode = "ssl" if server.scheme == "smtps" else "starttls"
    if not user and host in _LOCAL:
        mode = "insecure"
    login = f"{quote(unquote(user), safe='')}:{quote(unquote(password), safe='')}@" if user else ""
    to = ",".join(channel.recipients)
    settings = {"smtp": host, "from": channel.sender, "to": to, "mode": mode, "format": "text"}
    return f"mailtos://{login}{host}:{port}?{urlencode(settings)}"


def _called(channel: Channel) -> str:
    """The block's type, as Prefect calls it; of mail what it is for."""
    if channel.kind == "smtp":
        return "mail by smtps://user:password@host or smtp://user:password@host"
    return str(_type(channel)._block_type_name)


def _type(channel: Channel) -> Any:
    from prefect.blocks import notifications

    return {
        "slack": notifications.SlackWebhook,
        "teams": notifications.MicrosoftTeamsWebhook,
        "pagerduty": notifications.PagerDutyWebHook,
        "email": notifications.SendgridEmail,
        "smtp": notifications.SlackWebhook,
        "webhook": notifications.CustomWebhookNotificationBlock,
    }[channel.kind]


def _find(name: str, channel: Channel) -> Any:
    """The channel's block on the server, or None."""
    try:
        return _type(channel).load(f"{PREFIX}{name}")
    except ValueError:  # Prefect's word for a block that does not exist
        return None
