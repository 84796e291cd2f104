"""A real mail server on loopback (aiosmtpd), that keeps what it was sent."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

USER, PASSWORD = "alerts@example.org", "pass:w/rd@1"


@dataclass(frozen=True)
class Mail:
    """One message, as one recipient got it."""

    sender: str
    recipient: str
    subject: str
    body: str
    kind: str


@dataclass
class Server:
    """Where mail goes to, and what has come."""

    port: int
    mails: list[Mail] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)


class _Handler:
    def __init__(self, server: Server, refused: str, *, implicit: bool) -> None:
        self.server, self.refused, self.implicit = server, refused, implicit

    async def handle_RCPT(self, _server: Any, _session: Any, envelope: Any, address: str, _options: Any) -> str:  # noqa: N802 # its name
        if address == self.refused:
            return "550 no such person"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 # its name
        message = message_from_bytes(envelope.content, policy=policy.default)
        body = message.get_body(("plain", "html"))
        assert body is not None
        self.server.encrypted.append(self.implicit or session.ssl is not None)
        for recipient in envelope.rcpt_tos:
            text = body.get_content().replace("\r\n", "\n").strip()
            kind = body.get_content_type()
            self.server.mails.append(Mail(envelope.mail_from, recipient, str(message["Subject"]), text, kind))
        return "250 OK"


def _authenticate(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
    right = isinstance(data, LoginPassword) and (data.login, data.password) == (USER.encode(), PASSWORD.encode())
    return AuthResult(success=right, handled=False)


@contextmanager
def running(*, certificate: Path | None = None, implicit: bool = False, refused: str = "") -> Iterator[Server]:
    """A server for the length of a `with` block; with a certificate it asks for TLS and a password."""
    server = Server(0)
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    options: dict[str, Any] = {}
    if context is not None:
        options = {"authenticator": _authenticate, "auth_required": True}
        options |= {"ssl_context": context} if implicit else {"tls_context": context, "require_starttls": True}
        options |= {"auth_require_tls": False} if implicit else {}
    controller = Controller(_Handler(server, refused, implicit=implicit), hostname="127.0.0.1", port=_free(), **options)
    controller.start()
    server.port = controller.port
    try:
        yield server
    finally:
        controller.stop()


def _free() -> int:
    from deployments.stack import seaweedfs

    (port,) = seaweedfs.free_ports(1)
    return port


def certificate(folder: Path) -> Path:
    """A certificate of its own for 127.0.0.1, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "server.pem"
    path.write_bytes(pem + made.public_bytes(serialization.Encoding.PEM))
    return path
