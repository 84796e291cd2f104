"""Mail by SMTP as a channel: encrypted, with a password, to several people, as the text that was composed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from urllib.parse import quote

import pytest
from prefect.blocks.abstract import NotificationError

from deployments.server import channels
from deployments.server.settings import Channel
from tests import mail
from tests.http_servers import serving

TO = ("ann@example.org", "bob@example.org")
CHANNEL = Channel(kind="smtp", secret_env="MAIL", sender="ratchet@example.org", recipients=TO)
TEXT = "Recall@10: 0.900 to 0.800\n- `(!channel) a & b` (40 queries)\nRun: http://127.0.0.1/runs/1"
LOGIN = f"{quote(mail.USER, safe='')}:{quote(mail.PASSWORD, safe='')}"


@contextmanager
def _secure(folder: Path, *, implicit: bool, monkeypatch: pytest.MonkeyPatch) -> Iterator[mail.Server]:
    """A server that wants TLS and a password, and whose certificate this process trusts."""
    pem = mail.certificate(folder)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with mail.running(certificate=pem, implicit=implicit) as server:
        yield server


def _send(secret: str) -> None:
    block = channels.build("ops", CHANNEL, secret)
    with block.raise_on_failure():
        block.notify(body=TEXT, subject="Ratchet: the new model is worse")


@pytest.mark.parametrize(("scheme", "implicit"), [("smtps", True), ("smtp", False)])
def test_mail_goes_encrypted_to_everybody(
    scheme: str, implicit: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS from the start, or STARTTLS; one mail each, in plain text, to the letter."""
    with _secure(tmp_path, implicit=implicit, monkeypatch=monkeypatch) as server:
        _send(f"{scheme}://{LOGIN}@127.0.0.1:{server.port}")
    assert sorted(one.recipient for one in server.mails) == sorted(TO)
    for one in server.mails:
        assert (one.sender, one.subject, one.body, one.kind) == (
            "ratchet@example.org", "Ratchet: the new model is worse", TEXT, "text/plain",
        )  # fmt: skip
    assert all(server.encrypted)


def test_a_wrong_password_and_an_unknown_certificate_are_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither mail nor password goes to a server that nobody vouches for."""
    with _secure(tmp_path, implicit=False, monkeypatch=monkeypatch) as server:
        with pytest.raises(NotificationError):
            _send(f"smtp://{LOGIN[:-1]}x@127.0.0.1:{server.port}")
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(NotificationError):
            _send(f"smtp://{LOGIN}@127.0.0.1:{server.port}")
    assert server.mails == []


def test_a_password_is_never_sent_in_the_clear() -> None:
    """A server without TLS: refused with a password, and, elsewhere than on this machine, without one."""
    with mail.running() as server:
        with pytest.raises(NotificationError):
            _send(f"smtp://{LOGIN}@127.0.0.1:{server.port}")
        assert server.mails == []
        _send(f"smtp://127.0.0.1:{server.port}")
    assert len(server.mails) == 2
    block = channels.build("ops", CHANNEL, "smtp://mail.example.org")
    assert "mode=starttls" in block.url.get_secret_value()  # type: ignore[attr-defined] # of its type


def test_one_refused_recipient_is_a_failure_and_the_others_get_theirs() -> None:
    """The server says 550 for one of two."""
    with mail.running(refused=TO[0]) as server, pytest.raises(NotificationError):
        _send(f"smtp://127.0.0.1:{server.port}")
    assert [one.recipient for one in server.mails] == [TO[1]]


@pytest.mark.parametrize(
    "answers",
    [
        {},  # it takes the connection and hangs
        {"": b"421 busy\r\n"},
        {"": b"220 here\r\n", "EHLO": b"250 me\r\n", "MAIL": b"250 OK\r\n", "RCPT": b"451 greylisted\r\n"},
        {
            "": b"220 here\r\n",
            "EHLO": b"250 me\r\n",
            "MAIL": b"250 OK\r\n",
            "RCPT": b"250 OK\r\n",
            "DATA": b"",
        },  # hangs up
    ],
)
def test_a_server_that_fails_half_way_is_a_failure(answers: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a mail that counts as sent: Prefect tries again."""
    monkeypatch.setattr("apprise.plugins.email.base.NotifyEmail.socket_connect_timeout", 0.5)

    class Fails(BaseRequestHandler):
        def handle(self) -> None:
            if not answers:
                self.request.recv(1)  # until the client gives up
                return
            self.request.sendall(answers[""])
            while line := self.request.recv(4096):
                answer = answers.get(line[:4].decode().upper(), b"250 OK\r\n" if line[:4] != b"QUIT" else b"")
                if not answer:
                    return
                self.request.sendall(answer)

    server = ThreadingTCPServer(("127.0.0.1", 0), Fails)
    server.daemon_threads = True
    with serving(server), pytest.raises(NotificationError):
        _send(f"smtp://127.0.0.1:{server.server_address[1]}")


@pytest.mark.parametrize(
    "secret",
    [
        "hunter2", "https://hunter2@example.org", "smtp://", "smtps://user@example.org", "smtp://:hunter2@example.org",
        "smtp://example.org/hunter2", "smtp://example.org?to=hunter2", "smtp://example.org:port", "smtp://[hunter2",
    ],
)  # fmt: skip
def test_what_is_no_mail_server_is_refused_without_being_shown(secret: str) -> None:
    """The message says what the variable must hold, never what it holds."""
    with pytest.raises(channels.ChannelError, match="what MAIL holds is not what a mail by smtps://") as refused:
        channels.build("ops", CHANNEL, secret)
    assert "hunter2" not in str(refused.value)
